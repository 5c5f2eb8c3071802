"""Masking on the host, bit for bit as fairseq."""

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.roberta import masking_host
from tests.helpers import goldens

_OPTIONS = {
  'default': {},
  'mask_only': {'keep_prob': 0.0, 'random_prob': 0.0},
  'p30': {'mask_prob': 0.3},
  'whole_word': {'word_starts': [i < 4 or i % 3 == 0 for i in range(300)]},
}


class FairseqMaskTest(parameterized.TestCase):
  @parameterized.parameters(*_OPTIONS)
  def test_as_fairseq(self, name):
    golden = goldens.load_json('roberta', 'fairseq_data.json')
    items = golden[
      'mask_items_whole_word' if name == 'whole_word' else 'mask_items'
    ]
    cases = [case for case in golden['mask_cases'] if case['case'] == name]
    self.assertLen(cases, 20)
    for case in cases:
      masked = masking_host.fairseq_mask(
        np.array(items[case['index']], np.int32),
        seed=case['seed'],
        epoch=case['epoch'],
        index=case['index'],
        vocab_size=golden['mask_vocab'],
        mask_id=golden['mask_idx'],
        **_OPTIONS[name],
      )
      self.assertEqual(masked.inputs.tolist(), case['src'])
      self.assertEqual(masked.targets.tolist(), case['tgt'])

  def test_keep_or_random_only(self):
    # Half of the tokens, so that there are enough.
    item = np.arange(4, 204)
    options = dict(seed=1, epoch=1, index=0, vocab_size=300, mask_id=299)
    for probability, changed in (('keep_prob', 0), ('random_prob', 100)):
      both = {'keep_prob': 0.0, 'random_prob': 0.0, probability: 1.0}
      masked = masking_host.fairseq_mask(item, mask_prob=0.5, **both, **options)
      chosen = masked.targets != 1
      self.assertEqual(chosen.sum(), 100)
      self.assertAlmostEqual(
        (masked.inputs != item)[chosen].sum(), changed, delta=3
      )
      np.testing.assert_array_equal(masked.inputs[~chosen], item[~chosen])

  @parameterized.parameters(
    ({'item': [0, 299, 2]}, 'contain <mask>, 299'),
    ({'item': [0, 300, 2]}, 'ids reach from 0 to 300'),
    ({'item': [[0, 2]]}, r'item is int64 \[1, 2\]'),
    ({'item': [0.5]}, 'expected integers'),
    ({'mask_prob': 0.0}, 'mask_prob is 0.0'),
    ({'keep_prob': 0.95}, 'sum of at most 1'),
  )
  def test_bad(self, changes, message):
    arguments = {
      'item': [0, 7, 2],
      'seed': 1,
      'epoch': 1,
      'index': 0,
      'vocab_size': 300,
      'mask_id': 299,
      **changes,
    }
    with self.assertRaisesRegex(ValueError, message):
      masking_host.fairseq_mask(**arguments)


if __name__ == '__main__':
  absltest.main()
