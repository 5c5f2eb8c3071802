"""Cases of the authors' notebook, which several tests read."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.product_keys import memory as memory_lib
from tests.helpers import goldens


def weight(case, name, shape, scale=1.0, post=''):
  """A tensor of a golden file, from its name."""
  w = goldens.normal(f'{case}/{name}', tuple(shape), scale).astype(np.float32)
  return {'': w, '1+w': 1 + w, '0.5+|w|': 0.5 + np.abs(w)}[post]


NOTEBOOK = {
  # name: (input, value width, k_dim, n_keys, heads, knn, leading, batch norm)
  'pub_pk_linear': (16, 12, 8, 8, 3, 4, (2, 5), False),
  'pub_pk_bn_train': (16, 12, 8, 8, 3, 4, (2, 5), True),
  'pub_pk_bn_eval': (16, 12, 8, 8, 3, 4, (2, 5), True),
  'pub_pk_h1_k1': (16, 12, 8, 8, 1, 1, (2, 5), False),
  'pub_pk_k_eq_n': (16, 12, 8, 8, 2, 8, (2, 5), False),
  'pub_pk_medium': (64, 64, 32, 64, 4, 32, (4, 16), True),
}


def notebook_case(case, **changes):
  """Module, variables and input of a case of the authors' notebook."""
  d, v, k_dim, n, heads, knn, lead, norm = NOTEBOOK[case]
  module = memory_lib.ProductKeyMemory(
    n_keys=n,
    k_dim=k_dim,
    heads=heads,
    knn=knn,
    v_dim=v,
    query_norm='batch' if norm else None,
    **changes,
  )
  width = heads * k_dim
  dense = {
    'kernel': weight(case, 'query.weight', (width, d), d**-0.5).T,
    'bias': weight(case, 'query.bias', (width,), 0.1),
  }
  query = {'dense_0': dense}
  variables = {
    'params': {
      'keys': weight(case, 'keys', (heads, 2, n, k_dim // 2)),
      'query': query,
    },
    'memory': {'values': weight(case, 'values', (n * n, v), v**-0.5)},
  }
  if norm:
    query['norm_0'] = {
      'scale': weight(case, 'bn.weight', (width,), 0.1, '1+w'),
      'bias': weight(case, 'bn.bias', (width,), 0.1),
    }
    stats = {
      'mean': weight(case, 'bn.running_mean', (width,), 0.3),
      'var': weight(case, 'bn.running_var', (width,), 0.5, '0.5+|w|'),
    }
    variables['batch_stats'] = {'query': {'norm_0': stats}}
  x = weight(case, 'input', (*lead, d))
  return module, jax.tree.map(jnp.asarray, variables), jnp.asarray(x)
