"""AMSGrad as torch computes it, schedules by epoch, layers that wait."""

import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpapers.osnet.network import is_child
from jaxpapers.training import optimizers as training_optimizers


class ScaleByAMSGradState(NamedTuple):
  """State of `scale_by_amsgrad_torch`.

  Attributes:
    count: Number of updates made, int32 scalar.
    mu: Running means of the gradients, in float32 at least.
    nu: Running means of their squares.
    nu_max: Largest of these so far.
  """

  count: jax.Array
  mu: Any
  nu: Any
  nu_max: Any


def scale_by_amsgrad_torch(
  b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8
) -> optax.GradientTransformation:
  """AMSGrad with the maximum taken before the bias correction, as in torch.

    m = b1 m + (1 - b1) g,   v = b2 v + (1 - b2) g^2,   w = max(w, v)
    u = m / (1 - b1^t) / (sqrt(w) / sqrt(1 - b2^t) + eps)

  `optax.scale_by_amsgrad` takes the maximum of what is corrected already, and
  with it holds the first gradients for ever: after twelve steps the weights
  differ by 4e-3 of OSNet's learning rates.

  Args:
    b1: Decay of the first moment.
    b2: Decay of the second moment.
    eps: What is added to the root.

  Returns:
    The transform; its updates have the types of the gradients.

  Example:
    >>> tx = optax.chain(scale_by_amsgrad_torch(), optax.scale(-1.5e-3))
  """

  def init(params):
    def zeros():
      return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=_wide(p)), params)

    return ScaleByAMSGradState(
      jnp.zeros((), jnp.int32), zeros(), zeros(), zeros()
    )

  def update(gradients, state, params=None):
    del params
    count = optax.safe_increment(state.count)
    first = training_optimizers.bias_correction(b1, count)
    second = training_optimizers.bias_correction(b2, count)

    def moment(decay, order):
      def of(g, m):
        g = g.astype(m.dtype)
        return _scalar(decay, m) * m + _scalar(1 - decay, m) * g**order

      return of

    mu = jax.tree.map(moment(b1, 1), gradients, state.mu)
    nu = jax.tree.map(moment(b2, 2), gradients, state.nu)
    nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu)

    def step(g, m, v):
      root = jnp.sqrt(v) / jnp.sqrt(_scalar(second, v))
      return (m / _scalar(first, m) / (root + _scalar(eps, v))).astype(g.dtype)

    updates = jax.tree.map(step, gradients, mu, nu_max)
    return updates, ScaleByAMSGradState(count, mu, nu, nu_max)

  return optax.GradientTransformation(init, update)


class FreezeBaseState(NamedTuple):
  """State of `freeze_base`.

  Attributes:
    count: Number of updates seen, int32 scalar.
    open: State of the transform for the layers that always train.
    base: That for the others; as it began until these train.
  """

  count: jax.Array
  open: Any
  base: Any


