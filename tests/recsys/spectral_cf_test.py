"""Tests of SpectralCF and of the filter of the graph."""

import functools
import pathlib
import tempfile
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import recsys
from jaxpapers.recsys import (
  methods,
  published,
  sampling,
  spectrum,
  studies,
)
from jaxpapers.recsys import spectral_cf_network as network
from jaxpapers.recsys.tf1_optimizers import rmsprop_tf1
from tests.helpers import data, goldens, scripts

_GOLDEN = {
  name.removeprefix('spectralcf/'): value
  for name, value in goldens.load_npz('recsys', 'neural_tf1.npz').items()
  if name.startswith('spectralcf/')
}
_X = recsys.from_dense(_GOLDEN['R'])


def _weights():
  names = {
    'user_embedding': 'user_embeddings',
    'item_embedding': 'item_embeddings',
    **{f'filter_{k}': f'filter_{k}' for k in range(3)},
  }
  return names, {
    ours: jnp.asarray(
      goldens.normal(f'spectralcf/{name}', _GOLDEN[f'grad/{name}'].shape, 0.3),
      jnp.float32,
    )
    for ours, name in names.items()
  }


class SpectrumTest(parameterized.TestCase):
  @parameterized.parameters('symmetric', 'general')
  def test_golden(self, solver):
    with warnings.catch_warnings():
      warnings.simplefilter('error')  # No eigenvalue occurs twice here.
      operator = recsys.spectral_operator(_X, solver=solver)
    np.testing.assert_allclose(operator, _GOLDEN['A_hat'], atol=2e-6)

  def test_paper_differs_from_code(self):
    links = spectrum.adjacency(_X)
    degree = links.sum(1, keepdims=True)
    expected = 2 * np.eye(len(links)) - links / degree
    operator = recsys.spectral_operator(_X, mode='paper')
    np.testing.assert_allclose(operator, expected, atol=1e-6)
    # The study found the same: up to 1.1 in an entry of this graph.
    self.assertGreater(np.abs(operator - _GOLDEN['A_hat']).max(), 1)

  def test_repeated_eigenvalues_warn(self):
    twins = recsys.from_dense(np.repeat(_GOLDEN['R'], 2, 0))
    with self.assertWarnsRegex(UserWarning, 'occur more than once'):
      operator = recsys.spectral_operator(twins)
    self.assertTrue(np.isfinite(operator).all())
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      recsys.spectral_operator(twins, mode='paper')
      recsys.spectral_operator(twins, warn=False)

  def test_refusals(self):
    with self.assertRaisesRegex(ValueError, 'mode is'):
      recsys.spectral_operator(_X, mode='theirs')
    with self.assertRaisesRegex(ValueError, 'solver is'):
      recsys.spectral_operator(_X, solver='qr')


class SpectralCFTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.names, cls.params = _weights()
    module = network.SpectralCF(9, 12, 4, 3)
    triples = [_GOLDEN[name] for name in ('users', 'pos', 'neg')]

    def embed(params):
      return module.apply({'params': params}, _GOLDEN['A_hat'])

    def loss(params):
      return network.spectral_loss(*embed(params), *triples, 1e-3)

    cls.embed = staticmethod(jax.jit(embed))
    cls.loss = staticmethod(jax.jit(jax.value_and_grad(loss)))

  def ratings(self, params):
    users, items = self.embed(params)
    return (users @ items.T)[_GOLDEN['users']]

  def test_golden(self):
    np.testing.assert_allclose(
      self.ratings(self.params), _GOLDEN['all_ratings'], rtol=1e-5
    )
    loss, gradients = self.loss(self.params)
    np.testing.assert_allclose(loss, _GOLDEN['loss'], rtol=1e-6)
    for ours, name in self.names.items():
      expected = _GOLDEN[f'grad/{name}']
      np.testing.assert_allclose(
        gradients[ours], expected, atol=1e-5 * np.abs(expected).max()
      )

  def test_golden_steps(self):
    optimizer = rmsprop_tf1(1e-3)
    params, losses = self.params, []
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for _ in range(4):
      loss, gradients = self.loss(params)
      losses.append(loss)
      updates, state = update(gradients, state)
      params = jax.tree.map(jnp.add, params, updates)
    np.testing.assert_allclose(
      losses, _GOLDEN['loss_before_each_rmsprop_step'], rtol=1e-6
    )
    np.testing.assert_allclose(
      self.ratings(params), _GOLDEN['all_ratings_after_4_steps'], atol=2e-6
    )


