"""What BERT has that RoBERTa has not: segments, a pooler, other separators."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers import roberta
from jaxpapers.nn import EncoderConfig
from jaxpapers.roberta import squad


def is_bert(encoder: EncoderConfig) -> bool:
  """Whether a model is BERT's kind: positions from 0, two segments."""
  return encoder.position_offset == 0 and encoder.type_vocab_size == 2


def with_pooler(
  params: dict[str, Any], encoder: EncoderConfig
) -> dict[str, Any]:
  """The pre-trained pooler as the dense layer of the head.

  Args:
    params: Of the model, with 'pooler' if it has one.
    encoder: Its shape.

  Returns:
    Parameters in which BERT's pooler is 'classifier/dense'. RoBERTa's is left
    out: where a file has one, nobody has trained it.
  """
  params = dict(params)
  pooler = params.pop('pooler', None)
  if pooler is not None and is_bert(encoder):
    params['classifier'] = {'dense': pooler['dense']}
  return params


def segments(ids: jax.Array, sep_id: int, pad_id: int) -> jax.Array:
  """Segment of each token: 1 after the first [SEP], 0 at padding.

  Args:
    ids: Token ids, integers `[B, S]`.
    sep_id: Of [SEP].
    pad_id: Of [PAD].

  Returns:
    int32 `[B, S]`.
  """
  is_sep = (ids == sep_id).astype(jnp.int32)
  before = jnp.cumsum(is_sep, axis=-1) - is_sep
  return ((before > 0) & (ids != pad_id)).astype(jnp.int32)


class BertForSequenceClassification(roberta.RobertaForSequenceClassification):
  """The classifier that makes BERT's segments out of the ids.

  Attributes:
    sep_id: Of [SEP].
  """

  sep_id: int = 102

  def __call__(self, ids: jax.Array, **options: Any) -> jax.Array:
    """As RoBERTa's."""
    options['token_type_ids'] = segments(ids, self.sep_id, self.config.pad_id)
    return super().__call__(ids, **options)


class BertForQuestionAnswering(roberta.RobertaForQuestionAnswering):
  """The same for SQuAD.

  Attributes:
    sep_id: Of [SEP].
  """

  sep_id: int = 102

  def __call__(self, ids: jax.Array, **options: Any) -> Any:
    """As RoBERTa's."""
    options['token_type_ids'] = segments(ids, self.sep_id, self.config.pad_id)
    return super().__call__(ids, **options)


def with_one_separator(features: squad.SquadFeatures) -> squad.SquadFeatures:
  """Windows with one separator before the passage, where RoBERTa has two.

  Args:
    features: Of `squad.squad_features`.

  Returns:
    The same, a token shorter each.
  """
  ids = [
    row[: first - 1] + row[first:]
    for row, first in zip(features.ids, features.first)
  ]
  fields = {
    name: values - (features.fields['start'] > 0)
    if name in ('start', 'end')
    else values
    for name, values in features.fields.items()
  }
  return dataclasses.replace(
    features,
    ids=ids,
    first=features.first - 1,
    fields={n: np.asarray(v, np.int32) for n, v in fields.items()},
  )
