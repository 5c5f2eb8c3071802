"""The optimality-criteria update of topology optimization.

The fixed-point iteration of Bendsøe (1995) in the form that the 88-line code of
Andreassen et al. (2011) made common, and that Hoyer, Sohl-Dickstein &
Greydanus (2019, arXiv:1909.04240) compare with.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.structopt import checks, density

# The multiplier is sought within this factor of its natural scale. Densities
# respond to its square root, so the bracket covers twelve decades of them.
_BRACKET = 1e24
# Halvings of the logarithm of that bracket down to rounding: log2(110 / 1e-16).
_HALVINGS = 60


def optimality_criteria(
  x: Any,
  dc: Any,
  dv: Any,
  volfrac: Any,
  mask: Any = 1.0,
  *,
  move: float = 0.2,
  damping: float = 0.5,
  volume: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
  """One optimality-criteria step.

  Computes `clip(x * max(-dc / (lambda dv), 0)**damping)` with moves limited to
  `move` and to [0, 1], where the multiplier lambda makes the volume of the
  result equal `volfrac`. The multiplier is bisected on a logarithmic
  scale, relative to the largest ratio -dc / dv, so that the step does not
  depend on the units of the objective. Where no multiplier satisfies the
  volume, the nearest attainable one is taken.

  Args:
    x: Densities, shape [nely, nelx].
    dc: Gradient of the objective with respect to x. Entries of the wrong
      (positive) sign, which self-weight produces, count as zero.
    dv: Gradient of the volume with respect to x; ignored where `mask` is 0.
    volfrac: Wanted volume, in (0, 1).
    mask: 1 where material may be placed and 0 elsewhere; [nely, nelx] or a
      scalar.
    move: Largest change of a density.
    damping: Exponent of the update.
    volume: Maps densities to the volume to be constrained, increasing in every
      density. By default their mean over the mask after the cone filter of
      radius 2, as in the paper.

  Returns:
    The new densities, of the shape of x.

  Raises:
    ValueError: `dc`, `dv` or `mask` has another shape than x, or `move` or
      `damping` is not positive. Where values are known, outside jit: `x` holds
      NaN or leaves [0, 1], `dc` or `dv` holds NaN, or `volfrac` leaves (0, 1).

  Example:
    >>> x = np.full((4, 6), 0.5)
    >>> dc = -np.linspace(1, 2, 24).reshape(4, 6)
    >>> new = optimality_criteria(x, dc, np.full((4, 6), 1 / 24), 0.5)
    >>> float(density.mean_density(new).round(6))
    0.5
  """
  if not move > 0:
    raise ValueError(f'move is {move}; expected a positive limit such as 0.2.')
  if not damping > 0:
    raise ValueError(f'damping is {damping}; expected a positive exponent.')
  checks.check_fraction(volfrac, 'volfrac')
  with jax.enable_x64(True):
    x = jnp.asarray(x)
    checks.check_densities(x)
    dc, dv = jnp.asarray(dc, x.dtype), jnp.asarray(dv, x.dtype)
    for name, array in (('dc', dc), ('dv', dv)):
      if array.shape != x.shape:
        raise ValueError(
          f'{name} has shape {array.shape}; expected that of x, {x.shape}.'
        )
      checks.check_finite(array, name)
    if not isinstance(mask, jax.Array):
      mask = np.asarray(mask)
    if mask.ndim and mask.shape != x.shape:
      raise ValueError(
        f'mask has shape {mask.shape}; expected that of x, {x.shape}, or a'
        ' scalar.'
      )
    mask = jnp.broadcast_to(mask.astype(x.dtype), x.shape)
    fraction = jnp.asarray(volfrac, x.dtype)
    if volume is None:
      volume = _mean_filtered_density(x, mask)
    ratio = jnp.maximum(-dc / jnp.where(mask > 0, dv, 1.0), 0.0)
    largest = jnp.max(ratio)
    ratio = ratio / jnp.where(largest > 0, largest, 1.0)
    lower = jnp.maximum(x - move, 0.0)
    upper = jnp.minimum(x + move, 1.0)

    def step(log_multiplier):
      multiplier = jnp.exp(log_multiplier)
      return jnp.clip(x * (ratio / multiplier) ** damping, lower, upper)

    def halve(_, bracket):
      low, high = bracket
      middle = 0.5 * (low + high)
      too_much = volume(step(middle)) > fraction
      low = jnp.where(too_much, middle, low)
      high = jnp.where(too_much, high, middle)
      return low, high

    extent = jnp.asarray(np.log(_BRACKET), x.dtype)
    bracket = jax.lax.fori_loop(0, _HALVINGS, halve, (-extent, extent))
    return step(0.5 * (bracket[0] + bracket[1]))


def _mean_filtered_density(x, mask):
  """The paper's volume, as a weighted sum: filtering is linear."""
  weights = jax.grad(lambda y: density.mean_density(y, mask))(jnp.zeros_like(x))
  return lambda y: jnp.vdot(weights, y)
