"""Optimizers of value tables: Adam for the rows that were read."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxpapers.product_keys.lazy_rows import (
  FORMULATIONS,
  LazyAdamState,
  scale_by_lazy_adam,
  wide_type,
)
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

  In a program that is given state and parameters to keep (`donate_argnums`),
  tables and moments change where they are. Results must come in the order of
  the arguments: JAX pairs arrays of equal shape by it, and a table that ends
  where a moment was has to be copied.

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
      the second where a gradient has a place for every row.

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
    scale_by_lazy_adam(b1, b2, eps, eps_mode, skip_correction, formulation),
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
  steps = [_densify(), scale_by_lazy_adam(b1, b2, eps, 'torch', False, 'auto')]
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
      jnp.sum(jnp.square(x.astype(wide_type(x))))
      for x in _float_leaves(updates)
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
