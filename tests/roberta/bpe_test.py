"""Byte-level BPE against GPT-2's, fairseq's and HF's tokenizers."""

import hashlib
import json
import pathlib
import pickle
import tempfile

import numpy as np
import tokenizers
from absl.testing import absltest, parameterized

from jaxpapers.roberta import bpe_words
from jaxpapers.roberta.bpe import ByteLevelBPE
from tests.helpers import data, goldens

_SOURCE = 'GPT-2 (encoder.json, vocab.bpe) and fairseq (dict.txt).'
_TEXT = (
  'The quick brown fox jumps over the lazy dog, and the dog sleeps.\n'
  'Foxes jumped over dogs; sleeping dogs lie. naïve café 日本語 😀\n'
) * 8


def _write(case, **files):
  """A temporary folder with text files, name -> content."""
  folder = pathlib.Path(case.enterContext(tempfile.TemporaryDirectory()))
  for name, content in files.items():
    if isinstance(content, str):
      content = content.encode('utf-8')
    (folder / name.replace('__', '.')).write_bytes(content)
  return folder


def _random_text(rng, length):
  """Any code points but surrogates, often blanks and ASCII."""
  points = rng.integers(0, 0x110000, length)
  points = np.where(rng.random(length) < 0.5, points % 128, points)
  points = np.where(rng.random(length) < 0.2, 32, points)
  surrogate = (points >= 0xD800) & (points < 0xE000)
  return ''.join(map(chr, np.where(surrogate, points - 0xD000, points)))


