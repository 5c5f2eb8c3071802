"""Masking on the device: numbers chosen, what they become, and keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers.roberta import masking
from tests.helpers import devices, goldens

_VOCAB, _MASK, _PAD = 300, 299, 1
# One shape in nearly all tests: compiling takes most of the time.
_DRAWS, _LENGTH = 2000, 512
# Words for the whole-word mode, as in the golden file.
_STARTS = np.array([i < 4 or i % 3 == 0 for i in range(_VOCAB)])


def _item():
  """A sequence <s> ... </s> of 512."""
  item = goldens.rng('roberta/masking/item').integers(4, _MASK, _LENGTH)
  item[0], item[-1] = 0, 2
  return item.astype(np.int32)


@functools.cache
def _masker(**options):
  """mask_tokens under jit; padding is <pad>."""
  if options.pop('words', False):
    options['word_starts'] = _STARTS
  no_specials = options.pop('no_specials', False)

  def mask(key, ids):
    return masking.mask_tokens(
      key,
      ids,
      ids != _PAD,
      vocab_size=_VOCAB,
      mask_id=_MASK,
      maskable=ids > 3 if no_specials else None,
      **options,
    )

  return jax.jit(mask)


def _many(item=None, **options):
  """One item under many keys: the batch and a dense view of it, as numpy."""
  item = _item() if item is None else item
  ids = np.broadcast_to(item, (_DRAWS, len(item)))
  keys = masking.example_keys(jax.random.key(7), 0, jnp.arange(_DRAWS))
  batch = jax.tree.map(np.asarray, _masker(**options)(keys, ids))
  chosen = np.zeros(ids.shape, bool)
  rows, slots = np.nonzero(batch.weights)
  chosen[rows, batch.positions[rows, slots]] = True
  return ids, batch, chosen


class StatisticsTest(parameterized.TestCase):
  """2,000 draws of a sequence of 512, as fairseq's golden statistics."""

  def test_as_fairseq(self):
    golden = goldens.load_json('roberta', 'fairseq_data.json')
    golden = golden['mask_stats_512']
    ids, batch, chosen = _many()
    counts = batch.weights.sum(1)
    self.assertContainsSubset(counts, (76, 77))
    # floor(76.8 + u): standard error .4 / sqrt(2000) = .009.
    self.assertAlmostEqual(counts.mean(), golden['mean_masked'], delta=0.05)
    self.assertEqual(batch.weights.shape, (2000, 77))
    self.assertFalse(batch.overflow.any())
    new = batch.inputs[chosen]
    masked, kept = (new == _MASK).mean(), (new == ids[chosen]).mean()
    # 153,600 tokens: standard errors .001 and .0008. A random token is <mask>
    # or the same in 1 of 296 cases.
    self.assertAlmostEqual(masked, golden['frac_mask'], delta=0.005)
    self.assertAlmostEqual(kept, golden['frac_kept'], delta=0.005)
    special = chosen[:, [0, 511]].sum(1).mean()
    # 15 % of two; standard errors of ours and of fairseq's are .011.
    self.assertAlmostEqual(special, 0.3, delta=0.05)
    self.assertAlmostEqual(special, golden['mean_special_selected'], delta=0.05)
    # Every position alike: 300 +- 16 of 2000.
    self.assertLess(abs(chosen.sum(0) - 300).max(), 75)

  def test_random_tokens(self):
    ids, batch, chosen = _many(keep_prob=0.0, random_prob=1.0)
    new = batch.inputs[chosen]
    self.assertGreaterEqual(new.min(), 4)
    counts = np.bincount(new, minlength=_VOCAB)[4:]
    # Uniform over 296, <mask> included: 519 +- 23 each.
    self.assertLess(abs(counts - counts.mean()).max(), 115)
    self.assertGreater(counts[-1], 0)
    np.testing.assert_array_equal(batch.inputs[~chosen], ids[~chosen])

  def test_as_hf(self):
    ids, batch, chosen = _many(exact=False, no_specials=True, first_random_id=0)
    self.assertFalse(chosen[:, ids[0] < 4].any())
    counts = batch.weights.sum(1)
    # 510 tokens by 15 %: 76.5 +- 8.1, standard error .18.
    self.assertAlmostEqual(counts.mean(), 76.5, delta=1.0)
    self.assertAlmostEqual(counts.std(), 8.06, delta=0.8)
    self.assertEqual(batch.weights.shape[1], 126)
    self.assertFalse(batch.overflow.any())

  def test_whole_words(self):
    ids, batch, chosen = _many(words=True)
    word = np.cumsum(_STARTS[ids[0]]) - 1
    words = word[-1] + 1
    number = np.zeros(_DRAWS)
    for w in range(words):
      column = chosen[:, word == w]
      # All of a word, or nothing; and the same becomes of all of it.
      self.assertTrue((column.all(1) == column.any(1)).all())
      number += column.any(1)
      new = batch.inputs[:, word == w]
      masked = new[column.all(1)] == _MASK
      random = masked.sum(1) * (~masked).sum(1)
      # A random token is <mask> in 1 of 296 cases only.
      self.assertLess((random > 0).mean() if len(random) else 0, 0.05)
    self.assertContainsSubset(
      number, (np.floor(0.15 * words), np.ceil(0.15 * words))
    )
    self.assertFalse(batch.overflow.any())
    self.assertAlmostEqual(number.mean(), 0.15 * words, delta=0.07)

  def test_words_end_at_what_may_not_be_chosen(self):
    # Two lines; 5 and 7 begin no word by their text, but a line each.
    item = np.array([0, 5, 6, 2, 7, 9, 2, _PAD], np.int32)
    _, _, chosen = _many(item, words=True, no_specials=True, mask_prob=0.5)
    self.assertFalse(chosen[:, [0, 3, 6, 7]].any())
    for position in (1, 2, 4, 5):
      self.assertBetween(chosen[:, position].mean(), 0.4, 0.6)
    # Neighbours across the end of the line are chosen independently.
    self.assertBetween((chosen[:, 2] != chosen[:, 4]).mean(), 0.4, 0.8)

  def test_independent_words(self):
    _, batch, chosen = _many(words=True, exact=False)
    self.assertAlmostEqual(chosen.mean(), 0.15, delta=0.005)
    self.assertGreater(batch.weights.sum(1).std(), 8)

  def test_padding_is_never_chosen(self):
    for length in (2, 4, 5, 100):
      item = np.full(_LENGTH, _PAD, np.int32)
      item[:length] = _item()[:length]
      for options in ({}, {'words': True}, {'exact': False}):
        ids, batch, chosen = _many(item, **options)
        self.assertFalse(chosen[:, length:].any())
        np.testing.assert_array_equal(batch.inputs[~chosen], ids[~chosen])
        np.testing.assert_array_equal(
          batch.targets[batch.weights > 0],
          ids[np.nonzero(batch.weights)[0], batch.positions[batch.weights > 0]],
        )
        self.assertLess(batch.positions.max(), _LENGTH)
        if not options:
          counts = batch.weights.sum(1)
          self.assertAlmostEqual(counts.mean(), 0.15 * length, delta=0.1)
          self.assertContainsSubset(
            counts, (np.floor(0.15 * length), np.floor(0.15 * length) + 1)
          )

  def test_nothing_but_padding(self):
    ids, batch, chosen = _many(np.full(_LENGTH, _PAD, np.int32))
    self.assertFalse(chosen.any())
    np.testing.assert_array_equal(batch.inputs, ids)

  def test_overflow_is_counted(self):
    ids, batch, chosen = _many(exact=False, max_masked=70)
    whole = _many(exact=False)[1]
    self.assertFalse(whole.overflow.any())
    np.testing.assert_array_equal(
      batch.weights.sum(1) + batch.overflow, whole.weights.sum(1)
    )
    self.assertGreater(batch.overflow.sum(), 0)
    # What did not fit is as it was.
    np.testing.assert_array_equal(batch.inputs[~chosen], ids[~chosen])


