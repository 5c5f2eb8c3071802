"""Tests of the designs' parameterizations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers.structopt import density, families, models, objective, problems
from tests.helpers import goldens

_CNN = goldens.load_json('structopt', 'cnn.json')
_CNN_ARRAYS = goldens.load_npz('structopt', 'cnn.npz')
# Compiles in a fraction of the time of the full network.
_SMALL = models.CNNDesign(
  nely=8,
  nelx=16,
  latent_size=32,
  dense_channels=8,
  resizes=(1, 2, 1),
  conv_filters=(16, 8, 1),
)
_PROBLEMS = {
  'default': lambda: problems.get_problem(
    'cantilever_beam_two_point_64x48_0.4'
  ),
  'dyn': lambda: problems.get_problem('mbb_beam_96x32_0.5'),
  'mbb60x20': lambda: families.mbb_beam(60, 20, 0.5),
}


def _golden_variables(tag):
  """The weights that follow from the parameters' names."""
  params = {}
  for name, shape in _CNN[tag]['params'].items():
    layer, _, kind = name.partition('/')
    scale = 1.0
    if kind == 'bias':
      scale = 0.05
    elif layer == 'dense':
      scale = 0.1
    elif kind == 'kernel':
      scale = 1 / np.sqrt(np.prod(shape[:-1]))
    value = goldens.normal(f'{tag}/{name}', tuple(shape), scale)
    if layer == 'z':
      params['latent'] = jnp.asarray(value[0])
    elif layer.startswith('offset'):
      params[layer] = jnp.asarray(value[0])
    else:
      params.setdefault(layer, {})[kind] = jnp.asarray(value)
  return {'params': params}


def _golden_entry(params, name):
  layer, _, kind = name.partition('/')
  if layer == 'z':
    return params['latent']
  return params[layer] if layer.startswith('offset') else params[layer][kind]


def _golden_design(tag, **kwargs):
  problem = _PROBLEMS[tag]()
  return models.CNNDesign(
    nely=problem.nely,
    nelx=problem.nelx,
    param_dtype=jnp.float64,
    **_CNN[tag]['kwargs'],
    **kwargs,
  )


def _init(design, seed=0):
  """Initial variables, compiled as one program rather than op by op."""
  return jax.jit(design.init)(jax.random.key(seed))


def _apply(design, variables):
  return jax.jit(design.apply)(variables)