def freeze_base(
  tx: optax.GradientTransformation,
  open: str | Sequence[str] = ('classifier',),  # noqa: A002
  until_step: int = 0,
) -> optax.GradientTransformation:
  """Trains only some layers at first.

  The others begin as if the first step were `until_step`: until then they get
  no update, no decay, and their moments do not exist. What depends on the
  number of the step for all of them, such as a schedule, has to come behind:
  `optax.chain(freeze_base(tx, ...), optax.scale_by_learning_rate(schedule))`.

  Frozen batch norms must use and keep their running statistics as well, which
  is not an optimizer's: call the network with `open_layers`.

  Args:
    tx: What makes updates of gradients.
    open: Names of top-level children that always train; 'conv4' means all of
      that stage.
    until_step: Number of steps in which nothing else does; 0 for none.

  Returns:
    The transform.

  Raises:
    ValueError: If `until_step` is negative, or no layer is open.

  Example:
    >>> tx = freeze_base(optax.sgd(1.0), ('fc',), until_step=1)
    >>> params = {'conv': jnp.zeros(1), 'fc': jnp.zeros(1)}
    >>> updates, _ = tx.update(jax.tree.map(jnp.ones_like, params),
    ...                        tx.init(params), params)
    >>> {k: abs(float(v[0])) for k, v in updates.items()}
    {'conv': 0.0, 'fc': 1.0}
  """
  names = (open,) if isinstance(open, str) else tuple(open)
  if until_step < 0:
    raise ValueError(f'until_step is {until_step}; expected 0 or more.')
  if not names:
    raise ValueError('open has no names; expected one layer or more to train.')

  def is_open(path):
    key = jax.tree_util.keystr(path[:1], simple=True)
    return any(is_child(key, name) for name in names)

  def opened(tree):
    return jax.tree_util.tree_map_with_path(lambda path, _: is_open(path), tree)

  def closed(tree):
    return jax.tree.map(lambda x: not x, opened(tree))

  open_tx, base_tx = optax.masked(tx, opened), optax.masked(tx, closed)

  def init(params):
    chosen = jax.tree.leaves(opened(params))
    if chosen and not any(chosen):
      raise ValueError(
        f'open is {names}; expected names of layers, of {list(params)}.'
      )
    return FreezeBaseState(
      jnp.zeros((), jnp.int32), open_tx.init(params), base_tx.init(params)
    )

  def update(gradients, state, params=None, **extra):
    frozen = state.count < until_step
    updates, open_state = open_tx.update(gradients, state.open, params, **extra)
    updates, base_state = base_tx.update(updates, state.base, params, **extra)
    updates = jax.tree.map(
      lambda u, base: jnp.where(frozen, 0, u) if base else u,
      updates,
      closed(updates),
    )
    base_state = jax.tree.map(
      lambda old, new: jnp.where(frozen, old, new), state.base, base_state
    )
    count = optax.safe_increment(state.count)
    return updates, FreezeBaseState(count, open_state, base_state)

  return optax.GradientTransformationExtraArgs(init, update)


def step_schedule(
  learning_rate: float,
  milestones: int | Sequence[int],
  steps_per_epoch: int,
  factor: float = 0.1,
) -> optax.Schedule:
  """A rate that drops by a factor at some epochs.

  Args:
    learning_rate: The first.
    milestones: Epochs; or a number, for every so many epochs: torchreid's
      'single_step' with 60 drops at 60 and at 120.
    steps_per_epoch: Updates of an epoch.
    factor: What the rate is multiplied by.

  Returns:
    Function from the number of the update to the rate.

  Raises:
    ValueError: If an argument is not positive.

  Example:
    >>> schedule = step_schedule(1.0, 60, 10)
    >>> [round(float(schedule(10 * epoch)), 3) for epoch in (0, 59, 60, 120)]
    [1.0, 1.0, 0.1, 0.01]
  """
  _check_positive(steps_per_epoch=steps_per_epoch)
  every = milestones if isinstance(milestones, numbers.Integral) else None
  _check_positive(milestones=every if every is not None else 1)

  def schedule(count):
    epoch = jnp.asarray(count) // steps_per_epoch
    if every is not None:
      drops = epoch // every
    else:
      drops = sum(jnp.where(epoch >= m, 1, 0) for m in milestones)
    return learning_rate * jnp.power(factor, _as_float(drops))

  return schedule


