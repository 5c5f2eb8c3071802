"""RACE and CommonsenseQA: files, texts and tokens as fairseq has them."""

import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.roberta import bpe, choice
from tests.helpers import data, goldens

ARTICLE = {
  'article': 'A  cat\nsat.',
  'questions': ['It _ .', 'Who?'],
  'options': [['sat', 'ran', 'b_c', 'd'], ['cat', 'dog', 'x', 'y']],
  'answers': ['A', 'B'],
  'id': 'high1.txt',
}


class FolderTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def write(self, name, content):
    path = self.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding='utf-8')
    return path


class RaceTest(FolderTestCase):
  def write_golden(self):
    golden = goldens.load_json('roberta', 'formats.json')
    for level, content in zip(('middle', 'high'), golden['race_files']):
      self.write(f'dev/{level}/{content["id"]}', content)
    return golden['race_examples']

  def test_texts_and_labels_of_fairseq(self):
    expected = self.write_golden()
    examples = choice.load_race(self.folder, 'dev')
    self.assertLen(examples, len(expected))
    for example, golden in zip(examples, expected):
      self.assertEqual(list(example.choices), golden['qa'])
      self.assertEqual(example.label, golden['label'])

  def test_tokens_of_fairseq(self):
    folder = data.require('roberta', 'encoder.json').parent
    tokenizer = bpe.ByteLevelBPE.from_directory(folder)
    expected = self.write_golden()
    examples = choice.load_race(self.folder, 'dev')
    ids = choice.encode_race(examples, tokenizer)
    for rows, golden in zip(ids, expected):
      self.assertEqual(rows, golden['ids'])

  def test_order_does_not_depend_on_the_file_system(self):
    for name in ('b.txt', 'a.txt'):
      self.write(f'train/high/{name}', ARTICLE)
    self.write('train/middle/z.txt', ARTICLE)
    examples = choice.load_race(self.folder, 'train')
    names = [e.index for e in examples[::2]]
    self.assertEqual(
      names,
      ['train/middle/z.txt-0', 'train/high/a.txt-0', 'train/high/b.txt-0'],
    )
    self.assertEqual(choice.load_race(self.folder), examples)
    self.assertLen(choice.load_race(self.folder, 'train-high'), 4)
    first = examples[0]
    self.assertEqual(first.context, 'A cat sat.')
    self.assertEqual(first.choices[2], 'It b_c .')
    self.assertEqual(examples[1].choices[0], 'Who? cat')
    np.testing.assert_array_equal(
      choice.choice_labels(examples), [0, 1, 0, 1, 0, 1]
    )

  @parameterized.parameters(
    ({**ARTICLE, 'answers': ['A']}, 'a.txt: zip'),
    ({**ARTICLE, 'answers': ['A', 'E']}, "answer 1 is 'E'; there are 4"),
    ({'article': 'x'}, "a.txt: 'questions'"),
    ('{', 'a.txt: Expecting'),
  )
  def test_damaged(self, content, message):
    for level in ('middle', 'high'):
      self.write(f'dev/{level}/a.txt', content)
    with self.assertRaisesRegex(ValueError, message):
      choice.load_race(self.folder, 'dev')

  def test_missing(self):
    with self.assertRaisesRegex(FileNotFoundError, 'dev/middle'):
      choice.load_race(self.folder, 'dev')
    with self.assertRaisesRegex(ValueError, "split is 'valid'"):
      choice.load_race(self.folder, 'valid')


class CsqaTest(FolderTestCase):
  ROW = {
    'id': '1',
    'answerKey': 'B',
    'question': {
      'stem': 'Where?',
      'choices': [{'label': 'A', 'text': 'x'}, {'label': 'B', 'text': 'y'}],
    },
  }

  def test_read(self):
    path = self.write('dev.jsonl', json.dumps(self.ROW) + '\n\n')
    (example,) = choice.load_csqa(path)
    self.assertEqual(example.context, 'Q: Where?')
    self.assertEqual(example.choices, ('A: x', 'A: y'))
    self.assertEqual(example.label, 1)
    row = {k: v for k, v in self.ROW.items() if k != 'answerKey'}
    (test,) = choice.load_csqa(self.write('test.jsonl', row))
    self.assertIsNone(choice.choice_labels([test]))

  def test_one_separator(self):
    folder = data.require('roberta', 'encoder.json').parent
    tokenizer = bpe.ByteLevelBPE.from_directory(folder)
    examples = choice.load_csqa(self.write('dev.jsonl', self.ROW))
    (rows,) = choice.encode_csqa(examples, tokenizer)
    self.assertEqual(
      tokenizer.decode(rows[1], keep_specials=True),
      '<s>Q: Where?</s>A: y</s>',
    )
    (short,) = choice.encode_csqa(examples, tokenizer, max_len=3)
    self.assertEqual([row[:3] for row in rows], short)

  @parameterized.parameters(
    ('{"id": 1}', "line 2: no 'question'"),
    ('[1]', 'line 2: expected a JSON object'),
    ('{', 'line 2: no JSON'),
    (json.dumps({**ROW, 'answerKey': 'C'}), "line 2: answerKey 'C'"),
  )
  def test_damaged(self, line, message):
    path = self.write('dev.jsonl', json.dumps(self.ROW) + '\n' + line)
    with self.assertRaisesRegex(ValueError, message):
      choice.load_csqa(path)

  def test_missing_or_empty(self):
    with self.assertRaisesRegex(FileNotFoundError, 'x.jsonl'):
      choice.load_csqa(self.folder / 'x.jsonl')
    with self.assertRaisesRegex(ValueError, 'no line'):
      choice.load_csqa(self.write('x.jsonl', '\n'))


if __name__ == '__main__':
  absltest.main()
