"""Leaves that hold several layers, and rates of many kinds for them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxpapers import layca as lib
from jaxpapers.layca import trees
from jaxpapers.layca.rates import decayed
from tests.helpers import goldens


def normal(tag, shape):
  return jnp.asarray(goldens.normal(tag, shape), jnp.float32)


def train(tx, params, tag, steps=3):
  """Parameters after a few jitted steps with gradients that follow from tag."""
  state, update = tx.init(params), jax.jit(tx.update)
  for step in range(steps):
    gradient = jax.tree_util.tree_map_with_path(
      lambda path, p, t=step: normal(f'{tag}{t}{path}', p.shape) + p, params
    )
    updates, state = update(gradient, state, params)
    params = optax.apply_updates(params, updates)
  return params


class StackedTest(parameterized.TestCase):
  @parameterized.parameters(
    ((5, 6, 7), 0, {}),
    ((6, 3, 4, 2), 1, {}),
    ((3, 6, 2, 5), (0, 2), {}),
    ((5, 6, 7), -3, {'project': False}),
    ((5, 6, 7), 0, {'normalize': ('ema', 0.9)}),
  )
  def test_equals_a_loop_over_layers(self, shape, axes, options):
    over = tuple(a % len(shape) for a in np.atleast_1d(axes))
    kept = [n if a in over else 1 for a, n in enumerate(shape)]
    scale = 10.0 ** goldens.rng('scales').uniform(-2, 2, kept)
    params = normal('stack', shape) * jnp.asarray(scale, jnp.float32)
    tx = lib.layca(3.0**-3, layer_axes=axes, **options)
    gradients = [normal(f'g{i}', shape) for i in range(3)]

    def run(tx, w, gradients):
      state = tx.init(w)
      for g in gradients:
        updates, state = tx.update(g, state, w)
        w = w + updates
      return w, state

    stacked, state = jax.jit(lambda w, g: run(tx, w, g))(params, gradients)
    self.assertEqual(list(state.target_norm.shape), kept)
    front = tuple(range(len(over)))

    def layers(x):
      x = jnp.moveaxis(x, over, front)
      return x.reshape(-1, *x.shape[len(over) :])

    alone = lib.layca(3.0**-3, **options)
    expected, _ = jax.jit(jax.vmap(lambda w, g: run(alone, w, g)))(
      layers(params), [layers(g) for g in gradients]
    )
    size = jnp.linalg.norm(expected.reshape(len(expected), -1), axis=1)
    error = jnp.linalg.norm(
      (layers(stacked) - expected).reshape(len(expected), -1), axis=1
    )
    np.testing.assert_array_less(error / size, 1e-6)

  def test_a_stack_taken_for_one_layer_turns_wrongly(self):
    # Layers of scale .1 and 10: why layer_axes has to be given.
    w = normal('w', (2, 30, 20)) * jnp.asarray([0.1, 10]).reshape(2, 1, 1)
    g = normal('g', (2, 30, 20))

    def tangents(**options):
      tx = lib.layca(3.0**-3, **options)
      updates, _ = tx.update(g, tx.init(w), w)
      return lib.step_tangent(w, w + updates, layer_axes=0)

    np.testing.assert_allclose(tangents(layer_axes=0), [3.0**-3] * 2, rtol=1e-4)
    naive = tangents()
    self.assertGreater(naive[0], 1.0)
    self.assertLess(naive[1], 0.03)

  def test_ways_to_give_the_axes(self):
    params = {
      'a': {'kernel': normal('a', (4, 3, 2))},
      'b': {'kernel': normal('b', (3, 2))},
    }
    expected = train(
      lib.layca(0.1, layer_axes=lambda path, _: 0 if 'a/' in path else None),
      params,
      'g',
    )
    for axes in (
      {'a': 0, 'b': None},
      {'a': {'kernel': 0}, 'b': ()},
      {'a/kernel': (0,), 'b/kernel': None},
    ):
      actual = train(lib.layca(0.1, layer_axes=axes), params, 'g')
      jax.tree.map(np.testing.assert_array_equal, actual, expected)
    for axes, message in (
      ({'a': 0}, "no entry for 'b/kernel'"),
      ({'a': 0, 'b': None, 'c': 1}, "entry for 'c'"),
      (2, "out|'b/kernel' of shape"),
      ((0, 1), 'lists all axes'),
      ((0, -3), "'b/kernel'|twice"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        lib.layca(0.1, layer_axes=axes).init(params)
    with self.assertRaisesRegex(TypeError, 'static_args'):
      lib.layca(0.1, layer_axes=jnp.asarray(0)).init(params)

  def test_axes_from_flax_names(self):
    import flax.linen as nn

    class Block(nn.Module):
      @nn.compact
      def __call__(self, x, _):
        dense = nn.Dense(
          4,
          use_bias=False,
          kernel_init=nn.with_partitioning(
            nn.initializers.lecun_normal(), ('in', 'out')
          ),
        )
        return dense(x), None

    class Net(nn.Module):
      @nn.compact
      def __call__(self, x):
        scan = nn.scan(
          Block,
          variable_axes={'params': 1},
          split_rngs={'params': True},
          length=3,
          metadata_params={nn.PARTITION_NAME: 'layers'},
        )
        x, _ = scan(name='blocks')(x, None)
        return nn.Dense(2, use_bias=False, name='head')(x)

    boxed = Net().init(jax.random.key(0), jnp.ones((1, 4)))['params']
    axes = lib.stacked_axes(boxed)
    self.assertEqual(axes, {'blocks/Dense_0/kernel': (1,), 'head/kernel': None})
    # Boxed and unboxed trees have the same names.
    for params in (boxed, nn.unbox(boxed)):
      state = lib.layca(0.1, layer_axes=axes).init(params)
      shapes = [x.shape for x in jax.tree.leaves(state.target_norm)]
      self.assertEqual(shapes, [(1, 3, 1), (1, 1)])
    with self.assertRaisesRegex(ValueError, "no axis named 'layers'"):
      lib.stacked_axes(nn.unbox(boxed))


class RatesTest(parameterized.TestCase):
  def _tangents(self, learning_rate, steps=4, **options):
    """Tangents of each step, by path and layer."""
    params = {
      'a': {'kernel': normal('a', (3, 8, 7))},
      'b': {'kernel': normal('b', (9, 8))},
    }
    axes = {'a': 0, 'b': None}
    tx = lib.layca(learning_rate, layer_axes=axes, **options)
    state, update, out = tx.init(params), jax.jit(tx.update), []
    for step in range(steps):
      gradient = jax.tree.map(lambda p, t=step: normal(f'{t}', p.shape), params)
      updates, state = update(gradient, state, params)
      new = optax.apply_updates(params, updates)
      out.append(lib.step_tangent(params, new, axes))
      params = new
    return (
      np.stack([t['a']['kernel'] for t in out]),
      np.stack([t['b']['kernel'] for t in out]),
    )

  def _check(self, tangents, a, b):
    np.testing.assert_allclose(tangents[0], a, rtol=1e-4)
    np.testing.assert_allclose(tangents[1], b, rtol=1e-4)

  def test_prefix_trees_of_numbers_and_schedules(self):
    def schedule(count):
      return 0.1 / (count + 1)

    steps = np.asarray([0.1, 0.05, 0.1 / 3, 0.025])
    for rates in ({'a': schedule, 'b': 0.2}, {'a/kernel': schedule, 'b': 0.2}):
      self._check(self._tangents(rates), steps[:, None] * np.ones(3), 0.2)
    self._check(self._tangents(schedule), steps[:, None] * np.ones(3), steps)

  def test_one_rate_per_stacked_layer(self):
    each = np.asarray([0.1, 0.2, 0.3])
    for value in (each, each.reshape(3, 1, 1)):
      got = self._tangents(0.5, multipliers={'a': value, 'b': 0.1})
      self._check(got, np.tile(0.5 * each, (4, 1)), 0.05)
    rates = {'a': each.reshape(3, 1, 1), 'b': 0.1}
    self._check(self._tangents(rates), np.tile(each, (4, 1)), 0.1)

  def test_one_learning_rate_per_stacked_layer(self):
    # A table of as many steps is given as a schedule.
    each = np.asarray([0.1, 0.2, 0.3])
    got = self._tangents({'a': each, 'b': 0.1})
    self._check(got, np.tile(each, (4, 1)), 0.1)
    got = self._tangents({'a': lib.replay_schedule(each), 'b': 0.1})
    self._check(got, each[[0, 1, 2, 2], None] * np.ones(3), 0.1)
    # Of two steps for three layers, and of steps where nothing is stacked.
    got = self._tangents({'a': each[:2], 'b': each})
    steps = each[[0, 1, 2, 2]]
    self._check(got, each[[0, 1, 1, 1], None] * np.ones(3), steps)

  def test_decay_of_arrays(self):
    each = np.asarray([0.1, 0.2, 0.3])
    table = np.asarray([[0.1, 0.2, 0.3], [0.3, 0.1, 0.2]])
    decay = 1 / (1 + 0.5 * np.arange(4))
    for rates, expected in (
      ({'a': each, 'b': 0.1}, np.tile(each, (4, 1))),
      ({'a': table, 'b': 0.1}, table[[0, 1, 1, 1]]),
    ):
      got = self._tangents(decayed(rates, 0.5))
      self._check(got, expected * decay[:, None], 0.1 * decay)

  def test_replayed_tables(self):
    table = np.asarray([[0.1, 0.2, 0.3], [0.3, 0.1, 0.2]])
    rows = table[[0, 1, 1, 1]]
    got = self._tangents({'a': table, 'b': table[:, 0]})
    self._check(got, rows, rows[:, 0])
    schedules = lib.replay_schedules(table[:, :2], ['b/kernel', 'a/kernel'])
    self._check(
      self._tangents(schedules), rows[:, [1]] * np.ones(3), rows[:, 0]
    )

  def test_what_does_not_fit(self):
    for rates, message in (
      ({'a': 0.1}, "learning_rate has no entry for 'b/kernel'"),
      ({'a': 0.1, 'b': 0.1, 'bb': 1.0}, "entry for 'bb'"),
      ({'a': np.ones((5, 4)), 'b': 0.1}, r"'a/kernel' has shape \(4,\)"),
      (np.ones((2, 2)), 'replay_schedules'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        self._tangents(rates, steps=1)
    with self.assertRaisesRegex(ValueError, 'multipliers has no entry'):
      self._tangents(0.1, steps=1, multipliers={'a': 1.0})
    with self.assertRaisesRegex(ValueError, r'\[steps, 3\]'):
      lib.replay_schedules(np.ones((4, 2)), ['a', 'b', 'c'])
    with self.assertRaisesRegex(ValueError, r'shape \(0,\)'):
      lib.replay_schedule([])

  def test_schedules_of_the_paper(self):
    # C10-CNN1: 100 epochs of 351 steps, a fifth at epochs 80, 90 and 97.
    rate = lib.keras_step_schedule(3.0**-3, 0.2, (80, 90, 97), 351)
    for epoch, drops in ((0, 0), (79.99, 0), (80, 1), (90, 2), (97, 3)):
      value = float(jax.jit(rate)(int(epoch * 351)))
      self.assertAlmostEqual(value, 3.0**-3 * 0.2**drops, delta=1e-8)
    # Keras: f = batch / (W steps per epoch), lr f + lr / 10 (1 - f).
    warm = lib.linear_warmup_from_tenth(rate, 5 * 351)
    for step in (0, 100, 1754, 1755, 90 * 351):
      f = min(step / 1755, 1.0)
      expected = float(rate(step)) * (f + (1 - f) / 10)
      self.assertAlmostEqual(float(warm(step)), expected, delta=1e-8)
    self.assertEqual(lib.linear_warmup_from_tenth(0.5, 0)(0), 0.5)
    with self.assertRaisesRegex(ValueError, 'steps_per_epoch is 0'):
      lib.keras_step_schedule(1.0, 0.2, (1,), 0)
    with self.assertRaisesRegex(ValueError, 'warmup_steps is -1'):
      lib.linear_warmup_from_tenth(1.0, -1)


class AbsentLeavesTest(absltest.TestCase):
  def test_none_and_masked_leaves_pass(self):
    w = normal('w', (4, 3))
    params = {'a': None, 'b': optax.MaskedNode(), 'c': w, 'd': w}
    gradient = {'a': None, 'b': optax.MaskedNode(), 'c': w[::-1], 'd': None}
    tx = lib.layca(0.1, multipliers={'c': 1.0, 'd': 1.0, 'b': 2.0})
    updates, state = tx.update(gradient, tx.init(params), params)
    self.assertIsNone(updates['a'])
    self.assertIsNone(updates['d'])
    self.assertEqual(updates['b'], optax.MaskedNode())
    alone, _ = lib.layca(0.1).update(w[::-1], lib.layca(0.1).init(w), w)
    np.testing.assert_allclose(updates['c'], alone, atol=1e-7)
    self.assertEqual(
      jax.tree.structure(state), jax.tree.structure(tx.init(params))
    )

  def test_names(self):
    tree = {'a': [jnp.ones(2), (jnp.ones(2),)], 'b/c': jnp.ones(2)}
    self.assertEqual(trees.flatten(tree)[0], ['a/0', 'a/1/0', 'b/c'])
    for name, is_kernel in (
      ('Conv_0/kernel', True),
      ('depthwise_kernel', True),
      ('kernels/bias', False),
      ('Embed_0/embedding', False),
    ):
      self.assertEqual(lib.is_kernel(name), is_kernel)


if __name__ == '__main__':
  absltest.main()
