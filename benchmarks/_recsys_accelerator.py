"""Recommenders at 20 and 100 million interactions, for `recsys.py`.

Data are made at the size, density and skew of MovieLens 20M (138,493 users,
26,744 items) or Netflix (480,189 users, 17,770 items): profile lengths are
log-normal with the median and mean of the real ones, and the most popular item
is with a third of the users (there: half). Users choose independently, so that
there is nothing to learn: times and memory are honest, metrics mean nothing.
"""

import json
import resource
import sys
import time

import numpy as np

# Users, items, interactions; median, mean and least length of profiles; and how
# popularity falls: (rank + q)^-a.
SIZES = {
  'ml20m': (138_493, 26_744, 20_000_263, 68, 144.4, 20, 500, 2.25),
  'netflix': (480_189, 17_770, 100_480_507, 96, 209.3, 1, 700, 2.3),
  'tiny': (1_500, 900, 60_000, 25, 40.0, 5, 30, 2.0),
}
# Draws for each interaction that is left.
_LOST = 1.11
_METRICS = ('precision', 'recall', 'map', 'ndcg')
_K = 100


def made(size, seed=0):
  """Interactions without a sort: items of a user come in ascending order.

  Popularity is (rank + q)^-a. A user's items are one draw from each of as many
  equal shares of it as the profile is long; what is drawn twice is left out.
  """
  from jaxpapers import recsys

  users, items, total, median, mean, shortest, q, a = SIZES[size]
  rng = np.random.default_rng(seed)
  sigma = np.sqrt(2 * np.log(mean / median))
  length = np.exp(rng.normal(np.log(median), sigma, users))
  length = np.clip(length, shortest, items // 3)
  length = np.maximum(length * (_LOST * total / length.sum()), 1)
  length = length.astype(np.int32)
  user = np.repeat(np.arange(users, dtype=np.int32), length)
  starts = np.cumsum(length) - length
  share = np.arange(len(user)) - np.repeat(starts, length)
  place = share + rng.random(len(user), np.float32)
  place /= np.repeat(length, length)
  low, high = float(q) ** (1 - a), (items + q) ** (1 - a)
  power = np.float32(1 / (1 - a))
  place = (low + place.astype(np.float32) * np.float32(high - low)) ** power - q
  item = np.clip(place, 0, items - 1).astype(np.int32)
  new = np.ones(len(user), bool)
  new[1:] = (item[1:] != item[:-1]) | (user[1:] != user[:-1])
  user, item = user[new], item[new]
  return recsys.Interactions(
    user, item, np.ones(len(user), np.float32), (users, items)
  )


def _split(x, seed=1):
  keep = np.random.default_rng(seed).random(len(x), np.float32) < 0.8
  return x.select(keep), x.select(~keep)


def _memory():
  import jax

  stats = jax.devices()[0].memory_stats() or {}
  return {
    'device_gb': stats.get('peak_bytes_in_use', 0) / 1e9,
    'host_gb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
  }


def _once(program):
  """Result and seconds of a call."""
  start = time.perf_counter()
  result = program()
  return result, time.perf_counter() - start


def _twice(program):
  """Seconds of the first call, which compiles, and of the second."""
  _, first = _once(program)
  result, second = _once(program)
  return result, {'first': first, 'second': second}


def measure(size, parts, peers):
  """Part -> what was measured; each is also printed when it is there."""
  start = time.perf_counter()
  x = made(size)
  train, test = _split(x)
  lengths, popularity = x.user_counts(), x.item_counts()
  results = {
    'data': {
      'size': size,
      'shape': x.shape,
      'interactions': len(x),
      'profiles': [int(np.median(lengths)), float(lengths.mean())],
      'users_with_the_most_popular': float(popularity.max() / x.num_users),
      'seconds': time.perf_counter() - start,
    }
  }
  print(json.dumps(results), file=sys.stderr, flush=True)
  programs = {
    'evaluate': lambda: _evaluate(train, test, peers),
    'ials': lambda: _ials(train),
    'similarity': lambda: _similarity(x, peers),
    'ease': lambda: _ease(x, peers),
  }
  for name in parts:
    results[name] = programs[name]() | {'peak_so_far': _memory()}
    line = json.dumps({name: results[name]})
    print(line, file=sys.stderr, flush=True)
  return results


def _evaluate(train, test, peers):
  from jaxpapers import recsys

  rng = np.random.default_rng(0)
  model = recsys.FactorModel(
    rng.standard_normal((train.num_users, 32), np.float32),
    rng.standard_normal((train.num_items, 32), np.float32),
  )
  users = np.arange(train.num_users)
  some = test.select(test.user < 8192)
  options = {'cutoffs': (10, _K), 'metrics': _METRICS}
  _, first = _once(lambda: recsys.evaluate_model(model, train, some, **options))
  lists, seconds = _once(lambda: recsys.rank_full(model, train, users, _K))
  result = {'compiled': first, 'lists of 100': _rate(seconds, len(users))}
  found, seconds = _once(
    lambda: recsys.evaluate_model(model, train, test, **options)
  )
  result['lists and metrics'] = _rate(seconds, len(found.users))
  if peers:
    _torch_lists(model, train, min(8192, len(users)))
    other, seconds = _once(lambda: _torch_lists(model, train, train.num_users))
    result['torch, lists of 100'] = _rate(seconds, len(users))
    same = np.mean(other[:1000] == lists.items[:1000])
    result['share_of_equal_places'] = float(same)
  return result


def _rate(seconds, users):
  return {'seconds': seconds, 'users_per_second': users / seconds}


def _torch_lists(model, train, count):
  import torch

  device = _torch_device()
  users, items = (
    torch.tensor(f, device=device) for f in (model.users, model.items)
  )
  found = []
  for first in range(0, count, 4096):
    some = np.arange(first, min(first + 4096, count))
    scores = users[first : first + len(some)] @ items.T
    rows, columns = (
      torch.from_numpy(a.astype(np.int64)).to(device)
      for a in train.pairs_of(some)
    )
    scores[rows, columns] = -torch.inf
    found.append(scores.topk(_K).indices.cpu())
  return torch.cat(found).numpy()


def _torch_device():
  import torch

  torch.backends.cuda.matmul.allow_tf32 = False
  return 'cuda' if torch.cuda.is_available() else 'cpu'


def _ials(train):
  import jax
  import jax.numpy as jnp

  from jaxpapers.recsys import implicit_als as als

  factors, most = 64, max(train.shape)
  start = time.perf_counter()
  back = train.transpose()
  extra = np.full(len(train), 5.0, np.float32)
  by_user = als._put(train.row_starts, train.item, extra, factors, most)
  by_item = als._put(back.row_starts, back.item, extra, factors, most)
  jax.block_until_ready((by_user[:2], by_item[:2]))
  result = {'factors': factors, 'prepare': time.perf_counter() - start}
  rng = np.random.default_rng(0)
  items = np.zeros((most, factors), np.float32)
  items[: train.num_items] = rng.random((train.num_items, factors)) / 8
  items[: train.num_items][train.item_counts() == 0] = 0
  users, items = jnp.zeros((most, factors)), jnp.asarray(items)
  seconds = []
  for _ in range(3):
    start = time.perf_counter()
    users = als._half(users, items, by_user, 0.01)
    items = als._half(items, users, by_item, 0.01)
    jax.block_until_ready(items)
    seconds.append(time.perf_counter() - start)
  # A row that is solved leaves no gradient: checked in double precision. The
  # items are the last that were solved.
  u, v = (np.asarray(f, np.float64) for f in (users, items))
  worst = 0.0
  for item in range(0, train.num_items, max(train.num_items // 16, 1)):
    y = u[back.items_of(item)]
    right = 6.0 * y.sum(0)
    left = u.T @ (u @ v[item]) + 5.0 * y.T @ (y @ v[item]) + 0.01 * v[item]
    worst = max(worst, np.abs(left - right).max() / max(np.abs(right).max(), 1))
  return result | {
    'epochs': seconds,
    'epoch': min(seconds[1:]),
    'largest_relative_gradient': worst,
  }


def _similarity(x, peers):
  import jax

  from jaxpapers.recsys import gram as gram_lib
  from jaxpapers.recsys import similarities

  found, times = _twice(
    lambda: similarities.similarity_top_k(x, 'cosine', k=_K)
  )
  result = {'ours': times, 'neighbours': found.nnz}
  gram, result['products'] = _once(
    lambda: jax.block_until_ready(gram_lib.device_gram(x.csr))
  )
  some = np.arange(0, x.num_items, max(x.num_items // 32, 1))
  expected = (x.csr.T.tocsr() @ x.csr.tocsc()[:, some]).toarray()
  result['products_equal_scipy'] = bool(
    (np.asarray(gram[:, some]) == expected).all()
  )
  del gram
  if peers:
    _, result['torch'] = _once(lambda: _torch_neighbours(x))
  return result


def _torch_neighbours(x):
  import torch

  device, n = _torch_device(), x.num_items
  norms = torch.tensor(x.item_counts(), device=device).float().sqrt()
  gram = torch.zeros((n, n), device=device)
  for first in range(0, x.num_users, 4096):
    some = np.arange(first, min(first + 4096, x.num_users))
    rows, columns = (
      torch.from_numpy(a.astype(np.int64)).to(device) for a in x.pairs_of(some)
    )
    dense = torch.zeros((len(some), n), device=device)
    dense[rows, columns] = 1
    gram.addmm_(dense.T, dense)
  found = []
  gram.fill_diagonal_(0)
  for first in range(0, n, 2048):
    block = gram[first : first + 2048]
    block = block / (norms[first : first + 2048, None] * norms + 1e-6)
    found.append([part.cpu() for part in block.topk(_K)])
  return found


def _ease(x, peers):
  import jax
  import jax.numpy as jnp

  from jaxpapers import recsys
  from jaxpapers.recsys import gram as gram_lib
  from jaxpapers.recsys import linear

  l2 = 500.0
  model, times = _twice(lambda: recsys.ease(x, l2))
  result = {'ours': times}
  gram = jax.block_until_ready(gram_lib.device_gram(x.csr))
  some = np.arange(0, x.num_items, max(x.num_items // 64, 1))
  # Each column solves its own least squares: what is left of the equations.
  weights = jnp.asarray(np.asarray(model.weights)[:, some])
  high = jax.lax.Precision.HIGHEST
  left = np.array(
    jnp.matmul(gram, weights, precision=high) + l2 * weights - gram[:, some]
  )
  left[some, np.arange(len(some))] = 0
  result['largest_residual'] = float(
    np.abs(left).max() / float(gram[:, some].max())
  )
  del model, weights
  kept = np.array(gram) if peers else None
  _, result['on the device'] = _once(
    lambda: jax.block_until_ready(linear._refined(gram, l2))
  )
  if peers:
    _torch_inverse(np.eye(64, dtype=np.float32), l2)
    result['torch.linalg.inv on the device'] = _torch_inverse(kept, l2)
  return result


def _torch_inverse(gram, l2):
  import torch

  matrix = torch.from_numpy(gram).to(_torch_device())
  if matrix.is_cuda:
    torch.cuda.synchronize()
  start = time.perf_counter()
  matrix.diagonal().add_(l2)
  inverse = torch.linalg.inv(matrix)
  inverse /= -inverse.diagonal()
  inverse.fill_diagonal_(0)
  if matrix.is_cuda:
    torch.cuda.synchronize()
  return time.perf_counter() - start
