"""Uniform sampling of graphs with given degrees: rounds of global switches.

A switch takes two edges (a, b) and (c, d) to (a, d) and (c, b), unless that
makes a loop or a double edge. A round pairs all edges at random and tries the
switch of each pair, in order (the global edge switching of Allendorf, Meyer,
Penschuck and Tran, whose stationary law is uniform). Run one after the other,
on an accelerator or in Python, the switches of a round would be slow; here the
whole round is one small fixed-point iteration with the same result to the bit.

Why the law is uniform: for a given pairing and given coins, each single switch
maps the lists of m oriented edges onto themselves and undoes itself (a refused
switch is the identity). The round is therefore a permutation of such lists, and
leaves the uniform law over them as it is; every graph has equally many lists.
Refused switches have to count as steps for that, and they do.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpapers.kcore import edges as graphs

# Largest (N + 1)**2 for which edges are numbered through a table of that size
# (64 MiB); above, by sorting.
_TABLE_CELLS = 1 << 24
# Up to this many edges, a shuffle sorts random bits that carry the index in
# their low bits, which is several times faster. 16 random bits remain.
_PACKED_EDGES = 1 << 16


class RewireResult(NamedTuple):
  """A rewired graph.

  Attributes:
    edges: int32[m, 2], u < v in each row, in no particular order.
    adj: bool[N, N].
    accepted: int32 scalar, number of switches that were made, in all rounds.
      Divided by m it says how well the graph is mixed.
  """

  edges: Any
  adj: Any
  accepted: Any


def rewire(
  key: jax.Array, edges: Any, num_nodes: int, rounds: int = 20
) -> RewireResult:
  """Draws a random graph with the same degrees.

  A round costs m log m, one pass over the edges per step of its fixed-point
  iteration (5 to 9 steps are usual) and no N^2, except for a scratch table of
  (N + 1)^2 integers for graphs of up to 4095 nodes; larger ones sort instead.
  vmap over keys, or over padded edge lists.

  20 rounds mix most graphs; one with a dense core needs them. See
  `null_mixing`.

  Args:
    key: typed random key.
    edges: int[m, 2], each edge of a simple graph once; rows of `num_nodes` are
      padding and stay.
    num_nodes: N, static under jit.
    rounds: number of rounds of m // 2 switches each, static under jit.

  Returns:
    The new graph. With fewer than two edges it is the old one.

  Raises:
    ValueError: `edges` is no simple graph (looked at outside jit only), or
      `rounds` is negative.

  Example:
    >>> ring = np.stack([np.arange(6), (np.arange(6) + 1) % 6], 1)
    >>> new = rewire(jax.random.key(0), ring, 6)
    >>> new.adj.sum(0).tolist()
    [2, 2, 2, 2, 2, 2]
  """
  graphs.check_edges(edges, num_nodes)
  check_rounds(rounds)
  edges = jnp.asarray(edges, jnp.int32)
  return _rewire(key, edges, int(num_nodes), int(rounds))


def draw_round(
  key: jax.Array, index: Any, num_edges: int
) -> tuple[jax.Array, jax.Array]:
  """Random choices of one round: the pairing and the coins.

  Switch t takes the edges order[t] and order[h + t], h = m // 2, and reads the
  second one backwards where flip[t]. The order is a shuffle with 16 random bits
  or more per edge. That it is not uniform to the last digit does not matter:
  the law of the graphs is uniform whatever the law of the pairing.

  Args:
    key: random key of the chain.
    index: number of the round.
    num_edges: m.

  Returns:
    order: int32[m], a permutation.
    flip: bool[m // 2].

  Example:
    >>> order, flip = draw_round(jax.random.key(0), 0, 5)
    >>> sorted(order.tolist()), flip.shape
    ([0, 1, 2, 3, 4], (2,))
  """
  key_order, key_flip = jax.random.split(jax.random.fold_in(key, index))
  flip = _bits(key_flip, num_edges // 2, jnp.uint8) < 128
  number = jnp.arange(num_edges, dtype=jnp.int32)
  if num_edges > _PACKED_EDGES:
    return jax.random.permutation(key_order, number), flip
  bits = max(num_edges - 1, 1).bit_length()
  random = _bits(key_order, num_edges, jnp.uint32)
  packed = jax.lax.sort(random >> bits << bits | number.astype(jnp.uint32))
  return (packed & ((1 << bits) - 1)).astype(jnp.int32), flip


def switch_round(
  u: jax.Array,
  v: jax.Array,
  flip: jax.Array,
  num_nodes: int,
  table: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
  """One round of switches, of edge t with edge h + t for t = 0..h - 1.

  Which switches are legal depends on earlier ones only: a target is free if
  it is no edge, or if it is the source of an earlier legal switch, and if no
  earlier legal switch has the same target. Starting from "all but loops are
  legal", applying that rule until nothing changes gives the one solution, which
  is what running them in order gives.

  Args:
    u: int32[m], first ends.
    v: int32[m], second ends.
    flip: bool[m // 2], reads edge h + t as (v, u).
    num_nodes: N; ends of this number are padding, never switched.
    table: scratch from `scratch_table`; None sorts.

  Returns:
    u, v: the edges after the round, in the same places and orientations.
    legal: bool[m // 2], the switches that were made.
    table: to be handed to the next round.

  Example:
    >>> u, v = jnp.array([0, 2]), jnp.array([1, 3])
    >>> u, v, legal, _ = switch_round(u, v, jnp.array([False]), 4)
    >>> u.tolist(), v.tolist(), legal.tolist()
    ([0, 2], [3, 1], [True])
  """
  m = u.shape[0]
  h = m // 2
  a, b, u2, v2 = u[:h], v[:h], u[h : 2 * h], v[h : 2 * h]
  c, d = jnp.where(flip, v2, u2), jnp.where(flip, u2, v2)
  valid = (a != d) & (c != b) & (a < num_nodes) & (c < num_nodes)

  # Small numbers for the node pairs in play: of the m edges, then 2 h targets.
  left = jnp.concatenate([u, a, c])
  right = jnp.concatenate([v, d, b])
  number, table = _number_pairs(left, right, num_nodes, table)
  target = number[m:].reshape(2, h)

  # The switch whose source a pair is; h for an edge without partner, which
  # nobody can free; -1 for no edge.
  switch = jnp.arange(h, dtype=jnp.int32)
  owner = jnp.full(2 * m, -1, jnp.int32)
  sources = jnp.concatenate([switch, switch, jnp.full(m - 2 * h, h, jnp.int32)])
  owner = owner.at[number[:m]].set(sources)[target]
  unowned = owner < 0
  earlier = ~unowned & (owner < switch)
  owner = jnp.clip(owner, 0, h - 1)

  def step(state):
    legal, _ = state
    time = jnp.where(legal, switch, h)
    first = jnp.full(2 * m, h, jnp.int32)
    first = first.at[target[0]].min(time).at[target[1]].min(time)
    free = (unowned | (earlier & legal[owner])) & (first[target] >= switch)
    new = valid & free[0] & free[1]
    return new, jnp.any(new != legal)

  legal, _ = jax.lax.while_loop(
    lambda state: state[1], step, (valid, jnp.ones((), bool))
  )
  # Edge h + t goes back in the orientation it was read in, so that the same
  # switch would undo this one.
  b_new, d_new = jnp.where(legal, d, b), jnp.where(legal, b, d)
  u2, v2 = jnp.where(flip, d_new, c), jnp.where(flip, c, d_new)
  u = jnp.concatenate([a, u2, u[2 * h :]])
  v = jnp.concatenate([b_new, v2, v[2 * h :]])
  return u, v, legal, table


def scratch_table(num_nodes: int) -> jax.Array | None:
  """The scratch of `switch_round`, or None where sorting is the better way.

  Args:
    num_nodes: N.

  Returns:
    int32[(N + 1)**2], or None for N of 4096 or more.

  Example:
    >>> scratch_table(3).shape, scratch_table(10_000)
    ((16,), None)
  """
  cells = (num_nodes + 1) ** 2
  if cells > _TABLE_CELLS:
    return None
  return jnp.zeros(cells, jnp.int32)


def switch_rounds(
  key: jax.Array,
  u: jax.Array,
  v: jax.Array,
  num_nodes: int,
  rounds: Any,
  start: Any = 0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Rounds start..rounds-1 of the chain of a key. For use inside jit.

  Args:
    key: typed random key.
    u: int32[m], first ends.
    v: int32[m], second ends.
    num_nodes: N.
    rounds: end of the range, may be traced.
    start: first round, may be traced.

  Returns:
    u, v: edges after the last round, in a new order.
    accepted: int32, number of switches made.

  Example:
    >>> u, v = jnp.array([0, 2]), jnp.array([1, 3])
    >>> u, v, accepted = switch_rounds(jax.random.key(0), u, v, 4, 20)
    >>> int(accepted)
    20
  """
  m = u.shape[0]
  if m < 2:
    return u, v, jnp.zeros((), jnp.int32)

  def body(index, state):
    u, v, accepted, table = state
    order, flip = draw_round(key, index, m)
    u, v, legal, table = switch_round(
      u[order], v[order], flip, num_nodes, table
    )
    return u, v, accepted + jnp.sum(legal, dtype=jnp.int32), table

  state = (u, v, jnp.zeros((), jnp.int32), scratch_table(num_nodes))
  start = jnp.asarray(start, jnp.int32)
  stop = jnp.asarray(rounds, jnp.int32)
  return jax.lax.fori_loop(start, stop, body, state)[:3]


def check_rounds(rounds: Any) -> None:
  """Raises unless this is a number of rounds.

  Args:
    rounds: the argument.

  Raises:
    ValueError: it is no integer, or negative.
  """
  if isinstance(rounds, bool) or int(rounds) != rounds or rounds < 0:
    raise ValueError(f'rounds is {rounds}; expected an integer of 0 or more.')


@functools.partial(jax.jit, static_argnums=(2, 3))
def _rewire(key, edges, num_nodes, rounds):
  u, v, accepted = switch_rounds(
    key, edges[:, 0], edges[:, 1], num_nodes, rounds
  )
  pairs = jnp.stack([jnp.minimum(u, v), jnp.maximum(u, v)], 1)
  adj = graphs.adjacency_matrix(graphs.Edges(pairs, num_nodes))
  return RewireResult(pairs, adj, accepted)


def _bits(key, count, dtype):
  # An odd count takes eight times as long on a CPU (measured at 10725).
  return jax.random.bits(key, (-(-count // 8) * 8,), dtype)[:count]


def _number_pairs(left, right, num_nodes, table):
  """Numbers below left.size, equal for equal unordered pairs of nodes."""
  low, high = jnp.minimum(left, right), jnp.maximum(left, right)
  index = jnp.arange(left.size, dtype=jnp.int32)
  if table is None:
    # Sorted by two keys: N^2 does not fit into 32 bits from N = 65536 on.
    low, high, order = jax.lax.sort([low, high, index], num_keys=2)
    new = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    rank = jnp.cumsum(new.astype(jnp.int32), dtype=jnp.int32)
    rank = jnp.concatenate([jnp.zeros(1, jnp.int32), rank])
    return jnp.zeros_like(rank).at[order].set(rank, unique_indices=True), None
  # The number is the index of one of the entries with that pair, no matter of
  # which one. Cells of other pairs hold what earlier rounds left there; nobody
  # reads them, so the table need not be cleared.
  code = low * (num_nodes + 1) + high
  table = table.at[code].set(index)
  return table[code], table
