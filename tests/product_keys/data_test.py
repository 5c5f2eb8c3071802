"""Tests of the readers, and of CMUdict itself where it is."""

import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.product_keys import data
from tests.helpers import data as data_lib


def file_of(case, text):
  """Path of a file that is gone after the test."""
  folder = case.enterContext(tempfile.TemporaryDirectory())
  path = pathlib.Path(folder) / 'text'
  path.write_text(text)
  return path


class TextTest(parameterized.TestCase):
  def test_format_of_xlm(self):
    vocabulary = data.read_vocabulary(file_of(self, 'the 20\n@@s 7\ncat 3\n'))
    self.assertEqual(vocabulary, {'the': 14, '@@s': 15, 'cat': 16})
    ids = data.encode_lines([file_of(self, 'the cat\n\nthe dog\n')], vocabulary)
    self.assertEqual(ids.tolist(), [14, 16, 1, 14, 3, 1])
    self.assertEqual(ids.dtype, np.uint16)
    self.assertEqual(data.read_bytes([file_of(self, 'ab')]).tolist(), [97, 98])
    for bad in ('the\n', 'the x\n', 'a 1\na 2\n'):
      with self.assertRaisesRegex(ValueError, 'line . is'):
        data.read_vocabulary(file_of(self, bad))
    with self.assertRaisesRegex(ValueError, 'hold no text'):
      data.encode_lines([file_of(self, '\n')], vocabulary)
    with self.assertRaisesRegex(ValueError, 'hold no text'):
      data.read_bytes([file_of(self, '')])

  def test_streams(self):
    # 10 tokens in 2 streams of blocks of 3: filled in front to 12.
    stream = data.StreamBatches(np.arange(10) + 5, 2, 3)
    batches = list(stream)
    self.assertLen(batches, 2)
    whole = [[1, 1, 1, 5, 6, 7, 8], [1, 9, 10, 11, 12, 13, 14]]
    for i, batch in enumerate(batches):
      for row in range(2):
        part = whole[row][3 * i : 3 * i + 4]
        self.assertEqual(batch['inputs'][row].tolist(), part[:-1])
        self.assertEqual(batch['targets'][row].tolist(), part[1:])

  def test_orders_positions_and_shares(self):
    tokens = np.arange(64)
    stream = data.StreamBatches(tokens, 4, 4, seed=1)
    first = [next(stream)['targets'] for _ in range(8)]
    self.assertEqual(sorted(np.concatenate(first[:4]).ravel()), tokens.tolist())
    self.assertFalse(all((a == b).all() for a, b in zip(first, first[4:])))
    again = data.StreamBatches(tokens, 4, 4, seed=1)
    again.set_state({'step': 5})
    np.testing.assert_array_equal(next(again)['targets'], first[5])
    self.assertEqual(again.get_state(), {'step': 6})
    parts = [
      next(data.StreamBatches(tokens, 4, 4, seed=1, share=(i, 2)))['targets']
      for i in range(2)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), first[0])

  def test_bad_streams(self):
    for words, arguments in (
      ('batch_size is 0', (np.arange(4), 0, 1)),
      ('length is 0', (np.arange(4), 1, 0)),
      ('tokens is empty', (np.arange(0), 1, 1)),
    ):
      with self.assertRaisesRegex(ValueError, words):
        data.StreamBatches(*arguments)
    with self.assertRaisesRegex(ValueError, 'multiple of the 2'):
      data.StreamBatches(np.arange(4), 3, 1, share=(0, 2))


class CmudictTest(absltest.TestCase):
  def test_lines(self):
    path = file_of(
      self,
      "cat K AE1 T\ncat(2) K AA0 T\nd'or D AO1 R # name\n"
      f'{"a" * 17} AH0\nx-ray EH1 K\nof AH1 V\n',
    )
    train, test, phones = data.read_cmudict(path, test_share=0.3)
    self.assertEqual(phones, ['AE', 'AH', 'AO', 'D', 'K', 'R', 'T', 'V'])
    self.assertEqual((len(train['phones']), len(test['phones'])), (2, 1))
    spoken = np.concatenate([train['phones'], test['phones']])
    self.assertSameElements(
      [tuple(row[:3]) for row in spoken], [(4, 0, 6), (3, 2, 5), (1, 7, 8)]
    )
    spelled = np.concatenate([train['letters'], test['letters']])
    self.assertIn((3, 26, 14, 17, 27), {tuple(row[:5]) for row in spelled})
    with self.assertRaisesRegex(ValueError, 'has no line'):
      data.read_cmudict(file_of(self, '1 2\n'))

  def test_the_dictionary(self):
    path = data_lib.require(
      'product_keys', 'cmudict.dict', source='github.com/cmusphinx/cmudict'
    )
    train, test, phones = data.read_cmudict(pathlib.Path(path))
    self.assertLen(phones, 39)
    self.assertEqual(train['letters'].shape, (111373, 16))
    self.assertEqual(test['phones'].shape, (12375, 12))


if __name__ == '__main__':
  absltest.main()
