"""Ranking and re-ranking side by side with peers: parts of osnet.py.

Ranking is of the size of Market-1501 (3,368 queries, 15,913 images), with its
real identities and cameras where $JAXPAPERS_DATA/osnet/market1501 holds them
and with made ones otherwise; features are made (32 numbers, as for the golden
results). The peers get the distances for nothing:

  torchreid_cython  `rank_cy`, the extension of torchreid's rank_cylib, if it
                    has been built and can be imported
  sorting_numpy_tenth  an argsort and a loop over queries, the usual way in
                    Python, of every tenth query only: it takes long

and ours is measured from distances and from features, the Cython also from
features, with squared distances by NumPy.
"""

import os
import pathlib
import resource
import subprocess
import sys

import _side_by_side
import numpy as np

_ROOT = pathlib.Path(__file__).resolve().parent.parent


def market_labels() -> tuple[str, tuple[np.ndarray, ...]]:
  """Where labels are from; q_pids, g_pids, q_cams, g_cams."""
  folder = pathlib.Path(os.environ.get('JAXPAPERS_DATA', '.'))
  folder = folder / 'osnet' / 'market1501'
  if (folder / 'queryID.mat').exists():
    import scipy.io

    def load(name):
      content = scipy.io.loadmat(folder / f'{name}.mat')
      (key,) = (key for key in content if not key.startswith('_'))
      return content[key].ravel().astype(int)

    q_pids, q_cams = load('queryID'), load('queryCam')
    g_pids, g_cams = load('testID'), load('testCam')
    kept = g_pids != -1
    return 'Market-1501', (q_pids, g_pids[kept], q_cams, g_cams[kept])
  return 'made', made_labels(3368, 15913, 750, 6)


def made_labels(
  queries: int, gallery: int, people: int, cameras: int
) -> tuple[np.ndarray, ...]:
  """Identities and cameras at random; identity 0 is of distractors."""
  rng = np.random.default_rng(0)
  return (
    rng.integers(1, people + 1, queries),
    rng.integers(0, people + 1, gallery),
    rng.integers(0, cameras, queries),
    rng.integers(0, cameras, gallery),
  )


def made_features(
  labels: tuple[np.ndarray, ...], dim: int
) -> tuple[np.ndarray, np.ndarray]:
  """A centre of each person, a shift by each camera, and noise."""
  q_pids, g_pids, q_cams, g_cams = labels
  rng = np.random.default_rng(1)
  people = 1 + max(q_pids.max(), g_pids.max())
  centre = rng.standard_normal((people, dim), np.float32)
  shift = rng.standard_normal((1 + max(q_cams.max(), g_cams.max()), dim))
  shift = (0.5 * shift).astype(np.float32)

  def features(pids, cams):
    out = rng.standard_normal((len(pids), dim), np.float32)
    out *= np.float32(0.9)
    for start in range(0, len(pids), 1024):  # No second array of that size.
      part = slice(start, start + 1024)
      out[part] += centre[pids[part]]
      out[part] += shift[cams[part]]
    return out

  return features(q_pids, q_cams), features(g_pids, g_cams)


def sorting(dist, q_pids, g_pids, q_cams, g_cams, max_rank=50):
  """CMC and mAP by sorting every row."""
  order = np.argsort(dist, axis=1)
  curve, precision = [], []
  for q in range(len(dist)):
    ranked = order[q]
    seen = (g_pids[ranked] != q_pids[q]) | (g_cams[ranked] != q_cams[q])
    hits = (g_pids[ranked] == q_pids[q])[seen]
    if not hits.any():
      continue
    found = np.cumsum(hits)
    curve.append(np.minimum(found, 1)[:max_rank])
    precision.append(np.mean((found / np.arange(1, len(found) + 1))[hits]))
  return np.mean(curve, axis=0), float(np.mean(precision))