class KeysTest(parameterized.TestCase):
  def test_mask_is_a_function_of_key_epoch_and_example(self):
    key = jax.random.key(3)
    ids = np.broadcast_to(_item(), (_DRAWS, _LENGTH))
    examples = jnp.arange(_DRAWS)
    mask = _masker()
    first = mask(masking.example_keys(key, 0, examples), ids)
    # Another batch, another order, epochs as an array.
    again = mask(
      masking.example_keys(key, jnp.zeros(_DRAWS, int), examples[::-1]), ids
    )
    np.testing.assert_array_equal(first.inputs, again.inputs[::-1])
    later = mask(masking.example_keys(key, 1, examples), ids)
    self.assertGreater((first.inputs != later.inputs).any(1).mean(), 0.99)
    other = mask(masking.example_keys(jax.random.key(4), 0, examples), ids)
    self.assertGreater((first.inputs != other.inputs).any(1).mean(), 0.99)
    pairs = np.asarray(first.inputs)
    self.assertLen(np.unique(pairs, axis=0), _DRAWS)

  def test_other_generators(self):
    # TPU users choose rbg, whose numbers change under vmap.
    key = jax.random.key(3, impl='rbg')
    ids = np.broadcast_to(_item()[:40], (4, 40))
    keys = masking.example_keys(key, 0, jnp.arange(4))
    whole = _masker()(keys, ids)
    other = masking.example_keys(key, 0, jnp.array([7, 2, 9, 9]))
    np.testing.assert_array_equal(
      _masker()(other, ids).inputs[1], whole.inputs[2]
    )
    self.assertLen(np.unique(np.asarray(whole.inputs), axis=0), 4)
    self.assertLen(np.unique(np.asarray(_masker()(key, ids).inputs), axis=0), 4)
    with self.assertRaisesRegex(ValueError, 'one rbg key for each example'):
      _masker()(jax.random.split(key, 4), ids)

  def test_static_masks_repeat(self):
    key, examples = jax.random.key(3), jnp.arange(50)
    keys = [
      masking.example_keys(key, epoch, examples, num_masks=10)
      for epoch in range(20)
    ]
    for epoch in range(10):
      self.assertTrue((keys[epoch] == keys[epoch + 10]).all())
    data = np.concatenate([jax.random.key_data(k) for k in keys[:10]])
    self.assertLen(np.unique(data, axis=0), 500)

  def test_one_key_and_no_jit(self):
    ids = np.broadcast_to(_item()[:40], (4, 40))
    key = jax.random.key(0)
    jitted = _masker()(key, ids)
    plain = masking.mask_tokens(
      key, ids, ids != _PAD, vocab_size=_VOCAB, mask_id=_MASK
    )
    jax.tree.map(np.testing.assert_array_equal, jitted, plain)
    self.assertLen(np.unique(np.asarray(plain.inputs), axis=0), 4)

  @parameterized.parameters(({},), ({'words': True},), ({'exact': False},))
  def test_x64_changes_nothing(self, options):
    ids = np.broadcast_to(_item()[:40], (4, 40))
    key = jax.random.key(0)
    expected = _masker(**options)(key, ids)
    with jax.enable_x64(True):
      wide = _masker(**options)(key, ids)
    jax.tree.map(np.testing.assert_array_equal, wide, expected)
    for name in ('inputs', 'targets', 'positions', 'overflow'):
      self.assertEqual(getattr(wide, name).dtype, np.int32, name)
    self.assertEqual(wide.weights.dtype, np.float32)

  def test_vmap_over_seeds(self):
    ids = np.broadcast_to(_item()[:40], (4, 40))
    keys = jax.random.split(jax.random.key(0), 3)
    many = jax.vmap(_masker(), in_axes=(0, None))(keys, ids)
    one = _masker()(keys[1], ids)
    np.testing.assert_array_equal(many.inputs[1], one.inputs)


