"""Pre-trained parameters, and new ones for what a model has besides."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from jaxpapers.adapters import trees


def init_adapters(
  key: jax.Array,
  model: nn.Module,
  base_params: Mapping[str, Any],
  *inputs: Any,
  **options: Any,
) -> dict[str, Any]:
  """Parameters of a model: those of a base, and new adapters and head.

  What the model has and the base does not is initialised, and only that is
  computed. What only the base has (a masked-LM head, say) is left out.

  Args:
    key: Typed key.
    model: Module with adapters, and a head.
    base_params: Pre-trained parameters. They are not copied.
    *inputs: Inputs of the model, for their shapes.
    **options: Keyword arguments of the model.

  Returns:
    Parameters of the model.

  Raises:
    ValueError: If an array of the base has another shape than in the model, or
      model and base have nothing in common.

  Example:
    >>> import jax.numpy as jnp
    >>> x = jnp.ones((2, 3))
    >>> base = nn.Dense(4).init(jax.random.key(0), x)['params']
    >>> sorted(init_adapters(jax.random.key(1), nn.Dense(4), base, x))
    ['bias', 'kernel']
  """

  def init(key):
    return model.init(key, *inputs, **options)['params']

  wanted = trees.flatten(jax.eval_shape(init, key))
  base = trees.flatten(base_params)
  for path, leaf in wanted.items():
    if path in base and trees.shape_of(base[path]) != leaf.shape:
      raise ValueError(
        f'{path} has shape {trees.shape_of(base[path])} in base_params and'
        f' {leaf.shape} in the model. Give the model the sizes that the base'
        ' was trained with.'
      )
  missing = [path for path in wanted if path not in base]
  if len(missing) == len(wanted):
    raise ValueError(
      f'model and base_params have no path in common: {next(iter(wanted))!r} is'
      f' the first of the model, {next(iter(base), None)!r} that of the base.'
    )

  @jax.jit
  def make(key):
    flat = trees.flatten(init(key))
    return {path: flat[path] for path in missing}

  new = make(key)
  return trees.unflatten(
    {path: new[path] if path in new else base[path] for path in wanted}
  )
