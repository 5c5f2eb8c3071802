"""Reading GLUE's files as they lie on disk, and writing submissions."""

import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.roberta import glue, tasks
from tests.helpers import data


class GlueTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    temporary = tempfile.TemporaryDirectory()
    self.addCleanup(temporary.cleanup)
    self.folder = pathlib.Path(temporary.name)

  def write(self, name, *rows, start=b''):
    """Writes rows of columns as a TSV file; returns the folder."""
    path = self.folder / name
    path.parent.mkdir(exist_ok=True)
    lines = ['\t'.join(map(str, row)) for row in rows]
    path.write_bytes(start + ('\n'.join(lines) + '\n').encode())
    return self.folder


def row(width, **columns):
  """A row of so many columns, some of them given as c3='text'."""
  cells = [f'-{i}' for i in range(width)]
  for name, value in columns.items():
    cells[int(name[1:])] = value
  return cells


class LayoutTest(GlueTestCase):
  def test_cola_has_a_header_in_the_test_set_only(self):
    self.write('CoLA/train.tsv', ('gj04', '1', '', 'A b.'), ('x', 0, '*', 'c'))
    self.write('CoLA/test.tsv', ('index', 'sentence'), (0, 'Bill "ran'))
    train = glue.load_glue(self.folder, 'CoLA', 'train')
    self.assertEqual((train.first, train.second), (['A b.', 'c'], None))
    np.testing.assert_array_equal(train.labels, [1, 0])
    self.assertEqual(train.labels.dtype, np.int32)
    test = glue.load_glue(self.folder, 'CoLA', 'test')
    self.assertEqual(test.first, ['Bill "ran'])
    self.assertIsNone(test.labels)

  def test_folder_of_the_task_itself(self):
    folder = self.write('SST-2/dev.tsv', ('sentence', 'label'), (' fine ', 1))
    split = glue.load_glue(folder / 'SST-2', 'sst2', 'dev')
    self.assertEqual(split.first, ['fine'])

  def test_quotes_do_not_join_rows(self):
    self.write(
      'MRPC/dev.tsv',
      ('Quality', '#1 ID', '#2 ID', '#1 String', '#2 String'),
      (1, 10, 11, 'He said "no', 'He said "no'),
      (0, 12, 13, '"yes" she', 'yes\u2028 she'),
      start=b'\xef\xbb\xbf',
    )
    split = glue.load_glue(self.folder, 'MRPC', 'dev')
    self.assertLen(split, 2)
    self.assertEqual(split.second[1], 'yes\u2028 she')
    np.testing.assert_array_equal(split.labels, [1, 0])

  def test_short_rows_of_qqp_are_dropped(self):
    head = ('id', 'qid1', 'qid2', 'question1', 'question2', 'is_duplicate')
    self.write(
      'QQP/train.tsv', head, (0, 1, 2, 'a?', 'b?', 1), (1, 3, 4, 'broken')
    )
    self.write('QQP/test.tsv', ('id', 'question1', 'question2'), (7, 'a', 'b'))
    split = glue.load_glue(self.folder, 'QQP', 'train')
    self.assertEqual((len(split), split.dropped), (1, 1))
    test = glue.load_glue(self.folder, 'QQP', 'test')
    self.assertEqual((test.index, test.second), (['7'], ['b']))

  def test_mnli(self):
    fields = {'c8': 'A man.', 'c9': 'Nobody.'}
    self.write(
      'MNLI/train.tsv', row(12), row(12, c11='contradiction', **fields)
    )
    self.write(
      'MNLI/dev_mismatched.tsv',
      row(16),
      row(16, c15='entailment', **fields),
      row(16, c15='-', **fields),
    )
    self.write('MNLI/test_matched.tsv', row(10), row(10, **fields))
    train = glue.load_glue(self.folder, 'MNLI', 'train')
    self.assertEqual((train.first, train.second), (['A man.'], ['Nobody.']))
    self.assertEqual(train.labels.tolist(), [0])
    dev = glue.load_glue(self.folder, 'MNLI', 'dev_mismatched')
    self.assertEqual((dev.labels.tolist(), dev.dropped), ([2], 1))
    self.assertIsNone(
      glue.load_glue(self.folder, 'mnli', 'test_matched').labels
    )

  def test_scores(self):
    self.write('STS-B/dev.tsv', row(10), row(10, c7='a', c8='b', c9='3.800'))
    split = glue.load_glue(self.folder, 'stsb', 'dev')
    self.assertEqual(split.labels.dtype, np.float32)
    np.testing.assert_allclose(split.labels, [3.8])

  def test_line_ends_of_windows(self):
    self.write('RTE/dev.tsv', row(4), (0, 'a', 'b', 'not_entailment\r'))
    self.assertEqual(glue.load_glue(self.folder, 'RTE', 'dev').labels[0], 1)


