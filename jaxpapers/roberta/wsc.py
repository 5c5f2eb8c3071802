"""Winograd schemas: a masked language model says what a pronoun stands for.

The pronoun is replaced by a candidate, the candidate's tokens are masked, and
the mean of the log-probabilities of these tokens is its score. The query is
what the pronoun may stand for; it does if it beats all other candidates.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.data import files
from jaxpapers.roberta import losses
from jaxpapers.roberta.bpe import ByteLevelBPE
from jaxpapers.roberta.choice import read_json_lines

# A candidate is a noun phrase: a pronoun tells nothing.
_PRONOUNS = frozenset(
  'i me my mine you your yours he him his she her hers it its we us our ours'
  ' they them their theirs this that these those who whom whose which'.split()
)


@dataclasses.dataclass(frozen=True)
class WscExample:
  """A sentence with a place for a noun phrase.

  Attributes:
    index: Name of the example.
    prefix: What is before the place, without a blank at its end.
    leading: The blank between, or ''.
    suffix: What follows, with the blank before it.
    query: What the pronoun may stand for.
    candidates: What else it may stand for.
    label: Whether it stands for the query; None in a test set.
  """

  index: str
  prefix: str
  leading: str
  suffix: str
  query: str
  candidates: tuple[str, ...]
  label: bool | None

  def fill(self, phrase: str) -> str:
    """The sentence with a phrase in place of the pronoun."""
    return f'{self.prefix}{self.leading}{phrase}{self.suffix}'


def load_wsc(
  path: str | os.PathLike,
  *,
  noun_chunks: Callable[[str], Sequence[str]] | None = None,
) -> list[WscExample]:
  """Reads a file of SuperGLUE's WSC, one JSON each line.

  The candidates are the phrases that the file itself asks about in other rows
  of the same sentence, those under `candidates` in a row, and what
  `noun_chunks` finds. Pronouns are none, nor is what contains the query or is
  contained in it, as in fairseq, which takes noun phrases from spaCy:

    nlp = spacy.load('en_core_web_lg')
    noun_chunks = lambda text: [c.text for c in nlp(text).noun_chunks]

  Args:
    path: Such as `train.jsonl`.
    noun_chunks: Maps a sentence to phrases in it.

  Returns:
    The examples. Without any candidate there is nothing to compare with, and
    the query wins.

  Raises:
    FileNotFoundError: If the file is not there.
    CorruptFileError: If a line does not fit; says which.
  """
  rows = []
  for where, row in read_json_lines(path, 'WSC'):
    try:
      target = row['target']
      text, place = row['text'], int(target['span2_index'])
      pronoun = target['span2_text'].rstrip('.,"')
      query = target['span1_text'].rstrip('.,').replace('\n', ' ')
    except (KeyError, TypeError, ValueError, AttributeError) as error:
      raise files.CorruptFileError(
        f'{where}: {error}; expected text and target with span1_text,'
        ' span2_text and span2_index.'
      ) from error
    prefix, leading, suffix = _cut(text, place, pronoun, where)
    rows.append((row, text, prefix, leading, suffix, query))
  asked = {}
  for _, text, prefix, *_, query in rows:
    asked.setdefault((text, prefix), []).append(query)
  examples = []
  for number, (row, text, prefix, leading, suffix, query) in enumerate(rows):
    phrases = [*asked[text, prefix], *row.get('candidates', ())]
    if noun_chunks is not None:
      phrases += noun_chunks(text)
    examples.append(
      WscExample(
        str(row.get('idx', number)),
        prefix,
        leading,
        suffix,
        query,
        _candidates(phrases, query),
        row.get('label'),
      )
    )
  return examples


def load_winogrande(path: str | os.PathLike) -> list[WscExample]:
  """Reads a file of WinoGrande (Sakaguchi et al. 2020), one JSON each line.

  Args:
    path: Such as `train_xl.jsonl`.

  Returns:
    The examples; the query is the first option, the only candidate the second,
    and the label whether the first is right.

  Raises:
    FileNotFoundError: If the file is not there.
    CorruptFileError: If a line does not fit; says which.
  """
  examples = []
  for number, (where, row) in enumerate(read_json_lines(path, 'WinoGrande')):
    try:
      before, after = row['sentence'].split('_')
      options = row['option1'], row['option2']
      answer = str(row.get('answer', ''))
    except (KeyError, ValueError, AttributeError) as error:
      raise files.CorruptFileError(
        f'{where}: {error}; expected option1, option2 and a sentence with one'
        ' underscore.'
      ) from error
    if answer not in ('', '1', '2'):
      raise files.CorruptFileError(
        f'{where}: answer {answer!r}; expected 1 or 2.'
      )
    prefix = before.rstrip()
    examples.append(
      WscExample(
        str(row.get('qID', number)),
        prefix,
        ' ' if before != prefix and prefix else '',
        after,
        options[0],
        options[1:],
        answer == '1' if answer else None,
      )
    )
  return examples


def positive_examples(examples: Sequence[WscExample]) -> list[WscExample]:
  """What can be trained on: the query is right and has candidates.

  Where the only candidate is right, as in WinoGrande, the two are exchanged.

  Args:
    examples: With labels.

  Returns:
    Those whose label is, or can be made, True.
  """
  kept = []
  for example in examples:
    if example.label is False and len(example.candidates) == 1:
      example = dataclasses.replace(
        example,
        query=example.candidates[0],
        candidates=(example.query,),
        label=True,
      )
    if example.label and example.candidates:
      kept.append(example)
  return kept


@dataclasses.dataclass(frozen=True)
class WscTokens:
  """Examples as tokens; the query first, then the candidates.

  Attributes:
    ids: Ids of each phrase's sentence, its tokens masked, of each example.
    fields: 'positions' and 'targets' int32, and 'weights' float32
      [n, phrases, K]: which tokens are masked and what they are; 'candidates'
      bool [n, phrases - 1]: which there are; 'label' int32 [n] if known.
  """

  ids: list[list[list[int]]]
  fields: dict[str, np.ndarray]


def encode_wsc(
  examples: Sequence[WscExample],
  bpe: ByteLevelBPE,
  *,
  max_candidates: int | None = None,
  max_len: int = 512,
  bos: bool = False,
) -> WscTokens:
  """Token ids of `sentence </s>` with each phrase masked.

  Args:
    examples: Of `load_wsc` or `load_winogrande`.
    bpe: The tokenizer.
    max_candidates: Further candidates are left out; None for no limit.
    max_len: Most tokens.
    bos: Whether `<s>` comes first; fairseq's command has none.

  Returns:
    The tokens, all arrays padded to the same number of phrases and of masked
    tokens.

  Raises:
    ValueError: If there is no example, or a sentence is too long.
  """
  if not examples:
    raise ValueError('examples are empty; expected one or more.')
  first = [bpe.bos_id] * bos
  count = max(len(e.candidates) for e in examples)
  count = count if max_candidates is None else min(count, max_candidates)
  all_ids, spans = [], []
  for example in examples:
    before = len(first) + len(bpe.encode(example.prefix))
    rows = []
    for phrase in (example.query, *example.candidates[:count]):
      ids = [*first, *bpe.encode(example.fill(phrase)), bpe.eos_id]
      size = len(bpe.encode(example.leading + phrase))
      if len(ids) > max_len:
        raise ValueError(
          f'example {example.index} has {len(ids)} tokens; expected at most'
          f' max_len, {max_len}.'
        )
      span = range(before, before + size)
      spans.append((len(all_ids), len(rows), span, [ids[i] for i in span]))
      for i in span:
        ids[i] = bpe.mask_id
      rows.append(ids)
    # All examples have as many: what is missing is a lone </s>.
    rows += [[bpe.eos_id]] * (count + 1 - len(rows))
    all_ids.append(rows)
  most = max(len(span) for _, _, span, _ in spans)
  shape = (len(examples), count + 1, most)
  fields = {
    'positions': np.zeros(shape, np.int32),
    'targets': np.zeros(shape, np.int32),
    'weights': np.zeros(shape, np.float32),
    'candidates': np.zeros(shape[:2], bool),
  }
  for number, row, span, targets in spans:
    at = number, row, slice(len(span))
    fields['positions'][at] = list(span)
    fields['targets'][at] = targets
    fields['weights'][at] = 1
    fields['candidates'][number, row] = True
  fields['candidates'] = fields['candidates'][:, 1:]
  labels = [example.label for example in examples]
  if None not in labels:
    fields['label'] = np.array(labels, np.int32)
  return WscTokens(all_ids, fields)


def phrase_scores(
  logits: jax.Array, targets: jax.Array, weights: jax.Array
) -> jax.Array:
  """Mean log-probability of the masked tokens of each phrase.

  Args:
    logits: At the masked tokens, [..., K, V].
    targets: What they are, integers [..., K].
    weights: 1 where there is a token, [..., K].

  Returns:
    [...]; 0 where a phrase has no token.
  """
  log_probs = -losses.cross_entropy(logits, targets)
  total = jnp.where(weights > 0, log_probs, 0).sum(-1)
  return total / jnp.maximum(weights.sum(-1), 1)


def wsc_loss(
  query: jax.Array,
  others: jax.Array,
  mask: jax.Array,
  *,
  margin: tuple[float, float] | None = None,
) -> jax.Array:
  """Loss of one sentence whose query is right.

  The released code takes the cross entropy of the query among all phrases. The
  paper's text has a margin loss: the sum over candidates of
  `-q + alpha max(0, c - q + beta)`.

  Args:
    query: Score of the query, [B].
    others: Scores of the candidates, [B, C].
    mask: Which of these there are, bool [B, C].
    margin: alpha and beta; fairseq's defaults are 1 and 0, 5 and .4 for
      WinoGrande. None for the cross entropy.

  Returns:
    [B]; 0 without candidates.
  """
  query = query[:, None]
  if margin is None:
    scores = jnp.concatenate([query, jnp.where(mask, others, -jnp.inf)], 1)
    return jax.nn.logsumexp(scores, axis=1) - query[:, 0]
  alpha, beta = margin
  each = alpha * jnp.maximum(0, others - query + beta) - query
  return jnp.where(mask, each, 0).sum(1)


def query_wins(query: Any, others: Any, mask: Any) -> np.ndarray:
  """Whether no candidate has a higher score than the query.

  Args:
    query: [n].
    others: [n, C].
    mask: Which of these there are, bool [n, C].

  Returns:
    bool [n].
  """
  query, others = np.asarray(query), np.asarray(others)
  return ((query[:, None] >= others) | ~np.asarray(mask, bool)).all(1)


def _cut(text, place, pronoun, where):
  """The sentence before and after its pronoun: prefix, leading, suffix."""
  words = text.split(' ')
  opening = rf'(["\u201c(]*){re.escape(pronoun)}'
  # In some rows the place is one too small. A word that is the pronoun comes
  # before one that only begins with it, as "he's"; 'her' is no 'he'.
  for pattern in (rf'{opening}\W*', rf'{opening}(?![^\W\d_]).*'):
    for index in (place, place + 1):
      if not 0 <= index < len(words):
        continue
      match = re.fullmatch(pattern, words[index], re.DOTALL)
      if match:
        return _parts(words, index, match[1], pronoun)
  raise files.CorruptFileError(
    f'{where}: word {place} of the text is'
    f' {words[place] if 0 <= place < len(words) else None!r}; expected the'
    f' pronoun {pronoun!r}.'
  )


def _parts(words, index, quote, pronoun):
  prefix, leading = ' '.join(words[:index]), ' ' if index else ''
  after = ' '.join(words[index:])[len(quote) + len(pronoun) :]
  if quote:
    return f'{prefix}{leading}{quote}', '', after
  return prefix, leading, after


def _candidates(phrases, query):
  """Phrases that compete with the query, each once."""
  kept, seen = [], set()
  for phrase in phrases:
    lower = phrase.lower()
    if lower in seen or not phrase.strip():
      continue
    if lower in query.lower() or query.lower() in lower:
      continue
    if all(word in _PRONOUNS for word in lower.split()):
      continue
    seen.add(lower)
    kept.append(phrase)
  return tuple(kept)
