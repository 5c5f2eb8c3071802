"""What a model can do without: adapters removed, span by span (section 3.6)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def span_gates(num_layers: int) -> tuple[np.ndarray, np.ndarray]:
  """Gates that remove the adapters of every span of layers.

  Args:
    num_layers: Layers L.

  Returns:
    First and last layer of each span i <= j, `[L (L + 1) / 2, 2]`, and gates
    `[L (L + 1) / 2, L]`, 0 from layer i to j and 1 elsewhere.

  Example:
    >>> span_gates(2)[1].tolist()
    [[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
  """
  if num_layers < 1:
    raise ValueError(f'num_layers is {num_layers}; expected 1 or more.')
  first, last = np.triu_indices(num_layers)
  layers = np.arange(num_layers)
  inside = (first[:, None] <= layers) & (layers <= last[:, None])
  return np.stack([first, last], 1), 1.0 - inside.astype(np.float32)


def ablate_spans(
  function: Callable[[jax.Array], Any],
  num_layers: int,
  *,
  sites: int = 2,
  batch_size: int | None = None,
) -> Any:
  """Runs a model once without the adapters of each span of layers.

  Nothing is trained again; trained layer norms and head stay. One vmap over
  gates: all L (L + 1) / 2 models are one program.

  Args:
    function: Maps gates `[L, sites]` to what is to be looked at, an array or a
      tree of them, such as an accuracy or logits. For our encoder the gates are
      `adapter_inputs={'gate': gates}`.
    num_layers: Layers L.
    sites: Adapters in a layer.
    batch_size: How many spans run at once; by default all.

  Returns:
    A tree like that of `function`, leaves `[L, L, ...]`: entry [i, j] is
    without the adapters of layers i to j, NaN (or 0 of integers) for i > j.
    [0, L - 1] is without any.

  Raises:
    ValueError: If a number is below 1.

  Example:
    >>> table = ablate_spans(lambda gates: gates[:, 0].sum(), 3)
    >>> table[0].tolist()
    [2.0, 1.0, 0.0]
  """
  for name, value in (('sites', sites), ('batch_size', batch_size or 1)):
    if value < 1:
      raise ValueError(f'{name} is {value}; expected 1 or more.')
  spans, gates = span_gates(num_layers)
  gates = jnp.asarray(np.repeat(gates[:, :, None], sites, axis=2))
  if batch_size is None:
    values = jax.vmap(function)(gates)
  else:
    values = jax.lax.map(function, gates, batch_size=batch_size)

  def table(leaf):
    inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
    empty = jnp.full(
      (num_layers, num_layers, *leaf.shape[1:]),
      jnp.nan if inexact else 0,
      leaf.dtype,
    )
    return empty.at[spans[:, 0], spans[:, 1]].set(leaf)

  return jax.tree.map(table, values)
