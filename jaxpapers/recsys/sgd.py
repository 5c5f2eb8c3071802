"""Steps on the touched rows of tables, with a choice of step sizes."""

from typing import Any

import jax
import jax.numpy as jnp

MODES = ('sgd', 'adagrad', 'rmsprop', 'adam')


def check_mode(mode: str) -> None:
  """Refuses unknown step rules."""
  if mode not in MODES:
    raise ValueError(
      f'sgd_mode is {mode!r}; expected one of {", ".join(MODES)}.'
    )


def init(mode: str, table: Any) -> tuple:
  """State of a table: as many numbers for each entry as the rule needs."""
  # Each an array of its own: they are donated.
  count = {'sgd': 0, 'adam': 2}.get(mode, 1)
  return tuple(jnp.zeros_like(table) for _ in range(count))


def direction(mode: str, state: tuple, gradient: Any, step: Any):
  """Step of some rows.

  Args:
    mode: One of `MODES`.
    state: Their state.
    gradient: What to go along (ascent).
    step: Number of steps done before, for adam.

  Returns:
    The step without the learning rate, and the new state.
  """
  if mode == 'sgd':
    return gradient, ()
  if mode == 'adagrad':
    total = state[0] + gradient**2
    return gradient / (jnp.sqrt(total) + 1e-8), (total,)
  if mode == 'rmsprop':
    total = 0.995 * state[0] + 0.005 * gradient**2
    return gradient / (jnp.sqrt(total) + 1e-8), (total,)
  first = 0.9 * state[0] + 0.1 * gradient
  second = 0.999 * state[1] + 0.001 * gradient**2
  count = step + 1.0
  scaled = (first / (1 - 0.9**count)) / (
    jnp.sqrt(second / (1 - 0.999**count)) + 1e-8
  )
  return scaled, (first, second)


def update_rows(
  mode: str,
  table: Any,
  state: tuple,
  rows: Any,
  gradients: Any,
  learning_rate: Any,
  step: Any,
):
  """Sums the gradients of each row and moves the rows that occur.

  Args:
    mode: One of `MODES`.
    table: `[n, ...]`.
    state: Of `init`.
    rows: int `[b]`; n is ignored.
    gradients: `[b, ...]`, direction of ascent.
    learning_rate: Size of a step.
    step: Number of steps before.

  Returns:
    The new table and state.
  """
  n = table.shape[0]
  order = jnp.argsort(rows)
  ordered = rows[order]
  new = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
  segment = jnp.cumsum(new) - 1
  sums = jax.ops.segment_sum(gradients[order], segment, len(rows))
  # One place for each row that occurs; the rest is out of range, and dropped.
  at = jnp.full(len(rows), n).at[segment].set(ordered)
  inside = jnp.minimum(at, n - 1)
  move, changed = direction(
    mode, tuple(part[inside] for part in state), sums, step
  )
  table = table.at[at].add(learning_rate * move, mode='drop')
  state = tuple(
    part.at[at].set(value, mode='drop')
    for part, value in zip(state, changed, strict=True)
  )
  return table, state