def rank(repeats: int) -> dict:
  """CMC and mAP at the size of Market-1501.

  Args:
    repeats: How often each is called.

  Returns:
    Times and results.
  """
  from jaxpapers.osnet import metrics, ranking

  source, labels = market_labels()
  qf, gf = made_features(labels, 32)
  # A copy: the Cython of torchreid wants to be able to write to it.
  dist = np.array(metrics.pairwise_distance(qf, gf))

  tenth = (dist[::10], labels[0][::10], labels[1], labels[2][::10], labels[3])

  def ours(result):
    return result.cmc[0], result.mAP

  def peer(result):
    return result[0][0], result[1]

  calls = {
    'ours': lambda: ours(ranking.rank_metrics_from_distance(dist, *labels)),
    'ours_from_features': lambda: ours(ranking.rank_metrics(qf, gf, *labels)),
    'sorting_numpy_tenth': lambda: peer(sorting(*tenth)),
  }
  name = 'sorting_numpy_tenth'
  if _side_by_side.has('rank_cy'):
    import rank_cy

    name = 'torchreid_cython'
    calls[name] = lambda: peer(rank_cy.evaluate_cy(dist, *labels, 50))
    calls['torchreid_cython_from_features'] = lambda: peer(
      rank_cy.evaluate_cy(squared_distance(qf, gf), *labels, 50)
    )
  wall, cpu, first = _side_by_side.alternate(calls, repeats)
  out = {
    'labels': source,
    'queries': len(qf),
    'gallery': len(gf),
    **_side_by_side.summary(wall, cpu, 'ours', name),
    'rank1_and_mAP': {
      key: [float(x) for x in value] for key, value in first.items()
    },
  }
  for other in (name, 'torchreid_cython_from_features'):
    both = _side_by_side.summary(wall, cpu, 'ours_from_features', other)
    ratio = f'ours_from_features_over_{other}'
    out |= {key: value for key, value in both.items() if key == ratio}
  return out


def squared_distance(qf, gf):
  """Squared Euclidean distances of all pairs, by NumPy."""
  dist = np.square(qf).sum(1)[:, None] + np.square(gf).sum(1)
  dist -= 2 * (qf @ gf.T)
  return dist


_LARGE = """
import json, resource, sys, time
sys.path.insert(0, sys.argv[1])
import _osnet_ranking as own
from jaxpapers.osnet import ranking
queries, gallery, people, cameras, dim = map(int, sys.argv[2:])
labels = own.made_labels(queries, gallery, people, cameras)
qf, gf = own.made_features(labels, dim)
made = resource.getrusage(resource.RUSAGE_SELF)
start = time.perf_counter()
found = ranking.rank_metrics(qf, gf, *labels)
wall = time.perf_counter() - start
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
  'queries': queries, 'gallery': gallery, 'dimensions': dim,
  'wall_seconds': round(wall, 2),
  'cpu_seconds': round(
    used.ru_utime + used.ru_stime - made.ru_utime - made.ru_stime, 2),
  'peak_mebibytes': used.ru_maxrss >> 10,
  'peak_mebibytes_of_making_features': made.ru_maxrss >> 10,
  'mAP': found.mAP,
}))
"""


def large(
  queries: int = 11659,
  gallery: int = 82161,
  people: int = 3060,
  cameras: int = 15,
  dim: int = 512,
) -> dict:
  """Time, compilation included, and memory at the size of MSMT17.

  Args:
    queries: Of them, and so on.
    gallery: Images.
    people: Identities.
    cameras: Cameras.
    dim: Length of features.

  Returns:
    What a process of its own used.
  """
  import json

  numbers = (queries, gallery, people, cameras, dim)
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      _LARGE,
      str(pathlib.Path(__file__).parent),
      *map(str, numbers),
    ],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  return json.loads(done.stdout)


