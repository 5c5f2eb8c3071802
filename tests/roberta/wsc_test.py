"""Winograd schemas: rows, masked phrases, scores and both losses."""

import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.roberta import wsc
from tests.roberta import tiny


def row(text, span1, span2, index, **more):
  target = {'span1_text': span1, 'span2_text': span2, 'span2_index': index}
  return {'text': text, 'target': target, **more}


class FilesTestCase(parameterized.TestCase):
  def write(self, *rows):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    path = folder / 'train.jsonl'
    lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
    path.write_text('\n'.join(lines), encoding='utf-8')
    return path


class WscFileTest(FilesTestCase):
  TEXT = 'Mark told Pete lies, but he did not mind.'

  def test_the_pronoun_is_replaced(self):
    path = self.write(
      row(self.TEXT, 'Mark', 'he', 5, label=False, idx=7),
      row(self.TEXT, 'Pete', 'he', 5, label=True, idx=8),
    )
    mark, pete = wsc.load_wsc(path)
    self.assertEqual(
      mark.fill(mark.query), 'Mark told Pete lies, but Mark did not mind.'
    )
    self.assertEqual((mark.label, mark.index), (False, '7'))
    # The other rows of the sentence say what else it may stand for.
    self.assertEqual(mark.candidates, ('Pete',))
    self.assertEqual(wsc.positive_examples([mark, pete])[1], pete)

  def test_punctuation_and_an_index_that_is_one_too_small(self):
    text = 'The dog bit the man. Who was it? It was him.'
    (example,) = wsc.load_wsc(self.write(row(text, 'the man.', 'him.', 10)))
    self.assertEqual(example.fill('X'), text.replace('him', 'X'))
    self.assertEqual(example.query, 'the man')
    (moved,) = wsc.load_wsc(self.write(row(text, 'the man', 'him', 9)))
    self.assertEqual(moved.fill('X'), example.fill('X'))

  @parameterized.parameters(
    # The word at the place only begins like the pronoun.
    ('Mary saw her, he thought she left', 'he', 2, 'Mary saw her, X thought '),
    ("Is he's theirs or he?", 'he', 1, "Is X's theirs or he?"),
    ("As he's late he left.", 'he', 1, "As X's late "),
    ("It's he's he.", 'he', 1, "It's he's X."),
    ('They said, "He ran."', 'He', 2, 'They said, "X ran."'),
    ('"(It ran.)"', 'It', 0, '"(X ran.)"'),
    # As fairseq: what the file calls the pronoun goes as a whole.
    ('I said "he" ran', '"he', 2, 'I said X" ran'),
  )
  def test_the_word_that_is_cut(self, text, pronoun, place, expected):
    path = self.write(row(text, 'the man', pronoun, place))
    (example,) = wsc.load_wsc(path)
    self.assertStartsWith(example.fill('X'), expected)
    # The tokens of the phrase are those that are masked.
    bpe = tiny.tokenizer()
    tokens = wsc.encode_wsc([example], bpe)
    ids = list(tokens.ids[0][0])
    size = int(tokens.fields['weights'][0, 0].sum())
    targets = tokens.fields['targets'][0, 0, :size].tolist()
    self.assertEqual(bpe.decode(targets).strip(), 'the man')
    for position, target in zip(tokens.fields['positions'][0, 0], targets):
      ids[position] = target
    self.assertEqual(bpe.decode(ids), example.fill('the man'))

  def test_candidates_are_other_noun_phrases(self):
    path = self.write(
      row(self.TEXT, 'Mark', 'he', 5, candidates=['pete', 'He', 'Mark Twain'])
    )
    (example,) = wsc.load_wsc(
      path, noun_chunks=lambda text: [text.split()[2], 'lies', 'it']
    )
    self.assertEqual(example.candidates, ('pete', 'lies'))

  @parameterized.parameters(
    (row('A her c', 'A', 'he', 1), "word 1 .* 'her'; expected .* 'he'"),
    (row('A b c', 'A', 'x', 1), "line 1: word 1 .* 'b'; expected .* 'x'"),
    (row('A b c', 'A', 'x', 9), 'line 1: word 9 of the text is None'),
    ({'text': 'a'}, "line 1: 'target'"),
    (row('A', None, 'A', 0), 'line 1: .*expected text and target'),
  )
  def test_damaged(self, bad, message):
    with self.assertRaisesRegex(ValueError, message):
      wsc.load_wsc(self.write(bad))


