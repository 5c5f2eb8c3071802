"""Tests of GMF, MLP and NeuMF against the authors' Keras networks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import recsys
from jaxpapers.recsys import (
  models,
  neural_cf,
  neural_cf_training,
  reproduction,
  sampling,
  search,
)
from tests.helpers import goldens

_GOLDEN = goldens.load_npz('recsys', 'neural_keras.npz')
_PAIRS = (_GOLDEN['ncf/users'], _GOLDEN['ncf/items'], _GOLDEN['ncf/labels'])
_MODULES = {
  'gmf': neural_cf.GMF(7, 11, 4),
  'mlp': neural_cf.MLPRec(7, 11, (8, 6, 4)),
  'neumf': neural_cf.NeuMF(7, 11, 4, (8, 6, 4)),
}
# NeuMF's names of tables in the original.
_TABLES = {
  f'{part}_{side}_embedding': f'{part}_embedding_{side}'
  for part in ('mf', 'mlp')
  for side in ('user', 'item')
}


def _theirs(ours):
  return _TABLES.get(ours, ours)


def _weights(name):
  """Parameters of a network, by the names of the original's."""
  module = _MODULES[name]
  zero = jnp.zeros(1, jnp.int32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), zero, zero)

  def leaf(path, shape):
    layer, kind = path[0].key, path[1].key
    kind = 'embeddings' if kind == 'embedding' else kind
    tag = f'{name}/{_theirs(layer)}/{kind}'
    return goldens.normal(tag, shape.shape, 0.3).astype(np.float32)

  return jax.tree_util.tree_map_with_path(leaf, shapes['params'])


def _golden_gradient(case, layer, kind):
  """Keras counts layers of one name: user_embedding_1/embeddings:0."""
  kind = 'embeddings' if kind == 'embedding' else kind
  for suffix in ('', '_1', '_2', '_3'):
    found = _GOLDEN.get(f'{case}/grad/{_theirs(layer)}{suffix}/{kind}:0')
    if found is not None:
      return found
  raise AssertionError((case, layer, kind))


class GoldenTest(parameterized.TestCase):
  def _check(self, case, module, params, **penalties):
    @jax.jit
    def both(params):
      logits = module.apply({'params': params}, *_PAIRS[:2])
      return jax.nn.sigmoid(logits), jax.value_and_grad(
        lambda p: neural_cf.pair_loss(module, p, *_PAIRS, **penalties)
      )(params)

    predicted, (loss, gradients) = both(params)
    np.testing.assert_allclose(predicted, _GOLDEN[f'{case}/pred'], atol=1e-6)
    np.testing.assert_allclose(loss, _GOLDEN[f'{case}/loss'], rtol=1e-5)
    for layer, parts in gradients.items():
      for kind, gradient in parts.items():
        expected = _golden_gradient(case, layer, kind)
        np.testing.assert_allclose(
          gradient,
          expected,
          atol=1e-5 * np.abs(expected).max(),
          rtol=1e-5,
          err_msg=f'{case} {layer} {kind}',
        )
    # All items at once, by the separated first layer.
    every = neural_cf.score_all(module, params, _PAIRS[0])
    np.testing.assert_allclose(
      jax.nn.sigmoid(every)[np.arange(10), _PAIRS[1]], predicted, atol=1e-6
    )

  @parameterized.parameters('gmf', 'mlp')
  def test_outputs_and_gradients(self, name):
    self._check(name, _MODULES[name], _weights(name))

  def test_neumf_with_penalties(self):
    self._check(
      'neumf', _MODULES['neumf'], _weights('neumf'),
      reg_mf=0.02, reg_layers=0.01,
    )  # fmt: skip

  def test_neumf_of_pretrained_parts(self):
    module = _MODULES['neumf']
    params = neural_cf.fuse(_weights('gmf'), _weights('mlp'))
    self._check('neumf_from_pretrain', module, params)
    tx = optax.sgd(0.1)

    @jax.jit
    def step(params):
      loss, gradients = jax.value_and_grad(
        lambda p: neural_cf.pair_loss(module, p, *_PAIRS)
      )(params)
      updates, _ = tx.update(gradients, tx.init(params))
      return optax.apply_updates(params, updates), loss

    losses = []
    for _ in range(3):
      params, loss = step(params)
      losses.append(float(loss))
    np.testing.assert_allclose(
      losses, _GOLDEN['neumf_from_pretrain/sgd_train_losses'], rtol=1e-6
    )
    np.testing.assert_allclose(
      jax.nn.sigmoid(module.apply({'params': params}, *_PAIRS[:2])),
      _GOLDEN['neumf_from_pretrain/sgd_pred_after'],
      atol=1e-6,
    )


