"""Text to a tokenised corpus, once, by several processes.

Files are cut into pieces that depend on the files alone, and each piece becomes
a shard: so what is written does not depend on the number of processes, and what
was written before an interruption stays.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxpapers.data import files as data_files
from jaxpapers.roberta import bpe as bpe_lib
from jaxpapers.roberta import corpus, text_files

# Lines that are encoded at once.
_LINES = 4096


def tokenize_corpus(
  files: Any,
  bpe: bpe_lib.ByteLevelBPE,
  out_dir: Any,
  *,
  num_workers: int | None = None,
  document_rule: str = 'blank',
  text_field: str = 'text',
  shard_bytes: int = 1 << 25,
  overwrite: bool = False,
  progress: Callable[[int, int, int], Any] | None = None,
) -> corpus.TokenCorpus:
  """Tokenises text files into memory-mapped shards.

  Each line is stripped, encoded and ended with </s>; a line of </s> alone
  separates documents, as in fairseq's preprocessing. The content of the folder
  is the same, byte for byte, with any number of workers and of interruptions:
  the same call goes on where one was killed.

  Args:
    files: text, JSON lines (.jsonl) or Parquet (.parquet), also compressed by
      gzip (.gz): a path, a pattern, or several.
    bpe: the tokenizer; it is saved with the corpus.
    out_dir: folder, made if it is not there.
    num_workers: processes; by default one for each processor, 0 for none. A
      script with workers needs `if __name__ == '__main__':`.
    document_rule: what begins a document in plain text: 'blank' (after every
      blank line), 'heading' (at wikitext's ' = Title = '; blank lines are left
      out) or 'file'. Records of JSON lines and Parquet are documents.
    text_field: where records have their text.
    shard_bytes: text of a shard, before tokenising.
    overwrite: whether to replace another corpus in the folder.
    progress: `progress(bytes_done, bytes_all, tokens)`, called after a shard.

  Returns:
    The corpus.

  Raises:
    FileNotFoundError: a file is not there; nothing was written.
    CorruptFileError: a line is no UTF-8 or no record; names file and line. The
      corpus is not complete and cannot be opened.
    ValueError: the files hold no text, the folder holds another corpus, or an
      argument makes no sense.
    RuntimeError: a worker was killed.

  Example:
    >>> tokenize_corpus('wiki/*.txt', bpe, 'tokens')    # doctest: +SKIP
    TokenCorpus('tokens': 119,781,402 tokens, 1,801,350 lines, ...)
  """
  if document_rule not in text_files.DOCUMENT_RULES:
    raise ValueError(
      f'document_rule is {document_rule!r}; expected one of'
      f' {text_files.DOCUMENT_RULES}.'
    )
  for name, value, least in (
    ('shard_bytes', shard_bytes, 1),
    ('num_workers', num_workers or 0, 0),
  ):
    if value < least:
      raise ValueError(f'{name} is {value}; expected {least} or more.')
  pieces = text_files.pieces(text_files.as_files(files), shard_bytes)
  folder = data_files.as_path(out_dir)
  settings = _settings(bpe, document_rule, text_field)
  tasks = [
    _Task(folder, f'shard-{number:05d}', piece, settings, document_rule)
    for number, piece in enumerate(pieces)
  ]
  fingerprint = _hash([task.key() for task in tasks])
  if (folder / corpus.INDEX).exists():
    there = corpus.TokenCorpus(folder)
    if there.fingerprint == fingerprint:
      return there
    if not overwrite:
      raise ValueError(
        f'out_dir: {folder} holds another corpus, of'
        f' {there.num_tokens:,} tokens: other files, another tokenizer or other'
        ' options. Choose another folder, or overwrite=True.'
      )
    (folder / corpus.INDEX).unlink()  # From here on it is incomplete.
  made = not folder.exists()
  folder.mkdir(parents=True, exist_ok=True)
  shards = _run(tasks, bpe, text_field, num_workers, progress)
  if not sum(shard['text_lines'] for shard in shards):
    _remove(folder, set())
    if made:
      folder.rmdir()
    raise ValueError(
      f'files hold no text: the {len(pieces)} piece(s) of'
      f' {str(pieces[0].path)!r} and so on are empty or blank.'
    )
  _remove(folder, {task.name for task in tasks})
  bpe.save(folder / 'tokenizer')
  index = _index(shards, settings, fingerprint, _num_documents(folder, shards))
  data_files.write_file(
    folder / corpus.INDEX, json.dumps(index, indent=1) + '\n'
  )
  return corpus.TokenCorpus(folder)


@dataclasses.dataclass(frozen=True)
class _Task:
  """One piece of text to be made into one shard."""

  folder: Any
  name: str
  piece: text_files.Piece
  settings: dict[str, Any]
  document_rule: str

  def key(self) -> dict[str, Any]:
    """What the shard depends on: not where the file is, but what is in it."""
    piece = self.piece
    return {
      'file': piece.path.name,
      'digest': piece.digest,
      'start': piece.start,
      'stop': piece.stop,
      'first': piece.first,
      'settings': _hash(self.settings),
    }


def _settings(bpe, document_rule, text_field):
  largest = bpe.vocab_size - 1
  return {
    'format': corpus.FORMAT,
    'dtype': '<u2' if largest < 2**16 else '<u4',
    'document_rule': document_rule,
    'text_field': text_field,
    'tokenizer': {
      'sha256': bpe.fingerprint(),
      'vocab_size': bpe.vocab_size,
      'bos_id': bpe.bos_id,
      'pad_id': bpe.pad_id,
      'eos_id': bpe.eos_id,
      'unk_id': bpe.unk_id,
      'mask_id': bpe.mask_id,
    },
  }


def _run(tasks, bpe, text_field, num_workers, progress):
  """Makes the shards that are not there; what is known of all, in order."""
  shards = {task.name: _finished(task) for task in tasks}
  total = sum(task.piece.size for task in tasks)
  done = tokens = 0

  def report(task):
    nonlocal done, tokens
    done += task.piece.size
    tokens += shards[task.name]['tokens']
    if progress is not None:
      progress(done, total, tokens)

  missing = []
  for task in tasks:
    if shards[task.name] is None:
      missing.append(task)
    else:
      report(task)
  if num_workers is None:
    num_workers = len(os.sched_getaffinity(0)) if hasattr(
      os, 'sched_getaffinity'
    ) else os.cpu_count() or 1  # fmt: skip
  num_workers = min(num_workers, len(missing))
  if num_workers < 2:
    for task in missing:
      shards[task.name] = _tokenize(task, bpe, text_field)
      report(task)
    return list(shards.values())
  # Spawned: a fork would copy JAX's threads' locks but not the threads.
  pool = concurrent.futures.ProcessPoolExecutor(
    num_workers,
    mp_context=multiprocessing.get_context('spawn'),
    initializer=_start_worker,
    initargs=(bpe, text_field),
  )
  try:
    futures = {pool.submit(_work, task): task for task in missing}
    for future in concurrent.futures.as_completed(futures):
      task = futures[future]
      shards[task.name] = future.result()
      report(task)
  except concurrent.futures.process.BrokenProcessPool as error:
    raise RuntimeError(
      'a worker process was killed, or could not start. Is the memory enough?'
      ' (Does the script have "if __name__ == \'__main__\':"?) The same call'
      ' goes on with what is missing; fewer num_workers or shard_bytes take'
      ' less memory.'
    ) from error
  finally:
    pool.shutdown(wait=True, cancel_futures=True)
  return list(shards.values())


_WORKER = {}


def _start_worker(bpe, text_field):
  # One thread each: the processes share the processors.
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'
  _WORKER.update(bpe=bpe, text_field=text_field)
  parent = multiprocessing.parent_process()

  def end_with_parent():
    parent.join()
    os._exit(1)  # It was killed, and nobody will ask for more.

  threading.Thread(target=end_with_parent, daemon=True).start()


def _work(task):
  return _tokenize(task, _WORKER['bpe'], _WORKER['text_field'])


def _tokenize(task, bpe, text_field):
  """Writes one shard: its numbers first, then that it is complete."""
  dtype = np.dtype(task.settings['dtype'])
  lines = text_files.lines(
    task.piece, document_rule=task.document_rule, text_field=text_field
  )
  tokens, sizes, text_lines, batch = [], [], 0, []

  def flush():
    # None, between documents, has no tokens but its </s>.
    ids, counts = bpe.encode_flat([line or '' for line in batch])
    ends = np.cumsum(counts)
    ids = np.insert(ids, ends, bpe.eos_id)
    tokens.append(ids.astype(dtype))
    sizes.append((counts + 1).astype('<u4'))
    batch.clear()

  for line in lines:
    text_lines += line is not None
    batch.append(line)
    if len(batch) == _LINES:
      flush()
  flush()
  arrays = {'tokens': tokens, 'lines': sizes}
  for suffix, parts in arrays.items():
    array = arrays[suffix] = np.concatenate(parts)
    data_files.write_file(
      task.folder / f'{task.name}.{suffix}', array.tobytes()
    )
  shard = {
    'name': task.name,
    'tokens': len(arrays['tokens']),
    'lines': len(arrays['lines']),
    'text_lines': text_lines,
    **task.key(),
  }
  data_files.write_file(
    task.folder / f'{task.name}.json', json.dumps(shard).encode()
  )
  return shard


def _finished(task):
  """What is known of a shard, if it is there and was made from this piece."""
  path = task.folder / f'{task.name}.json'
  if not path.exists():
    return None
  try:
    shard = json.loads(path.read_text())
  except ValueError:
    return None
  same = all(shard.get(name) == value for name, value in task.key().items())
  width = np.dtype(task.settings['dtype']).itemsize
  for suffix, size in (('tokens', width), ('lines', 4)):
    file = task.folder / f'{task.name}.{suffix}'
    if not same or not file.exists():
      return None
    if data_files.size(file) != size * shard[suffix]:
      return None
  return shard


def _num_documents(folder, shards):
  """Runs of lines between separators, over all shards."""
  count, before = 0, True
  for shard in shards:
    path = folder / f'{shard["name"]}.lines'
    separator = corpus.open_array(path, np.dtype('<u4')) == 1
    if len(separator):
      previous = np.append(before, separator[:-1])
      count += int((previous & ~separator).sum())
      before = bool(separator[-1])
  return count


def _index(shards, settings, fingerprint, num_documents):
  return {
    **settings,
    'fingerprint': fingerprint,
    'num_tokens': sum(shard['tokens'] for shard in shards),
    'num_lines': sum(shard['lines'] for shard in shards),
    'num_documents': num_documents,
    'shards': [
      {name: shard[name] for name in ('name', 'tokens', 'lines', 'file')}
      for shard in shards
    ],
  }


def _remove(folder, keep):
  """Removes shards of an earlier corpus, unfinished files, and blocks."""
  for path in [*folder.glob('shard-*'), *folder.glob('.shard-*')]:
    if path.name.partition('.')[0] not in keep:
      path.unlink()
  blocks = folder / 'blocks'
  if blocks.exists():
    for path in blocks.iterdir():
      path.unlink()
    blocks.rmdir()


def _hash(content):
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
