"""AutoAugment and RandAugment: bits of the original, in NumPy and in JAX."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.efficientnet import autoaugment, image_ops, random_augment
from tests.helpers import goldens

_OPS = goldens.load_npz('efficientnet', 'recipe', 'autoaugment_ops_tf.npz')
_RESULTS = [name for name in _OPS if name != 'image']


def operation_and_argument(name):
  """Index of the operation and its argument, of a golden's name."""
  operation, _, text = name.partition('_')
  argument = float(text.lstrip('abdfist')) if text else 0.0
  return autoaugment.OPERATIONS.index(operation), argument


class OperationsTest(parameterized.TestCase):
  def test_goldens_are_all_there(self):
    self.assertLen(_RESULTS, 49)
    operations = {operation_and_argument(name)[0] for name in _RESULTS}
    # All but Cutout, whose place is random.
    self.assertLen(operations, len(autoaugment.OPERATIONS) - 1)

  @parameterized.parameters(*_RESULTS)
  def test_numpy_gives_the_same_bits(self, name):
    operation, argument = operation_and_argument(name)
    image = _OPS['image'].copy()
    result = autoaugment.apply_operation(image, operation, argument)
    self.assertEqual(result.dtype, np.uint8)
    np.testing.assert_array_equal(result, _OPS[name])
    np.testing.assert_array_equal(image, _OPS['image'])  # Not in place.

  def test_compiled_jax_gives_the_same_bits(self):
    # One program: a fused multiply-add somewhere in it would be seen.
    cases = [(*operation_and_argument(name), _OPS[name]) for name in _RESULTS]
    operations, arguments, expected = map(np.array, zip(*cases))
    image = jnp.asarray(_OPS['image'])

    @jax.jit
    def apply_all(operations, arguments):
      return jax.lax.map(
        lambda x: autoaugment.apply_operation(image, *x),
        (operations, arguments),
      )

    result = np.asarray(apply_all(operations, np.float32(arguments)))
    for name, mine, theirs in zip(_RESULTS, result, expected):
      np.testing.assert_array_equal(mine, theirs, name)

  def test_blend_beyond_the_image_is_clipped(self):
    low, high = np.full((1, 1, 1), 100, np.uint8), np.full((1, 1, 1), 200)
    high = high.astype(np.uint8)
    for factor, expected in ((0, 100), (0.5, 150), (1, 200), (1.9, 255)):
      self.assertEqual(image_ops.blend(low, high, factor).item(), expected)
    self.assertEqual(image_ops.blend(high, low, 3.0).item(), 0)

  def test_cutout(self):
    image = np.zeros((10, 12, 3), np.uint8)
    result = image_ops.cutout(image, 2, 1, 6)
    expected = image.copy()
    expected[:3, 4:8] = image_ops.FILL
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(image_ops.cutout(image, 0, 5, 5), image)

  def test_levels(self):
    for operation, level, expected in (
      ('Rotate', 10, 30),
      ('ShearX', 4, 0.12),
      ('TranslateY', 9, 225),
      ('Posterize', 2, 0),
      ('Solarize', 3, 76),
      ('SolarizeAdd', 7, 77),
      ('Color', 9, 1.72),
      ('Cutout', 10, 100),
    ):
      argument = autoaugment.level_to_argument(operation, level)
      self.assertAlmostEqual(argument, expected, msg=operation)
    with self.assertRaisesRegex(ValueError, "'Blur'.*AutoContrast"):
      autoaugment.level_to_argument('Blur', 1)


