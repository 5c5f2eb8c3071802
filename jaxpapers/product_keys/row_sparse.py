"""Gradients of a table that hold only the rows that were read."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxpapers.product_keys.layout import TableLayout, per_part

__all__ = ['RowSparse', 'row_sparse_sum', 'sparse_value_grads']

# Table -> the perturbation of what is summed from it; see `memory`, `variants`.
PERTURBATIONS = {'values': 'value_out', 'up': 'up_out', 'down': 'down_out'}
Reads = Sequence[tuple[jax.Array, jax.Array, jax.Array]]
# Reads that are added at a time on CPU: their part of the rows stays in cache.
_READS = 256
# Reads of a row that are added in one pass there, at most.
_AT_ONCE = 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowSparse:
  """Rows of an array that is zero elsewhere.

  A pytree, so that it passes through `jit`, and an update for
  `optax.apply_updates`: adding it to an array adds the rows.

  Attributes:
    ids: Rows, each once, int32 `[U]`, in ascending order; places that are not
      used hold the number of rows of the table.
    rows: `[U, D]`; zero where a place is not used.
    layout: How the table lies on a mesh, if it does. Of a table that is split
      by rows each part has U places of its own, and its ids count from the
      part's first row: `[parts * U]`.
  """

  ids: jax.Array
  rows: jax.Array
  layout: TableLayout | None = dataclasses.field(
    default=None, metadata={'static': True}
  )

  def __radd__(self, table: jax.Array) -> jax.Array:
    def add(table, ids, rows):
      return (table.at[ids].add(rows, mode='drop', indices_are_sorted=True),)

    add = per_part(self.layout, add, ('table', 'ids', 'rows'), ('table',))
    return add(table, self.ids, self.rows.astype(table.dtype))[0]

  def replace(self, **changes: Any) -> 'RowSparse':
    """The same with other ids or rows."""
    return dataclasses.replace(self, **changes)

  def dense(self, num_rows: int) -> jax.Array:
    """The whole array, `[num_rows, D]`."""
    return jnp.zeros((num_rows, self.rows.shape[1]), self.rows.dtype) + self


def is_row_sparse(x: Any) -> bool:
  """Whether a node of a tree is a `RowSparse`."""
  return isinstance(x, RowSparse)


def row_sparse_sum(
  reads: Reads, num_rows: int, layout: TableLayout | None = None
) -> RowSparse:
  """Sums `coefficients[t, r] * vectors[t]` into row `ids[t, r]`.

  That is the gradient of `embedding_bag` where `vectors` is the gradient of its
  result. Takes one sort of the ids, O(U * D) for the result and O(T * D)
  besides: no array `[N, D]`, and none `[T, R, D]`. On a mesh, devices gather
  what was read by all, O(T * (R + D)) numbers, and each sums its own rows.

  Args:
    reads: Triples of ids `[T, R]`, coefficients `[T, R]` and vectors `[T, D]`,
      one for each layer that reads the table. Ids of `num_rows` or more are
      left out.
    num_rows: Rows N of the table.
    layout: How the table lies on a mesh; None for one device.

  Returns:
    Rows in float32 or wider; U is the number of reads, at most N.

  Example:
    >>> ids, ones = jnp.array([[2, 0], [2, 2]]), jnp.ones((2, 2))
    >>> total = row_sparse_sum([(ids, ones, jnp.array([[1.0], [10.0]]))], 5)
    >>> total.ids.tolist(), total.rows[:2].tolist()
    ([0, 2, 5, 5], [[1.0], [21.0]])
  """
  split = layout is not None and layout.kind == 'row'
  own = num_rows // layout.parts if split else num_rows

  def local(*arrays):
    triples = [arrays[i : i + 3] for i in range(0, len(arrays), 3)]
    if split:
      # What is another part's is out of range here.
      start = layout.part() * own
      triples = [(ids - start, *rest) for ids, *rest in triples]
    elif layout is not None:
      triples = [(*rest, layout.columns(x)) for *rest, x in triples]
    return _sum(triples, own)

  arrays = [x for read in reads for x in read]
  total = per_part(
    layout, local, ('all', 'all', 'all') * len(reads), ('ids', 'rows')
  )
  return RowSparse(*total(*arrays), layout)


def _sum(reads, num_rows: int) -> tuple[jax.Array, jax.Array]:
  """Ids and rows, on one device."""
  flat = jnp.concatenate([ids.reshape(-1) for ids, _, _ in reads])
  # All that is out of range counts as one more row, the last.
  flat = jnp.where((flat < 0) | (flat >= num_rows), num_rows, flat)
  size = min(num_rows, flat.size)
  found, order = jax.lax.platform_dependent(
    flat.astype(jnp.int32), cpu=_sort_packed, default=_sort_pairs
  )
  first = jnp.concatenate([jnp.ones((1,), bool), found[1:] != found[:-1]])
  # The place of each read's row, by the rank of its id.
  place = jnp.cumsum(first, dtype=jnp.int32) - 1
  place = jnp.where(found < num_rows, place, size)
  unique = jnp.full((size,), num_rows, jnp.int32)
  unique = unique.at[place].set(found, mode='drop', indices_are_sorted=True)
  dtype = jnp.float32
  for _, coefficients, vectors in reads:
    dtype = jnp.promote_types(
      dtype, jnp.promote_types(coefficients.dtype, vectors.dtype)
    )
  reads = [(c.astype(dtype), v.astype(dtype)) for _, c, v in reads]
  total = jax.lax.platform_dependent(
    place,
    order,
    reads,
    cpu=functools.partial(_add_by_id, size=size),
    default=functools.partial(_add_by_read, size=size),
  )
  return unique, total


def _add_by_id(place, order, reads, *, size):
  """Sums of rows `[size, D]`, one row after the other, for CPUs.

  Args:
    place: Rows of the reads in ascending order, int32 `[reads]`; `size` for
      those that are left out.
    order: Which read each of them is, int32 `[reads]`.
    reads: Pairs of coefficients `[T, R]` and vectors `[T, D]`.
    size: Number of rows.

  Returns:
    `[size, D]`.
  """
  counts = [vectors.shape[0] for _, vectors in reads]
  starts = [sum(counts[:i]) for i in range(len(counts))]
  tokens = jnp.concatenate(
    [
      jnp.repeat(jnp.arange(start, start + count), c.shape[1])
      for start, count, (c, _) in zip(starts, counts, reads)
    ]
  )[order]
  coefficients = jnp.concatenate([c.reshape(-1) for c, _ in reads])[order]
  vectors = jnp.concatenate([v for _, v in reads])

  def terms(some):
    """Coefficients times vectors; zero for reads that there are not."""
    scale = coefficients.at[some].get(mode='fill', fill_value=0)
    token = tokens.at[some].get(mode='fill', fill_value=vectors.shape[0])
    return scale[:, None] * vectors.at[token].get(mode='fill', fill_value=0)

  # The first reads of all rows at once, one more than rows have on average.
  # Threads share this, and with it what takes most time: that the system finds
  # pages for an array as large.
  number = place.size
  every = jnp.arange(number, dtype=jnp.int32)
  start = jnp.full((size,), number, jnp.int32)
  start = start.at[place].min(every, mode='drop', indices_are_sorted=True)
  at_once = min(_AT_ONCE, 1 + number // size) if number > size else 1
  total = 0
  for read in (start + i for i in range(at_once)):
    row = place.at[read].get(mode='fill', fill_value=size)
    total += terms(jnp.where(row == jnp.arange(size), read, number))
  # Then the others, which are brought to the front, some at a time.
  since = every - start.at[place].get(mode='fill', fill_value=number)
  other = since >= at_once
  others = jnp.full((number + -number % _READS,), number, jnp.int32)
  where = jnp.where(other, jnp.cumsum(other, dtype=jnp.int32) - 1, others.size)
  others = others.at[where].set(every, mode='drop', indices_are_sorted=True)

  def add(total, some):
    row = place.at[some].get(mode='fill', fill_value=size)
    options = {'mode': 'drop', 'indices_are_sorted': True}
    return total.at[row].add(terms(some), **options)

  def add_if_any(total, some):
    there = some[0] < number
    return jax.lax.cond(there, add, lambda total, _: total, total, some), None

  return jax.lax.scan(add_if_any, total, others.reshape(-1, _READS))[0]


def _add_by_read(place, order, reads, *, size):
  """The same by the r-th read of all tokens at a time."""
  place = jnp.zeros_like(place).at[order].set(place, unique_indices=True)
  vectors = reads[0][1]
  total, start = jnp.zeros((size, vectors.shape[1]), vectors.dtype), 0
  for coefficients, vectors in reads:
    some = place[start : start + coefficients.size]
    start += coefficients.size

    def add(total, read, vectors=vectors):
      place, coefficient = read
      part = coefficient[:, None] * vectors
      return total.at[place].add(part, mode='drop'), None

    total, _ = jax.lax.scan(
      add, total, (some.reshape(coefficients.shape).T, coefficients.T)
    )
  return total


def _sort_pairs(ids):
  """Ids in ascending order, and where they were, equal ones as they came."""
  places = jnp.arange(ids.size, dtype=jnp.int32)
  return tuple(jax.lax.sort((ids, places), num_keys=1))


def _sort_packed(ids):
  """The same by sorting one array of numbers, a fourth of the time on a CPU."""
  with jax.enable_x64(True):
    places = jax.lax.iota(jnp.uint64, ids.size)
    packed = jax.lax.sort((ids.astype(jnp.uint64) << 32) | places)
    ids, places = packed >> 32, packed & 0xFFFFFFFF
    return ids.astype(jnp.int32), places.astype(jnp.int32)


def sparse_value_grads(
  reads: Mapping[str, Any],
  perturbation_grads: Mapping[str, Any],
  num_rows: int | Mapping[str, Any],
  layouts: Mapping[str, Any] | None = None,
) -> Any:
  """Gradients of value tables from what was read and the gradient of sums.

  A table that several layers share gets the sum over them.

  Args:
    reads: Collection 'reads' after a call.
    perturbation_grads: Gradients of the loss with respect to the collection
      'perturbations'.
    num_rows: Rows N of every layer's own table, or the collection 'memory': a
      layer's reads then belong to the table of that name in it, or in the
      nearest module around it.
    layouts: Where `num_rows` is a collection: one like it, that has a
      `TableLayout` for each table, as `table_layouts` makes it for a mesh.

  Returns:
    A tree of `RowSparse`: of the modules of `reads`, or like 'memory'.

  Raises:
    ValueError: If reads belong to no table, or a table is not read or has
      another rank.

  Example:
    >>> read = {'ids': jnp.array([[1]]), 'weights': jnp.array([[2.0]])}
    >>> g = {'value_out': jnp.array([[3.0]])}
    >>> sparse_value_grads({'values': read}, g, 4)['values'].rows.tolist()
    [[6.0]]
  """
  found: dict[tuple[str, ...], list] = {}
  tables = None if isinstance(num_rows, int) else _flatten(num_rows)
  for path, read in _flatten(reads, stop='ids').items():
    *module, name = path
    g = perturbation_grads
    wanted = (*module, PERTURBATIONS[name])
    for part in wanted:
      if part not in g:
        raise ValueError(
          f'perturbation_grads has no {"/".join(wanted)}, which'
          f' belongs to the reads of {"/".join(path)}.'
        )
      g = g[part]
    if 'inputs' in read:
      item = (read['ids'], g, read['inputs'])
    else:
      item = (read['ids'], read['weights'], g)
    owner = path
    if tables is not None:
      around = [(*module[:i], name) for i in range(len(module), -1, -1)]
      owner = next((where for where in around if where in tables), None)
      if owner is None:
        raise ValueError(
          f'reads of {"/".join(path)} belong to no table in num_rows, which has'
          f' {sorted("/".join(p) for p in tables)}.'
        )
    found.setdefault(owner, []).append(item)
  placed = {} if layouts is None else _flatten(layouts)
  result: dict[str, Any] = {}
  for path in found if tables is None else tables:
    if path not in found:
      raise ValueError(f'{"/".join(path)} is a table that no layer reads.')
    rows = num_rows if tables is None else tables[path].shape[0]
    if tables is not None and len(tables[path].shape) != 2:
      raise ValueError(
        f'{"/".join(path)} has shape {tables[path].shape}; expected [N, D].'
        ' Layers that are one module (scan_layers) have a table each in one'
        ' array: give them dense gradients (sparse_values=False).'
      )
    node = result
    for part in path[:-1]:
      node = node.setdefault(part, {})
    node[path[-1]] = row_sparse_sum(found[path], rows, placed.get(path))
  return result


def _flatten(tree, stop: str | None = None, path=()) -> dict:
  """Path -> leaf of nested dictionaries, or -> dictionary that has a key."""
  if not isinstance(tree, Mapping) or stop in tree:
    return {path: tree}
  flat = {}
  for name, node in tree.items():
    flat |= _flatten(node, stop, (*path, name))
  return flat
