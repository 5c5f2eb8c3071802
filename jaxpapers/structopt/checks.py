"""Checks of values, for arguments whose values are known (outside jit)."""

import jax
import numpy as np

# What float32 densities may leave [0, 1] by.
_ROUNDING = 1e-6


def check_densities(x, name: str = 'x') -> None:
  """Raises unless densities are finite and lie in [0, 1], up to rounding.

  A negative density would make Young's modulus negative and the stiffness
  matrix indefinite, which a Cholesky factorization answers with NaN.

  Args:
    x: densities, any shape; nothing is checked while tracing.
    name: what to call them in the message.

  Raises:
    ValueError: names the argument and what it holds.
  """
  if isinstance(x, jax.core.Tracer):
    return
  x = np.asarray(x)
  bad = np.count_nonzero(~np.isfinite(x))
  if bad:
    raise ValueError(
      f'{name} has {bad} entries that are NaN or infinite; densities must be '
      'finite.'
    )
  if x.size and (x.min() < -_ROUNDING or x.max() > 1 + _ROUNDING):
    raise ValueError(
      f'{name} ranges over [{x.min():.6g}, {x.max():.6g}]; densities must lie '
      'in [0, 1]. Clip them, or pass logits with constrain_volume=True.'
    )


def check_finite(x, name: str) -> None:
  """Raises if numbers that are known are not all finite.

  Args:
    x: numbers, any shape.
    name: what to call them in the message.

  Raises:
    ValueError: names the argument and how many of its entries are bad.
  """
  if isinstance(x, jax.core.Tracer):
    return
  bad = np.count_nonzero(~np.isfinite(x))
  if bad:
    raise ValueError(
      f'{name} has {bad} entries that are NaN or infinite; expected finite '
      'numbers.'
    )


def check_fraction(fraction, name: str) -> None:
  """Raises if a volume fraction that is known lies outside (0, 1).

  Args:
    fraction: a number.
    name: what to call it in the message.

  Raises:
    ValueError: names the argument and its value.
  """
  if isinstance(fraction, jax.core.Tracer):
    return
  if not 0.0 < float(fraction) < 1.0:
    raise ValueError(
      f'{name} must lie strictly between 0 and 1, got {fraction}.'
    )
