"""What a masked language model puts in the place of <mask>."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxpapers import training
from jaxpapers.roberta import finetune_data
from jaxpapers.roberta.bpe import ByteLevelBPE

_MASK = '<mask>'
_JOINED = re.compile(r'(?<=\S)<mask>')


@dataclasses.dataclass(frozen=True)
class Filling:
  """One candidate for a mask.

  Attributes:
    probability: Of this token, among all.
    token: Its text, with the space that may be part of it.
    text: The whole text with it; other masks stay.
  """

  probability: float
  token: str
  text: str


class MaskFiller:
  """A model, compiled for a few lengths, that fills masks.

  Example:
    >>> config, params = load_pretrained('roberta-base')  # doctest: +SKIP
    >>> bpe = ByteLevelBPE.from_directory('roberta-base')  # doctest: +SKIP
    >>> fill = MaskFiller(RobertaForMaskedLM(config), params, bpe)
    ... # doctest: +SKIP
    >>> fill(['The capital of France is <mask>.'])  # doctest: +SKIP
  """

  def __init__(
    self,
    model: Any,
    params: Any,
    bpe: ByteLevelBPE,
    *,
    mesh: jax.sharding.Mesh | None = None,
    lengths: Sequence[int] = finetune_data.LENGTHS,
  ):
    """Prepares the model.

    Args:
      model: A `RobertaForMaskedLM`.
      params: Its parameters, the head's too.
      bpe: The tokenizer.
      mesh: Where parameters lie; None for the default device.
      lengths: As for `finetune_data.TokenBatches`.

    Raises:
      ValueError: If there is no head, or the vocabularies differ.
    """
    if 'lm_head' not in params:
      raise ValueError(
        'params have no lm_head: the model was saved without the head that'
        ' predicts tokens. Only pre-trained models have it.'
      )
    if bpe.vocab_size != model.config.vocab_size:
      raise ValueError(
        f'the tokenizer has {bpe.vocab_size} ids, the model'
        f' {model.config.vocab_size}. Are both of one model?'
      )
    self._bpe, self._params, self._mesh = bpe, params, mesh
    self._config, self._lengths = model.config, lengths

    def predict(params, ids, positions, top_k):
      logits = model.apply({'params': params}, ids, positions=positions)
      probs, tokens = jax.lax.top_k(jax.nn.softmax(logits), top_k)
      if mesh is not None:
        spec = jax.sharding.PartitionSpec()
        probs, tokens = jax.lax.with_sharding_constraint(
          (probs, tokens), jax.sharding.NamedSharding(mesh, spec)
        )
      return probs, tokens

    self._predict = jax.jit(predict, static_argnums=3)

  def __call__(
    self, texts: Sequence[str], *, top_k: int = 5, batch_size: int = 32
  ) -> list[list[list[Filling]]]:
    """Fills the masks of texts.

    Args:
      texts: Each with one `<mask>` or more. It takes the place of a word and
        the space before it, as in fairseq.
      top_k: Candidates for each mask.
      batch_size: Texts that go through the model together.

    Returns:
      For each text, for each of its masks, the candidates, the likeliest first.

    Raises:
      ValueError: If a text has no mask or is too long; says which.
    """
    if not 1 <= top_k <= self._config.vocab_size:
      raise ValueError(
        f'top_k is {top_k}; expected 1 to {self._config.vocab_size}, the size'
        ' of the vocabulary.'
      )
    encoded = [self._encode(number, text) for number, text in enumerate(texts)]
    masks = [np.flatnonzero(ids == self._bpe.mask_id) for ids in encoded]
    # Few numbers of masks, as of lengths: each one compiles.
    slots = finetune_data.fitting_length(
      max(map(len, masks), default=1), (1, 4, 16)
    )
    positions = np.zeros((len(texts), slots), np.int32)
    for row, places in zip(positions, masks):
      row[: len(places)] = places
    found = [None] * len(texts)
    if not texts:
      return found
    examples = finetune_data.TokenExamples(
      encoded, {'positions': positions}, self._bpe.pad_id
    )
    limit = self._config.max_len
    lengths = [n for n in self._lengths if n < limit] + [limit]
    for indices, batch in finetune_data.ordered_batches(
      examples, batch_size, lengths=lengths
    ):
      batch = training.put_batch(batch, self._mesh)
      probs, tokens = jax.device_get(
        self._predict(self._params, batch['ids'], batch['positions'], top_k)
      )
      for row, index in enumerate(indices):
        found[index] = [
          [
            self._filling(encoded[index], place, token, probability)
            for token, probability in zip(tokens[row, i], probs[row, i])
          ]
          for i, place in enumerate(masks[index])
        ]
    return found

  def _encode(self, number, text):
    if _MASK not in text:
      raise ValueError(f'text {number + 1} has no {_MASK}: {text[:60]!r}.')
    ids = np.array(self._bpe.encode_masked(text.strip()), np.int32)
    if len(ids) > self._config.max_len:
      raise ValueError(
        f'text {number + 1} has {len(ids)} tokens; the model takes'
        f' {self._config.max_len}.'
      )
    return ids

  def _filling(self, ids, place, token, probability):
    filled = ids.copy()
    filled[place] = token
    # The separators at both ends are no part of the text.
    text = self._bpe.decode(filled[1:-1], keep_specials=True)
    # The space before another mask was part of it.
    text = _JOINED.sub(f' {_MASK}', text)
    name = self._bpe.decode([token], keep_specials=True)
    return Filling(float(probability), name, text)
