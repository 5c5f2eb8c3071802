"""Multiply-adds of any JAX function, counted in the program that is traced.

An independent check of `counts`, and a counter for networks that have none.
"""

import math
from collections.abc import Callable
from typing import Any

import jax


def traced_macs(function: Callable[..., Any], *args: Any) -> int:
  """Counts multiply-adds of convolutions and matrix products.

  Padding counts as pixels do, elementwise work does not: as in the paper's
  table. Depthwise convolutions have to be written as such: config
  `depthwise_impl='lax'`.

  Args:
    function: Any function that JAX traces.
    *args: Its arguments, or ShapeDtypeStructs in their place. Nothing is
      computed.

  Returns:
    The number. Bodies of `scan` count once per step; of the branches of `cond`
    the most expensive.

  Raises:
    ValueError: If the program has a `while` loop that does any, since nobody
      knows how often.

  Example:
    >>> import jax.numpy as jnp
    >>> traced_macs(jnp.matmul, jnp.ones((2, 3)), jnp.ones((3, 4)))
    24
  """
  return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr) -> int:
  total = 0
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    if name == 'dot_general':
      (contracted, _), _ = params['dimension_numbers']
      shape = equation.invars[0].aval.shape
      terms = math.prod(shape[axis] for axis in contracted)
      total += terms * equation.outvars[0].aval.size
    elif name == 'conv_general_dilated':
      kernel = equation.invars[1].aval.shape
      outputs = kernel[params['dimension_numbers'].rhs_spec[0]]
      terms = math.prod(kernel) // outputs
      total += terms * equation.outvars[0].aval.size
    elif name == 'cond':
      total += max(map(_count, map(_jaxpr, params['branches'])))
    elif name == 'while':
      if any(_count(_jaxpr(params[k])) for k in ('cond_jaxpr', 'body_jaxpr')):
        raise ValueError(
          'function has a while loop with products in it; how often it runs is'
          ' not known before. Use lax.scan or a Python loop.'
        )
    else:
      inner = sum(_count(_jaxpr(x)) for x in _inner(params))
      total += inner * (params['length'] if name == 'scan' else 1)
  return total


def _inner(params):
  """Programs among the parameters of an operation, each once."""
  found = [
    value
    for value in params.values()
    if hasattr(value, 'eqns') or hasattr(value, 'jaxpr')
  ]
  return found[:1]  # What follows is another form of the first.


def _jaxpr(program):
  return getattr(program, 'jaxpr', program)  # Closed ones hold the program.
