"""Text on disk, line by line: plain text, JSON lines, Parquet.

A file is cut into pieces that can be read independently. What a line is, and
which lines begin a document, does not depend on where the cuts are.
"""

import collections
import dataclasses
import glob
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from jaxpapers.data import files as data_files
from jaxpapers.data.files import CorruptFileError

DOCUMENT_RULES = ('blank', 'heading', 'file')
# Wikitext's first level: ' = Title = ', where deeper ones have ' = = '.
_HEADING = re.compile(r'^ = [^=].* = $')
_BOM = b'\xef\xbb\xbf'


@dataclasses.dataclass(frozen=True)
class Piece:
  """Part of a file.

  Attributes:
    path: the file.
    start: first byte; for Parquet, first row group. Lines belong to the piece
      in which they begin.
    stop: the byte (row group) after the last; None reads to the end.
    digest: of the size, the first and the last bytes of the file.
    first: whether this is the beginning of the whole corpus.
    size: about how many bytes it has, for progress.
  """

  path: Any
  start: int
  stop: int | None
  digest: str
  first: bool = False
  size: int = 0


def as_files(files: Any) -> list[Any]:
  """Paths of one or several files, given by name or pattern.

  Args:
    files: a path, a pattern such as 'corpus/*.jsonl' (sorted), or several.

  Returns:
    The paths, each once, in the order given.

  Raises:
    FileNotFoundError: a file is not there, or a pattern fits none.
    ValueError: there is no file, one comes twice, or is a folder.
  """
  if isinstance(files, (str, bytes)) or not isinstance(files, Iterable):
    files = [files]
  paths = []
  for file in files:
    path = data_files.as_path(file)
    if '://' not in str(path) and not path.exists():
      found = sorted(glob.glob(str(path), recursive=True))
      if found:
        paths += map(data_files.as_path, found)
        continue
    if not path.exists():
      raise FileNotFoundError(
        f'files: {path} was not found. Give text files (.txt or any name),'
        ' JSON lines (.jsonl), Parquet (.parquet), or a pattern in quotes.'
      )
    paths.append(path)
  for path in paths:
    if path.is_dir():
      raise ValueError(
        f"files: {path} is a folder. Name the files in it: '{path}/*.txt'."
      )
  if not paths:
    raise ValueError('files is empty; expected one or more text files.')
  for name, count in collections.Counter(map(str, paths)).items():
    if count > 1:
      raise ValueError(f'files: {name} comes {count} times.')
  return paths


def kind(path: Any) -> str:
  """'text', 'jsonl' or 'parquet', by the name of a file."""
  name = path.name.lower().removesuffix('.gz')
  if name.endswith(('.jsonl', '.json', '.ndjson')):
    return 'jsonl'
  return 'parquet' if name.endswith(('.parquet', '.pq')) else 'text'


def pieces(paths: Iterable[Any], piece_bytes: int) -> list[Piece]:
  """Cuts files into pieces of about a size: the same for the same files.

  Args:
    paths: of `as_files`.
    piece_bytes: wanted size. Compressed text is one piece, and Parquet is cut
      between row groups.

  Returns:
    The pieces, in order.
  """
  result = []
  for path in paths:
    size = data_files.size(path)
    digest = _digest(path, size)
    if kind(path) == 'parquet':
      cuts = _row_group_cuts(path, piece_bytes)
    elif path.name.lower().endswith('.gz'):
      cuts = [0]
    else:
      cuts = list(range(0, max(size, 1), piece_bytes))
    for part, (start, stop) in enumerate(zip(cuts, [*cuts[1:], None])):
      bytes_ = size * (part + 1) // len(cuts) - size * part // len(cuts)
      result.append(
        Piece(path, start, stop, digest, first=not result, size=bytes_)
      )
  return result


def lines(
  piece: Piece, *, document_rule: str = 'blank', text_field: str = 'text'
) -> Iterator[str | None]:
  """The lines of a piece, without blanks around them; None ends a document.

  Args:
    piece: part of a file.
    document_rule: of plain text. 'blank': a blank line ends a document, and
      each is one None. 'heading': a wikitext title begins one, and blank lines
      are left out. 'file': a file is one. A file always begins one, and so
      does every record of JSON lines and Parquet.
    text_field: of JSON lines and Parquet.

  Yields:
    Lines that are not empty, and None between documents.

  Raises:
    CorruptFileError: a line is no UTF-8, or no record with text.
  """
  if kind(piece.path) != 'text':
    started = piece.first
    for text in _records(piece, text_field):
      stripped = [line.strip() for line in text.split('\n')]
      stripped = [line for line in stripped if line]
      if stripped:
        if not started:
          yield None
        started = False
        yield from stripped
    return
  # A file begins a document, whatever its first line is.
  begins = piece.start == 0 and not piece.first
  if begins:
    yield None
  fresh = piece.start == 0
  for raw in _text_lines(piece):
    line = raw.strip()
    if not line:
      if document_rule == 'blank':
        yield None
      continue
    if document_rule == 'heading' and not fresh:
      if _HEADING.match(raw.rstrip('\r\n')):
        yield None
    fresh = False
    yield line


