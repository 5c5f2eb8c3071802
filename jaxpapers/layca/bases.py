"""Base directions with Keras' arithmetic, where optax computes something else.

The paper's optimizers are those of Keras 2.1. Of the same names, optax's put
epsilon elsewhere (Adam, Adagrad), start Adagrad's sum at 0.1, and take
AMSGrad's maximum of the bias-corrected moment. All give directions of ascent.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpapers.layca import geometry, rates, trees


class KerasAdamState(NamedTuple):
  """State of `scale_by_keras_adam`: count, moments, and their maximum."""

  count: jax.Array
  mu: Any
  nu: Any
  nu_max: Any


class AccumulatorState(NamedTuple):
  """State of bases with one accumulator per parameter."""

  accumulator: Any


def scale_by_keras_adam(
  b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-7, amsgrad: bool = False
) -> optax.GradientTransformation:
  """Adam with epsilon beside the root of the uncorrected second moment.

  `sqrt(1 - b2^t) / (1 - b1^t) * mu / (sqrt(nu) + eps)`; with amsgrad nu is
  replaced by its largest value so far, also uncorrected.

  Args:
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: what is added to the denominator.
    amsgrad: whether the second moment may only grow.

  Returns:
    The transform.

  Example:
    >>> tx = scale_by_keras_adam()
    >>> updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    >>> updates.round(4).tolist()
    [1.0, 1.0]
  """

  def init(params):
    zeros = optax.tree.zeros_like(params)
    return KerasAdamState(
      jnp.zeros([], jnp.int32), zeros, zeros, zeros if amsgrad else None
    )

  def update(updates, state, params=None):
    del params
    count = optax.safe_increment(state.count)
    mu = jax.tree.map(
      lambda m, g: (b1 * m + (1 - b1) * g).astype(m.dtype), state.mu, updates
    )
    nu = jax.tree.map(
      lambda v, g: (b2 * v + (1 - b2) * g * g).astype(v.dtype),
      state.nu,
      updates,
    )
    largest = None
    if amsgrad:
      largest = jax.tree.map(jnp.maximum, state.nu_max, nu)
    # Powers of floats: integer powers of a Python float would be float64.
    t = jnp.asarray(count, jnp.result_type(float))
    scale = jnp.sqrt(1 - b2**t) / (1 - b1**t)
    out = jax.tree.map(
      lambda m, v: (scale * m / (jnp.sqrt(v) + eps)).astype(m.dtype),
      mu,
      largest if amsgrad else nu,
    )
    return out, KerasAdamState(count, mu, nu, largest)

  return optax.GradientTransformation(init, update)


def scale_by_keras_adagrad(eps: Any = 1e-7) -> optax.GradientTransformation:
  """Adagrad from a sum of 0: `g / (sqrt(sum g^2) + eps)`.

  Args:
    eps: what is added to the denominator.

  Returns:
    The transform.

  Example:
    >>> tx = scale_by_keras_adagrad()
    >>> updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    >>> updates.round(4).tolist()
    [1.0, 1.0]
  """

  def init(params):
    return AccumulatorState(optax.tree.zeros_like(params))

  def update(updates, state, params=None):
    del params
    total = jax.tree.map(
      lambda a, g: (a + g * g).astype(a.dtype), state.accumulator, updates
    )
    out = jax.tree.map(lambda g, a: g / (jnp.sqrt(a) + eps), updates, total)
    return out, AccumulatorState(total)

  return optax.GradientTransformation(init, update)


def adam_like_momentum(
  decay: Any = 0.9, nesterov: bool = False
) -> optax.GradientTransformation:
  """The running mean of gradients without bias correction (SGD_AMom).

  `m = decay m + (1 - decay) g`, and m is the direction. The original's Nesterov
  variant, kept as it is, mixes scales: `decay m + g`.

  Args:
    decay: decay of the mean.
    nesterov: whether the gradient is added once more.

  Returns:
    The transform.

  Example:
    >>> tx = adam_like_momentum(0.75)
    >>> tx.update(jnp.ones(2), tx.init(jnp.ones(2)))[0].tolist()
    [0.25, 0.25]
  """

  def init(params):
    return AccumulatorState(optax.tree.zeros_like(params))

  def update(updates, state, params=None):
    del params
    mean = jax.tree.map(
      lambda m, g: (decay * m + (1 - decay) * g).astype(m.dtype),
      state.accumulator,
      updates,
    )
    out = mean
    if nesterov:
      out = jax.tree.map(
        lambda m, g: (decay * m + g).astype(m.dtype), mean, updates
      )
    return out, AccumulatorState(mean)

  return optax.GradientTransformation(init, update)


def scale_by_rates(
  learning_rate: Any, multipliers: Any = None, layer_axes: Any = None
) -> optax.GradientTransformation:
  """Multiplies gradients by the rates that `layca` reads, sign kept.

  For Keras' momentum, whose buffer contains the learning rate.

  Args:
    learning_rate: as in `layca`.
    multipliers: as in `layca`.
    layer_axes: as in `layca`.

  Returns:
    The transform; its state is a step count.

  Example:
    >>> tx = scale_by_rates(0.5)
    >>> tx.update(jnp.ones(2), tx.init(jnp.ones(2)))[0].tolist()
    [0.5, 0.5]
  """

  def init(params):
    del params
    return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

  def update(updates, state, params=None):
    del params
    names, leaves, treedef = trees.flatten(updates)
    shapes = [None if trees.is_absent(x) else jnp.shape(x) for x in leaves]
    axes = trees.resolve_axes(layer_axes, names, shapes)
    values = rates.evaluate(
      learning_rate, multipliers, state.count, names, shapes, axes
    )
    out = [
      leaf if rate is None else leaf * jnp.asarray(rate, leaf.dtype)
      for leaf, rate in zip(leaves, values, strict=True)
    ]
    count = optax.safe_increment(state.count)
    return treedef.unflatten(out), optax.ScaleByScheduleState(count=count)

  return optax.GradientTransformation(init, update)


class NormalizedSgdState(NamedTuple):
  """State of `normalized_sgd`."""

  count: jax.Array


def normalized_sgd(
  learning_rate: Any, *, multipliers: Any = None, eps_abs: Any = 1e-7
) -> optax.GradientTransformation:
  """Steps of a set length per parameter array, the paper's SGD_normalized.

  An ablation of Layca without projection and without the sphere:
  `p <- p - lr g / ||g||`, on all parameters. The output is the step itself.

  Args:
    learning_rate: as in `layca`.
    multipliers: as in `layca`.
    eps_abs: no step if `lr ||g||` is at most this.

  Returns:
    The transform.

  Example:
    >>> tx = normalized_sgd(0.5)
    >>> g = jnp.asarray([0.0, 4.0])
    >>> tx.update(g, tx.init(g))[0].tolist()
    [-0.0, -0.5]
  """

  def init(params):
    del params
    return NormalizedSgdState(jnp.zeros([], jnp.int32))

  def update(updates, state, params=None):
    del params
    names, leaves, treedef = trees.flatten(updates)
    shapes = [None if trees.is_absent(x) else jnp.shape(x) for x in leaves]
    axes = [()] * len(names)
    values = rates.evaluate(
      learning_rate, multipliers, state.count, names, shapes, axes
    )

    def step(leaf, rate):
      if rate is None:
        return leaf
      dtype = jnp.promote_types(jnp.float32, leaf.dtype)
      g, rate = leaf.astype(dtype), jnp.asarray(rate, dtype)
      over = tuple(range(g.ndim))
      length = geometry.norm(g, over)
      still = jnp.abs(rate) * length <= eps_abs
      return jnp.where(
        still, 0, -rate * g / jnp.where(still, 1, length)
      ).astype(leaf.dtype)

    out = [step(x, r) for x, r in zip(leaves, values, strict=True)]
    count = optax.safe_increment(state.count)
    return treedef.unflatten(out), NormalizedSgdState(count)

  return optax.GradientTransformation(init, update)
