"""The k best of N keys: product keys in O(sqrt(N)), flat keys in O(N).

Lample, Sablayrolles, Ranzato, Denoyer & Jegou (2019, arXiv:1907.05242),
section 3.1.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ['addressing_loss', 'flat_key_topk', 'product_key_topk']

# Ids are int32: the largest n with n * n < 2^31.
MAX_SUB_KEYS = math.isqrt(2**31 - 1)
# Of a search on CPU: heads times tokens from which it is divided; blocks that
# threads share (XLA hands on half of what is ready where that is more than 8);
# scores of a part, 4 MiB.
_FEW = 256
_BLOCKS = 16
_SCORES = 2**20


def product_key_topk(
  q: jax.Array,
  keys: jax.Array,
  k: int,
  *,
  prune: bool = True,
  precision: str | jax.lax.Precision = 'highest',
  recall: float | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Scores and ids of the k best of n * n product keys.

  Slot `i * n + j` has the key (keys[0, i], keys[1, j]) and the score
  `<q[0], keys[0, i]> + <q[1], keys[1, j]>` (eq. 3 of the paper). The k best
  are among the sums of the k best of each half, so the result is exact. Equal
  scores come in the order of ids within each half's ranking.

  Args:
    q: Halves of the queries, `[T, H, 2, half]`.
    keys: Codebooks `[H, 2, n, half]`, or one `[n, half]` for all heads and
      halves.
    k: How many to return, at most n.
    prune: Whether to add only pairs with (a + 1)(b + 1) <= k, where a and b
      are ranks from 0. A pair that is left out has k or more pairs at least as
      good before it: the result is the same bit for bit, from 119 candidates
      instead of 1024 where k is 32.
    precision: Of the products. Less than 'highest' changes which keys are
      found on GPU and TPU.
    recall: None for an exact search; otherwise the share of the k best of each
      half that TPUs have to find (`jax.lax.approx_max_k`), which is faster
      there. Other devices find all.

  Returns:
    Scores in descending order, float32 or wider, `[T, H, k]`, and int32 ids
    `[T, H, k]`.

  Raises:
    ValueError: If shapes do not fit, `k` or `recall` is out of range or n * n
      does not fit int32.

  Example:
    >>> q = jnp.array([[[[1.0], [1.0]]]])
    >>> keys = jnp.array([[[[1.0], [3.0]], [[5.0], [2.0]]]])
    >>> scores, ids = product_key_topk(q, keys, 2)
    >>> scores.tolist(), ids.tolist()
    ([[[8.0, 6.0]]], [[[2, 0]]])
  """
  q, keys = jnp.asarray(q), jnp.asarray(keys)
  if q.ndim != 4 or q.shape[2] != 2:
    raise ValueError(
      f'q has shape {q.shape}; expected [tokens, heads, 2, half]. Split'
      ' queries with q.reshape(tokens, heads, 2, -1).'
    )
  heads, half = q.shape[1], q.shape[3]
  if keys.ndim == 2:
    keys = jnp.broadcast_to(keys, (heads, 2, *keys.shape))
  if keys.ndim != 4 or (*keys.shape[:2], keys.shape[3]) != (heads, 2, half):
    raise ValueError(
      f'keys has shape {keys.shape}; expected [{heads}, 2, n, {half}], as q has'
      f' shape {q.shape}, or one codebook [n, {half}].'
    )
  n = keys.shape[2]
  check_sub_keys('keys', n)
  check_k(k, n, 'keys of each half')
  # bfloat16 scores tie, and any of many slots would be taken.
  wide = jnp.promote_types(jnp.promote_types(q.dtype, keys.dtype), jnp.float32)
  q, keys = q.astype(wide), keys.astype(wide)
  options = {'k': k, 'prune': prune, 'precision': precision}
  if recall is not None or q.shape[0] * heads < _FEW:
    top = functools.partial(_top, recall=recall)
    return _all_at_once(q, keys, top=top, **options)
  return jax.lax.platform_dependent(
    q,
    keys,
    cpu=functools.partial(_in_parts, **options),
    default=functools.partial(_all_at_once, top=jax.lax.top_k, **options),
  )


