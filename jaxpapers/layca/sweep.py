"""Many trainings in one program: members that differ in numbers only.

A grid of learning rates and layer-wise multipliers is a population: the whole
training step is vmapped over the members' hyperparameters, which live in the
optimizer's state. One compilation serves the whole grid.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpapers.layca import experiments_optimizers as optimizers
from jaxpapers.layca import multipliers as multipliers_lib


def grid(
  learning_rates: Sequence[float],
  alphas: Sequence[float] = (0.0,),
  seeds: Sequence[int] = (0,),
) -> list[dict[str, Any]]:
  """The members of a sweep.

  Rates and alphas belong together pairwise, a single one to all of the other;
  every pair is trained from every seed.

  Args:
    learning_rates: initial learning rates.
    alphas: layer-wise multipliers, see `depth_multipliers`.
    seeds: of the initial parameters.

  Returns:
    Dictionaries with 'learning_rate', 'alpha' and 'seed'.

  Raises:
    ValueError: if the lengths do not fit or there is no member.

  Example:
    >>> len(grid((0.1, 0.2), (0.0,), (0, 1, 2)))
    6
  """
  rates, alphas, seeds = list(learning_rates), list(alphas), list(seeds)
  count = max(len(rates), len(alphas))
  if not rates or not alphas or not seeds:
    raise ValueError(
      'learning_rates, alphas and seeds are empty or one of them is; expected'
      ' at least one of each.'
    )
  if len(rates) not in (1, count) or len(alphas) not in (1, count):
    raise ValueError(
      f'there are {len(rates)} learning_rates and {len(alphas)} alphas;'
      ' expected as many of both, or one of either.'
    )
  rates = rates * (count // len(rates))
  alphas = alphas * (count // len(alphas))
  return [
    {'learning_rate': float(rate), 'alpha': float(alpha), 'seed': int(seed)}
    for rate, alpha in zip(rates, alphas)
    for seed in seeds
  ]


def hyperparameters(
  members: Sequence[Mapping[str, Any]],
  layer_order: Sequence[str],
  drops: Sequence[Any],
  factor: float,
) -> dict[str, np.ndarray]:
  """The numbers in which the members differ.

  Args:
    members: from `grid`.
    layer_order: paths of the kernels, first layer first.
    drops: epochs at which the learning rate drops, the same for all members;
      or one such sequence for each.
    factor: by which it drops.

  Returns:
    float32 arrays: 'rate' [members], 'factor' [members], 'drops' [members,
    most drops], infinite where a member has fewer, and 'multipliers' [members,
    layers].

  Raises:
    ValueError: if there are sequences in `drops`, but not one for each member.
  """
  drops = list(drops)
  if not any(isinstance(d, Sequence) for d in drops):
    drops = [drops] * len(members)
  if len(drops) != len(members):
    raise ValueError(
      f'drops has {len(drops)} sequences of epochs for {len(members)} members;'
      ' expected one for each, or one of numbers for all.'
    )
  table = np.full((len(members), max([1, *map(len, drops)])), np.inf)
  for row, epochs in zip(table, drops):
    row[: len(epochs)] = epochs
  factors = [
    multipliers_lib.depth_multipliers(layer_order, member['alpha'])
    for member in members
  ]
  return {
    'rate': np.array([m['learning_rate'] for m in members], np.float32),
    'factor': np.full(len(members), factor, np.float32),
    'drops': table.astype(np.float32),
    'multipliers': np.array(
      [[f[path] for path in layer_order] for f in factors], np.float32
    ),
  }


def make_optimizer(
  options: Mapping[str, Any],
  values: Mapping[str, np.ndarray],
  layer_order: Sequence[str],
  steps_per_epoch: int,
  warmup_epochs: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
  """The optimizer of a sweep; its state holds the numbers of one member.

  Args:
    options: 'base', 'layca', 'momentum' and 'nesterov', see
      `optimizers.make`.
    values: from `hyperparameters`; those of the first member are the initial
      ones.
    layer_order: paths of the kernels, first layer first.
    steps_per_epoch: updates in an epoch.
    warmup_epochs: of the linear warmup.

  Returns:
    The optimizer, an `optax.inject_hyperparams`.
  """

  def factory(rate, factor, drops, multipliers):
    schedule = member_schedule(
      rate, factor, drops, steps_per_epoch, warmup_epochs
    )
    per_layer = {path: multipliers[i] for i, path in enumerate(layer_order)}
    return optimizers.make(options, schedule, per_layer)

  # float32 whatever the parameters are: bfloat16 would round the rate.
  injected = optax.inject_hyperparams(factory, hyperparam_dtype=jnp.float32)
  # Arrays: a numpy scalar would be a constant, no hyperparameter.
  return injected(
    **{name: jnp.asarray(value[0]) for name, value in values.items()}
  )


def member_schedule(
  rate: Any,
  factor: Any,
  drops: Any,
  steps_per_epoch: int,
  warmup_epochs: float = 0.0,
) -> optax.Schedule:
  """`keras_step_schedule` and warmup for numbers that may be traced.

  Args:
    rate: initial learning rate.
    factor: by which it drops.
    drops: epochs at which it does, [n]; infinity means never.
    steps_per_epoch: updates in an epoch.
    warmup_epochs: duration of a linear warmup from a tenth; 0 for none.

  Returns:
    Function of the number of updates made.
  """
  warmup_steps = warmup_epochs * steps_per_epoch

  def schedule(count):
    # Whole epochs are compared, not steps: exact in float32.
    passed = (count // steps_per_epoch >= jnp.asarray(drops)).sum()
    value = rate * jnp.asarray(factor) ** passed
    if warmup_steps:
      fraction = jnp.minimum(count / warmup_steps, 1.0)
      value = value * (fraction + (1 - fraction) / 10)
    return value

  return schedule


def assign_members(state: Any, values: Mapping[str, np.ndarray]) -> Any:
  """Gives every member of a population its own numbers.

  Args:
    state: `TrainState` of a population whose optimizer is from
      `make_optimizer`.
    values: from `hyperparameters`.

  Returns:
    The state.

  Raises:
    ValueError: if state and values are of different populations, or the
      optimizer is another one.
  """
  current = state.opt_state.hyperparams

  def put(name):
    new = jnp.asarray(values[name], current[name].dtype)
    if new.shape != current[name].shape:
      raise ValueError(
        f'{name} has shape {new.shape} and in the state'
        f' {current[name].shape}: they are of different populations.'
      )
    sharding = current[name].sharding
    if isinstance(sharding, jax.sharding.NamedSharding):
      return jax.device_put(new, sharding)
    # Not put anywhere in particular, like the rest of the state: an array that
    # is bound to its device would make the second step compile anew.
    return new

  if set(current) != set(values):
    raise ValueError(
      f'the state has the hyperparameters {sorted(current)}; expected'
      f' {sorted(values)}, as make_optimizer gives them.'
    )
  hyperparams = {name: put(name) for name in current}
  return state.replace(
    opt_state=state.opt_state._replace(hyperparams=hyperparams)
  )
