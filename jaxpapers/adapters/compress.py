"""A frozen backbone in fewer bytes: bfloat16, or eight-bit integers."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxpapers.adapters import trees

KINDS = ('bfloat16', 'int8')


@struct.dataclass
class Int8Array:
  """An array as integers and factors: `values * scale`.

  Attributes:
    values: int8, the shape of the array.
    scale: float32, one factor per output of a kernel or row of a table; its
      other axes have size one, so that a sharding of the array fits both.
    dtype: Type of the array when it is decompressed.
  """

  values: jax.Array
  scale: jax.Array
  dtype: Any = struct.field(pytree_node=False)

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the array."""
    return self.values.shape

  def decompress(self) -> jax.Array:
    """The array, to within half a step: the largest entry / 254."""
    return (self.values.astype(jnp.float32) * self.scale).astype(self.dtype)


def decompress(leaf: Any) -> Any:
  """An array again, if it is one that was compressed."""
  return leaf.decompress() if isinstance(leaf, Int8Array) else leaf


def compress_frozen(frozen: Mapping[str, Any], kind: str) -> dict[str, Any]:
  """Stores frozen parameters in fewer bytes.

  What is trained stays as it is, in float32. `merge_params` gives the model
  bfloat16 leaves as they are, and Linen modules compute in their own `dtype`;
  integers are decompressed inside the program, one kernel where it is used.

  Args:
    frozen: Tree of frozen parameters.
    kind: 'bfloat16': two bytes each. 'int8': kernels and tables in one byte and
      a factor per output or row, the rest as it is.

  Returns:
    A tree of the same paths.

  Raises:
    ValueError: If there is no such kind.

  Example:
    >>> frozen = {'dense': {'kernel': jnp.ones((4, 2))}}
    >>> compress_frozen(frozen, 'int8')['dense']['kernel'].values.dtype
    dtype('int8')
  """
  if kind not in KINDS:
    raise ValueError(f'kind is {kind!r}; expected one of {KINDS}.')
  small = {}
  for path, leaf in trees.flatten(frozen).items():
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      small[path] = leaf
    elif kind == 'bfloat16':
      small[path] = leaf.astype(jnp.bfloat16)
    elif path.endswith(('/kernel', '/embedding')) and leaf.ndim > 1:
      small[path] = _to_int8(path, leaf)
    else:
      small[path] = leaf
  return trees.unflatten(small)


def _to_int8(path: str, leaf: jax.Array) -> Int8Array:
  # A factor for each output: outputs are last in kernels. In scanned layers
  # each layer has its own.
  axes = tuple(range(leaf.ndim - 1))
  if '/layers/' in f'/{path}':
    axes = axes[1:]
  if path.endswith('/embedding'):
    axes = (leaf.ndim - 1,)
  largest = jnp.abs(leaf.astype(jnp.float32)).max(axes, keepdims=True)
  scale = jnp.where(largest > 0, largest, 1) / 127
  values = jnp.round(leaf / scale).astype(jnp.int8)
  return Int8Array(values, scale, leaf.dtype)


def tree_bytes(tree: Any) -> int:
  """Bytes of all arrays of a tree, compressed ones as they are stored."""
  return sum(
    leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
  )
