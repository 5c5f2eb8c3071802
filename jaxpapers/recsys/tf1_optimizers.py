"""Optimizers and schedules of TensorFlow 1, which the networks rest on."""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class RmspropState(NamedTuple):
  """State of `rmsprop_tf1`.

  Attributes:
    count: Steps done, int32.
    mean_square: Running mean of the squared gradient, shaped like parameters;
      1 at the start.
    velocity: Running step, shaped like parameters.
  """

  count: Any
  mean_square: Any
  velocity: Any


def rmsprop_tf1(
  learning_rate: Any,
  decay: Any = 0.9,
  momentum: Any = 0.0,
  clip_per_tensor: Any = None,
  *,
  eps: float = 1e-10,
  lazy: bool | Collection[str] = False,
) -> optax.GradientTransformationExtraArgs:
  """RMSProp of TensorFlow 1.

    s = decay s + (1 - decay) g^2,   s_0 = 1
    m = momentum m + learning_rate g / sqrt(s + eps)
    p = p - m

  s begins at 1 and not at 0, which holds the first steps back; eps is under the
  root; the rate is inside the momentum.

  Rows of an embedding table that a batch does not look up have no gradient in
  TensorFlow, and neither their s nor their m changes there: not even momentum
  moves them. `lazy` says which parameters are such tables.

  Args:
    learning_rate: Number, or schedule of the step.
    decay: Of the mean square.
    momentum: Of the steps.
    clip_per_tensor: Scale the gradient of each parameter by itself to this norm
      where it is longer; None to leave it.
    eps: What is added to the mean square.
    lazy: Which parameters are tables whose rows rest unless they are touched:
      names in their paths, such as ('user_embedding',); True for all.

  Returns:
    The transform. Its update takes `touched`, a tree like the gradients of bool
    `[rows]` (None for parameters that are no tables): which rows a batch looked
    up. Without it a row counts as touched if its gradient is not zero, which
    differs where a unit is dead and the gradient of a looked-up row vanishes.

  Example:
    >>> tx = rmsprop_tf1(1e-3, momentum=0.9, clip_per_tensor=5.0)
    >>> state = tx.init({'w': jnp.ones(2)})
    >>> updates, state = tx.update({'w': jnp.array([1.0, 0.0])}, state)
    >>> round(float(updates['w'][0]), 6)
    -0.001
  """

  def init(params):
    return RmspropState(
      jnp.zeros((), jnp.int32),
      jax.tree.map(jnp.ones_like, params),
      jax.tree.map(jnp.zeros_like, params),
    )

  def update(updates, state, params=None, *, touched=None, **others):
    del params, others
    rate = learning_rate
    if callable(learning_rate):
      rate = learning_rate(state.count)
    if touched is None:
      touched = jax.tree.map(lambda g: None, updates)

    def leaf(path, g, s, m, rows):
      dtype = s.dtype
      g = g.astype(jnp.promote_types(dtype, jnp.float32))
      if clip_per_tensor is not None:
        norm = jnp.sqrt((g**2).sum())
        g = g * clip_per_tensor / jnp.maximum(norm, clip_per_tensor)
      new_s = decay * s + (1 - decay) * g**2
      new_m = momentum * m + rate * g / jnp.sqrt(new_s + eps)
      step = -new_m
      if _named(lazy, path):
        axes = tuple(range(1, g.ndim))
        rows = (g != 0).any(axes) if rows is None else jnp.asarray(rows)
        keep = rows.reshape(rows.shape + (1,) * len(axes))
        step = jnp.where(keep, step, 0)
        new_s, new_m = jnp.where(keep, new_s, s), jnp.where(keep, new_m, m)
      return tuple(x.astype(dtype) for x in (step, new_s, new_m))

    found = jax.tree_util.tree_map_with_path(
      leaf, updates, state.mean_square, state.velocity, touched
    )
    step, mean_square, velocity = (
      jax.tree.map(lambda _, x, i=i: x[i], updates, found) for i in range(3)
    )
    count = optax.safe_increment(state.count)
    return step, RmspropState(count, mean_square, velocity)

  return optax.GradientTransformationExtraArgs(init, update)


def _named(names, path):
  if isinstance(names, bool):
    return names
  parts = jax.tree_util.keystr(path, simple=True, separator='/').split('/')
  return any(name in parts for name in names)


def linear_to(cap: float, steps: int) -> optax.Schedule:
  """Step / steps, but never above `cap`: how Mult-VAE anneals its KL term.

  With the authors' `cap` 0.2 and `steps` 200,000 the cap is reached after
  40,000 updates, which smaller data never make; scale `steps` to the data.

  Args:
    cap: Largest value.
    steps: Number of updates that would lead to 1.

  Returns:
    The schedule.

  Raises:
    ValueError: A number is out of range.

  Example:
    >>> float(linear_to(0.2, 1000)(100)), float(linear_to(0.2, 1000)(900))
    (0.10000000149011612, 0.20000000298023224)
  """
  if steps < 1 or cap < 0:
    raise ValueError(
      f'steps is {steps}, cap {cap}; expected steps of 1 or more, and a cap of'
      ' 0 or more.'
    )

  def schedule(count):
    return jnp.minimum(cap, jnp.asarray(count, jnp.float32) / steps)

  return schedule
