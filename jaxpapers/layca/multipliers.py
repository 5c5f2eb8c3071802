"""Layer-wise learning rates that depend on depth, and what depth is."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxpapers.layca import trees


def depth_multipliers(layer_order: Sequence[str], alpha: Any) -> dict[str, Any]:
  """Learning-rate factors that fall by a power of depth (paper, section 4.1).

  For layer l of L: `(1 - alpha)^(5 (L - 1 - l) / (L - 1))` if alpha > 0, so
  that the last layer has factor 1, else `(1 + alpha)^(5 l / (L - 1))`, so that
  the first has. The slowest layer has (1 - |alpha|)^5, a single layer 1.

  Args:
    layer_order: paths of the layers, first to last: `layer_order(module, x)`.
    alpha: in (-1, 1); may be traced, for a sweep under vmap. A traced value is
      not checked.

  Returns:
    Path -> factor, for the `multipliers` of `layca`.

  Raises:
    ValueError: alpha is outside of (-1, 1), or the order is empty or has a path
      twice.

  Example:
    >>> depth_multipliers(['a/kernel', 'b/kernel'], 0.5)
    {'a/kernel': 0.03125, 'b/kernel': 1.0}
  """
  order = list(layer_order)
  if not order or len(set(order)) < len(order):
    raise ValueError(
      f'layer_order is {order}; expected at least one path, each once.'
    )
  depth = np.arange(len(order)) / max(len(order) - 1, 1)
  if isinstance(alpha, jax.core.Tracer):
    exponents = jax.numpy.where(alpha > 0, 1 - depth, depth)
    if len(order) == 1:
      exponents = exponents * 0
    values = (1 - jax.numpy.abs(alpha)) ** (5 * exponents)
    return dict(zip(order, values, strict=True))
  alpha = float(alpha)
  if not -1 < alpha < 1:
    raise ValueError(f'alpha is {alpha}; expected a number between -1 and 1.')
  exponents = 1 - depth if alpha > 0 else depth
  if len(order) == 1:
    exponents = np.zeros(1)
  values = (1 - abs(alpha)) ** (5 * exponents)
  return dict(zip(order, values.tolist(), strict=True))


def layer_order(
  module: nn.Module,
  *example_inputs: Any,
  select: Callable[[str, Any], bool] = trees.is_kernel,
  method: Any = None,
  **kwargs: Any,
) -> list[str]:
  """Paths of a network's kernels in the order in which a call uses them.

  The order of first use in the traced program, never that of the tree, where
  'Conv_10' comes before 'Conv_2'. Nothing is computed. Keras sorts the kernels
  of a residual block with the two 3x3 convolutions before the shortcut; a
  module has that order if it computes its shortcut last.

  Args:
    module: Linen module.
    *example_inputs: what it is called with: arrays, ShapeDtypeStructs and
      numbers. Others, such as True or 'mean', stay Python values.
    select: function of (path, shape) choosing parameters.
    method: method of the module instead of `__call__`.
    **kwargs: keyword arguments of the call, such as train=False; they stay
      Python values.

  Returns:
    Paths below 'params', `'Conv_0/kernel'`. Parameters that the call does not
    use are left out.

  Raises:
    TypeError: module is no Linen module.
    ValueError: no selected parameter is used.

  Example:
    >>> layer_order(nn.Sequential([nn.Dense(3), nn.Dense(2)]), np.ones((1, 4)))
    ['layers_0/kernel', 'layers_1/kernel']
  """
  if not isinstance(module, nn.Module):
    raise TypeError(
      f'module is a {type(module).__name__}; expected a flax.linen.Module.'
    )
  rngs = {
    name: jax.random.key(i) for i, name in enumerate(('params', 'dropout'))
  }

  leaves, treedef = jax.tree.flatten(example_inputs)
  traced = [i for i, leaf in enumerate(leaves) if _is_array_like(leaf)]

  def inputs_of(values):
    found = list(leaves)
    for i, value in zip(traced, values, strict=True):
      found[i] = value
    return jax.tree.unflatten(treedef, found)

  def init(*values):
    inputs = inputs_of(values)
    return nn.unbox(module.init(rngs, *inputs, method=method, **kwargs))

  examples = [leaves[i] for i in traced]
  variables = jax.eval_shape(init, *examples)
  params = variables.pop('params', {})

  def call(params, *values):
    return module.apply(
      {'params': params, **variables_like},
      *inputs_of(values),
      rngs=rngs,
      mutable=list(variables_like) or ['intermediates'],
      method=method,
      **kwargs,
    )

  # Other collections are constants: only parameters have an order.
  variables_like = jax.tree.map(
    lambda x: jax.numpy.zeros(x.shape, x.dtype), variables
  )
  closed = jax.make_jaxpr(call)(params, *examples)
  names, shapes, _ = trees.flatten(params)
  inputs = closed.jaxpr.invars[: len(names)]
  used: dict[int, None] = {}
  _visit(closed.jaxpr, dict(zip(inputs, range(len(names)))), used)
  order = [names[i] for i in used if select(names[i], shapes[i])]
  if not order:
    raise ValueError(
      f'select chooses none of the parameters that the call uses,'
      f' {[names[i] for i in used]}.'
    )
  return order


def _is_array_like(leaf):
  """Whether an input is traced; a flag has to stay a Python value."""
  if isinstance(leaf, bool):
    return False
  if isinstance(leaf, (int, float, complex)):
    return True
  return hasattr(leaf, 'shape') and hasattr(leaf, 'dtype')


def _visit(jaxpr, sources, used):
  """Records in `used` which inputs are read, in order.

  Args:
    jaxpr: program.
    sources: variable -> number of the parameter that it is a copy of.
    used: ordered set, filled in.
  """
  for eqn in jaxpr.eqns:
    read = [
      sources.get(v) if not hasattr(v, 'val') else None for v in eqn.invars
    ]
    if all(i is None for i in read):
      continue
    # Casting all parameters before the first layer is no use of them.
    if eqn.primitive.name in ('convert_element_type', 'copy', 'copy_p'):
      sources[eqn.outvars[0]] = read[0]
      continue
    for inner in _inner_jaxprs(eqn):
      skipped = len(read) - len(inner.invars)
      if skipped < 0:
        break
      # A branch gets the operands without the predicate before them.
      pairs = zip(inner.invars, read[skipped:], strict=True)
      _visit(inner, {v: i for v, i in pairs if i is not None}, used)
    else:
      if _inner_jaxprs(eqn):
        continue
    used.update((i, None) for i in read if i is not None)


def _inner_jaxprs(eqn):
  found = []
  for value in eqn.params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      jaxpr = getattr(item, 'jaxpr', item)
      if hasattr(jaxpr, 'eqns'):
        found.append(jaxpr)
  return found
