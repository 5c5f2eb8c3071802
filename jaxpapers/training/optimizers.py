"""Adam as fairseq and BERT write it, and their learning rate schedules.

Both differ from `optax.adamw`, and by more than rounding. fairseq adds eps
before the bias correction; BERT corrects no bias at all. RoBERTa and the
adapters were trained with these.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Mask = str | Callable[[Any], Any] | Any

# Flax names: the scale of a norm, any bias, whatever is in a norm module.
_NOT_DECAYED = re.compile(r'(^|/)(bias\w*|scale)$|norm', re.IGNORECASE)


class ScaleByAdamState(NamedTuple):
  """State of `scale_by_fairseq_adam` and `scale_by_bert_adam`.

  Attributes:
    count: Number of updates made, int32 scalar.
    mu: Running means of the gradients, in float32 at least.
    nu: Running means of their squares.
  """

  count: jax.Array
  mu: Any
  nu: Any


class ScaleByScheduleState(NamedTuple):
  """State of the last link, if the learning rate is a schedule.

  Attributes:
    count: Number of updates made, int32 scalar.
    learning_rate: That of the last of them; a training step shows it.
  """

  count: jax.Array
  learning_rate: jax.Array


def scale_by_fairseq_adam(
  b1: Any = 0.9,
  b2: Any = 0.98,
  eps: Any = 1e-6,
  *,
  mu_dtype: Any = None,
) -> optax.GradientTransformation:
  """Adam with eps added before the bias correction, as in fairseq.

  With t = 1, 2, ... the number of the update:

    m = b1 m + (1 - b1) g,    v = b2 v + (1 - b2) g^2
    u = sqrt(1 - b2^t) / (1 - b1^t)  m / (sqrt(v) + eps)

  `optax.scale_by_adam` divides v by 1 - b2^t first: there eps is smaller by
  sqrt(1 - b2^t), seven times at t = 1 for b2 = .98.

  Args:
    b1: Decay of the first moment; .9 in the paper.
    b2: Decay of the second moment; .98 in the paper.
    eps: What is added to the root; 1e-6 in the paper.
    mu_dtype: Type of the first moment; by default that of the parameter, and
      float32 for narrower ones.

  Returns:
    The transform; its updates have the types of the gradients.

  Example:
    >>> tx = optax.chain(scale_by_fairseq_adam(), optax.scale(-1e-3))
  """
  return _typed(_scale_by_adam(b1, b2, eps, mu_dtype, correct=True))


def scale_by_bert_adam(
  b1: Any = 0.9,
  b2: Any = 0.999,
  eps: Any = 1e-6,
  *,
  mu_dtype: Any = None,
) -> optax.GradientTransformation:
  """Adam without bias correction, as in BERT: `u = m / (sqrt(v) + eps)`.

  Args:
    b1: Decay of the first moment.
    b2: Decay of the second moment.
    eps: What is added to the root.
    mu_dtype: As in `scale_by_fairseq_adam`.

  Returns:
    The transform; its updates have the types of the gradients.

  Example:
    >>> tx = optax.chain(scale_by_bert_adam(), optax.scale(-1e-3))
  """
  return _typed(_scale_by_adam(b1, b2, eps, mu_dtype, correct=False))


def fairseq_adam(
  learning_rate: Any,
  weight_decay: Any = 0.01,
  decay_mask: Mask = 'all',
  *,
  b1: Any = 0.9,
  b2: Any = 0.98,
  eps: Any = 1e-6,
  clip_norm: Any = None,
  mu_dtype: Any = None,
) -> optax.GradientTransformation:
  """The optimizer of RoBERTa: `p -= lr (u + weight_decay p)`.

  u is that of `scale_by_fairseq_adam`. fairseq decays every parameter, biases
  and norms too; BERT and Hugging Face do not decay these.

  Args:
    learning_rate: Number or schedule, as `polynomial_warmup_schedule`.
    weight_decay: Coefficient of the decoupled decay.
    decay_mask: 'all'; 'no_bias_ln' for all but biases and norms, by their
      names in the tree, so that stacked layers are no different; or a tree of
      bools, or a function from the parameters to one.
    b1: See `scale_by_fairseq_adam`.
    b2: See `scale_by_fairseq_adam`.
    eps: See `scale_by_fairseq_adam`.
    clip_norm: Largest global norm of the gradients; None as in the paper. Of
      the leaves that this transform is given: under `optax.masked` or
      `optax.multi_transform` those that are trained.
    mu_dtype: See `scale_by_fairseq_adam`.

  Returns:
    The transform. With a schedule, its state knows the `learning_rate`, which
    is then among the metrics of a training step.

  Raises:
    ValueError: If `decay_mask` is another text.

  Example:
    >>> schedule = polynomial_warmup_schedule(6e-4, 24_000, 500_000)
    >>> tx = fairseq_adam(schedule, weight_decay=0.01)
  """
  return _adam(
    _scale_by_adam(b1, b2, eps, mu_dtype, correct=True),
    learning_rate,
    weight_decay,
    decay_mask,
    clip_norm,
  )


def bert_adam(
  learning_rate: Any,
  weight_decay: Any = 0.01,
  decay_mask: Mask = 'no_bias_ln',
  *,
  b1: Any = 0.9,
  b2: Any = 0.999,
  eps: Any = 1e-6,
  clip_norm: Any = 1.0,
  mu_dtype: Any = None,
) -> optax.GradientTransformation:
  """The optimizer of BERT: no bias correction, gradients clipped.

  Args:
    learning_rate: Number or schedule, as `bert_schedule`.
    weight_decay: Coefficient of the decoupled decay.
    decay_mask: See `fairseq_adam`.
    b1: See `scale_by_bert_adam`.
    b2: See `scale_by_bert_adam`.
    eps: See `scale_by_bert_adam`.
    clip_norm: See `fairseq_adam`; 1 in BERT. None for no clipping.
    mu_dtype: See `scale_by_fairseq_adam`.

  Returns:
    The transform.

  Raises:
    ValueError: If `decay_mask` is another text.

  Example:
    >>> tx = bert_adam(bert_schedule(1e-4, 10_000, 1_000_000))
  """
  return _adam(
    _scale_by_adam(b1, b2, eps, mu_dtype, correct=False),
    learning_rate,
    weight_decay,
    decay_mask,
    clip_norm,
  )


def polynomial_warmup_schedule(
  peak: Any,
  warmup: int,
  total: int,
  end: Any = 0.0,
  power: Any = 1.0,
) -> optax.Schedule:
  """Linear from 0 to `peak`, then a polynomial down to `end`: fairseq's.

  At the update n = 0, 1, ...: `peak n / warmup` up to n = warmup, then
  `end + (peak - end) (1 - (n - warmup) / (total - warmup))^power`, and `end`
  from n = total on. The first update has the rate 0, if there is a warmup.

  Args:
    peak: Learning rate at n = warmup.
    warmup: Number of updates of the warmup.
    total: Number of updates after which the rate is `end`.
    end: Last rate.
    power: 1 for a straight line.

  Returns:
    Function from n, an integer or an array of them, to the rate; in float32,
    in float64 where it is enabled.

  Raises:
    ValueError: If `warmup` is not between 0 and `total`.

  Example:
    >>> schedule = polynomial_warmup_schedule(1.0, 2, 6)
    >>> [round(float(schedule(n)), 2) for n in range(7)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
  """
  _check_updates(warmup, total)

  def schedule(count):
    n = _as_float(count)
    # Not 1 - ... : a compiler may multiply by the inverse, and miss 0.
    left = (total - n) / _at_least_one(total - warmup)
    decayed = end + (peak - end) * jnp.clip(left, 0, 1) ** power
    decayed = jnp.where(n < total, decayed, end)
    rising = peak * (n / _at_least_one(warmup))
    return jnp.where((n <= warmup) & (warmup > 0), rising, decayed)

  return schedule


def bert_schedule(
  peak: Any,
  warmup: int,
  total: int,
  end: Any = 0.0,
  power: Any = 1.0,
) -> optax.Schedule:
  """BERT's schedule, whose decay began at update 0 when the warmup ends.

  At the update n = 0, 1, ...: `peak n / warmup` for n < warmup, else
  `end + (peak - end) (1 - n / total)^power`. The rate jumps down at the end of
  the warmup and never reaches `peak`; optax's schedules with a warmup begin the
  decay there, as `polynomial_warmup_schedule` does.

  Args:
    peak: Learning rate that the warmup aims at.
    warmup: Number of updates of the warmup.
    total: Number of updates after which the rate is `end`.
    end: Last rate.
    power: 1 for a straight line.

  Returns:
    Function from n to the rate.

  Raises:
    ValueError: If `warmup` is not between 0 and `total`.

  Example:
    >>> schedule = bert_schedule(1.0, 2, 10)
    >>> [round(float(schedule(n)), 2) for n in range(5)]
    [0.0, 0.5, 0.8, 0.7, 0.6]
  """
  _check_updates(warmup, total)

  def schedule(count):
    n = _as_float(count)
    left = (total - n) / _at_least_one(total)
    decayed = end + (peak - end) * jnp.clip(left, 0, 1) ** power
    return jnp.where(n < warmup, peak * (n / _at_least_one(warmup)), decayed)

  return schedule


def no_bias_or_norm(params: Any) -> Any:
  """Which parameters BERT decays: all but biases and those of norms.

  By their names alone, so that layers stacked along a first axis are treated
  like the others: of `layers/ffn/output/bias` [layers, hidden] nothing is
  decayed.

  Args:
    params: Tree of parameters with Flax' names.

  Returns:
    Tree of bools.

  Example:
    >>> no_bias_or_norm({'dense': {'kernel': 1, 'bias': 2}})
    {'dense': {'bias': False, 'kernel': True}}
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, _: (
      _NOT_DECAYED.search(
        jax.tree_util.keystr(path, simple=True, separator='/')
      )
      is None
    ),
    params,
  )


