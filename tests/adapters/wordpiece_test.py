"""BERT's vocabulary, against the algorithm in its simplest form."""

import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest

from jaxpapers.adapters import wordpiece
from jaxpapers.data import CorruptFileError

_WORDS = (
  '[PAD] [UNK] [CLS] [SEP] [MASK] the cat sat un ##aff ##able ##s ! caf ##e'
  ' Cat ##\u00e9 [ ] pad'
).split()


class WordPieceTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def write(self, words=_WORDS, **settings):
    (self.folder / 'vocab.txt').write_text('\n'.join(words) + '\n')
    if settings:
      text = json.dumps(settings)
      (self.folder / 'tokenizer_config.json').write_text(text)
    return wordpiece.WordPiece.from_directory(self.folder)

  def ids(self, text):
    return [_WORDS.index(word) for word in text.split()]

  def test_pieces(self):
    words = self.write()
    for text, wanted in (
      ('The cat, unaffable!', 'the cat [UNK] un ##aff ##able !'),
      # The longest piece first; what cannot be finished is unknown as a whole.
      ('cats catx', 'cat ##s [UNK]'),
      ('Caf\u00e9', 'caf ##e'),
      ('[PAD] sat', '[ pad ] sat'),
      ('', ''),
    ):
      self.assertEqual(words.encode(text), self.ids(wanted), text)
    self.assertEqual(words.vocab_size, len(_WORDS))
    self.assertEqual((words.pad_id, words.bos_id, words.eos_id), (0, 2, 3))

  def test_cased(self):
    words = self.write(do_lower_case=False)
    self.assertEqual(words.encode('Cat cat'), self.ids('Cat cat'))
    self.assertEqual(words.encode('caf\u00e9'), self.ids('caf ##\u00e9'))

  def test_offsets(self):
    text = '  The cats!'
    ids, spans = self.write().offsets(text)
    self.assertEqual(ids.tolist(), self.ids('the cat ##s !'))
    self.assertEqual([text[a:b] for a, b in spans], ['The', 'cat', 's', '!'])
    self.assertEqual(spans.dtype, np.int32)

  def test_specials_and_cuts(self):
    words = self.write()
    self.assertEqual(
      words.encode_single('the cat sat', 4), self.ids('[CLS] the cat [SEP]')
    )
    self.assertEqual(
      words.encode_pair('the cat sat', 'the cat', 7),
      self.ids('[CLS] the cat [SEP] the cat [SEP]'),
    )
    self.assertEqual(
      words.encode_pair('the cat', 'the cat', 6),
      self.ids('[CLS] the cat [SEP] the [SEP]'),
    )

  def test_bad_files(self):
    with self.assertRaisesRegex(FileNotFoundError, 'vocab.txt'):
      wordpiece.WordPiece.from_directory(self.folder)
    with self.assertRaisesRegex(CorruptFileError, r'no \[SEP\]'):
      self.write([word for word in _WORDS if word != '[SEP]'])


if __name__ == '__main__':
  absltest.main()