class WinograndeFileTest(FilesTestCase):
  ROW = {
    'qID': 'q-1',
    'sentence': 'The cat saw the dog and _ ran.',
    'option1': 'cat',
    'option2': 'dog',
    'answer': '2',
  }

  def test_options(self):
    (example,) = wsc.load_winogrande(self.write(self.ROW))
    self.assertEqual(example.fill('X'), 'The cat saw the dog and X ran.')
    self.assertEqual((example.label, example.index), (False, 'q-1'))
    (positive,) = wsc.positive_examples([example])
    self.assertEqual((positive.query, positive.candidates), ('dog', ('cat',)))
    first = {**self.ROW, 'sentence': '_ ran.', 'answer': '1'}
    (example,) = wsc.load_winogrande(self.write(first))
    self.assertEqual(example.fill('It'), 'It ran.')
    self.assertTrue(example.label)

  @parameterized.parameters(
    ({**ROW, 'sentence': 'no place'}, 'one underscore'),
    ({**ROW, 'answer': '3'}, "answer '3'; expected 1 or 2"),
  )
  def test_damaged(self, bad, message):
    with self.assertRaisesRegex(ValueError, message):
      wsc.load_winogrande(self.write(bad))


class TokensTest(FilesTestCase):
  def examples(self):
    text = 'The cat and the dog ran; it sat.'
    rows = [row(text, phrase, 'it', 6) for phrase in ('The cat', 'the dog')]
    return wsc.load_wsc(self.write(*rows, row('a man ran', 'a man', 'ran', 2)))

  def test_the_phrase_is_masked_and_the_target(self):
    bpe = tiny.tokenizer()
    for bos in (False, True):
      tokens = wsc.encode_wsc(self.examples(), bpe, bos=bos)
      for number, phrase in ((0, 'The cat'), (1, 'the dog')):
        ids = list(tokens.ids[number][0])
        self.assertEqual(ids[0] == bpe.bos_id, bos)
        size = int(tokens.fields['weights'][number, 0].sum())
        targets = tokens.fields['targets'][number, 0, :size]
        self.assertEqual(bpe.decode(targets), f' {phrase}')
        positions = tokens.fields['positions'][number, 0, :size]
        self.assertEqual([ids[p] for p in positions], [bpe.mask_id] * size)
        self.assertEqual(ids.count(bpe.mask_id), size)
        for place, target in zip(positions, targets):
          ids[place] = int(target)
        self.assertEqual(
          bpe.decode(ids), f'The cat and the dog ran; {phrase} sat.'
        )

  def test_examples_without_candidates(self):
    tokens = wsc.encode_wsc(self.examples(), tiny.tokenizer())
    np.testing.assert_array_equal(
      tokens.fields['candidates'], [[True], [True], [False]]
    )
    wins = wsc.query_wins([0.0] * 3, [[1.0], [-1.0], [1.0]], [[1], [1], [0]])
    np.testing.assert_array_equal(wins, [False, True, True])

  def test_no_example(self):
    with self.assertRaisesRegex(ValueError, 'examples are empty'):
      wsc.encode_wsc([], tiny.tokenizer())

  def test_too_long(self):
    with self.assertRaisesRegex(ValueError, 'example 0 has .* max_len, 4'):
      wsc.encode_wsc(self.examples(), tiny.tokenizer(), max_len=4)


class LossTest(parameterized.TestCase):
  QUERY = jnp.array([-1.0, -2.0])
  OTHERS = jnp.array([[-1.5, -0.5], [-1.0, 99.0]])
  MASK = jnp.array([[True, True], [True, False]])

  def test_cross_entropy(self):
    got = wsc.wsc_loss(self.QUERY, self.OTHERS, self.MASK)
    first = np.exp([-1.0, -1.5, -0.5])
    second = np.exp([-2.0, -1.0])
    expected = [-np.log(p[0] / p.sum()) for p in (first, second)]
    np.testing.assert_allclose(got, expected, rtol=1e-6)

  def test_margin(self):
    got = wsc.wsc_loss(self.QUERY, self.OTHERS, self.MASK, margin=(5.0, 0.4))
    # -q + alpha max(0, c - q + beta) for each candidate.
    first = (1.0 + 0) + (1.0 + 5 * 0.9)
    np.testing.assert_allclose(got, [first, 2.0 + 5 * 1.4], rtol=1e-6)

  def test_nothing_to_compare_with(self):
    mask = jnp.zeros((2, 2), bool)
    for margin in (None, (1.0, 0.0)):
      loss, gradient = jax.value_and_grad(
        lambda others, margin=margin: wsc.wsc_loss(
          self.QUERY, others, mask, margin=margin
        ).sum()
      )(self.OTHERS)
      self.assertEqual(loss, 0)
      np.testing.assert_array_equal(gradient, jnp.zeros((2, 2)))

  def test_scores_are_means_over_the_tokens(self):
    logits = jnp.log(jnp.array([[0.5, 0.5], [0.2, 0.8], [0.1, 0.9]]))
    got = wsc.phrase_scores(logits, jnp.array([0, 1, 1]), jnp.array([1, 1, 0]))
    expected = (np.log(0.5) + np.log(0.8)) / 2
    np.testing.assert_allclose(got, expected, rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
