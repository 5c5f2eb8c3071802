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
      _fail(str(error))
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


def _parse(argv: Sequence[str]) -> Sequence[str]:
  try:
    rest = flags.FLAGS(argv)[1:]
  except flags.Error as error:
    _fail(' '.join(str(error).split()))
  if flags.FLAGS['verbosity'].using_default_value:
    flags.FLAGS.verbosity = logging.WARNING  # absl would set INFO.
  if rest:
    _fail(f'Unexpected argument {rest[0]!r}: all options begin with --.')
  return argv


def _fail(message: str):
  name = os.path.basename(sys.argv[0])
  if not message.endswith(('.', '?')):
    message += '.'
  print(f'{name}: {message} See --help.', file=sys.stderr)
  sys.exit(2)
