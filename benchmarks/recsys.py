"""Recommenders side by side with peers.

Prints one JSON object. Peers and ours alternate in one process, so that a busy
machine slows all of them alike. `wall` is the smallest and the median time of a
call, `cpu` the smallest processor time of all threads: on a busy machine the
one that repeats.

  python benchmarks/recsys.py                          # all, some minutes
  python benchmarks/recsys.py --parts=similarity --repeats=5
  python benchmarks/recsys.py --parts=scale --users=1000000 --items=50000

What is measured, on MovieLens 1M (three stars and more, read below
$JAXPAPERS_DATA/recsys, or made data of that size):

  similarity  100 nearest items by cosine: ours, scipy's sparse product with a
              selection of each column, implicit's CosineRecommender
  ease        EASE: ours, and numpy's inverse
  ials        one epoch of 32 factors: ours, implicit (exact and conjugate
              gradients)
  evaluate    ten metrics at six cutoffs for all users of a 32-factor model:
              ours; and a loop over users with numpy, the way of the study's
              evaluator
  slim        SLIM with an elastic net, all items of Last.fm and 64 of
              MovieLens 1M: ours, and scikit-learn's coordinate descent item by
              item
  mult_vae    an epoch of Mult-VAE (600 and 200 wide, batches of 250): ours as
              one program, the same a step at a time, and torch
  sweep       64 settings of shrink and alpha, 943 users and 1682 items: one
              vmapped program against a loop over a compiled one
  scale       the same similarity and evaluation on made data of --users and
              --items, with the peak of memory
  accelerator evaluation, iALS, similarity and EASE at the size of --size, with
              the peak of memory; beside torch with --torch

Peers are left out where they are not installed.
"""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import resource
import statistics
import sys
import time

import _recsys_accelerator
import _recsys_vae
import numpy as np
from absl import app, flags

_USUAL = 'similarity', 'ease', 'ials', 'evaluate', 'slim', 'mult_vae', 'sweep'
_KNOWN = (*_USUAL, 'scale', 'accelerator')
_PARTS = flags.DEFINE_list('parts', list(_USUAL), 'What to do.')
_REPEATS = flags.DEFINE_integer('repeats', 3, 'Calls of each program.')
_USERS = flags.DEFINE_integer('users', 50_000, 'Of the part scale.')
_ITEMS = flags.DEFINE_integer('items', 10_000, 'Of the part scale.')
_SIZE = flags.DEFINE_enum(
  'size', 'ml20m', ['ml20m', 'netflix', 'tiny'], 'Of the part accelerator.'
)
_WITH = flags.DEFINE_list(
  'accelerate', ['evaluate', 'ials', 'similarity', 'ease'], 'What it measures.'
)
_TORCH = flags.DEFINE_bool('torch', False, 'Of the part accelerator.')
_MEDIAN = flags.DEFINE_integer('median_profile', 70, 'Of the part scale.')


def _installed(name):
  return importlib.util.find_spec(name) is not None


def _measure(programs, repeats):
  """Alternates programs; name -> seconds."""
  wall = {name: [] for name in programs}
  cpu = {name: [] for name in programs}
  for program in programs.values():
    program()  # Compiles, and fills caches.
  for _ in range(repeats):
    for name, program in programs.items():
      start, start_cpu = time.perf_counter(), time.process_time()
      program()
      cpu[name].append(time.process_time() - start_cpu)
      wall[name].append(time.perf_counter() - start)
  return {
    name: {
      'wall': [min(times), statistics.median(times)],
      'cpu': min(cpu[name]),
    }
    for name, times in wall.items()
  }


