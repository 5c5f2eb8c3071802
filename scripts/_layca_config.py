"""Configs of the Layca programs: members, settings, checks."""

import math
from typing import Any

import _command_line
import _training_command_line
import ml_collections
from absl import flags
from etils import epath
from ml_collections import config_flags

from jaxpapers import training
from jaxpapers.layca import (
  experiments,
  experiments_data,
  experiments_optimizers,
  sweep,
)
from jaxpapers.training import sharding

_BATCH_AXES = sharding.BATCH_AXES


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
  for name in ('members_at_once', 'rotation_every'):
    if config[name] < 0:
      raise ValueError(f'{name} is {config[name]}; expected 0 or more.')
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
  if config.augment and len(experiments_data.NOMINAL[config.dataset][1]) < 3:
    raise ValueError(
      f'augment is True; expected False for {config.dataset}: shifts and flips'
      ' are for images with colours.'
    )
  members = all_members(config)
  slowest = min(member['learning_rate'] for member in members)
  if not slowest >= 0:
    raise ValueError(f'learning_rates has {slowest}; expected 0 or more.')
  sweep.hyperparameters(
    members, ['any'], member_drops(config, members), config.factor
  )
  experiments.make_model(config.model.to_dict())
  options = config.optimizer
  if options.base != 'normalized_sgd':
    experiments_optimizers.direction(
      options.base, options.momentum, options.nesterov
    )


def check_examples(config: Any, examples: int) -> None:
  """Raises ValueError if there is no batch in an epoch."""
  if not experiments_data.steps_per_epoch(
    examples, config.batch_size, config.last_batch
  ):
    raise ValueError(
      f'batch_size is {config.batch_size}, more than the {examples} training'
      ' examples; expected fewer, or --config.last_batch=True.'
    )


def start(config: Any) -> _training_command_line.Run:
  """Makes mesh and folder, for a config that fits the mesh.

  Args:
    config: From `read_config`.

  Returns:
    What the program needs.

  Raises:
    UsageError: If a flag does not fit, or the devices cannot share a batch or
      the members; the folder is not made then.
  """
  path = epath.Path(flags.FLAGS.workdir).expanduser() / 'config.json'
  before = path.exists()
  run = _training_command_line.start()
  try:
    _check_mesh(config, run.mesh)
  except ValueError as error:
    # There are no devices to ask before the processes have joined.
    if run.first and not before:
      path.unlink(missing_ok=True)
      if not list(path.parent.iterdir()):
        path.parent.rmdir()
    raise _command_line.UsageError(
      f'--mesh={flags.FLAGS.mesh}: {error}'
    ) from error
  return run


def _check_mesh(config, mesh) -> None:
  shape = dict(mesh.shape)
  batch = {name: shape[name] for name in _BATCH_AXES if name in shape}
  parts = math.prod(batch.values())
  if config.batch_size % parts:
    raise ValueError(
      f'batch_size is {config.batch_size}, which the {parts} devices of'
      f' {batch} cannot share evenly. Choose a multiple of {parts}, or fewer'
      ' devices for it: --mesh=data:1 on a single one, and with a population'
      ' --mesh=data:1,population:-1.'
    )
  training.batch_share(mesh)
  over = shape.get('population', 1)
  for part in populations(config):
    count = len(all_members(part))
    size = part.members_at_once or count
    for members in {min(size, count), count % size} - {0, 1}:
      if members % over:
        raise ValueError(
          f'{members} members train in one program, which {over} devices of'
          ' the axis population cannot share evenly. Choose another'
          ' --config.members_at_once, or --mesh=data:1.'
        )


def settings_of(config: Any) -> list[str]:
  """Names of the settings of a comparison.

  Raises:
    UsageError: If it is no comparison.
  """
  names = list(config.get('settings', ()))
  if not names:
    raise _command_line.UsageError(
      '--config has no settings to compare; expected a comparison, such as'
      ' layca/weight_decay.py. Use layca_sweep for a single population'
    )
  return names


def refuse_settings(config: Any) -> None:
  """Raises UsageError for a comparison."""
  if 'settings' in config:
    raise _command_line.UsageError(
      f'--config is a comparison, of {", ".join(config.settings)}; expected'
      ' one population. Use layca_compare'
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


def populations(config: Any) -> list[Any]:
  """The configs of all settings of a comparison, or the config itself."""
  names = config.get('settings', ())
  return [with_setting(config, name) for name in names] or [config]


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