class DevicesTest(absltest.TestCase):
  @pytest.mark.slow
  def test_a_divided_batch_needs_no_communication(self):
    devices.run("""
      import jax
      import numpy as np
      from jax.sharding import AxisType, NamedSharding, PartitionSpec
      from jaxpapers.roberta import masking

      ids = np.random.default_rng(0).integers(4, 290, (16, 40))

      @jax.jit
      def mask(key, epoch, example, ids):
        keys = masking.example_keys(key, epoch, example)
        return masking.mask_tokens(
          keys, ids, ids > 0, vocab_size=300, mask_id=299
        )

      key, epoch, example = jax.random.key(0), np.int32(3), np.arange(16)
      one = mask(key, epoch, example, ids)
      for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ('data',), axis_types=(kind,))
        rows = NamedSharding(mesh, PartitionSpec('data'))
        parts = jax.device_put((example, ids), rows)
        many = mask(key, epoch, *parts)
        assert many.inputs.sharding.is_equivalent_to(rows, 2), many.inputs
        jax.tree.map(np.testing.assert_array_equal, one, many)
        text = mask.lower(key, epoch, *parts).compile().as_text()
        for name in ('all-reduce', 'all-gather', 'all-to-all', 'permute'):
          assert name not in text, (kind, name)
    """)


