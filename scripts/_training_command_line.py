"""What the training programs share: flags, processes, mesh, folder.

A program reads from top to bottom:

    _training_command_line.define_flags('layca/mnist.py')

    def make_job(config): ...

    def main():
      run = _training_command_line.start()
      job = make_job(run.config)
      result = training.fit(..., workdir=run.workdir, mesh=run.mesh)
      return run.exit_code(result)

    if __name__ == '__main__':
      _command_line.run(main)
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import _command_line
import jax
import ml_collections
from absl import flags
from etils import epath
from ml_collections import config_flags

from jaxpapers import training

CONFIGS = pathlib.Path(__file__).resolve().parent / 'configs'


def define_flags(default_config: str, default_workdir: str) -> None:
  """Defines the flags of a training program.

  Args:
    default_config: Config file, relative to `scripts/configs/`.
    default_workdir: Folder for results.
  """
  try:
    config_flags.DEFINE_config_file(
      'config',
      str(CONFIGS / default_config),
      'Config file; --config.name=value changes one of its values.',
    )
  except (AttributeError, KeyError) as error:
    # The overrides in sys.argv are applied to the default at once.
    name = str(error).strip('"\'')
    _command_line.fail(f'--config: the config has no field {name!r}')
  flags.DEFINE_string(
    'workdir',
    default_workdir,
    'Folder for checkpoints, numbers and figures, local or gs://. A run that'
    ' was interrupted goes on from there.',
  )
  flags.DEFINE_string(
    'mesh',
    'data:-1',
    'Mesh axes and their sizes over all devices, as data:-1 or'
    ' data:4,model:2; one size may be -1.',
  )
  _command_line.define_machine_flags()
  flags.DEFINE_bool('quiet', False, 'No progress bar and no lines of numbers.')


@dataclasses.dataclass(frozen=True)
class Run:
  """What the flags ask for.

  Attributes:
    config: The config, values from the command line included.
    workdir: Folder for results.
    mesh: Over all devices of all processes.
    console: Whether to show how far the run is.
  """

  config: ml_collections.ConfigDict
  workdir: epath.Path
  mesh: jax.sharding.Mesh
  console: bool

  @property
  def first(self) -> bool:
    """Whether this process is the one that writes figures and tables."""
    return jax.process_index() == 0

  def exit_code(self, result: training.FitResult) -> int:
    """0: whoever sent SIGTERM is told by the line that fit printed."""
    if not result.finished and not self.console and self.first:
      print(result.message, flush=True)
    return 0


def start(free: Sequence[str] = ()) -> Run:
  """Joins the other processes and makes mesh and folder.

  Args:
    free: Names of the config that may differ from an earlier run in the
      folder: of what is done after it, say.

  Returns:
    What the program needs.

  Raises:
    UsageError: If a flag does not fit, or `workdir` holds a run of another
      config.
  """
  values = flags.FLAGS
  config = _config()
  _command_line.use_compilation_cache(values.compilation_cache)
  _command_line.join_processes()
  try:
    mesh = training.make_mesh(values.mesh)
  except ValueError as error:
    raise _command_line.UsageError(str(error)) from error
  workdir = epath.Path(values.workdir).expanduser()
  _keep_config(config, workdir, free)
  return Run(config, workdir, mesh, console=not values.quiet)


def read_config() -> ml_collections.ConfigDict:
  """The config of the flags, for programs that train nothing themselves."""
  return _config()


def _config() -> ml_collections.ConfigDict:
  try:
    return ml_collections.FrozenConfigDict(flags.FLAGS.config)
  except OSError as error:  # The file was read when flags were parsed.
    name = flags.FLAGS['config'].config_filename
    raise _command_line.UsageError(f'--config: cannot read {name!r}') from error


def _keep_config(config, workdir: epath.Path, free: Sequence[str]) -> None:
  """Writes the config beside the results; refuses to mix two runs."""
  path = workdir / 'config.json'
  text = config.to_json_best_effort(indent=2, sort_keys=True)
  if path.exists():
    before, now = _flat(json.loads(path.read_text())), _flat(json.loads(text))
    changed = [
      name
      for name in sorted(before | now)
      if name not in free
      # As text: NaN is not equal to itself.
      if json.dumps(before.get(name)) != json.dumps(now.get(name))
    ]
    if changed:
      name = changed[0]
      raise _command_line.UsageError(
        f'--workdir={workdir} holds a run of another config: {name} was'
        f' {before.get(name)!r} there and is {now.get(name)!r} here. Choose'
        ' another --workdir, or remove that folder'
      )
  elif jax.process_index() == 0:
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      temporary = workdir / 'config.json.partial'
      temporary.write_text(text)
      temporary.replace(path)
    except OSError as error:
      raise _command_line.UsageError(
        f'--workdir={workdir} cannot be written: {error}'
      ) from error


def _flat(tree: Any, prefix: str = '') -> dict[str, Any]:
  if not isinstance(tree, dict):
    return {prefix.rstrip('.'): tree}
  flat = {}
  for name, value in tree.items():
    flat |= _flat(value, f'{prefix}{name}.')
  return flat


def say(text: str) -> None:
  """Prints a line, in the first process only."""
  if jax.process_index() == 0:
    print(text, file=sys.stdout, flush=True)
