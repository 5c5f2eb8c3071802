"""Fully sharded data parallelism whose activations stay split by examples.

With parameters spread over the axis that also splits the batch, a compiler may
as well split the activations' features over that axis and send those around in
every layer: correct, but hundreds of times as much to send. So parameters are
gathered before they are used, and their gradients go back to where they lie.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxpapers.training import sharding as sharding_lib


def gather_parameters(
  loss_fn: Callable[..., Any],
  mesh: jax.sharding.Mesh,
  rules: sharding_lib.Rules,
  *,
  axis: str = 'fsdp',
) -> Callable[..., Any]:
  """Makes a loss whose parameters are gathered over an axis before use.

  What `training.make_train_step` casts to a narrower type is sent in that type.
  Splits over other axes, as of tensor parallelism, stay.

  Args:
    loss_fn: As for `training.make_train_step`.
    mesh: The mesh.
    rules: How the state lies on it.
    axis: The mesh axis over which parameters are spread.

  Returns:
    A loss function with the same values and gradients.

  Example:
    >>> loss_fn = gather_parameters(
    ...   lambda params, state, batch, rng: ((params**2).sum(), (state, {})),
    ...   sharding_lib.make_mesh('fsdp:1'), [('', PartitionSpec('fsdp'))],
    ... )
    >>> float(loss_fn(jax.numpy.ones(2), {}, {}, None)[0])
    2.0
  """
  if mesh.shape.get(axis, 1) == 1:
    return loss_fn

  def gathered(params, *arguments):
    spread = sharding_lib.shard_rules({'params': params}, rules, mesh)['params']
    whole = jax.tree.map(lambda s: _without(s, axis), spread)
    return loss_fn(_gather(params, spread, whole), *arguments)

  return gathered


def _gather(params, spread, whole):
  """Parameters as `whole` says, with gradients as `spread` says."""

  @jax.custom_vjp
  def gather(params):
    return jax.lax.with_sharding_constraint(params, whole)

  gather.defvjp(
    lambda params: (gather(params), None),
    lambda _, gradients: (jax.lax.with_sharding_constraint(gradients, spread),),
  )
  return gather(params)


def _without(sharding: NamedSharding, axis: str) -> NamedSharding:
  """A sharding that does not use an axis."""
  entries = []
  for entry in sharding.spec:
    names = entry if isinstance(entry, tuple) else (entry,)
    names = tuple(name for name in names if name not in (None, axis))
    entries.append(names[0] if len(names) == 1 else names or None)
  return NamedSharding(sharding.mesh, PartitionSpec(*entries))