class ArgumentsTest(parameterized.TestCase):
  @parameterized.parameters(
    (512, {}, 77),
    (100, {}, 15),
    (128, {}, 20),
    (1, {}, 1),
    (4, {'mask_prob': 0.9}, 4),
    (512, {'exact': False}, 126),
  )
  def test_slots(self, length, options, slots):
    self.assertEqual(masking.num_slots(length, **options), slots)

  @parameterized.named_parameters(
    ('prob_0', {'mask_prob': 0.0}, 'mask_prob is 0.0'),
    ('prob_1', {'mask_prob': 1.0}, 'mask_prob is 1.0'),
    ('nan', {'mask_prob': float('nan')}, 'mask_prob is nan'),
    ('sum', {'keep_prob': 0.6, 'random_prob': 0.5}, 'sum of at most 1'),
    ('negative', {'keep_prob': -0.1}, 'keep_prob is -0.1'),
    ('first', {'first_random_id': 20}, 'first_random_id is 20'),
    ('mask', {'mask_id': 20}, 'mask_id is 20; expected 0 to'),
    ('slots', {'max_masked': 9}, 'max_masked is 9; expected 1 to 8'),
    ('ids_1d', {'ids': np.arange(8)}, r'ids is int32 \[8\]'),
    ('ids_float', {'ids': np.ones((2, 8))}, 'expected integers'),
    ('large', {'ids': np.full((2, 8), 20)}, 'ids reach from 20 to 20'),
    ('below', {'ids': np.full((2, 8), -1)}, 'ids reach from -1'),
    ('again', {'ids': np.full((2, 8), 19)}, 'contain <mask>, 19'),
    ('valid', {'valid': np.ones((2, 7), bool)}, r'valid is bool \[2, 7\]'),
    ('int', {'valid': np.ones((2, 8), int)}, 'valid is int'),
    ('maskable', {'maskable': np.ones(8, bool)}, 'maskable is bool'),
    ('words', {'word_starts': np.ones(3, bool)}, r'expected bool \[vocab_size'),
    ('key', {'key': 3}, 'typed key'),
    ('keys', {'num_keys': 3}, 'key has shape'),
  )
  def test_bad(self, changes, message):
    arguments = {
      'key': jax.random.key(0),
      'ids': np.full((2, 8), 5),
      'valid': np.ones((2, 8), bool),
      'vocab_size': 20,
      'mask_id': 19,
      **changes,
    }
    if 'num_keys' in arguments:
      number = arguments.pop('num_keys')
      arguments['key'] = jax.random.split(arguments['key'], number)
    with self.assertRaisesRegex(ValueError, message):
      masking.mask_tokens(**arguments)

  def test_example_keys_refuse(self):
    key = jax.random.key(0)
    with self.assertRaisesRegex(ValueError, 'example_ids has shape'):
      masking.example_keys(key, 0, jnp.zeros((2, 2), int))
    with self.assertRaisesRegex(ValueError, 'num_masks is 0'):
      masking.example_keys(key, 0, jnp.zeros(2, int), num_masks=0)


if __name__ == '__main__':
  absltest.main()