class SubmissionTest(GlueTestCase):
  def test_labels_and_names(self):
    self.write('MNLI/test_mismatched.tsv', row(10), row(10, c0='4'))
    split = glue.load_glue(self.folder, 'MNLI', 'test_mismatched')
    path = glue.write_submission(self.folder / 'out', split, [2])
    self.assertEqual(path.name, 'MNLI-mm.tsv')
    self.assertEqual(path.read_text(), 'index\tprediction\n4\tentailment\n')
    self.assertLen(list(path.parent.iterdir()), 1)

  def test_scores_are_in_range(self):
    self.write('STS-B/test.tsv', row(9), row(9, c0='0'), row(9, c0='1'))
    split = glue.load_glue(self.folder, 'STS-B', 'test')
    path = glue.write_submission(self.folder, split, [5.4, 2.25])
    self.assertEqual(path.read_text().split()[3::2], ['5.000', '2.250'])

  def test_refused(self):
    self.write('RTE/dev.tsv', row(4), (0, 'a', 'b', 'entailment'))
    split = glue.load_glue(self.folder, 'RTE', 'dev')
    with self.assertRaisesRegex(ValueError, "split is 'dev'; RTE has .* test"):
      glue.write_submission(self.folder, split, [1])


class BadInputTest(GlueTestCase):
  @parameterized.parameters(
    ([('a', 1), ('b',)], 'dev.tsv, line 3: 1 columns; expected 2'),
    ([('a', 1), ('b', 2)], "line 3: label '2'; expected one of 0, 1"),
    ([], 'no example'),
  )
  def test_rows(self, rows, message):
    self.write('SST-2/dev.tsv', ('sentence', 'label'), *rows)
    with self.assertRaisesRegex(ValueError, message):
      glue.load_glue(self.folder, 'SST-2', 'dev')

  def test_score_out_of_range(self):
    self.write('STS-B/dev.tsv', row(10), row(10, c9='nan'))
    with self.assertRaisesRegex(ValueError, "line 2: score 'nan'"):
      glue.load_glue(self.folder, 'STS-B', 'dev')

  def test_not_utf8(self):
    self.write('SST-2/dev.tsv', ('sentence', 'label'), ('a', 1), start=b'\xff')
    with self.assertRaisesRegex(ValueError, 'line 1: no UTF-8'):
      glue.load_glue(self.folder, 'SST-2', 'dev')

  def test_names(self):
    with self.assertRaisesRegex(FileNotFoundError, 'RTE/dev.tsv'):
      glue.load_glue(self.folder, 'RTE', 'dev')
    with self.assertRaisesRegex(ValueError, "task is 'SNLI'; expected one of"):
      glue.load_glue(self.folder, 'SNLI', 'dev')
    with self.assertRaisesRegex(ValueError, "'dev'; MNLI has .*dev_matched"):
      glue.load_glue(self.folder, 'MNLI', 'dev')
    with self.assertRaisesRegex(ValueError, "layout is 'hf'"):
      glue.load_glue(self.folder, 'RTE', 'dev', layout='hf')
    with self.assertRaisesRegex(ValueError, "RTE has no split 'dev'"):
      glue.load_glue(self.folder, 'RTE', 'dev', layout='raw')


class RawTest(GlueTestCase):
  def test_mrpc(self):
    head = ('Quality', '#1 ID', '#2 ID', '#1 String', '#2 String')
    self.write('msr_paraphrase_test.txt', head, (1, 2, 3, 'a', 'b'))
    split = glue.load_glue(self.folder, 'MRPC', 'test', layout='raw')
    self.assertEqual(split.labels.tolist(), [1])

  def test_cola(self):
    folder = data.require('roberta', 'cola_in_domain_dev.tsv').parent
    sizes = {
      split: len(glue.load_glue(folder, 'CoLA', split, layout='raw'))
      for split in ('train', 'dev', 'dev_in', 'dev_out')
    }
    expected = {'train': 8551, 'dev': 1043, 'dev_in': 527, 'dev_out': 516}
    self.assertEqual(sizes, expected)

  def test_sst2(self):
    folder = data.require('roberta', 'sst2_dev.tsv').parent
    train = glue.load_glue(folder, 'SST-2', 'train', layout='raw')
    dev = glue.load_glue(folder, 'SST-2', 'dev', layout='raw')
    self.assertEqual((len(train), len(dev)), (6920, 872))
    self.assertEqual(dev.labels.sum(), 444)


class RecipesTest(absltest.TestCase):
  def test_published_numbers(self):
    # fairseq's config/finetuning: rate, batch, updates, warmup, classes.
    table = {
      'MNLI': (1e-5, 32, 123873, 7432, 3),
      'QNLI': (1e-5, 32, 33112, 1986, 2),
      'QQP': (1e-5, 32, 113272, 28318, 2),
      'RTE': (2e-5, 16, 2036, 122, 2),
      'SST-2': (1e-5, 32, 20935, 1256, 2),
      'MRPC': (1e-5, 16, 2296, 137, 2),
      'CoLA': (1e-5, 16, 5336, 320, 2),
      'STS-B': (2e-5, 16, 3598, 214, 1),
    }
    for name, row_ in table.items():
      task = tasks.GLUE_TASKS[name]
      recipe = task.recipe
      updates = recipe.updates(10**6)
      got = (recipe.learning_rate, recipe.batch_size, updates)
      got += (recipe.warmup(updates), task.num_outputs)
      self.assertEqual(got, row_, name)
      self.assertEqual(recipe.weight_decay, 0.1)
    self.assertLen(tasks.PAPER_GLUE, 6)

  def test_other_durations(self):
    recipe = tasks.GLUE_TASKS['QQP'].recipe
    self.assertEqual(recipe.warmup(1000), 250)
    epochs = tasks.SQUAD_RECIPE
    self.assertEqual(epochs.updates(100), 2 * 3)
    self.assertEqual(epochs.warmup(100), 6)


if __name__ == '__main__':
  absltest.main()
