import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.osnet import config as config_lib
from jaxpapers.osnet import recipes
from tests.helpers import scripts

CONFIGS = scripts.ROOT / 'scripts' / 'configs' / 'osnet'
VARIANTS = {
  'attributes': (),
  'cifar': ('small', 'full'),
  'cross_domain': ('ibn', 'ain', 'msmt17', 'multi_source'),
  'finetune': ('step', 'cosine', 'small'),
  'mutual': (),
  'scratch': ('erase', 'patch'),
  'synthetic': tuple(recipes.variants()),
  'triplet': ('combined', 'only'),
}


def load(name):
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


class ConfigsTest(parameterized.TestCase):
  def test_all_are_known_here(self):
    found = {path.stem for path in CONFIGS.glob('*.py')}
    self.assertEqual(found, set(VARIANTS) | {'ablate'})

  @parameterized.parameters(sorted(VARIANTS))
  def test_each_is_sound(self, name):
    module = load(name)
    for arguments in [(), *((variant,) for variant in VARIANTS[name])]:
      config = module.get_config(*arguments)
      recipes.check(ml_collections.FrozenConfigDict(config))
    if VARIANTS[name]:
      with self.assertRaisesRegex(ValueError, "variant is 'none'"):
        module.get_config('none')

  def test_studies(self):
    module = load('ablate')
    for study in ('probe', 'synthetic', 'variants', 'cifar', 'ain'):
      config = module.get_config(study)
      recipes.check(ml_collections.FrozenConfigDict(config.recipe))
    # The rows of the paper's table.
    self.assertLen(module.get_config('variants').variants, 11)
    with self.assertRaisesRegex(ValueError, "study is 'none'"):
      module.get_config('none')

  @parameterized.parameters(
    # Learning rates at epochs of the recipes of the paper and of torchreid.
    ('scratch', 'erase', {0: 0.065, 149: 0.065, 150: 6.5e-3, 300: 6.5e-5}),
    ('finetune', 'step', {0: 1.5e-3, 59: 1.5e-3, 60: 1.5e-4, 120: 1.5e-5}),
    ('finetune', 'small', {79: 3e-3, 80: 3e-4, 160: 3e-5}),
    ('finetune', 'cosine', {0: 1.5e-3, 125: 7.5e-4}),
    ('cross_domain', 'ain', {50: 7.5e-4}),
    ('cross_domain', 'multi_source', {25: 7.5e-4}),
  )
  def test_learning_rates(self, name, variant, rates):
    config = load(name).get_config(variant)
    tx = recipes.make_optimizer(config, 2)
    params = {'classifier': jnp.zeros(2), 'conv': jnp.zeros(2)}
    state = tx.init(params)
    for epoch, rate in rates.items():
      count = jnp.asarray(2 * epoch, jnp.int32)
      late = state[-1]._replace(count=count)
      _, new = tx.update(params, (*state[:-1], late), params)
      np.testing.assert_allclose(new[-1].learning_rate, rate, rtol=1e-5)

  def test_decay_is_part_of_the_gradient(self):
    config = load('scratch').get_config()
    tx = recipes.make_optimizer(config, 1)
    params = {'norm': jnp.ones(3)}
    updates, _ = tx.update(
      jax.tree.map(jnp.zeros_like, params), tx.init(params), params
    )
    np.testing.assert_allclose(updates['norm'], -0.065 * 5e-4, rtol=1e-5)

  def test_base_is_frozen_for_ten_epochs(self):
    tx = recipes.make_optimizer(load('finetune').get_config('step'), 1)
    params = {'classifier': jnp.ones(2), 'conv': jnp.ones(2)}
    state = tx.init(params)
    update = jax.jit(tx.update)
    for step in range(11):
      updates, state = update(params, state, params)
      self.assertTrue((updates['classifier'] != 0).all())
      self.assertEqual(bool((updates['conv'] != 0).all()), step == 10)


class ModelConfigTest(absltest.TestCase):
  def test_options(self):
    config = recipes.train_config()
    config.model.options.streams = (1,)
    config.model.options.feature_dim = 0
    config.bfloat16 = True
    found = recipes.model_config(config)
    expected = dataclasses.replace(
      config_lib.CONFIGS['osnet_x1_0'],
      streams=(1,),
      feature_dim=None,
      dtype='bfloat16',
    )
    self.assertEqual(found, expected)
    config.model.options.blocks_per_stage = (1, 1, 1)
    config.model.options.instance_norm = ('inside', '', 'outside')
    found = recipes.model_config(config)
    self.assertEqual(found.instance_norm, ('inside', None, 'outside'))

  def test_variants_are_networks(self):
    for options in recipes.variants().values():
      config_lib.config_for('osnet_x1_0', **options)


class CheckTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'task': 'people'}, "task is 'people'"),
    ({'data.sources': 'market'}, "data.sources has 'market'"),
    ({'data.sources': ''}, 'data.sources is empty'),
    ({'data.targets': 'cifar10'}, "data.targets has 'cifar10'"),
    ({'task': 'classify', 'data.sources': 'cifar10,cifar100'}, 'one data set'),
    ({'augment': 'flip,blur'}, r"augment has \['blur'\]"),
    ({'erase_fill': 'mean'}, "erase_fill is 'mean'"),
    ({'loss.margin': 'hard'}, "loss.margin is 'hard'"),
    ({'loss.triplet': 1.0}, "sampler is 'random'; expected 'pk'"),
    ({'loss.circle': 1.0}, "sampler is 'random'; expected 'pk'"),
    ({'loss.cross_entropy': 0.0}, 'expected a loss'),
    ({'loss.cross_entropy': -1.0}, 'cross_entropy is -1.0'),
    ({'loss.label_smoothing': 2.0}, 'label_smoothing is 2.0; expected 0 to 1'),
    ({'loss.margin': 'nan'}, 'margin is nan'),
    (
      {'sampler': 'pk', 'num_instances': 64, 'loss.triplet': 1.0},
      'batch_size is 64 in 1 parts; expected 128',
    ),
    ({'accumulate': 64}, 'batch_size is 64 in 64 parts; expected 2'),
    ({'height': 12}, 'height is 12; expected 13'),
    ({'optimizer.learning_rate': float('nan')}, 'learning_rate is nan'),
    (
      {'optimizer.fixed_epochs': 1, 'optimizer.open_layers': ('head',)},
      r"open_layers has \['head'\]",
    ),
    (
      {'augment': 'jitter', 'jitter': (0.1, 0.1, 0.1, 0.9)},
      'hue is 0.9; expected 0 to 0.5',
    ),
    ({'sampler': 'pk', 'num_instances': 5}, 'num_instances is 5'),
    ({'accumulate': 3}, 'accumulate is 3'),
    ({'epochs': 0}, 'epochs is 0'),
    ({'log_every': 0.0}, 'log_every is 0.0'),
    ({'optimizer.name': 'adam'}, "optimizer.name is 'adam'"),
    ({'optimizer.schedule': 'linear'}, "optimizer.schedule is 'linear'"),
    ({'metric': 'l1'}, "metric is 'l1'"),
    ({'jitter': (0.1, 0.1)}, 'expected four numbers'),
    ({'model.name': 'osnet'}, "'osnet' is no network"),
    ({'model.options.aggregation': 'max'}, "aggregation is 'max'"),
  )
  def test_refuses(self, changes, message):
    config = recipes.train_config()
    config.update_from_flattened_dict(changes)
    with self.assertRaisesRegex(ValueError, message):
      recipes.check(config)


if __name__ == '__main__':
  absltest.main()
