"""What a memory layer refuses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.product_keys.queries import QUERY_NETS
from jaxpapers.product_keys.weighting import check_choice

QUERY_NORMS = (None, 'batch', 'layer', 'qk')


def check_options(memory: Any, dim: int, k_dim: int) -> None:
  """Refuses attributes of a memory layer that do not fit.

  Args:
    memory: The layer.
    dim: Width of x.
    k_dim: Width of queries.

  Raises:
    ValueError: Naming the attribute.
  """
  if memory.heads < 1:
    raise ValueError(f'heads is {memory.heads}; expected 1 or more.')
  check_choice('query_norm', memory.query_norm, QUERY_NORMS)
  check_choice('query_net', memory.query_net, QUERY_NETS)
  for name in ('input_dropout', 'query_dropout', 'value_dropout'):
    rate = getattr(memory, name)
    if not 0 <= rate < 1:
      raise ValueError(f'{name} is {rate}; expected at least 0 and below 1.')
  if not memory.temperature > 0:
    raise ValueError(f'temperature is {memory.temperature}; expected above 0.')
  if not 0 <= memory.modulo <= memory.num_slots:
    raise ValueError(
      f'modulo is {memory.modulo}; expected 0 to {memory.num_slots}, the slots.'
    )
  if memory.v_dim is not None and memory.v_dim < 1:
    raise ValueError(f'v_dim is {memory.v_dim}; expected 1 or more, or None.')
  if memory.query_sizes is None or memory.shuffle_query:
    _check_identity(memory, dim, k_dim)
  _check_kernels(memory)


def _check_identity(memory, dim: int, k_dim: int) -> None:
  if dim != k_dim:
    raise ValueError(
      f'k_dim is {k_dim} and x is {dim} wide; without a query network'
      ' (query_sizes=None, shuffle_query) both have to be equal.'
    )
  if memory.query_norm == 'batch':
    raise ValueError(
      "query_norm is 'batch', which follows layers of a query network, and"
      ' there is none; expected None, as XLM has it, or another norm.'
    )


def _check_kernels(memory) -> None:
  kernels = memory.query_kernels
  if kernels is None:
    if memory.query_residual:
      raise ValueError(
        'query_residual is True; expected False without query_kernels, since'
        ' only convolutions have a residual.'
      )
    return
  if memory.query_sizes is None or memory.shuffle_query:
    raise ValueError(
      f'query_kernels is {kernels} without a query network; expected None.'
    )
  layers = len(memory.query_sizes) + 1
  if len(kernels) != layers or any(k < 1 or k % 2 == 0 for k in kernels):
    raise ValueError(
      f'query_kernels is {kernels}; expected {layers} odd sizes, one for each'
      ' layer of the query network (query_sizes, and the last).'
    )


def check_input(x: jax.Array, mask: Any, least: int = 2) -> None:
  """Refuses tokens that a memory cannot read for.

  Args:
    x: `[..., d]`.
    mask: bool `[...]`, or None.
    least: Dimensions that x has at least.

  Raises:
    ValueError: If shapes do not fit, there is no token, or (not under `jit`) no
      valid one, or a valid one has NaN.
    TypeError: If x is not floating-point, or the mask no bool.
  """
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise TypeError(f'x is {x.dtype}; expected floating-point numbers.')
  if x.ndim < least or not x.size:
    wanted = '[..., height, width, d]' if least > 2 else '[..., width]'
    raise ValueError(
      f'x has shape {x.shape}; expected {wanted} with one token or more.'
    )
  if mask is not None:
    if mask.shape != x.shape[:-1]:
      raise ValueError(
        f'mask has shape {mask.shape}; expected {x.shape[:-1]}, the tokens of'
        ' x.'
      )
    if mask.dtype != bool:
      raise TypeError(
        f'mask is {mask.dtype}; expected bool, True for tokens that are not'
        ' padding.'
      )
  if isinstance(x, jax.core.Tracer) or isinstance(mask, jax.core.Tracer):
    return
  rows = np.asarray(x, np.float32)
  if mask is not None:
    rows = rows[np.asarray(mask)]
    if not rows.size:
      raise ValueError(
        'mask leaves no valid token; drop batches of nothing but padding.'
      )
  if np.isnan(rows).any():
    raise ValueError(
      f'x has NaN in {np.isnan(rows).any(axis=-1).sum()} tokens; the k best of'
      ' NaN scores are arbitrary slots.'
    )
