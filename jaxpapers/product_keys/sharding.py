"""Value tables spread over the devices of a mesh axis.

Ids, weights and sums travel, rows never do: what a token costs does not grow
with the table.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpapers.product_keys.bag import embedding_bag
from jaxpapers.product_keys.weighting import check_choice

__all__ = [
  'make_sharded_bag',
  'shard_value_table',
  'sharded_embedding_bag',
]

KINDS = ('row', 'column')


def table_spec(kind: str, axis: str = 'mem') -> PartitionSpec:
  """How a table lies on a mesh: 'row' splits slots, 'column' their width.

  Raises:
    ValueError: If the kind is unknown.
  """
  check_choice('kind', kind, KINDS)
  return (
    PartitionSpec(axis, None) if kind == 'row' else PartitionSpec(None, axis)
  )


def shard_value_table(
  values: jax.Array, mesh: Mesh, axis: str = 'mem', kind: str = 'row'
) -> jax.Array:
  """Puts a table onto a mesh.

  Args:
    values: `[N, D]`.
    mesh: The mesh.
    axis: Its axis for the table; the table is copied along the others.
    kind: 'row' or 'column'.

  Returns:
    The same numbers, sharded.

  Raises:
    ValueError: If the axis is not there, or does not divide the table.

  Example:
    >>> mesh = jax.make_mesh((1,), ('mem',))
    >>> shard_value_table(jnp.ones((4, 2)), mesh).sharding.spec
    PartitionSpec('mem', None)
  """
  _check(values, mesh, axis, kind)
  return jax.device_put(values, NamedSharding(mesh, table_spec(kind, axis)))


def sharded_embedding_bag(
  values: jax.Array,
  ids: jax.Array,
  weights: jax.Array,
  *,
  mesh: Mesh,
  axis: str = 'mem',
  kind: str = 'row',
  batch_axes: Sequence[str] = ('data',),
  impl: str = 'auto',
) -> jax.Array:
  """`embedding_bag` of a table that is spread over a mesh axis.

  Tokens are spread over all axes. Along `axis`, devices gather each other's ids
  and weights, sum what they hold, and send the sums back: by a reduction where
  rows are split, by an exchange where columns are. Gradients take the same way
  back, each device making its own part of the table's.

  Args:
    values: `[N, D]`.
    ids: `[T, R]`.
    weights: `[T, R]`.
    mesh: The mesh, with Auto axes.
    axis: Axis of the table.
    kind: 'row' or 'column'.
    batch_axes: Axes over which tokens are spread besides; those that the mesh
      does not have count as absent.
    impl: See `embedding_bag`.

  Returns:
    `[T, D]`, tokens spread over all of these axes.

  Raises:
    ValueError: If the table cannot be divided, or arguments do not fit.

  Example:
    >>> mesh = jax.make_mesh(
    ...   (1,), ('mem',), axis_types=(jax.sharding.AxisType.Auto,)
    ... )
    >>> values, ids = jnp.eye(2), jnp.array([[0, 1]])
    >>> sharded_embedding_bag(values, ids, jnp.ones((1, 2)), mesh=mesh).tolist()
    [[1.0, 1.0]]
  """
  _check(values, mesh, axis, kind)
  if ids.ndim != 2 or ids.shape != weights.shape:
    raise ValueError(
      f'ids has shape {ids.shape} and weights {weights.shape}; expected the'
      ' same [T, R].'
    )
  names = (*(name for name in batch_axes if name in mesh.shape), axis)
  shards = math.prod(mesh.shape[name] for name in names)
  tokens = ids.shape[0]
  spare = -tokens % shards
  if spare:
    # Reads of no row.
    ids = jnp.pad(ids, ((0, spare), (0, 0)), constant_values=values.shape[0])
    weights = jnp.pad(weights, ((0, spare), (0, 0)))

  def local(values, ids, weights):
    gather = functools.partial(
      jax.lax.all_gather, axis_name=axis, axis=0, tiled=True
    )
    ids, weights = gather(ids), gather(weights)
    if kind == 'row':
      # What others hold is out of range here, and left out.
      ids = ids - jax.lax.axis_index(axis) * values.shape[0]
      y = embedding_bag(values, ids, weights, impl=impl)
      return jax.lax.psum_scatter(y, axis, scatter_dimension=0, tiled=True)
    y = embedding_bag(values, ids, weights, impl=impl)
    return jax.lax.all_to_all(y, axis, split_axis=0, concat_axis=1, tiled=True)

  by_token = PartitionSpec(names, None)
  y = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(table_spec(kind, axis), by_token, by_token),
    out_specs=by_token,
    # The sums begin with zeros, which are alike on all devices.
    check_vma=False,
  )(values, ids, weights)
  return y[:tokens]


def make_sharded_bag(mesh: Mesh, **options) -> Callable:
  """The `bag` of a memory layer whose table is spread over a mesh.

  Args:
    mesh: The mesh.
    **options: Of `sharded_embedding_bag`.

  Returns:
    A function of values, ids and weights.
  """
  return functools.partial(sharded_embedding_bag, mesh=mesh, **options)


def _check(values, mesh, axis, kind):
  check_choice('kind', kind, KINDS)
  if axis not in mesh.shape:
    raise ValueError(f'axis is {axis!r}; the mesh has {", ".join(mesh.shape)}.')
  if values.ndim != 2:
    raise ValueError(f'values has shape {values.shape}; expected [N, D].')
  index = KINDS.index(kind)
  if values.shape[index] % mesh.shape[axis]:
    raise ValueError(
      f'values has shape {values.shape}: {values.shape[index]} {kind}s cannot'
      f' be split evenly over {mesh.shape[axis]} devices of axis {axis!r}.'
    )
