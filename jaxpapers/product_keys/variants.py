"""Later layers on the same retrieval: Memory+ and PEER."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpapers.product_keys import weighting
from jaxpapers.product_keys.bag import embedding_dot
from jaxpapers.product_keys.memory import ProductKeyMemory
from jaxpapers.product_keys.quantize import dot_table, read_table

__all__ = ['MemoryPlus', 'PEER']

GATES = (None, 'silu', 'sigmoid')


def memory_plus_keys(rng, shape, dtype):
  """Uniform within 1 / sqrt(width of a query), not of its half."""
  bound = (2 * shape[-1]) ** -0.5
  return jax.random.uniform(rng, shape, dtype, -bound, bound)


class MemoryPlus(ProductKeyMemory):
  """Memory+ of Berges et al. (2024, arXiv:2412.09764).

  With the weighted sum y of values, `Wv(y * silu(Ws x + bs)) + bv`. Several
  layers share one table: give it to each as `values=`.

  Attributes:
    k_dim: Half the width of x by default.
    query_norm: None by default; the paper adds 'qk' for small models.
    gate: 'silu' as above, 'sigmoid' for one number per token that multiplies y,
      or None.
    out_proj: Whether there is an output projection Wv.

  Example:
    >>> memory = MemoryPlus(n_keys=8, heads=2, knn=4)
    >>> x = jnp.ones((5, 16))
    >>> table = jnp.ones((64, 16))
    >>> variables = memory.init(jax.random.key(0), x, train=False, values=table)
    >>> sorted(variables['params'])
    ['gate', 'keys', 'out', 'query']
  """

  k_dim: int | None = None
  query_norm: str | None = None
  key_init: str | Callable = memory_plus_keys
  query_init: Callable | None = nn.initializers.xavier_uniform()
  gate: str | None = 'silu'
  out_proj: bool = True

  def _finish(self, x, y):
    weighting.check_choice('gate', self.gate, GATES)
    options = {
      'dtype': self.dtype or x.dtype,
      'param_dtype': self.param_dtype,
      'kernel_init': nn.initializers.normal(x.shape[-1] ** -0.5),
    }
    if self.gate == 'silu':
      y = y * nn.silu(nn.Dense(y.shape[-1], name='gate', **options)(x))
    elif self.gate == 'sigmoid':
      y = y * nn.sigmoid(nn.Dense(1, name='gate', **options)(x))
    if self.out_proj:
      y = nn.Dense(x.shape[-1], name='out', **options)(y)
    return y


class PEER(ProductKeyMemory):
  """Parameter-efficient expert retrieval, He (2024, arXiv:2407.04153).

  Slot i is an expert of one neuron: `y = sum_r w_r gelu(<x, up_i>) down_i`,
  with the exact GELU.

  The tables are 'up' and 'down'; `values=` takes a pair of them.

  Example:
    >>> memory = PEER(n_keys=8, k_dim=8, heads=2, knn=4)
    >>> x = jnp.ones((5, 16))
    >>> variables = memory.init(jax.random.key(0), x, train=False)
    >>> sorted(variables['memory'])
    ['down', 'up']
  """

  n_keys: int = 1024
  heads: int = 8
  knn: int = 16

  def _read(self, x, ids, weights, values):
    if values is not None and len(values) != 2:
      raise ValueError(
        f'values has {len(values)} parts; expected the pair (up, down).'
      )
    up, down = (None, None) if values is None else values
    up = self._table('up', x.shape[-1], up)
    down = self._table('down', self.v_dim or x.shape[-1], down)
    # A bag for several devices brings its own.
    dot = getattr(self.bag, 'dot', embedding_dot)
    hidden = self._perturb('up_out', dot_table(dot, up, ids, x))
    weights = weights * jax.nn.gelu(hidden, approximate=False)
    self._keep('up', ids=ids, inputs=x.astype(jnp.float32))
    self._keep('down', ids=ids, weights=weights)
    return self._perturb('down_out', read_table(self.bag, down, ids, weights))
