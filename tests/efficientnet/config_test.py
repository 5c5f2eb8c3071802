"""Rounding, scaling, presets and counts against the original and the paper."""

import dataclasses

from absl.testing import absltest, parameterized

from jaxpapers import efficientnet
from jaxpapers.efficientnet import config as config_lib
from tests.helpers import goldens


class RoundingTest(absltest.TestCase):
  def test_as_the_original(self):
    rows = goldens.load_json('efficientnet', 'rounding_tf.json')
    self.assertLen(rows['round_filters'] + rows['round_repeats'], 236)
    for filters, width, expected in rows['round_filters']:
      found = efficientnet.round_filters(filters, width)
      self.assertEqual(found, expected, (filters, width))
    for repeats, depth, expected in rows['round_repeats']:
      found = efficientnet.round_repeats(repeats, depth)
      self.assertEqual(found, expected, (repeats, depth))

  def test_no_factor_leaves_them(self):
    self.assertEqual(efficientnet.round_filters(33, None), 33)
    self.assertEqual(efficientnet.round_filters(33, 0), 33)
    self.assertEqual(efficientnet.round_repeats(3, None), 3)

  def test_least_channels_and_divisor(self):
    self.assertEqual(efficientnet.round_filters(32, 0.25, min_depth=16), 16)
    self.assertEqual(efficientnet.round_filters(30, 1.0, divisor=4), 32)


class BlockStringTest(parameterized.TestCase):
  def test_there_and_back(self):
    for variant in ('b0', 'lite0', 'edgetpu-s'):
      for block in efficientnet.config_for(variant).blocks:
        text = efficientnet.encode_block_string(block)
        self.assertEqual(efficientnet.decode_block_string(text), block)

  def test_decodes(self):
    block = efficientnet.decode_block_string('r2_k5_s21_e6_i24_o40_noskip')
    expected = efficientnet.BlockArgs(
      5, 2, 24, 40, 6, (2, 1), se_ratio=None, id_skip=False
    )
    self.assertEqual(block, expected)

  @parameterized.parameters(
    ('r2_k5_s22_e6_i24', 'lacks o'),
    ('r2_k5_s2_e6_i24_o40', "strides '2'"),
    ('r2_k5_s22_e6_i24_o40_x3', "'x3'"),
    ('r2_k5_s22_e6_i24_o40_k3', 'twice'),
    ('r2_k4_s22_e6_i24_o40', 'odd'),
    ('r0_k3_s22_e6_i24_o40', 'num_repeat'),
  )
  def test_refuses(self, text, message):
    with self.assertRaisesRegex(ValueError, message):
      efficientnet.decode_block_string(text)


class CountsTest(parameterized.TestCase):
  @parameterized.parameters(
    'b0', 'b1', 'b2', 'b3', 'b4', 'b5', 'b6', 'b7', 'b8', 'l2'
  )
  def test_equal_the_table(self, variant):
    row = goldens.load_json('efficientnet', 'counts.json')[variant]
    config = efficientnet.config_for(f'efficientnet-{variant}')
    self.assertEqual(
      (config.width, config.depth, config.resolution, config.dropout_rate),
      (row['width'], row['depth'], row['resolution'], row['dropout']),
    )
    self.assertEqual(efficientnet.count_params(config), row['params'])
    self.assertEqual(efficientnet.count_batch_stats(config), row['bn_stats'])
    headless = config.replace(num_classes=0)
    self.assertEqual(efficientnet.count_params(headless), row['params_no_top'])
    macs = efficientnet.count_macs(config)
    self.assertEqual(macs.total, row['macs'])
    self.assertEqual(macs.activations, row['acts'])
    self.assertEqual(
      tuple(macs.by_kind.values()),
      tuple(
        row['breakdown'][kind]
        for kind in ('stem', 'expand', 'dw', 'se', 'project', 'head', 'fc')
      ),
    )
    self.assertEqual(sum(macs.by_stage.values()), macs.total)
    self.assertLen(config.scaled_blocks(), row['blocks'])
    self.assertEqual(config.stem_width, row['stem'])
    self.assertEqual(config.head_width, row['head'])

  @parameterized.parameters(
    ('d4', {'depth': 4.0}, None),
    ('w2', {'width': 2.0}, None),
    ('r2', {}, 448),
  )
  def test_scaled_along_one_dimension(self, name, changes, resolution):
    rows = goldens.load_json('efficientnet', 'counts.json')['scaled_b0']
    config = efficientnet.ModelConfig(**changes)
    macs = efficientnet.count_macs(config, resolution)
    self.assertEqual(macs.total, rows[name]['macs'])
    self.assertEqual(efficientnet.count_params(config), rows[name]['params'])

  def test_published_sizes_of_variants(self):
    # Parameters that timm reports for these: tf_efficientnet_lite0, _es.
    for variant, params in (('lite0', 4652008), ('edgetpu-s', 5438392)):
      config = efficientnet.config_for(f'efficientnet-{variant}')
      self.assertEqual(efficientnet.count_params(config), params)

  def test_oblong_images_and_channels(self):
    config = efficientnet.ModelConfig()
    square = efficientnet.count_macs(config, 64)
    self.assertEqual(efficientnet.count_macs(config, (64, 64)), square)
    wide = efficientnet.count_macs(config, (64, 128))
    self.assertEqual(wide.by_kind['expand'], 2 * square.by_kind['expand'])
    gray = efficientnet.count_macs(config, 64, in_channels=1)
    self.assertEqual(3 * gray.by_kind['stem'], square.by_kind['stem'])
    with self.assertRaisesRegex(ValueError, 'resolution'):
      efficientnet.count_macs(config, 0)


