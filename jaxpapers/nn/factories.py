"""Whether factories of layers make the same module for every layer."""

import dataclasses

import flax.linen as nn

from jaxpapers.nn.encoder_config import EncoderConfig

# Hyperparameters of these types can be compared; functions are made anew with
# every call of a factory.
_PLAIN = (bool, int, float, str, bytes, type(None), tuple, frozenset, type)


def check_homogeneous(config: EncoderConfig, ffn, adapter, after) -> None:
  """Refuses factories that scanned layers cannot follow.

  Args:
    config: The encoder's.
    ffn: Factory or None; see `EncoderLayer`.
    adapter: Factory or None.
    after: Factory or None.

  Raises:
    ValueError: If a factory makes modules of another type, or with other
      numbers, for another layer.
  """
  calls = {
    'ffn': ffn and (lambda i: ffn(config, i, 'ffn')),
    'after': after and (lambda i: after(config, i, 'after')),
    **{
      f'adapter ({place})': adapter
      and (lambda i, p=place: adapter(config, i, p, f'{p}_adapter'))
      for place in ('attention', 'ffn')
    },
  }
  for name, call in calls.items():
    if not call:
      continue
    first = _describe(call, None)
    for i in range(config.num_layers):
      if _describe(call, i) != first:
        raise ValueError(
          f'the factory {name} makes {_describe(call, i)} for layer {i} and'
          f' {first} for layer None. With scan_layers=True all layers are one'
          ' module, and the factory is asked for layer None: make them alike,'
          ' or set scan_layers=False.'
        )


class _Scratch(nn.Module):
  """A parent for modules that are only looked at."""

  make: object

  @nn.compact
  def __call__(self):
    return _fields(self.make())


def _describe(call, index):
  """Type and plain hyperparameters of what a factory makes."""
  return _Scratch(lambda: call(index), parent=None).apply({})


def _fields(module):
  if module is None:
    return None
  fields = {
    field.name: getattr(module, field.name)
    for field in dataclasses.fields(module)
    if field.name not in ('parent', 'name')
  }
  plain = {k: v for k, v in fields.items() if isinstance(v, _PLAIN)}
  return type(module).__name__, plain
