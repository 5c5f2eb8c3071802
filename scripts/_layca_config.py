"""Configs of the Layca programs: members, settings, checks."""

from typing import Any

import _command_line
import _training_command_line
import ml_collections
from absl import flags
from ml_collections import config_flags

from jaxpapers.layca import (
  experiments,
  experiments_data,
  experiments_optimizers,
  sweep,
)


def read_config() -> ml_collections.ConfigDict:
  """The config of the flags, where a value given for all holds in all settings.

  Settings have an optimizer, epochs and more of their own. What the command
  line changes at the top (--config.epochs=2) is changed in each of them that
  has it, unless --config.settings.NAME.epochs says otherwise. The flags are
  changed, so that config.json shows what was done.

  Returns:
    A FrozenConfigDict.
  """
  config = _training_command_line.read_config()
  if 'settings' not in config:
    return config
  given = config_flags.get_override_values(flags.FLAGS['config'])
  values = flags.FLAGS.config
  for path in given:
    *parents, field = path.split('.')
    if parents[:1] == ['settings']:
      continue
    for name in values.settings:
      own = values.settings[name]
      for parent in parents:
        own = own.get(parent) if own is not None else None
      if own is not None and field in own:
        if f'settings.{name}.{path}' not in given:
          own[field] = _field(values, path)
  return _training_command_line.read_config()


def _field(config, path: str) -> Any:
  """The value at a path with dots."""
  for name in path.split('.'):
    config = config[name]
  return config


def check(config) -> None:
  """Raises ValueError for fields that make no sense, without using JAX."""
  for name in ('epochs', 'batch_size', 'evaluate_every'):
    if config[name] < 1:
      raise ValueError(f'{name} is {config[name]}; expected 1 or more.')
  if config.dataset not in experiments_data.NOMINAL:
    raise ValueError(
      f'dataset is {config.dataset!r}; expected one of'
      f' {list(experiments_data.NOMINAL)}.'
    )
  if config.factor <= 0 or config.l2 < 0 or config.warmup_epochs < 0:
    raise ValueError(
      f'factor is {config.factor}, l2 {config.l2} and warmup_epochs'
      f' {config.warmup_epochs}; expected a positive factor and no negative'
      ' numbers.'
    )
  members = all_members(config)
  sweep.hyperparameters(
    members, ['any'], member_drops(config, members), config.factor
  )
  experiments.make_model(config.model.to_dict())
  options = config.optimizer
  if options.base != 'normalized_sgd':
    experiments_optimizers.direction(
      options.base, options.momentum, options.nesterov
    )


def all_members(config: Any) -> list[dict[str, Any]]:
  """The members of a config."""
  return sweep.grid(
    config.learning_rates, config.alphas, config.seeds or (config.seed,)
  )


def member_drops(config: Any, members: list[dict[str, Any]]) -> list[Any]:
  """The epochs at which each of some members of a config drops its rate."""
  drops = list(config.drops)
  if not any(isinstance(d, (tuple, list)) for d in drops):
    return drops
  all_of_them = all_members(config)
  if len(drops) != len(all_of_them):
    raise ValueError(
      f'drops has {len(drops)} sequences of epochs for {len(all_of_them)}'
      ' members; expected one for each, or one of numbers for all.'
    )
  return [drops[all_of_them.index(member)] for member in members]


def with_setting(config: Any, name: str) -> Any:
  """A config with what one of its `settings` changes.

  Args:
    config: A config that has `settings`.
    name: Which of them.

  Returns:
    A FrozenConfigDict.

  Raises:
    UsageError: If the setting changes a field that does not exist.
  """
  changed = ml_collections.ConfigDict(config.to_dict())
  with changed.unlocked():
    del changed.settings
  changed.lock()
  try:
    changed.update(config.settings[name].to_dict())
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    text = ' '.join(str(error).split())
    raise _command_line.UsageError(
      f'--config.settings.{name} does not fit: {text}'
    ) from error
  return ml_collections.FrozenConfigDict(changed)