class GoldenTest(parameterized.TestCase):
  """TensorFlow's resize rounds to float32, hence 1e-6 rather than 1e-12."""

  @parameterized.parameters(
    ('default', 'matmul'),
    ('default', 'convolution'),
    ('dyn', 'auto'),
    ('mbb60x20', 'auto'),
  )
  def test_forward_and_backward(self, tag, conv_method):
    with jax.enable_x64(True):
      variables = _golden_variables(tag)
      design = _golden_design(tag, conv_method=conv_method)
      count = sum(leaf.size for leaf in jax.tree.leaves(variables))
      self.assertEqual(count, _CNN[tag]['n_params'])
      expected_shapes = jax.eval_shape(design.init, jax.random.key(0))
      self.assertEqual(
        jax.tree.map(jnp.shape, variables),
        jax.tree.map(lambda leaf: leaf.shape, expected_shapes),
      )
      cotangent = goldens.normal(f'{tag}/cotangent', (design.nely, design.nelx))

      def loss(variables):
        logits = _apply(design, variables)
        return (logits * cotangent).sum(), logits

      (_, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        variables
      )
    expected = _CNN_ARRAYS[f'{tag}/logits']
    np.testing.assert_allclose(
      logits, expected, rtol=0, atol=1e-6 * np.abs(expected).max()
    )
    for name, norm in _CNN[tag]['grad_ct_norms'].items():
      with self.subTest(name):
        entry = np.asarray(_golden_entry(gradient['params'], name))
        np.testing.assert_allclose(np.linalg.norm(entry), norm, rtol=1e-5)
    expected = _CNN_ARRAYS[f'{tag}/z_grad_ct'][0]
    got = np.asarray(gradient['params']['latent'])
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    self.assertLess(error, 1e-5)
    for i in range(5):
      np.testing.assert_allclose(
        gradient['params'][f'conv{i}']['bias'],
        _CNN_ARRAYS[f'{tag}/grad_ct_conv{i}_bias'],
        rtol=1e-5,
        # Sums with cancellation; the scale is that of the summands.
        atol=1e-5 * _CNN[tag]['grad_ct_norms'][f'conv{i}/bias'],
      )

  @pytest.mark.slow
  def test_gradient_of_compliance(self):
    self._check_gradient('mbb60x20')

  @parameterized.parameters('default', 'dyn')
  @pytest.mark.nightly
  def test_gradient_of_more_compliances(self, tag):
    self._check_gradient(tag)

  def _check_gradient(self, tag):
    problem = _PROBLEMS[tag]()
    design = _golden_design(tag)
    compliance = objective.make_objective(problem, solver='mgcg', tol=1e-9)
    with jax.enable_x64(True):
      variables = _golden_variables(tag)
      value, gradient = jax.jit(
        jax.value_and_grad(lambda v: compliance(_apply(design, v)))
      )(variables)
    value = float(value)
    # The published network hands float32 logits to the solver.
    np.testing.assert_allclose(value, _CNN[tag]['compliance'], rtol=1e-6)
    for name, norm in _CNN[tag]['grad_compliance_norms'].items():
      with self.subTest(name):
        entry = np.asarray(_golden_entry(gradient['params'], name))
        np.testing.assert_allclose(
          np.linalg.norm(entry),
          norm,
          rtol=1e-5,
          # Logits are free up to a constant, so that this one is rounding.
          atol=1e-5 * value if name == 'conv4/bias' else 0,
        )
    expected = _CNN_ARRAYS[f'{tag}/z_grad_compliance'][0]
    error = np.asarray(gradient['params']['latent']) - expected
    self.assertLess(np.linalg.norm(error), 1e-5 * np.linalg.norm(expected))

  def test_upsample(self):
    golden = goldens.load_npz('structopt', 'upsample.npz')
    y = models.upsample(jnp.asarray(golden['x'][0], jnp.float32), 2)
    np.testing.assert_allclose(y, golden['y'][0], rtol=1e-6, atol=1e-6)


def _reference_upsample(x, factor):
  """Bilinear interpolation at half-pixel centres, clamped at the edges."""
  for axis in (0, 1):
    n = x.shape[axis]
    position = (np.arange(n * factor) + 0.5) / factor - 0.5
    position = np.clip(position, 0, n - 1)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, n - 1)
    weight = (position - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    x = (1 - weight) * x.take(low, axis) + weight * x.take(high, axis)
  return x


def _reference_forward(design, params):
  """The network in float64 NumPy, from its description."""
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  x = params['latent'] @ params['dense']['kernel'] + params['dense']['bias']
  total = int(np.prod(design.resizes))
  x = x.reshape(design.nely // total, design.nelx // total, -1)
  for i, factor in enumerate(design.resizes):
    x = _reference_upsample(np.tanh(x), factor)
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
    kernel = params[f'conv{i}']['kernel']
    tall, wide = kernel.shape[:2]
    before = (tall - 1) // 2, (wide - 1) // 2
    padded = np.pad(
      x,
      [(b, k - 1 - b) for b, k in zip(before, (tall, wide))] + [(0, 0)],
    )
    windows = np.lib.stride_tricks.sliding_window_view(
      padded, (tall, wide), (0, 1)
    )
    x = np.einsum('hwcij,ijco->hwo', windows, kernel)
    x = x + params[f'conv{i}']['bias']
    if design.offset_scale:
      x = x + design.offset_scale * params[f'offset{i}']
  return x[..., 0]


class ReferenceTest(parameterized.TestCase):
  """Settings for which the authors' code left no numbers."""

  @parameterized.parameters(
    {},
    {'offset_scale': 0.0},
    {'offset_scale': 1.0, 'latent_size': 64},
    {'kernel_size': (3, 3), 'resizes': (2, 1, 3), 'nely': 12, 'nelx': 18},
    {'resizes': (4,), 'conv_filters': (1,), 'dense_channels': 3},
  )
  def test_forward(self, **kwargs):
    with jax.enable_x64(True):
      design = _SMALL.clone(param_dtype=jnp.float64, **kwargs)
      shapes = jax.eval_shape(design.init, jax.random.key(0))
      rng = np.random.default_rng(4)
      variables = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape)), shapes
      )
      logits = np.asarray(_apply(design, variables))
    expected = _reference_forward(design, variables['params'])
    self.assertEqual(logits.shape, (design.nely, design.nelx))
    # Float64 throughout; sums of a few hundred products.
    np.testing.assert_allclose(
      logits, expected, rtol=0, atol=1e-11 * np.abs(expected).max()
    )


