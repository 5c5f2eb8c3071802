"""Masked-LM steps: accumulated, compiled once, on meshes of eight devices."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized
from jax.sharding import PartitionSpec as P

from jaxpapers import training
from jaxpapers.nn import EncoderConfig
from jaxpapers.roberta import losses, sharding
from jaxpapers.roberta import model as models
from tests.helpers import devices

SMALL = {
  'vocab_size': 97,
  'hidden_size': 16,
  'num_layers': 2,
  'num_heads': 4,
  'mlp_dim': 32,
  'max_len': 16,
  'vocab_multiple': 8,
  # Compiles in half the time.
  'scan_layers': True,
}


def make_loss(config, by_count=True):
  """A masked-LM loss of batches that say themselves what is masked."""
  model = models.RobertaForMaskedLM(config)

  def loss_fn(params, model_state, batch, rng):
    logits = model.apply(
      {'params': params},
      batch['ids'],
      positions=batch['positions'],
      deterministic=False,
      rngs={'dropout': rng},
    )
    total, count = losses.mlm_loss(logits, batch['targets'], batch['weights'])
    metrics = {'count': count} if by_count else {}
    return total / jnp.maximum(count, 1), (model_state, metrics)

  def init(key):
    return model.init(key, jnp.zeros((1, 4), jnp.int32))['params'], {}

  return init, loss_fn


def make_batch(seed=0, size=32, length=16):
  """Rows of unequal lengths and unequal numbers of masked tokens."""
  rng = np.random.default_rng(seed)
  ids = rng.integers(4, 97, (size, length))
  lengths = rng.integers(4, length + 1, size)
  ids[np.arange(length) >= lengths[:, None]] = 1
  counts = rng.integers(0, 4, size)
  return {
    'ids': ids.astype(np.int32),
    'positions': rng.integers(0, 4, (size, 3)).astype(np.int32),
    'targets': rng.integers(4, 97, (size, 3)).astype(np.int32),
    'weights': (np.arange(3) < counts[:, None]).astype(np.float32),
  }


class AccumulationTest(parameterized.TestCase):
  def gradient(self, accumulate, by_count=True):
    """Gradient of a batch of 32, read off a step of descent, float64."""
    config = EncoderConfig(
      **SMALL | {'num_layers': 1, 'scan_layers': False},
      dropout_rate=0.0,
      attention_dropout_rate=0.0,
      dtype=jnp.float64,
      param_dtype=jnp.float64,
    )
    init, loss_fn = make_loss(config, by_count)
    tx = optax.sgd(1.0)
    state = training.create_state(init, tx, jax.random.key(0))
    step = training.make_train_step(
      loss_fn, tx, accumulate=accumulate, donate=False
    )
    new, metrics = step(state, make_batch())
    gradient = jax.tree.map(lambda a, b: a - b, state.params, new.params)
    return np.concatenate(
      [np.ravel(leaf) for leaf in jax.tree.leaves(gradient)]
    ), metrics

  @pytest.mark.slow
  def test_equals_the_whole_batch(self):
    with jax.enable_x64(True):
      whole, metrics = self.gradient(1)
      size = np.linalg.norm(whole)
      for parts in (4, 8):
        split, sums = self.gradient(parts)
        self.assertLess(np.linalg.norm(split - whole) / size, 1e-6)
        np.testing.assert_allclose(sums['loss'], metrics['loss'], rtol=1e-6)
        self.assertEqual(sums['count'], metrics['count'])
      # The test tells: a mean of the microbatches' means is another gradient.
      means, _ = self.gradient(8, by_count=False)
      self.assertGreater(np.linalg.norm(means - whole) / size, 1e-3)


class CompilationTest(absltest.TestCase):
  @pytest.mark.slow
  def test_one_program(self):
    traces = []
    init, inner = make_loss(EncoderConfig(**SMALL))

    def loss_fn(*arguments):
      traces.append(None)
      return inner(*arguments)

    tx = optax.adam(1e-3)
    state = training.create_state(init, tx, jax.random.key(0))
    step = training.make_train_step(loss_fn, tx)
    seen = []
    for i in range(20):
      state, metrics = step(state, make_batch(i, size=4))
      seen.append(float(metrics['loss']))
    self.assertLen(traces, 1)
    self.assertEqual(step._cache_size(), 1)
    self.assertTrue(np.isfinite(seen).all())


class RulesTest(parameterized.TestCase):
  def test_kinds(self):
    self.assertEqual(sharding.encoder_rules('data'), [])
    with self.assertRaisesRegex(ValueError, "kind is 'pipeline'"):
      sharding.encoder_rules('pipeline')

  def test_every_large_leaf_is_split(self):
    # Of RoBERTa-base and its head: nothing above 1 MB is on every device.
    out = devices.run(
      """
      import json
      import jax
      import jax.numpy as jnp
      from jaxpapers import training
      from jaxpapers.nn import EncoderConfig
      from jaxpapers.roberta import config, model, sharding

      found = {}
      for scan in (False, True):
        base = config.roberta_base(vocab_multiple=128, scan_layers=scan)
        masked = model.RobertaForMaskedLM(base, tie=False)
        shapes = jax.eval_shape(
          masked.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
        for kind in ('fsdp', 'tensor', 'fsdp+tensor'):
          mesh = training.make_mesh('data:1,fsdp:4,model:2')
          tree = training.shard_rules(
            shapes, sharding.encoder_rules(kind), mesh)
          sizes = jax.tree.map(
            lambda s, x: [
              x.size,
              x.size // int(jnp.prod(jnp.array(s.shard_shape(x.shape))))],
            tree, shapes)
          flat = jax.tree_util.tree_leaves_with_path(
            sizes, is_leaf=lambda x: isinstance(x, list))
          found[f'{kind} {scan}'] = [
            [jax.tree_util.keystr(p, simple=True, separator='/'), *v]
            for p, v in flat]
      odd = config.roberta_base()
      shapes = jax.eval_shape(
        model.RobertaForMaskedLM(odd).init, jax.random.key(0),
        jnp.zeros((1, 4), jnp.int32))
      try:
        training.shard_rules(shapes, sharding.encoder_rules('tensor'), mesh)
      except ValueError as error:
        found['error'] = str(error)
      print(json.dumps(found))
      """
    )
    found = json.loads(out)
    self.assertIn('vocab_multiple=2', found.pop('error'))
    self.assertLen(found, 6)
    for name, leaves in found.items():
      parts = {'fsdp': 4, 'tensor': 2, 'fsdp+tensor': 8}[name.split()[0]]
      for path, size, split in leaves:
        if size > 2**18:
          whole = name.startswith('tensor') and (
            'position_embedding' in path or 'lm_head/dense' in path
          )
          least = 1 if whole else min(parts, 4 if 'position' in path else 8)
          if 'lm_head/dense' in path and not whole:
            least = 4
          self.assertGreaterEqual(split, least, f'{name}: {path}')


MESHES = """
import json
import sys
import jax
import numpy as np
import optax
from jaxpapers import training
from jaxpapers.nn import EncoderConfig
from jaxpapers.roberta import sharding
from tests.roberta import step_test

def run(mesh, kind, accumulate=1, **changes):
  config = EncoderConfig(**step_test.SMALL | changes)
  init, loss_fn = step_test.make_loss(config)
  tx = optax.sgd(0.1, momentum=0.9)
  options = {
    'mesh': mesh and training.make_mesh(mesh),
    'rules': sharding.encoder_rules(kind),
  }
  state = training.create_state(init, tx, jax.random.key(0), **options)
  step = training.make_train_step(
    loss_fn, tx, accumulate=accumulate, **options)
  losses = []
  for seed in range(2):
    batch = training.put_batch(step_test.make_batch(seed), options['mesh'])
    state, metrics = step(state, batch)
    losses.append([float(metrics[k]) for k in ('loss', 'count')])
  kernel = state.params['encoder']
  kernel = kernel['layers' if config.scan_layers else 'layers_0']
  kernel = kernel['attention']['query']['kernel']
  return {
    'losses': losses,
    'programs': step._cache_size(),
    'shard': kernel.addressable_shards[0].data.size / kernel.size,
    'norm': [
      float(np.linalg.norm(np.asarray(leaf)))
      for leaf in jax.tree.leaves(state.params)],
  }

print(json.dumps([run(*a, **k) for a, k in CASES]))
"""


class MeshTest(absltest.TestCase):
  def compare(self, cases, shards, **changes):
    """Two steps on one device, and on eight by each mesh and kind."""
    cases = [((None, 'data'), changes), *((case, changes) for case in cases)]
    out = devices.run(MESHES.replace('CASES', repr(cases)))
    one, *others = json.loads(out)
    self.assertLen(others, len(shards))
    for (case, _), many, shard in zip(cases[1:], others, shards):
      # Sums over devices come in another order: the last places differ.
      np.testing.assert_allclose(
        many['losses'], one['losses'], rtol=1e-6, err_msg=case
      )
      np.testing.assert_allclose(
        many['norm'], one['norm'], rtol=1e-5, atol=1e-6, err_msg=case
      )
      self.assertEqual(many['programs'], 1, case)
      self.assertEqual(many['shard'], shard, case)

  @pytest.mark.slow
  def test_eight_devices_equal_one(self):
    # With dropout and unequal counts.
    self.compare([('data:2,fsdp:2,model:2', 'fsdp+tensor')], [1 / 4])

  @pytest.mark.nightly
  def test_other_meshes(self):
    cases = [
      ('data:8', 'data'),
      ('data:2,fsdp:4', 'fsdp'),
      ('data:4,model:2', 'tensor'),
    ]
    shards = [1, 1 / 4, 1 / 2]
    self.compare(cases, shards, remat=True, accumulate=2)

  @pytest.mark.slow
  def test_separate_layers(self):
    cases = [('data:2,fsdp:2,model:2', 'fsdp+tensor')]
    self.compare(cases, [1 / 4], scan_layers=False)


class SpecTest(absltest.TestCase):
  def test_statistics_of_another_rank(self):
    rules = dict(sharding.encoder_rules('fsdp+tensor'))
    mesh = jax.sharding.AbstractMesh((2, 2), ('fsdp', 'model'))
    spec = rules[r'ffn/intermediate/kernel']
    self.assertEqual(
      spec('params/x', (4, 16, 32), mesh), P(None, 'fsdp', 'model')
    )
    self.assertEqual(spec('opt_state/x', (), mesh), P())
    self.assertEqual(spec('opt_state/x', (3,), mesh), P(None))
    with self.assertRaisesRegex(ValueError, 'mlp_dim'):
      spec('params/x', (16, 33), mesh)


if __name__ == '__main__':
  absltest.main()
