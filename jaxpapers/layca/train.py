"""Losses, metrics and stopping rules of the paper's trainings."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

Metrics = dict[str, jax.Array]


def make_init(
  model: nn.Module, example: Any
) -> Callable[[jax.Array], tuple[Any, Any]]:
  """Initialisation of a network, for `training.create_state`.

  Args:
    model: one of the networks of `models`.
    example: an input [1, ...], or its ShapeDtypeStruct.

  Returns:
    `init(key) -> (params, model_state)`.
  """

  def init(key):
    zeros = jnp.zeros(example.shape, example.dtype)
    variables = dict(model.init(key, zeros))
    return variables.pop('params'), variables

  return init


def make_loss_fn(
  model: nn.Module,
  *,
  l2: float = 0.0,
  l2_exclude: Sequence[str] = (),
  augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> Callable[..., tuple[jax.Array, tuple[Any, Metrics]]]:
  """The loss of the paper: softmax cross-entropy, and L2 on the kernels.

  Args:
    model: one of the networks of `models`.
    l2: Keras' coefficient: `l2 * sum(w^2)` is added for each kernel w, so that
      its gradient is 2 l2 w; what others call a weight decay of 2 l2.
    l2_exclude: names of modules whose kernel is not regularised; the last
      layer of the ResNets is one.
    augment: maps a key and the images to augmented images.

  Returns:
    `loss_fn(params, model_state, batch, rng)` as `training.make_train_step`
    expects it. The batch has 'image' [batch, ...], 'label' [batch] int32 and,
    optionally, 'mask' [batch], zero for examples that only fill it up. Metrics:
    'accuracy', 'cross_entropy' and 'count'.
  """
  if l2 < 0:
    raise ValueError(f'l2 is {l2}; expected zero or a positive number.')

  def loss_fn(params, model_state, batch, rng):
    augment_key, dropout_key = jax.random.split(rng)
    image = batch['image']
    if augment is not None:
      image = augment(augment_key, image)
    logits, model_state = model.apply(
      {'params': params, **model_state},
      image,
      train=True,
      mask=batch.get('mask'),
      mutable=list(model_state),
      rngs={'dropout': dropout_key},
    )
    metrics = classification_metrics(logits, batch)
    loss = metrics['cross_entropy']
    if l2:
      loss = loss + l2 * squared_kernels(params, l2_exclude)
    return loss, (model_state, metrics)

  return loss_fn


def make_metric_fn(
  model: nn.Module,
) -> Callable[[Any, Any, Any], Metrics]:
  """Accuracy and cross-entropy with running statistics.

  Args:
    model: one of the networks of `models`.

  Returns:
    `metric_fn(params, model_state, batch)` for `training.make_eval_step`.
  """

  def metric_fn(params, model_state, batch):
    logits = model.apply(
      {'params': params, **model_state}, batch['image'], train=False
    )
    return classification_metrics(logits, batch)

  return metric_fn


def classification_metrics(logits: jax.Array, batch: Any) -> Metrics:
  """Means over the real examples of a batch.

  Args:
    logits: [batch, classes], of any type; computed on in float32 at least.
    batch: 'label' [batch] and, optionally, 'mask' [batch].

  Returns:
    'cross_entropy', 'accuracy' in [0, 1], and 'count', the number of examples.
  """
  label = batch['label']
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  mask = batch.get('mask')
  weight = jnp.ones(label.shape, logits.dtype)
  if mask is not None:
    weight = (mask != 0).astype(logits.dtype)
  count = weight.sum()
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
  right = (logits.argmax(-1) == label).astype(logits.dtype)

  def mean(values):
    # where: what a padded example gives may be infinite.
    total = jnp.where(weight > 0, values, 0).sum()
    return total / jnp.maximum(count, 1)

  return {
    'cross_entropy': mean(losses),
    'accuracy': mean(right),
    'count': count,
  }


def squared_kernels(params: Any, exclude: Sequence[str] = ()) -> jax.Array:
  """Sum of the squares of all kernels, in float32 at least.

  Args:
    params: tree of parameters; kernels are the leaves of that name.
    exclude: names of modules to leave out.

  Returns:
    A scalar.

  Raises:
    ValueError: if there is no kernel.
  """
  total, found = jnp.zeros(()), False
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    names = [str(getattr(entry, 'key', entry)) for entry in path]
    if names[-1] == 'kernel' and not set(exclude) & set(names):
      leaf = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
      total, found = total + (leaf**2).sum(), True
  if not found:
    raise ValueError('params have no leaf named kernel to regularise.')
  return total


def stopping_rule(
  steps_per_epoch: int,
  *,
  hopeless: tuple[float, int] | None = None,
  finished_loss: float = 0.0,
  unchanged_epochs: float = math.inf,
  past: Mapping[str, np.ndarray] | None = None,
) -> Callable[[int, str, Mapping[str, Any]], str | None]:
  """The paper's reasons to end a training early, for `training.fit`.

  Of a population all members have to have ended. Numbers of splits other than
  'train' are ignored; there has to be a row of them for each epoch.

  Args:
    steps_per_epoch: updates in an epoch.
    hopeless: (accuracy, epoch): ends if the accuracy is not above it at the end
      of that epoch, counted from 0.
    finished_loss: ends when the loss is not above this.
    unchanged_epochs: ends when the loss has been the same for that many epochs.
    past: what `training.read_metrics(workdir, 'train')` returns: losses of a
      run that is resumed.

  Returns:
    `stop_when(step, split, metrics)`, a reason or None.
  """
  rows = {}
  if past:
    rows = {
      int(step): (np.atleast_1d(loss), np.atleast_1d(accuracy))
      for step, loss, accuracy in zip(
        past['step'], past['loss'], past['accuracy']
      )
    }

  def stop_when(step, split, metrics):
    if split != 'train' or step % steps_per_epoch:
      return None
    rows[step] = tuple(
      np.atleast_1d(np.asarray(metrics[name], np.float64))
      for name in ('loss', 'accuracy')
    )
    # From the beginning each time: a resumed run may have gone further before.
    known = [s for s in sorted(rows) if s <= step and not s % steps_per_epoch]
    losses = np.stack([rows[s][0] for s in known])
    accuracies = np.stack([rows[s][1] for s in known])
    epochs = np.array(known) // steps_per_epoch - 1
    ended = {
      'the loss is not finite': ~np.isfinite(losses).all(0),
      f'the loss reached {finished_loss:g}': (losses <= finished_loss).any(0),
      f'the loss did not change for {unchanged_epochs:g} epochs': (
        _longest_repetition(losses) >= unchanged_epochs
      ),
    }
    if hopeless is not None:
      reason = f'accuracy <= {hopeless[0]:g} after epoch {hopeless[1]}'
      late = epochs == hopeless[1]
      ended[reason] = (accuracies[late] <= hopeless[0]).any(0)
    if not np.any(list(ended.values()), axis=0).all():
      return None
    found = [reason for reason, which in ended.items() if which.any()]
    return f'Stopped after epoch {epochs[-1]}: {"; ".join(found)}.'

  return stop_when


def _longest_repetition(losses: np.ndarray) -> np.ndarray:
  """How often in a row a loss equalled the one before: [epochs, m] -> [m]."""
  longest = count = np.zeros(losses.shape[1], int)
  for before, after in zip(losses, losses[1:]):
    count = np.where(before == after, count + 1, 0)
    longest = np.maximum(longest, count)
  return longest
