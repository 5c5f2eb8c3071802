"""What a training step of EfficientNet computes, and an evaluation step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpapers.efficientnet import ema as ema_lib
from jaxpapers.efficientnet import mixing, optimizers, preprocess


def make_init(
  model: Any, resolution: int, *, average: bool = False
) -> Callable[[jax.Array], tuple[Any, Any]]:
  """Function from a key to parameters and model state.

  Args:
    model: An `EfficientNet`, or any Linen module with the same call.
    resolution: Pixels of the image that shapes are inferred from; parameters
      do not depend on it.
    average: Whether the state keeps the average of batch statistics that
      `make_loss_fn(ema=)` moves.

  Returns:
    `init(key) -> (params, model_state)`. The model state is {'batch_stats': ..}
    and 'average', where it is asked for.
  """

  def init(key):
    images = jnp.zeros((1, resolution, resolution, 3), jnp.float32)
    variables = model.init(key, images)
    model_state = {'batch_stats': variables.get('batch_stats', {})}
    if average:
      model_state['average'] = ema_lib.init_stats_average(
        model_state['batch_stats']
      )
    return variables['params'], model_state

  return init


def make_loss_fn(
  model: Any,
  *,
  label_smoothing: float = 0.1,
  mixup_alpha: float = 0.0,
  normalization: str = 'imagenet',
  ema: float | None = None,
  accumulate: int = 1,
  bn_batch_size: int = 0,
  weight_decay: float = 0.0,
) -> Callable[..., Any]:
  """The loss of a training step, for `training.make_train_step`.

  The mean cross entropy against smoothed labels,
  `(1 - s) one-hot + s / classes`.

  Args:
    model: The network.
    label_smoothing: s above.
    mixup_alpha: See `mixup`; 0 for none.
    normalization: See `preprocess.normalize`.
    ema: Decay of the average of batch statistics, or None. That of parameters
      is the training step's, `ema_with_warmup` of the same number.
    accumulate: Microbatches of an update.
    bn_batch_size: Images whose statistics a batch norm shares; 0 for all of a
      (micro)batch, on however many devices it lies. The paper had as many as
      8 cores, or an eighth of them.
    weight_decay: For the metric 'l2' only: the optimizer adds the gradient.

  Returns:
    `loss_fn(params, model_state, batch, rng)`; the batch has 'image' [batch,
    height, width, 3] of 0 .. 255 and 'label' [batch]. Metrics: accuracy, with
    'l2' what the original adds to the loss, with corrupt images 'replaced',
    the share of others in their place.

  Raises:
    ValueError: If an argument is out of range; when called, if `bn_batch_size`
      does not divide the batch.
  """
  if not 0 <= label_smoothing < 1:
    raise ValueError(
      f'label_smoothing is {label_smoothing}; expected 0 to below 1.'
    )
  if bn_batch_size < 0:
    raise ValueError(f'bn_batch_size is {bn_batch_size}; expected 0 or more.')
  decay = None if ema is None else ema_lib.ema_with_warmup(ema)

  def apply(params, batch_stats, images, rng):
    return model.apply(
      {'params': params, 'batch_stats': batch_stats},
      images,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': rng},
    )

  def apply_in_groups(params, batch_stats, images, rng):
    size = images.shape[0]
    if not bn_batch_size or bn_batch_size >= size:
      return apply(params, batch_stats, images, rng)
    if size % bn_batch_size:
      raise ValueError(
        f'bn_batch_size is {bn_batch_size}; expected a divisor of the'
        f' (micro)batch of {size}.'
      )
    groups = size // bn_batch_size
    grouped = images.reshape(groups, bn_batch_size, *images.shape[1:])
    logits, new = jax.vmap(apply, in_axes=(None, None, 0, 0))(
      params, batch_stats, grouped, jax.random.split(rng, groups)
    )
    new = jax.tree.map(lambda x: x.mean(0), new)
    return logits.reshape(size, *logits.shape[2:]), new

  def loss_fn(params, model_state, batch, rng):
    dropout_key, mixup_key = jax.random.split(rng)
    images = preprocess.normalize(batch['image'], normalization)
    labels = batch['label']
    targets = None
    if mixup_alpha:
      classes = _num_classes(model, params)
      targets = jax.nn.one_hot(labels, classes)
      targets = optax.smooth_labels(targets, label_smoothing)
      images, targets = mixing.mixup(mixup_key, images, targets, mixup_alpha)
    logits, new = apply_in_groups(
      params, model_state['batch_stats'], images, dropout_key
    )
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if targets is None:
      targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
      targets = optax.smooth_labels(targets, label_smoothing)
    loss = optax.softmax_cross_entropy(logits, targets).mean()
    batch_stats = new.get('batch_stats', {})
    model_state = {**model_state, 'batch_stats': batch_stats}
    if decay is not None:
      model_state['average'] = ema_lib.update_stats_average(
        model_state['average'], batch_stats, decay, accumulate
      )
    metrics = {
      'accuracy': (logits.argmax(-1) == labels).mean(dtype=jnp.float32)
    }
    if weight_decay:
      metrics['l2'] = optimizers.l2_loss(
        jax.lax.stop_gradient(params), weight_decay
      )
    if 'sound' in batch:
      metrics['replaced'] = 1 - batch['sound'].mean(dtype=jnp.float32)
    return loss, (model_state, metrics)

  return loss_fn


def _num_classes(model, params):
  config = getattr(model, 'config', None)
  if config is not None:
    return config.num_classes
  return params['classifier']['kernel'].shape[-1]


def make_metric_fn(
  model: Any, *, normalization: str = 'imagenet', average: bool = True
) -> Callable[..., dict[str, jax.Array]]:
  """Accuracy of an evaluation, for `training.make_eval_step`.

  Args:
    model: The network.
    normalization: See `preprocess.normalize`.
    average: Whether to take averaged batch statistics where the state has them,
      as the parameters that `training.make_eval_step` gives are averaged, too.

  Returns:
    `metric_fn(params, model_state, batch)` with top-1 'accuracy',
    'cross_entropy' and, of more than five classes, 'top5'.
    Examples whose 'mask' or 'sound' is False do not count.
  """

  def metric_fn(params, model_state, batch):
    statistics = model_state['batch_stats']
    if average and 'average' in model_state:
      statistics = model_state['average']['batch_stats']
    logits = model.apply(
      {'params': params, 'batch_stats': statistics},
      preprocess.normalize(batch['image'], normalization),
      train=False,
    ).astype(jnp.float32)
    labels = batch['label']
    weights = jnp.ones(labels.shape, jnp.float32)
    for name in ('mask', 'sound'):
      if name in batch:
        weights = weights * batch[name]
    count = weights.sum()
    own = jnp.take_along_axis(logits, labels[:, None], -1)
    # How many classes come before it; NaN logits are never right.
    rank = (~(logits <= own)).sum(-1)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    def mean(x):
      return jnp.where(weights > 0, x, 0).sum() / count

    metrics = {
      'accuracy': mean((rank < 1).astype(jnp.float32)),
      'cross_entropy': mean(losses),
      'count': count,
    }
    if logits.shape[-1] > 5:
      metrics['top5'] = mean((rank < 5).astype(jnp.float32))
    return metrics

  return metric_fn


def check_same_shapes(variables: Any, expected: Any) -> None:
  """Refuses weights of another network.

  Args:
    variables: Tree of arrays.
    expected: Tree of arrays or shapes.

  Raises:
    ValueError: Names the first leaf that is missing, unexpected or of another
      shape.
  """

  def shapes(tree):
    return {
      jax.tree_util.keystr(path, simple=True, separator='/'): jnp.shape(leaf)
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }

  found, wanted = shapes(variables), shapes(expected)
  for name in sorted(found.keys() | wanted.keys()):
    if found.get(name) != wanted.get(name):
      have = found.get(name, 'missing')
      need = wanted.get(name, 'no such array')
      raise ValueError(
        f'{name}: the weights have {have}, the network has {need}. Are these'
        ' weights of another model, or of another number of classes?'
      )


def with_variables(state: Any, variables: Any) -> Any:
  """A state of step 0 that begins with other weights.

  Args:
    state: A `training.TrainState` whose init was `make_init`'s.
    variables: {'params', 'batch_stats'}.

  Returns:
    The state, where it lay; averages begin with these weights, too.
  """

  def placed(old, new):
    return jax.tree.map(
      # A copy for each place: the step donates all of them.
      lambda o, n: jax.device_put(np.array(n, o.dtype), o.sharding),
      old,
      new,
    )

  model_state = dict(state.model_state)
  statistics = variables['batch_stats']
  model_state['batch_stats'] = placed(model_state['batch_stats'], statistics)
  if 'average' in model_state:
    average = dict(model_state['average'])
    average['batch_stats'] = placed(average['batch_stats'], statistics)
    model_state['average'] = average
  averages = state.ema_params
  return state.replace(
    params=placed(state.params, variables['params']),
    model_state=model_state,
    ema_params=averages and placed(averages, variables['params']),
  )


def state_variables(state: Any) -> dict[str, Any]:
  """The weights that are evaluated: averages where there are any.

  Args:
    state: A `training.TrainState` whose init was `make_init`'s.

  Returns:
    {'params', 'batch_stats'}.
  """
  model_state = state.model_state
  statistics = model_state['batch_stats']
  if 'average' in model_state:
    statistics = model_state['average']['batch_stats']
  return {'params': state.eval_params, 'batch_stats': statistics}
