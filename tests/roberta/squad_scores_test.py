"""SQuAD's scores against the official script's."""

from absl.testing import absltest, parameterized

from jaxpapers.roberta import squad_scores
from tests.helpers import goldens


def golden():
  return goldens.load_json('roberta', 'metrics.json')['squad']


def questions(**answers):
  """A data set of questions with these ids and right answers."""
  qas = [
    {'id': key, 'answers': [{'text': text} for text in texts]}
    for key, texts in answers.items()
  ]
  return [{'paragraphs': [{'qas': qas}]}]


class OfficialTest(parameterized.TestCase):
  @parameterized.parameters(
    (1.0, 'eval_na_thresh_1'), (0.5, 'eval_na_thresh_0_5')
  )
  def test_scores_and_thresholds(self, threshold, key):
    data = golden()
    got = squad_scores.squad_metrics(
      data['dataset'], data['predictions'], data['na_probs'], threshold
    )
    for name, value in data[key].items():
      self.assertAlmostEqual(got[name], value, delta=1e-9, msg=name)
    self.assertContainsSubset(data['eval_na_thresh_1'], got)

  def test_normalised_texts(self):
    for text, normalised in golden()['normalize']:
      self.assertEqual(squad_scores.normalize_answer(text), normalised)

  def test_pairs(self):
    for gold, prediction, exact, f1 in golden()['exact_f1']:
      self.assertEqual(squad_scores.exact_match(gold, prediction), exact)
      self.assertAlmostEqual(
        squad_scores.token_f1(gold, prediction), f1, delta=1e-9
      )


class RulesTest(absltest.TestCase):
  def test_best_of_the_right_answers(self):
    got = squad_scores.squad_metrics(
      questions(q=['in 1066', '1066', 'the year 1066']), {'q': 'year 1066'}
    )
    self.assertEqual(
      got,
      {
        'exact': 100.0,
        'f1': 100.0,
        'total': 1,
        'HasAns_exact': 100.0,
        'HasAns_f1': 100.0,
        'HasAns_total': 1,
      },
    )

  def test_answers_that_normalise_to_nothing(self):
    data = questions(q=['the', 'cat'], r=['an'])
    got = squad_scores.squad_metrics(data, {'q': '', 'r': ''})
    self.assertEqual((got['exact'], got['HasAns_total']), (50.0, 2))

  def test_best_threshold_may_be_to_answer_nothing(self):
    data = questions(q=['x'], r=[], s=[])
    got = squad_scores.squad_metrics(
      data, {'q': 'y', 'r': 'z', 's': 'z'}, {'q': 0.1, 'r': 0.2, 's': 0.3}
    )
    self.assertAlmostEqual(got['best_exact'], 200 / 3)
    self.assertEqual(got['best_exact_thresh'], 0.0)

  def test_refused(self):
    data = questions(q=['x'], r=['y'])
    with self.assertRaisesRegex(
      ValueError, "predictions lack 1 of the 2 .* 'r'"
    ):
      squad_scores.squad_metrics(data, {'q': 'x'})
    with self.assertRaisesRegex(ValueError, 'na_probs lack 2'):
      squad_scores.squad_metrics(data, {'q': 'x', 'r': 'y'}, {})
    with self.assertRaisesRegex(ValueError, 'no questions'):
      squad_scores.squad_metrics([], {})
    with self.assertRaisesRegex(ValueError, "article has no 'paragraphs'"):
      squad_scores.squad_metrics([{}], {})
    with self.assertRaisesRegex(ValueError, "id 'q' comes twice"):
      squad_scores.squad_metrics([*questions(q=[]), *questions(q=[])], {})


if __name__ == '__main__':
  absltest.main()
