"""Masked language modelling: a loss that masks its batch itself, on the device.

Which tokens of an example are hidden depends on a key, the epoch and the
example's number only: not on the batch it is in, the device or what happened
before. A run that resumes, on other hardware even, hides the same tokens.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.roberta import losses
from jaxpapers.roberta import masking as masking_lib

# Entry of the model state under which a run can keep masks of its own.
MASKING = 'masking'
# Masks of the same example in training and in evaluations are unrelated.
_HELD_OUT = 0x7FFFFFFF


@dataclasses.dataclass(frozen=True)
class MaskingScheme:
  """Which tokens are hidden, and how (RoBERTa, sections 2.3 and 4.1).

  Attributes:
    vocab_size: Number of tokens; random ones are drawn from these.
    mask_id: Id of `<mask>`.
    pad_id: Id of the padding, which is never hidden.
    num_masks: 0 for dynamic masking, a new mask in every epoch. n for static
      masking: n masks of each example take turns. BERT's data had 10, seen 4
      times each in 40 epochs.
    mask_prob: Share of the tokens that are hidden.
    keep_prob: Share of the hidden ones that stay as they are.
    random_prob: Share of the hidden ones that become a random token.
    first_random_id: Smallest random token; the first four are specials.
    never: Ids that are never hidden. None in fairseq; the specials in HF.
    word_starts: bool [vocab_size], which tokens begin a word: whole words are
      hidden then. None for single tokens.

  Example:
    >>> scheme = MaskingScheme(50265, 50264, num_masks=10)
  """

  vocab_size: int
  mask_id: int
  pad_id: int = 1
  num_masks: int = 0
  mask_prob: float = 0.15
  keep_prob: float = 0.1
  random_prob: float = 0.1
  first_random_id: int = 4
  never: tuple[int, ...] = ()
  word_starts: Any = dataclasses.field(default=None, compare=False)

  def __post_init__(self):
    for name, low in (('num_masks', 0), ('mask_id', 0), ('pad_id', 0)):
      if getattr(self, name) < low:
        raise ValueError(
          f'{name} is {getattr(self, name)}; expected {low} or more.'
        )
    masking_lib.check_fractions(
      self.mask_prob, self.keep_prob, self.random_prob
    )
    for name in ('mask_id', 'pad_id'):
      if getattr(self, name) >= self.vocab_size:
        raise ValueError(
          f'{name} is {getattr(self, name)} in a vocabulary of'
          f' {self.vocab_size} tokens; expected an id below that.'
        )

  def state(self, key: jax.Array) -> dict[str, Any]:
    """A model state with masks of this run's own.

    It lets one compiled program train runs with other masks, and members of a
    population: key and number of masks are arrays.

    Args:
      key: Typed key of all masks of the run.

    Returns:
      Model state for `make_pretrain_loss`.
    """
    return {
      MASKING: {'key': key, 'num_masks': jnp.asarray(self.num_masks, jnp.int32)}
    }

  def mask(
    self, key: jax.Array, batch: Mapping[str, Any], num_masks: Any = None
  ) -> masking_lib.MaskedBatch:
    """Hides tokens of a batch.

    Args:
      key: Typed key of all masks of a run.
      batch: 'ids' [B, S] int32 padded with `pad_id`, 'example_id' [B] int32,
        'epoch' [B] int32 (0 without it) and 'mask' [B] bool, False for examples
        of which nothing is to be hidden (all True without it).
      num_masks: Instead of the scheme's own; may be traced.

    Returns:
      The batch with hidden tokens, what they were and where.
    """
    ids = batch['ids']
    chex.assert_rank(ids, 2)
    valid = ids != self.pad_id
    if 'mask' in batch:
      valid &= batch['mask'][:, None]
    example = jnp.asarray(batch['example_id'])
    epoch = jnp.asarray(batch.get('epoch', jnp.zeros_like(example)))
    masks = self.num_masks if num_masks is None else num_masks
    masks = jnp.asarray(masks, epoch.dtype)
    epoch = jnp.where(masks > 0, epoch % jnp.maximum(masks, 1), epoch)
    maskable = None
    if self.never:
      maskable = ~jnp.isin(ids, jnp.asarray(self.never, ids.dtype))
    return masking_lib.mask_tokens(
      masking_lib.example_keys(key, epoch, example),
      ids,
      valid,
      vocab_size=self.vocab_size,
      mask_id=self.mask_id,
      mask_prob=self.mask_prob,
      keep_prob=self.keep_prob,
      random_prob=self.random_prob,
      first_random_id=self.first_random_id,
      maskable=maskable,
      word_starts=self.word_starts,
    )


def make_pretrain_loss(
  model: Any,
  scheme: MaskingScheme,
  *,
  seed: int = 0,
  nsp_weight: float = 1.0,
) -> Callable[..., Any]:
  """Makes the loss of pre-training for `training.make_train_step`.

  The batch is masked inside the step. The loss is the mean negative
  log-likelihood of the hidden tokens of the whole batch, wherever they lie; its
  metrics carry their number as `count`, by which accumulated microbatches are
  weighted, so that the gradient is that of the whole batch. For batches of
  pairs `nsp_weight` times the mean cross-entropy of the next-sentence labels is
  added (under accumulation microbatches of it are weighted by hidden tokens,
  too).

  Args:
    model: `RobertaForMaskedLM`, with `nsp=True` for batches that have 'next'.
    scheme: What is hidden.
    seed: Of the masks, where the model state has none of its own (see
      `MaskingScheme.state`).
    nsp_weight: Weight of the next-sentence loss.

  Returns:
    `loss_fn(params, model_state, batch, rng)`. The batch has 'ids' [B, S],
    'example_id' [B], 'epoch' [B] and for pairs 'token_type_ids' [B, S] and
    'next' [B]. Other entries of the model state are the model's mutable
    collections. Metrics: 'accuracy' (of the hidden tokens), 'count', with whole
    words 'overflow' (tokens for which there was no slot, over those hidden),
    for pairs 'mlm_loss', 'nsp_loss' and 'nsp_accuracy'.

  Example:
    >>> loss_fn = make_pretrain_loss(model, scheme)  # doctest: +SKIP
  """

  def loss_fn(params, model_state, batch, rng):
    own = model_state.get(MASKING)
    collections = {k: v for k, v in model_state.items() if k != MASKING}
    key = jax.random.key(seed) if own is None else own['key']
    masked = scheme.mask(key, batch, own and own['num_masks'])
    output, updates = model.apply(
      {'params': params, **collections},
      masked.inputs,
      positions=masked.positions,
      token_type_ids=batch.get('token_type_ids'),
      deterministic=False,
      rngs={'dropout': rng},
      mutable=list(collections),
    )
    loss, metrics = _measure(
      output, masked, batch, nsp_weight, scheme.word_starts is not None
    )
    if own is not None:
      updates = {**updates, MASKING: own}
    return loss, (updates, metrics)

  return loss_fn


def make_held_out_metrics(
  model: Any,
  scheme: MaskingScheme,
  *,
  seed: int = 0,
  nsp_weight: float = 1.0,
) -> Callable[..., Any]:
  """Makes the measurement of held-out text for `training.make_eval_step`.

  Every example has one mask, the same in every evaluation and for every model.

  Args:
    model: As in `make_pretrain_loss`.
    scheme: Of it everything but `num_masks` matters.
    seed: Of the masks.
    nsp_weight: As in `make_pretrain_loss`.

  Returns:
    `metric_fn(params, model_state, batch) -> metrics`, means over 'count'
    hidden tokens: 'loss' and those of `make_pretrain_loss`.
    `training.evaluate` adds up tokens, not batches; `with_perplexity` adds the
    perplexity to its result.
  """

  def metric_fn(params, model_state, batch):
    collections = {k: v for k, v in model_state.items() if k != MASKING}
    batch = {**batch, 'epoch': jnp.full_like(batch['example_id'], _HELD_OUT)}
    masked = scheme.mask(jax.random.key(seed), batch, 0)
    output = model.apply(
      {'params': params, **collections},
      masked.inputs,
      positions=masked.positions,
      token_type_ids=batch.get('token_type_ids'),
      deterministic=True,
    )
    loss, metrics = _measure(
      output, masked, batch, nsp_weight, scheme.word_starts is not None
    )
    return {'loss': loss, **metrics}

  return metric_fn


def with_perplexity(metrics: Mapping[str, Any]) -> dict[str, Any]:
  """Adds exp(mean negative log-likelihood) to what was evaluated.

  Args:
    metrics: Result of `training.evaluate` on `make_held_out_metrics`.

  Returns:
    The same with 'perplexity'.
  """
  nll = np.asarray(metrics.get('mlm_loss', metrics['loss']), np.float64)
  count = np.asarray(metrics['count'], np.float64)
  return {**metrics, 'perplexity': losses.perplexity(nll * count, count)}


def _measure(output, masked, batch, nsp_weight, whole_words):
  """Loss and metrics of a batch."""
  pairs = 'next' in batch
  # A model of pairs can be measured on single sequences, too.
  logits, nsp_logits = output if isinstance(output, tuple) else (output, None)
  total, count = losses.mlm_loss(logits, masked.targets, masked.weights)
  some = jnp.maximum(count, 1)
  hits = (logits.argmax(-1) == masked.targets) * masked.weights
  loss = total / some
  metrics = {'accuracy': hits.sum() / some, 'count': count}
  if whole_words:  # Of which a sequence may have more than there are slots.
    metrics['overflow'] = masked.overflow.sum() / some
  if not pairs:
    return loss, metrics
  real = batch.get('mask', jnp.ones(batch['next'].shape, bool))
  log_probs = jax.nn.log_softmax(nsp_logits.astype(jnp.float32))
  nll = -jnp.take_along_axis(log_probs, batch['next'][:, None], 1)[:, 0]
  right = nsp_logits.argmax(-1) == batch['next']
  number = jnp.maximum(real.sum(), 1)
  nsp = (nll * real).sum() / number
  metrics |= {
    'mlm_loss': loss,
    'nsp_loss': nsp,
    'nsp_accuracy': (right * real).sum() / number,
  }
  return loss + nsp_weight * nsp, metrics


def make_init(
  model: Any,
  scheme: MaskingScheme,
  *,
  own_masks: bool = False,
) -> Callable[[jax.Array], tuple[Any, Any]]:
  """Initial parameters of a model, as `training.create_state` wants them.

  Args:
    model: `RobertaForMaskedLM`.
    scheme: What is hidden.
    own_masks: Whether the model state keeps a key of the run's masks, drawn
      from the key of the run: so that runs of different seeds have different
      masks in one program.

  Returns:
    `init(key) -> (params, model_state)`.
  """

  def init(key):
    ids = jnp.full((1, 2), scheme.mask_id, jnp.int32)
    options = {'positions': jnp.zeros((1, 1), jnp.int32)}
    if model.config.type_vocab_size:
      options['token_type_ids'] = jnp.zeros_like(ids)
    variables = dict(model.init(key, ids, **options))
    params = variables.pop('params')
    if own_masks:
      variables |= scheme.state(jax.random.fold_in(key, _HELD_OUT))
    return params, variables

  return init


def abstract_batch(
  batch_size: int, length: int, *, pairs: bool = False
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a global batch, for `training.Job`.

  Args:
    batch_size: Sequences.
    length: Tokens of a sequence, padding included.
    pairs: Whether the sequences are labelled pairs.

  Returns:
    ShapeDtypeStructs under the names of `make_pretrain_loss`.
  """
  rows = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
  tokens = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
  batch = {'ids': tokens, 'example_id': rows, 'epoch': rows}
  return batch | ({'token_type_ids': tokens, 'next': rows} if pairs else {})