class ConfigTest(parameterized.TestCase):
  @parameterized.parameters('b0', 'b7')
  def test_survival_probabilities(self, variant):
    blocks = efficientnet.config_for(variant).scaled_blocks()
    for i, block in enumerate(blocks):
      self.assertAlmostEqual(block.survival_prob, 1 - 0.2 * i / len(blocks))
    alike = efficientnet.config_for(variant, survival_prob=None)
    self.assertEqual({b.survival_prob for b in alike.scaled_blocks()}, {None})

  def test_scaled_blocks_of_b0(self):
    blocks = efficientnet.ModelConfig().scaled_blocks()
    self.assertEqual(
      [b.position for b in blocks],
      [0, 0, 1, 0, 1, 0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 0],
    )
    self.assertEqual(blocks[2].args.input_filters, 24)
    self.assertEqual(blocks[2].args.strides, (1, 1))
    self.assertEqual(blocks[1].args.strides, (2, 2))
    # From the channels that come in, not from those inside.
    self.assertEqual(blocks[2].args.squeezed_filters, 6)
    skips = [b.index for b in blocks if b.args.has_skip]
    self.assertEqual(skips, [2, 4, 6, 7, 9, 10, 12, 13, 14])

  def test_lite_keeps_stem_head_and_end_stages(self):
    config = efficientnet.config_for('efficientnet-lite4')
    self.assertEqual((config.stem_width, config.head_width), (32, 1280))
    counts = [0] * 7
    for block in config.scaled_blocks():
      counts[block.stage] += 1
      self.assertEqual(block.args.squeezed_filters, 0)
    self.assertEqual(counts, [1, 4, 4, 6, 6, 8, 1])

  @parameterized.parameters(
    ('efficientnet-b0', 'SAME', 1e-3, 0.99, 'biased'),
    ('b0', 'SAME', 1e-3, 0.99, 'biased'),
    ('tf_efficientnet_b0', 'SAME', 1e-3, 0.9, 'unbiased'),
    ('tf_efficientnet_b0.ns_jft_in1k', 'SAME', 1e-3, 0.9, 'unbiased'),
    ('tf_efficientnet_b0_ns', 'SAME', 1e-3, 0.9, 'unbiased'),
    ('efficientnet_b0', 'symmetric', 1e-5, 0.9, 'unbiased'),
    ('torchvision_efficientnet_b5', 'symmetric', 1e-3, 0.99, 'unbiased'),
  )
  def test_worlds(self, name, padding, epsilon, momentum, variance):
    config = efficientnet.config_for(name)
    self.assertEqual(
      (config.padding, config.bn_epsilon, config.bn_momentum),
      (padding, epsilon, momentum),
    )
    self.assertEqual(config.bn_variance, variance)

  def test_l2_for_475_pixels(self):
    name = 'tf_efficientnet_l2.ns_jft_in1k_475'
    self.assertEqual(efficientnet.config_for(name).resolution, 475)

  def test_names_overrides_and_unknown_names(self):
    config = efficientnet.config_for('b1', num_classes=7, dropout_rate=0.0)
    self.assertEqual((config.num_classes, config.dropout_rate), (7, 0.0))
    for name in config_lib.COEFFICIENTS:
      hash(efficientnet.config_for(name))
    for name in ('b9', 'resnet50', 'tf_efficientnet_b', ''):
      with self.assertRaisesRegex(ValueError, 'expected efficientnet-'):
        efficientnet.config_for(name)
    with self.assertRaises(TypeError):
      efficientnet.config_for(0)

  @parameterized.parameters(
    ({'width': 0}, 'width is 0'),
    ({'depth': -1.0}, 'depth is -1'),
    ({'num_classes': -1}, 'num_classes'),
    ({'dropout_rate': 1.0}, 'dropout_rate'),
    ({'survival_prob': 0.0}, 'survival_prob'),
    ({'bn_momentum': 1.5}, 'bn_momentum'),
    ({'padding': 'VALID'}, "padding is 'VALID'"),
    ({'bn_variance': 'torch'}, 'bn_variance'),
    ({'activation': 'gelu'}, 'activation'),
    ({'blocks': ()}, 'blocks is empty'),
  )
  def test_refuses(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      efficientnet.ModelConfig(**changes)


class CompoundTest(parameterized.TestCase):
  def test_values(self):
    self.assertEqual(efficientnet.compound_coefficients(0), (1.0, 1.0, 224))
    width, depth, resolution = efficientnet.compound_coefficients(2)
    self.assertAlmostEqual(width, 1.21)
    self.assertAlmostEqual(depth, 1.44)
    self.assertEqual(resolution, 296)
    smaller = efficientnet.compound_coefficients(-1, base_resolution=115)
    self.assertEqual(smaller[2], 100)

  def test_phi_1_costs_more_than_twice(self):
    # Rounding of channels and repeats: 0.993G instead of 0.74G.
    width, depth, resolution = efficientnet.compound_coefficients(1)
    config = efficientnet.ModelConfig(width, depth, resolution)
    ratio = efficientnet.count_macs(config).total / 385814752
    self.assertBetween(ratio, 2.5, 2.6)

  @parameterized.parameters(
    (21, {}, 'phi is 21'),
    (float('nan'), {}, 'phi is nan'),
    ('1', {}, 'phi is 1'),
    (1, {'alpha': 0}, 'alpha is 0'),
    (-20, {'gamma': 2.0}, 'vanish'),
  )
  def test_refuses(self, phi, bases, message):
    with self.assertRaisesRegex(ValueError, message):
      efficientnet.compound_coefficients(phi, **bases)

  def test_replace(self):
    config = efficientnet.ModelConfig()
    self.assertEqual(config.replace(), config)
    self.assertEqual(
      config.replace(width=2.0), dataclasses.replace(config, width=2.0)
    )


if __name__ == '__main__':
  absltest.main()
