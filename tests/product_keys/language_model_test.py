"""Tests of transformers with memories, and of sparse training steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import product_keys as pk
from jaxpapers import training
from jaxpapers.nn.transformer import EncoderConfig, TransformerEncoder
from tests.helpers import goldens

META = goldens.load_json('product_keys', 'pub_meta.json')


def golden_model(case):
  """XLM's transformer: model and variables."""
  memory = pk.ProductKeyMemory(n_keys=8, k_dim=8, heads=2, knn=4)
  model = pk.TransformerLM(
    30, 3, 24, 3, memory_positions='1,2+', memory=memory, max_len=16
  )
  specs = META['transformer_param_names']
  w = {}
  for name, (shape, scale, post) in specs.items():
    value = goldens.normal(f'{case}/{name}', tuple(shape), scale)
    value = value.astype(np.float32)
    if post:
      value = 1 + value if post == '1+w' else 0.5 + np.abs(value)
    w[name] = jnp.asarray(value)

  def dense(name):
    return {'kernel': w[f'{name}.weight'].T, 'bias': w[f'{name}.bias']}

  def by_head(name):
    return {
      'kernel': w[f'{name}.weight'].T.reshape(24, 3, 8),
      'bias': w[f'{name}.bias'].reshape(3, 8),
    }

  def output(name):
    return {
      'kernel': w[f'{name}.weight'].T.reshape(3, 8, 24),
      'bias': w[f'{name}.bias'],
    }

  def norm(name):
    return {'scale': w[f'{name}.weight'], 'bias': w[f'{name}.bias']}

  encoder = {
    'token_embedding': {'embedding': w['embeddings.weight']},
    'position_embedding': {'embedding': w['position_embeddings.weight']},
    'embedding_norm': norm('layer_norm_emb'),
  }
  tables, stats = {}, {}
  places = {1: ('1_in', 'ffn'), 2: ('2_after', 'after')}
  for i in range(3):
    layer = {
      'attention': {
        ours: by_head(f'attentions.{i}.{theirs}_lin')
        for ours, theirs in (('query', 'q'), ('key', 'k'), ('value', 'v'))
      }
      | {'output': output(f'attentions.{i}.out_lin')},
      'attention_norm': norm(f'layer_norm1.{i}'),
      'ffn_norm': norm(f'layer_norm2.{i}'),
    }
    if i != 1:
      layer['ffn'] = {
        'intermediate': dense(f'ffns.{i}.lin1'),
        'output': dense(f'ffns.{i}.lin2'),
      }
    if i in places:
      theirs, ours = places[i]
      pre = f'memories.{theirs}'
      mlp = f'{pre}.query_proj.query_mlps'
      layer[ours] = {
        'keys': w[f'{pre}.keys'],
        'query': {'dense_0': dense(f'{mlp}.0'), 'norm_0': norm(f'{mlp}.1')},
      }
      tables[f'layers_{i}'] = {ours: {'values': w[f'{pre}.values.weight']}}
      running = {
        'mean': w[f'{mlp}.1.running_mean'],
        'var': w[f'{mlp}.1.running_var'],
      }
      stats[f'layers_{i}'] = {ours: {'query': {'norm_0': running}}}
    encoder[f'layers_{i}'] = layer
  variables = {
    'params': {'encoder': encoder, 'bias': w['pred_layer.proj.bias']},
    'memory': {'encoder': tables},
    'batch_stats': {'encoder': stats},
  }
  return model, variables


