"""From the scores of keys that were found to the weights of their values."""

import jax
import jax.numpy as jnp

__all__ = ['score_weights']

SCORES = ('softmax', 'relu', 'none')
SUBTRACT = (None, 'min', 'mean', 'median')


def score_weights(
  scores: jax.Array,
  score: str = 'softmax',
  temperature: float = 1.0,
  subtract: str | None = None,
  normalize: bool = False,
) -> jax.Array:
  """Weights, by the steps of XLM in its order.

  Scores over the temperature; softmax, ReLU (Shen et al. 2023) or neither;
  minus their minimum, mean or median; over the sum of their magnitudes.

  Args:
    scores: In descending order, `[..., k]`.
    score: 'softmax', 'relu' or 'none'.
    temperature: Divides the scores.
    subtract: 'min', 'mean', 'median' (the lower of two) or None.
    normalize: Whether magnitudes sum to 1.

  Returns:
    `[..., k]`, float32 or wider.

  Raises:
    ValueError: If a choice is unknown.

  Example:
    >>> score_weights(jnp.array([2.0, -1.0]), 'relu').tolist()
    [2.0, 0.0]
  """
  check_choice('score', score, SCORES)
  check_choice('score_subtract', subtract, SUBTRACT)
  w = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
  w = w / temperature
  if score == 'softmax':
    w = jax.nn.softmax(w, axis=-1)
  elif score == 'relu':
    w = jax.nn.relu(w)
  if subtract == 'min':
    w = w - w.min(axis=-1, keepdims=True)
  elif subtract == 'mean':
    w = w - w.mean(axis=-1, keepdims=True)
  elif subtract == 'median':
    # They are in descending order. torch takes the lower of two medians.
    w = w - w[..., w.shape[-1] // 2, None]
  if normalize:
    w = w / jnp.maximum(jnp.abs(w).sum(axis=-1, keepdims=True), 1e-12)
  return w


def check_choice(name: str, value, choices) -> None:
  """Refuses what is not among the choices.

  Raises:
    ValueError: Naming the argument and the choices.
  """
  if value not in choices:
    wanted = ', '.join(map(repr, choices))
    raise ValueError(f'{name} is {value!r}; expected one of {wanted}.')