class ReleasedVocabularyTest(absltest.TestCase):
  """With the files of GPT-2 and fairseq."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    for name in ('encoder.json', 'vocab.bpe', 'dict.txt'):
      path = data.require('roberta', name, source=_SOURCE)
    cls.folder = path.parent
    cls.bpe = ByteLevelBPE.from_directory(cls.folder)
    cls.golden = goldens.load_json('roberta', 'bpe.json')

  def test_ids_and_tokens(self):
    self.assertLen(self.golden['encode'], 60)
    texts = [case['text'] for case in self.golden['encode']]
    batch = self.bpe.encode_batch(texts)
    for case, ids in zip(self.golden['encode'], batch):
      self.assertEqual([0, *ids, 2], case['roberta_ids'])
      self.assertEqual(self.bpe.encode_single(case['text'])[1:-1], ids)
      self.assertEqual(
        [self.bpe.token(i).hex() for i in ids], case['tokens'], case['text']
      )
      self.assertEqual(self.bpe.decode(case['roberta_ids']), case['text'])
    for case in self.golden['pairs']:
      ids = self.bpe.encode_pair(case['a'], case['b'])
      self.assertEqual(ids, case['roberta_ids'])

  def test_gpt2_ids_and_invalid_bytes(self):
    # Without dict.txt ids are GPT-2's and 4.
    plain = ByteLevelBPE.from_files(
      self.folder / 'encoder.json', self.folder / 'vocab.bpe'
    )
    self.assertEqual(plain.vocab_size, 50257 + 5)
    for case in self.golden['encode']:
      ids = [i - 4 for i in plain.encode(case['text'])]
      self.assertEqual(ids, case['gpt2_ids'])
    self.assertLen(self.golden['decode_invalid'], 8)
    for case in self.golden['decode_invalid']:
      text = plain.decode([i + 4 for i in case['gpt2_ids']])
      self.assertEqual(text, case['text_replace'])

  def test_specials(self):
    special, bpe = self.golden['special'], self.bpe
    self.assertEqual(bpe.vocab_size, special['vocab'])
    self.assertEqual(
      (bpe.bos_id, bpe.pad_id, bpe.eos_id, bpe.unk_id, bpe.mask_id),
      (special['bos'], special['pad'], special['eos'], 3, special['mask']),
    )
    self.assertEqual(bpe.encode_single('Hello world!'), [0, 31414, 232, 328, 2])
    self.assertEqual(bpe.token(50261), 'madeupword0000')
    self.assertEqual(bpe.decode([0, 31414, 50264, 1]), 'Hello')
    self.assertEqual(
      bpe.decode([0, 31414, 50264], keep_specials=True), '<s>Hello<mask>'
    )
    # fairseq's README: the mask takes the space before it.
    self.assertEqual(
      bpe.encode_masked('The first Star wars movie came out in <mask>'),
      [0, 133, 78, 2141, 9425, 1569, 376, 66, 11, 50264, 2],
    )

  def test_word_starts(self):
    starts = self.bpe.word_start_mask()
    self.assertEqual(starts.shape, (50265,))
    world, alone = self.bpe.encode(' world') + self.bpe.encode('world')
    self.assertTrue(starts[world])
    self.assertFalse(starts[alone])
    self.assertTrue(starts[[0, 1, 2, 3, 50261, 50262, 50263, 50264]].all())
    self.assertFalse(starts[50260])  # <|endoftext|>

  def test_round_trip(self):
    rng = goldens.rng('roberta/bpe')
    texts = [_random_text(rng, int(n)) for n in rng.integers(0, 40, 10_000)]
    batch = self.bpe.encode_batch(texts)
    for text, ids in zip(texts, batch):
      self.assertEqual(self.bpe.decode(ids), text)
    seen = set().union(*batch)
    self.assertTrue(seen.isdisjoint([0, 1, 2, 3, *range(50261, 50265)]))

  def test_hf_folder_has_the_same_ids(self):
    folder = _write(self)
    self.bpe.save(folder)
    again = ByteLevelBPE.from_directory(folder)
    texts = [case['text'] for case in self.golden['encode']]
    self.assertEqual(again.encode_batch(texts), self.bpe.encode_batch(texts))
    self.assertEqual(again.mask_id, 50264)
    vocabulary = json.loads((folder / 'vocab.json').read_text('utf-8'))
    self.assertEqual(list(vocabulary.values()), list(range(50265)))


class TrainTest(parameterized.TestCase):
  def test_as_hf_tokenizers(self):
    golden = goldens.load_json('roberta', 'bpe_train.json')
    corpus = data.require('roberta', golden['corpus'], source='WikiText-2.')
    bpe = ByteLevelBPE.train(
      corpus, golden['vocab_size'], golden['min_frequency']
    )
    folder = _write(self)
    bpe.save(folder)
    merges = (folder / 'merges.txt').read_text('utf-8').split('\n')[1:-1]
    self.assertLen(merges, golden['n_merges'])
    self.assertEqual(merges[:60], golden['first_merges'])
    self.assertEqual(merges[-10:], golden['last_merges'])
    self.assertEqual(
      hashlib.sha256('\n'.join(merges).encode()).hexdigest(),
      golden['merges_sha256'],
    )
    for case in golden['encodings']:
      self.assertEqual(bpe.encode(case['text']), case['ids'])

  def test_own_vocabulary(self):
    folder = _write(self, a__txt=_TEXT, b__txt='Dogs and foxes.\n' * 5)
    paths = [folder / 'a.txt', folder / 'b.txt']
    bpe = ByteLevelBPE.train(paths, 300)
    self.assertEqual(bpe.vocab_size, 300)
    self.assertEqual(
      (bpe.bos_id, bpe.pad_id, bpe.eos_id, bpe.unk_id, bpe.mask_id),
      (0, 1, 2, 3, 4),
    )
    again = ByteLevelBPE.train(paths[::-1], 300)
    bpe.save(folder / 'saved')
    read = ByteLevelBPE.from_directory(folder / 'saved')
    copy = pickle.loads(pickle.dumps(bpe))
    rng = goldens.rng('roberta/bpe/own')
    texts = [_TEXT, '', *(_random_text(rng, 30) for _ in range(300))]
    expected = bpe.encode_batch(texts)
    for other in (again, read, copy):
      self.assertEqual(other.encode_batch(texts), expected)
    for text, ids in zip(texts, expected):
      self.assertEqual(bpe.decode(ids), text)
    # HF's own class reads the folder as we do.
    library = tokenizers.ByteLevelBPETokenizer(
      str(folder / 'saved' / 'vocab.json'),
      str(folder / 'saved' / 'merges.txt'),
    )
    theirs = [encoding.ids for encoding in library.encode_batch(texts)]
    self.assertEqual(theirs, expected)
    flat, sizes = bpe.encode_flat(texts)
    self.assertEqual(flat.dtype, np.int32)
    self.assertEqual(flat.tolist(), sum(expected, []))
    self.assertEqual(sizes.tolist(), list(map(len, expected)))
    # A tenth of the text is in the merges: more than bytes were learned.
    self.assertLess(len(expected[0]), 0.8 * len(_TEXT.encode('utf-8')))
    self.assertNotIn(bpe.mask_id, bpe.encode('<mask> <s>'))

  def test_json_lines_train_as_their_text(self):
    folder = _write(
      self,
      a__txt=_TEXT,
      a__jsonl='\n'.join(
        json.dumps({'body': line}) for line in _TEXT.strip().split('\n')
      ),
    )
    plain = ByteLevelBPE.train(folder / 'a.txt', 300)
    records = ByteLevelBPE.train(
      folder / 'a.jsonl', 300, min_frequency=2, text_field='body'
    )
    self.assertEqual(plain.encode(_TEXT), records.encode(_TEXT))

  def test_tokenizer_json(self):
    folder = _write(self, a__txt=_TEXT)
    bpe = ByteLevelBPE.train(folder / 'a.txt', 290)
    bpe.save(folder)
    vocabulary = json.loads((folder / 'vocab.json').read_text('utf-8'))
    merges = (folder / 'merges.txt').read_text('utf-8').split('\n')[1:-1]
    other = _write(
      self,
      tokenizer__json=json.dumps(
        {
          'model': {'vocab': vocabulary, 'merges': merges},
          'pre_tokenizer': {'type': 'ByteLevel'},
        }
      ),
    )
    read = ByteLevelBPE.from_directory(other)
    self.assertEqual(read.encode(_TEXT), bpe.encode(_TEXT))
    path = other / 'tokenizer.json'
    content = json.loads(path.read_text())
    for change, message in (
      ({'pre_tokenizer': {'type': 'Whitespace'}}, 'expected a byte-level BPE'),
      ({'model': {'vocab': {}}}, 'expected a byte-level BPE'),
      (
        {'pre_tokenizer': {'type': 'ByteLevel', 'add_prefix_space': True}},
        'puts a space before every text',
      ),
    ):
      path.write_text(json.dumps({**content, **change}))
      with self.assertRaisesRegex(ValueError, message):
        ByteLevelBPE.from_directory(other)

  def test_bad_training(self):
    folder = _write(
      self, a__txt=_TEXT, blank__txt=' \n\n', empty__txt='', bad__txt=b'a\n\xff'
    )
    for name in ('blank.txt', 'empty.txt'):
      with self.assertRaisesRegex(ValueError, 'files hold no text'):
        ByteLevelBPE.train(folder / name, 300)
    with self.assertRaisesRegex(ValueError, 'bad.txt, line 2: no UTF-8'):
      ByteLevelBPE.train(folder / 'bad.txt', 300)
    with self.assertRaisesRegex(ValueError, 'vocab_size is 260; expected 261'):
      ByteLevelBPE.train(folder / 'a.txt', 260)
    with self.assertRaisesRegex(ValueError, 'min_frequency is 0'):
      ByteLevelBPE.train(folder / 'a.txt', 300, 0)
    with self.assertRaisesRegex(FileNotFoundError, 'none.txt was not found'):
      ByteLevelBPE.train(folder / 'none.txt', 300)


class UseTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder, 'a.txt')
      path.write_text(_TEXT, 'utf-8')
      cls.bpe = ByteLevelBPE.train(path, 320)

  def test_offsets_are_code_points(self):
    text = '  naïve 日本 😀 dogs\n x '
    ids, spans = self.bpe.offsets(text)
    self.assertEqual(ids.tolist(), self.bpe.encode(text))
    parts = [text[start:end] for start, end in spans]
    for part, i in zip(parts, ids):
      # A token is its span, or some bytes of a character, or blank.
      token = self.bpe.token(int(i))
      self.assertIn(token.strip(), part.encode('utf-8'))
      self.assertEqual(part, part.strip())
    self.assertIn('日', parts)
    self.assertIn('😀', parts)
    # Consecutive, and each character that is not blank is in a token.
    covered = {k for start, end in spans for k in range(start, end)}
    self.assertEqual(
      covered, {k for k, c in enumerate(text) if not c.isspace()}
    )
    self.assertTrue((np.diff(spans[:, 0]) >= 0).all())

  @parameterized.parameters(True, False)
  def test_words_are_those_of_the_library(self, ascii_only):
    # Words remembered and words cut here, against the library alone.
    library = self.bpe._tokenizer
    alphabet = list("ab'sZ09.,-_ \t\n\r\x0b\x0c\x1c\x1f\x00~") + [
      *("'ll", "'S", "'re ", '  ', '   '),
    ]
    if not ascii_only:
      alphabet += list('éßА日٣²½_\u0301\x85\xa0\u2028\u3000\u200b😀\ufeff')
    rng = goldens.rng('roberta/bpe/words')
    for _ in range(4000):
      parts = rng.choice(np.array(alphabet, object), rng.integers(1, 12))
      text = ''.join(parts)
      self.assertEqual(
        self.bpe.encode(text), library.encode(text).ids, repr(text)
      )

  def test_memory_of_words_is_bounded(self):
    known = bpe_words.Words(lambda text: [len(text)], limit=3)
    for text in ('a b c', 'd e', 'a', 'x' * 100):
      known.encode(text)
      self.assertLessEqual(len(known), 3)
    self.assertEqual(known.encode('a' * 100 + ' é b'), [100, 2, 2])

  def test_truncation(self):
    bpe = self.bpe
    a, b = bpe.encode('The fox'), bpe.encode('lazy dogs sleep')
    whole = [0, *a, 2, 2, *b, 2]
    self.assertEqual(bpe.encode_pair('The fox', 'lazy dogs sleep'), whole)
    self.assertEqual(
      bpe.encode_pair('The fox', 'lazy dogs sleep', 6), whole[:6]
    )
    self.assertEqual(bpe.encode_single('The fox', 2), [0, a[0]])
    self.assertEqual(
      bpe.encode_single('The fox', 3, truncate='longest_first'), [0, a[0], 2]
    )
    short = bpe.encode_pair(
      'The fox', 'lazy dogs sleep', 8, truncate='longest_first'
    )
    self.assertEqual(short, [0, *a[:2], 2, 2, *b[:2], 2])

  @parameterized.parameters(
    ('a\ud800b', r'lone surrogate U\+D800 at position 1'),
    ('\udfff', r'lone surrogate U\+DFFF at position 0'),
  )
  def test_surrogates(self, text, message):
    for use in (self.bpe.encode, self.bpe.offsets, self.bpe.encode_single):
      with self.assertRaisesRegex(ValueError, f'text has the {message}'):
        use(text)
    with self.assertRaisesRegex(ValueError, rf'texts\[1\] has the {message}'):
      self.bpe.encode_batch(['fine', text])

  def test_bad_use(self):
    with self.assertRaisesRegex(TypeError, 'text is int; expected str'):
      self.bpe.encode(3)
    for index in (-1, 320):
      with self.assertRaisesRegex(ValueError, f'id is {index}; expected 0 to'):
        self.bpe.decode([5, index])
    with self.assertRaisesRegex(ValueError, "truncate is 'head'"):
      self.bpe.encode_single('a', 5, truncate='head')
    with self.assertRaisesRegex(ValueError, 'max_len is 3; 4 specials'):
      self.bpe.encode_pair('a', 'b', 3, truncate='longest_first')
    with self.assertRaisesRegex(ValueError, 'max_len is 0'):
      self.bpe.encode_single('a', 0)

  @parameterized.named_parameters(
    ('json', {'vocab__json': '{'}, 'vocab.json: no JSON'),
    ('list', {'vocab__json': '[]'}, 'JSON object that maps tokens to ids'),
    ('id', {'vocab__json': '{"a": "0"}'}, "token 'a' has the id '0'"),
    ('shared', {'vocab__json': '{"a": 0, "b": 0}'}, 'tokens share an id'),
    ('merges', {'merges__txt': '#version\na b c\n'}, 'line 2: .a b c.'),
    ('other', {'merges__txt': 'zz yy\n'}, 'do not fit: .*zz'),
    ('special', {'vocab__json': '{"<s>": 0, "a": 1}'}, 'lacks <pad>, </s>'),
  )
  def test_damaged_folder(self, files, message):
    folder = _write(self)
    self.bpe.save(folder)
    for name, content in files.items():
      (folder / name.replace('__', '.')).write_text(content)
    with self.assertRaisesRegex(ValueError, message):
      ByteLevelBPE.from_directory(folder)

  @parameterized.named_parameters(
    ('count', '0 10\n1\n', 'line 2: .*expected a word and its count'),
    ('twice', '0 10\n0 9\n', '2 words, 1 different'),
    ('unknown', '0 10\n7 9\n', 'entry 2 is the id 7'),
    ('lacks', '1 10\n', "lacks 1 of the 2 tokens, for example 'a'"),
  )
  def test_damaged_dictionary(self, content, message):
    folder = _write(
      self, encoder__json='{"a": 0, "b": 1}', vocab__bpe='', dict__txt=content
    )
    with self.assertRaisesRegex(ValueError, message):
      ByteLevelBPE.from_directory(folder)

  def test_missing_folder(self):
    folder = _write(self, vocab__json='{}')
    with self.assertRaisesRegex(FileNotFoundError, 'encoder.json, vocab.bpe'):
      ByteLevelBPE.from_directory(folder)
    with self.assertRaisesRegex(FileNotFoundError, 'does not exist'):
      ByteLevelBPE.from_directory(folder / 'none')


if __name__ == '__main__':
  absltest.main()