class GoldenTest(parameterized.TestCase):
  @parameterized.parameters('pub_transformer', 'pub_transformer_bn_train')
  def test_xlm(self, case):
    golden = goldens.load_npz('product_keys', f'{case}.npz')
    model, variables = golden_model(case)
    tokens = jnp.asarray(golden['tokens'].T)
    fresh = jax.eval_shape(
      lambda: model.init(jax.random.key(0), tokens, train=False)
    )
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (variables, fresh)]
    self.assertEqual(*shapes)

    def loss(variables):
      (logits, hidden), _ = model.apply(
        variables,
        tokens,
        train=case.endswith('train'),
        return_hidden=True,
        mutable='batch_stats',
      )
      log_p = jax.nn.log_softmax(logits[:, :-1])
      nll = -jnp.take_along_axis(log_p, tokens[:, 1:, None], -1)
      return nll.mean(), (logits, hidden)

    (value, (logits, hidden)), gradients = jax.jit(
      jax.value_and_grad(loss, has_aux=True)
    )(variables)
    np.testing.assert_allclose(
      hidden.swapaxes(0, 1), golden['hidden'], rtol=0, atol=1e-4
    )
    np.testing.assert_allclose(
      logits.swapaxes(0, 1)[:-1].reshape(36, 30), golden['logits'], atol=1e-4
    )
    np.testing.assert_allclose(value, golden['loss'], rtol=0, atol=1e-5)
    for layer, place, name in ((1, 'ffn', '1_in'), (2, 'after', '2_after')):
      at = f'layers_{layer}'
      params = gradients['params']['encoder'][at][place]
      query = params['query']
      pre = f'grad:memories.{name}'
      mlp = f'{pre}.query_proj.query_mlps'
      table = gradients['memory']['encoder'][at][place]['values']
      for key, ours in (
        (f'{pre}.keys', params['keys']),
        (f'{pre}.values.weight', table),
        (f'{mlp}.0.weight', query['dense_0']['kernel'].T),
        (f'{mlp}.0.bias', query['dense_0']['bias']),
        (f'{mlp}.1.weight', query['norm_0']['scale']),
        (f'{mlp}.1.bias', query['norm_0']['bias']),
      ):
        np.testing.assert_allclose(
          ours, golden[key], rtol=0, atol=1e-4, err_msg=key
        )
    embeddings = gradients['params']['encoder']['token_embedding']
    np.testing.assert_allclose(
      embeddings['embedding'],
      golden['grad:embeddings.weight'],
      rtol=0,
      atol=1e-4,
    )


SMALL = pk.ProductKeyMemory(n_keys=12, k_dim=8, heads=2, knn=3)


def small_model(memory=SMALL, positions='0,1+', **options):
  return pk.TransformerLM(
    20,
    2,
    16,
    2,
    memory_positions=positions,
    memory=memory,
    max_len=8,
    **options,
  )


