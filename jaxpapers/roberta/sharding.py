"""How the encoder's parameters lie on a mesh: data, FSDP, tensor parallel."""

from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh, PartitionSpec

from jaxpapers.training import fsdp as spread

KINDS = ('data', 'fsdp', 'tensor', 'fsdp+tensor')

# Pattern -> which dimension, counted from the last, is split by FSDP, and which
# by tensor parallelism. Counted from the last because scanned layers have an
# axis in front. Tensor parallelism splits heads, the inside of the feed-forward
# layer, and the vocabulary; FSDP another dimension.
_DIMENSIONS: tuple[tuple[str, int | None, int | None], ...] = (
  (r'token_embedding/embedding', -1, -2),
  (r'lm_head/decoder', -1, -2),
  (r'lm_head/bias', None, -1),
  (r'position_embedding/embedding', -1, None),
  (r'attention/(query|key|value)/kernel', -3, -2),
  (r'attention/(query|key|value)/bias', None, -2),
  (r'attention/output/kernel', -1, -3),
  (r'ffn/intermediate/kernel', -2, -1),
  (r'ffn/intermediate/bias', None, -1),
  (r'ffn/output/kernel', -1, -2),
  (r'(lm_head|classifier|pooler|nsp|answerable)/dense/kernel', -2, None),
)


def encoder_rules(
  kind: str = 'data', *, fsdp_axis: str = 'fsdp', tensor_axis: str = 'model'
) -> list[tuple[str, Callable[..., PartitionSpec]]]:
  """Rules for `training.shard_rules`, with layers scanned or not.

  Axes that a mesh does not have count as absent, and dimensions that cannot be
  divided evenly stay whole under FSDP. Small arrays (norms, most biases) are on
  every device. The batch lies on the axes 'data' and 'fsdp' in any case.

  Args:
    kind: 'data' (everything on every device), 'fsdp' (parameters and optimizer
      state spread over the axis that shares the batch), 'tensor' (heads,
      feed-forward and vocabulary split) or 'fsdp+tensor'.
    fsdp_axis: Mesh axis of FSDP; 'data' spreads the state of plain data
      parallelism.
    tensor_axis: Mesh axis of tensor parallelism.

  Returns:
    Pairs of a regular expression and a function of path, shape and mesh.

  Raises:
    ValueError: If the kind is unknown; later, if tensor parallelism cannot
      divide heads, `mlp_dim` or vocabulary evenly.

  Example:
    >>> rules = encoder_rules('fsdp+tensor')
  """
  if kind not in KINDS:
    raise ValueError(f'kind is {kind!r}; expected one of {KINDS}.')
  fsdp = fsdp_axis if 'fsdp' in kind else None
  tensor = tensor_axis if 'tensor' in kind else None
  if fsdp is None and tensor is None:
    return []
  rules = [
    (pattern, _splitter(fsdp, tensor, fsdp_dim, tensor_dim))
    for pattern, fsdp_dim, tensor_dim in _DIMENSIONS
  ]
  if fsdp is not None:
    # Layers that others plugged in, where they are large.
    rules.append(('.*', spread(fsdp)))
  return rules


def _splitter(fsdp, tensor, fsdp_dim, tensor_dim):
  """Function from a leaf to its PartitionSpec."""

  def spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    entries: list[Any] = [None] * len(shape)
    for axis, dim in ((tensor, tensor_dim), (fsdp, fsdp_dim)):
      # Statistics of optimizers may have fewer dimensions.
      if axis is None or dim is None or -dim > len(shape):
        continue
      size = mesh.shape.get(axis, 1)
      if shape[dim] == 1:
        continue  # A scale that is the same along this dimension.
      if shape[dim] % size == 0:
        entries[dim] = axis
      elif axis == tensor and not path.startswith('opt_state'):
        hint = 'heads and mlp_dim have to be multiples of it'
        if 'token_embedding' in path or 'lm_head' in path:
          hint = f'give the config vocab_multiple={size}'
        raise ValueError(
          f'{path} has shape {shape}: {shape[dim]} cannot be split over axis'
          f' {axis!r} of size {size}; {hint}.'
        )
    return PartitionSpec(*entries)

  return spec
