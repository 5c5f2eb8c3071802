"""The paper's optimizers, by name, with and without Layca."""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from jaxpapers.layca import bases, trees, wrappers

BASES = ('sgd', 'amom_sgd', 'rmsprop', 'adam', 'adagrad')
_EPSILON = 1e-7  # Keras'


def direction(
  base: str, momentum: float = 0.0, nesterov: bool = False
) -> optax.GradientTransformation:
  """What a base optimizer steps along, before any learning rate.

  Args:
    base: one of `BASES`; 'amom_sgd' is SGD with a momentum that averages
      gradients as Adam's does.
    momentum: of the two kinds of SGD that have one.
    nesterov: whether that momentum is Nesterov's.

  Returns:
    A transform whose output has the sign of a gradient.

  Raises:
    ValueError: for another base, or a momentum that it does not have.
  """
  if momentum and base not in ('sgd', 'amom_sgd'):
    raise ValueError(f'momentum is {momentum}; expected 0 for {base}.')
  if base == 'sgd':
    return optax.trace(momentum, nesterov) if momentum else optax.identity()
  if base == 'amom_sgd':
    return bases.adam_like_momentum(momentum, nesterov)
  if base == 'rmsprop':
    return optax.scale_by_rms(0.9, _EPSILON, eps_in_sqrt=False)
  if base == 'adam':
    return bases.scale_by_keras_adam()
  if base == 'adagrad':
    return bases.scale_by_keras_adagrad()
  raise ValueError(f'base is {base!r}; expected one of {list(BASES)}.')


def make(
  options: Mapping[str, Any],
  learning_rate: Any,
  multipliers: Mapping[str, Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """An optimizer of the paper.

  Args:
    options: 'base', one of `BASES` or 'normalized_sgd', steps of a set length
      for each array; and, optionally, 'layca' (False), 'momentum' (0) and
      'nesterov' (False).
    learning_rate: number or schedule; with Layca also a dict {path: schedule}.
    multipliers: {path of a kernel: factor of its learning rate}. Kernels are
      rotated by Layca, everything else stays as it is; without Layca the
      factors scale the kernels' steps.

  Returns:
    The optimizer.
  """
  base, momentum = options['base'], options.get('momentum', 0.0)
  nesterov = options.get('nesterov', False)
  if options.get('layca', False):
    return wrappers.with_layca(
      direction(base, momentum, nesterov),
      learning_rate,
      multipliers=multipliers,
    )
  steps = []
  if multipliers is not None:
    steps.append(_scale_by(multipliers))
  if base == 'normalized_sgd':
    return optax.chain(bases.normalized_sgd(learning_rate), *steps)
  rate = bases.scale_by_rates(learning_rate)
  if base == 'sgd' and momentum:  # Keras: the rate is inside the velocity.
    steps = [rate, direction(base, momentum, nesterov), *steps]
  else:
    steps = [direction(base, momentum, nesterov), rate, *steps]
  return optax.chain(*steps, optax.scale(-1.0))


def _scale_by(multipliers):
  """Scales the updates of the parameters at some paths."""

  def scale(path, update):
    return update * multipliers.get(trees.path_name(path), 1.0)

  return optax.stateless(
    lambda updates, params: jax.tree_util.tree_map_with_path(scale, updates)
  )