class FitTest(absltest.TestCase):
  def test_an_epoch_is_one_batch(self):
    # Whatever the size of the data: so it is in the authors' code.
    seen = []
    fit = functools.partial(
      recsys.spectral_cf, _X, dim=4, layers=2, batch_size=5, learning_rate=0.1
    )

    class Monitor:
      every = 2

      def __call__(self, epoch, model):
        seen.append((epoch, model))
        return True

    model = fit(epochs=4, min_epochs=3, monitor=Monitor())
    self.assertEqual([epoch for epoch, _ in seen], [2, 4])
    start, key = jax.random.split(jax.random.key(0))
    module = network.SpectralCF(9, 12, 4, 2)
    operator = jnp.asarray(recsys.spectral_operator(_X))
    params = network._init(module, start, operator)
    params, state = network._steps(
      key,
      sampling.put(_X),
      operator,
      params,
      rmsprop_tf1(0.0).init(params),
      jnp.array([0.1, 1e-3]),
      module,
      5,
      2,
    )
    self.assertEqual(int(state.count), 2)
    two = network._model(module, params, operator)
    np.testing.assert_allclose(seen[0][1].users, two.users, atol=1e-6)
    np.testing.assert_array_equal(seen[1][1].items, model.items)
    self.assertGreater(np.abs(model.items - two.items).max(), 1e-3)
    scores = recsys.score(model, _X, np.arange(9))
    self.assertEqual(scores.shape, (9, 12))

  def test_as_method(self):
    method = methods.find('spectral_cf')
    self.assertEqual(method.family, 'neural')
    self.assertEqual(method.fixed['min_epochs'], 400)
    self.assertFalse(method.scores_new_users)
    self.assertEqual(
      set(method.space),
      {'batch_size', 'dim', 'decay', 'learning_rate', 'layers'},
    )

  def test_refusals(self):
    with self.assertRaisesRegex(ValueError, 'layers is 0'):
      recsys.spectral_cf(_X, layers=0)
    with self.assertRaisesRegex(ValueError, '21 nodes'):
      recsys.spectral_cf(_X, max_bytes=100)
    with self.assertRaisesRegex(ValueError, r'expected \(21, 21\)'):
      recsys.spectral_cf(_X, operator=np.eye(3))


class ProgramsTest(absltest.TestCase):
  @pytest.mark.slow
  def test_evaluate_and_recommend(self):
    with tempfile.TemporaryDirectory() as folder:
      ratings = pathlib.Path(folder) / 'ratings.csv'
      rng = np.random.default_rng(0)
      pairs = np.argwhere(rng.random((30, 20)) < 0.3)
      lines = [f'u{user},i{item},5' for user, item in pairs]
      ratings.write_text('user,item,rating\n' + '\n'.join(lines) + '\n')
      flags = (
        f'--interactions={ratings}',
        '--method=spectral_cf',
        '--set=epochs=6',
        '--set=dim=4',
        '--set=layers=2',
      )
      done = scripts.run('recsys_evaluate', *flags, '--baselines=none')
      self.assertEqual(done.returncode, 0, done.stderr)
      self.assertIn('SpectralCF (', done.stdout)
      self.assertIn('users per second', done.stdout)
      done = scripts.run('recsys_recommend', *flags, '--users=u1', '--top_n=3')
      self.assertEqual(done.returncode, 0, done.stderr)
      rows = done.stdout.strip().splitlines()
      self.assertLen(rows, 4)
      had = {f'i{item}' for user, item in pairs if user == 1}
      self.assertEmpty({row.split(',')[2] for row in rows[1:]} & had)


class FindingTest(absltest.TestCase):
  """What the study found, with the authors' parameters, on real data."""

  def measure(self, train, test, fits, metric, cutoff=20):
    result = {}
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # Eigenvalues that occur twice.
      for name, parameters in fits.items():
        model = recsys.fit(name, train, parameters)
        evaluation = recsys.evaluate_model(
          model, train, test, (cutoff,), metrics=(metric,)
        )
        result[name] = evaluation.mean(metric, cutoff)
    return result

  @pytest.mark.nightly
  def test_random_split_of_100k(self):
    path = data.require('recsys', 'ml100k.npz')
    with np.load(path) as file:
      keep = file['rating'] >= 4
      x = recsys.interactions(file['user'][keep], file['item'][keep])
    train, test = recsys.split_user_fraction(0, x, 0.8)
    fits = {
      'TopPopular': {},
      'EASE_R': {'l2': 300},
      'SpectralCF article default': {'epochs': 600},
    }
    found = self.measure(train, test, fits, 'recall')
    spectral = found['SpectralCF article default']
    self.assertLess(spectral, found['TopPopular'] + 0.02, found)
    self.assertGreater(found['EASE_R'], spectral + 0.05, found)

  @pytest.mark.nightly
  def test_random_split_of_1m(self):
    study = studies.find('spectralcf_ml1m_own')
    split = study.load(data.require('recsys', study.file))
    fits = {
      'TopPopular': {},
      'EASE_R': {'l2': 292},
      'SpectralCF article default': {'epochs': 410},
    }
    found = self.measure(split.train, split.test, fits, 'recall')
    spectral = found['SpectralCF article default']
    self.assertLessEqual(spectral, found['TopPopular'] + 0.02, found)
    self.assertGreaterEqual(found['EASE_R'], 0.29, found)

  @pytest.mark.nightly
  def test_split_of_the_authors(self):
    study = studies.find('spectralcf_ml1m')
    split = study.load(data.require('recsys', study.file))
    fits = published.tuned('table_32')
    fits = {
      name: fits.get(name, {})
      for name in (
        'TopPopular',
        'ItemKNN CF cosine',
        'P3alpha',
        'RP3beta',
        'EASE_R',
        'SpectralCF article default',
      )
    }
    found = self.measure(split.train, split.test, fits, 'map')
    self.assertGreater(found.pop('SpectralCF article default'), 0.05, found)
    self.assertLess(max(found.values()), 0.03, found)


if __name__ == '__main__':
  absltest.main()
