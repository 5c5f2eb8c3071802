"""Rates of rotation that networks reach by themselves, in closed form."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.layca import rates


def noise_rotation_curve(rho_schedule: Any, n: int) -> jax.Array:
  """Expected cosine distance to the start if gradients were pure noise.

  `1 - prod_t (1 + rho_t^2)^(-1/2)`: independent isotropic directions. Curves of
  real training lie close to it, so it is a reference line for plots.

  Args:
    rho_schedule: rho: number, schedule of the step, or array [n].
    n: number of steps.

  Returns:
    Cosine distances [n]; entry t holds after t + 1 updates.

  Raises:
    ValueError: n is not positive, or the array has another length.

  Example:
    >>> round(float(noise_rotation_curve(3.0**-3, 300)[-1]), 4)
    0.1859
  """
  if n < 1:
    raise ValueError(f'n is {n}; expected a positive number of steps.')
  steps = jnp.arange(n)
  if callable(rho_schedule):
    rho = jax.vmap(lambda t: jnp.asarray(rho_schedule(t)))(steps)
  elif jnp.ndim(rho_schedule):
    if jnp.shape(rho_schedule)[0] != n:
      raise ValueError(
        f'rho_schedule has shape {jnp.shape(rho_schedule)}; expected a'
        f' number, a schedule or one entry for each of {n} steps.'
      )
    rho = jax.vmap(rates.replay_schedule(rho_schedule))(steps)
  else:
    rho = jnp.broadcast_to(jnp.asarray(rho_schedule), (n,))
  return -jnp.expm1(-jnp.cumsum(jnp.log1p(jnp.square(rho)), axis=0) / 2)


def equilibrium_learning_rate(
  kind: str, lr: Any, wd: Any, momentum_or_b1: Any = 0.0
) -> Any:
  """Layca's learning rate that rotates as a tuned recipe does in equilibrium.

  Weight decay and gradient balance at a rotation per step (Kosson et al. 2023,
  arXiv:2305.17212) of `sqrt(2 lr wd / (1 + mu))` for SGD with momentum mu and
  `sqrt(2 lr wd (1 - b1) / (1 + b1))` for AdamW. It is where to start from when
  Layca replaces such a recipe.

  Args:
    kind: 'sgdm' or 'adamw'.
    lr: learning rate of the recipe.
    wd: weight decay of the recipe, as PyTorch and optax define it. Keras'
      l2(x) is a weight decay of 2 x.
    momentum_or_b1: mu of SGD, or b1 of AdamW.

  Returns:
    The learning rate for `layca`.

  Raises:
    ValueError: kind is another one, or a number is out of range.

  Example:
    >>> round(equilibrium_learning_rate('sgdm', 0.1, 5e-4, 0.9), 5)
    0.00725
  """
  if kind not in ('sgdm', 'adamw'):
    raise ValueError(f"kind is {kind!r}; expected 'sgdm' or 'adamw'.")
  for name, value in (('lr', lr), ('wd', wd)):
    if isinstance(value, (int, float)) and value < 0:
      raise ValueError(f'{name} is {value}; expected 0 or more.')
  if isinstance(momentum_or_b1, (int, float)) and not 0 <= momentum_or_b1 < 1:
    raise ValueError(
      f'momentum_or_b1 is {momentum_or_b1}; expected a number in [0, 1).'
    )
  square = 2 * lr * wd / (1 + momentum_or_b1)
  if kind == 'adamw':
    square = square * (1 - momentum_or_b1)
  if isinstance(square, float):
    return math.sqrt(square)
  return np.sqrt(square) if isinstance(square, np.ndarray) else jnp.sqrt(square)
