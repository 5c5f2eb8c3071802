"""Null ensembles: the coreness of many random graphs with the same degrees.

Graphs are drawn and pruned in chunks, so that memory on the device does not
grow with their number. Null i depends on the key and on i only: chunks, devices
and interruptions do not change any number.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.kcore import edges as graphs
from jaxpapers.kcore.coreness import coreness, degeneracy_bound, shell_occupancy
from jaxpapers.kcore.null_state import NullState, fingerprint
from jaxpapers.kcore.rewire import check_rounds, scratch_table, switch_rounds

# What mixed the densest network that was measured; see docs/kcore.md.
MIN_ROUNDS = 20
MIN_SWAPS_PER_EDGE = 3.0
# Bytes of scratch tables that are alive at once on one accelerator.
_TABLE_BYTES = 1 << 30


class UnderMixedWarning(UserWarning):
  """Graphs of a null ensemble are still close to the graph they began as."""


class NullSummary(NamedTuple):
  """Coreness in a null ensemble.

  Attributes:
    k_max: int32[R], largest coreness of each null.
    occ_mean: float64[K + 1], mean number of nodes in shells 0..K, where K is
      the bound that the degrees set (`degeneracy_bound`).
    occ_std: float64[K + 1], its standard deviation over nulls.
    accepted: int32[R], switches made for each null.
    num_edges: m.
    rounds: rounds per null.
  """

  k_max: np.ndarray
  occ_mean: np.ndarray
  occ_std: np.ndarray
  accepted: np.ndarray
  num_edges: int
  rounds: int

  @property
  def swaps_per_edge(self) -> float:
    """Accepted switches per edge, mean over nulls."""
    return float(np.mean(self.accepted)) / max(self.num_edges, 1)

  @property
  def mixed(self) -> bool:
    """Whether rounds and accepted switches reach what mixing needs."""
    enough = self.swaps_per_edge >= MIN_SWAPS_PER_EDGE
    return enough and self.rounds >= MIN_ROUNDS

  def p_value(self, k_max: int) -> float:
    """One-sided p of a real k_max: (1 + nulls that reach it) / (1 + R)."""
    reached = int(np.sum(self.k_max >= k_max))
    return (1 + reached) / (1 + len(self.k_max))

  def z_score(self, k_max: int) -> float:
    """Standard deviations by which a real k_max exceeds the null mean."""
    std = float(np.std(self.k_max))
    distance = k_max - float(np.mean(self.k_max))
    if std == 0:
      return float(np.sign(distance)) * np.inf if distance else 0.0
    return distance / std


class Mixing(NamedTuple):
  """How k_max of the nulls settles as rounds go by.

  Attributes:
    rounds: the numbers of rounds looked at.
    k_max: int32[R, len(rounds)], along the chain of each null.
    swaps_per_edge: float64[len(rounds)].
  """

  rounds: tuple[int, ...]
  k_max: np.ndarray
  swaps_per_edge: np.ndarray

  @property
  def mean(self) -> np.ndarray:
    """Mean k_max after each number of rounds."""
    return np.mean(self.k_max, axis=0)

  @property
  def drift(self) -> np.ndarray:
    """(mean, standard error) of the change of k_max between entries."""
    change = np.diff(self.k_max, axis=1).astype(np.float64)
    error = np.std(change, axis=0) / np.sqrt(len(change))
    return np.stack([np.mean(change, axis=0), error])


def null_coreness(
  key: jax.Array,
  edges: Any,
  num_nodes: int,
  num_nulls: int,
  *,
  rounds: int = 20,
  chunk: int = 256,
  mesh: jax.sharding.Mesh | None = None,
  state: NullState | None = None,
  on_chunk: Callable[[NullState], None] | None = None,
) -> NullSummary:
  """Coreness of random graphs with the degrees of a given one.

  Each null starts from the given graph and goes through `rounds` rounds of
  global switches (see `rewire`); the law is uniform over all simple graphs with
  these degrees once they suffice. Whether they do is reported: `accepted`, a
  warning, and `null_mixing`. An under-mixed null still looks like the real
  network and makes it look less special than it is.

  Device memory is that of one chunk; the host keeps two integers per null.
  Nulls of a chunk run side by side on an accelerator and one after the other
  on each CPU device.

  Args:
    key: typed random key; null i uses `fold_in(key, i)`.
    edges: int[m, 2], each edge of a simple graph once.
    num_nodes: N.
    num_nulls: R; including those in `state`.
    rounds: rounds per null, each of m // 2 switches.
    chunk: nulls per call of the device; rounded up to a multiple of the devices
      of the mesh.
    mesh: shards each chunk over all its devices, of all its axes.
    state: goes on from here.
    on_chunk: called with the state after each chunk, to show progress and to
      save it (`save_null_state`).

  Returns:
    The summary. The same whatever `chunk`, `mesh` and interruptions.

  Raises:
    ValueError: names the argument: no simple graph, a number out of range, or a
      `state` of another key, graph or number of rounds.

  Warns:
    UnderMixedWarning: fewer than 20 rounds, or fewer than 3 accepted switches
      per edge.

  Example:
    >>> ring = np.stack([np.arange(40), (np.arange(40) + 1) % 40], 1)
    >>> null = null_coreness(jax.random.key(0), ring, 40, 8, chunk=4)
    >>> null.k_max.tolist(), null.occ_mean.tolist(), null.p_value(3)
    ([2, 2, 2, 2, 2, 2, 2, 2], [0.0, 0.0, 40.0], 0.1111111111111111)
  """
  for state in null_chunks(  # noqa: B020
    key,
    edges,
    num_nodes,
    num_nulls,
    rounds=rounds,
    chunk=chunk,
    mesh=mesh,
    state=state,
  ):
    if on_chunk is not None:
      on_chunk(state)
  num_edges = int(np.sum(np.asarray(edges)[:, 0] != num_nodes))
  summary = summarize(state, num_edges, rounds)
  if not summary.mixed:
    warnings.warn(
      f'The null ensemble may be under-mixed: {summary.swaps_per_edge:.2f} '
      f'accepted swaps per edge in {rounds} rounds; expected at least '
      f'{MIN_SWAPS_PER_EDGE:g} and {MIN_ROUNDS} rounds. Raise rounds, and look '
      'at null_mixing.',
      UnderMixedWarning,
      stacklevel=2,
    )
  return summary


def null_chunks(
  key: jax.Array,
  edges: Any,
  num_nodes: int,
  num_nulls: int,
  *,
  rounds: int = 20,
  chunk: int = 256,
  mesh: jax.sharding.Mesh | None = None,
  state: NullState | None = None,
) -> Iterator[NullState]:
  """The loop of `null_coreness`: yields the state after every chunk.

  Args:
    key: as there, like all others.
    edges: int[m, 2].
    num_nodes: N.
    num_nulls: R.
    rounds: rounds per null.
    chunk: nulls per call of the device.
    mesh: devices to share a chunk.
    state: goes on from here. If it has all nulls, it is yielded once.

  Yields:
    States; the last one has `done == num_nulls`.

  Raises:
    ValueError: as there.

  Example:
    >>> edges = np.array([[0, 1], [2, 3]])
    >>> chunks = null_chunks(jax.random.key(0), edges, 4, 5, chunk=2)
    >>> [state.done for state in chunks]
    [2, 4, 5]
  """
  graphs.check_edges(edges, num_nodes)
  num_nodes = int(num_nodes)
  check_rounds(rounds)
  for name, value in (('num_nulls', num_nulls), ('chunk', chunk)):
    if isinstance(value, bool) or int(value) != value or value < 1:
      raise ValueError(f'{name} is {value}; expected a positive integer.')
  edges = np.asarray(edges, np.int32)
  edges = edges[edges[:, 0] != num_nodes]
  if rounds * (len(edges) // 2) >= 2**31:
    raise ValueError(
      f'rounds is {rounds}: with {len(edges)} edges the count of switches '
      'would not fit into 32 bits.'
    )
  run = fingerprint(key, edges, num_nodes, rounds)
  degrees = np.bincount(edges.ravel(), minlength=num_nodes)
  k_bound = degeneracy_bound(degrees)
  if state is None:
    shells = np.zeros(k_bound + 1, np.int64)
    empty = np.zeros(0, np.int32)
    state = NullState(0, empty, empty, shells, shells, run)
  elif state.run != run:
    raise ValueError(
      f'state belongs to another run ({state.run}, this one is {run}): key, '
      'edges, num_nodes and rounds have to be the same to go on.'
    )
  elif state.done > num_nulls:
    raise ValueError(
      f'state holds {state.done} nulls already; num_nulls is {num_nulls}.'
    )
  devices = 1 if mesh is None else mesh.size
  chunk = -(-min(chunk, num_nulls) // devices) * devices
  platform = _platform(mesh)
  lanes = _lanes(num_nodes, chunk // devices, platform)
  k_max = np.zeros(num_nulls, np.int32)
  accepted = np.zeros(num_nulls, np.int32)
  k_max[: state.done], accepted[: state.done] = state.k_max, state.accepted
  if state.done == num_nulls:
    yield state
  while state.done < num_nulls:
    # The last chunk computes more than is kept: one shape, one compilation.
    index = np.arange(state.done, state.done + chunk, dtype=np.int32)
    placed = _place(key, index, edges, mesh)
    result = _ensemble(*placed, num_nodes, rounds, k_bound, mesh, lanes)
    done = min(state.done + chunk, num_nulls)
    kept = slice(0, done - state.done)
    new_k_max, occupancy, new_accepted = (
      _to_host(array)[kept] for array in result
    )
    k_max[state.done : done] = new_k_max
    accepted[state.done : done] = new_accepted
    occupancy = occupancy.astype(np.int64)
    state = NullState(
      done,
      k_max[:done],
      accepted[:done],
      state.occ_sum + occupancy.sum(0),
      state.occ_square + (occupancy**2).sum(0),
      run,
    )
    yield state


def summarize(state: NullState, num_edges: int, rounds: int) -> NullSummary:
  """Summary of an ensemble, finished or not.

  Args:
    state: of at least one null.
    num_edges: m.
    rounds: rounds per null.

  Returns:
    The summary. Sums are exact integers until the final division.

  Raises:
    ValueError: `state` has no null.

  Example:
    >>> edges = np.array([[0, 1], [2, 3]])
    >>> *_, state = null_chunks(jax.random.key(0), edges, 4, 5)
    >>> summarize(state, 2, 20).occ_mean.tolist()
    [0.0, 4.0]
  """
  number = int(state.done)
  if number < 1:
    raise ValueError('state holds no null yet.')
  sums = [int(x) for x in state.occ_sum]
  squares = [int(x) for x in state.occ_square]
  variance = [
    (number * q - s * s) / number**2 for s, q in zip(sums, squares, strict=True)
  ]
  mean = np.array([s / number for s in sums])
  return NullSummary(
    state.k_max,
    mean,
    np.sqrt(np.array(variance)),
    state.accepted,
    int(num_edges),
    int(rounds),
  )


def null_mixing(
  key: jax.Array,
  edges: Any,
  num_nodes: int,
  *,
  rounds: Sequence[int] = (5, 10, 20, 40),
  num_nulls: int = 64,
  mesh: jax.sharding.Mesh | None = None,
) -> Mixing:
  """Follows k_max along the chains, to see how many rounds are enough.

  The number of rounds is enough where `drift` is zero within its error. The
  chains are those of `null_coreness` with the same key.

  Args:
    key: typed random key.
    edges: int[m, 2], each edge of a simple graph once.
    num_nodes: N.
    rounds: increasing numbers of rounds to look at.
    num_nulls: number of chains.
    mesh: devices to share the chains.

  Returns:
    k_max of each chain after each number of rounds.

  Raises:
    ValueError: `edges` is no simple graph, or `rounds` does not increase.

  Example:
    >>> ring = np.stack([np.arange(9), (np.arange(9) + 1) % 9], 1)
    >>> null_mixing(jax.random.key(0), ring, 9, num_nulls=2).mean.tolist()
    [2.0, 2.0, 2.0, 2.0]
  """
  graphs.check_edges(edges, num_nodes)
  num_nodes = int(num_nodes)
  rounds = tuple(int(r) for r in rounds)
  if not rounds or rounds[0] < 0 or np.any(np.diff(rounds) <= 0):
    raise ValueError(f'rounds is {rounds}; expected increasing numbers.')
  edges = np.asarray(edges, np.int32)
  edges = edges[edges[:, 0] != num_nodes]
  devices = 1 if mesh is None else mesh.size
  total = -(-num_nulls // devices) * devices
  lanes = _lanes(num_nodes, total // devices, _platform(mesh))
  index = np.arange(total, dtype=np.int32)
  placed = _place(key, index, edges, mesh)
  k_max, accepted = _mixing(*placed, num_nodes, rounds, mesh, lanes)
  k_max, accepted = _to_host(k_max)[:num_nulls], _to_host(accepted)[:num_nulls]
  return Mixing(rounds, k_max, accepted.mean(0) / max(len(edges), 1))


def _platform(mesh):
  return (
    jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
  )


def _lanes(num_nodes, per_device, platform):
  """Number of nulls that run side by side on one device."""
  if platform == 'cpu':
    # vmapped gathers and scatters are slower there than one lane at a time.
    return 1
  table = jax.eval_shape(lambda: scratch_table(num_nodes))
  size = 4 * table.size if table is not None else 1
  return max(1, min(per_device, _TABLE_BYTES // size))


def _to_host(array):
  if isinstance(array, jax.Array) and not array.is_fully_addressable:
    from jax.experimental import multihost_utils

    array = multihost_utils.process_allgather(array, tiled=True)
  return np.asarray(array)


def _place(key, index, pairs, mesh):
  """Puts the inputs where the mesh wants them: its axes may be explicit."""
  if mesh is None:
    return key, index, pairs
  everywhere = jax.NamedSharding(mesh, jax.P())
  over = jax.NamedSharding(mesh, jax.P(mesh.axis_names))
  return (
    jax.device_put(key, everywhere),
    jax.device_put(index, over),
    jax.device_put(pairs, everywhere),
  )


def _spread(function, mesh, lanes, key, index, pairs):
  """Maps over indices: in lanes on each device, sharded over a mesh."""

  def local(key, index, pairs):
    one = functools.partial(function, key, pairs)
    if lanes == 1:
      return jax.lax.map(one, index)
    return jax.lax.map(one, index, batch_size=lanes)

  if mesh is None:
    return local(key, index, pairs)
  over, everywhere = jax.P(mesh.axis_names), jax.P()
  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(everywhere, over, everywhere),
    out_specs=over,
    check_vma=False,
  )(key, index, pairs)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6, 7))
def _ensemble(key, index, pairs, num_nodes, rounds, k_bound, mesh, lanes):
  def one(key, pairs, i):
    u, v, accepted = switch_rounds(
      jax.random.fold_in(key, i), pairs[:, 0], pairs[:, 1], num_nodes, rounds
    )
    core = coreness(
      graphs.Edges(jnp.stack([u, v], 1), num_nodes), method='peel'
    )
    k_max = jnp.max(core, initial=0)
    return k_max, shell_occupancy(core, k_bound), accepted

  return _spread(one, mesh, lanes, key, index, pairs)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _mixing(key, index, pairs, num_nodes, rounds, mesh, lanes):
  def one(key, pairs, i):
    key = jax.random.fold_in(key, i)
    u, v = pairs[:, 0], pairs[:, 1]
    k_max, accepted = [], [jnp.zeros((), jnp.int32)]
    for start, stop in zip((0, *rounds), rounds, strict=False):
      u, v, new = switch_rounds(key, u, v, num_nodes, stop, start)
      accepted.append(accepted[-1] + new)
      edges = graphs.Edges(jnp.stack([u, v], 1), num_nodes)
      k_max.append(jnp.max(coreness(edges, method='peel'), initial=0))
    return jnp.stack(k_max), jnp.stack(accepted[1:])

  return _spread(one, mesh, lanes, key, index, pairs)
