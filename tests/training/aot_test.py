"""Compiling for TPUs that are not here, and reading what comes out."""

import importlib.util
import json
import pathlib
import tempfile
import unittest

import jax
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxpapers import training
from jaxpapers.training import aot
from tests.helpers import scripts
from tests.training import toy


def require_libtpu():
  if importlib.util.find_spec('libtpu') is None:
    raise unittest.SkipTest(
      "libtpu is not installed: pip install 'jaxpapers[tpu]' compiles for TPUs"
      ' on x86-64 Linux.'
    )


def toy_job(**options):
  batch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), toy.example_batch(0)
  )
  return training.Job(toy.init, toy.loss_fn, optax.adam(1e-2), batch, **options)


class JobTest(parameterized.TestCase):
  @parameterized.parameters(
    {}, {'ema': 0.9, 'accumulate': 2}, {'population': 3}
  )
  def test_abstract_is_what_is_trained(self, **options):
    job = toy_job(**options)
    mesh = training.make_mesh('data:-1')
    abstract, batch = job.abstract(mesh)
    state = job.state(jax.random.key(0), mesh)
    found = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state)
    expected = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), abstract)
    self.assertEqual(found, expected)
    compiled = job.step(mesh).lower(abstract, batch).compile()
    state, metrics = compiled(
      state, training.put_batch(toy.example_batch(0), mesh)
    )
    self.assertTrue(np.isfinite(metrics['loss']).all())


class CollectivesTest(absltest.TestCase):
  def test_counts(self):
    hlo = """
      %a = f32[16,4]{1,0:T(8,128)} all-reduce(%x), channel_id=1
      %b = (f32[], bf16[8]{0}) all-reduce(%x, %y), channel_id=2
      %c = (f32[4]{0}, f32[16]{0}) all-gather-start(%z), dimensions={0}
      %d = f32[16]{0} all-gather-done(%c)
      %e = s32[2,2]{1,0} collective-permute(%w), source_target_pairs={{0,1}}
      %f = f32[4]{0} add(%all-reduce.3, %g)
    """
    self.assertEqual(
      aot.count_collectives(hlo),
      {
        'all-reduce': (2, 256 + 4 + 16),
        'all-gather': (1, 64),
        'collective-permute': (1, 16),
      },
    )
    self.assertEqual(aot.count_collectives('%a = f32[] add(%b, %c)'), {})

  def test_reads_what_xla_writes(self):
    # On the CPU of this process: no collectives, and text of the same kind.
    text = jax.jit(lambda x: x.sum()).lower(np.ones(4)).compile().as_text()
    self.assertIn('= f32[]', text)
    self.assertEqual(aot.count_collectives(text), {})


class TpuTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    require_libtpu()

  def test_toy_step_on_four_chips(self):
    report = aot.compile_job(toy_job(), 'v5e:2x2', 'data:-1')
    self.assertEqual(report.device_kind, 'TPU v5 lite')
    self.assertEqual(dict(report.mesh), {'data': 4})
    # Gradients are summed over the chips; nothing is gathered.
    self.assertGreater(report.collectives['all-reduce'][0], 0)
    self.assertNotIn('all-gather', report.collectives)
    self.assertBetween(report.total, 1, report.available)
    self.assertGreater(report.flops, 0)
    self.assertIn('all-reduce', str(report))
    json.dumps(report.as_dict())

  def test_bad_topologies_and_meshes(self):
    with self.assertRaisesRegex(ValueError, "topology 'v5e:oak'.*v5e:2x2"):
      aot.compile_job(toy_job(), 'v5e:oak')
    with self.assertRaisesRegex(ValueError, r'4 device\(s\)'):
      aot.compile_job(toy_job(), 'v5e:2x2', 'data:3')

  def test_script_compiles_the_mnist_step(self):
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder, 'report.json')
      done = scripts.run(
        'compile_for_tpu',
        '--script=layca_mnist',
        '--topology=v5e:2x2',
        f'--json={path}',
      )
      self.assertEqual(done.returncode, 0, done.stderr)
      report = json.loads(path.read_text())
    self.assertIn('memory per device', done.stdout)
    self.assertEqual(report['mesh'], {'data': 4})
    self.assertGreater(report['collectives']['all-reduce'][0], 0)


class ScriptTest(absltest.TestCase):
  def test_usage(self):
    for flags, words in (
      ([], ['--script']),
      (['--script=layca_nist'], ['layca_nist', 'layca_mnist']),
      (['--script=layca_mnist', '--toplogy=v5e:2x2'], ['toplogy']),
    ):
      done = scripts.run('compile_for_tpu', *flags)
      scripts.assert_usage_error(self, done, *words)

  def test_without_libtpu(self):
    if importlib.util.find_spec('libtpu') is not None:
      self.skipTest('libtpu is installed')
    done = scripts.run('compile_for_tpu', '--script=layca_mnist')
    scripts.assert_usage_error(self, done, 'libtpu', 'jaxpapers[tpu]')


if __name__ == '__main__':
  absltest.main()
