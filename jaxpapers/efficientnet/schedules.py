"""Learning rates of EfficientNet: a warm-up, then steps down or a cosine."""

import math

import jax.numpy as jnp
import optax

KINDS = ('exponential', 'cosine', 'constant')


def scaled_learning_rate(batch_size: int, base: float = 0.016) -> float:
  """The peak for a batch size: `base * batch_size / 256`.

  Args:
    batch_size: Examples of a global batch.
    base: The peak for 256.

  Returns:
    The peak; .256 for the paper's batch of 4096.

  Example:
    >>> scaled_learning_rate(4096)
    0.256
  """
  return base * batch_size / 256


def efficientnet_schedule(
  peak: float,
  steps_per_epoch: float,
  kind: str = 'exponential',
  *,
  total_steps: int | None = None,
  warmup_epochs: float = 5.0,
  decay_factor: float = 0.97,
  decay_epochs: float = 2.4,
) -> optax.Schedule:
  """The learning rate at each update, as the original code has it.

  With n = 0, 1, ... the number of the update, spe the steps of an epoch and
  w = int(warmup_epochs spe): `peak n / w` for n < w. Afterwards

    exponential:  peak decay_factor^floor(n / (decay_epochs spe))
    cosine:       peak (1 + cos(pi n / total_steps)) / 2

  The warm-up does not shift the decay: after it, the exponential rate has
  already been through two steps down, and never is at its peak.

  Args:
    peak: What the warm-up goes to, see `scaled_learning_rate`.
    steps_per_epoch: Updates in an epoch; it need not be whole.
    kind: 'exponential', 'cosine' or 'constant'.
    total_steps: Updates of the whole run; only a cosine needs it.
    warmup_epochs: Length of the warm-up.
    decay_factor: Of each step down.
    decay_epochs: Epochs between steps.

  Returns:
    Function from n, an integer or an array of them, to the rate.

  Raises:
    ValueError: If an argument does not fit.

  Example:
    >>> schedule = efficientnet_schedule(0.256, 313)
    >>> [round(float(schedule(n)), 4) for n in (0, 313, 1565, 313 * 24)]
    [0.0, 0.0512, 0.2409, 0.1888]
  """
  if kind not in KINDS:
    raise ValueError(f'kind is {kind!r}; expected one of {KINDS}.')
  for name, value in (
    ('steps_per_epoch', steps_per_epoch),
    ('decay_factor', decay_factor),
    ('decay_epochs', decay_epochs),
  ):
    if not (math.isfinite(value) and value > 0):
      raise ValueError(f'{name} is {value}; expected a positive number.')
  if not (math.isfinite(warmup_epochs) and warmup_epochs >= 0):
    raise ValueError(f'warmup_epochs is {warmup_epochs}; expected 0 or more.')
  if kind == 'cosine' and (total_steps is None or total_steps < 1):
    raise ValueError(
      f'total_steps is {total_steps}; a cosine needs the number of updates of'
      ' the whole run.'
    )
  warmup = int(warmup_epochs * steps_per_epoch)

  def schedule(count):
    # An int32 divided by a number would be float32 under x64, too.
    n = jnp.asarray(count).astype(jnp.result_type(float))
    if kind == 'exponential':
      falls = jnp.floor(n / (decay_epochs * steps_per_epoch))
      rate = peak * decay_factor**falls
    elif kind == 'cosine':
      share = jnp.clip(n / total_steps, 0, 1)
      rate = 0.5 * peak * (1 + jnp.cos(math.pi * share))
    else:
      rate = jnp.full_like(n, peak)
    if not warmup:
      return rate
    return jnp.where(n < warmup, peak * (n / warmup), rate)

  return schedule
