"""A recurrent controller that learns to propose architectures, by PPO.

An LSTM writes the tokens of an architecture one after the other, as in MnasNet,
and is rewarded for the whole. The paper does not give its settings and its code
was never released; what is not known is chosen on the synthetic benchmark.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpapers.efficientnet.history import Trial
from jaxpapers.efficientnet.search_space import OPTIONS, SearchSpace

_WIDEST = max(OPTIONS)
# Where the values of a dimension begin among all tokens; 0 starts a sequence.
_OFFSETS = 1 + np.cumsum((0, *OPTIONS[:-1]))


class Controller(nn.Module):
  """One step of the controller.

  Attributes:
    positions: Tokens of an architecture.
    hidden_dim: Size of LSTM and embeddings.
  """

  positions: int
  hidden_dim: int = 100

  @nn.compact
  def __call__(self, carry, previous, position):
    """Maps the previous token to logits of this one.

    Args:
      carry: State of the LSTM.
      previous: Identifier of the previous token, int32 scalar.
      position: Of this one, int32 scalar.

    Returns:
      New state, and logits `[4]` of which the first belong to options.
    """
    small = nn.initializers.uniform(0.2)

    def uniform(key, shape, dtype=jnp.float32):
      return small(key, shape, dtype) - 0.1

    tokens = nn.Embed(1 + sum(OPTIONS), self.hidden_dim, embedding_init=uniform)
    places = nn.Embed(self.positions, self.hidden_dim, embedding_init=uniform)
    cell = nn.OptimizedLSTMCell(
      self.hidden_dim, kernel_init=uniform, recurrent_kernel_init=uniform
    )
    carry, x = cell(carry, tokens(previous) + places(position))
    kinds = len(OPTIONS)
    logits = nn.Dense(kinds * _WIDEST, kernel_init=uniform)(x)
    bias = self.param(
      'bias', nn.initializers.zeros, (self.positions, _WIDEST), jnp.float32
    )
    dimension = position % kinds
    logits = logits.reshape(kinds, _WIDEST)[dimension] + bias[position]
    allowed = jnp.arange(_WIDEST) < jnp.array(OPTIONS)[dimension]
    return carry, jnp.where(allowed, logits, -1e9)

  def start(self) -> Any:
    """State of the LSTM before the first token."""
    zeros = jnp.zeros(self.hidden_dim)
    return zeros, zeros


def _identifier(token, position):
  """Token among all tokens of all dimensions."""
  return jnp.asarray(_OFFSETS)[position % len(OPTIONS)] + token


def sample_tokens(controller: Controller, params: Any, key: jax.Array):
  """Draws an architecture.

  Args:
    controller: The module.
    params: Its parameters.
    key: Typed key.

  Returns:
    Tokens int32 `[positions]` and the log of their probability.
  """

  def step(carry, position):
    state, previous = carry
    state, logits = controller.apply(params, state, previous, position)
    token = jax.random.categorical(jax.random.fold_in(key, position), logits)
    log_prob = nn.log_softmax(logits)[token]
    return (state, _identifier(token, position)), (token, log_prob)

  carry = (controller.start(), jnp.int32(0))
  positions = jnp.arange(controller.positions)
  _, (tokens, log_probs) = jax.lax.scan(step, carry, positions)
  return tokens.astype(jnp.int32), log_probs.sum()


def score_tokens(controller: Controller, params: Any, tokens: jax.Array):
  """Log probability of an architecture, and the entropy on its way.

  Args:
    controller: The module.
    params: Its parameters.
    tokens: int32 `[positions]`.

  Returns:
    Log probability and entropy, both summed over positions.
  """

  def step(carry, item):
    state, previous = carry
    position, token = item
    state, logits = controller.apply(params, state, previous, position)
    log_probs = nn.log_softmax(logits)
    entropy = -(jnp.exp(log_probs) * log_probs).sum()
    return (state, _identifier(token, position)), (log_probs[token], entropy)

  carry = (controller.start(), jnp.int32(0))
  items = (jnp.arange(controller.positions), tokens)
  _, (log_probs, entropies) = jax.lax.scan(step, carry, items)
  return log_probs.sum(), entropies.sum()


@dataclasses.dataclass
class PPO:
  """Search by a controller under proximal policy optimisation.

  Trials come in batches by their index. As soon as a batch is finished, the
  controller is updated on it; the log probabilities under which its
  architectures were drawn are in the record. The controller itself is not: it
  follows from the seed and the finished batches.

  Attributes:
    seed: Of parameters and samples.
    batch: Trials of an update.
    epochs: Gradient steps of an update.
    learning_rate: Of Adam.
    clip: Of the ratio of probabilities.
    entropy: Weight of the entropy.
    baseline: Decay of the moving average of rewards.
    hidden_dim: Of the controller.

  Raises:
    ValueError: If a setting is out of range.
  """

  seed: int = 0
  batch: int = 20
  epochs: int = 4
  learning_rate: float = 3e-3
  clip: float = 0.2
  entropy: float = 1e-3
  baseline: float = 0.95
  hidden_dim: int = 100

  def __post_init__(self):
    for name in ('batch', 'epochs', 'learning_rate', 'clip', 'hidden_dim'):
      if not getattr(self, name) > 0:
        raise ValueError(
          f'{name} is {getattr(self, name)}; expected more than 0.'
        )
    if not 0 <= self.baseline < 1:
      raise ValueError(
        f'baseline is {self.baseline}; expected a decay from 0 to below 1.'
      )
    self._replayed: _Replayed | None = None
    self._drawn: tuple[Any, Any] = (None, None)

  def describe(self) -> Mapping[str, Any]:
    """Its settings."""
    return {'algorithm': 'ppo', **dataclasses.asdict(self)}

  def propose(
    self, space: SearchSpace, trials: Sequence[Trial], index: int
  ) -> tuple[np.ndarray, Mapping[str, Any]]:
    """Tokens of trial `index`."""
    controller = Controller(math.prod(space.shape), self.hidden_dim)
    state = self._replay(controller, trials)
    # A batch is drawn at once, which takes as long as one architecture.
    block, place = divmod(index, self.batch)
    if self._drawn[0] != (block, state.updates, state.last_batch):
      first = block * self.batch
      indices = np.arange(first, first + self.batch, dtype=np.uint32)
      key = jax.random.key(self.seed)
      drawn = _sample(controller, state.params, key, indices)
      where = (block, state.updates, state.last_batch)
      self._drawn = (where, jax.tree.map(np.asarray, drawn))
    tokens, log_probs = (drawn[place] for drawn in self._drawn[1])
    info = {'log_prob': float(log_probs), 'updates': state.updates}
    return tokens.reshape(space.shape), info

  def _replay(self, controller, trials) -> '_Replayed':
    """The controller after all batches that are finished."""
    complete = 0
    # Trials are sorted: a batch is complete if its last one is in its place.
    while len(trials) >= (complete + 1) * self.batch:
      last = (complete + 1) * self.batch - 1
      if trials[last].index != last:
        break
      complete += 1
    state = self._replayed
    if state is None or not state.continues(controller, trials, self.batch):
      tx = optax.adam(self.learning_rate)
      params = _init(controller, jax.random.key(self.seed))
      state = _Replayed(controller, params, tx.init(params), 0, None, '')
    while state.updates < complete:
      begin = state.updates * self.batch
      state = self._update(state, trials[begin : begin + self.batch])
    self._replayed = state
    return state

  def _update(self, state: '_Replayed', trials: Sequence[Trial]) -> '_Replayed':
    scores = np.array([trial.score for trial in trials])
    good = np.isfinite(scores)
    # A failure is as bad as the worst that did not fail.
    worst = scores[good].min() if good.any() else 0.0
    scores = np.where(good, scores, worst)
    baseline = state.baseline
    if baseline is None:
      baseline = scores.mean()
    advantages = scores - baseline
    # Rewards of a good space differ by hundredths: only their order of size
    # relative to each other matters.
    advantages = advantages / (advantages.std() + 1e-8)
    mean = self.baseline * baseline + (1 - self.baseline) * scores.mean()
    params, opt_state = _improve(
      state.controller,
      (self.epochs, self.learning_rate, self.clip, self.entropy),
      state.params,
      state.opt_state,
      np.stack([trial.tokens.reshape(-1) for trial in trials]),
      np.array([trial.info['log_prob'] for trial in trials], np.float32),
      advantages.astype(np.float32),
    )
    return _Replayed(
      state.controller,
      params,
      opt_state,
      state.updates + 1,
      mean,
      _digest(trials),
    )


@dataclasses.dataclass(frozen=True)
class _Replayed:
  """The controller after some updates."""

  controller: Controller
  params: Any
  opt_state: Any
  updates: int
  baseline: float | None
  last_batch: str

  def continues(self, controller, trials, batch) -> bool:
    """Whether these trials begin with those it learned from."""
    end = self.updates * batch
    return (
      self.controller == controller
      and len(trials) >= end
      and (end == 0 or _digest(trials[end - batch : end]) == self.last_batch)
    )


def _digest(trials: Sequence[Trial]) -> str:
  text = repr([(t.index, t.tokens.tolist(), t.score) for t in trials])
  return hashlib.sha256(text.encode()).hexdigest()


@functools.partial(jax.jit, static_argnums=0)
def _init(controller, key):
  zero = jnp.int32(0)
  return controller.init(key, controller.start(), zero, zero)


@functools.partial(jax.jit, static_argnums=0)
def _sample(controller, params, key, indices):
  def one(index):
    return sample_tokens(controller, params, jax.random.fold_in(key, index))

  return jax.vmap(one)(indices)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _improve(
  controller, settings, params, opt_state, tokens, old_log_probs, advantages
):
  """Some gradient steps on one batch."""
  epochs, learning_rate, clip, entropy_weight = settings
  tx = optax.adam(learning_rate)

  def loss_fn(params):
    log_probs, entropies = jax.vmap(
      lambda t: score_tokens(controller, params, t)
    )(tokens)
    ratio = jnp.exp(log_probs - old_log_probs)
    clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
    gain = jnp.minimum(ratio * advantages, clipped * advantages)
    return -gain.mean() - entropy_weight * entropies.mean()

  def step(carry, _):
    params, opt_state = carry
    updates, opt_state = tx.update(jax.grad(loss_fn)(params), opt_state)
    return (optax.apply_updates(params, updates), opt_state), None

  (params, opt_state), _ = jax.lax.scan(
    step, (params, opt_state), length=epochs
  )
  return params, opt_state
