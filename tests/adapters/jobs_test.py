"""Steps of the programs without data: what compile_for_tpu compiles."""

import functools
import importlib
import importlib.util
import json
import pathlib
import sys
import tempfile
import unittest

import jax
import jax.numpy as jnp
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import adapters
from jaxpapers.adapters import recipes
from tests.helpers import devices, scripts


@functools.cache
def script(name):
  """A module of the programs that defines no flags by itself."""
  folder = str(scripts.ROOT / 'scripts')
  sys.path.insert(0, folder)
  try:
    return importlib.import_module(name)
  finally:
    sys.path.remove(folder)


def tiny(num_layers=2, **fields):
  """A config of a random model."""
  config = recipes.base_config()
  config.update({'model': 'random', 'max_len': 16, 'batch_size': 8})
  config.architecture.update(
    {
      'vocab_size': 64,
      'hidden_size': 32,
      'num_layers': num_layers,
      'num_heads': 2,
      'mlp_dim': 128,
      'max_len': 16,
    }
  )
  config.adapter.size = 4
  config.update(fields)
  return config


class JobTest(parameterized.TestCase):
  def test_only_the_task_is_in_the_state(self):
    job = script('_adapters_training').make_job(tiny())
    state, batch = job.abstract()
    members = {leaf.shape[0] for leaf in jax.tree.leaves(state.params)}
    self.assertEqual(members, {3})
    self.assertEqual(
      adapters.count_params(state.params['encoder']),
      3
      * (
        adapters.adapter_param_count(2, 32, 4)
        + adapters.layer_norm_param_count(2, 32)
      ),
    )
    self.assertEqual(batch['ids'].shape, (8, 16))
    for leaf in jax.tree.leaves(job.frozen):
      self.assertIsInstance(leaf, jax.ShapeDtypeStruct)

  @parameterized.parameters(
    ('STS-B', ['classifier', 'encoder'], jnp.float32),
    ('MNLI', ['classifier', 'encoder'], jnp.int32),
    ('SQuAD2.0', ['answerable', 'encoder', 'qa'], None),
  )
  def test_tasks(self, task, parts, dtype):
    job = script('_adapters_training').make_job(tiny(task=task, seeds=(0,)))
    state, batch = job.abstract()
    self.assertSameElements(state.params, parts)
    if dtype is not None:
      self.assertEqual(batch['label'].dtype, dtype)
    _, metrics = jax.eval_shape(job.step(), state, batch)
    self.assertEqual(metrics['loss'].shape, (1,))

  @pytest.mark.nightly
  def test_cost(self):
    def cost(**fields):
      config = tiny(6, seeds=(0,), **fields)
      job = script('_adapters_training').make_job(config)
      compiled = job.step().lower(*job.abstract()).compile()
      return compiled.cost_analysis()['flops']

    full = cost(mode='full')
    self.assertLess(cost() / full, 0.8)
    self.assertLess(cost(mode='top_k', k=1) / full, 0.5)

  def test_bad_configs(self):
    training, usage = script('_adapters_training'), script('_command_line')
    for fields, words in (
      ({'model': ''}, 'config.model is empty'),
      ({'max_len': 2}, 'config.max_len'),
      ({'mode': 'top_k', 'k': 5}, 'from 1 to 2'),
      ({'task': 'mine', 'data': 'nowhere'}, 'mine.tsv'),
      ({'sharding': 'pipeline'}, 'pipeline'),
      ({'layout': 'csv'}, 'layout'),
    ):
      with self.assertRaisesRegex(usage.UsageError, words):
        training.make_job(tiny(**fields))
    config = tiny()
    config.adapter.layer_sizes = (4, 4, 4)
    with self.assertRaisesRegex(usage.UsageError, 'size has 3 entries'):
      training.make_job(config)


_MESH = """
import jax
from jaxpapers import adapters, training
from tests.adapters import jobs_test

config = jobs_test.tiny(
  sharding='fsdp+tensor', scan_layers=True, remat=True, frozen='int8',
  seeds=(0, 1))
job = jobs_test.script('_adapters_training').make_job(config)
mesh = training.make_mesh('data:2,fsdp:2,model:2')
state, batch = job.abstract(mesh)
step = job.step(mesh)
kernel = step.frozen['encoder']['layers']['ffn']['intermediate']['kernel']
assert kernel.values.dtype == 'int8', kernel
shard = kernel.values.sharding.shard_shape(kernel.values.shape)
assert shard == (2, 16, 64), shard
# All rows of the token table can be divided.
table = step.frozen['encoder']['token_embedding']['embedding'].values
assert table.shape == (128, 32), table.shape
step.lower(state, batch).compile()
print('fine')
"""


class MeshTest(absltest.TestCase):
  @pytest.mark.slow
  def test_sharded_step(self):
    self.assertIn('fine', devices.run(_MESH))


class TpuTest(absltest.TestCase):
  @pytest.mark.nightly
  def test_bert_large_on_four_chips(self):
    if importlib.util.find_spec('libtpu') is None:
      raise unittest.SkipTest(
        "libtpu is not installed: pip install 'jaxpapers[tpu]' compiles for"
        ' TPUs on x86-64 Linux.'
      )
    reports = {}
    for mode in ('adapter', 'full'):
      with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, 'report.json')
        done = scripts.run(
          'compile_for_tpu',
          '--script=adapters_finetune',
          '--config.model=random',
          '--config.architecture.hidden_size=1024',
          '--config.architecture.num_layers=24',
          '--config.architecture.num_heads=16',
          '--config.architecture.mlp_dim=4096',
          '--config.scan_layers',
          '--config.bfloat16',
          '--config.task=MNLI',
          '--config.seeds=(0,)',
          f'--config.mode={mode}',
          '--topology=v5e:2x2',
          f'--json={path}',
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        reports[mode] = json.loads(path.read_text())
    self.assertBetween(
      reports['adapter']['flops'] / reports['full']['flops'], 0.6, 0.75
    )
    # Three times 355 million float32 numbers against one and a little.
    self.assertLess(
      reports['adapter']['arguments'], 0.37 * reports['full']['arguments']
    )


if __name__ == '__main__':
  absltest.main()