def _made(users, items, median, seed=0):
  """Zipf popularity, log-normal profiles: honest for speed only."""
  from jaxpapers import recsys

  rng = np.random.default_rng(seed)
  popularity = 1 / np.arange(1, items + 1)
  lengths = np.exp(rng.normal(np.log(median), 1, users))
  lengths = np.clip(lengths, 1, items // 2).astype(int)
  user = np.repeat(np.arange(users), lengths)
  chance = np.cumsum(popularity / popularity.sum())
  item = np.searchsorted(chance, rng.random(len(user)))
  item = np.minimum(item, items - 1)
  return recsys.interactions(user, item, shape=(users, items))


def _data(name):
  return pathlib.Path(os.environ.get('JAXPAPERS_DATA', '.'), 'recsys', name)


def _movielens():
  """Training and test data, and what they are."""
  from jaxpapers import recsys

  path = _data('ml1m_3star_lightgcnpp.npz')
  if path.is_file():
    parts = recsys.load_parts(path, ('train', 'valid', 'test'))
    train = recsys.union(parts['train'], parts['valid'])
    return train, parts['test'], path.name
  x = _made(6039, 3628, 96)
  return *recsys.split_user_fraction(0, x), 'made data'


def _similarity(train):
  from jaxpapers.recsys import similarities

  def ours():
    similarities.similarity_top_k(train, 'cosine', k=100)

  matrix = train.csr

  def scipy_sparse():
    gram = (matrix.T.tocsr() @ matrix).tocsc()
    norm = np.sqrt(gram.diagonal())
    for j in range(gram.shape[1]):
      part = slice(gram.indptr[j], gram.indptr[j + 1])
      values = gram.data[part] / (norm[gram.indices[part]] * norm[j] + 1e-6)
      if len(values) > 100:
        np.argpartition(-values, 100)

  programs = {'ours': ours, 'scipy.sparse': scipy_sparse}
  if _installed('implicit'):
    from implicit.nearest_neighbours import CosineRecommender
    from scipy.sparse import csr_matrix

    peer = csr_matrix(matrix)

    def implicit():
      CosineRecommender(K=100, num_threads=_threads()).fit(
        peer, show_progress=False
      )

    programs['implicit'] = implicit
  return _measure(programs, _REPEATS.value)


def _threads():
  return len(os.sched_getaffinity(0))


def _ease(train):
  from jaxpapers import recsys

  def numpy_inverse():
    x = train.csr
    gram = (x.T @ x).toarray().astype(np.float64)
    gram[np.diag_indices_from(gram)] += 500
    inverse = np.linalg.inv(gram)
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)

  return _measure(
    {
      'ours': lambda: recsys.ease(train, l2=500),
      'numpy.linalg.inv': numpy_inverse,
    },
    max(1, _REPEATS.value // 2),
  )


def _ials(train):
  from jaxpapers import recsys

  epochs = 5

  def ours():
    recsys.ials(0, train, factors=32, alpha=5.0, reg=0.01, epochs=epochs)

  programs = {'ours': ours}
  if _installed('implicit'):
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix

    confidence = csr_matrix(train.csr) * np.float32(6)

    def peer(gradients):
      AlternatingLeastSquares(
        factors=32,
        regularization=0.01,
        alpha=1.0,
        iterations=epochs,
        use_cg=gradients,
        num_threads=_threads(),
        random_state=0,
      ).fit(confidence, show_progress=False)

    programs['implicit, exact'] = lambda: peer(False)
    programs['implicit, conjugate gradients'] = lambda: peer(True)
  times = _measure(programs, _REPEATS.value)
  return {'epochs': epochs, **times}


_METRICS = (
  'precision', 'precision_recall_min_den', 'recall', 'hit_rate', 'arhr', 'mrr',
  'map', 'ndcg', 'ndcg_truncated', 'roc_auc',
)  # fmt: skip
_CUTOFFS = (5, 10, 20, 40, 60, 100)


def _slim():
  from jaxpapers import recsys
  from jaxpapers.recsys import linear, slim_sweeps

  path = _data('deepcf_lastfm_loo99.npz')
  if path.is_file():
    x, source = recsys.load_parts(path, ('train',))['train'].binary(), path.name
  else:
    x, source = _made(1741, 2665, 24), 'made data'
  alpha, l1_ratio = 0.05, 1e-3
  settings = {'alpha': alpha, 'l1_ratio': l1_ratio, 'tol': 1e-4}
  programs = {'ours': lambda: recsys.slim_elastic_net(x, **settings)}
  dense, _, name = _movielens()
  some = np.arange(0, dense.num_items, dense.num_items // 64)[:64]

  def ours():
    l1 = alpha * l1_ratio * dense.num_users
    l2 = alpha * (1 - l1_ratio) * dense.num_users
    gram = linear.dense_gram(dense)
    slim_sweeps.sweep_columns(gram, some, l1, l2, tol=1e-4)

  larger = {'ours': ours}
  if _installed('sklearn'):
    programs['scikit-learn'] = lambda: _elastic_nets(
      x, range(x.num_items), settings
    )
    larger['scikit-learn'] = lambda: _elastic_nets(dense, some, settings)
  return {
    'all items': {
      'source': source,
      'interactions': len(x),
      **_measure(programs, _REPEATS.value),
    },
    '64 items': {
      'source': name,
      'interactions': len(dense),
      **_measure(larger, _REPEATS.value),
    },
  }


def _elastic_nets(x, items, settings):
  """scikit-learn's coordinate descent, item by item."""
  import scipy.sparse
  from sklearn import linear_model

  model = linear_model.ElasticNet(
    positive=True, fit_intercept=False, copy_X=False, precompute=True,
    selection='random', max_iter=100, **settings,
  )  # fmt: skip
  matrix = scipy.sparse.csc_matrix(x.csr)
  for j in items:
    part = slice(matrix.indptr[j], matrix.indptr[j + 1])
    target = matrix[:, [j]].toarray().ravel()
    stored = matrix.data[part].copy()
    matrix.data[part] = 0
    model.fit(matrix, target)
    matrix.data[part] = stored


def _measured_vae(train):
  programs, users = _recsys_vae.programs(train, _threads())
  return {'users': users, **_measure(programs, _REPEATS.value)}


def _evaluate(train, test):
  from jaxpapers import recsys

  model = recsys.pure_svd(train, factors=32)
  users = np.flatnonzero(test.user_counts())

  def ours():
    recsys.evaluate_model(model, train, test, _CUTOFFS, metrics=_METRICS)

  def loop():
    for user in users:
      scores = model.items @ model.users[user]
      scores[train.items_of(user)] = -np.inf
      top = np.argpartition(-scores, 100)[:100]
      top = top[np.argsort(-scores[top])]
      relevant = test.items_of(user)
      hit = np.isin(top, relevant)
      discount = 1 / np.log2(np.arange(2, 102))
      for cutoff in _CUTOFFS:
        h = hit[:cutoff]
        total = h.sum()
        _ = total / cutoff, total / len(relevant)
        _ = (h * np.cumsum(h) / np.arange(1, cutoff + 1)).sum()
        _ = (h * discount[:cutoff]).sum()

  times = _measure({'ours': ours, 'numpy, user by user': loop}, _REPEATS.value)
  for value in times.values():
    value['users_per_second'] = len(users) / value['cpu']
  return {'users': len(users), **times}


def _sweep():
  import jax
  import jax.numpy as jnp

  from jaxpapers import recsys

  x = jnp.asarray(_made(943, 1682, 65).to_dense())
  settings = jnp.stack(
    jnp.meshgrid(jnp.linspace(0, 500, 8), jnp.linspace(0, 2, 8)), -1
  ).reshape(-1, 2)

  def one(x, setting):
    w = recsys.similarity(x, 'asymmetric', shrink=setting[0], alpha=setting[1])
    return w.sum()  # What is compared does not have to be stored.

  # The Gram matrix does not depend on the setting: it is made once.
  together = jax.jit(jax.vmap(one, (None, 0)))
  single = jax.jit(one)
  return _measure(
    {
      'vmapped': lambda: jax.block_until_ready(together(x, settings)),
      'loop': lambda: jax.block_until_ready([single(x, s) for s in settings]),
    },
    max(1, _REPEATS.value // 2),
  )


def _scale():
  import jax

  from jaxpapers import recsys
  from jaxpapers.recsys import models, similarities

  x = _made(_USERS.value, _ITEMS.value, _MEDIAN.value)
  train, test = recsys.split_user_fraction(0, x)
  rng = np.random.default_rng(0)
  model = models.FactorModel(
    rng.standard_normal((x.num_users, 32), np.float32),
    rng.standard_normal((x.num_items, 32), np.float32),
  )
  result = {'interactions': len(x), 'device': jax.default_backend()}
  start = time.perf_counter()
  recsys.evaluate_model(model, train, test, (10, 100), metrics=_METRICS)
  seconds = time.perf_counter() - start
  result['evaluate'] = {
    'seconds': seconds,
    'users_per_second': x.num_users / seconds,
    'peak_memory_gb': _peak(),
  }
  start = time.perf_counter()
  similarities.similarity_top_k(train, 'cosine', k=100)
  result['similarity'] = {
    'seconds': time.perf_counter() - start,
    'peak_memory_gb': _peak(),
  }
  return result


def _peak():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _version(name):
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None


def main(argv):
  """Measures and prints."""
  del argv
  import jax

  wanted = set(_PARTS.value)
  unknown = sorted(wanted - set(_KNOWN))
  if unknown:
    raise app.UsageError(f'--parts: {unknown}; of {list(_KNOWN)}')
  results = {}
  if wanted & {'similarity', 'ease', 'ials', 'mult_vae', 'evaluate'}:
    train, test, source = _movielens()
    results['data'] = {
      'source': source,
      'shape': train.shape,
      'interactions': len(train),
    }
  for name, part in (
    ('similarity', lambda: _similarity(train)),
    ('ease', lambda: _ease(train)),
    ('ials', lambda: _ials(train)),
    ('evaluate', lambda: _evaluate(train, test)),
    ('slim', _slim),
    ('mult_vae', lambda: _measured_vae(train)),
    ('sweep', _sweep),
    ('scale', _scale),
    (
      'accelerator',
      lambda: _recsys_accelerator.measure(
        _SIZE.value, _WITH.value, _TORCH.value
      ),
    ),
  ):
    if name in wanted:
      results[name] = part()
      print(f'{name} done', file=sys.stderr)
  results['machine'] = {
    'processor': platform.machine(),
    'cores': _threads(),
    'device': str(jax.devices()[0]),
    'versions': {
      name: _version(name)
      for name in ('jax', 'numpy', 'scipy', 'implicit', 'scikit-learn', 'torch')
    },
  }
  print(json.dumps(results, indent=2))


if __name__ == '__main__':
  app.run(main)
