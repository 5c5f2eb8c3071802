"""Optimizers of value tables: Adam for the rows that were read."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpapers.product_keys.layout import per_part
from jaxpapers.product_keys.row_sparse import RowSparse, is_row_sparse
from jaxpapers.product_keys.weighting import check_choice

__all__ = [
  'LazyAdamState',
  'clip_by_row_norm',
  'inverse_sqrt_schedule',
  'lazy_adam',
  'memory_optimizer',
  'xlm_adam',
]

EPS_MODES = ('torch', 'optax')
MODES = ('auto', 'lazy', 'dense')
FORMULATIONS = ('auto', 'rows', 'masked')
# Share of a table above which a pass over all of it is faster than gathering
# and scattering rows: docs/product_keys.md says where it was measured.
MASKED_FROM = 0.08


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


def lazy_adam(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  eps_mode: str = 'torch',
  skip_correction: bool = False,
  formulation: str = 'auto',
) -> optax.GradientTransformation:
  """Adam that leaves rows without a gradient, and their moments, as they are.

  Where a gradient is a `RowSparse`, moments and parameters of its rows alone
  change, as in torch.optim.SparseAdam; a dense gradient changes all, as in
  ordinary Adam. Bias correction counts all updates.

  Args:
    learning_rate: Number or schedule.
    b1: Decay of the first moment.
    b2: Decay of the second.
    eps: Added to the square root of the second moment.
    eps_mode: 'torch' adds it before that is corrected for bias, as XLM and
      SparseAdam do; 'optax' after it, as `optax.adam` does. Gradients of a slot
      are often near 1e-7: the first step of such a row is a quarter as long
      with 'torch'.
    skip_correction: Whether the moments of a row decay by the updates that were
      made since it was last read, as they would have with zero gradients.
    formulation: 'rows' gathers and scatters rows, 'masked' passes once over the
      table, to the same numbers but with temporaries of its size; 'auto' takes
      the second where a gradient has 8% of the rows or more.

  Returns:
    A transform. Updates of a `RowSparse` are one where rows are gathered, so
    that `optax.apply_updates` scatters them.

  Raises:
    ValueError: If a choice is unknown.

  Example:
    >>> tx = lazy_adam(0.1)
    >>> table = jnp.zeros((4, 2))
    >>> gradient = RowSparse(jnp.array([2]), jnp.ones((1, 2)))
    >>> updates, _ = tx.update(gradient, tx.init(table))
    >>> optax.apply_updates(table, updates)[:, 0].round(3).tolist()
    [0.0, 0.0, -0.1, 0.0]
  """
  check_choice('eps_mode', eps_mode, EPS_MODES)
  check_choice('formulation', formulation, FORMULATIONS)
  return optax.chain(
    _scale_by_lazy_adam(b1, b2, eps, eps_mode, skip_correction, formulation),
    _scale_by_rate(learning_rate),
  )


def xlm_adam(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
) -> optax.GradientTransformation:
  """Adam as in XLM's code: every row moves at every update.

  `p -= lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)`, with weight
  decay apart from the moments. The gradient of a table may be a `RowSparse`; it
  is made dense, and rows that were not read go on by their momentum.

  Args:
    learning_rate: Number or schedule.
    b1: Decay of the first moment.
    b2: Decay of the second.
    eps: Added to the square root of the second moment, uncorrected.
    weight_decay: Share of the parameters that is taken off, times the learning
      rate.

  Returns:
    A transform; it needs parameters.

  Example:
    >>> tx = xlm_adam(0.1)
    >>> w = jnp.ones(2)
    >>> tx.update(jnp.ones(2), tx.init(w), w)[0].round(3).tolist()
    [-0.10000000149011612, -0.10000000149011612]
  """
  steps = [_densify(), _scale_by_lazy_adam(b1, b2, eps, 'torch', False, 'auto')]
  # A traced coefficient is used whatever its value.
  if not (isinstance(weight_decay, (int, float)) and weight_decay == 0):
    steps.append(optax.add_decayed_weights(weight_decay))
  return optax.chain(*steps, _scale_by_rate(learning_rate))


def clip_by_row_norm(max_norm: float) -> optax.GradientTransformation:
  """Scales gradients, rows of tables among them, to a global norm at most.

  As torch's `clip_grad_norm_`, over the leaves this transform is shown: the ids
  of a `RowSparse` are no part of the norm.

  Args:
    max_norm: The limit.

  Returns:
    A transform without parameters.

  Raises:
    ValueError: If `max_norm` is not positive.

  Example:
    >>> tx = clip_by_row_norm(1.0)
    >>> g = RowSparse(jnp.array([7]), jnp.array([[3.0, 4.0]]))
    >>> tx.update(g, tx.init(None))[0].rows.round(3).tolist()
    [[0.6000000238418579, 0.800000011920929]]
  """
  if not max_norm > 0:
    raise ValueError(f'max_norm is {max_norm}; expected above 0.')

  def update(updates, state, params=None):
    del params
    squares = [
      jnp.sum(jnp.square(x.astype(_wide(x)))) for x in _float_leaves(updates)
    ]
    if not squares:
      return updates, state
    norm = jnp.sqrt(sum(squares))
    # torch's 1e-6 keeps an exactly clipped norm below the limit.
    factor = jnp.minimum(1.0, max_norm / (norm + 1e-6))
    return _map_rows(lambda x: (x * factor).astype(x.dtype), updates), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def inverse_sqrt_schedule(
  lr: float, warmup: int = 4000, init: float = 1e-7
) -> optax.Schedule:
  """Learning rates that rise linearly, then fall as one over the square root.

  `init + t (lr - init) / warmup` for t < warmup, then `lr sqrt(warmup / t)`;
  the first update has t = 0.

  Args:
    lr: The highest rate.
    warmup: Updates until it is reached.
    init: The first rate.

  Returns:
    A function of the update's number.

  Raises:
    ValueError: If `warmup` is below 1.

  Example:
    >>> float(inverse_sqrt_schedule(1.0, warmup=4)(16))
    0.5
  """
  if warmup < 1:
    raise ValueError(f'warmup is {warmup}; expected 1 or more.')

  def schedule(count):
    t = jnp.asarray(count, jnp.result_type(float))
    rising = init + t * (lr - init) / warmup
    falling = lr * jnp.sqrt(warmup / jnp.maximum(t, warmup))
    return jnp.where(t < warmup, rising, falling)

  return schedule


def memory_optimizer(
  model_tx: optax.GradientTransformation,
  value_lr: optax.ScalarOrSchedule = 1e-3,
  mode: str = 'auto',
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  clip_norm: float | None = 5.0,
  is_value: Callable[[tuple[str, ...]], bool] | None = None,
) -> optax.GradientTransformation:
  """One optimizer for a model, another for its value tables.

  Each has its own clipping and learning rate; that of values stays what it is
  while the model's follows a schedule (section 4.3 of the paper).

  Args:
    model_tx: For all but the tables.
    value_lr: Learning rate of the tables.
    mode: 'lazy' is `lazy_adam` of the rows that were read; 'auto' the same
      numbers, by a pass over the whole table where that is faster; 'dense'
      `xlm_adam`, which the paper's own runs had: rows that were not read go on
      by their momentum.
    b1: Decay of the tables' first moments.
    b2: Decay of their second.
    clip_norm: Limit of the gradient's norm, of the model and of the tables
      each; None for none.
    is_value: Tells tables by their path; by default what is below 'memory', or
      is named 'values', 'up' or 'down'.

  Returns:
    A transform for trees with gradients of tables dense or `RowSparse`.

  Raises:
    ValueError: If `mode` is unknown.

  Example:
    >>> params = {'w': jnp.ones(3), 'values': jnp.ones((4, 2))}
    >>> tx = memory_optimizer(optax.sgd(0.1))
    >>> gradient = RowSparse(jnp.array([1]), jnp.ones((1, 2)))
    >>> gradients = {'w': jnp.ones(3), 'values': gradient}
    >>> updates, _ = tx.update(gradients, tx.init(params), params)
    >>> new = optax.apply_updates(params, updates)
    >>> new['values'][:, 0].round(3).tolist()
    [1.0, 0.999000072479248, 1.0, 1.0]
  """
  check_choice('mode', mode, MODES)
  if mode == 'dense':
    values = xlm_adam(value_lr, b1, b2)
  else:
    formulation = {'auto': 'auto', 'lazy': 'rows'}[mode]
    values = lazy_adam(value_lr, b1, b2, formulation=formulation)
  if clip_norm is not None:
    values = optax.chain(clip_by_row_norm(clip_norm), values)
    model_tx = optax.chain(clip_by_row_norm(clip_norm), model_tx)
  is_value = is_value or is_value_table

  def labels(params):
    # Also called with gradients, where a table of rows is one leaf.
    return jax.tree_util.tree_map_with_path(
      lambda path, _: 'values' if is_value(_names(path)) else 'model',
      params,
      is_leaf=is_row_sparse,
    )

  return optax.partition({'model': model_tx, 'values': values}, labels)


def is_value_table(path: tuple[str, ...]) -> bool:
  """Whether a path is that of a value table, by the names of this package."""
  return 'memory' in path[:1] or path[-1:] in (('values',), ('up',), ('down',))


def _names(path) -> tuple[str, ...]:
  return tuple(
    jax.tree_util.keystr((part,), simple=True, separator='/') for part in path
  )


def _scale_by_lazy_adam(b1, b2, eps, eps_mode, skip_correction, formulation):
  """Directions, before the learning rate; the sign is that of the gradient."""

  def init(params):
    def zeros(p):
      return jnp.zeros_like(p, dtype=_wide(p))

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
    def rows(ids, g, count, correct1, correct2, m, v, *last):
      n = m.shape[0]
      at = jnp.minimum(ids, n - 1)
      skipped = count - 1 - last[0][at] if last else None
      some_m, some_v = moments(g.astype(m.dtype), m[at], v[at], skipped)
      # Out of range where a place of the gradient is not used: dropped.
      options = {'mode': 'drop', 'indices_are_sorted': True}
      step = direction(some_m, some_v, correct1, correct2)
      step = jnp.where((ids < n)[:, None], step, 0)
      return (
        step.astype(g.dtype),
        m.at[ids].set(some_m, **options),
        v.at[ids].set(some_v, **options),
        *(x.at[ids].set(count, **options) for x in last),
      )

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


def _densify():
  """Makes the gradient of a table dense."""

  def update(updates, state, params=None):
    return _dense_like(updates, params), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _dense_like(updates, params):
  if not any(
    map(is_row_sparse, jax.tree.leaves(updates, is_leaf=is_row_sparse))
  ):
    return updates
  if params is None:
    raise ValueError(
      'params is None; expected the parameters, as a table of'
      ' rows has to be made dense.'
    )
  return jax.tree.map(
    lambda g, p: g.dense(p.shape[0]) if is_row_sparse(g) else g,
    updates,
    params,
    is_leaf=is_row_sparse,
  )


def _scale_by_rate(learning_rate):
  """Minus the learning rate, for trees with tables of rows."""

  def init(params):
    del params
    return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

  def update(updates, state, params=None):
    del params
    rate = learning_rate
    if callable(rate):
      rate = rate(state.count)
    updates = _map_rows(lambda x: (-rate * x).astype(x.dtype), updates)
    return updates, optax.ScaleByScheduleState(
      optax.safe_increment(state.count)
    )

  return optax.GradientTransformation(init, update)


def _map_rows(function, tree):
  """Maps arrays, and of a table of rows only the rows."""
  return jax.tree.map(
    lambda x: (
      RowSparse(x.ids, function(x.rows), x.layout)
      if is_row_sparse(x)
      else function(x)
    ),
    tree,
    is_leaf=is_row_sparse,
  )


def _float_leaves(tree):
  leaves = jax.tree.leaves(tree, is_leaf=is_row_sparse)
  return [leaf.rows if is_row_sparse(leaf) else leaf for leaf in leaves]


def _as_rows(x, like):
  """One number for each row of an array, so that both combine."""
  return x.reshape(*x.shape, *(1,) * (like.ndim - x.ndim))


def _positive(x) -> bool:
  return not isinstance(x, (int, float)) or x > 0


def _wide(x):
  """At least float32: bfloat16 would forget that a moment ever changed."""
  return jnp.promote_types(x.dtype, jnp.float32)
