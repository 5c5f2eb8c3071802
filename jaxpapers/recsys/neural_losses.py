"""Losses of the networks."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def multinomial_elbo(
  logits: Any,
  x: Any,
  mean: Any = None,
  log_variance: Any = None,
  beta: Any = 1.0,
  weights: Any = None,
) -> jax.Array:
  """Negative evidence of a multinomial likelihood (Liang et al. 2018, eq. 4-5).

    -sum_i x_i log softmax(logits)_i + beta KL(N(mean, var) || N(0, 1))

  averaged over users. The likelihood is a sum over a user's items, not divided
  by their number: users with many items count more.

  Args:
    logits: Of all items, `[b, num_items]`.
    x: What each user has, `[b, num_items]`.
    mean: Of the latent variable, `[b, latent]`; None for no KL term.
    log_variance: Of the latent variable, `[b, latent]`.
    beta: Weight of the KL term.
    weights: Weight of each user, `[b]`; 0 for rows that only fill a batch.

  Returns:
    The loss, a scalar, float32 or wider.

  Example:
    >>> x = jnp.array([[1.0, 0.0, 1.0, 0.0]])
    >>> round(float(multinomial_elbo(jnp.zeros((1, 4)), x)), 4)
    2.7726
  """
  logits = jnp.asarray(logits)
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  loss = -(jax.nn.log_softmax(logits) * x).sum(-1)
  if mean is not None:
    divergence = jnp.exp(log_variance) + mean**2 - 1 - log_variance
    loss = loss + beta * divergence.sum(-1) / 2
  return _mean(loss, weights)


def bpr_loss(
  positive: Any, negative: Any, weights: Any = None, *, eps: float = 0.0
) -> jax.Array:
  """Bayesian personalised ranking: mean of -log sigma(positive - negative).

  Args:
    positive: Scores of items that users have, `[...]`.
    negative: Scores of others, `[...]`.
    weights: Weight of each pair, `[...]`; 0 for pairs that fill a batch.
    eps: Added inside the logarithm; 1e-12 in CMN's code. 0 is exact also where
      sigma is 0 in floating point.

  Returns:
    The loss, a scalar.

  Example:
    >>> round(float(bpr_loss(jnp.ones(3), jnp.ones(3))), 4)
    0.6931
  """
  difference = jnp.asarray(positive) - jnp.asarray(negative)
  if eps:
    loss = -jnp.log(jax.nn.sigmoid(difference) + eps)
  else:
    loss = -jax.nn.log_sigmoid(difference)
  return _mean(loss, weights)


def bce(logits: Any, labels: Any, weights: Any = None) -> jax.Array:
  """Mean binary cross-entropy, of logits.

  Args:
    logits: Before the sigmoid, `[...]`.
    labels: 0, 1 or between, `[...]`.
    weights: Weight of each, `[...]`; 0 for what fills a batch.

  Returns:
    The loss, a scalar.

  Example:
    >>> round(float(bce(jnp.zeros(2), jnp.array([0.0, 1.0]))), 4)
    0.6931
  """
  loss = optax.sigmoid_binary_cross_entropy(jnp.asarray(logits), labels)
  return _mean(loss, weights)


def sum_of_squares(tree: Any) -> jax.Array:
  """Sum of the squares of all numbers of a tree.

  Keras's l2(reg) is reg times this; TensorFlow's l2_loss and contrib's
  l2_regularizer(1) are half of it.
  """
  return sum((jnp.square(x).sum() for x in jax.tree.leaves(tree)), 0.0)


def _mean(values, weights):
  if weights is None:
    return values.mean()
  weights = jnp.asarray(weights).astype(values.dtype)
  return (values * weights).sum() / jnp.maximum(weights.sum(), 1)