def cosine_schedule(
  learning_rate: float, epochs: int, steps_per_epoch: int
) -> optax.Schedule:
  """Half a cosine down to zero, in steps of an epoch, without warm-up.

  Args:
    learning_rate: The first.
    epochs: After how many it would be zero.
    steps_per_epoch: Updates of an epoch.

  Returns:
    Function from the number of the update to the rate.

  Raises:
    ValueError: If a number is not positive.

  Example:
    >>> schedule = cosine_schedule(1.0, 4, 10)
    >>> [round(float(schedule(n)), 3) for n in (0, 9, 10, 20, 39)]
    [1.0, 1.0, 0.854, 0.5, 0.146]
  """
  _check_positive(steps_per_epoch=steps_per_epoch, epochs=epochs)

  def schedule(count):
    epoch = _as_float(
      jnp.minimum(jnp.asarray(count) // steps_per_epoch, epochs)
    )
    return learning_rate * (1 + jnp.cos(jnp.pi * epoch / epochs)) / 2

  return schedule


def osnet_finetune(
  epochs: int = 150,
  steps_per_epoch: int = 1,
  learning_rate: float = 1.5e-3,
  *,
  schedule: str = 'step',
  step_epochs: int | Sequence[int] = 60,
  fixed_epochs: int = 10,
  open_layers: Sequence[str] = ('classifier',),
  weight_decay: float = 5e-4,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The optimizer for weights from ImageNet: AMSGrad, the base frozen first.

  Weight decay is added to the gradients, of norms and biases as well. The
  rate runs on while layers are frozen, and these epochs count.

  Args:
    epochs: Of the whole run, 150; 250 with the cosine.
    steps_per_epoch: Updates of an epoch.
    learning_rate: The first.
    schedule: 'step' or 'cosine'.
    step_epochs: As `milestones` of `step_schedule`.
    fixed_epochs: How many train only the open layers.
    open_layers: As `open` of `freeze_base`.
    weight_decay: Coefficient of the L2 term.
    b1: Decay of the first moment.
    b2: Decay of the second moment; torchreid's code has .99 where its recipes
      say .999.
    eps: What is added to the root.

  Returns:
    The transform and its schedule.

  Raises:
    ValueError: If an argument does not fit.

  Example:
    >>> tx, schedule = osnet_finetune(150, steps_per_epoch=202)
    >>> round(float(schedule(60 * 202)), 6)
    0.00015
  """
  if schedule == 'step':
    _check_positive(epochs=epochs)
    rate = step_schedule(learning_rate, step_epochs, steps_per_epoch)
  elif schedule == 'cosine':
    rate = cosine_schedule(learning_rate, epochs, steps_per_epoch)
  else:
    raise ValueError(f"schedule is {schedule!r}; expected 'step' or 'cosine'.")
  if fixed_epochs < 0:
    raise ValueError(f'fixed_epochs is {fixed_epochs}; expected 0 or more.')
  core = optax.chain(
    optax.add_decayed_weights(weight_decay),
    scale_by_amsgrad_torch(b1, b2, eps),
  )
  if fixed_epochs:
    core = freeze_base(core, open_layers, fixed_epochs * steps_per_epoch)
  shown = training_optimizers.scale_by_shown_rate(rate)
  return optax.chain(core, shown), rate


def osnet_from_scratch(
  epochs: int = 350,
  steps_per_epoch: int = 1,
  learning_rate: float = 0.065,
  *,
  schedule: str = 'step',
  milestones: Sequence[int] = (150, 225, 300),
  momentum: float = 0.9,
  weight_decay: float = 5e-4,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The optimizer for random weights: SGD with momentum.

  Args:
    epochs: Of the whole run; only the cosine needs it.
    steps_per_epoch: Updates of an epoch.
    learning_rate: The first, for batches of 64.
    schedule: 'step' or 'cosine' (of the architecture search).
    milestones: As of `step_schedule`.
    momentum: Of the gradients.
    weight_decay: Coefficient of the L2 term.

  Returns:
    The transform and its schedule.

  Raises:
    ValueError: If an argument does not fit.

  Example:
    >>> tx, schedule = osnet_from_scratch(350, steps_per_epoch=202)
    >>> round(float(schedule(0)), 4)
    0.065
  """
  _check_positive(epochs=epochs)
  if schedule == 'step':
    rate = step_schedule(learning_rate, milestones, steps_per_epoch)
  elif schedule == 'cosine':
    rate = cosine_schedule(learning_rate, epochs, steps_per_epoch)
  else:
    raise ValueError(f"schedule is {schedule!r}; expected 'step' or 'cosine'.")
  return (
    optax.chain(
      optax.add_decayed_weights(weight_decay),
      optax.trace(momentum),
      training_optimizers.scale_by_shown_rate(rate),
    ),
    rate,
  )


def _wide(x):
  return jnp.promote_types(x.dtype, jnp.float32)


def _scalar(value, like):
  return jnp.asarray(value, like.dtype)


def _as_float(count):
  # Wide where x64 is enabled, as a product with a number would not be.
  return jnp.asarray(count).astype(jnp.result_type(float))


def _check_positive(**values):
  for name, value in values.items():
    if value < 1:
      raise ValueError(f'{name} is {value}; expected 1 or more.')