def _groups(users=40, items=20, seed=0):
  """Two groups of users with tastes of their own."""
  rng = np.random.default_rng(seed)
  likes = np.arange(items) % 2 == np.arange(users)[:, None] % 2
  dense = rng.random((users, items)) < np.where(likes, 0.5, 0.03)
  dense[:, :2] |= likes[:, :2]
  return recsys.from_dense(dense)


class FitTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.data = _groups()
    cls.search, cls.validation = recsys.split_user_fraction(0, cls.data, 0.8)

  @pytest.mark.slow
  def test_phases_choose_their_epochs_on_validation_data(self):
    options = {
      'factors': 4, 'batch_size': 32, 'learning_rate_pretrain': 0.02,
      'learning_rate': 0.01,
    }  # fmt: skip
    monitor = recsys.EarlyStopping(
      self.search, self.validation, metric='ndcg', cutoff=5, patience=2
    )
    limits = {'epochs': 10, 'epochs_gmf': 25, 'epochs_mlp': 20}
    model = recsys.fit('NeuMF', self.search, {**options, **limits},
                       monitor=monitor)  # fmt: skip
    chosen = monitor.epochs()
    self.assertSameElements(chosen, limits)
    self.assertEqual(
      chosen['epochs_gmf'], monitor.phases['epochs_gmf'].best_epoch
    )
    result = recsys.evaluate_model(model, self.search, self.validation, (5,))
    self.assertAlmostEqual(result.mean('ndcg', 5), monitor.best_value)
    # The taste of one's group is learnt.
    scores = np.asarray(recsys.score(model, self.search, np.arange(40)))
    even = scores[:, ::2].mean(1) > scores[:, 1::2].mean(1)
    self.assertGreater((even == (np.arange(40) % 2 == 0)).mean(), 0.9)
    some = np.array([[3, 4], [0, 19]])
    found = models.score_candidates(model, self.search, [2, 5], some)
    np.testing.assert_allclose(
      found, np.take_along_axis(scores[[2, 5]], some, 1), atol=1e-5
    )
    # The chosen numbers are what a search hands to the last fit.
    trial = search.Trial(0, {'factors': 4}, 0.5, chosen)
    self.assertEqual(
      reproduction.best_parameters(trial), {'factors': 4, **chosen}
    )
    small = recsys.interactions([0], [2])
    with self.assertRaisesRegex(ValueError, '40 users and 20 items'):
      recsys.score(model, small, [0])
    with self.assertRaisesRegex(ValueError, '40 users and 20 items'):
      models.score_candidates(model, small, [0], np.array([[1]]))
    # As many epochs of each part as may be, and of the last fit no more.
    objective = recsys.validation_objective(
      'NeuMF', self.search, self.validation, max_epochs=2
    )
    found = objective({'factors': 4, 'batch_size': 32})
    self.assertEqual({k: found[k] for k in limits}, dict.fromkeys(limits, 2))

  def test_an_epoch_has_each_interaction_once_and_negatives_of_the_user(self):
    # All logits are 2: the losses of the steps count labels.
    data = recsys.from_dense(np.eye(6)[:, :5][:5] + np.eye(5)[::-1])
    csr = sampling.put(data)
    module = neural_cf.GMF(5, 5, 2)
    params = neural_cf_training._init(module, jax.random.key(0))
    params['prediction']['kernel'] *= 0
    params['prediction']['bias'] = jnp.array([2.0])
    state = (params, optax.sgd(0.0).init(params))
    (_, _), losses = neural_cf_training.run_epoch(
      jax.random.key(1), csr, jnp.asarray(data.user), state, (0.0, 0.0, 0.0),
      module, 'sgd', 4, 3,
    )  # fmt: skip
    number = 4 * len(data)
    sizes = np.full(len(losses), 4)
    sizes[-1] = number - 4 * (len(losses) - 1)
    positive, negative = np.log1p(np.exp(-2.0)), np.log1p(np.exp(2.0))
    expected = len(data) * (positive + 3 * negative)
    self.assertAlmostEqual(float((losses * sizes).sum()), expected, places=3)

  def test_refusals(self):
    for options, words in (
      ({'epochs': 0}, 'epochs is 0'),
      ({'learner': 'adagrad'}, 'learner is'),
      ({'layers': (5, 2)}, 'layers is'),
      ({'factors': 0}, 'factors is 0'),
    ):
      with self.assertRaisesRegex(ValueError, words):
        recsys.neumf(self.data, **{'pretrain': False, **options})


if __name__ == '__main__':
  absltest.main()
