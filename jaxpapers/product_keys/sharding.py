"""Value tables spread over the devices of a mesh axis.

Ids, weights and sums travel, rows never do: what a token costs does not grow
with the table.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpapers import training
from jaxpapers.product_keys.bag import embedding_bag, embedding_dot
from jaxpapers.product_keys.layout import (
  KINDS,
  Axis,
  TableLayout,
  axis_names,
  table_spec,
)
from jaxpapers.product_keys.weighting import check_choice

__all__ = [
  'ShardedBag',
  'make_sharded_bag',
  'shard_value_table',
  'sharded_embedding_bag',
  'sharded_embedding_dot',
  'table_layouts',
]


def shard_value_table(
  values: jax.Array, mesh: Mesh, axis: Axis = 'mem', kind: str = 'row'
) -> jax.Array:
  """Puts a table onto a mesh.

  Args:
    values: `[N, D]`.
    mesh: The mesh.
    axis: Its axis, or axes, for the table; the table is copied along the
      others.
    kind: 'row' or 'column'.

  Returns:
    The same numbers, sharded.

  Raises:
    ValueError: If the axis is not there, or does not divide the table.

  Example:
    >>> mesh = jax.make_mesh((1,), ('mem',))
    >>> shard_value_table(jnp.ones((4, 2)), mesh).sharding.spec
    PartitionSpec('mem', None)
  """
  _check(values, mesh, axis, kind)
  return jax.device_put(values, NamedSharding(mesh, table_spec(kind, axis)))


def table_layouts(
  tables: Mapping[str, Any], rules: training.sharding.Rules, mesh: Mesh
) -> Any:
  """How every table of the collection 'memory' lies on a mesh.

  Args:
    tables: The collection: arrays, tracers or ShapeDtypeStructs.
    rules: Rules of the training state, see `training.shard_rules`.
    mesh: The mesh.

  Returns:
    A `TableLayout` for each table, for `sparse_value_grads`.

  Raises:
    ValueError: If a rule does not fit, or splits rows and columns at once.

  Example:
    >>> mesh = training.make_mesh('mem:-1')
    >>> rules = [('memory/.*values', PartitionSpec(None, 'mem'))]
    >>> tables = {'values': jnp.ones((4, 2))}
    >>> table_layouts(tables, rules, mesh)['values'].kind
    'column'
  """
  placed = training.shard_rules({'params': {'memory': tables}}, rules, mesh)
  return jax.tree.map(TableLayout.of, placed['params']['memory'])


def sharded_embedding_bag(
  values: jax.Array,
  ids: jax.Array,
  weights: jax.Array,
  *,
  mesh: Mesh,
  axis: Axis = 'mem',
  kind: str = 'row',
  batch_axes: Sequence[str] = ('data', 'fsdp'),
  impl: str = 'auto',
) -> jax.Array:
  """`embedding_bag` of a table that is spread over a mesh axis.

  Tokens are spread over all axes. Along `axis`, devices gather each other's ids
  and weights, sum what they hold, and send the sums back: by a reduction where
  rows are split, by an exchange where columns are. Gradients take the same way
  back, each device making its own part of the table's.

  Args:
    values: `[N, D]`.
    ids: `[T, R]`.
    weights: `[T, R]`.
    mesh: The mesh, with Auto axes.
    axis: Axis of the table, or axes. It may be one of the batch's: each device
      then has a part of the table and a part of the batch. () where every
      device has the whole table.
    kind: 'row' or 'column'.
    batch_axes: Axes over which tokens are spread besides; those that the mesh
      does not have count as absent.
    impl: See `embedding_bag`.

  Returns:
    `[T, D]`, tokens spread over all of these axes.

  Raises:
    ValueError: If the table cannot be divided, or arguments do not fit.

  Example:
    >>> mesh = jax.make_mesh(
    ...   (1,), ('mem',), axis_types=(jax.sharding.AxisType.Auto,)
    ... )
    >>> values, ids = jnp.eye(2), jnp.array([[0, 1]])
    >>> sharded_embedding_bag(values, ids, jnp.ones((1, 2)), mesh=mesh).tolist()
    [[1.0, 1.0]]
  """
  _check(values, mesh, axis, kind)
  if ids.ndim != 2 or ids.shape != weights.shape:
    raise ValueError(
      f'ids has shape {ids.shape} and weights {weights.shape}; expected the'
      ' same [T, R].'
    )
  axes = axis_names(axis)

  def local(values, ids, weights):
    ids, weights = _gather(ids, axes), _gather(weights, axes)
    ids = _own(ids, values, axes, kind)
    y = embedding_bag(values, ids, weights, impl=impl)
    if kind == 'row':
      return _reduce(y, axes)
    return _exchange(y, axes, 0, 1)

  return _spread(
    local,
    mesh,
    (*batch_axes, *axes),
    (table_spec(kind, axis), None, None),
    (values, ids, weights),
    (None, values.shape[0], 0),
  )


def sharded_embedding_dot(
  values: jax.Array,
  ids: jax.Array,
  x: jax.Array,
  *,
  mesh: Mesh,
  axis: Axis = 'mem',
  kind: str = 'row',
  batch_axes: Sequence[str] = ('data', 'fsdp'),
  impl: str = 'auto',
) -> jax.Array:
  """`embedding_dot` of a table that is spread over a mesh axis.

  Vectors take the way of `sharded_embedding_bag` in the other direction.

  Args:
    values: `[N, D]`.
    ids: `[T, R]`.
    x: `[T, D]`.
    mesh: The mesh, with Auto axes.
    axis: See `sharded_embedding_bag`.
    kind: 'row' or 'column'.
    batch_axes: See `sharded_embedding_bag`.
    impl: See `embedding_bag`.

  Returns:
    `[T, R]`, tokens spread over all of these axes.

  Raises:
    ValueError: If the table cannot be divided, or arguments do not fit.

  Example:
    >>> mesh = jax.make_mesh(
    ...   (1,), ('mem',), axis_types=(jax.sharding.AxisType.Auto,)
    ... )
    >>> values, ids = jnp.eye(2), jnp.array([[0, 1]])
    >>> x = jnp.array([[3.0, 5.0]])
    >>> sharded_embedding_dot(values, ids, x, mesh=mesh).tolist()
    [[3.0, 5.0]]
  """
  _check(values, mesh, axis, kind)
  if ids.ndim != 2 or x.shape != (ids.shape[0], values.shape[1]):
    raise ValueError(
      f'ids has shape {ids.shape} and x {x.shape}; expected [T, R] and'
      f' [T, {values.shape[1]}], the width of values.'
    )
  axes = axis_names(axis)

  def local(values, ids, x):
    ids = _own(_gather(ids, axes), values, axes, kind)
    if kind == 'row':
      x = _gather(x, axes)
    else:
      x = _exchange(x, axes, 1, 0)
    return _reduce(embedding_dot(values, ids, x, impl=impl), axes)

  return _spread(
    local,
    mesh,
    (*batch_axes, *axes),
    (table_spec(kind, axis), None, None),
    (values, ids, x),
    (None, values.shape[0], 0),
  )


@dataclasses.dataclass(frozen=True)
class ShardedBag:
  """What a memory layer needs whose table is spread over a mesh.

  Attributes:
    mesh: The mesh.
    axis: See `sharded_embedding_bag`.
    kind: 'row' or 'column'.
    batch_axes: See `sharded_embedding_bag`.
    impl: See `embedding_bag`.
  """

  mesh: Mesh
  axis: Axis = 'mem'
  kind: str = 'row'
  batch_axes: tuple[str, ...] = ('data', 'fsdp')
  impl: str = 'auto'

  def __call__(self, values, ids, weights) -> jax.Array:
    """`sharded_embedding_bag` on this mesh."""
    return self._options(sharded_embedding_bag)(values, ids, weights)

  def dot(self, values, ids, x) -> jax.Array:
    """`sharded_embedding_dot` on this mesh."""
    return self._options(sharded_embedding_dot)(values, ids, x)

  def search(self, function, q, keys) -> Any:
    """`function(q, keys)`, each device for its own tokens.

    The partitioner of XLA would have every device look for all tokens' keys.
    """
    return _spread(
      function,
      self.mesh,
      (*self.batch_axes, *axis_names(self.axis)),
      (None, PartitionSpec()),
      (q, keys),
      (0, None),
    )

  def _options(self, function):
    fields = dataclasses.fields(self)
    return functools.partial(
      function, **{field.name: getattr(self, field.name) for field in fields}
    )


def make_sharded_bag(mesh: Mesh, **options) -> ShardedBag:
  """The `bag` of a memory layer whose table is spread over a mesh.

  Args:
    mesh: The mesh.
    **options: Of `ShardedBag`.

  Returns:
    A function of values, ids and weights.
  """
  return ShardedBag(mesh, **options)


def _gather(x, axes):
  if not axes:
    return x
  return jax.lax.all_gather(x, axes, axis=0, tiled=True)


def _reduce(y, axes):
  if not axes:
    return y
  return jax.lax.psum_scatter(y, axes, scatter_dimension=0, tiled=True)


def _exchange(x, axes, split: int, join: int):
  if not axes:
    return x
  return jax.lax.all_to_all(x, axes, split, join, tiled=True)


def _own(ids, values, axes, kind):
  """Ids in this device's part: those of others are out of range."""
  if kind == 'column' or not axes:
    return ids
  return ids - jax.lax.axis_index(axes) * values.shape[0]