class PolicyTest(absltest.TestCase):
  def draws(self, count):
    """The same count of draws on the host and in JAX."""
    rng = np.random.default_rng(0)
    host = [autoaugment.draw_v0(rng) for _ in range(count)]
    keys = jax.random.split(jax.random.key(0), count)
    traced = jax.jit(jax.vmap(autoaugment.draw_v0))(keys)
    stacked = {name: np.array([d[name] for d in host]) for name in host[0]}
    return stacked, jax.tree.map(np.asarray, traced)

  def test_draws(self):
    count = 10_000
    for drawn in self.draws(count):
      seen = collections.Counter(drawn['policy'].tolist())
      self.assertLen(seen, 25)
      expected = count / 25
      chi_square = sum((n - expected) ** 2 / expected for n in seen.values())
      self.assertLess(chi_square, 51.18)  # 24 degrees of freedom, p = .001.
      for k in range(25):
        mine = drawn['policy'] == k
        for position, (name, p, level) in enumerate(autoaugment.POLICY_V0[k]):
          applied = drawn['applied'][mine, position].mean()
          # Five deviations of a mean over 400.
          self.assertAlmostEqual(applied, p, delta=5 * 0.5 / 20, msg=(k, name))
          if p in (0, 1):
            self.assertEqual(applied, p)
          size = autoaugment.level_to_argument(name, level)
          arguments = drawn['argument'][mine, position]
          np.testing.assert_allclose(abs(arguments), size, rtol=1e-6)
          negative = (arguments < 0).mean()
          if name in autoaugment.SIGNED and size:
            self.assertBetween(negative, 0.5 - 0.125, 0.5 + 0.125)
          else:
            self.assertEqual(negative, 0)

  def test_host_applies_what_it_drew(self):
    image = _OPS['image']
    for seed in range(40):
      drawn = autoaugment.draw_v0(np.random.default_rng(seed))
      expected = image
      for k in range(2):
        if drawn['applied'][k]:
          expected = autoaugment.apply_operation(
            expected, drawn['operation'][k], drawn['argument'][k]
          )
      result = autoaugment.autoaugment_v0(np.random.default_rng(seed), image)
      np.testing.assert_array_equal(result, expected)

  def test_jax_applies_what_it_drew(self):
    # jit and vmap of keys and images, against NumPy one by one.
    keys = jax.random.split(jax.random.key(3), 12)
    images = np.stack([np.roll(_OPS['image'], k, 1) for k in range(12)])
    results = jax.jit(jax.vmap(autoaugment.autoaugment_v0))(keys, images)
    changed = 0
    for key, image, result in zip(keys, images, results):
      drawn = jax.tree.map(np.asarray, autoaugment.draw_v0(key))
      expected = image
      for k in range(2):
        if drawn['applied'][k]:
          expected = autoaugment.apply_operation(
            expected, drawn['operation'][k], drawn['argument'][k]
          )
      np.testing.assert_array_equal(result, expected)
      changed += (expected != image).any()
    self.assertGreater(changed, 4)

  def test_randaugment(self):
    image = _OPS['image']
    rng = np.random.default_rng(0)
    results = [random_augment.randaugment(rng, image, 2, 9) for _ in range(20)]
    changed = np.mean([(r != image).any() for r in results])
    self.assertGreater(changed, 0.8)
    for result in results:
      self.assertEqual((result.shape, result.dtype), (image.shape, np.uint8))
    same = random_augment.randaugment(rng, image, 0, 9)
    np.testing.assert_array_equal(same, image)
    # Each operation is one of the sixteen, at the level.
    known = []
    arguments, signed = random_augment._table(9)
    for operation, argument in enumerate(arguments):
      if autoaugment.OPERATIONS[operation] == 'Cutout':
        continue
      for sign in (1, -1) if signed[operation] else (1,):
        known.append(
          autoaugment.apply_operation(image, operation, sign * argument)
        )
    found = 0
    for seed in range(30):
      one = random_augment.randaugment(np.random.default_rng(seed), image, 1, 9)
      found += any((one == k).all() for k in known)
    self.assertBetween(found, 24, 30)  # Cutout: one of sixteen.

  def test_randaugment_in_jax(self):
    keys = jax.random.split(jax.random.key(0), 4)
    image = jnp.asarray(_OPS['image'])
    together = jax.jit(
      jax.vmap(lambda key: random_augment.randaugment(key, image, 2, 3))
    )(keys)
    self.assertEqual(together.dtype, jnp.uint8)
    self.assertEqual(together.shape, (4, *image.shape))
    for k in range(3):
      self.assertGreater(int((together[k] != together[k + 1]).sum()), 0)

  def test_bad_input(self):
    rng, image = np.random.default_rng(0), _OPS['image']
    for words, arguments in (
      ('float32.*uint8', (rng, image.astype(np.float32))),
      (r'\[37, 45\].*height', (rng, image[..., 0])),
      ('vmap', (rng, image[None])),
      ('typed key', (rng, jnp.asarray(image))),
    ):
      with self.assertRaisesRegex(ValueError, words):
        autoaugment.autoaugment_v0(*arguments)
    with self.assertRaisesRegex(ValueError, 'magnitude is -1'):
      random_augment.randaugment(rng, image, 2, -1)
    with self.assertRaisesRegex(ValueError, 'num_layers is -2'):
      random_augment.randaugment(rng, image, -2)


if __name__ == '__main__':
  absltest.main()
