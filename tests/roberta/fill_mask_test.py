"""What a model puts in the place of a mask."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jaxpapers.roberta import fill_mask, model
from tests.roberta import tiny


class FillMaskTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.bpe = tiny.tokenizer()
    cls.model = model.RobertaForMaskedLM(tiny.config())
    cls.params = cls.model.init(
      jax.random.key(0), jnp.zeros((1, 4), jnp.int32)
    )['params']
    cls.fill = fill_mask.MaskFiller(
      cls.model, cls.params, cls.bpe, lengths=(16, 32)
    )

  def test_probabilities_are_the_model_s(self):
    text = 'The <mask> sat on the <mask>.'
    (masks,) = self.fill([text], top_k=3)
    self.assertLen(masks, 2)
    ids = jnp.array([self.bpe.encode_masked(text)])
    logits = self.model.apply({'params': self.params}, ids)[0]
    places = np.flatnonzero(ids[0] == self.bpe.mask_id)
    for place, fillings in zip(places, masks):
      probs = np.asarray(jax.nn.softmax(logits[place]))
      best = np.argsort(-probs)[:3]
      np.testing.assert_allclose(
        [f.probability for f in fillings], probs[best], rtol=1e-5
      )
      for index, filling in zip(best, fillings):
        name = self.bpe.decode([index], keep_specials=True)
        self.assertEqual(filling.token, name)

  def test_texts(self):
    text = 'The <mask> sat on the <mask>.'
    (masks,) = self.fill([text], top_k=1)
    first, second = (m[0] for m in masks)
    self.assertEqual(first.text, f'The{first.token} sat on the <mask>.')
    self.assertEqual(second.text, f'The <mask> sat on the{second.token}.')

  def test_batches_do_not_matter(self):
    texts = [f'{"cat " * n}<mask>' for n in (9, 1, 4, 7, 2)]
    together = self.fill(texts, batch_size=2)
    for text, expected in zip(texts, together):
      (alone,) = self.fill([text])
      self.assertEqual(
        [f.token for f in alone[0]], [f.token for f in expected[0]]
      )
    self.assertEqual(self.fill([]), [])

  def test_refused(self):
    with self.assertRaisesRegex(ValueError, 'text 2 has no <mask>'):
      self.fill(['<mask>', 'cat'])
    with self.assertRaisesRegex(ValueError, 'text 1 has .* takes 64'):
      self.fill(['cat ' * 99 + '<mask>'])
    with self.assertRaisesRegex(ValueError, 'top_k is 0'):
      self.fill(['<mask>'], top_k=0)
    with self.assertRaisesRegex(ValueError, 'no lm_head'):
      fill_mask.MaskFiller(
        self.model, {'encoder': self.params['encoder']}, self.bpe
      )
    other = model.RobertaForMaskedLM(
      tiny.config(vocab_multiple=1).replace(vocab_size=99)
    )
    with self.assertRaisesRegex(ValueError, 'ids, the model 99'):
      fill_mask.MaskFiller(other, self.params, self.bpe)


if __name__ == '__main__':
  absltest.main()