def search(repeats: int, gallery: int = 1_000_000, dim: int = 512) -> dict:
  """Queries a second against a large gallery on the device.

  Args:
    repeats: How often each is called.
    gallery: Images.
    dim: Length of features.

  Returns:
    Times and queries a second, the 100 nearest of each of 256 queries by
    cosine, of features in float32 that are on the device; torch's are of unit
    length before, and its product of the same precision.
  """
  import jax

  from jaxpapers.osnet import metrics, retrieval

  keys = jax.random.split(jax.random.key(0))
  gf = jax.random.normal(keys[0], (gallery, dim))
  qf = jax.random.normal(keys[1], (256, dim))
  calls = {
    'ours': lambda: retrieval.nearest(
      qf, gf, 100, metric='cosine', block=1 << 17
    )
  }
  if _side_by_side.has('torch'):
    import torch

    _side_by_side.use_threads()
    on_gpu = jax.default_backend() == 'gpu' and torch.cuda.is_available()
    device = 'cuda' if on_gpu else 'cpu'
    theirs = [
      torch.tensor(np.asarray(metrics.l2_normalize(x)), device=device)
      for x in (qf, gf)
    ]
    torch.set_float32_matmul_precision('highest')

    def peer():
      like = theirs[0] @ theirs[1].T
      near = torch.topk(like, 100, dim=1)
      return 1 - near.values.cpu().numpy(), near.indices.cpu().numpy()

    calls['torch'] = peer
  wall, cpu, first = _side_by_side.alternate(calls, repeats)
  out = _side_by_side.summary(wall, cpu, 'ours', 'torch')
  out |= {
    'queries_per_second': {
      name: float(f'{256e3 / milliseconds:.4g}')
      for name, milliseconds in out['wall_milliseconds_median'].items()
    }
  }
  if 'torch' in first:
    ours, theirs = first['ours'], first['torch']
    out['largest_difference'] = float(np.abs(ours[0] - theirs[0]).max())
    out['share_of_equal_places'] = float((ours[1] == theirs[1]).mean())
  return {'gallery': gallery, 'dimensions': dim, **out}


def rerank_numpy(qq, qg, gg, k1=20, k2=6, lam=0.3):
  """k-reciprocal re-ranking as it is usually written, a row at a time."""
  queries = len(qg)
  dist = np.block([[qq, qg], [qg.T, gg]]).astype(np.float32) ** 2
  dist = (dist / dist.max(axis=0)).T
  order = np.argsort(dist, axis=1)
  number = len(dist)
  near = int(np.around(k1 / 2)) + 1

  def reciprocal(i, k):
    forward = order[i, :k]
    return forward[(order[forward, :k] == i).any(axis=1)]

  vectors = np.zeros_like(dist)
  for i in range(number):
    own = reciprocal(i, k1 + 1)
    parts = [own]
    for candidate in own:
      other = reciprocal(candidate, near)
      if len(np.intersect1d(other, own)) > 2 / 3 * len(other):
        parts.append(other)
    index = np.unique(np.concatenate(parts))
    weight = np.exp(-dist[i, index])
    vectors[i, index] = weight / weight.sum()
  if k2 > 1:
    vectors = np.stack(
      [vectors[order[i, :k2]].mean(axis=0) for i in range(number)]
    )
  columns = [np.flatnonzero(vectors[:, i]) for i in range(number)]
  jaccard = np.empty((queries, number), np.float32)
  for i in range(queries):
    smaller = np.zeros(number, np.float32)
    for j in np.flatnonzero(vectors[i]):
      rows = columns[j]
      smaller[rows] += np.minimum(vectors[i, j], vectors[rows, j])
    jaccard[i] = 1 - smaller / (2 - smaller)
  return ((1 - lam) * jaccard + lam * dist[:queries])[:, queries:]


def rerank(repeats: int, queries: int = 336, gallery: int = 1591) -> dict:
  """Re-ranking, a tenth of Market-1501 by default.

  Args:
    repeats: How often each is called.
    queries: Of them.
    gallery: Images.

  Returns:
    Times, and the largest difference of results.
  """
  from jaxpapers.osnet import metrics
  from jaxpapers.osnet import rerank as rerank_lib

  labels = made_labels(queries, gallery, max(queries // 5, 1), 6)
  qf, gf = made_features(labels, 32)
  pairs = ((qf, qf), (qf, gf), (gf, gf))
  dist = [np.asarray(metrics.pairwise_distance(a, b)) for a, b in pairs]
  calls = {
    'ours': lambda: rerank_lib.k_reciprocal_rerank(*dist),
    'ours_from_features': lambda: rerank_lib.k_reciprocal_rerank_features(
      qf, gf
    ),
    'ours_first_100': lambda: rerank_lib.k_reciprocal_rerank_features(
      qf, gf, candidates=min(100, gallery)
    ),
    'numpy': lambda: rerank_numpy(*dist),
  }
  wall, cpu, first = _side_by_side.alternate(calls, repeats)
  return {
    'queries': queries,
    'gallery': gallery,
    **_side_by_side.summary(wall, cpu, 'ours', 'numpy'),
    'largest_difference': float(np.abs(first['ours'] - first['numpy']).max()),
    'peak_mebibytes': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
  }
