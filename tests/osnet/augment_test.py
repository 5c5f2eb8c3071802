import json
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.osnet import augment
from tests.helpers import goldens

STATISTICS = json.loads(
  (goldens.TESTDATA / 'osnet' / 'augmentation_stats.json').read_text()
)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class StatisticsTest(parameterized.TestCase):
  """Against 20,000 draws of torchreid; 5 standard errors of the difference."""

  def assert_mean(self, draws, expected, n=20_000):
    error = np.std(draws) * math.sqrt(1 / len(draws) + 1 / n)
    self.assertLess(abs(np.mean(draws) - expected), 5 * error)

  def assert_quantiles(self, draws, expected, n=20_000):
    for q, value in zip(QUANTILES, expected, strict=True):
      error = math.sqrt(q * (1 - q) * (1 / len(draws) + 1 / n))
      # Sizes are whole pixels: the golden value is one of the draws.
      below, until = np.mean(draws < value), np.mean(draws <= value)
      self.assertLess(below - 5 * error, q)
      self.assertGreater(until + 5 * error, q)

  def boxes(self, area, aspect):
    keys = jax.random.split(jax.random.key(1), 20_000)
    draw = jax.vmap(
      lambda key: augment._random_box(key, 256, 128, area, aspect, 100)
    )
    return np.asarray(jax.jit(draw)(keys)).T

  def test_boxes_of_erasing(self):
    golden = STATISTICS['random_erasing_256x128']
    top, left, h, w = self.boxes((0.02, 0.4), (0.3, 1 / 0.3))
    self.assert_mean(h * w / (256 * 128), golden['area_mean'])
    self.assert_quantiles(h * w / (256 * 128), golden['area_q'])
    self.assert_quantiles(h / w, golden['aspect_hw_q'])
    for draws, name in (
      (top, 'top_mean'),
      (left, 'left_mean'),
      (h, 'h_mean'),
      (w, 'w_mean'),
    ):
      self.assert_mean(draws, golden[name])
    self.assertEqual((top + h).max(), 256)
    self.assertEqual((left + w).max(), 128)

  def test_boxes_of_patches(self):
    golden = STATISTICS['random_patch_wh_256x128']
    _, _, h, w = self.boxes((0.01, 0.5), (0.1, 10.0))
    self.assertEqual((h == 0).mean(), golden['none'])
    self.assert_quantiles(h * w / (256 * 128), golden['area_q'])
    self.assert_quantiles(h / w, golden['h_over_w_q'])
    self.assert_mean(h, golden['h_mean'])
    self.assert_mean(w, golden['w_mean'])

  @parameterized.parameters((0, 'y', 32), (1, 'x', 16))
  def test_offsets_of_translation(self, axis, name, most):
    golden = STATISTICS['random_2d_translation_256x128']
    size = (256, 128)[axis]
    # A ramp tells where each part came from; the other axis can be short.
    ramp = jnp.arange(size, dtype=jnp.float32)
    shape = [8000, 8, 8, 1]
    shape[1 + axis] = size
    view = [1, 1, 1, 1]
    view[1 + axis] = size
    ramp = jnp.broadcast_to(ramp.reshape(view), shape)
    moved = jax.jit(augment.random_translate)(jax.random.key(2), ramp)
    middle = [slice(None), 0, 0, 0]
    middle[1 + axis] = size // 2
    value = np.asarray(moved[tuple(middle)])
    plain = value == size // 2
    self.assert_mean(plain, golden['plain_resize'])
    offsets = (value[~plain] + 0.5) * 1.125 - 0.5 - size // 2
    whole = np.round(offsets)
    np.testing.assert_allclose(offsets, whole, atol=1e-3)
    low, high, mean = golden[f'{name}_min_max_mean']
    self.assertEqual((whole.min(), whole.max()), (low, high))
    self.assertEqual(high, most)
    n = 20_000 * 0.5
    self.assert_mean(whole, mean, n)
    self.assert_mean(whole == 0, golden[f'p_{name}0'], n)
    self.assert_mean(whole == 1, golden[f'p_{name}1'], n)

  def test_erased_share(self):
    images = jnp.ones((4000, 16, 8, 1))
    erased = jax.jit(augment.random_erase)(jax.random.key(3), images)
    changed = (np.asarray(erased) == 0).any((1, 2, 3))
    self.assert_mean(changed, STATISTICS['random_erasing_256x128']['applied'])

  def test_patch_pool_warms_up(self):
    golden = STATISTICS['random_patch_call']
    pool = augment.RandomPatchPool(capacity=3000)
    images = jax.random.randint(
      jax.random.key(4), (3000, 24, 12, 3), 0, 256, jnp.int32
    ).astype(jnp.uint8)
    state = pool.init((100, 24, 12, 3), jnp.uint8)
    step = jax.jit(pool)
    changed = []
    for i in range(30):
      batch = images[100 * i : 100 * (i + 1)]
      state, new = step(state, jax.random.fold_in(jax.random.key(5), i), batch)
      changed.append(np.asarray((new != batch).any((1, 2, 3))))
    changed = np.concatenate(changed)
    self.assertEqual(int(state.count), golden['pool_after'])
    first = np.flatnonzero(changed)[0]
    # The hundredth patch is that of image 99; each later image has a chance
    # of one half, so 20 images without one would be a miracle.
    self.assertBetween(first, golden['first_changed_index_at_least'], 99 + 20)
    self.assert_mean(changed, golden['images_visibly_changed'], golden['n'])


