"""What the transformer encoder refuses to take."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.nn.encoder_config import EncoderConfig


def check_inputs(
  config: EncoderConfig,
  ids: Any,
  token_type_ids: Any = None,
  position_ids: Any = None,
  attention_mask: Any = None,
) -> None:
  """Refuses inputs that the encoder cannot take.

  Types and shapes always; values only where there are some, not under `jit`.

  Args:
    config: The encoder's.
    ids: See `TransformerEncoder`, as the others.
    token_type_ids: Or None.
    position_ids: Or None.
    attention_mask: Or None.

  Raises:
    ValueError: If a shape or a value is impossible.
    TypeError: If a type is.
  """
  for name, value in (
    ('ids', ids),
    ('token_type_ids', token_type_ids),
    ('position_ids', position_ids),
    ('attention_mask', attention_mask),
  ):
    if value is not None and not hasattr(value, 'dtype'):
      raise TypeError(
        f'{name} is a {type(value).__name__}; expected an array'
        ' [batch, length].'
      )
  if jnp.ndim(ids) != 2 or 0 in jnp.shape(ids):
    raise ValueError(
      f'ids has shape {jnp.shape(ids)}; expected [batch, length] of at least'
      ' one token.'
    )
  length = jnp.shape(ids)[1]
  if length > config.max_len:
    raise ValueError(
      f'ids has {length} tokens per row; max_len is {config.max_len}. Cut the'
      ' sequences, or use a model with more positions.'
    )
  bounds = (
    ('ids', ids, config.vocab_size),
    ('token_type_ids', token_type_ids, max(config.type_vocab_size, 1)),
    ('position_ids', position_ids, config.position_rows),
  )
  for name, value, limit in bounds:
    if value is None:
      continue
    if not jnp.issubdtype(value.dtype, jnp.integer):
      raise TypeError(f'{name} is {value.dtype}; expected integers.')
    _check_shape(name, value, ids)
    check_range(name, value, limit)
  if attention_mask is not None:
    if attention_mask.dtype != bool:
      raise TypeError(
        f'attention_mask is {attention_mask.dtype}; expected bool, True for'
        ' tokens that may be looked at.'
      )
    _check_shape('attention_mask', attention_mask, ids)


def _check_shape(name: str, value: Any, ids: Any) -> None:
  if jnp.shape(value) != jnp.shape(ids):
    raise ValueError(
      f'{name} has shape {jnp.shape(value)}; expected that of ids,'
      f' {jnp.shape(ids)}.'
    )


def check_range(name: str, value: Any, limit: int) -> None:
  """Refuses integers that are negative or not below a limit.

  Args:
    name: Name of the argument, for the message.
    value: Integers of any shape. Nothing is checked under `jit`.
    limit: Smallest integer that is too large.

  Raises:
    ValueError: If one is out of range.
  """
  if isinstance(value, jax.core.Tracer) or not np.size(value):
    return
  value = np.asarray(value)
  low, high = int(value.min()), int(value.max())
  if low < 0 or high >= limit:
    raise ValueError(
      f'{name} has values from {low} to {high}; expected 0 to {limit - 1}.'
    )


def check_adapter_inputs(
  config: EncoderConfig,
  places: Sequence[str],
  adapter: Any,
  inputs: Any,
) -> None:
  """Refuses inputs of adapters that are not there or lack leading axes.

  Args:
    config: The encoder's.
    places: Where a layer has adapters.
    adapter: Factory of the adapters, or None.
    inputs: Their keyword arguments, or None.

  Raises:
    ValueError: If there are inputs without adapters, or of another shape.
  """
  if not inputs:
    return
  if adapter is None:
    raise ValueError(
      f'adapter_inputs has {sorted(inputs)}, but the encoder has no adapter.'
    )
  wanted = (config.num_layers, len(places))
  for path, leaf in jax.tree_util.tree_leaves_with_path(inputs):
    if jnp.shape(leaf)[:2] != wanted:
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      raise ValueError(
        f'adapter_inputs[{name!r}] has shape {jnp.shape(leaf)}; expected'
        f' leading axes {wanted}: layers, and the places {tuple(places)}.'
      )
