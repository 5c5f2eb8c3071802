"""SQuAD files, windows, spans and answers."""

import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.roberta import bpe, squad, squad_scores
from tests.helpers import data, goldens
from tests.roberta import tiny

CONTEXT = 'The cat sat on the mat. Café “é” 🐈 sat, and the dog ran.'


def question(text, start, context=CONTEXT, key='q'):
  return squad.SquadQuestion(key, 'Who?', context, ((text, start),))


class FileTest(parameterized.TestCase):
  def write(self, content):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / 'x.json').write_text(text, encoding='utf-8')
    return folder / 'x.json'

  def file(self, *qas):
    return {'data': [{'paragraphs': [{'context': CONTEXT, 'qas': list(qas)}]}]}

  def test_both_versions(self):
    answers = [{'text': 'dog', 'answer_start': 50}]
    first = {'id': 'a', 'question': ' Who? ', 'answers': answers}
    impossible = {
      'id': 'b',
      'question': 'Why?',
      'answers': [],
      'plausible_answers': answers,
      'is_impossible': True,
    }
    found = squad.load_squad(self.write(self.file(first, impossible)))
    self.assertEqual(found[0].question, 'Who?')
    self.assertEqual([q.answers for q in found], [(('dog', 50),), ()])

  def test_questions_without_known_answers(self):
    path = self.write(self.file({'id': 'a', 'question': 'Who?'}))
    self.assertEqual(squad.load_squad(path)[0].answers, ())

  @parameterized.parameters(
    ('[]', 'list indices|x.json'),
    ({'data': []}, 'no question'),
    ({'data': [{}]}, "article 0: 'paragraphs'"),
    (
      {'data': [{'paragraphs': [{'context': '', 'qas': [{'id': 5}]}]}]},
      'question 5: the id is no text',
    ),
    (
      {'data': [{'paragraphs': [{'context': '', 'qas': [{'id': 'k'}]}]}]},
      "question 'k': 'question'",
    ),
  )
  def test_damaged(self, content, message):
    with self.assertRaisesRegex(ValueError, message):
      squad.load_squad(self.write(content))

  def test_missing_and_double(self):
    with self.assertRaisesRegex(FileNotFoundError, 'no file .*y.json'):
      squad.load_squad('y.json')
    qa = {'id': 'a', 'question': '', 'answers': []}
    with self.assertRaisesRegex(ValueError, 'several questions share an id'):
      squad.load_squad(self.write(self.file(qa, qa)))


class FeaturesTest(parameterized.TestCase):
  @parameterized.parameters('The cat', 'mat', 'Café', '“é”', '🐈', 'dog', 'og')
  def test_labels_give_back_the_answer(self, text):
    features = squad.squad_features(
      [question(text, CONTEXT.index(text))],
      tiny.tokenizer(),
      max_len=40,
      doc_stride=10,
      max_question_len=8,
    )
    self.assertGreater(len(features), 1)
    found = 0
    for row in range(len(features)):
      start, end = (features.fields[n][row] for n in ('start', 'end'))
      self.assertEqual(start > 0, features.fields['answerable'][row])
      if start:
        spans = features.spans[row]
        first = features.first[row]
        left, right = spans[start - first][0], spans[end - first][1]
        # Tokens are whole: what is more is part of the same word.
        self.assertIn(text, CONTEXT[left:right])
        self.assertLess(right - left - len(text), 4)
        found += 1
    self.assertGreater(found, 0)

  def test_windows_cover_the_passage(self):
    tokens = tiny.tokenizer()
    ids, _ = tokens.offsets(CONTEXT)
    asked = len(tokens.encode('Who?'))
    features = squad.squad_features(
      [question('cat', 4)], tokens, max_len=30, doc_stride=7, max_question_len=8
    )
    seen = []
    for row in range(len(features)):
      row_ids = features.ids[row]
      self.assertLessEqual(len(row_ids), 30)
      self.assertEqual(features.first[row], asked + 3)
      self.assertEqual(row_ids[: 1 + asked], [0, *tokens.encode('Who?')])
      self.assertEqual(row_ids[1 + asked : 3 + asked], [2, 2])
      self.assertEqual(row_ids[-1], tokens.eos_id)
      window = row_ids[3 + asked : -1]
      start = 7 * row
      self.assertEqual(window, ids[start : start + len(window)].tolist())
      seen += np.flatnonzero(features.best[row]).tolist()
    # Every token is shown best in exactly one window.
    self.assertLen(seen, len(ids))

  def test_answers_that_moved(self):
    self.assertEqual(
      squad.find_answer(CONTEXT, 'dog', 40), CONTEXT.index('dog')
    )
    self.assertEqual(squad.find_answer('sat sat sat', 'sat', 5), 4)
    self.assertIsNone(squad.find_answer(CONTEXT, 'bird', 0))
    self.assertIsNone(squad.find_answer(CONTEXT, '', 0))
    features = squad.squad_features(
      [question('bird', 0)], tiny.tokenizer(), max_len=64, max_question_len=8
    )
    self.assertEqual(features.lost, ('q',))
    self.assertEqual(features.fields['start'].max(), 0)

  def test_question_longer_than_the_passage_and_empty_passage(self):
    long = squad.SquadQuestion('a', 'cat ' * 50, 'mat', (('mat', 0),))
    empty = squad.SquadQuestion('b', 'cat?', '', ())
    features = squad.squad_features(
      [long, empty], tiny.tokenizer(), max_len=40, max_question_len=20
    )
    self.assertEqual(features.first[0], 23)
    self.assertGreater(features.fields['start'][0], 22)
    self.assertLen(features.spans[1], 0)
    answers = squad.squad_answers(
      [long, empty],
      features,
      [np.zeros(40)] * len(features),
      [np.zeros(40)] * len(features),
    )
    self.assertEqual(answers.best['b'], '')

  def test_refused(self):
    with self.assertRaisesRegex(ValueError, 'max_len is 60; .* 64 and 4'):
      squad.squad_features([question('cat', 4)], tiny.tokenizer(), max_len=60)
    with self.assertRaisesRegex(ValueError, 'doc_stride is 0'):
      squad.squad_features([question('cat', 4)], tiny.tokenizer(), doc_stride=0)


class AnswersTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.questions = [
      question('the mat', 15, key='a'),
      question('dog', CONTEXT.index('dog'), key='b'),
    ]
    self.features = squad.squad_features(
      self.questions,
      tiny.tokenizer(),
      max_len=40,
      doc_stride=10,
      max_question_len=8,
    )

  def logits(self):
    rng = goldens.rng('squad')
    count = len(self.features)
    return rng.standard_normal((2, count, 48))

  def brute_force(self, starts, ends, longest):
    """Best span of each question, by trying all of them."""
    best = {}
    for row, number in enumerate(self.features.question):
      first, spans = self.features.first[row], self.features.spans[row]
      for i in range(len(spans)):
        if not self.features.best[row][i]:
          continue
        for j in range(i, min(i + longest, len(spans))):
          text = CONTEXT[spans[i][0] : spans[j][1]]
          score = starts[row][first + i] + ends[row][first + j]
          if text.strip() and score > best.get(number, (-np.inf,))[0]:
            best[number] = score, text
    return {self.questions[n].id: text for n, (_, text) in best.items()}

  @parameterized.parameters(1, 5, 30)
  def test_best_spans(self, longest):
    starts, ends = self.logits()
    got = squad.squad_answers(
      self.questions, self.features, starts, ends, max_answer_len=longest
    )
    self.assertEqual(got.best, self.brute_force(starts, ends, longest))
    self.assertIsNone(got.na_probs)
    for spans in got.n_best.values():
      self.assertLen({span['text'] for span in spans}, len(spans))
      total = sum(span['probability'] for span in spans)
      self.assertAlmostEqual(total, 1)
      scores = [span['start_logit'] + span['end_logit'] for span in spans]
      self.assertEqual(scores, sorted(scores, reverse=True))

  def test_labels_as_logits_give_the_answers(self):
    shape = len(self.features), 40
    starts, ends = np.zeros(shape), np.zeros(shape)
    rows = np.arange(shape[0])
    there = self.features.fields['answerable'] > 0
    starts[rows[there], self.features.fields['start'][there]] = 9
    ends[rows[there], self.features.fields['end'][there]] = 9
    logits = np.where(self.features.question == 0, -3.0, 3.0)
    got = squad.squad_answers(
      self.questions, self.features, starts, ends, logits
    )
    self.assertEqual(got.best, {'a': 'the mat', 'b': 'dog'})
    self.assertEqual(got.final(0.5), {'a': '', 'b': 'dog'})
    expected = 1 / (1 + np.exp(-3.0))
    self.assertAlmostEqual(got.na_probs['a'], expected, delta=1e-12)
    self.assertAlmostEqual(got.na_probs['b'], 1 - expected, delta=1e-12)

  def test_files(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    answers = squad.SquadAnswers({'a': 'é'}, {'a': []}, {'a': 0.25})
    paths = squad.write_answers(folder / 'new', answers, threshold=0.2)
    contents = {p.name: json.loads(p.read_text('utf-8')) for p in paths}
    self.assertEqual(
      contents,
      {
        'predictions.json': {'a': ''},
        'nbest.json': {'a': []},
        'na_prob.json': {'a': 0.25},
      },
    )

  def test_wrong_number_of_logits(self):
    with self.assertRaisesRegex(ValueError, 'end_logits are of 1 features'):
      squad.squad_answers(
        self.questions, self.features, self.logits()[0], [np.zeros(3)]
      )


class RealFileTest(absltest.TestCase):
  def test_xquad(self):
    folder = data.require('roberta', 'xquad.en.json').parent
    questions = squad.load_squad(folder / 'xquad.en.json')
    self.assertLen(questions, 1190)
    tokenizer = bpe.ByteLevelBPE.from_directory(folder)
    features = squad.squad_features(questions, tokenizer, max_len=384)
    self.assertEmpty(features.lost)
    self.assertEqual(
      set(features.question[features.fields['answerable'] > 0]),
      set(range(1190)),
    )
    # An oracle that points at the labels: what tokens can express at best.
    starts = np.zeros((len(features), 384), np.float32)
    ends = np.zeros_like(starts)
    rows = np.flatnonzero(features.fields['answerable'])
    starts[rows, features.fields['start'][rows]] = 9
    ends[rows, features.fields['end'][rows]] = 9
    answers = squad.squad_answers(
      questions, features, starts, ends, max_answer_len=64
    )
    scores = squad_scores.squad_metrics(questions, answers.best)
    self.assertGreater(scores['exact'], 99.5)
    self.assertGreater(scores['f1'], 99.9)


if __name__ == '__main__':
  absltest.main()