def _scale_by_adam(b1, b2, eps, mu_dtype, *, correct: bool):
  """The moments; updates in their type, which may be wider than gradients."""

  def init(params):
    return ScaleByAdamState(
      count=jnp.zeros((), jnp.int32),
      mu=jax.tree.map(
        lambda p: jnp.zeros_like(p, dtype=mu_dtype or _wide(p)), params
      ),
      nu=jax.tree.map(lambda p: jnp.zeros_like(p, dtype=_wide(p)), params),
    )

  def update(gradients, state, params=None):
    del params
    count = optax.safe_increment(state.count)

    def moment(decay, order):
      def of(g, m):
        g = g.astype(_wide(g))
        return _scalar(decay, g) * m + _scalar(1 - decay, g) * g**order

      return of

    mu = jax.tree.map(moment(b1, 1), gradients, state.mu)
    nu = jax.tree.map(moment(b2, 2), gradients, state.nu)
    factor = jnp.sqrt(bias_correction(b2, count)) / bias_correction(b1, count)
    if not correct:
      factor = 1.0
    updates = jax.tree.map(
      lambda m, v: _scalar(factor, m) * m / (jnp.sqrt(v) + _scalar(eps, v)),
      mu,
      nu,
    )
    mu = jax.tree.map(lambda m, old: m.astype(old.dtype), mu, state.mu)
    return updates, ScaleByAdamState(count, mu, nu)

  return optax.GradientTransformation(init, update)