def _spread(function, mesh, axes, specs, arguments, fills):
  """Runs a function everywhere, each device having its own tokens.

  Args:
    function: Of what is on a device.
    mesh: The mesh.
    axes: Axes over which tokens are spread, in which names may be missing from
      the mesh, or there twice.
    specs: How each argument lies; None for one with tokens.
    arguments: The arguments.
    fills: What tokens are filled up with, so that all have as many.

  Returns:
    What the function returns, of all tokens.
  """
  # The last of two: axes of the table stay together and in order.
  names = tuple(
    name
    for i, name in enumerate(axes)
    if name in mesh.shape and name not in axes[i + 1 :]
  )
  by_token = PartitionSpec(names or None)
  tokens = next(x.shape[0] for x, s in zip(arguments, specs) if s is None)
  spare = -tokens % math.prod(mesh.shape[name] for name in names)
  if spare:
    arguments = [
      x
      if spec is not None
      else jnp.pad(
        x, ((0, spare), *((0, 0),) * (x.ndim - 1)), constant_values=fill
      )
      for x, spec, fill in zip(arguments, specs, fills)
    ]
  y = jax.shard_map(
    function,
    mesh=mesh,
    in_specs=tuple(by_token if s is None else s for s in specs),
    out_specs=by_token,
    # The sums begin with zeros, which are alike on all devices.
    check_vma=False,
  )(*arguments)
  return jax.tree.map(lambda x: x[:tokens], y) if spare else y


def _check(values, mesh, axis, kind):
  check_choice('kind', kind, KINDS)
  for name in axis_names(axis):
    if name not in mesh.shape:
      raise ValueError(
        f'axis is {axis!r}; the mesh has {", ".join(mesh.shape)}.'
      )
  if values.ndim != 2:
    raise ValueError(f'values has shape {values.shape}; expected [N, D].')
  index = KINDS.index(kind)
  parts = math.prod(mesh.shape[name] for name in axis_names(axis))
  if values.shape[index] % parts:
    raise ValueError(
      f'values has shape {values.shape}: {values.shape[index]} {kind}s cannot'
      f' be split evenly over {parts} devices of axis {axis!r}.'
    )