class LayersTest(parameterized.TestCase):
  @parameterized.parameters(2, 3, 4, 5)
  def test_upsample_is_linear_interpolation(self, factor):
    x = np.random.default_rng(0).normal(size=(5, 3, 2)).astype(np.float32)
    y = models.upsample(x, factor)
    self.assertEqual(y.shape, (5 * factor, 3 * factor, 2))
    centres = [
      (np.arange(n * factor) + 0.5) / factor - 0.5 for n in x.shape[:2]
    ]
    rows = np.stack(
      [
        [np.interp(centres[0], range(5), x[:, j, c]) for j in range(3)]
        for c in range(2)
      ]
    )  # [channel, column, tall row]
    expected = np.stack(
      [
        [np.interp(centres[1], range(3), rows[c, :, i]) for c in range(2)]
        for i in range(5 * factor)
      ]
    ).transpose(0, 2, 1)
    np.testing.assert_allclose(y, expected, atol=1e-6)

  def test_upsample_of_one_pixel(self):
    np.testing.assert_array_equal(
      models.upsample(np.full((1, 1, 1), 3.0, np.float32), 4), 3.0
    )

  def test_upsample_bad_factor(self):
    for factor in (0, 1.5):
      with self.assertRaisesRegex(ValueError, 'factor must be'):
        models.upsample(np.ones((2, 2, 1)), factor)

  def test_normalize(self):
    x = np.random.default_rng(0).normal(3.0, 5.0, (6, 7, 4)).astype(np.float32)
    y = np.asarray(models.normalize(x))
    self.assertAlmostEqual(y.mean(), 0, delta=1e-5)
    self.assertAlmostEqual(y.std(), 1, delta=1e-5)
    np.testing.assert_allclose(
      y, (x - x.mean()) / np.sqrt(x.var() + 1e-6), atol=1e-5
    )
    np.testing.assert_array_equal(models.normalize(jnp.ones((3, 3, 2))), 0)

  def test_normalize_half_precision_in_float32(self):
    # In bfloat16 the variance of numbers near 100 drowns in rounding.
    x = jnp.asarray(100.0 + np.arange(8.0), jnp.bfloat16)
    y = models.normalize(x)
    self.assertEqual(y.dtype, jnp.bfloat16)
    expected = models.normalize(x.astype(jnp.float32))
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.01)

  @parameterized.parameters(((5, 5),), ((3, 3),), ((2, 4),), ((1, 1),))
  def test_convolutions_agree(self, size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 9, 3)).astype(np.float32)
    kernel = rng.normal(size=(*size, 3, 4)).astype(np.float32)
    results = [
      jax.vjp(lambda x, k, m=m: models.convolve(x, k, m), x, kernel)
      for m in ('matmul', 'convolution')
    ]
    # Sums of up to 75 products in float32.
    np.testing.assert_allclose(results[0][0], results[1][0], atol=1e-5)
    for got, want in zip(*(vjp(value) for value, vjp in results)):
      np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)

  def test_unknown_convolution(self):
    with self.assertRaisesRegex(ValueError, 'conv_method'):
      models.convolve(np.ones((3, 3, 1)), np.ones((3, 3, 1, 1)), 'fft')


