"""What a training step of OSNet computes, images to loss.

The images of a batch are uint8, as the files have them but for their size: all
augmentation happens inside the step.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxpapers.osnet import augment, losses
from jaxpapers.osnet.network import OSNet

TASKS = ('reid', 'attributes', 'classify')


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """From uint8 images to normalised ones, in torchreid's order.

  Attributes:
    flip: Whether to mirror half of the images.
    crop: Whether to enlarge half of them and cut a part out.
    patch: The pool whose patches are pasted; None for none.
    jitter: Amounts of brightness, contrast, saturation and hue; empty for none.
    erase: Whether to paint over a box of half of them.
    erase_fill: As `fill` of `random_erase`.

  Example:
    >>> augmentation = Augmentation(flip=True, erase=True)
    >>> images = jnp.zeros((2, 32, 16, 3), jnp.uint8)
    >>> state = augmentation.init(images.shape)
    >>> state, images = augmentation(state, jax.random.key(0), images)
    >>> images.dtype.name
    'float32'
  """

  flip: bool = True
  crop: bool = False
  patch: augment.RandomPatchPool | None = None
  jitter: tuple[float, ...] = ()
  erase: bool = False
  erase_fill: float | str = 0.0

  def __post_init__(self):
    if self.jitter:
      augment.check_jitter(*self.jitter)

  def init(self, shape: tuple[int, ...]) -> dict[str, Any]:
    """What is kept from step to step: the pool of patches, if there is one.

    Args:
      shape: Of a batch.

    Returns:
      The state, a dictionary.
    """
    if self.patch is None:
      return {}
    return {'patch_pool': self.patch.init(shape, jnp.uint8)}

  def __call__(
    self, state: dict[str, Any], key: jax.Array, images: jax.Array
  ) -> tuple[dict[str, Any], jax.Array]:
    """Augments a batch.

    Args:
      state: From `init`, or from the last call.
      key: Typed key.
      images: uint8 [batch, height, width, 3].

    Returns:
      The next state; float32 images of the same shape, normalised.
    """
    keys = jax.random.split(key, 5)
    if self.flip:
      images = augment.random_flip(keys[0], images)
    if self.crop:
      images = augment.random_translate(keys[1], images)
    if self.patch is not None:
      pool, images = self.patch(state['patch_pool'], keys[2], images)
      state = {'patch_pool': pool}
    if self.jitter:
      images = augment.color_jitter(keys[3], images, *self.jitter)
    images = augment.normalize(images)
    if self.erase:
      images = augment.random_erase(keys[4], images, fill=self.erase_fill)
    return state, images


@dataclasses.dataclass(frozen=True)
class Objective:
  """The loss.

    cross_entropy CE + triplet T + circle C, and with `mutual` two networks
    that each add the cross-entropy to what the other says

  Attributes:
    task: 'reid' and 'classify' have classes, 'attributes' has labels of 0, 1.
    cross_entropy: Weight of the cross-entropy.
    triplet: Weight of the triplet loss of the hardest pairs.
    circle: Weight of the circle loss.
    margin: Of the triplet loss, a number or 'soft'.
    label_smoothing: Of the cross-entropy.
    attribute_weights: A number for each attribute, or None.
    mutual: Whether two networks learn from each other.
  """

  task: str = 'reid'
  cross_entropy: float = 1.0
  triplet: float = 0.0
  circle: float = 0.0
  margin: float | str = 0.3
  label_smoothing: float = 0.1
  attribute_weights: tuple[float, ...] | None = None
  mutual: bool = False

  def __post_init__(self):
    if self.task not in TASKS:
      raise ValueError(f'task is {self.task!r}; expected one of {TASKS}.')
    for name in ('cross_entropy', 'triplet', 'circle', 'label_smoothing'):
      value = getattr(self, name)
      most = 1 if name == 'label_smoothing' else math.inf
      if not (math.isfinite(value) and 0 <= value <= most):
        raise ValueError(f'{name} is {value}; expected 0 to {most}.')
    if not isinstance(self.margin, str) and not math.isfinite(self.margin):
      raise ValueError(f'margin is {self.margin}; expected a finite number.')
    if not (self.cross_entropy or self.triplet or self.circle):
      raise ValueError(
        'cross_entropy, triplet and circle are all 0; expected a loss.'
      )
    if self.task == 'attributes' and self.mutual:
      raise ValueError(
        "mutual is True for task 'attributes'; expected classes to agree on."
      )


def make_init(
  model: OSNet,
  batch_shape: tuple[int, ...],
  augmentation: Augmentation = Augmentation(),
  mutual: bool = False,
) -> Callable[[jax.Array], tuple[Any, Any]]:
  """Function from a key to parameters and model state, for `training.Job`.

  Args:
    model: The network.
    batch_shape: (batch, height, width, 3).
    augmentation: Its state is part of the model state.
    mutual: Whether there are two networks; every leaf of parameters and batch
      statistics then has a leading axis of 2.

  Returns:
    `init(key) -> (params, model_state)`.
  """

  def one(key):
    images = jnp.zeros((1, *batch_shape[1:]), jnp.float32)
    variables = model.init(key, images)
    return variables['params'], variables.get('batch_stats', {})

  def init(key):
    if mutual:
      pairs = [one(k) for k in jax.random.split(key)]
      params, statistics = jax.tree.map(lambda *x: jnp.stack(x), *pairs)
    else:
      params, statistics = one(key)
    return params, {
      'batch_stats': statistics,
      'augmentation': augmentation.init(batch_shape),
      'microbatches': jnp.zeros((), jnp.int32),
    }

  return init


def make_loss_fn(
  model: OSNet,
  augmentation: Augmentation = Augmentation(),
  objective: Objective = Objective(),
  *,
  fixed_microbatches: int = 0,
  open_layers: Sequence[str] = ('classifier',),
) -> Callable[..., Any]:
  """The loss of a training step, for `training.make_train_step`.

  Args:
    model: The network.
    augmentation: What happens to the images.
    objective: What is minimised.
    fixed_microbatches: In how many of the first calls only `open_layers` train:
      the others use their kept statistics and get no gradient. The optimizer
      has to know, too: see `freeze_base`.
    open_layers: Names of top-level children.

  Returns:
    `loss_fn(params, model_state, batch, rng)`. The batch has 'image', uint8
    [batch, height, width, 3], and 'label', int32 [batch], or [batch,
    attributes]. Metrics: 'accuracy' (of attributes: the share of labels that
    are right) and each part of the loss under its name.
  """
  weights = objective.attribute_weights
  weights = None if weights is None else jnp.asarray(weights, jnp.float32)

  def forward(params, statistics, images, layers):
    out, new = model.apply(
      {'params': params, 'batch_stats': statistics},
      images,
      train=True,
      open_layers=layers,
      mutable=['batch_stats'],
    )
    return out.features, out.logits, new.get('batch_stats', {})

  def run(params, model_state, images):
    statistics = model_state['batch_stats']
    if not fixed_microbatches:
      return forward(params, statistics, images, None)
    return jax.lax.cond(
      model_state['microbatches'] < fixed_microbatches,
      lambda: forward(params, statistics, images, tuple(open_layers)),
      lambda: forward(params, statistics, images, None),
    )

  def parts_of(features, logits, labels):
    if objective.task == 'attributes':
      right = (logits > 0) == (labels > 0)
      bce = losses.weighted_bce(logits, labels, weights)
      return {'bce': bce}, right.mean(dtype=jnp.float32)
    parts = {}
    if objective.cross_entropy:
      parts['cross_entropy'] = losses.cross_entropy_label_smoothing(
        logits, labels, objective.label_smoothing
      )
    if objective.triplet:
      parts['triplet'] = losses.batch_hard_triplet(
        features, labels, objective.margin
      )
    if objective.circle:
      parts['circle'] = losses.circle(features, labels)
    right = logits.argmax(-1) == labels
    return parts, right.mean(dtype=jnp.float32)

  def total_of(parts):
    return sum(
      part * (1.0 if name == 'bce' else getattr(objective, name))
      for name, part in parts.items()
    )

  def loss_fn(params, model_state, batch, rng):
    augmented, images = augmentation(
      model_state['augmentation'], rng, batch['image']
    )
    labels = batch['label']
    if objective.mutual:
      loss, metrics, statistics = mutual_loss(
        params, model_state, images, labels
      )
    else:
      features, logits, statistics = run(params, model_state, images)
      parts, accuracy = parts_of(features, logits, labels)
      loss = total_of(parts)
      metrics = {**parts, 'accuracy': accuracy}
    model_state = {
      'batch_stats': statistics,
      'augmentation': augmented,
      'microbatches': model_state['microbatches'] + 1,
    }
    return loss, (model_state, metrics)

  def mutual_loss(params, model_state, images, labels):
    outputs = []
    for i in range(2):
      own = network(params, i)
      stats = network(model_state['batch_stats'], i)
      outputs.append(run(own, {**model_state, 'batch_stats': stats}, images))
    loss, metrics = 0.0, []
    for i in range(2):
      features, logits, _ = outputs[i]
      parts, accuracy = parts_of(features, logits, labels)
      mutual = losses.mutual_learning(outputs[1 - i][1], logits)
      loss = loss + total_of(parts) + mutual
      metrics.append({**parts, 'mutual': mutual, 'accuracy': accuracy})
    statistics = jax.tree.map(lambda *x: jnp.stack(x), *(o[2] for o in outputs))
    return loss, jax.tree.map(lambda *x: sum(x) / 2, *metrics), statistics

  return loss_fn


def network(tree: Any, index: int = 0) -> Any:
  """One of two networks that learned from each other.

  Args:
    tree: Parameters or batch statistics with a leading axis.
    index: Which.

  Returns:
    The tree without that axis.
  """
  return jax.tree.map(lambda x: x[index], tree)


def state_variables(state: Any, mutual: bool = False) -> dict[str, Any]:
  """The weights of a training state; of two networks those of the first.

  Args:
    state: A `training.TrainState` whose init was `make_init`'s.
    mutual: Whether it holds two networks.

  Returns:
    {'params', 'batch_stats'}.
  """
  variables = {
    'params': state.eval_params,
    'batch_stats': state.model_state['batch_stats'],
  }
  return network(variables) if mutual else variables


def make_embed_fn(model: OSNet, flip: bool = False) -> Callable[..., jax.Array]:
  """Function from images to what a task asks of the network.

  Args:
    model: The network.
    flip: Whether to add the features of the mirrored images.

  Returns:
    `embed(variables, images) -> (features, logits)` of uint8 images [batch,
    height, width, 3], to be jitted. Logits are None without classes.
  """

  def embed(variables, images):
    out = model.apply(variables, augment.normalize(images))
    features = out.features
    if flip:
      mirrored = augment.normalize(images[:, :, ::-1])
      features = features + model.apply(variables, mirrored).features
    return features, out.logits

  return embed


def with_variables(
  state: Any, variables: Any, *, new_classifier: bool, mutual: bool = False
) -> Any:
  """A state of step 0 that begins with other weights.

  Args:
    state: A `training.TrainState` whose init was `make_init`'s.
    variables: {'params', 'batch_stats'} of one network.
    new_classifier: Whether to keep the state's own classifier, as when the
      identities are others.
    mutual: Whether the state holds two networks; both begin with these.

  Returns:
    The state, where it lay.

  Raises:
    ValueError: If a leaf is missing or has another shape.
  """
  params = dict(variables['params'])
  if new_classifier:
    params.pop('classifier', None)
    if 'classifier' in state.params:
      own = state.params['classifier']
      params['classifier'] = network(own) if mutual else own

  def placed(old, new, name):
    wanted = {
      jax.tree_util.keystr(path, simple=True, separator='/'): leaf
      for path, leaf in jax.tree_util.tree_leaves_with_path(old)
    }
    found = {
      jax.tree_util.keystr(path, simple=True, separator='/'): leaf
      for path, leaf in jax.tree_util.tree_leaves_with_path(new)
    }
    for path in sorted(wanted.keys() | found.keys()):
      need = wanted[path].shape[int(mutual) :] if path in wanted else 'none'
      have = jnp.shape(found[path]) if path in found else 'missing'
      if need != have:
        raise ValueError(
          f'{name}/{path}: the weights have {have}, the network has {need}. Are'
          ' these weights of another model, or of other identities?'
        )

    def place(path, leaf):
      key = jax.tree_util.keystr(path, simple=True, separator='/')
      value = jnp.asarray(found[key], leaf.dtype)
      if mutual:
        # Two classifiers, or both networks would stay the same.
        value = jnp.stack([value, value])
        if new_classifier and key.startswith('classifier/'):
          value = leaf
      # A copy: the step donates its state.
      return jax.device_put(jnp.array(value), leaf.sharding)

    return jax.tree_util.tree_map_with_path(place, old)

  statistics = placed(
    state.model_state['batch_stats'],
    variables.get('batch_stats', {}),
    'batch_stats',
  )
  return state.replace(
    params=placed(state.params, params, 'params'),
    model_state={**state.model_state, 'batch_stats': statistics},
  )
