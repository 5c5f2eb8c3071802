"""Adam for the rows that were read, before there is a learning rate."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpapers.product_keys.layout import per_part
from jaxpapers.product_keys.row_sparse import RowSparse, is_row_sparse

FORMULATIONS = ('auto', 'rows', 'masked')
# Share of a table from which on a pass over all of it is taken to be faster
# than gathering and scattering rows. On a CPU rows take 57% of its time where
# half of them are read; docs/product_keys.md has the figures.
MASKED_FROM = 1.0
# Elements of a gradient that 'rows' has in hand at a time: a MiB of float32,
# which stays in the cache of a CPU.
_CHUNK = 2**18


class LazyAdamState(NamedTuple):
  """State of `lazy_adam` and `xlm_adam`.

  Attributes:
    count: Updates made, int32.
    mu: First moments.
    nu: Second moments.
    last: For each row of a table the update that last changed it, int32; None
      where moments are not corrected for updates that were skipped.
  """

  count: jax.Array
  mu: Any
  nu: Any
  last: Any


def scale_by_lazy_adam(b1, b2, eps, eps_mode, skip_correction, formulation):
  """Directions of `lazy_adam`, with the sign of the gradient.

  Args:
    b1: Decay of the first moment.
    b2: Decay of the second.
    eps: Added to the square root of the second moment.
    eps_mode: 'torch' or 'optax'.
    skip_correction: See `optimizers.lazy_adam`.
    formulation: One of `FORMULATIONS`.

  Returns:
    A transform.
  """

  def init(params):
    def zeros(p):
      return jnp.zeros_like(p, dtype=wide_type(p))

    last = None
    if skip_correction:
      last = jax.tree.map(lambda p: jnp.zeros(p.shape[:1], jnp.int32), params)
    return LazyAdamState(
      jnp.zeros((), jnp.int32),
      jax.tree.map(zeros, params),
      jax.tree.map(zeros, params),
      last,
    )

  def update(updates, state, params=None):
    del params
    count = optax.safe_increment(state.count)
    time = count.astype(jnp.result_type(float))
    correct1 = -jnp.expm1(time * jnp.log(b1)) if _positive(b1) else 1 - b1**time
    correct2 = -jnp.expm1(time * jnp.log(b2)) if _positive(b2) else 1 - b2**time

    def direction(m, v, correct1, correct2):
      if eps_mode == 'torch':
        factor = (jnp.sqrt(correct2) / correct1).astype(m.dtype)
        return factor * m / (jnp.sqrt(v) + eps)
      root = jnp.sqrt(v / correct2.astype(v.dtype)) + eps
      return m / correct1.astype(m.dtype) / root

    def moments(g, m, v, skipped):
      decay1, decay2 = b1, b2
      if skipped is not None:
        # The decay of this update, and of those that passed the row by.
        skipped = _as_rows(skipped, m).astype(m.dtype)
        m, v = m * b1**skipped, v * b2**skipped
      m = decay1 * m + (1 - decay1) * g
      v = decay2 * v + (1 - decay2) * jnp.square(g)
      return m.astype(g.dtype), v.astype(g.dtype)

    def dense(g, m, v, last):
      wide = g.astype(m.dtype)
      skipped = None if last is None else count - 1 - last
      m, v = moments(wide, m, v, skipped)
      if last is not None:
        last = jnp.full_like(last, count)
      step = direction(m, v, correct1, correct2)
      return step.astype(g.dtype), m, v, last

    # The next two see one part of a table that lies on several devices.
    def rows(ids, g, count, correct1, correct2, *tables):
      def some(start, size, g, m, v, *last):
        """Changes the places from `start`; g becomes the step, in its place."""
        n = m.shape[0]
        cut = functools.partial(
          jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size
        )
        some_ids, some_g = cut(ids), cut(g)
        at = jnp.minimum(some_ids, n - 1)
        skipped = count - 1 - last[0][at] if last else None
        some_m, some_v = moments(some_g.astype(m.dtype), m[at], v[at], skipped)
        step = direction(some_m, some_v, correct1, correct2)
        step = jnp.where((some_ids < n)[:, None], step, 0).astype(g.dtype)
        # Out of range where a place of the gradient is not used: dropped.
        options = {'mode': 'drop', 'indices_are_sorted': True}
        m = m.at[some_ids].set(some_m, **options)
        v = v.at[some_ids].set(some_v, **options)
        last = [x.at[some_ids].set(count, **options) for x in last]
        # XLA copies all of g unless its change depends on what else reads it;
        # squares are never negative.
        late = jnp.square(m[at[0], 0]) + jnp.square(v[at[0], 0]) < -1
        start = start + late.astype(jnp.int32)
        g = jax.lax.dynamic_update_slice_in_dim(g, step, start, 0)
        return g, m, v, *last

      size = max(1, _CHUNK // g.shape[1])
      whole, rest = divmod(ids.shape[0], size)
      state = (g, *tables)
      if whole:
        state = jax.lax.fori_loop(
          0, whole, lambda i, state: some(i * size, size, *state), state
        )
      return some(whole * size, rest, *state) if rest else tuple(state)

    def masked(ids, g, count, correct1, correct2, m, v, *last):
      n = m.shape[0]
      read = jnp.zeros((n,), bool).at[ids].set(True, mode='drop')
      skipped = count - 1 - last[0] if last else None
      wide = RowSparse(ids, g).dense(n).astype(m.dtype)
      new_m, new_v = moments(wide, m, v, skipped)
      kept = _as_rows(read, m)
      step = jnp.where(kept, direction(new_m, new_v, correct1, correct2), 0)
      return (
        step.astype(g.dtype),
        jnp.where(kept, new_m, m),
        jnp.where(kept, new_v, v),
        *(jnp.where(read, count, x) for x in last),
      )

    def one(g, m, v, last):
      if not is_row_sparse(g):
        return dense(g, m, v, last)
      by_rows = formulation == 'rows'
      if formulation == 'auto':
        # Parts of a table have as many places each: the share is that of all.
        by_rows = g.ids.shape[0] < MASKED_FROM * m.shape[0]
      inputs = ('ids', 'rows', 'all', 'all', 'all', 'table', 'table')
      extra = () if last is None else ('vector',)
      function = per_part(
        g.layout,
        rows if by_rows else masked,
        inputs + extra,
        ('rows' if by_rows else 'table', 'table', 'table') + extra,
      )
      tail = () if last is None else (last,)
      step, m, v, *tail = function(
        g.ids, g.rows, count, correct1, correct2, m, v, *tail
      )
      if by_rows:
        step = g.replace(rows=step)
      return step, m, v, (tail[0] if tail else None)

    leaves, structure = jax.tree.flatten(updates, is_leaf=is_row_sparse)
    lasts = [None] * len(leaves)
    if skip_correction:
      lasts = structure.flatten_up_to(state.last)
    results = [
      one(*leaf)
      for leaf in zip(
        leaves,
        structure.flatten_up_to(state.mu),
        structure.flatten_up_to(state.nu),
        lasts,
      )
    ]
    parts = [[r[i] for r in results] for i in range(4)]
    new, mu, nu = (structure.unflatten(part) for part in parts[:3])
    last = structure.unflatten(parts[3]) if skip_correction else None
    return new, LazyAdamState(count, mu, nu, last)

  return optax.GradientTransformation(init, update)


def _as_rows(x, like):
  """One number for each row of an array, so that both combine."""
  return x.reshape(*x.shape, *(1,) * (like.ndim - x.ndim))


def _positive(x) -> bool:
  return not isinstance(x, (int, float)) or x > 0


def wide_type(x):
  """At least float32: bfloat16 would forget that a moment ever changed."""
  return jnp.promote_types(x.dtype, jnp.float32)
