"""How a value table lies on a mesh, and work on each device's own part."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh, PartitionSpec

from jaxpapers.product_keys.weighting import check_choice

KINDS = ('row', 'column')
Axis = str | tuple[str, ...]


def table_spec(kind: str, axis: Axis = 'mem') -> PartitionSpec:
  """How a table lies on a mesh: 'row' splits slots, 'column' their width.

  Raises:
    ValueError: If the kind is unknown.
  """
  check_choice('kind', kind, KINDS)
  split = axis or None
  return (
    PartitionSpec(split, None) if kind == 'row' else PartitionSpec(None, split)
  )


def axis_names(axis: Axis) -> tuple[str, ...]:
  """The names of one axis or of several."""
  return (axis,) if isinstance(axis, str) else tuple(axis)


@dataclasses.dataclass(frozen=True)
class TableLayout:
  """A table on a mesh: which axis splits it, and along what.

  Attributes:
    mesh: The mesh, with Auto axes.
    axis: Axis or axes; () where every device has the whole table.
    kind: 'row' or 'column'.
  """

  mesh: Mesh
  axis: Axis = ()
  kind: str = 'row'

  @classmethod
  def of(cls, sharding: jax.sharding.NamedSharding) -> 'TableLayout':
    """The layout of a table `[N, D]` that has this sharding.

    Raises:
      ValueError: If both of its dimensions are split.
    """
    rows, columns = (*sharding.spec, None, None)[:2]
    if rows and columns:
      raise ValueError(
        f'a table is sharded by {sharding.spec}; expected only its rows or only'
        ' its columns to be split.'
      )
    if columns:
      return cls(sharding.mesh, columns, 'column')
    return cls(sharding.mesh, rows or (), 'row')

  @property
  def parts(self) -> int:
    """How many parts the table has."""
    return math.prod(self.mesh.shape[name] for name in axis_names(self.axis))

  def spec(self, what: str) -> PartitionSpec:
    """How an array lies that belongs to a table.

    Args:
      what: 'table' and its moments `[N, D]`; a 'vector' with a number for each
        row; 'ids' and 'rows' of a gradient, where each part of a table split by
        rows has places of its own; or 'all', which every device has.
    """
    if what in ('table', 'rows'):
      return table_spec(self.kind, self.axis)
    if what in ('vector', 'ids') and self.kind == 'row':
      return PartitionSpec(self.axis or None)
    return PartitionSpec()

  def part(self) -> jax.Array | int:
    """The number of this device's part, inside `per_part`."""
    return jax.lax.axis_index(axis_names(self.axis)) if self.axis else 0

  def columns(self, x: jax.Array) -> jax.Array:
    """This device's columns of an array, inside `per_part`."""
    width = x.shape[-1] // self.parts
    return jax.lax.dynamic_slice_in_dim(x, self.part() * width, width, -1)


def per_part(
  layout: TableLayout | None,
  function: Callable,
  inputs: Sequence[str],
  outputs: Sequence[str],
) -> Callable:
  """A function that every device applies to its own part of a table.

  Args:
    layout: How the table lies; None for one device.
    function: Of arrays, to a tuple of arrays.
    inputs: For each argument what it is, see `TableLayout.spec`.
    outputs: The same for each result.

  Returns:
    A function of whole arrays.
  """
  if layout is None:
    return function
  return jax.shard_map(
    function,
    mesh=layout.mesh,
    in_specs=tuple(layout.spec(what) for what in inputs),
    out_specs=tuple(layout.spec(what) for what in outputs),
    # Devices that hold the same part compute the same: nothing says so.
    check_vma=False,
  )
