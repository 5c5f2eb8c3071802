"""SQuAD: questions on passages, v1.1 and v2.0; windows of tokens and spans.

fairseq published no code for it. Windows and decoding follow BERT's; offsets
are code points, as in the files.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxpapers.data import files
from jaxpapers.roberta.bpe import ByteLevelBPE

# <s> question </s> </s> passage </s>
_SPECIALS = 4


@dataclasses.dataclass(frozen=True)
class SquadQuestion:
  """A question on a passage.

  Attributes:
    id: Name, a text.
    question: Text without blanks around it.
    context: The passage.
    answers: Texts and their first code points in the passage; none where there
      is no answer (v2.0), or it is not known.
    title: Of the article.
  """

  id: str
  question: str
  context: str
  answers: tuple[tuple[str, int], ...]
  title: str = ''


@dataclasses.dataclass(frozen=True)
class SquadFeatures:
  """Questions with a window of their passage each, as tokens.

  Attributes:
    ids: Token ids of each feature.
    question: Number of its question, int32 [features].
    first: Number of special and question tokens before the window, int32
      [features].
    spans: Code points of each token of the window, int32 [tokens, 2].
    best: Whether no other window shows more of what is around the token, bool
      [tokens]: an answer has to start at such a token.
    fields: For training: 'start' and 'end' (inclusive) int32 [features], 0 if
      the answer is not in the window, and 'answerable' int32, whether it is.
    lost: Questions whose answer is not in their passage.
  """

  ids: list[list[int]]
  question: np.ndarray
  first: np.ndarray
  spans: list[np.ndarray]
  best: list[np.ndarray]
  fields: dict[str, np.ndarray]
  lost: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.ids)


@dataclasses.dataclass(frozen=True)
class SquadAnswers:
  """What a model answers.

  Attributes:
    best: Id -> best span, never empty unless the passage is.
    n_best: Id -> spans with 'text', 'probability' (among these), 'start_logit'
      and 'end_logit', the best first.
    na_probs: Id -> probability that there is no answer; None of a model that
      cannot say.
  """

  best: dict[str, str]
  n_best: dict[str, list[dict[str, Any]]]
  na_probs: dict[str, float] | None

  def final(self, threshold: float = 0.5) -> dict[str, str]:
    """Id -> answer; '' where there is probably none.

    Args:
      threshold: Of the probability that there is none.

    Returns:
      What a predictions file holds.
    """
    if self.na_probs is None:
      return dict(self.best)
    return {
      key: '' if self.na_probs[key] > threshold else text
      for key, text in self.best.items()
    }


def load_squad(path: str | os.PathLike) -> list[SquadQuestion]:
  """Reads a SQuAD file, v1.1 or v2.0.

  Args:
    path: Such as `train-v2.0.json`, local or a URL.

  Returns:
    The questions in their order. Questions that v2.0 calls impossible have no
    answers.

  Raises:
    FileNotFoundError: If the file is not there.
    CorruptFileError: If it is not of that format; says where.

  Example:
    >>> questions = load_squad('dev-v1.1.json')  # doctest: +SKIP
    >>> questions[0].answers[0]  # doctest: +SKIP
    ('Denver Broncos', 177)
  """
  path = files.as_path(path)
  if not path.exists():
    raise FileNotFoundError(f'SQuAD: there is no file {path}.')
  try:
    articles = json.loads(files.read_bytes(path).decode('utf-8'))['data']
  except (ValueError, KeyError, TypeError) as error:
    raise files.CorruptFileError(
      f'{path}: {error}; expected a JSON object with "data", as SQuAD has it.'
    ) from error
  questions = []
  for number, article in enumerate(articles):
    where = f'{path}: article {number}'
    try:
      for paragraph in article['paragraphs']:
        for item in paragraph['qas']:
          where = f'{path}: question {item.get("id")!r}'
          questions.append(_question(item, paragraph['context'], article))
    except (KeyError, TypeError, AttributeError) as error:
      raise files.CorruptFileError(
        f'{where}: {error}; expected paragraphs with context and qas, and these'
        ' with id, question and answers of text and answer_start.'
      ) from error
  if not questions:
    raise files.CorruptFileError(f'{path}: no question.')
  if len({question.id for question in questions}) < len(questions):
    raise files.CorruptFileError(f'{path}: several questions share an id.')
  return questions


def squad_features(
  questions: Sequence[SquadQuestion],
  bpe: ByteLevelBPE,
  *,
  max_len: int = 512,
  doc_stride: int = 128,
  max_question_len: int = 64,
) -> SquadFeatures:
  """Cuts passages into windows: `<s> question </s> </s> window </s>`.

  Args:
    questions: Of `load_squad`.
    bpe: The tokenizer.
    max_len: Most tokens of a feature.
    doc_stride: Tokens from the start of a window to that of the next; a passage
      that fits is one window.
    max_question_len: Further tokens of the question are left out.

  Returns:
    The features, with the first answer of each question for training.

  Raises:
    ValueError: If a size leaves no room for the passage.

  Example:
    >>> features = squad_features(questions, bpe)  # doctest: +SKIP
  """
  if doc_stride < 1:
    raise ValueError(f'doc_stride is {doc_stride}; expected 1 or more.')
  if max_len < max_question_len + _SPECIALS + 1:
    raise ValueError(
      f'max_len is {max_len}; expected more than max_question_len'
      f' {max_question_len} and {_SPECIALS} separators.'
    )
  asked = bpe.encode_batch([q.question for q in questions])
  passages = {q.context: None for q in questions}
  for text in passages:
    passages[text] = bpe.offsets(text)
  rows = {name: [] for name in ('question', 'first', 'start', 'end')}
  ids, spans, best, lost = [], [], [], []
  for number, (question, tokens) in enumerate(zip(questions, asked)):
    tokens = tokens[:max_question_len]
    start = [bpe.bos_id, *tokens, bpe.eos_id, bpe.eos_id]
    passage, offsets = passages[question.context]
    answer = _token_span(question, offsets)
    if question.answers and answer is None:
      lost.append(question.id)
    windows = _windows(len(passage), max_len - len(start) - 1, doc_stride)
    shown = _best_windows(windows, len(passage))
    for window, (left, right) in enumerate(windows):
      ids.append([*start, *passage[left:right].tolist(), bpe.eos_id])
      spans.append(offsets[left:right])
      best.append(shown[left:right] == window)
      inside = answer and left <= answer[0] and answer[1] < right
      shift = len(start) - left
      rows['question'].append(number)
      rows['first'].append(len(start))
      rows['start'].append(answer[0] + shift if inside else 0)
      rows['end'].append(answer[1] + shift if inside else 0)
  arrays = {name: np.array(values, np.int32) for name, values in rows.items()}
  fields = {'start': arrays['start'], 'end': arrays['end']}
  fields['answerable'] = (arrays['start'] > 0).astype(np.int32)
  return SquadFeatures(
    ids,
    arrays['question'],
    arrays['first'],
    spans,
    best,
    fields,
    tuple(lost),
  )


def squad_answers(
  questions: Sequence[SquadQuestion],
  features: SquadFeatures,
  start_logits: Sequence[np.ndarray],
  end_logits: Sequence[np.ndarray],
  answerable_logits: np.ndarray | None = None,
  *,
  n_best: int = 20,
  max_answer_len: int = 30,
) -> SquadAnswers:
  """The best spans of each question, over all windows of its passage.

  The score of a span is the sum of the logits of its ends. All spans of at most
  `max_answer_len` tokens that lie in the window and start where the window is
  the best one for that token are compared. That a question has an answer is
  as likely as in the window where it is likeliest.

  Args:
    questions: As given to `squad_features`.
    features: What it gave.
    start_logits: [S] of each feature; more at the end are padding.
    end_logits: The same.
    answerable_logits: [features], positive for an answer; None of a model that
      cannot say.
    n_best: Spans to keep.
    max_answer_len: Most tokens of an answer.

  Returns:
    The answers, cut out of the passages as they are written there.

  Raises:
    ValueError: If the numbers of logits and features differ.
  """
  for name, values in (
    ('start_logits', start_logits),
    ('end_logits', end_logits),
    ('answerable_logits', answerable_logits),
  ):
    if values is not None and len(values) != len(features):
      raise ValueError(
        f'{name} are of {len(values)} features; there are {len(features)}.'
      )
  found = [[] for _ in questions]
  for row, number in enumerate(features.question):
    first, spans = features.first[row], features.spans[row]
    part = slice(first, first + len(spans))
    starts = np.asarray(start_logits[row][part], np.float64)
    ends = np.asarray(end_logits[row][part], np.float64)
    found[number] += [
      (starts[i] + ends[j], starts[i], ends[j], spans[i][0], spans[j][1])
      for i, j in _best_spans(
        starts, ends, features.best[row], n_best, max_answer_len
      )
    ]
  best, all_best = {}, {}
  for question, spans in zip(questions, found):
    all_best[question.id] = entries = _entries(question, spans, n_best)
    best[question.id] = entries[0]['text'] if entries else ''
  na_probs = None
  if answerable_logits is not None:
    logits = np.full(len(questions), -np.inf)
    np.maximum.at(logits, features.question, np.asarray(answerable_logits))
    # 1 / (1 + exp(x)) overflows for large x, this does not.
    probs = np.exp(-np.logaddexp(0, logits))
    na_probs = {q.id: float(p) for q, p in zip(questions, probs)}
  return SquadAnswers(best, all_best, na_probs)


def write_answers(
  folder: str | os.PathLike, answers: SquadAnswers, threshold: float = 0.5
) -> list[Any]:
  """Writes `predictions.json`, `nbest.json` and, of v2.0, `na_prob.json`.

  Args:
    folder: Where to put them; made if it is not there.
    answers: Of `squad_answers`.
    threshold: See `SquadAnswers.final`.

  Returns:
    Paths of the files. The official script takes the first, and the last as
    --na-prob-file.
  """
  folder = files.as_path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  contents = {
    'predictions.json': answers.final(threshold),
    'nbest.json': answers.n_best,
    'na_prob.json': answers.na_probs,
  }
  written = []
  for name, content in contents.items():
    if content is None:
      continue
    temporary = folder / f'{name}.partial'
    text = json.dumps(content, ensure_ascii=False, indent=1)
    temporary.write_text(text + '\n', encoding='utf-8')
    temporary.replace(folder / name)
    written.append(folder / name)
  return written


def find_answer(context: str, text: str, start: int) -> int | None:
  """Where an answer is: at `start`, or at the place nearest to it.

  Args:
    context: The passage.
    text: The answer.
    start: Where it should be, in code points. Files whose blanks were
      normalised after the answers were marked are off by some.

  Returns:
    Its first code point; None if it is nowhere, or empty.

  Example:
    >>> find_answer('a cat, a dog', 'dog', 7)
    9
  """
  if not text:
    return None
  if context[start : start + len(text)] == text:
    return start
  places, place = [], context.find(text)
  while place >= 0:
    places.append(place)
    place = context.find(text, place + 1)
  return min(places, key=lambda p: abs(p - start), default=None)


def _question(item, context, article):
  if not isinstance(item['id'], str):
    raise TypeError('the id is no text')
  # Files that are to be answered have no answers.
  answers = () if item.get('is_impossible') else item.get('answers') or ()
  return SquadQuestion(
    item['id'],
    item['question'].strip(),
    context,
    tuple((a['text'], int(a['answer_start'])) for a in answers),
    article.get('title', ''),
  )


def _token_span(question, offsets):
  """First and last token of the first answer; None without one."""
  if not question.answers:
    return None
  text, start = question.answers[0]
  start = find_answer(question.context, text, start)
  if start is None:
    return None
  # An answer may begin or end inside a token: that token is part of it.
  touched = (offsets[:, 1] > start) & (offsets[:, 0] < start + len(text))
  tokens = np.flatnonzero(touched & (offsets[:, 0] < offsets[:, 1]))
  return (int(tokens[0]), int(tokens[-1])) if len(tokens) else None


def _windows(length, size, stride):
  """(left, right) of the windows that cover a passage."""
  windows, left = [], 0
  while True:
    right = min(left + size, length)
    windows.append((left, right))
    if right == length:
      return windows
    left += min(stride, size)


def _best_windows(windows, length):
  """For each token, the window with most tokens on its poorer side, [length].

  Of equal ones the longer window, as in BERT's code.
  """
  scores = np.full((len(windows), length), -1.0)
  for window, (left, right) in enumerate(windows):
    tokens = np.arange(left, right)
    around = np.minimum(tokens - left, right - 1 - tokens)
    scores[window, left:right] = around + 0.01 * (right - left)
  return scores.argmax(0) if length else np.zeros(0, int)


def _best_spans(starts, ends, allowed, n_best, max_answer_len):
  """(i, j) of the spans with the largest starts[i] + ends[j]."""
  count = len(starts)
  width = min(max_answer_len, count)
  if not count:
    return []
  padded = np.concatenate([ends, np.full(width - 1, -np.inf)])
  windows = np.lib.stride_tricks.sliding_window_view(padded, width)
  scores = np.where(allowed, starts, -np.inf)[:, None] + windows
  flat = scores.ravel()
  keep = min(n_best, flat.size)
  top = np.argpartition(-flat, keep - 1)[:keep]
  pairs = [divmod(int(t), width) for t in top if flat[t] > -np.inf]
  return [(start, start + more) for start, more in pairs]


def _entries(question, spans, n_best):
  """The best spans of a question, each text once."""
  entries = {}
  # Ties by place, so that the result does not depend on a partial sort.
  for total, start, end, left, right in sorted(
    spans, key=lambda s: (-s[0], s[3], s[4])
  ):
    text = question.context[left:right]
    if text.strip() and text not in entries:
      entries[text] = (total, start, end)
    if len(entries) == n_best:
      break
  if not entries:
    return []
  totals = np.array([total for total, _, _ in entries.values()])
  weights = np.exp(totals - totals.max())
  return [
    {
      'text': text,
      'probability': float(weight / weights.sum()),
      'start_logit': float(start),
      'end_logit': float(end),
    }
    for (text, (_, start, end)), weight in zip(entries.items(), weights)
  ]