class CNNDesignTest(parameterized.TestCase):
  def test_parameter_counts(self):
    for nely, nelx, expected in ((64, 32, 567553), (48, 64, 665345)):
      design = models.CNNDesign(nely=nely, nelx=nelx)
      shapes = jax.eval_shape(design.init, jax.random.key(0))
      count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
      self.assertEqual(count, expected)

  @pytest.mark.slow
  def test_initial_statistics(self):
    design = models.CNNDesign(nely=32, nelx=64, dense_init_scale=2.0)
    params = _init(design, 3)['params']
    kernel = np.asarray(params['dense']['kernel'], np.float64)
    gain = 2.0 * np.sqrt(kernel.shape[1] / 128)
    # Orthonormal rows up to float32 rounding.
    np.testing.assert_allclose(
      kernel @ kernel.T / gain**2, np.eye(128), atol=1e-5
    )
    for i in range(4):
      kernel = np.asarray(params[f'conv{i}']['kernel'])
      expected = 1 / np.sqrt(np.prod(kernel.shape[:-1]))
      # 12 800 samples or more: three standard errors are 2 %.
      np.testing.assert_allclose(kernel.std(), expected, rtol=0.03)
      # Truncated at two standard deviations of the parent normal.
      self.assertLess(np.abs(kernel).max(), 2.01 / 0.8796 * expected)
      self.assertFalse(np.asarray(params[f'conv{i}']['bias']).any())
      self.assertFalse(np.asarray(params[f'offset{i}']).any())
    self.assertAlmostEqual(
      float(np.std(params['latent'])), 1.0, delta=0.2
    )  # 128 samples: three standard errors
    scaled = models.CNNDesign(nely=32, nelx=64, latent_scale=3.0)
    np.testing.assert_allclose(
      _init(scaled, 3)['params']['latent'],
      3.0 * params['latent'],
      rtol=1e-6,
    )

  def test_narrow_latent_has_gain_one(self):
    # Fewer features than latent entries: the columns are orthonormal.
    design = models.CNNDesign(8, 8, 128, 4, (1,), (1,))
    design = design.clone(resizes=(2, 4), conv_filters=(4, 1))
    kernel = _init(design)['params']['dense']['kernel']
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(4), atol=1e-5)

  @pytest.mark.nightly
  def test_first_density_is_finite(self):
    problem = families.mbb_beam(32, 16, 0.4)
    design = models.CNNDesign(nely=16, nelx=32)
    logits = _apply(design, _init(design, 1))
    self.assertEqual(logits.dtype, jnp.float32)
    x = np.asarray(density.physical_density(logits, problem))
    self.assertTrue(np.isfinite(x).all())
    self.assertGreater(x.std(), 1e-3)
    compliance = float(objective.make_objective(problem)(logits))
    self.assertTrue(0 < compliance < 1e6, compliance)

  @parameterized.parameters(0.0, 1.0, 10.0)
  @pytest.mark.nightly
  def test_offset_scale(self, scale):
    design = _SMALL.clone(latent_size=64, offset_scale=scale)
    variables = _init(design)
    self.assertEqual(variables['params']['latent'].shape, (64,))
    before = np.asarray(_apply(design, variables))
    offsets = [k for k in variables['params'] if k.startswith('offset')]
    self.assertLen(offsets, 3 if scale else 0)
    if not scale:
      return
    variables['params']['offset2'] = jnp.full((8, 16, 1), 0.5)
    np.testing.assert_allclose(
      _apply(design, variables), before + 0.5 * scale, rtol=1e-5, atol=1e-5
    )

  @pytest.mark.nightly
  def test_seeds_are_independent_under_vmap(self):
    variables = [_init(_SMALL, seed) for seed in range(3)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *variables)
    logits = jax.jit(jax.vmap(_SMALL.apply))(batch)
    for together, alone in zip(logits, variables, strict=True):
      # The batched products round differently.
      np.testing.assert_allclose(together, _apply(_SMALL, alone), atol=1e-4)

  @pytest.mark.nightly
  def test_vmapped_initialization(self):
    keys = jax.random.split(jax.random.key(0), 2)
    batch = jax.jit(jax.vmap(_SMALL.init))(keys)
    alone = jax.jit(_SMALL.init)(keys[1])
    second = jax.tree.map(lambda leaf: leaf[1], batch)
    chex.assert_trees_all_close(second, alone, atol=1e-5)

  @pytest.mark.slow
  def test_half_precision(self):
    full = _SMALL
    half = full.clone(dtype=jnp.bfloat16)
    variables = _init(full)
    self.assertEqual(variables['params']['latent'].dtype, jnp.float32)
    logits = _apply(half, variables)
    self.assertEqual(logits.dtype, jnp.float32)
    expected = np.asarray(_apply(full, variables))
    # Three blocks in an 8-bit mantissa: a few per cent of the logits' spread.
    np.testing.assert_allclose(logits, expected, atol=0.1 * expected.std())

  def test_bad_architecture(self):
    def build(**kwargs):
      return models.CNNDesign(**kwargs).init(jax.random.key(0))

    with self.assertRaisesRegex(ValueError, 'nely=20 is not.*resizes.*gcd.*20'):
      build(nely=20, nelx=60)
    with self.assertRaisesRegex(ValueError, 'nelx=60'):
      build(nely=24, nelx=60)
    with self.assertRaisesRegex(ValueError, 'resizes has 2 entries'):
      build(nely=8, nelx=8, resizes=(1, 2))
    with self.assertRaisesRegex(ValueError, 'conv_filters must end in 1'):
      build(nely=8, nelx=8, resizes=(1, 2), conv_filters=(8, 4))
    with self.assertRaisesRegex(ValueError, 'resizes must be positive'):
      build(nely=8, nelx=8, resizes=(0, 2), conv_filters=(8, 1))


