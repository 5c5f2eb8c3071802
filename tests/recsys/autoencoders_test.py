"""Tests of Mult-VAE and Mult-DAE against the authors' graph."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import recsys
from jaxpapers.recsys import autoencoders, reproduction, sampling, studies
from tests.helpers import data, goldens

# Our layer -> theirs (kernel, bias).
_VAE = {
  'encoder_0': ('weight_q_0to1', 'bias_q_1', 40, 12),
  'encoder_1': ('weight_q_1to2', 'bias_q_2', 12, 12),
  'decoder_0': ('weight_p_0to1', 'bias_p_1', 6, 12),
  'decoder_1': ('weight_p_1to2', 'bias_p_2', 12, 40),
}
_DAE = {
  f'layer_{i}': (f'weight_{i}to{i + 1}', f'bias_{i + 1}', rows, columns)
  for i, (rows, columns) in enumerate(((40, 12), (12, 6), (6, 12), (12, 40)))
}


def _weights(prefix, layers):
  def normal(name, shape, scale):
    return goldens.normal(f'{prefix}/{name}', shape, scale).astype(np.float32)

  return {
    ours: {
      'kernel': normal(kernel, (rows, columns), 0.3),
      'bias': normal(bias, (columns,), 0.05),
    }
    for ours, (kernel, bias, rows, columns) in layers.items()
  }


class GoldenTest(parameterized.TestCase):
  @parameterized.parameters('multvae', 'multdae')
  def test_outputs_gradients_and_training(self, name):
    golden = goldens.load_npz('recsys', 'neural_tf1.npz')
    layers = _VAE if name == 'multvae' else _DAE
    module = (
      autoencoders.MultVAE(40, (12,), 6)
      if name == 'multvae'
      else autoencoders.MultDAE(40, (12, 6, 12))
    )
    x = golden['mult_x']
    tx = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
      loss, gradients = jax.value_and_grad(
        lambda p: autoencoders.profile_loss(module, p, x, beta=0.2, l2=0.01)
      )(params)
      updates, state = tx.update(gradients, state)
      return optax.apply_updates(params, updates), state, loss, gradients

    params = _weights(name, layers)
    logits = jax.jit(module.apply)({'params': params}, x)[0]
    np.testing.assert_allclose(logits, golden[f'{name}/logits'], atol=1e-5)
    state = tx.init(params)
    losses = []
    for i in range(4):
      params, state, loss, gradients = step(params, state)
      losses.append(float(loss))
      if not i:
        for ours, (kernel, bias, *_) in layers.items():
          for part, theirs in (('kernel', kernel), ('bias', bias)):
            expected = golden[f'{name}/grad/{theirs}']
            np.testing.assert_allclose(
              gradients[ours][part],
              expected,
              atol=1e-5 * np.abs(expected).max(),
              rtol=1e-5,
            )
    np.testing.assert_allclose(losses[0], golden[f'{name}/loss'], rtol=1e-6)
    np.testing.assert_allclose(
      losses[3], golden[f'{name}/loss_after_3_adam_steps'], rtol=1e-6
    )
    if name == 'multvae':
      # Not of the DAE: its l2 term was read in the middle of an update.
      np.testing.assert_allclose(
        losses[:3], golden[f'{name}/loss_before_each_adam_step'], rtol=1e-6
      )


def _groups(users=60, items=20, seed=0):
  """Two groups of users with tastes of their own."""
  rng = np.random.default_rng(seed)
  likes = np.arange(items) % 2 == np.arange(users)[:, None] % 2
  dense = rng.random((users, items)) < np.where(likes, 0.5, 0.05)
  dense[:, :2] |= likes[:, :2]
  return recsys.from_dense(dense)


_SMALL = {'hidden': (16,), 'learning_rate': 1e-2, 'batch_size': 25}


class FitTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.data = _groups()
    cls.model = recsys.mult_vae(cls.data, latent=4, epochs=30, **_SMALL)

  def test_learns_and_scores_new_users(self):
    fresh = recsys.interactions([0, 1], [4, 5], shape=(3, 20))
    scores = np.asarray(recsys.score(self.model, fresh, [0, 1, 2]))
    even = np.arange(20) % 2 == 0
    self.assertGreater(scores[0][even].min(), scores[0][~even].max())
    self.assertGreater(scores[1][~even].min(), scores[1][even].max())
    self.assertTrue(np.isfinite(scores[2]).all())  # Nothing is known of them.
    with self.assertRaisesRegex(ValueError, '20 items; train has 3'):
      recsys.score(self.model, recsys.interactions([0], [2]), [0])

  def test_same_seed_same_model_and_the_dae(self):
    seen = []

    def monitor(epoch, model):
      seen.append(model)
      return epoch == 2

    first, second = (
      recsys.mult_dae(self.data, epochs=3, monitor=m, **_SMALL)
      for m in (monitor, None)
    )
    self.assertLen(seen, 2)
    jax.tree.map(np.testing.assert_array_equal, first.params, seen[1].params)
    # What a monitor was given stays what it was.
    difference = jax.tree.map(
      lambda a, b: float(np.abs(a - b).max()), seen[0].params, first.params
    )
    self.assertGreater(max(jax.tree.leaves(difference)), 1e-4)
    again = recsys.mult_dae(self.data, epochs=3, **_SMALL)
    jax.tree.map(np.testing.assert_array_equal, second.params, again.params)

  def test_an_epoch_sees_each_user_once(self):
    # Without dropout and with a rate of 0, the losses of the steps are those
    # of the users, the batch that is not full included.
    x = _groups(users=33)
    module = autoencoders.MultDAE(20, (8,), keep=1.0)
    params = module.init(jax.random.key(1), jnp.zeros((1, 20)))['params']
    counts = x.user_counts()
    csr = sampling.Csr(
      *map(jnp.asarray, (x.row_starts, x.item, x.value)),
      jnp.arange(33),
    )
    tx = optax.sgd(0.0)
    epoch = autoencoders.make_epoch(
      module, tx, lambda count: 0.0, 0.0, 10, int(counts.max())
    )
    state = (params, tx.init(params), jnp.zeros((), jnp.int32))
    (_, _, count), losses = epoch(jax.random.key(0), csr, state)
    self.assertEqual(count, 4)
    total = float(losses[:3].sum() * 10 + losses[3] * 3)
    whole = autoencoders.profile_loss(module, params, x.to_dense())
    np.testing.assert_allclose(total, 33 * float(whole), rtol=1e-5)

  def test_refusals(self):
    for options, words in (
      ({'epochs': 0}, 'epochs is 0'),
      ({'keep': 0.0}, 'keep is 0'),
      ({'total_anneal_steps': 0}, 'steps is 0'),
    ):
      with self.assertRaisesRegex(ValueError, words):
        recsys.mult_vae(self.data, **options)
    empty = self.data.select(np.zeros(len(self.data), bool))
    with self.assertRaisesRegex(ValueError, 'train is empty'):
      recsys.mult_vae(empty)


class StrongGeneralisationTest(absltest.TestCase):
  @pytest.mark.nightly
  def test_held_out_users_of_movielens(self):
    path = data.require('recsys', 'ml1m_4star.npz')
    study = studies.find('strong_ml1m')
    parts = study.load(path)
    options = {'profiles': parts.profiles}
    monitor = recsys.EarlyStopping(
      parts.search_train, parts.validation, metric='ndcg', cutoff=100,
      **reproduction.validation_options(parts),
    )  # fmt: skip
    models = {
      'Mult VAE': recsys.fit(
        'Mult VAE', parts.train, {'batch_size': 250}, monitor=monitor
      ),
      'TopPopular': recsys.fit('TopPopular', parts.train),
      'ItemKNN': recsys.fit('ItemKNN CF cosine', parts.train),
      'EASE': recsys.fit('EASE_R', parts.train, {'l2': 300.0}),
    }
    found = {
      name: recsys.evaluate_model(
        model, parts.train, parts.test, (100,), metrics=('ndcg',), **options
      ).mean('ndcg', 100)
      for name, model in models.items()
    }
    self.assertEqual(
      sorted(found, key=found.get),
      ['TopPopular', 'ItemKNN', 'Mult VAE', 'EASE'],
    )
    # The original code's numbers; it drew other items of the held-out users.
    expected = {
      'TopPopular': 0.224, 'ItemKNN': 0.361, 'Mult VAE': 0.393, 'EASE': 0.42,
    }  # fmt: skip
    for name, value in expected.items():
      delta = 0.015 if name == 'Mult VAE' else 0.01
      self.assertAlmostEqual(found[name], value, delta=delta, msg=name)
    self.assertBetween(monitor.best_epoch, 30, 120)


if __name__ == '__main__':
  absltest.main()