def bias_correction(decay: Any, count: jax.Array) -> jax.Array:
  """1 - decay^count, to full precision for decays near 1.

  Args:
    decay: Of a running mean, number or array.
    count: Number of updates, int32 scalar.

  Returns:
    A scalar, as wide as floats are.
  """
  if isinstance(decay, (int, float)) and decay > 0:
    # Rounded to float32 only after the logarithm: before it, 1 - decay would
    # lose digits (1e-5 of the correction for .999, 2e-4 for .9999).
    log = math.log(decay)
  else:
    log = jnp.log(jnp.asarray(decay, float))
  return -jnp.expm1(_as_float(count) * log)


def _adam(core, learning_rate, weight_decay, decay_mask, clip_norm):
  """Clipping, moments, decay and rate; the updates as narrow as gradients."""
  steps = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
  steps.append(core)
  # A traced coefficient is used whatever its value.
  if not (isinstance(weight_decay, (int, float)) and weight_decay == 0):
    mask = _mask(decay_mask)
    steps.append(optax.add_decayed_weights(weight_decay, mask))
  steps.append(scale_by_shown_rate(learning_rate))
  return _typed(optax.chain(*steps))


def scale_by_shown_rate(
  learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformation:
  """`optax.scale_by_learning_rate` whose state shows the rate of a schedule.

  Args:
    learning_rate: Number or schedule.

  Returns:
    The transform; of a schedule its state is a `ScaleByScheduleState`.
  """
  if not callable(learning_rate):
    return optax.scale_by_learning_rate(learning_rate)

  def init(params):
    del params
    count = jnp.zeros((), jnp.int32)
    rate = jnp.asarray(learning_rate(count), jnp.result_type(float))
    return ScaleByScheduleState(count, rate)

  def update(updates, state, params=None):
    del params
    rate = learning_rate(state.count)
    updates = jax.tree.map(lambda u: -_scalar(rate, u) * u, updates)
    rate = jnp.asarray(rate, state.learning_rate.dtype)
    count = optax.safe_increment(state.count)
    return updates, ScaleByScheduleState(count, rate)

  return optax.GradientTransformation(init, update)


def _mask(decay_mask):
  if isinstance(decay_mask, str):
    masks = {'all': None, 'no_bias_ln': no_bias_or_norm}
    if decay_mask not in masks:
      raise ValueError(
        f'decay_mask is {decay_mask!r}; expected {" or ".join(masks)}, a tree'
        ' of bools, or a function from the parameters to one.'
      )
    return masks[decay_mask]
  return decay_mask


def _typed(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """Rounds updates once, at the end, to the types of the gradients."""
  inner = optax.with_extra_args_support(inner)

  def update(gradients, state, params=None, **extra_args):
    updates, state = inner.update(gradients, state, params, **extra_args)
    updates = jax.tree.map(lambda u, g: u.astype(g.dtype), updates, gradients)
    return updates, state

  return optax.GradientTransformationExtraArgs(inner.init, update)


def _wide(x):
  """At least float32: bfloat16 would forget that v ever changed."""
  return jnp.promote_types(x.dtype, jnp.float32)


def _scalar(value, like):
  """A number or a traced one in the type of an array."""
  return jnp.asarray(value, like.dtype)


def _as_float(count):
  # An int32 divided by a number would be float32 even where x64 is enabled.
  return jnp.asarray(count).astype(jnp.result_type(float))


def _at_least_one(number):
  """A divisor; where it matters it is not 0."""
  if isinstance(number, (int, float)):
    return max(number, 1)
  return jnp.maximum(number, 1)


def _check_updates(warmup, total) -> None:
  if isinstance(warmup, jax.core.Tracer) or isinstance(total, jax.core.Tracer):
    return
  if total < 1:
    raise ValueError(f'total is {total}; expected 1 update or more.')
  if not 0 <= warmup <= total:
    raise ValueError(
      f'warmup is {warmup}; expected from 0 to total, which is {total}.'
    )
