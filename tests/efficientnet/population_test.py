"""Masked populations against the networks by themselves."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest

from jaxpapers.efficientnet import nas, proxy
from jaxpapers.efficientnet.search_space import SKIPS
from tests.helpers import data, devices

# Odd and even sides, layers that keep or change channels and size.
SPACE = nas.SearchSpace(
  ((8, 16), (1, 1)),
  strides=(1, 2),
  divisor=4,
  stem=8,
  stem_stride=1,
  head=16,
  num_classes=3,
  resolution=9,
)
IMAGES = 4
# The same sums in another order, and through batched products; logits are of
# the order of 1.
CLOSE = {'rtol': 1e-5, 'atol': 1e-5}


def inputs():
  x = jax.random.normal(jax.random.key(7), (IMAGES, 9, 9, 3))
  return x, jnp.arange(IMAGES) % SPACE.num_classes


def random_variables(members, tokens):
  """All weights away from what they begin with, norms and biases included."""
  # 'lax' compiles faster; `nn` has tests of the other forms.
  population = nas.MaskedPopulation(SPACE, members, depthwise_impl='lax')
  variables = population.init(jax.random.key(0), inputs()[0], tokens)
  leaves, structure = jax.tree.flatten(variables)
  rng = np.random.default_rng(0)
  moved = [
    x * rng.uniform(0.8, 1.2, x.shape).astype(np.float32)
    + 0.1 * (x.ndim == 2) * rng.uniform(0, 1, x.shape).astype(np.float32)
    for x in leaves
  ]
  return population, jax.tree.unflatten(structure, moved)


@functools.cache
def masked(members):
  """Logits in evaluation and training, and gradients, of a population."""
  tokens = SPACE.sample(3, members)
  tokens[: len(SKIPS), :, 3] = np.arange(3)[:, None]
  tokens[:4, :, 0] = np.arange(4)[:, None]
  # All kinds of layers and skips, and layers that are not there.
  tokens[0] = (0, 0, 1, 2, 2, 2), (1, 1, 1, 1, 1, 1)
  tokens[1] = (3, 1, 0, 1, 0, 2), (2, 0, 1, 2, 0, 1)
  population, variables = random_variables(members, tokens)
  x, labels = inputs()

  @jax.jit
  def all_of(variables):
    def loss_of(params):
      logits, new = population.apply(
        {**variables, 'params': params}, x, tokens, train=True
      )
      log_probs = jax.nn.log_softmax(logits)
      picked = log_probs[:, jnp.arange(IMAGES), labels]
      return -picked.mean(1).sum(), (logits, new['batch_stats'])

    grads, (logits, stats) = jax.grad(loss_of, has_aux=True)(
      variables['params']
    )
    return population.apply(variables, x, tokens), logits, stats, grads

  return tokens, variables, jax.device_get(all_of(variables))


def alone(tokens, variables):
  """The same of one network by itself."""
  model = nas.SearchNetwork(
    SPACE, tuple(tokens.ravel().tolist()), depthwise_impl='lax'
  )
  x, labels = inputs()

  @jax.jit
  def all_of(variables):
    def loss_of(params):
      logits, new = model.apply(
        {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
      )
      log_probs = jax.nn.log_softmax(logits)
      loss = -log_probs[jnp.arange(IMAGES), labels].mean()
      return loss, (logits, new['batch_stats'])

    grads, (logits, stats) = jax.grad(loss_of, has_aux=True)(
      variables['params']
    )
    return model.apply(variables, x), logits, stats, grads

  return jax.device_get(all_of(variables))


def member(tree, index):
  return jax.tree.map(lambda leaf: leaf[index], tree)


class MaskedTest(absltest.TestCase):
  def check_member(self, index, members):
    tokens, variables, results = masked(members)
    eval_logits, logits, stats, grads = member(results, index)
    own = nas.extract(SPACE, member(variables, index), tokens[index])
    expected = alone(tokens[index], own)
    np.testing.assert_allclose(eval_logits, expected[0], **CLOSE)
    np.testing.assert_allclose(logits, expected[1], **CLOSE)
    cut = nas.extract(
      SPACE, {'params': grads, 'batch_stats': stats}, tokens[index]
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
      cut,
      {'params': expected[3], 'batch_stats': expected[2]},
    )
    # What the network by itself does not have gets no gradient: the sums of
    # absolute gradients agree, so that nothing is left outside the cut.
    inside = sum(float(np.abs(g).sum()) for g in jax.tree.leaves(cut['params']))
    total = sum(float(np.abs(g).sum()) for g in jax.tree.leaves(grads))
    self.assertAlmostEqual(total, inside, delta=1e-5 * inside)
    self.assertGreater(inside, 0)

  @pytest.mark.nightly
  def test_equal_to_the_network_alone(self):
    for index in (0, 1):
      self.check_member(index, 20)

  @pytest.mark.nightly
  def test_equal_to_twenty_networks_alone(self):
    for index in range(20):
      self.check_member(index, 20)

  @pytest.mark.nightly
  def test_outside_the_mask_gradients_are_zero(self):
    tokens, _, (_, _, _, grads) = masked(20)
    for index in range(20):
      for block, row in enumerate(tokens[index]):
        op, kernel, se = row[:3]
        first = member(grads, index)
        name = f'block{block}_layer0'
        full = first[f'{name}_full_conv']['kernel']
        depthwise = first[f'{name}_depthwise_conv']['kernel']
        if op == 0:
          self.assertEqual(np.abs(depthwise).max(), 0)
          self.assertGreater(np.abs(full).max(), 0)
        else:
          self.assertEqual(np.abs(full).max(), 0)
          self.assertGreater(np.abs(depthwise).max(), 0)
        used = full if op == 0 else depthwise
        if kernel == 0:
          ring = used.copy()
          ring[1:4, 1:4] = 0
          self.assertEqual(np.abs(ring).max(), 0)
        prefix = f'{name}_full_' if op == 0 else f'{name}_'
        gate = np.abs(first[f'{prefix}se_expand']['kernel']).max()
        self.assertEqual(gate > 0, bool(se))

  def test_counts_are_those_of_the_network(self):
    for tokens in SPACE.sample(11, 4):
      model = nas.SearchNetwork(SPACE, tuple(tokens.ravel().tolist()))
      shapes = jax.eval_shape(model.init, jax.random.key(0), inputs()[0])
      count = sum(x.size for x in jax.tree.leaves(shapes['params']))
      self.assertEqual(count, SPACE.params(tokens))

  @pytest.mark.slow
  def test_initial_weights_have_the_networks_scale(self):
    tokens = SPACE.sample(5, 2)
    tokens[:, 0, :2] = (3, 0)  # An inverted bottleneck of 3 x 3.
    population = nas.MaskedPopulation(SPACE, 2)
    keys = jax.random.split(jax.random.key(0), 2)
    variables = population.init(keys, inputs()[0], tokens)
    own = nas.extract(SPACE, member(variables, 0), tokens[0])['params']
    kernel = np.asarray(own['block0_layer0_depthwise_conv']['kernel'])
    # sqrt(2) / 3 as in the network alone; 432 numbers: 4 standard errors.
    self.assertAlmostEqual(kernel.std(), 2**0.5 / 3, delta=0.065)
    with self.assertRaisesRegex(ValueError, r'expected \[2, 2, 6\]'):
      population.init(keys, inputs()[0], tokens[:1])


def shapes_task(count=60, side=10):
  """Three classes that the mean colour decides."""
  rng = np.random.default_rng(0)
  labels = np.arange(count, dtype=np.int32) % 3
  images = rng.integers(0, 120, (count, side, side, 3))
  images[np.arange(count), :, :, labels] += 100
  return proxy.Images(images.astype(np.uint8), labels, 3)


class TrainersTest(absltest.TestCase):
  @pytest.mark.nightly
  def test_population_learns(self):
    task = shapes_task()
    recipe = proxy.Recipe(epochs=6, batch_size=20, learning_rate=1e-2)
    trainer = nas.PopulationTrainer(SPACE, 3, task, task, recipe)
    tokens = SPACE.sample(2, 3)
    begin = time.process_time()
    first = trainer(tokens)
    compiled = time.process_time() - begin
    self.assertGreater(first.max(), 0.8)
    begin = time.process_time()
    again = trainer(tokens[:2])
    np.testing.assert_allclose(again, first[:2], atol=0.02)
    # Other tokens and fewer of them: nothing is compiled again.
    self.assertLess(time.process_time() - begin, 0.5 * compiled)

  @pytest.mark.nightly
  def test_population_on_a_mesh(self):
    devices.run(
      """
      import numpy as np
      from jaxpapers import training
      from jaxpapers.efficientnet import nas, proxy
      from tests.efficientnet import population_test

      task = population_test.shapes_task()
      space = nas.SearchSpace(
        ((8,), (1,)), (2,), divisor=4, stem=8, head=16, num_classes=3,
        resolution=10)
      tokens = space.sample(2, 3)
      recipe = proxy.Recipe(epochs=2, batch_size=20, learning_rate=1e-2)
      accuracies = [
        nas.PopulationTrainer(space, 4, task, task, recipe, mesh=mesh)(tokens)
        for mesh in (None, training.make_mesh('population:2,data:2'))]
      # Sums over two devices; an image at the edge may change its class.
      np.testing.assert_allclose(*accuracies, atol=0.05)

      # All members diverge: no accuracies, and no error.
      wild = proxy.Recipe(epochs=3, batch_size=20, learning_rate=1e30)
      mesh = training.make_mesh('data:-1')
      trainer = nas.PopulationTrainer(space, 2, task, task, wild, mesh=mesh)
      assert np.isnan(trainer(tokens[:2])).all()
      """,
      device_count=4,
    )

  def test_images(self):
    task = shapes_task(61)
    train, held = task.split(15)
    self.assertLen(held, 15)
    self.assertLen(train, 46)
    np.testing.assert_array_equal(np.bincount(held.labels), [5, 5, 5])
    small = task.at(5).images.astype(float)
    mean = task.images.reshape(61, 5, 2, 5, 2, 3).mean((2, 4))
    self.assertLess(np.abs(small - mean).max(), 0.51)  # Rounded.
    # Areas of a third of a pixel: the mean of the image stays.
    third = task.at(7).images.mean((1, 2))
    np.testing.assert_allclose(third, task.images.mean((1, 2)), atol=0.6)
    with self.assertRaisesRegex(ValueError, 'count is 61'):
      task.split(61)

  def test_batches_go_on_anywhere(self):
    task = shapes_task()
    recipe = proxy.Recipe(batch_size=20, shift=0.2)
    first = proxy.Batches(task, recipe, 3)
    batches = [next(first) for _ in range(7)]
    other = proxy.Batches(task, recipe, 3)
    other.set_state({'index': 5})
    np.testing.assert_array_equal(next(other)['image'], batches[5]['image'])
    seen = np.concatenate([b['label'] for b in batches[:3]])
    np.testing.assert_array_equal(np.bincount(seen), [20, 20, 20])
    with self.assertRaisesRegex(ValueError, 'batch_size is 100 for 60'):
      proxy.Batches(task, proxy.Recipe(batch_size=100), 0)

  def test_jpegs(self):
    path = data.require('efficientnet', 'cifar10_jpeg_subset.npz')
    train, test = proxy.load_images(path)
    self.assertEqual(train.images.shape, (8000, 32, 32, 3))
    np.testing.assert_array_equal(np.bincount(test.labels), [200] * 10)


if __name__ == '__main__':
  absltest.main()