class PixelDesignTest(absltest.TestCase):
  def test_initial_logits(self):
    array = np.arange(6.0).reshape(2, 3)
    for initial, expected in (
      (0.25, np.full((2, 3), 0.25)),
      (array, array),
      (lambda key, shape, dtype: jnp.ones(shape, dtype), np.ones((2, 3))),
    ):
      design = models.PixelDesign(2, 3, initial)
      variables = _init(design)
      np.testing.assert_array_equal(_apply(design, variables), expected)
      self.assertEqual(_apply(design, variables).dtype, jnp.float32)

  def test_double_precision(self):
    with jax.enable_x64(True):
      design = models.PixelDesign(2, 3, 0.1, jnp.float64)
      logits = _apply(design, _init(design))
      self.assertEqual(logits.dtype, jnp.float64)
      self.assertEqual(logits[0, 0], 0.1)

  def test_bad_shape(self):
    design = models.PixelDesign(2, 3, np.ones((3, 2)))
    with self.assertRaisesRegex(ValueError, 'initial_logits has shape'):
      _init(design)


class DynamicDepthTest(parameterized.TestCase):
  @parameterized.parameters(
    (96, 32, 3), (64, 64, 4), (384, 128, 5), (256, 256, 6), (512, 512, 6)
  )
  def test_depth(self, width, height, doublings):
    resizes, filters, channels = models.dynamic_depth(width, height)
    self.assertEqual(resizes, (1,) + (2,) * doublings + (1,))
    full = (512, 256, 128, 64, 32, 16, 8, 1)
    self.assertEqual(filters, full[-len(resizes) :])
    self.assertEqual(channels, filters[0] // 2)

  def test_published_example(self):
    resizes, filters, channels = models.dynamic_depth(96, 32)
    kwargs = _CNN['dyn']['kwargs']
    self.assertEqual(list(resizes), kwargs['resizes'])
    self.assertEqual(list(filters), kwargs['conv_filters'])
    self.assertEqual(channels, kwargs['dense_channels'])

  @parameterized.parameters((61, 23), (60, 20), (36, 12), (1, 1), (48, 16))
  def test_any_size_works(self, width, height):
    resizes, filters, channels = models.dynamic_depth(width, height)
    design = models.CNNDesign(
      nely=height,
      nelx=width,
      dense_channels=channels,
      resizes=resizes,
      conv_filters=filters,
    )
    shape = jax.eval_shape(lambda: _apply(design, _init(design)))
    self.assertEqual(shape.shape, (height, width))

  def test_all_published_sizes_work(self):
    for name, build in problems.PROBLEMS.items():
      width, height = map(int, name.split('_')[-2].split('x'))
      resizes, _, _ = models.dynamic_depth(width, height)
      self.assertEqual(width % np.prod(resizes), 0)
      self.assertEqual(height % np.prod(resizes), 0)
      self.assertTrue(callable(build))

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, 'width must be'):
      models.dynamic_depth(0, 4)
    with self.assertRaisesRegex(ValueError, 'height must be'):
      models.dynamic_depth(4, 1.5)


if __name__ == '__main__':
  absltest.main()
