"""SQuAD's exact match and F1, equal to the official evaluation of v2.0.

Rajpurkar et al. (2016, 2018). The numbers are those of evaluate-v2.0.py, the
search for the best threshold included, and for v1.1 those of its own script.
"""

import collections
import re
import string
from collections.abc import Iterable, Mapping
from typing import Any

_PUNCTUATION = str.maketrans('', '', string.punctuation)
_ARTICLES = re.compile(r'\b(a|an|the)\b')


def normalize_answer(text: str) -> str:
  """Lower case, without ASCII punctuation, articles and excess blanks.

  Args:
    text: An answer.

  Returns:
    What is compared.

  Example:
    >>> normalize_answer("  The Denver  Broncos' ")
    'denver broncos'
  """
  text = text.lower().translate(_PUNCTUATION)
  return ' '.join(_ARTICLES.sub(' ', text).split())


def exact_match(gold: str, prediction: str) -> int:
  """1 if two answers are equal once normalised, else 0.

  Args:
    gold: A right answer.
    prediction: An answer.

  Returns:
    0 or 1.

  Example:
    >>> exact_match('1,000', '1000')
    1
  """
  return int(normalize_answer(gold) == normalize_answer(prediction))


def token_f1(gold: str, prediction: str) -> float:
  """F1 of the words of two answers, as bags.

  Where either has no word, 1 if neither has, else 0.

  Args:
    gold: A right answer.
    prediction: An answer.

  Returns:
    In [0, 1].

  Example:
    >>> token_f1('the cat sat', 'cat sat down')
    0.8
  """
  gold_words = normalize_answer(gold).split()
  words = normalize_answer(prediction).split()
  if not gold_words or not words:
    return float(gold_words == words)
  common = collections.Counter(gold_words) & collections.Counter(words)
  same = sum(common.values())
  if not same:
    return 0.0
  precision, recall = same / len(words), same / len(gold_words)
  return 2 * precision * recall / (precision + recall)


def squad_metrics(
  dataset: Iterable[Any],
  predictions: Mapping[str, str],
  na_probs: Mapping[str, float] | None = None,
  na_threshold: float = 1.0,
) -> dict[str, float]:
  """Scores of predictions, as the official script prints them.

  A question counts with the best of its right answers. With `na_probs`, the
  answer to a question whose probability of having none is above
  `na_threshold` counts as empty; and the thresholds that would have been best
  on these questions are found, and how good they would have been.

  Args:
    dataset: What `load_squad` gives, or the list under `data` of a SQuAD JSON
      file.
    predictions: Id of a question -> answer, '' for none.
    na_probs: Id -> probability that there is no answer, or any number that is
      the larger the less likely there is one.
    na_threshold: See above.

  Returns:
    `exact`, `f1` (in percent) and `total`; the same of the questions with
    (`HasAns_exact` ...) and without (`NoAns_exact` ...) an answer, where there
    are some; with `na_probs` also `best_exact`, `best_exact_thresh`, `best_f1`
    and `best_f1_thresh`.

  Raises:
    ValueError: If there are no questions, or one of them has no prediction.

  Example:
    >>> question = {'id': 'q', 'answers': [{'text': 'The cat'}]}
    >>> data = [{'paragraphs': [{'qas': [question]}]}]
    >>> squad_metrics(data, {'q': 'cat'})['exact']
    100.0
  """
  answers = {}
  for identifier, texts in _gold_answers(dataset):
    if identifier in answers:
      raise ValueError(f'dataset: the id {identifier!r} comes twice.')
    answers[identifier] = texts
  _check_complete(answers, predictions, 'predictions')
  if na_probs is not None:
    _check_complete(answers, na_probs, 'na_probs')
  has_answer = {key: bool(texts) for key, texts in answers.items()}
  raw = {'exact': {}, 'f1': {}}
  for key, texts in answers.items():
    # Normalised to nothing is no answer, unless there is no other.
    golds = [t for t in texts if normalize_answer(t)] or ['']
    raw['exact'][key] = max(exact_match(g, predictions[key]) for g in golds)
    raw['f1'][key] = max(token_f1(g, predictions[key]) for g in golds)

  def final(scores):
    if na_probs is None:
      return scores
    return {
      key: float(not has_answer[key]) if na_probs[key] > na_threshold else score
      for key, score in scores.items()
    }

  scores = {name: final(values) for name, values in raw.items()}
  result = _means(scores, list(answers), '')
  for prefix, wanted in (('HasAns_', True), ('NoAns_', False)):
    keys = [key for key, has in has_answer.items() if has is wanted]
    if keys:
      result |= _means(scores, keys, prefix)
  if na_probs is not None:
    for name, values in raw.items():
      best, threshold = best_threshold(
        values, predictions, na_probs, has_answer
      )
      result[f'best_{name}'] = best
      result[f'best_{name}_thresh'] = threshold
  return result


def best_threshold(
  scores: Mapping[str, float],
  predictions: Mapping[str, str],
  na_probs: Mapping[str, float],
  has_answer: Mapping[str, bool],
) -> tuple[float, float]:
  """The threshold above which answering nothing is best, on these questions.

  Args:
    scores: Id -> score of the prediction as it stands.
    predictions: Id -> answer.
    na_probs: Id -> probability of no answer.
    has_answer: Id -> whether there is one.

  Returns:
    The score in percent, and the threshold; 0 if nothing is best answered.

  Example:
    >>> best_threshold({'q': 1}, {'q': 'x'}, {'q': 0.25}, {'q': True})
    (100.0, 0.25)
  """
  current = best = sum(not has_answer[key] for key in scores)
  threshold = 0.0
  for key in sorted(na_probs, key=lambda key: na_probs[key]):
    if key not in scores:
      continue
    if has_answer[key]:
      current += scores[key]
    elif predictions[key]:
      current -= 1
    if current > best:
      best, threshold = current, na_probs[key]
  return 100.0 * best / len(scores), threshold


def _gold_answers(dataset):
  """(id, texts of the right answers) of every question."""
  for item in dataset:
    if not isinstance(item, Mapping):
      yield item.id, [text for text, _ in item.answers]
      continue
    try:
      for paragraph in item['paragraphs']:
        for question in paragraph['qas']:
          yield question['id'], [a['text'] for a in question['answers']]
    except KeyError as error:
      raise ValueError(
        f'dataset: an article has no {error}; expected the list under "data"'
        ' of a SQuAD file, or what load_squad gives.'
      ) from error


def _check_complete(answers, values, name):
  if not answers:
    raise ValueError('dataset has no questions.')
  missing = [key for key in answers if key not in values]
  if missing:
    raise ValueError(
      f'{name} lack {len(missing)} of the {len(answers)} questions, for example'
      f' {missing[0]!r}. The official script stops there, too.'
    )


def _means(scores, keys, prefix):
  result = {
    f'{prefix}{name}': 100.0 * sum(values[key] for key in keys) / len(keys)
    for name, values in scores.items()
  }
  return {**result, f'{prefix}total': len(keys)}
