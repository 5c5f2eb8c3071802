"""RMSProp as TensorFlow computes it, and the optimizer of EfficientNet."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxpapers.efficientnet import schedules
from jaxpapers.training import optimizers as training_optimizers

_NORM = re.compile(r'(^|_)(bn\d*|batch_?norm\w*)$', re.IGNORECASE)


def rmsprop_tf(
  learning_rate: Any,
  decay: float = 0.9,
  momentum: float = 0.9,
  eps: float = 1e-3,
) -> optax.GradientTransformation:
  """RMSProp of TensorFlow 1, on which EfficientNet's numbers rest.

    s = decay s + (1 - decay) g^2,   s_0 = 1
    m = momentum m + learning_rate g / sqrt(s + eps)
    p = p - m

  It differs from the usual form in three ways: s begins at 1 rather than 0,
  which holds the first steps back; eps is under the root; and the rate is
  inside the momentum, so that a lower one takes effect slowly. The result is
  that of `optax.rmsprop(learning_rate, decay, eps, initial_scale=1.0,
  eps_in_sqrt=True, momentum=momentum)`; the state also knows the rate.

  Args:
    learning_rate: Number or schedule.
    decay: Of the mean square.
    momentum: Of the updates; 0 for none.
    eps: What is added to the mean square.

  Returns:
    The transform. With a schedule, its state knows the `learning_rate`, which
    is then among the metrics of a training step.

  Example:
    >>> tx = rmsprop_tf(0.016)
  """
  # A traced momentum is used whatever its value.
  without = isinstance(momentum, (int, float)) and momentum == 0
  return optax.chain(
    optax.scale_by_rms(decay, eps, initial_scale=1.0, eps_in_sqrt=True),
    training_optimizers.scale_by_shown_rate(learning_rate),
    *(() if without else [optax.trace(momentum)]),
  )


def is_decayed(params: Any) -> Any:
  """Which parameters EfficientNet decays: all but those of batch norms.

  The biases of squeeze-and-excitation and of the classifier are decayed, too,
  as the original does.

  Args:
    params: Tree of parameters; norms are named bn, stem_bn, BatchNorm_0, ...

  Returns:
    Tree of bools.

  Example:
    >>> is_decayed({'head_bn': {'bias': 1}, 'classifier': {'bias': 2}})
    {'classifier': {'bias': True}, 'head_bn': {'bias': False}}
  """

  def decayed(path, leaf):
    del leaf
    names = jax.tree_util.keystr(path, simple=True, separator='/').split('/')
    return not any(_NORM.search(name) for name in names)

  return jax.tree_util.tree_map_with_path(decayed, params)


def l2_loss(params: Any, weight_decay: float = 1e-5) -> jax.Array:
  """What the original adds to the loss: weight_decay sum(p^2) / 2.

  `efficientnet_optimizer` adds its gradient; this is for comparing losses.

  Args:
    params: Tree of parameters.
    weight_decay: The coefficient.

  Returns:
    The sum over all parameters that are decayed, a scalar.
  """
  mask = is_decayed(params)
  squares = jax.tree.map(
    lambda p, m: jnp.sum(jnp.square(p.astype(jnp.float32))) if m else 0.0,
    params,
    mask,
  )
  return weight_decay * 0.5 * sum(jax.tree.leaves(squares))


def efficientnet_optimizer(
  batch_size: int,
  steps_per_epoch: float,
  weight_decay: float = 1e-5,
  *,
  base_learning_rate: float = 0.016,
  schedule: str = 'exponential',
  total_steps: int | None = None,
  warmup_epochs: float = 5.0,
  decay_factor: float = 0.97,
  decay_epochs: float = 2.4,
  decay: float = 0.9,
  momentum: float = 0.9,
  eps: float = 1e-3,
  decay_mask: Callable[[Any], Any] | Any = is_decayed,
) -> optax.GradientTransformation:
  """The optimizer of the paper: RMSProp, warm-up, stepwise decay, L2.

  The L2 term goes through RMSProp with the gradient of the loss ("coupled");
  it is not the decoupled decay of AdamW.

  Args:
    batch_size: Examples of a global batch, for the peak learning rate.
    steps_per_epoch: Updates in an epoch.
    weight_decay: Coefficient of the L2 term.
    base_learning_rate: Peak for a batch of 256.
    schedule: 'exponential', 'cosine' or 'constant'.
    total_steps: Updates of the whole run, for a cosine.
    warmup_epochs: See `efficientnet_schedule`.
    decay_factor: See `efficientnet_schedule`.
    decay_epochs: See `efficientnet_schedule`.
    decay: Of the mean square.
    momentum: Of the updates.
    eps: Added to the mean square.
    decay_mask: Tree of bools, or function from the parameters to one.

  Returns:
    The transform.

  Raises:
    ValueError: If an argument does not fit.

  Example:
    >>> tx = efficientnet_optimizer(batch_size=4096, steps_per_epoch=312)
  """
  if batch_size < 1:
    raise ValueError(f'batch_size is {batch_size}; expected 1 or more.')
  rate = schedules.efficientnet_schedule(
    schedules.scaled_learning_rate(batch_size, base_learning_rate),
    steps_per_epoch,
    schedule,
    total_steps=total_steps,
    warmup_epochs=warmup_epochs,
    decay_factor=decay_factor,
    decay_epochs=decay_epochs,
  )
  return optax.chain(
    optax.add_decayed_weights(weight_decay, decay_mask),
    rmsprop_tf(rate, decay, momentum, eps),
  )
