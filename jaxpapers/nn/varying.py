"""Arrays inside `shard_map` that vary over the same devices."""

import jax


def vary_alike(*arrays: jax.Array) -> tuple[jax.Array, ...]:
  """Lets arrays vary over the mesh axes over which any of them does.

  Inside `shard_map`, JAX keeps track of the axes over which an array may differ
  between devices. Operations on several arrays see to it themselves; a
  `jax.custom_vjp` does not, and its gradients have to vary as its arguments.
  The gradient of this function sums over the axes that it added.

  Args:
    *arrays: Any number.

  Returns:
    The same arrays; outside of `shard_map` they are returned as they are.
  """
  axes = [_varying(x) for x in arrays]
  union = frozenset().union(*axes)
  return tuple(
    jax.lax.pcast(x, tuple(sorted(union - own)), to='varying')
    if union - own
    else x
    for x, own in zip(arrays, axes, strict=True)
  )


def _varying(x) -> frozenset:
  kind = jax.typeof(x)
  if hasattr(kind, 'manual_axis_type'):
    return kind.manual_axis_type.varying
  return getattr(kind, 'vma', frozenset())  # Its name before JAX 0.10.