class TransformsTest(parameterized.TestCase):
  FUNCTIONS = (
    ('flip', augment.random_flip),
    ('translate', augment.random_translate),
    ('erase', augment.random_erase),
    ('jitter', augment.color_jitter),
  )

  def images(self, dtype=jnp.uint8):
    images = goldens.rng('osnet augment').integers(0, 256, (16, 32, 16, 3))
    return jnp.asarray(images).astype(dtype)

  @parameterized.named_parameters(*FUNCTIONS)
  def test_same_key_same_images(self, function):
    # Erasing comes after normalisation.
    dtype = jnp.float32 if function is augment.random_erase else jnp.uint8
    function, images = jax.jit(function), self.images(dtype)
    first = function(jax.random.key(0), images)
    again = function(jax.random.key(0), images)
    other = function(jax.random.key(1), images)
    self.assertEqual((first.shape, first.dtype), (images.shape, dtype))
    np.testing.assert_array_equal(first, again)
    self.assertTrue((first != other).any())
    # What an image draws depends on its place in the batch only, so a batch
    # that is spread over a mesh gives that of one device.
    half = function(jax.random.key(0), images.at[8:].set(0))
    np.testing.assert_array_equal(first[:8], half[:8])

  def test_probabilities(self):
    images = self.images()
    never = augment.random_flip(jax.random.key(0), images, 0.0)
    np.testing.assert_array_equal(never, images)
    always = augment.random_flip(jax.random.key(0), images, 1.0)
    np.testing.assert_array_equal(always, images[:, :, ::-1])
    for _, function in self.FUNCTIONS[:3]:
      with self.assertRaisesRegex(ValueError, 'probability is 1.5'):
        function(jax.random.key(0), images, 1.5)

  def test_erase_paints_one_box(self):
    images = 2 + jnp.zeros((64, 32, 16, 3))
    erase = jax.jit(
      lambda key: augment.random_erase(key, images, 1.0, fill='torchreid')
    )
    erased = np.asarray(erase(jax.random.key(0)))
    for image in erased:
      box = image[..., 0] != 2
      rows, columns = box.any(1), box.any(0)
      # One box: what is painted is all rows x all columns.
      np.testing.assert_array_equal(box, rows[:, None] & columns[None])
      self.assertBetween(box.mean(), 0.015, 0.45)
      np.testing.assert_allclose(
        image[box], np.broadcast_to(augment.MEAN, (box.sum(), 3)), atol=1e-7
      )
    with self.assertRaisesRegex(ValueError, "fill is 'mean'"):
      augment.random_erase(jax.random.key(0), images, fill='mean')

  def test_jitter_by_hand(self):
    images = self.images(jnp.float32)[:8]
    key = jax.random.key(7)
    dark = augment.color_jitter(key, images, 0.2, 0.0)
    ratio = np.asarray(dark[:, 3, 4, 1] / images[:, 3, 4, 1])
    clipped = np.asarray(dark[:, 3, 4, 1]) == 255
    self.assertTrue(((ratio >= 0.8) & (ratio <= 1.2) | clipped).all())
    self.assertGreater(np.ptp(ratio), 0.05)
    # Grey has no colour to be more or less of, and no hue to turn.
    grey = jnp.broadcast_to(images[..., :1], images.shape)
    turned = augment.color_jitter(key, grey, 0.0, 0.0, 0.5, 0.5)
    np.testing.assert_allclose(turned, grey, atol=1e-3)
    # A third of a turn moves red to green, whatever its strength.
    red = jnp.zeros((1, 2, 2, 3)).at[..., 0].set(200.0)
    hsv = augment._turn(augment._to_hsv(red / 255), 1 / 3)
    np.testing.assert_allclose(
      255 * augment._to_rgb(hsv), red[..., [1, 0, 2]], atol=1e-3
    )
    np.testing.assert_allclose(
      255 * augment._to_rgb(augment._to_hsv(images / 255)), images, atol=1e-3
    )
    with self.assertRaisesRegex(ValueError, 'hue is 0.7'):
      augment.color_jitter(key, images, hue=0.7)
    with self.assertRaisesRegex(ValueError, 'three channels'):
      augment.color_jitter(key, images[..., :1])

  def test_a_single_image_needs_an_axis(self):
    for _, function in self.FUNCTIONS:
      with self.assertRaisesRegex(ValueError, r'shape \(32, 16, 3\)'):
        function(jax.random.key(0), self.images()[0])

  def test_normalize(self):
    image = jnp.asarray([[[[0, 128, 255]]]], jnp.uint8)
    expected = (np.array([0, 128, 255]) / 255 - augment.MEAN) / augment.STD
    found = augment.normalize(image)[0, 0, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


class PatchPoolTest(absltest.TestCase):
  def test_pastes_what_other_images_gave(self):
    # Images of one colour each: what is pasted has the colour of an image
    # that came before, or is a black corner.
    pool = augment.RandomPatchPool(capacity=16, warm_up=8, probability=1.0)
    shape = (8, 32, 16, 1)
    state = pool.init(shape, jnp.uint8)
    step = jax.jit(pool)
    seen = set()
    for i in range(6):
      colours = 1 + 8 * i + np.arange(8)
      batch = jnp.broadcast_to(
        jnp.asarray(colours, jnp.uint8)[:, None, None, None], shape
      )
      state, new = step(state, jax.random.key(i), batch)
      for number, image in zip(colours, np.asarray(new)):
        pasted = set(np.unique(image)) - {number, 0}
        seen |= pasted
        # Only the newest 16, the image's own among them.
        self.assertTrue(all(number - 16 < c <= number for c in pasted), pasted)
      if i == 0:
        np.testing.assert_array_equal(new[:7], batch[:7])
    self.assertGreater(len(seen), 15)
    self.assertTrue(any(c % 8 != 1 for c in seen))

  def test_patch_is_upright_or_mirrored(self):
    pool = augment.RandomPatchPool(
      capacity=4, warm_up=1, probability=1.0, rotate_probability=0.0
    )
    ramp = 1 + jnp.arange(32 * 16).reshape(1, 32, 16, 1).astype(jnp.float32)
    state = pool.init((1, 32, 16, 1), jnp.float32)
    signs = set()
    step = jax.jit(pool)
    for i in range(8):
      state, new = step(state, jax.random.key(i), ramp)
      if int(state.count) > 1:
        changed = np.asarray(new != ramp)[0, ..., 0]
        steps = np.diff(np.asarray(new)[0, ..., 0], axis=1)
        inside = changed[:, 1:] & changed[:, :-1]
        signs |= set(np.unique(steps[inside]))
    self.assertEqual(signs, {1.0, -1.0})

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, 'warm_up is 9'):
      augment.RandomPatchPool(capacity=8, warm_up=9)
    pool = augment.RandomPatchPool(capacity=8, warm_up=4)
    state = pool.init((4, 16, 8, 3), jnp.uint8)
    with self.assertRaisesRegex(ValueError, r'the pool has \[12, 16, 8, 3\]'):
      pool(state, jax.random.key(0), jnp.zeros((4, 16, 9, 3), jnp.uint8))


if __name__ == '__main__':
  absltest.main()
