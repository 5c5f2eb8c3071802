"""The files of the tasks, and how they are split."""

import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.adapters import data
from jaxpapers.data import CorruptFileError
from tests.helpers import data as large

COUNTS = {
  'sms_spam': {'ham': 4827, 'spam': 747},
  'corporate_messaging': {
    'Action': 724,
    'Dialogue': 226,
    'Exclude': 39,
    'Information': 2129,
  },
  'disasters': {'Not Relevant': 6187, 'Relevant': 4673},
  'global_warming': {'yes': 3111, 'no': 1114},
  'airline': {'negative': 9178, 'neutral': 3099, 'positive': 2363},
}
# Table 3 of the paper.
SPLITS = (
  (15076, 1885, 1885),
  (11712, 1464, 1464),
  (2494, 312, 312),
  (8688, 1086, 1086),
  (6392, 799, 800),
  (32000, 4000, 4000),
  (3380, 422, 423),
  (4000, 500, 500),
  (2019, 252, 253),
  (927, 116, 116),
  (3961, 495, 496),
  (146667, 18333, 18334),
  (338349, 42294, 42294),
  (4459, 557, 558),
)


class RealFilesTest(parameterized.TestCase):
  @parameterized.parameters(*COUNTS)
  def test_counts(self, name):
    file = (
      'SMSSpamCollection' if name == 'sms_spam' else data.CROWDFLOWER[name].file
    )
    path = large.require('adapters', file)
    task = data.load_task_texts(path.parent, name)
    self.assertEqual(task.counts(), COUNTS[name])
    self.assertLen(task, sum(COUNTS[name].values()))
    self.assertTrue(all(isinstance(t, str) for t in task.texts))

  def test_message_with_a_line_break(self):
    path = large.require('adapters', 'SMSSpamCollection')
    task = data.load_sms_spam(path)
    broken = [text for text in task.texts if '\n' in text]
    self.assertLen(broken, 1)
    # Mean characters in Table 3: 81.
    mean = np.mean([len(text) for text in task.texts])
    self.assertAlmostEqual(mean, 80.5, delta=0.1)


class FilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def write(self, name, text, encoding='utf-8'):
    (self.folder / name).write_bytes(text.encode(encoding))

  def test_airline(self):
    self.write(
      'Tweets.csv',
      'tweet_id,airline_sentiment,text\r\n1,neutral,"two\nlines, one row"\r\n'
      '2,negative,late\r\n3,positive,"said ""yes"""\r\n4,,nothing\r\n',
    )
    task = data.load_task_texts(self.folder, 'airline')
    self.assertEqual(task.labels.tolist(), [1, 0, 2])
    self.assertEqual(task.texts, ('two\nlines, one row', 'late', 'said "yes"'))

  def test_latin_1_and_unknown_labels(self):
    self.write(
      'socialmedia-disaster-tweets-DFE.csv',
      'choose_one,text\r\nRelevant,caf\xe9\r\n"Can\'t Decide",x\r\n'
      'Not Relevant,y\r\n',
      'latin-1',
    )
    task = data.load_task_texts(self.folder, 'disasters')
    self.assertEqual(task.texts, ('caf\xe9', 'y'))
    self.assertEqual(task.counts(), {'Not Relevant': 1, 'Relevant': 1})

  def test_ones_own(self):
    self.write('mood.tsv', 'sad\tit rains\nhappy\tsun\tand sea\n')
    task = data.load_tsv(self.folder, 'mood')
    self.assertEqual(task.classes, ('happy', 'sad'))
    self.assertEqual(task.texts, ('it rains', 'sun\tand sea'))
    self.assertEqual(task.labels.tolist(), [1, 0])

  @parameterized.parameters(
    ('SMSSpamCollection', 'eggs\thello\n', 'sms_spam', 'line 1: .*ham or spam'),
    ('SMSSpamCollection', '', 'sms_spam', 'no messages'),
    ('Tweets.csv', 'a,b\n1,2\n', 'airline', "columns are .'a', 'b'"),
    (
      'Tweets.csv',
      'airline_sentiment,text\nfine,x\n',
      'airline',
      'no row has one of the labels',
    ),
    ('mood.tsv', 'no tab\n', 'mood', 'line 1'),
    ('mood.tsv', 'a\tx\n', 'mood', 'two or more'),
  )
  def test_damaged_files(self, file, text, name, words):
    self.write(file, text)
    load = data.load_tsv if name == 'mood' else data.load_task_texts
    with self.assertRaisesRegex(CorruptFileError, words):
      load(self.folder, name)

  def test_not_utf_8(self):
    (self.folder / 'Tweets.csv').write_bytes(b'airline_sentiment,text\n\xff,x')
    with self.assertRaisesRegex(CorruptFileError, 'not utf-8'):
      data.load_task_texts(self.folder, 'airline')

  def test_missing(self):
    with self.assertRaisesRegex(FileNotFoundError, "file of task 'airline'"):
      data.load_task_texts(self.folder, 'airline')
    with self.assertRaisesRegex(FileNotFoundError, 'mood.tsv'):
      data.load_tsv(self.folder, 'mood')
    with self.assertRaisesRegex(ValueError, "task is 'news'"):
      data.load_task_texts(self.folder, 'news')


class SplitTest(parameterized.TestCase):
  @parameterized.parameters(*((sizes,) for sizes in SPLITS))
  def test_sizes_of_table_3(self, sizes):
    parts = data.split_80_10_10(sum(sizes), 0)
    self.assertEqual(tuple(map(len, parts)), sizes)

  def test_every_row_once(self):
    parts = data.split_80_10_10(103, 4)
    self.assertEqual(sorted(np.concatenate(parts).tolist()), list(range(103)))
    other = data.split_80_10_10(103, 5)
    self.assertNotEqual(parts[0].tolist(), other[0].tolist())
    again = data.split_80_10_10(103, 4)
    self.assertEqual(parts[0].tolist(), again[0].tolist())
    with self.assertRaisesRegex(ValueError, 'number is 9'):
      data.split_80_10_10(9, 0)

  def test_labels_beyond_the_head(self):
    data.check_labels([0, 1, 2], 3)
    for labels, words in (([0, 3], r'labels.1. is 3'), ([-1], 'is -1')):
      with self.assertRaisesRegex(ValueError, words):
        data.check_labels(labels, 3)

  def test_texts_and_labels(self):
    with self.assertRaisesRegex(ValueError, '2 texts and 1'):
      data.TextTask('a', ('x', 'y'), np.zeros(1, np.int32), ('p',))


if __name__ == '__main__':
  absltest.main()
