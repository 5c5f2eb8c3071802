"""Losses of pre-training and fine-tuning, as sums and counts or per example."""

import jax
import jax.numpy as jnp

from jaxpapers.nn import input_checks


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """-log softmax(logits)[label], in float32 or wider.

  Args:
    logits: `[..., C]`; some may be -inf, but not the label's.
    labels: Integers `[...]`, 0 to C - 1; others give NaN under `jit`.

  Returns:
    `[...]`.

  Raises:
    ValueError: If the shapes do not fit, or a label that has a value is out of
      range.

  Example:
    >>> round(float(cross_entropy(jnp.zeros(4), jnp.array(2))), 4)
    1.3863
  """
  if jnp.shape(logits)[:-1] != jnp.shape(labels):
    raise ValueError(
      f'labels has shape {jnp.shape(labels)} and logits {jnp.shape(logits)};'
      ' expected the same but for the last axis of logits.'
    )
  input_checks.check_range('labels', labels, jnp.shape(logits)[-1])
  wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  # A comparison and not a gather: it needs no communication where the
  # vocabulary is split over devices, and its gradient no scatter.
  hit = jnp.arange(logits.shape[-1]) == labels[..., None]
  chosen = jnp.where(hit, wide, 0).sum(-1)
  loss = jax.nn.logsumexp(wide, axis=-1) - chosen
  # An impossible label hits nothing: NaN rather than a plausible number.
  possible = (labels >= 0) & (labels < logits.shape[-1])
  return jnp.where(possible, loss, jnp.nan)


def mlm_loss(
  logits: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Sum of the negative log-likelihood of masked tokens, and their number.

  A sum, so that batches whose rows have unequal numbers of masked tokens add
  up to the mean over all tokens, whatever they are split into.

  Args:
    logits: `[..., V]`.
    targets: True ids, integers `[...]`.
    weights: `[...]`; 1 where a token counts, 0 in slots that are not used.

  Returns:
    Sum and count, scalars in float32 or wider. The mean is
    `sum / max(count, 1)`: a short text may have no masked token.

  Raises:
    ValueError: If the shapes do not fit.

  Example:
    >>> ids, weights = jnp.array([3, 0]), jnp.ones(2)
    >>> total, count = mlm_loss(jnp.zeros((2, 4)), ids, weights)
    >>> round(float(perplexity(total, count)), 3)
    4.0
  """
  if jnp.shape(weights) != jnp.shape(targets):
    raise ValueError(
      f'weights has shape {jnp.shape(weights)}; expected that of targets,'
      f' {jnp.shape(targets)}.'
    )
  nll = cross_entropy(logits, targets)
  weights = jnp.asarray(weights, nll.dtype)
  # Unused slots may hold anything: 0 * inf would be NaN.
  return jnp.where(weights > 0, nll * weights, 0).sum(), weights.sum()


def perplexity(sum_nll: jax.Array, count: jax.Array) -> jax.Array:
  """Perplexity: exp of the mean negative log-likelihood.

  Args:
    sum_nll: Sum over tokens, of all batches.
    count: Number of these tokens.

  Returns:
    A scalar; 1 where nothing was counted.
  """
  return jnp.exp(sum_nll / jnp.maximum(count, 1))


def regression_loss(predictions: jax.Array, targets: jax.Array) -> jax.Array:
  """Squared error of each example, as for STS-B with targets in [0, 1].

  Args:
    predictions: `[B]` or `[B, 1]`.
    targets: `[B]`.

  Returns:
    `[B]`.
  """
  return jnp.square(predictions.reshape(jnp.shape(targets)) - targets)


def span_loss(
  start_logits: jax.Array,
  end_logits: jax.Array,
  starts: jax.Array,
  ends: jax.Array,
) -> jax.Array:
  """Mean of the cross entropies of an answer's two ends.

  Args:
    start_logits: `[B, S]`.
    end_logits: `[B, S]`.
    starts: First token of the answer, integers `[B]`.
    ends: Its last token, integers `[B]`.

  Returns:
    `[B]`.
  """
  start = cross_entropy(start_logits, starts)
  return (start + cross_entropy(end_logits, ends)) / 2


def answerable_loss(logits: jax.Array, answerable: jax.Array) -> jax.Array:
  """Cross entropy of whether a question has an answer.

  Args:
    logits: `[B]`; positive for yes.
    answerable: Bool or 0 and 1, `[B]`.

  Returns:
    `[B]`.
  """
  sign = jnp.where(answerable.astype(bool), -1.0, 1.0).astype(logits.dtype)
  return jax.nn.softplus(sign * logits)
