"""What the programs share: flags that fail in one line, JAX's cache."""

import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging


class UsageError(Exception):
  """A wrong flag: the program ends with this message and exit code 2."""


def run(main: Callable[[], Any]) -> None:
  """Parses the flags, calls `main` and ends the process.

  Wrong flags, and a `UsageError` of `main`, print one line that says what is
  wrong and how to get help, and end with exit code 2. Otherwise the exit code
  is what `main` returns; None is 0.

  Args:
    main: the program.
  """

  def guarded(argv):
    del argv
    try:
      return main()
    except UsageError as error:
      fail(str(error))
    except ImportError as error:
      if 'jaxpapers[' not in str(error):
        raise
      print(error, file=sys.stderr)
      return 1
    except KeyboardInterrupt:
      print('Interrupted.', file=sys.stderr)
      return 130

  app.run(guarded, flags_parser=_parse)


def use_compilation_cache(folder: str) -> None:
  """Lets JAX keep compiled programs in a folder between runs.

  Args:
    folder: the folder; 'default' is JAX_COMPILATION_CACHE_DIR or, without it,
      `jaxpapers` in the user's cache folder; empty for no cache.
  """
  import jax

  if folder == 'default':
    folder = os.environ.get('JAX_COMPILATION_CACHE_DIR') or str(
      pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser()
      / 'jaxpapers'
    )
  if folder:
    jax.config.update('jax_compilation_cache_dir', folder)


def define_machine_flags() -> None:
  """Defines the flags that say where a program runs, not what it does."""
  flags.DEFINE_string(
    'compilation_cache',
    'default',
    'Where JAX keeps compiled programs between runs: a folder, "default"'
    " (JAX_COMPILATION_CACHE_DIR or the user's cache folder) or empty for"
    ' nowhere.',
  )
  flags.DEFINE_bool(
    'distributed', False, 'Join the processes of this cluster, found by JAX.'
  )
  flags.DEFINE_string(
    'coordinator_address',
    None,
    'host:port of process 0, where JAX cannot find it. JAX_COORDINATOR_ADDRESS'
    ' in the environment does the same.',
  )
  flags.DEFINE_integer(
    'num_processes', None, 'How many processes there are.', lower_bound=1
  )
  flags.DEFINE_integer(
    'process_id', None, 'Which of them this is, from 0.', lower_bound=0
  )


def cluster_is_given() -> bool:
  """Whether a flag says that this process is one of several."""
  values = flags.FLAGS
  given = (values.coordinator_address, values.num_processes, values.process_id)
  return values.distributed or any(value is not None for value in given)


def join_processes(shutdown_timeout_seconds: int = 300) -> bool:
  """Starts jax.distributed if flags or environment ask for it.

  Args:
    shutdown_timeout_seconds: How long a process that ends waits for the others.

  Returns:
    Whether the process is one of several now.

  Raises:
    UsageError: If the flags do not fit.
  """
  from jaxpapers import training

  values = flags.FLAGS
  try:
    return training.initialize_distributed(
      values.coordinator_address,
      values.num_processes,
      values.process_id,
      auto=values.distributed,
      shutdown_timeout_seconds=shutdown_timeout_seconds,
    )
  except ValueError as error:
    raise UsageError(str(error)) from error


def _parse(argv: Sequence[str]) -> Sequence[str]:
  try:
    rest = flags.FLAGS(argv)[1:]
  except flags.Error as error:
    fail(_short(str(error)))
  except (AttributeError, KeyError) as error:
    # --config.NAME for a NAME that the config does not have.
    if not any(a.lstrip('-').startswith('config.') for a in argv):
      raise
    name = str(error).strip('"\'')
    fail(f'--config: the config has no field {name!r}')
  except OSError as error:  # --config.NAME of a file that is not there.
    fail(f'--config: {_short(str(error))}')
  if flags.FLAGS['verbosity'].using_default_value:
    flags.FLAGS.verbosity = logging.WARNING  # absl would set INFO.
  if rest:
    fail(f'Unexpected argument {rest[0]!r}: all options begin with --.')
  return argv


def _short(message: str) -> str:
  """A message in one line; of a traceback in it only what was raised."""
  head, found, tail = message.partition('Traceback (most recent call last)')
  if found:
    raised = tail.strip().splitlines()[-1]
    message = f'{head.strip().rstrip(":")}: {raised}'
  return ' '.join(message.split())


def one_line(error: Exception) -> str:
  """The message of an error, without its line breaks."""
  return ' '.join(str(error).split())


def fail(message: str):
  """Ends the process with one line and exit code 2."""
  name = os.path.basename(sys.argv[0])
  if not message.endswith(('.', '?')):
    message += '.'
  print(f'{name}: {message} See --help.', file=sys.stderr)
  sys.exit(2)
