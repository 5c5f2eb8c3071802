"""What the readers share: paths, compressed files, and their errors."""

import gzip
import os
import pathlib
import zlib
from typing import Any


class CorruptFileError(ValueError):
  """A file is damaged, cut short, or not in the format that its name says.

  The message names the file, what was expected in it and what was found.
  """


def as_path(path: Any) -> Any:
  """A path object for a local path or a URL such as gs://bucket/folder.

  Args:
    path: string, `os.PathLike`, or such an object already.

  Returns:
    A `pathlib.Path`, or an `etils.epath.Path` for a URL. Both have the methods
    that the readers use.
  """
  if isinstance(path, pathlib.PurePath):
    return path
  if isinstance(path, str) and '://' in path:
    from etils import epath  # imports slowly, and is rarely needed

    return epath.Path(path)
  return pathlib.Path(path).expanduser()


def read_bytes(path: Any) -> bytes:
  """Content of a file, decompressed if it is gzip (whatever its name).

  Raises:
    CorruptFileError: the compressed data are damaged or end too early.
  """
  content = as_path(path).read_bytes()
  if content[:2] != b'\x1f\x8b':
    return content
  try:
    return gzip.decompress(content)
  except (EOFError, OSError, zlib.error) as error:
    raise CorruptFileError(
      f'{path}: the gzip data are damaged or cut short ({error}); the file has'
      f' {len(content):,} bytes. Get it again and compare its size with the'
      ' published one.'
    ) from error


def write_file(path: Any, content: bytes | str) -> None:
  """Writes a file that is there only when it is complete.

  It is written under a temporary name of this process and renamed. Folders on
  the way are made.

  Args:
    path: As for `as_path`.
    content: Text is written as UTF-8.
  """
  path = as_path(path)
  if isinstance(content, str):
    content = content.encode('utf-8')
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.parent / f'.{path.name}.{os.getpid()}.partial'
  try:
    temporary.write_bytes(content)
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def size(path: Any) -> int:
  """Bytes of a file."""
  stat = path.stat()
  # pathlib's and etils.epath's names.
  return stat.st_size if hasattr(stat, 'st_size') else stat.length


def find(folder: Any, names: Any) -> Any | None:
  """The first of several names that exists in a folder, or None."""
  folder = as_path(folder)
  for name in names:
    if (folder / name).exists():
      return folder / name
  return None


def missing(what: str, folder: Any, expected: str) -> FileNotFoundError:
  """The error for a data set that is not there: which files to put where."""
  state = 'does not exist' if not as_path(folder).exists() else 'lacks them'
  return FileNotFoundError(
    f'{what} was not found: {folder} {state}. Nothing is downloaded; put the'
    f' official files there:\n{expected}'
  )
