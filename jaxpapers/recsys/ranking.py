"""From scores to ranked lists and ranks, with an explicit rule for ties."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.recsys import numpy_ties
from jaxpapers.recsys.data import Interactions
from jaxpapers.recsys.models import put_model, score

TIES = ('index', 'expected', 'optimistic', 'pessimistic')
# Of lists: also the order of the study's program, which no rank is known of.
LIST_TIES = (*TIES, 'numpy')


class Ranks(NamedTuple):
  """Where a user's test items are, up to some depth, maybe in expectation.

  Without ties (or with ties broken) these are plain facts about one list. With
  expected ties they are means over all orders of items with equal scores.

  Attributes:
    hit: Probability that the item at a position is a test item, `[b, depth]`.
    gain: Its expected gain, 2^relevance - 1, `[b, depth]`.
    before: Expected number of hits above, given a hit here, `[b, depth]`.
    none: Probability of no hit down to this position, `[b, depth]`.
    length: Length of the whole list, int `[b]`: items that may be recommended.
  """

  hit: Any
  gain: Any
  before: Any
  none: Any
  length: Any


class Lists(NamedTuple):
  """Recommendations.

  Attributes:
    users: Whose, int `[b]`.
    items: Items, best first, int32 `[b, k]`; -1 where a list is shorter.
    scores: Their scores, float32 `[b, k]`; -inf there.
  """

  users: np.ndarray
  items: np.ndarray
  scores: np.ndarray


def rank_of_hits(hit: Any, gain: Any, length: Any) -> Ranks:
  """Ranks of lists whose order is settled.

  Args:
    hit: Whether a position holds a test item, `[b, depth]`.
    gain: Gain there, `[b, depth]`.
    length: Length of the list, int `[b]`.
  """
  hit = jnp.asarray(hit)
  hit = hit.astype(jnp.result_type(float))
  return Ranks(
    hit,
    jnp.asarray(gain).astype(hit.dtype),
    jnp.cumsum(hit, -1) - hit,
    jnp.cumprod(1 - hit, -1),
    jnp.asarray(length),
  )


@functools.partial(jax.jit, static_argnames=('ties',))
def rank_candidates(
  scores: Any,
  pos_mask: Any,
  seen_mask: Any = None,
  ties: str = 'expected',
  *,
  gain: Any = None,
) -> Ranks:
  """Ranks the candidates of each user.

  Args:
    scores: float `[b, c]`; -inf for what may not be recommended. Columns are in
      the order of item ids, which 'index' breaks ties by.
    pos_mask: Which candidates are test items, bool `[b, c]`.
    seen_mask: Which may not be recommended, bool `[b, c]`; optional.
    ties: 'expected' averages over all orders of equal scores, 'optimistic' puts
      test items first, 'pessimistic' last (of these the most relevant first,
      or last), 'index' the lower id first.
    gain: Gain of each test item, `[b, c]`; 1 by default.

  Returns:
    Ranks over all c positions.

  Raises:
    ValueError: `ties` is unknown.

  Example:
    >>> ranks = rank_candidates(jnp.zeros((1, 4)), jnp.eye(4, dtype=bool)[:1])
    >>> ranks.hit[0].tolist()
    [0.25, 0.25, 0.25, 0.25]
  """
  if ties not in TIES:
    raise ValueError(f'ties is {ties!r}; expected one of {", ".join(TIES)}.')
  scores, positive = jnp.asarray(scores), jnp.asarray(pos_mask)
  dtype = jnp.result_type(float)
  valid = scores > -jnp.inf
  if seen_mask is not None:
    valid &= ~jnp.asarray(seen_mask, bool)
  positive = (positive != 0) & valid
  gain = positive.astype(dtype) if gain is None else jnp.asarray(gain, dtype)
  gain = jnp.where(positive, gain, 0)
  # Equal scores are equal also as -0 and 0.
  key = jnp.where(valid, -(scores + 0), jnp.inf)
  second = jnp.broadcast_to(jnp.arange(scores.shape[-1]), scores.shape)
  if ties == 'optimistic':
    second = jnp.where(positive, -1 - gain, 0)
  elif ties == 'pessimistic':
    second = jnp.where(positive, 1 + gain, 0)
  key, _, positive, gain, valid = jax.lax.sort(
    (key, second.astype(dtype), positive.astype(dtype), gain, valid),
    num_keys=2,
  )
  length = valid.sum(-1)
  if ties != 'expected':
    return rank_of_hits(positive, gain, length)
  return _expected(key, positive, gain, length)


def _expected(key, positive, gain, length):
  """Means over the orders within groups of equal keys."""
  c = key.shape[-1]
  at = jnp.arange(c)
  starts = jnp.concatenate(
    [jnp.ones_like(key[..., :1], bool), key[..., 1:] != key[..., :-1]], -1
  )
  start = jax.lax.cummax(jnp.where(starts, at, 0), axis=key.ndim - 1)
  ends = jnp.concatenate([starts[..., 1:], starts[..., :1] | True], -1)
  end = jax.lax.cummin(
    jnp.where(ends, at + 1, c), axis=key.ndim - 1, reverse=True
  )

  def total(x):
    sums = jnp.concatenate([jnp.zeros_like(x[..., :1]), jnp.cumsum(x, -1)], -1)
    above = jnp.take_along_axis(sums, start, -1)
    return above, jnp.take_along_axis(sums, end, -1) - above

  above, hits = total(positive)
  size = (end - start).astype(positive.dtype)
  offset = (at - start).astype(positive.dtype)
  others = jnp.where(size > 1, (hits - 1) / jnp.maximum(size - 1, 1), 0)
  none = jnp.cumprod(jnp.maximum(size - hits - offset, 0) / (size - offset), -1)
  return Ranks(
    hits / size,
    total(gain)[1] / size,
    above + offset * jnp.maximum(others, 0),
    none,
    length,
  )


def top_items(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
  """The k best items of each row; the lower id first among equals.

  Args:
    scores: float32 `[b, n]` without NaN; -inf for what is left out.
    k: How many.

  Returns:
    Items int32 `[b, k]`, -1 where there are no more; their scores.
  """
  values, items = _top_k(scores, min(k, scores.shape[1]))
  values, items = np.asarray(values), np.array(items)
  items[values == -np.inf] = -1
  return items, values


@functools.partial(jax.jit, static_argnums=(1,))
def _top_k(scores, k):
  # Unlike numpy's partition it does not mind that most scores are equal.
  return jax.lax.top_k(scores, k)


@functools.partial(jax.jit, static_argnames=('k', 'ties'))
def top_items_device(
  scores: Any, seen: Any, k: int, ties: str = 'index'
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """`top_items` on a device, leaving out what is seen.

  Args:
    scores: float `[b, n]`.
    seen: Rows and items to leave out, each int `[length]`, padded with rows b.
    k: How many.
    ties: See `rank_full`.

  Returns:
    Items, scores, and the number of users with a score that is NaN.
  """
  bad = jnp.isnan(scores).any(-1).sum()
  scores = scores.at[seen].set(-jnp.inf, mode='drop')
  if ties == 'reverse':
    scores = scores[:, ::-1]
  values, items = jax.lax.top_k(scores, min(k, scores.shape[1]))
  if ties == 'reverse':
    items = scores.shape[1] - 1 - items
  return jnp.where(values == -jnp.inf, -1, items), values, bad


def rank_full(
  score_fn: Any,
  train: Interactions,
  users: Any,
  k: int,
  exclude_seen: bool = True,
  ties: str = 'index',
  *,
  ignore_items: Any = (),
  block: int | None = None,
) -> Lists:
  """The k best items of all, for some users.

  Args:
    score_fn: A model, or a function of users `[b]` that returns `[b, n]`.
    train: Profiles to score from, and to leave out.
    users: Rows of `train`.
    k: Length of lists, at most the number of items.
    exclude_seen: Leave out what a user has in `train`.
    ties: Of equal scores the lower id comes first ('index') or the higher one
      ('reverse'): where metrics of both differ, ties decide them. 'numpy' is
      the order of the study's program (`numpy_ties`). The rules of
      `rank_candidates` need to know the test items.
    ignore_items: Never recommend these.
    block: Users at a time; None for blocks of some 30 MB.

  Returns:
    Lists.

  Raises:
    ValueError: k is out of range, a score is NaN, or `ties` is unknown.
  """
  if ties not in ('index', 'reverse', 'numpy'):
    raise ValueError(
      f"ties is {ties!r}; expected 'index', 'reverse' or 'numpy'."
    )
  users = np.asarray(users)
  if not 1 <= k <= train.num_items:
    raise ValueError(
      f'k is {k}; expected 1 to {train.num_items}, the number of items.'
    )
  items = np.full((len(users), k), -1, np.int32)
  values = np.full((len(users), k), -np.inf, np.float32)
  waiting: list[Any] = []

  def store(part, found):
    items[part], values[part], bad = (np.asarray(x) for x in found)
    _check_scores(int(bad))

  for part, scores in score_blocks(
    score_fn, train, users, exclude_seen, ignore_items, block, ties == 'numpy'
  ):
    if isinstance(scores, tuple):
      # The host takes one block while the device makes the next.
      waiting.append((part, top_items_device(*scores, k=k, ties=ties)))
      if len(waiting) > 1:
        store(*waiting.pop(0))
    else:
      if ties == 'reverse':
        scores = np.ascontiguousarray(scores[:, ::-1])
      find = numpy_ties.top_items if ties == 'numpy' else top_items
      found, values[part] = find(scores, k)
      if ties == 'reverse':
        found = np.where(found >= 0, train.num_items - 1 - found, -1)
      items[part] = found
  for part, found in waiting:
    store(part, found)
  return Lists(users, items, values)


def score_blocks(
  score_fn: Any,
  train: Interactions,
  users: np.ndarray,
  exclude_seen: bool = True,
  ignore_items: Any = (),
  block: int | None = None,
  host: bool = False,
) -> Iterator[tuple[slice, Any]]:
  """Scores of blocks of users, checked, what is excluded at -inf.

  Yields:
    The place of the block in `users`; and scores float32 `[b, n]` or, on an
    accelerator, a pair of scores and what `top_items_device` takes as seen.
  """
  function = as_function(score_fn, train)
  block = block or block_size(train.num_items, host)
  ignore = np.asarray(ignore_items, int)
  for first in range(0, len(users), block):
    part = slice(first, first + block)
    some = users[part]
    scores = function(some)
    if tuple(scores.shape) != (len(some), train.num_items):
      raise ValueError(
        f'score_fn returned shape {scores.shape}; expected'
        f' {(len(some), train.num_items)}.'
      )
    on_device = isinstance(scores, jax.Array) and not host
    if on_device and jax.default_backend() != 'cpu':
      given = [train.pairs_of(some)] if exclude_seen else []
      if len(ignore):
        rows = np.repeat(np.arange(len(some)), len(ignore))
        given.append((rows, np.tile(ignore, len(some))))
      yield part, (scores, pad_pairs(given, len(some)))
      continue
    scores = np.array(scores, np.float32)
    # A sum is NaN if one score is: cheaper than looking at each.
    bad = np.isnan(scores.sum(axis=1))
    if bad.any():
      _check_scores(int(np.isnan(scores[bad]).any(axis=1).sum()))
    if exclude_seen:
      scores[train.pairs_of(some)] = -np.inf
    if len(ignore):
      scores[:, ignore] = -np.inf
    yield part, scores


def _check_scores(bad):
  if bad:
    raise ValueError(
      f'scores are NaN for {bad} users. The model is broken (diverged?):'
      ' metrics of it would mean nothing.'
    )


def pad_pairs(
  pairs: Sequence[tuple[np.ndarray, np.ndarray]], fill: int
) -> tuple[np.ndarray, np.ndarray]:
  """Rows and columns one after the other, of one of few lengths.

  Args:
    pairs: Rows and columns.
    fill: Row that stands for nothing.

  Returns:
    Rows and columns, int32, as long as a power of two.
  """
  rows, columns = (
    np.concatenate([np.zeros(0, np.int32), *part]).astype(np.int32)
    for part in (zip(*pairs, strict=True) if pairs else ((), ()))
  )
  space = (1 << max(len(rows) - 1, 0).bit_length()) - len(rows)
  return (
    np.pad(rows, (0, space), constant_values=fill),
    np.pad(columns, (0, space)),
  )


def block_size(num_items: int, host: bool = True) -> int:
  """Users whose scores take some 30 MB, or 256 MB on an accelerator."""
  wide = not host and jax.default_backend() != 'cpu'
  numbers = 1 << 26 if wide else 1 << 23
  return int(np.clip(numbers // max(num_items, 1), 16, 16384 if wide else 4096))


def as_function(
  score_fn: Any, train: Interactions
) -> Callable[[np.ndarray], Any]:
  """A function of users, of a model or of such a function."""
  if callable(score_fn):
    return score_fn
  score_fn = put_model(score_fn)
  return lambda users: score(score_fn, train, users)
