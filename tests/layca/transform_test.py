"""Invariants of the rotation, in all the corners of its inputs."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging
from absl.testing import absltest, parameterized

from jaxpapers import layca as lib
from tests.helpers import goldens

normal = goldens.normal


def tangent(old, new):
  """Tangent of the angle between two arrays, in float64."""
  a, b = (np.asarray(x, np.float64).ravel() for x in (old, new))
  along = a @ b / (a @ a)
  return np.linalg.norm(b - along * a) / (along * np.linalg.norm(a))


def norm(x):
  return np.linalg.norm(np.asarray(x, np.float64).ravel())


@functools.cache
def stepper(rate, options):
  """Jitted step: one program per setting and shape."""
  tx = lib.layca(rate, **dict(options))

  @jax.jit
  def step(w, g):
    return optax.apply_updates(w, tx.update(g, tx.init(w), w)[0])

  return step


def one_step(w, g, rate=3.0**-3, **options):
  """float32 weights after one update."""
  step = stepper(rate, tuple(options.items()))
  return step(jnp.asarray(w, jnp.float32), jnp.asarray(g, jnp.float32))


class InvariantsTest(parameterized.TestCase):
  @parameterized.parameters(*range(5))
  def test_angle_and_norm(self, seed):
    # Eight random layers of random rates at once, with each of five bases.
    rng = goldens.rng(f'layca invariants {seed}')
    bases = (
      optax.identity(),
      optax.trace(0.9),
      optax.scale_by_adam(),
      optax.scale_by_rms(eps_in_sqrt=False),
      optax.chain(optax.add_decayed_weights(0.1), optax.trace(0.5, True)),
    )
    params, rates = {}, {}
    for i in range(8):
      shape = tuple(rng.integers(2, 9, rng.integers(1, 5)))
      scale = 10.0 ** rng.uniform(-3, 3)
      params[f'k{i}'] = jnp.asarray(rng.standard_normal(shape) * scale, 'f4')
      rates[f'k{i}'] = float(3.0 ** rng.uniform(-7, 0))
    multipliers = {name: 0.5 for name in params}
    tx = optax.chain(bases[seed], lib.layca(rates, multipliers=multipliers))
    start, state = params, tx.init(params)

    noise = {
      name: jnp.asarray(rng.standard_normal((37, *p.shape)), jnp.float32)
      for name, p in params.items()
    }

    @jax.jit
    def steps(params, state, noise, count):
      def step(i, carry):
        params, state = carry
        gradient = jax.tree.map(lambda n, p: n[i % 37] + p, noise, params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

      return jax.lax.fori_loop(0, count, step, (params, state))

    for count in (1, 1, 997, 1):
      old = params
      params, state = steps(params, state, noise, count)
      if count > 1:
        continue
      for name, rate in rates.items():
        # Weights are stored with 6e-8, which is 3e-4 of an angle of 3^-7 / 2.
        rounding = 6e-8 / rate
        self.assertAlmostEqual(
          tangent(old[name], params[name]) / (rate / 2),
          1,
          delta=1e-4 + rounding,
          msg=f'{name} {params[name].shape} {rate}',
        )
    for name in params:
      drift = norm(params[name]) / norm(start[name]) - 1
      self.assertLess(abs(drift), 1e-6, name)

  def test_scale_of_gradients_does_not_matter(self):
    w, g = normal('w', (12, 7), 0.3), normal('g', (12, 7))
    expected = one_step(w, g)
    for k in range(-30, 16, 3):
      # In float32 already: 10^k g would round in another way in float64.
      scaled = jnp.asarray(g, jnp.float32) * jnp.float32(10.0**k)
      new = one_step(w, scaled)
      error = norm(np.asarray(new) - np.asarray(expected)) / norm(expected)
      self.assertLess(error, 1e-6, k)

  @parameterized.parameters(
    *itertools.product(
      (1e-30, 1e-25, 1e-20, 1e19, 1e25, 1e30), (1e-30, 1, 1e30)
    )
  )
  def test_scale_of_weights_does_not_matter(self, scale, gradient_scale):
    w, g = normal('w', (12, 7), 0.3), normal('g', (12, 7))
    expected = np.asarray(one_step(w, g), np.float64)
    # Numbers above 3e38 / 84 could not be added in any case.
    new = one_step(w * scale, g * gradient_scale)
    self.assertTrue(np.isfinite(new).all())
    error = norm(np.asarray(new, np.float64) / scale - expected)
    self.assertLess(error / norm(expected), 1e-6)

  @parameterized.parameters(
    *itertools.product((1.0, 1e3, 1e6), ((12, 7), (512, 512, 3, 3)))
  )
  def test_radial_gradients_do_not_move(self, factor, shape):
    w = jnp.asarray(normal('w', shape, 0.3), jnp.float32)
    new = one_step(w, factor * w)
    # The original turns by a tangent of 0.011 of rounding noise at 1e3.
    self.assertLess(norm(np.asarray(new) - np.asarray(w)) / norm(w), 1e-6)

  def test_nearly_radial_gradients_turn_by_the_whole_angle(self):
    w, g = normal('w', (300, 70)), normal('g', (300, 70))
    for share in (1e-2, 1e-4, 1e-5):
      new = one_step(w, w + share * g)
      self.assertAlmostEqual(
        tangent(jnp.asarray(w, 'f4'), new) * 27, 1, delta=1e-4
      )
      self.assertAlmostEqual(norm(new) / norm(w), 1, delta=1e-6)

  def test_pure_noise_law(self):
    @jax.jit
    def run(key):
      start = w = jax.random.normal(key, (4096,))
      tx = lib.layca(3.0**-3)

      def step(carry, key):
        w, state = carry
        updates, state = tx.update(jax.random.normal(key, w.shape), state, w)
        return (w + updates, state), None

      keys = jax.random.split(jax.random.fold_in(key, 1), 300)
      (w, _), _ = jax.lax.scan(step, (w, tx.init(w)), keys)
      return lib.layer_rotation(w, start)

    distances = jax.vmap(run)(jax.random.split(jax.random.key(0), 4))
    expected = lib.noise_rotation_curve(3.0**-3, 300)[-1]
    self.assertAlmostEqual(float(expected), 0.1859, delta=5e-5)
    # Standard deviation of one run: about 0.006.
    self.assertAlmostEqual(float(distances.mean()), float(expected), delta=6e-3)


class EdgesTest(parameterized.TestCase):
  @parameterized.product(
    project=(True, False), normalize=('norm', ('ema', 0.9))
  )
  @pytest.mark.slow
  def test_derivative_with_respect_to_a_rate_of_zero(self, project, normalize):
    w, g, probe = (
      jnp.asarray(normal(name, (9, 4)), jnp.float32) for name in 'wgp'
    )

    def update(rate):
      tx = lib.layca(rate, project=project, normalize=normalize)
      return tx.update(g, tx.init(w), w)[0]

    np.testing.assert_array_equal(update(0.0), jnp.zeros_like(w))
    np.testing.assert_array_equal(jax.jit(update)(0.0), jnp.zeros_like(w))
    slope = jax.grad(lambda rate: jnp.vdot(probe, update(rate)))(0.0)
    # To first order -rho ||w|| t / ||t||; the sphere takes what is radial.
    t = np.asarray(g - jnp.vdot(g, w) / jnp.vdot(w, w) * w, np.float64)
    size = norm(g) if not project else norm(t)
    expected = -norm(w) * np.vdot(probe, t) / size
    self.assertAlmostEqual(float(slope) / expected, 1, delta=1e-4)
    # Where nothing turns, there is no slope, and no NaN.
    slope = jax.grad(
      lambda rate: lib.layca(rate).update(0 * g, lib.layca(0.1).init(w), w)[0][
        0, 0
      ]
    )(0.0)
    self.assertEqual(slope, 0)

  def test_the_original_s_defects_are_not_kept(self):
    # All one-step cases of the original with the angle that they should have.
    documented = goldens.load_json('layca', 'edge_cases_original.json')
    w, n = normal('edge|p', (12, 7), 0.3), normal('edge|n', (12, 7))
    cases = {
      'zero_grad': (w, 0 * n),
      'lr_zero': (w, n),
      **{f'radial_grad_x{k}': (w, float(k) * w) for k in ('1', '1e3', '1e6')},
      **{
        f'noise_grad_x{k}': (w, float(k) * n)
        for k in ('1e-3', '1e-7', '1e-9', '1e-12', '1e6', '1e18', '1e20')
      },
      'tiny_kernel_1e-20': (1e-20 * w, n),
      'tiny_kernel_1e-25': (1e-25 * w, n),
      'huge_kernel_1e19': (1e19 * w, n),
    }
    failed = []
    for name, (start, g) in cases.items():
      rate = 0.0 if name == 'lr_zero' else 3.0**-3
      new = one_step(start, g, rate)
      turns = not name.startswith(('zero', 'lr_zero', 'radial'))
      self.assertTrue(np.isfinite(new).all(), name)
      start = jnp.asarray(start, jnp.float32)
      self.assertAlmostEqual(norm(new) / norm(start), 1, delta=1e-6, msg=name)
      self.assertAlmostEqual(
        tangent(start, new), rate if turns else 0, delta=1e-6, msg=name
      )
      before = documented['float32'][name]
      if before['nan'] or abs(before['tan'] - (rate if turns else 0)) > 1e-4:
        failed.append(name)
    # The list is of the paper's code: what this rule is better at.
    self.assertContainsSubset(
      ['noise_grad_x1e-7', 'radial_grad_x1e3', 'tiny_kernel_1e-25'], failed
    )

  @parameterized.parameters(1.0, 1e3)
  def test_large_rates(self, rate):
    w, n = normal('edge|p', (12, 7), 0.3), normal('edge|n', (12, 7))
    new = one_step(w, n, rate)
    self.assertAlmostEqual(norm(new) / norm(w), 1, delta=1e-6)
    # Near a right angle the tangent is as inexact as the cosine is small.
    self.assertAlmostEqual(tangent(w, new) / rate, 1, delta=3e-7 * rate)

  def test_zero_rate_is_exactly_no_motion(self):
    w = jnp.asarray(normal('w', (12, 7)), jnp.float32)
    tx = lib.layca(lambda count: jnp.where(count < 1, 0.1, 0.0))
    state = tx.init(w)
    for step in range(3):
      updates, state = tx.update(jnp.asarray(normal('g', (12, 7))), state, w)
      w = w + updates
      self.assertEqual(bool(jnp.any(updates != 0)), step == 0)

  def test_negative_rate_climbs(self):
    w, g = normal('w', (12, 7)), normal('g', (12, 7))
    down, up = one_step(w, g, 0.1), one_step(w, g, -0.1)
    self.assertAlmostEqual(tangent(w, up), 0.1, delta=1e-6)
    self.assertAlmostEqual(tangent(down, up), 0.2 / (1 - 0.01), delta=1e-5)

  def test_zero_kernel(self):
    params = {'a': jnp.zeros((3, 2)), 'b': jnp.ones((3, 2))}
    tx = lib.layca(0.1)
    with self.assertRaisesRegex(ValueError, r"'a'.*norm 0"):
      tx.init(params)

    @jax.jit
    def step(params, gradients):
      return tx.update(gradients, tx.init(params), params)[0]

    gradient = jnp.asarray(normal('g', (3, 2)), jnp.float32)
    updates = step(params, {'a': gradient, 'b': gradient})
    np.testing.assert_array_equal(updates['a'], 0)
    self.assertTrue((updates['b'] != 0).all())

  @pytest.mark.slow
  def test_nan_stays_in_its_leaf(self):
    params = {'a': jnp.ones((3, 2)), 'b': jnp.ones((3, 2))}
    gradient = jnp.asarray(normal('g', (3, 2)), jnp.float32)
    tx = lib.layca(0.1)
    state = tx.init(params)
    for bad in (np.nan, np.inf):
      updates, new_state = jax.jit(tx.update)(
        {'a': gradient.at[0, 0].set(bad), 'b': gradient}, state, params
      )
      self.assertTrue(np.isnan(updates['a']).all())
      alone, _ = tx.update({'a': gradient, 'b': gradient}, state, params)
      np.testing.assert_allclose(updates['b'], alone['b'], atol=1e-7)
      # One bad gradient does not spoil the state.
      self.assertTrue(np.isfinite(new_state.target_norm['a']).all())

  def test_absolute_threshold_of_the_paper(self):
    # One step of the original stops at |lr g| <= 1e-7; ours if asked to.
    w, n = normal('edge|p', (12, 7), 0.3), normal('edge|n', (12, 7))
    size = norm(n - np.vdot(n, w) / np.vdot(w, w) * w)
    for factor, turns in ((1.01e-7, True), (0.99e-7, False)):
      g = n * factor / (size * 3.0**-3)
      new = one_step(w, g, eps_abs=1e-7)
      self.assertAlmostEqual(tangent(w, new), turns * 3.0**-3, delta=1e-6)
      new = one_step(w, g * 3.0**-3, eps_abs=1e-7, rate_in_direction=True)
      self.assertAlmostEqual(tangent(w, new), turns * 3.0**-3, delta=1e-6)

  @pytest.mark.slow
  def test_target_norm(self):
    w, g = normal('w', (12, 7)), normal('g', (12, 7))
    for radius in (0.5, 200.0):
      new = one_step(w, g, target_norm=radius)
      self.assertAlmostEqual(norm(new) / radius, 1, delta=1e-6)
      self.assertAlmostEqual(tangent(w, new), 3.0**-3, delta=1e-6)
      # Without a rotation too.
      new = one_step(w, 0 * g, target_norm=radius)
      self.assertAlmostEqual(norm(new) / radius, 1, delta=1e-6)
    tx = lib.layca(0.1, target_norm='current')
    w = jnp.asarray(w, jnp.float32)
    state = tx.init(w)
    updates, _ = tx.update(jnp.asarray(g, jnp.float32), state, 3 * w)
    self.assertAlmostEqual(norm(3 * w + updates) / norm(w), 3, delta=1e-5)

  @pytest.mark.slow
  def test_gradient_through_a_step(self):
    w = jnp.asarray(normal('w', (6, 5)), jnp.float32)
    g = jnp.asarray(normal('g', (6, 5)), jnp.float32)

    def after(rate, g, w, options):
      tx = lib.layca(rate, **options)
      updates, _ = tx.update(g, tx.init(w), w)
      return jnp.sum((w + updates) * jnp.arange(30.0).reshape(6, 5))

    options = ({}, {'project': False}, {'normalize': ('ema', 0.9)})
    for option in options:
      for zero in (g, 0 * g, w):
        slopes = jax.grad(after, (0, 1, 2))(0.1, zero, w, option)
        for slope in slopes:
          self.assertTrue(np.isfinite(slope).all(), option)
    slope = jax.grad(after)(0.1, g, w, {})
    h = 1e-2
    finite = (after(0.1 + h, g, w, {}) - after(0.1 - h, g, w, {})) / (2 * h)
    np.testing.assert_allclose(slope, finite, rtol=1e-3)

  def test_bad_arguments(self):
    w = jnp.ones((3, 2))
    for message, options in (
      ('target_norm is .first.', {'target_norm': 'first'}),
      ('target_norm is -1', {'target_norm': -1.0}),
      ('normalize is .ema', {'normalize': 'ema'}),
      ('normalize is ..ema., 1.5', {'normalize': ('ema', 1.5)}),
    ):
      with self.assertRaisesRegex(ValueError, message):
        lib.layca(0.1, **options)
    tx = lib.layca(0.1)
    with self.assertRaisesRegex(ValueError, 'current value of param'):
      tx.update(w, tx.init(w))
    for shape in ((), (1,), (1, 1)):
      with self.assertRaisesRegex(ValueError, r"'a'.*element"):
        tx.init({'a': jnp.ones(shape), 'b': w})
    for dtype in (jnp.int32, jnp.complex64, bool):
      with self.assertRaisesRegex(TypeError, r"'a'.*dtype"):
        tx.init({'a': jnp.ones((3, 2), dtype), 'b': w})
    with self.assertRaisesRegex(ValueError, r"'a'.*not finite"):
      tx.init({'a': w.at[0, 0].set(jnp.nan)})

  @pytest.mark.slow
  def test_what_follows_layca_is_noticed_outside_jit(self):
    w, g = jnp.eye(3), jnp.asarray(normal('g', (3, 3)), jnp.float32)
    for tx, warnings in (
      (optax.chain(lib.layca(1.0), optax.scale(0.3)), 1),
      (optax.chain(lib.layca(1.0), optax.identity()), 0),
    ):
      state, now = tx.init(w), w
      with self.assertLogs('absl', 'INFO') as logs:
        logging.info('so that there is a line')
        for _ in range(3):
          updates, state = tx.update(g, state, now)
          now = now + updates
      warned = [r for r in logs.records if r.levelname == 'WARNING']
      self.assertLen(warned, warnings)


class HalfPrecisionTest(absltest.TestCase):
  def _run(self, rate, steps, dtype, gradient_dtype):
    shape = (256, 256)
    start = jax.random.normal(jax.random.key(0), shape).astype(dtype)
    tx = lib.layca(rate)

    @jax.jit
    def run(w):
      def step(carry, key):
        w, state = carry
        g = jax.random.normal(key, shape).astype(gradient_dtype)
        updates, state = tx.update(g, state, w)
        return (optax.apply_updates(w, updates), state), None

      keys = jax.random.split(jax.random.key(1), steps)
      (w, _), _ = jax.lax.scan(step, (w, tx.init(w)), keys)
      return w

    return start, run(start)

  def test_norm_of_bfloat16_weights(self):
    start, end = self._run(3.0**-3, 2000, jnp.bfloat16, jnp.bfloat16)
    self.assertEqual(end.dtype, jnp.bfloat16)
    # Recomputed from the weights, the norm would drift by 3e-3.
    self.assertAlmostEqual(norm(end) / norm(start), 1, delta=1e-4)

  @pytest.mark.slow
  def test_float32_weights_turn_by_tiny_angles_of_bfloat16_gradients(self):
    start, end = self._run(3.0**-7, 1, jnp.float32, jnp.bfloat16)
    self.assertAlmostEqual(tangent(start, end) * 3**7, 1, delta=0.01)

  def test_small_rates_are_warned_of(self):
    half = {'a': jnp.ones((3, 2), jnp.bfloat16), 'b': jnp.ones((3, 2))}
    with self.assertLogs('absl', 'WARNING') as logs:
      lib.layca(3.0**-7).init(half)
    self.assertRegex(logs.output[0], r'16-bit parameters: a\.')
    with self.assertLogs('absl', 'WARNING') as logs:
      lib.layca(0.01, multipliers={'a': 0.1, 'b': 1.0}).init(half)
    self.assertLen(logs.output, 1)
    with self.assertNoLogs('absl', 'WARNING'):
      lib.layca(3.0**-3).init(half)


if __name__ == '__main__':
  absltest.main()
