"""k-cores and k-shells: the coreness of every node, three algorithms.

The k-core is the largest subgraph in which every node has k neighbours or more
inside it; the coreness of a node is the largest k whose core holds it. Arese
Lucini, Del Ferraro, Sigman and Makse (2019), arXiv:1903.09630.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.kcore import edges as graphs
from jaxpapers.kcore.edges import Edges

_METHODS = ('auto', 'peel', 'allk', 'hindex')


def coreness(
  adj: Any, *, method: str = 'auto', k_bound: int | None = None
) -> jax.Array:
  """Coreness of every node.

  Under jit and vmap like any function of arrays. One graph, on a CPU: pass
  `Edges` and peel (a C library is still faster for a single large graph). Many
  small graphs on an accelerator: vmap, `'allk'` with dense matrices, whose
  rounds are matrix products, or peel with `Edges`.

  | method | one round | rounds |
  |---|---|---|
  | `'peel'` removes the nodes of the lowest degree | N^2, or m | sum over k of the depth of the shell |
  | `'allk'` prunes for k = 1..K at once | N^2 K, or m K | largest depth of a shell |
  | `'hindex'` degree -> H-index of the neighbours' values | N^2 log d, or m log d | like allk, or fewer |

  In the worst case (a path) the rounds grow with N / 2.

  Args:
    adj: bool or number [N, N], symmetric, zero on the diagonal, not zero is a
      link (weights do not count); or `Edges`.
    method: `'peel'`, `'allk'`, `'hindex'` (Lü et al. 2016), or `'auto'`: peel,
      but allk for a dense matrix of known values on an accelerator.
    k_bound: for allk, a number that no coreness exceeds; values above it come
      out as k_bound. By default `degeneracy_bound` of the degrees where they
      are known, and N - 1 under jit, which is wasteful: pass it there.

  Returns:
    int32[N].

  Raises:
    ValueError: `adj` is not a simple undirected graph (values are looked at
      outside jit only), or `method` or `k_bound` is not one of the above.

  Example:
    >>> path_and_triangle = np.array([[0, 1], [1, 2], [2, 3], [3, 1]])
    >>> coreness(Edges(path_and_triangle, 4)).tolist()
    [1, 2, 2, 2]
  """  # noqa: E501
  if method not in _METHODS:
    raise ValueError(f'method is {method!r}; expected one of {_METHODS}.')
  _check_graph(adj)
  sparse = isinstance(adj, Edges)
  known = not graphs.is_traced(adj.pairs if sparse else adj)
  if method == 'auto':
    matmul = not sparse and known and jax.default_backend() != 'cpu'
    method = 'allk' if matmul else 'peel'
  if not sparse:
    adj = jnp.asarray(adj) != 0
  num_nodes = adj.num_nodes if sparse else adj.shape[0]
  if num_nodes == 0:
    return jnp.zeros(0, jnp.int32)
  if method == 'peel':
    return _peel_edges(adj) if sparse else _peel_dense(adj)
  if method == 'hindex':
    return _hindex(adj)
  if k_bound is None:
    degrees = graphs.degrees_of(adj) if sparse else _sum(adj, 1)
    k_bound = degeneracy_bound(degrees) if known else num_nodes - 1
  if isinstance(k_bound, jax.core.Tracer) or k_bound < 0:
    raise ValueError(
      f'k_bound is {k_bound}; expected an integer of at least 0 that is known '
      'outside jit: it is the size of an array.'
    )
  return _allk(adj, int(k_bound))


def k_core_mask(adj: Any, k: Any) -> jax.Array:
  """Which nodes belong to the k-core.

  Prunes for this k only, which is cheaper than `coreness(adj) >= k`.

  Args:
    adj: [N, N] adjacency matrix or `Edges`, as in `coreness`.
    k: number, may be traced; 2.5 asks for 3 neighbours.

  Returns:
    bool[N]: the largest set in which each node has at least k neighbours.

  Raises:
    ValueError: `adj` is not a simple undirected graph, or `k` is no number.

  Example:
    >>> star = Edges(np.array([[0, 1], [0, 2], [0, 3]]), 4)
    >>> k_core_mask(star, 1).all(), k_core_mask(star, 2).any()
    (Array(True, dtype=bool), Array(False, dtype=bool))
  """
  _check_graph(adj)
  if np.ndim(k):
    raise ValueError(f'k has shape {np.shape(k)}; expected one number.')
  if not graphs.is_traced(k) and np.isnan(k):
    raise ValueError(f'k is {k}; expected a number of neighbours.')
  return _k_core(adj if isinstance(adj, Edges) else jnp.asarray(adj) != 0, k)


def shell_occupancy(coreness: Any, k_max: int | None = None) -> jax.Array:
  """Number of nodes in each k-shell.

  Args:
    coreness: int[N].
    k_max: last shell to count; by default the largest that occurs. Needed under
      jit, where it sets the shape.

  Returns:
    int32[k_max + 1], nodes of coreness 0, 1, ... k_max.

  Raises:
    ValueError: coreness has another rank, `k_max` is missing under jit, or a
      coreness, where known, exceeds it or is negative.

  Example:
    >>> shell_occupancy(np.array([2, 2, 2, 1])).tolist()
    [0, 1, 3]
  """
  if np.ndim(coreness) != 1:
    raise ValueError(
      f'coreness has shape {np.shape(coreness)}; expected [N]. Use jax.vmap '
      'for a batch.'
    )
  known = not graphs.is_traced(coreness)
  if k_max is None:
    if not known:
      raise ValueError('k_max is needed under jit: it sets the shape.')
    k_max = int(np.max(np.asarray(coreness), initial=0))
  elif known and np.max(np.asarray(coreness), initial=0) > k_max:
    raise ValueError(
      f'k_max is {k_max} but coreness goes up to {np.max(coreness)}.'
    )
  if known and np.min(np.asarray(coreness), initial=0) < 0:
    raise ValueError(
      f'coreness has a negative entry, {np.min(coreness)}; expected 0 or more.'
    )
  coreness = jnp.asarray(coreness, jnp.int32)
  return jnp.zeros(k_max + 1, jnp.int32).at[coreness].add(1, mode='drop')


def degeneracy_bound(degrees: Any) -> Any:
  """H-index of the degrees: a bound on k_max that rewiring does not change.

  The k-core has more than k nodes of degree k or more, so k_max is at most the
  largest h such that h nodes have degree h or more.

  Args:
    degrees: int[N].

  Returns:
    A Python int, or an int32 scalar when `degrees` is traced.

  Raises:
    ValueError: `degrees` has another rank or, where known, negative entries.

  Example:
    >>> degeneracy_bound([3, 1, 1, 1])
    1
  """
  if np.ndim(degrees) != 1:
    raise ValueError(f'degrees has shape {np.shape(degrees)}; expected [N].')
  if graphs.is_traced(degrees):
    descending = -jnp.sort(-degrees)
    rank = jnp.arange(1, descending.size + 1)
    return jnp.sum(descending >= rank, dtype=jnp.int32)
  descending = -np.sort(-np.asarray(degrees))
  if descending.size and descending[-1] < 0:
    raise ValueError(f'degrees has a negative entry, {descending[-1]}.')
  return int(np.sum(descending >= np.arange(1, descending.size + 1)))


def _check_graph(adj):
  if isinstance(adj, Edges):
    graphs.check_edges(adj.pairs, adj.num_nodes)
  else:
    graphs.check_adjacency(adj)


def _sum(array, axis=None):
  # Without dtype the sum of bools is int64 under x64, which breaks carries.
  return jnp.sum(array, axis=axis, dtype=jnp.int32)


def _ends(edges):
  pairs = jnp.asarray(edges.pairs, jnp.int32)
  return pairs[:, 0], pairs[:, 1]


def _matmul_dtype():
  """Type whose products of zeros and ones are fast; the sums are float32.

  They are exact up to 2**24. A bfloat16 output would not be, above 256.
  """
  return jnp.float32 if jax.default_backend() == 'cpu' else jnp.bfloat16


def _dense_neighbours(adj):
  """int32 count of living neighbours, by a matrix product."""
  matrix = adj.astype(_matmul_dtype())

  def count(alive):
    product = jnp.matmul(
      matrix, alive.astype(matrix.dtype), preferred_element_type=jnp.float32
    )
    return product.astype(jnp.int32)

  return count


def _edge_neighbours(edges):
  """The same for an edge list; `alive` has one more row, for the padding."""
  u, v = _ends(edges)

  def count(alive):
    alive = alive.astype(jnp.int32)
    return jnp.zeros_like(alive).at[u].add(alive[v]).at[v].add(alive[u])

  return count


def _peel(count, alive):
  """Removes nodes of the lowest degree until none is left."""

  def step(state):
    alive, core, k = state
    degree = count(alive)
    # Jump straight to the next occupied shell where nothing is left to remove.
    lowest = jnp.min(jnp.where(alive, degree, jnp.iinfo(jnp.int32).max))
    k = jnp.maximum(k, lowest)
    removed = alive & (degree <= k)
    return alive & ~removed, jnp.where(removed, k, core), k

  core = jnp.zeros(alive.shape, jnp.int32)
  state = (alive, core, jnp.zeros((), jnp.int32))
  return jax.lax.while_loop(lambda state: jnp.any(state[0]), step, state)[1]


@jax.jit
def _peel_dense(adj):
  return _peel(_dense_neighbours(adj), jnp.ones(adj.shape[0], bool))


@jax.jit
def _peel_edges(edges):
  n = edges.num_nodes
  return _peel(_edge_neighbours(edges), jnp.arange(n + 1) < n)[:n]


def _prune(count, alive, k):
  """Removes whatever has fewer than k living neighbours, until nothing does."""

  def step(state):
    alive, _ = state
    kept = alive & (count(alive) >= k)
    return kept, jnp.any(kept != alive)

  state = (alive, jnp.ones((), bool))
  return jax.lax.while_loop(lambda state: state[1], step, state)[0]


def _prune_graph(adj, k, width=()):
  if isinstance(adj, Edges):
    n = adj.num_nodes
    alive = jnp.arange(n + 1) < n
    alive = jnp.broadcast_to(
      alive.reshape((-1,) + (1,) * len(width)), (n + 1, *width)
    )
    return _prune(_edge_neighbours(adj), alive, k)[:n]
  alive = jnp.ones((adj.shape[0], *width), bool)
  return _prune(_dense_neighbours(adj), alive, k)


@jax.jit
def _k_core(adj, k):
  k = jnp.asarray(k)
  if jnp.issubdtype(k.dtype, jnp.floating):
    # No node has as many as N neighbours: this also takes infinities.
    n = adj.num_nodes if isinstance(adj, Edges) else adj.shape[0]
    k = jnp.clip(jnp.ceil(k), 0, n)
  return _prune_graph(adj, k.astype(jnp.int32))


def _allk(adj, k_bound):
  if k_bound == 0:
    return jnp.zeros(
      adj.num_nodes if isinstance(adj, Edges) else adj.shape[0], jnp.int32
    )
  return _allk_jit(adj, jnp.arange(1, k_bound + 1, dtype=jnp.int32))


@jax.jit
def _allk_jit(adj, k):
  return _sum(_prune_graph(adj, k, k.shape), 1)


@jax.jit
def _hindex(adj):
  """Iterates h <- H-index of the neighbours' h, from the degrees down.

  The H-index is found by bisection on "at least k neighbours have h >= k",
  which needs counts only: no sorting.
  """
  if isinstance(adj, Edges):
    n = adj.num_nodes
    u, v = _ends(adj)
    degree = jnp.zeros(n + 1, jnp.int32).at[u].add(1).at[v].add(1)
    degree = degree.at[n].set(0)

    def reach(h, k):
      count = jnp.zeros_like(h).at[u].add((h[v] >= k[u]).astype(jnp.int32))
      return count.at[v].add((h[u] >= k[v]).astype(jnp.int32))

  else:
    n = adj.shape[0]
    degree = _sum(adj, 1)

    def reach(h, k):
      return _sum(adj & (h[None, :] >= k[:, None]), 1)

  halvings = int(np.ceil(np.log2(n + 1)))

  def step(state):
    h, _ = state

    def halve(_, bracket):
      # h-index in [low, high]: low is reached, above high is not.
      low, high = bracket
      middle = (low + high + 1) // 2
      enough = reach(h, middle) >= middle
      return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    # The value never rises, so the present one is an upper bound.
    bracket = (jnp.zeros_like(h), h)
    new, _ = jax.lax.fori_loop(0, halvings, halve, bracket)
    return new, jnp.any(new != h)

  state = (degree, jnp.ones((), bool))
  return jax.lax.while_loop(lambda state: state[1], step, state)[0][:n]