def problem(model, tx, seed=0):
  """State and a batch."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, 20, (4, 9))
  batch = {
    'inputs': jnp.asarray(tokens[:, :-1]),
    'targets': jnp.asarray(tokens[:, 1:]),
  }

  def init(key):
    variables = dict(model.init(key, batch['inputs'], train=False))
    params = {name: variables.pop(name) for name in ('params', 'memory')}
    return params, variables

  return training.create_state(init, tx, jax.random.key(seed)), batch


class TrainingTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_rows_are_the_dense_gradient(self):
    self._rows_are_the_dense_gradient(SMALL, True)

  @parameterized.parameters(
    (SMALL, False),
    (pk.MemoryPlus(n_keys=12, heads=2, knn=3), True),
    (pk.PEER(n_keys=12, k_dim=8, heads=2, knn=3), False),
  )
  @pytest.mark.nightly
  def test_rows_of_others_are_too(self, memory, share):
    self._rows_are_the_dense_gradient(memory, share)

  def _rows_are_the_dense_gradient(self, memory, share):
    model = small_model(memory, share_values=share)
    state, batch = problem(model, optax.sgd(0.1))
    loss_fn = pk.language_model_loss(model)
    arguments = (state.params, state.model_state, batch, jax.random.key(1))
    (loss, (changed, _)), sparse = jax.jit(pk.sparse_value_and_grad(loss_fn))(
      *arguments
    )
    (expected, (stats, _)), dense = jax.jit(
      jax.value_and_grad(loss_fn, has_aux=True)
    )(*arguments)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    self.assertEqual(jax.tree.structure(changed), jax.tree.structure(stats))
    is_rows = lambda x: isinstance(x, pk.RowSparse)  # noqa: E731
    full = jax.tree.map(
      lambda g, d: g.dense(d.shape[0]) if is_rows(g) else g,
      sparse,
      dense,
      is_leaf=is_rows,
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), full, dense
    )
    self.assertTrue(
      all(
        is_rows(x) for x in jax.tree.leaves(sparse['memory'], is_leaf=is_rows)
      )
    )

  @pytest.mark.slow
  def test_a_step_of_either_kind_gives_the_same(self):
    # XLM's Adam of a dense gradient and of rows made dense.
    model = small_model()
    make = functools.partial(
      pk.memory_optimizer, optax.sgd(0.1), value_lr=1e-2, mode='dense'
    )
    # Clipping sees the same numbers in another order of summation.
    state, batch = problem(model, make())
    loss_fn = pk.language_model_loss(model)
    one, metrics = pk.make_memory_train_step(loss_fn, make(), donate=False)(
      state, batch
    )
    two, wanted = training.make_train_step(loss_fn, make(), donate=False)(
      state, batch
    )
    chex_close(one.params, two.params, 1e-5)
    chex_close(metrics, wanted, 1e-5)

  @pytest.mark.slow
  def test_compiles_once_and_learns(self):
    model = small_model()
    tx = pk.memory_optimizer(optax.adam(1e-2), value_lr=1e-2)
    state, batch = problem(model, tx)
    step = pk.make_memory_train_step(pk.language_model_loss(model), tx)
    losses = []
    for _ in range(6):
      state, metrics = step(state, batch)
      losses.append(float(metrics['loss']))
    self.assertEqual(step._cache_size(), 1)
    self.assertLess(losses[-1], losses[0])

  def test_job_refuses_what_a_sparse_step_has_not(self):
    model = small_model()
    with self.assertRaisesRegex(ValueError, 'ema is 0.9'):
      pk.MemoryJob(
        lambda key: None,
        pk.language_model_loss(model),
        optax.sgd(0.1),
        {},
        ema=0.9,
      )


def chex_close(a, b, atol):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


class PositionsTest(parameterized.TestCase):
  def test_words(self):
    inside, after = pk.parse_positions('5, 11+,11', 12)
    self.assertEqual((set(inside), set(after)), ({5, 11}, {11}))
    self.assertEqual(pk.parse_positions('', 2), (frozenset(), frozenset()))

  @parameterized.parameters('12', 'a', '-1', '1++', '3,3', '+')
  def test_bad(self, text):
    with self.assertRaisesRegex(ValueError, 'memory_positions has'):
      pk.parse_positions(text, 12)

  def test_model_without_a_memory(self):
    with self.assertRaisesRegex(ValueError, 'memory is None'):
      jax.eval_shape(
        lambda: small_model(None).init(
          jax.random.key(0), jnp.zeros((1, 4), jnp.int32), train=False
        )
      )

  @pytest.mark.slow
  def test_causal(self):
    model = small_model()
    tokens = jnp.arange(8)[None]
    variables = model.init(jax.random.key(0), tokens, train=False)
    apply = jax.jit(lambda t: model.apply(variables, t, train=False))
    before = apply(tokens)
    after = apply(tokens.at[0, 5:].set(17))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    self.assertFalse(bool((before[:, 5:] == after[:, 5:]).all()))

  @parameterized.parameters(False, True)
  @pytest.mark.nightly
  def test_scanned_and_recomputed_layers(self, scan):
    ffn, after = pk.memory_factories(SMALL, '0,1', 2)
    config = EncoderConfig(
      20, 16, 2, 2, 32, max_len=8, scan_layers=scan, remat=True
    )
    encoder = TransformerEncoder(config, ffn=ffn, after=after)
    ids = jnp.array([[0, 7, 8, 2, 3, 4]])
    variables = dict(encoder.init(jax.random.key(0), ids))

    def loss(variables):
      y, _ = encoder.apply(
        variables,
        ids,
        deterministic=False,
        mutable=['batch_stats'],
        rngs={'dropout': jax.random.key(1)},
      )
      return jnp.sum(y**2 * jnp.arange(16))

    gradients = jax.jit(jax.grad(loss))(variables)
    table = jax.tree.leaves(gradients['memory'])
    self.assertGreater(float(jnp.abs(table[0]).max()), 0)
    if scan:
      self.assertEqual(table[0].shape, (2, 144, 16))
    bad, _ = pk.memory_factories(SMALL, '0', 2)
    with self.assertRaises(ValueError):
      TransformerEncoder(config.replace(scan_layers=True), ffn=bad).init(
        jax.random.key(0), ids
      )


if __name__ == '__main__':
  absltest.main()