def texts(paths: Iterable[Any], *, text_field: str = 'text') -> Iterator[str]:
  """The lines of whole files as they are, newlines included.

  Args:
    paths: of `as_files`.
    text_field: of JSON lines and Parquet.

  Yields:
    Text with one newline, at its end.

  Raises:
    CorruptFileError: a line is no UTF-8, or no record with text.
  """
  for path in paths:
    piece = Piece(path, 0, None, '')
    if kind(path) == 'text':
      yield from _text_lines(piece)
    else:
      for text in _records(piece, text_field):
        yield from (line + '\n' for line in text.split('\n'))


def _raw_lines(piece):
  """Lines as bytes, of a text file, that begin in the piece."""
  if piece.path.name.lower().endswith('.gz'):
    with piece.path.open('rb') as file:
      try:
        yield from gzip.GzipFile(fileobj=file)
      except (EOFError, OSError, zlib.error) as error:
        raise CorruptFileError(
          f'{piece.path}: the gzip data are damaged or cut short ({error}).'
        ) from error
    return
  with piece.path.open('rb') as file:
    position = piece.start
    if position:
      # A line that begins exactly here follows a newline one byte before.
      file.seek(position - 1)
      position += len(file.readline()) - 1
    while piece.stop is None or position < piece.stop:
      line = file.readline()
      if not line:
        return
      position += len(line)
      yield line


def _text_lines(piece):
  for number, raw in enumerate(_raw_lines(piece)):
    if number == 0 and piece.start == 0:
      raw = raw.removeprefix(_BOM)
    try:
      yield raw.decode('utf-8')
    except UnicodeDecodeError as error:
      raise CorruptFileError(
        f'{_where(piece, number)}: no UTF-8 ({error.reason} at byte'
        f' {error.start} of the line). Convert the file, for example with'
        ' iconv.'
      ) from error


def _records(piece, field):
  """Texts of JSON lines or of a Parquet file."""
  if kind(piece.path) == 'parquet':
    yield from _parquet_records(piece, field)
    return
  for number, raw in enumerate(_text_lines(piece)):
    if not raw.strip():
      continue
    try:
      record = json.loads(raw)
    except ValueError as error:
      raise CorruptFileError(
        f'{_where(piece, number)}: no JSON ({error}). Each line has to be one'
        f' object, such as {{"{field}": "..."}}.'
      ) from error
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
      found = sorted(record) if isinstance(record, dict) else record
      raise CorruptFileError(
        f'{_where(piece, number)}: expected an object with the text'
        f' {field!r}, found {str(found)[:80]}. Name the field with text_field.'
      )
    text = record[field]
    if '\\ud' in raw or '\\uD' in raw:  # Half of a pair has no UTF-8 form.
      try:
        text.encode('utf-8')
      except UnicodeEncodeError as error:
        raise CorruptFileError(
          f'{_where(piece, number)}: {field!r} has the lone surrogate'
          f' {ascii(error.object[error.start])}, which is no character.'
        ) from error
    yield text


def _parquet_records(piece, field):
  with piece.path.open('rb') as handle:
    table = _open_parquet(piece.path, handle)
    if field not in table.schema_arrow.names:
      raise CorruptFileError(
        f'{piece.path}: no column {field!r}; it has'
        f' {", ".join(table.schema_arrow.names)}. Name it with text_field.'
      )
    stop = table.num_row_groups if piece.stop is None else piece.stop
    groups = range(piece.start, stop)
    row = sum(table.metadata.row_group(i).num_rows for i in range(piece.start))
    for batch in table.iter_batches(row_groups=groups, columns=[field]):
      for text in batch.column(0).to_pylist():
        row += 1
        if not isinstance(text, str):
          raise CorruptFileError(
            f'{piece.path}, row {row}: {field!r} is {type(text).__name__};'
            ' expected text.'
          )
        yield text


def _row_group_cuts(path, piece_bytes):
  with path.open('rb') as handle:
    table = _open_parquet(path, handle)
    cuts, total = [0], 0
    for i in range(table.num_row_groups):
      if total >= piece_bytes:
        cuts.append(i)
        total = 0
      total += table.metadata.row_group(i).total_byte_size
  return cuts


def _open_parquet(path, handle):
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError as error:
    raise ImportError(
      "Parquet files need pyarrow: pip install 'jaxpapers[roberta]'"
    ) from error
  try:
    return parquet.ParquetFile(handle)
  except pyarrow.ArrowInvalid as error:
    raise CorruptFileError(f'{path}: no Parquet file ({error}).') from error


def _where(piece, number):
  """File and line, counted from 1, of a line of a piece."""
  if piece.start:
    whole = dataclasses.replace(piece, start=0, stop=piece.start)
    number += sum(1 for _ in _raw_lines(whole))
  return f'{piece.path}, line {number + 1}'


def _digest(path, size):
  ends = 2**16
  with path.open('rb') as file:
    content = hashlib.sha256(str(size).encode())
    content.update(file.read(ends))
    file.seek(max(0, size - ends))
    content.update(file.read(ends))
  return content.hexdigest()
