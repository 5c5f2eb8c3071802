"""What can go wrong with Layca, said when it goes wrong."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from optax._src.base import NO_PARAMS_MSG as NO_PARAMS_MSG

# Below this rate bfloat16 weights no longer turn by what is asked: 5 % too much
# at 3^-5 already, 42 % too little at 3^-7.
SMALLEST_HALF_PRECISION_RATE = 3.0**-5
# Norms that changed by more than this between two updates were changed by
# somebody else: rounding changes bfloat16 norms by less.
_DRIFT = 1e-2


def keyword_options(options: dict[str, Any]) -> dict[str, Any]:
  """Keyword arguments as they were given, whoever passed them on.

  `optax.inject_hyperparams` passes the dictionary of a `**options` parameter
  under that parameter's name.
  """
  given = dict(options)
  return {**given.pop('options', {}), **given}


def arguments(normalize: Any, target_norm: Any) -> Any:
  """Checks options of `layca`.

  Args:
    normalize: as in `layca`.
    target_norm: as in `layca`.

  Returns:
    The decay of the running norm, or None.

  Raises:
    ValueError: for anything else than the documented values.
  """
  bad_norm = isinstance(target_norm, (int, float)) and not target_norm > 0
  if isinstance(target_norm, str):
    bad_norm = target_norm not in ('initial', 'current')
  if bad_norm:
    raise ValueError(
      f"target_norm is {target_norm!r}; expected 'initial', 'current' or a"
      ' positive number.'
    )
  if isinstance(normalize, str) and normalize == 'norm':
    return None
  if isinstance(normalize, (tuple, list)) and len(normalize) == 2:
    kind, decay = normalize
    inside = not isinstance(decay, (int, float)) or 0 <= decay < 1
    if kind == 'ema' and inside:
      return decay
  raise ValueError(
    f"normalize is {normalize!r}; expected 'norm' or ('ema', decay) with a"
    ' decay in [0, 1).'
  )


def leaf(
  name: str, array: Any, reduced: Sequence[int], whole: bool = True
) -> None:
  """Checks a leaf that Layca is to rotate.

  Args:
    name: its path.
    array: the leaf.
    reduced: axes that belong to one layer.
    whole: False if the array is one part of several (shard_map).

  Raises:
    TypeError: it is not real.
    ValueError: its layers have fewer than two elements.
  """
  dtype, shape = jnp.result_type(array), jnp.shape(array)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise TypeError(
      f'params[{name!r}] has dtype {dtype}; Layca rotates real floating-point'
      ' layers. Leave the parameter out: with_layca(select=...) or'
      ' optax.masked.'
    )
  size = int(np.prod([shape[axis] for axis in reduced], dtype=int))
  if whole and size < 2:
    raise ValueError(
      f'params[{name!r}] has shape {shape}, {size} element(s) per layer;'
      ' expected at least 2, since a single number has no direction to turn to.'
      ' Leave the parameter out: with_layca(select=...) or optax.masked.'
    )


def _concrete(array: Any) -> bool:
  """Whether this process can read the values."""
  if isinstance(array, jax.core.Tracer):
    return False
  if isinstance(array, jax.Array):
    return array.is_fully_addressable or array.is_fully_replicated
  return True


def initial_norm(name: str, norm: Any) -> None:
  """Raises ValueError if a norm that can be read is 0 or not finite."""
  if not _concrete(norm):
    return
  values = np.asarray(norm)
  if not np.all(np.isfinite(values)):
    raise ValueError(f'params[{name!r}] has a layer whose norm is not finite.')
  if np.any(values == 0):
    raise ValueError(
      f'params[{name!r}] has a layer of norm 0; Layca keeps the norm, so it'
      ' would never move. Initialise it with nonzero weights or leave it out:'
      ' with_layca(select=...) or optax.masked.'
    )


def half_precision(
  names: Sequence[str], leaves: Sequence[Any], rates: Sequence[Any]
) -> None:
  """Warns of 16-bit parameters at rates that their rounding swallows."""
  small = []
  for name, array, rate in zip(names, leaves, rates, strict=True):
    if rate is None or array.dtype.itemsize > 2 or not _concrete(rate):
      continue
    rate = np.abs(np.asarray(rate, np.float64))
    if np.any((rate > 0) & (rate < SMALLEST_HALF_PRECISION_RATE)):
      small.append(name)
  if small:
    logging.warning(
      'Layca: learning rates below 3^-5 = 0.0041 are lost in the rounding of'
      ' 16-bit parameters: %s. Keep float32 parameters.',
      ', '.join(small),
    )


def left_the_sphere(
  count: Any,
  names: Sequence[str],
  expected: Sequence[Any],
  norms: Sequence[Any],
) -> None:
  """Warns at the second update, outside jit, if norms were changed since.

  Under jit nothing can be read; `check_chain` finds the same beforehand.

  Args:
    count: updates so far.
    names: names of the layers.
    expected: norms that the last update left, negative where unknown.
    norms: norms now.
  """
  if not all(map(_concrete, (count, *expected, *norms))) or int(count) != 1:
    return
  moved = []
  for name, before, now in zip(names, expected, norms, strict=True):
    before, now = np.asarray(before), np.asarray(now)
    if np.any((before > 0) & (np.abs(now - before) > _DRIFT * before)):
      moved.append(name)
  if moved:
    logging.warning(
      'Layca: the norms of %s have changed since the last update. Layca has to'
      ' be the last transform of a chain; what follows it (scaling, weight'
      ' decay, clipping) breaks the sphere.',
      ', '.join(moved),
    )