def _all_at_once(q, keys, *, k, prune, precision, top):
  """The search as the paper has it."""
  n = keys.shape[2]
  best, ranks = top(_half_scores(q, keys, precision), k)
  # XLA would move the slices below into this top_k, which on CPU makes a sort
  # of all scores out of it: 7 times the time of the whole search. In another
  # order, because XLA (of JAX 0.10, on meshes) ends the process where the
  # barrier takes the very pair that top_k gives.
  ranks, best = jax.lax.optimization_barrier((ranks, best))
  best0, best1 = best[:, :, 0], best[:, :, 1]
  ids0, ids1 = ranks[:, :, 0] * n, ranks[:, :, 1]
  widths = _widths(k, prune)
  sums = _pairs(best0, best1, widths)
  pairs = _pairs(ids0, ids1, widths)
  found, place = jax.lax.top_k(sums, k)
  return found, jnp.take_along_axis(pairs, place, axis=-1)


def _in_parts(q, keys, *, k, prune, precision):
  """The same for CPUs, where top_k is a single thread, and memory is slow.

  One part of the tokens after the other: their scores stay in cache, and all
  temporaries below the 32 MiB from which on the C library asks the system for
  new pages at each call.

  Gradients flow through two reads of the scores, so that nothing of the search
  itself has one.
  """
  tokens, heads, n = q.shape[0], q.shape[1], keys.shape[2]
  widths = _widths(k, prune)
  pairs = [(a, b) for a, width in enumerate(widths) for b in range(width)]
  rows, columns = np.array(pairs, np.int32).T

  def search(scores):
    """Places in both halves, [H, 2, T, k]."""
    best, ranks = _top_by_threads(scores, k)
    _, place = _top_by_threads(_pairs(best[:, 0], best[:, 1], widths), k)
    picked = jnp.stack([jnp.asarray(rows)[place], jnp.asarray(columns)[place]])
    return _take(ranks, jnp.moveaxis(picked, 0, 1))

  def part(q):
    scores = jnp.einsum('thpd,hpnd->hptn', q, keys, precision=precision)
    places = search(jax.lax.stop_gradient(scores))
    found = _take(scores, places)
    found = found[:, 0] + found[:, 1]
    ids = places[:, 0] * n + places[:, 1]
    return found.swapaxes(0, 1), ids.swapaxes(0, 1)

  parts = -(-tokens // max(4 * _BLOCKS, _SCORES // (2 * heads * n)))
  if parts == 1:
    return part(q)
  spare = -tokens % parts
  q = jnp.pad(q, ((0, spare), (0, 0), (0, 0), (0, 0)))
  found, ids = jax.lax.map(part, q.reshape(parts, -1, *q.shape[1:]))
  shape = (tokens + spare, heads, k)
  return found.reshape(shape)[:tokens], ids.reshape(shape)[:tokens]


def _top_by_threads(scores, k):
  """top_k, without gradients, in blocks that threads share on CPU.

  XLA runs what is ready on several threads, but blocks wait for each other
  where the result of one gets the memory of another's scores. It does not while
  these are needed, and those that a loop goes on with are. So here is a loop of
  one turn, of which the compiler knows neither how many turns it has nor that
  nobody looks at the scores again.
  """
  n = scores.shape[-1]
  rows = _without_hopeless(scores, k).reshape(-1, n)
  size = -(-rows.shape[0] // _BLOCKS)
  blocks = [rows[i : i + size] for i in range(0, rows.shape[0], size)]

  def turn(state):
    number, blocks, _ = state
    found = [jax.lax.top_k(block, k) for block in blocks]
    # The order matters, see `_all_at_once`.
    found = jax.lax.optimization_barrier([(ids, best) for best, ids in found])
    blocks = [
      block.at[0, 0].set(best[0, 0]) for block, (_, best) in zip(blocks, found)
    ]
    return number + 1, blocks, found

  # No zeros: where devices are mapped, it is to be known that these may differ.
  first = rows[:size, :k]
  start = [
    (first.astype(jnp.int32)[: len(block)], first[: len(block)])
    for block in blocks
  ]
  number = (rows[0, 0] > jnp.inf).astype(jnp.int32)  # Never.
  _, _, found = jax.lax.while_loop(
    lambda state: state[0] < 1, turn, (number, blocks, start)
  )
  shape = (*scores.shape[:-1], k)
  ids, best = (jnp.concatenate(x).reshape(shape) for x in zip(*found))
  return best, ids


def _take(x, places):
  return jnp.take_along_axis(x, places, axis=-1, mode='promise_in_bounds')


def _widths(k: int, prune: bool) -> list[int]:
  """With row a go the columns b < k // (a + 1).

  As slices, since gathering the pairs by index is slower than adding all.
  """
  return [k // (a + 1) if prune else k for a in range(k)]


def _half_scores(q, keys, precision) -> jax.Array:
  """Products of the halves of queries and keys, [T, H, 2, n]."""
  # bfloat16 scores tie, and any of many slots would be taken.
  wide = jnp.promote_types(jnp.promote_types(q.dtype, keys.dtype), jnp.float32)
  return jnp.einsum(
    'thpd,hpnd->thpn', q.astype(wide), keys.astype(wide), precision=precision
  )


def _top(scores: jax.Array, k: int, recall: float | None):
  if recall is not None:
    if not 0 < recall <= 1:
      raise ValueError(f'recall is {recall}; expected above 0 and at most 1.')
    return jax.lax.approx_max_k(scores, k, recall_target=recall)

  thin = functools.partial(_without_hopeless, k=k)
  if math.prod(scores.shape[:-1]) < _FEW:
    scores = jax.lax.platform_dependent(
      scores, cpu=thin, default=lambda scores: scores
    )
    return jax.lax.top_k(scores, k)

  def by_threads(scores):
    _, places = _top_by_threads(jax.lax.stop_gradient(scores), k)
    return _take(scores, places), places

  return jax.lax.platform_dependent(
    scores,
    cpu=by_threads,
    default=lambda scores: tuple(jax.lax.top_k(scores, k)),
  )


def _without_hopeless(scores: jax.Array, k: int) -> jax.Array:
  """Scores with -inf in place of most of those that cannot be among the k best.

  XLA's top_k on CPU goes through a row and keeps the best so far in a heap,
  on a single thread. Changes of the heap are what takes the time, about `k + k
  log(n / k)` of them; with -inf nearly everywhere they are few more than k.
  What is compared here is a few passes that all threads share.

  The best of groups of scores stand for them: what has k of these at or above
  it is not above the k-th best of all. Halving an interval a few times finds
  such a bound that is near the k-th. The result of top_k is the same bit for
  bit, ties and NaNs included.

  Args:
    scores: `[..., n]`.
    k: How many are wanted.

  Returns:
    The same shape.
  """
  n = scores.shape[-1]
  group = next(
    (
      g
      for g, rest in ((8, 4), (4, 4), (2, 2))
      if n % g == 0 and n >= g * rest * k
    ),
    None,
  )
  if group is None:
    return scores
  fixed = jax.lax.stop_gradient(scores)
  heads = fixed.reshape(*fixed.shape[:-1], group, n // group).max(axis=-2)
  low, high = heads.min(axis=-1), heads.max(axis=-1)
  for _ in range(6):
    middle = (low + high) / 2
    # Never with NaN: then the bound stays where it is.
    enough = (heads >= middle[..., None]).sum(axis=-1) >= k
    low = jnp.where(enough, middle, low)
    high = jnp.where(enough, high, middle)
  return jnp.where(fixed < low[..., None], -jnp.inf, scores)


def addressing_loss(
  q: jax.Array,
  keys: jax.Array,
  mask: jax.Array | None = None,
  *,
  precision: str | jax.lax.Precision = 'highest',
) -> jax.Array:
  """Minus the entropy of how often keys are meant, against disuse.

  With p the mean over tokens of the softmax over the n keys of a half, `sum p
  log p`, averaged over heads and halves (as in FwPKM, arXiv:2601.00671):
  -log n where all keys are used alike, 0 where a single one is.

  Args:
    q: Halves of the queries, `[T, H, 2, half]`.
    keys: Codebooks `[H, 2, n, half]`.
    mask: Tokens that count, bool `[T]`; all by default.
    precision: Of the products.

  Returns:
    A scalar.

  Example:
    >>> loss = addressing_loss(jnp.zeros((3, 1, 2, 4)), jnp.ones((1, 2, 8, 4)))
    >>> round(float(loss), 3)
    -2.079
  """
  p = jax.nn.softmax(_half_scores(q, keys, precision), axis=-1)
  if mask is None:
    p = p.mean(axis=0)
  else:
    kept = mask[:, None, None, None]
    p = jnp.where(kept, p, 0).sum(axis=0) / jnp.maximum(mask.sum(), 1)
  # Finite gradients where nothing is meant.
  logs = jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny))
  return (p * logs).sum(axis=-1).mean()


def _pairs(x: jax.Array, y: jax.Array, widths: list[int]) -> jax.Array:
  """Sums x[a] + y[b] for b < widths[a], a first, in one trailing axis."""
  parts, a = [], 0
  while a < len(widths):
    # Rows of equal width are one outer sum: 2 sqrt(k) pieces instead of k.
    stop = a
    while stop < len(widths) and widths[stop] == widths[a]:
      stop += 1
    block = x[..., a:stop, None] + y[..., None, : widths[a]]
    parts.append(block.reshape(*block.shape[:-2], -1))
    a = stop
  return jnp.concatenate(parts, axis=-1)


def flat_key_topk(
  q: jax.Array,
  keys: jax.Array,
  k: int,
  *,
  precision: str | jax.lax.Precision = 'highest',
  recall: float | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Scores and ids of the k best of N keys that are not products.

  Args:
    q: Queries `[T, H, d]`.
    keys: `[H, N, d]`, or one `[N, d]` for all heads.
    k: How many to return, at most N.
    precision: Of the products.
    recall: See `product_key_topk`.

  Returns:
    Scores in descending order, float32 or wider, `[T, H, k]`, and int32 ids
    `[T, H, k]`.

  Raises:
    ValueError: If shapes do not fit, or `k` or `recall` is out of range.

  Example:
    >>> keys = jnp.array([[[1.0], [3.0], [2.0]]])
    >>> flat_key_topk(jnp.ones((1, 1, 1)), keys, 2)[1].tolist()
    [[[1, 2]]]
  """
  q, keys = jnp.asarray(q), jnp.asarray(keys)
  if q.ndim != 3:
    raise ValueError(f'q has shape {q.shape}; expected [tokens, heads, dim].')
  heads, dim = q.shape[1:]
  if keys.ndim == 2:
    keys = jnp.broadcast_to(keys, (heads, *keys.shape))
  if keys.ndim != 3 or (keys.shape[0], keys.shape[2]) != (heads, dim):
    raise ValueError(
      f'keys has shape {keys.shape}; expected [{heads}, N, {dim}], as q has'
      f' shape {q.shape}, or one list of keys [N, {dim}].'
    )
  check_k(k, keys.shape[1], 'keys')
  wide = jnp.promote_types(jnp.promote_types(q.dtype, keys.dtype), jnp.float32)
  scores = jnp.einsum(
    'thd,hnd->thn', q.astype(wide), keys.astype(wide), precision=precision
  )
  found, ids = _top(scores, k, recall)
  return found, ids


def check_k(k: int, limit: int, what: str, name: str = 'k') -> None:
  """Refuses a number of neighbours that there are not.

  Raises:
    ValueError: If `k` is below 1 or above `limit`.
  """
  if not 1 <= k <= limit:
    raise ValueError(
      f'{name} is {k}; expected 1 to {limit}, the number of {what}.'
    )


def check_sub_keys(name: str, n: int) -> None:
  """Refuses codebooks whose slots cannot be counted in int32.

  Raises:
    ValueError: If n is below 1 or n * n is 2^31 or more.
  """
  if not 1 <= n <= MAX_SUB_KEYS:
    raise ValueError(
      f'{name} has {n} keys in each half; expected 1 to {MAX_SUB_KEYS}, since'
      ' ids of the n * n slots are int32.'
    )
