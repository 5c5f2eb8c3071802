"""Data sets that are too large, or not ours, to be in the repository.

They are read below the folder that the environment variable JAXPAPERS_DATA
names, one subfolder per paper. A test that asks for a file which is not there
is skipped, and the reason says what to put where:

  folder = data.require('kcore', 'haxby_slice')
"""

import os
import pathlib
import unittest

VARIABLE = 'JAXPAPERS_DATA'


def require(paper: str, *parts: str, source: str = '') -> pathlib.Path:
  """Path of a data file or folder; skips the running test if it is not there.

  Args:
    paper: room that the data belong to, the first subfolder.
    *parts: path below it.
    source: where a reader can get the data, added to the reason of the skip.

  Returns:
    The existing path `$JAXPAPERS_DATA/<paper>/<parts>`.

  Raises:
    unittest.SkipTest: if the variable is not set or nothing is at that path.
  """
  relative = pathlib.Path(paper, *parts)
  hint = f' Source: {source}' if source else ''
  root = os.environ.get(VARIABLE)
  if not root:
    raise unittest.SkipTest(
      f'{VARIABLE} is not set. Set it to a folder that holds {relative}.{hint}'
    )
  found = pathlib.Path(root).expanduser().resolve() / relative
  if not found.exists():
    raise unittest.SkipTest(
      f'{VARIABLE}={root} holds no {relative}. Put it at {found}.{hint}'
    )
  return found
