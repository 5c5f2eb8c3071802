"""Compound scaling, grid search, studies, and the baselines that are scaled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers.efficientnet import counts, scaling, scaling_tables
from jaxpapers.efficientnet.config import ModelConfig, compound_coefficients
from jaxpapers.efficientnet.mobilenet import MobileNetConfig
from jaxpapers.efficientnet.resnet import ResNetConfig
from tests.helpers import goldens

BASELINES = {
  'mobilenet_v1_w1_224': MobileNetConfig(1),
  'mobilenet_v1_w2': MobileNetConfig(1, width=2),
  'mobilenet_v1_r448': MobileNetConfig(1, resolution=448),
  'mobilenet_v2_w1_224': MobileNetConfig(2),
  'mobilenet_v2_w2': MobileNetConfig(2, width=2),
  'mobilenet_v2_d4': MobileNetConfig(2, depth=4),
  'mobilenet_v2_r448': MobileNetConfig(2, resolution=448),
  'resnet50_v1.5': ResNetConfig(),
  'resnet50_v1': ResNetConfig(stride_in='1x1'),
  'resnet50_v1.5_d4': ResNetConfig(depth=4),
  'resnet50_v1.5_w2': ResNetConfig(width=2),
  'resnet50_v1.5_r448': ResNetConfig(resolution=448),
}


def traced(config):
  """Parameters and multiply-adds as the program has them."""
  model = scaling.build(config)
  shape = (1, config.resolution, config.resolution, 3)
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  params = sum(p.size for p in jax.tree.leaves(shapes['params']))
  program = jax.make_jaxpr(model.apply)(shapes, x)
  return params, macs_of(program.jaxpr)


def macs_of(jaxpr):
  total = 0
  for equation in jaxpr.eqns:
    for value in equation.params.values():
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        total += macs_of(inner)
    out = equation.outvars[0].aval
    if equation.primitive.name == 'conv_general_dilated':
      kernel = equation.invars[1].aval.shape  # HWIO
      total += out.size * int(np.prod(kernel[:3]))
    if equation.primitive.name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      shape = equation.invars[0].aval.shape
      total += out.size * int(np.prod([shape[i] for i in contracted]))
  return total


class BaselinesTest(parameterized.TestCase):
  def test_published_sizes(self):
    expected = goldens.load_json('efficientnet', 'counts.json')['baselines']
    self.assertSameElements(expected, BASELINES)
    for name, config in BASELINES.items():
      self.assertEqual(
        (config.count_params(), config.count_macs().total),
        (expected[name]['params'], expected[name]['macs']),
        name,
      )

  @parameterized.parameters(
    MobileNetConfig(1, 0.5, 0.6, 65, num_classes=10, depthwise_impl='lax'),
    MobileNetConfig(2, 0.5, 0.6, 33, num_classes=10, depthwise_impl='lax'),
    ResNetConfig(0.25, 0.5, 64, num_classes=10),
    ResNetConfig(0.25, 0.5, 32, num_classes=10, stem_stride=1),
    ResNetConfig(0.25, 0.5, 64, '1x1', num_classes=10),
  )
  def test_counts_are_those_of_the_program(self, config):
    counts = config.count_macs()
    self.assertEqual(traced(config), (config.count_params(), counts.total))
    self.assertEqual(sum(counts.by_stage.values()), counts.total)
    self.assertEqual(sum(counts.by_kind.values()), counts.total)

  @parameterized.parameters(
    MobileNetConfig(1, 0.25, 0.3, 16, num_classes=3, stem_stride=1),
    MobileNetConfig(2, 0.25, 0.3, 16, num_classes=3, stem_stride=1),
    ResNetConfig(0.125, 0.2, 16, num_classes=3, stem_stride=1),
  )
  @pytest.mark.slow
  def test_they_learn(self, config):
    # Four images, learnt by heart: gradients reach all that matters.
    x = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
    labels = jnp.arange(4) % 3
    model = scaling.build(config)

    @jax.jit
    def loss_of(variables, key):
      logits, new = model.apply(
        variables, x, train=True, mutable=['batch_stats'], rngs={'dropout': key}
      )
      log_probs = jax.nn.log_softmax(logits)
      return -log_probs[jnp.arange(4), labels].mean(), new

    @jax.jit
    def step(variables, key):
      def of(params):
        return loss_of({**variables, 'params': params}, key)

      (loss, new), grads = jax.value_and_grad(of, has_aux=True)(
        variables['params']
      )
      params = jax.tree.map(
        lambda p, g: p - 0.05 * g, variables['params'], grads
      )
      return {'params': params, **new}, loss

    variables = jax.jit(model.init)(jax.random.key(1), x)
    losses = []
    for i in range(20):
      variables, loss = step(variables, jax.random.key(i))
      losses.append(float(loss))
    self.assertLess(losses[-1], 0.5 * losses[0])

  def test_bad_configs(self):
    with self.assertRaisesRegex(ValueError, 'version is 3; expected 1 or 2'):
      MobileNetConfig(3)
    with self.assertRaisesRegex(ValueError, 'stride_in'):
      ResNetConfig(stride_in='2x2')
    with self.assertRaisesRegex(ValueError, 'stem_stride is 4'):
      ResNetConfig(stem_stride=4)


class ScalingTest(parameterized.TestCase):
  def test_scale(self):
    one = scaling.scale(1)
    self.assertEqual((one.width, one.depth, one.resolution), (1.1, 1.2, 258))
    # Rounding: 2.57 times B0, not 1.92.
    ratio = scaling.count_macs(one) / scaling.count_macs(ModelConfig())
    self.assertAlmostEqual(ratio, 2.57, delta=0.005)
    zero = scaling.scale(0, base=MobileNetConfig(1))
    self.assertEqual(zero, MobileNetConfig(1))
    with self.assertRaisesRegex(ValueError, 'phi is 1000'):
      scaling.scale(1000)

  def test_numbers_of_numpy(self):
    width, depth, resolution = compound_coefficients(np.int64(1))
    config = ModelConfig(
      np.float32(width), np.float64(depth), np.int64(resolution)
    )
    self.assertEqual(
      counts.count_macs(config),
      counts.count_macs(config, np.int64(258)),
    )
    with self.assertRaisesRegex(ValueError, 'width is inf'):
      ModelConfig(width=np.inf)

  def test_ideal_grid_has_the_papers_answer(self):
    points = scaling.grid(0.05, 0.1, 'ideal')
    self.assertLen(points, 108)
    found = {point.triple: point for point in points}
    self.assertIn((1.2, 1.1, 1.15), found)
    self.assertAlmostEqual(found[1.2, 1.1, 1.15].ideal, 1.92027)
    ratios = [point.ratio for point in points]
    self.assertAlmostEqual(min(ratios), 1.93, delta=0.005)
    self.assertAlmostEqual(max(ratios), 3.33, delta=0.005)
    # Coarser or tighter grids miss it.
    for step, tol in ((0.1, 0.1), (0.05, 0.05)):
      triples = [p.triple for p in scaling.grid(step, tol, 'ideal')]
      self.assertNotIn((1.2, 1.1, 1.15), triples)

  def test_exact_grid_keeps_the_true_ratio(self):
    points = scaling.grid(0.05, 0.1, 'exact')
    reference = scaling.count_macs(ModelConfig())
    for point in points:
      ratio = scaling.count_macs(point.config) / reference
      self.assertAlmostEqual(point.ratio, ratio)
      self.assertBetween(ratio, 1.9, 2.1)
    # All of them: a search without shortcuts, on a coarser grid.
    coarse = {p.triple for p in scaling.grid(0.2, 0.3, 'exact')}
    values = [1 + 0.2 * i for i in range(6)]
    expected = set()
    for alpha in values:
      for beta in values:
        for gamma in values:
          config = scaling.scale(1, alpha, beta, gamma)
          if abs(scaling.count_macs(config) / reference - 2) <= 0.3:
            expected.add((round(alpha, 6), round(beta, 6), round(gamma, 6)))
    self.assertEqual(coarse, expected)

  def test_grid_search(self):
    seen = []

    def evaluate(config):
      seen.append(scaling.network_key(config))
      # Best near the paper's answer.
      return -abs(config.resolution - 258) - abs(config.width - 1.1)

    result = scaling.grid_search(evaluate, cost='ideal')
    self.assertLen(set(seen), len(seen))  # Equal networks once.
    self.assertLess(len(seen), len(result.points))
    self.assertEqual(result.best.gamma, 1.15)
    self.assertEqual(result.best.beta, 1.1)
    rows = result.rows()
    self.assertEqual(rows[0]['alpha'], result.best.alpha)
    accuracies = [row['accuracy'] for row in rows]
    self.assertEqual(accuracies, sorted(accuracies, reverse=True))
    # Of equals the cheapest; NaN is the worst.
    flat = scaling.grid_search(lambda config: 0.5)
    self.assertEqual(flat.best.ratio, min(p.ratio for p in flat.points))
    odd = scaling.grid_search(
      lambda c: float('nan') if c.width > 1 else 0.1, cost='ideal'
    )
    self.assertEqual(odd.best.beta, 1.0)

  def test_matched_costs(self):
    for base in (ModelConfig(), MobileNetConfig(2), ResNetConfig()):
      networks = scaling.compound_and_single(base)
      macs = scaling.count_macs(networks['compound'])
      for knob in scaling.KNOBS:
        network = networks[knob]
        # Rounding to 8 channels, whole layers and pixels allows no better.
        self.assertLess(abs(scaling.count_macs(network) / macs - 1), 0.06, knob)
        for other in set(scaling.KNOBS) - {knob}:
          self.assertEqual(getattr(network, other), getattr(base, other))

  def test_study(self):
    rows = scaling.study(
      ModelConfig(),
      {'deep': (2, 1, 1), 'wide': scaling.multiply(ModelConfig(), width=2)},
      lambda config, seed: 0.1 * config.depth + 0.01 * seed,
      seeds=(0, 1, 2),
    )
    self.assertEqual([row.name for row in rows], ['base', 'deep', 'wide'])
    self.assertAlmostEqual(rows[1].mean, 0.21)
    self.assertAlmostEqual(rows[1].deviation, 0.01)
    self.assertEqual(rows[0].macs, 385_814_752)
    self.assertEqual(rows[0].params, 5_288_548)

  def test_tables_have_the_papers_networks(self):
    table = goldens.load_json('efficientnet', 'counts.json')
    for row in scaling_tables.table2():
      self.assertEqual(row.row()['params'], table[row.name]['params'])
      self.assertEqual(row.row()['macs'], table[row.name]['macs'])
    scaled = table['scaled_b0']
    names = ('d4', 'w2', 'r2', 'compound_w1.2_d1.4_r1.3')
    for row, name in zip(scaling_tables.table7()[1:], names, strict=True):
      self.assertEqual(row.row()['macs'], scaled[name]['macs'])
    # Billions of multiply-adds over the factors of figure 3.
    expected = {
      'width': (0.39, 0.74, 1.18, 2.39, 5.06, 8.71),
      'depth': (0.39, 0.78, 1.18, 1.58, 2.37, 3.16),
      'resolution': (0.39, 0.72, 0.89, 1.13, 1.46, 1.92, 2.45),
    }
    rows = iter(scaling_tables.figure3())
    for knob, values in expected.items():
      for value in values:
        row = next(rows)
        self.assertStartsWith(row.name, knob)
        self.assertAlmostEqual(row.row()['macs'] / 1e9, value, delta=0.006)
    self.assertLen(scaling_tables.figure4(), 24)

  @parameterized.parameters(
    (lambda: scaling.grid(cost='true'), 'cost is'),
    (lambda: scaling.grid(step=0), 'step is 0'),
    (lambda: scaling.grid(tol=-1), 'tol is -1'),
    (lambda: scaling.grid(target=1), 'target is 1'),
    (lambda: scaling.grid(step=0.9, tol=0.01), 'no point of step'),
    (lambda: scaling.match_macs(ModelConfig(), 1e9, 'size'), 'free is'),
    (lambda: scaling.match_macs(ModelConfig(), 0, 'depth'), 'macs is 0'),
    (lambda: scaling.multiply(ModelConfig(), depth=0), 'depth is 0'),
    (
      lambda: scaling.study(ModelConfig(), {'x': (1, 2)}, None, (0,)),
      "target 'x'",
    ),
    (lambda: scaling.study(ModelConfig(), {}, None, ()), 'seeds is empty'),
  )
  def test_bad_arguments(self, call, message):
    with self.assertRaisesRegex(ValueError, message):
      call()


if __name__ == '__main__':
  absltest.main()
