"""Graphs as adjacency matrices and as padded edge lists, and their checks."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['pairs'],
  meta_fields=['num_nodes'],
)
@dataclasses.dataclass(frozen=True)
class Edges:
  """An undirected graph as a list of edges, of a fixed length.

  Rows that hold `num_nodes` in both columns are padding, so that graphs with
  different numbers of edges can be stacked and vmapped.

  Attributes:
    pairs: int32[m, 2], each edge once, in either order.
    num_nodes: number of nodes; static under jit.

  Example:
    >>> triangle = Edges(np.array([[0, 1], [1, 2], [0, 2], [4, 4]]), 4)
    >>> adjacency_matrix(triangle).sum(1).tolist()
    [2, 2, 2, 0]
  """

  pairs: Any
  num_nodes: int


def is_traced(*arrays: Any) -> bool:
  """Whether the values of one of these are unknown, inside jit or vmap."""
  return any(isinstance(array, jax.core.Tracer) for array in arrays)


def edge_list(adj: Any) -> np.ndarray:
  """Edges of an adjacency matrix, on the host.

  Args:
    adj: [N, N], symmetric, zero on the diagonal; not zero is a link.

  Returns:
    int32[m, 2] with u < v in each row, sorted.

  Raises:
    ValueError: `adj` is not such a matrix.

  Example:
    >>> edge_list(np.array([[0, 1], [1, 0]])).tolist()
    [[0, 1]]
  """
  check_adjacency(adj)
  return np.argwhere(np.triu(np.asarray(adj) != 0, 1)).astype(np.int32)


def adjacency_matrix(edges: Edges) -> jax.Array:
  """The bool[N, N] adjacency matrix of an edge list; works under jit.

  Args:
    edges: the graph; padding is left out.

  Returns:
    Symmetric matrix, false on the diagonal.

  Example:
    >>> adjacency_matrix(Edges(np.array([[0, 1]]), 2)).tolist()
    [[False, True], [True, False]]
  """
  n = edges.num_nodes
  pairs = jnp.asarray(edges.pairs, jnp.int32)
  u, v = pairs[:, 0], pairs[:, 1]
  # Padding falls into the last row and column, which are cut off. (A negative
  # index would wrap around instead of being dropped.)
  adj = jnp.zeros((n + 1, n + 1), bool)
  return adj.at[u, v].set(True).at[v, u].set(True)[:n, :n]


def degrees_of(edges: Edges) -> jax.Array:
  """int32[N] degrees of an edge list.

  Args:
    edges: the graph; padding is left out.

  Returns:
    Number of edges of each node.

  Example:
    >>> degrees_of(Edges(np.array([[0, 1], [0, 2]]), 3)).tolist()
    [2, 1, 1]
  """
  ends = jnp.ravel(jnp.asarray(edges.pairs, jnp.int32))
  count = jnp.zeros(edges.num_nodes + 1, jnp.int32).at[ends].add(1)
  return count[: edges.num_nodes]


def check_square(matrix: Any, name: str) -> None:
  """Raises unless a matrix is square; static, so also under jit.

  Args:
    matrix: an array.
    name: what to call it in the message.

  Raises:
    ValueError: names the argument and its shape.
  """
  shape = np.shape(matrix)
  if len(shape) != 2 or shape[0] != shape[1]:
    raise ValueError(
      f'{name} has shape {shape}; expected a square matrix [N, N]. Edge lists '
      'are passed as kcore.Edges(pairs, num_nodes).'
    )


def check_symmetric(matrix: Any, name: str) -> None:
  """Raises unless a matrix of known values is finite and exactly symmetric.

  Args:
    matrix: [N, N]; its values are not looked at while tracing.
    name: what to call it in the message.

  Raises:
    ValueError: names the argument and says what is wrong with it.
  """
  check_square(matrix, name)
  if is_traced(matrix):
    return
  matrix = np.asarray(matrix)
  if matrix.dtype.kind == 'f':
    bad = np.count_nonzero(~np.isfinite(matrix))
    if bad:
      raise ValueError(
        f'{name} has {bad} entries that are NaN or infinite; expected finite '
        'numbers. Constant voxels correlate NaN: drop them first.'
      )
  if not np.array_equal(matrix, matrix.T):
    u, v = np.argwhere(matrix != matrix.T)[0]
    raise ValueError(
      f'{name} is not symmetric: entry [{u}, {v}] is {matrix[u, v]} and entry '
      f'[{v}, {u}] is {matrix[v, u]}. Expected an undirected graph; mirror one '
      'triangle (numpy.corrcoef is not symmetric to the last bit).'
    )


def check_adjacency(adj: Any, name: str = 'adj') -> None:
  """Raises unless this is the adjacency matrix of a simple undirected graph.

  Args:
    adj: [N, N]; values are not looked at while tracing.
    name: what to call it in the message.

  Raises:
    ValueError: names the argument and says what is wrong with it.
  """
  check_symmetric(adj, name)
  if is_traced(adj):
    return
  loops = np.count_nonzero(np.diagonal(np.asarray(adj)))
  if loops:
    raise ValueError(
      f'{name} has {loops} self-loops (entries on the diagonal); expected zeros'
      ' there. A loop would count towards the degree of its own node.'
    )


def check_edges(pairs: Any, num_nodes: int, name: str = 'edges') -> None:
  """Raises unless these are the edges of a simple graph on `num_nodes` nodes.

  Args:
    pairs: int[m, 2], padded with num_nodes; values are not looked at while
      tracing.
    num_nodes: number of nodes.
    name: what to call the pairs in the message.

  Raises:
    ValueError: names the argument and says what is wrong with it.
  """
  if isinstance(num_nodes, bool) or int(num_nodes) != num_nodes:
    raise ValueError(f'num_nodes is {num_nodes}; expected an integer.')
  if num_nodes < 0:
    raise ValueError(f'num_nodes is {num_nodes}; expected 0 or more.')
  shape = np.shape(pairs)
  if len(shape) != 2 or shape[1] != 2:
    raise ValueError(
      f'{name} has shape {shape}; expected [m, 2], one pair of nodes per row.'
    )
  if is_traced(pairs):
    return
  pairs = np.asarray(pairs)
  if pairs.size and pairs.dtype.kind not in 'iu':
    raise ValueError(
      f'{name} has dtype {pairs.dtype}; expected integer node numbers.'
    )
  pairs = pairs[~np.all(pairs == num_nodes, axis=1)].astype(np.int64)
  if not pairs.size:
    return
  if pairs.min() < 0 or pairs.max() >= num_nodes:
    raise ValueError(
      f'{name} holds node numbers in [{pairs.min()}, {pairs.max()}]; expected '
      f'0..{num_nodes - 1} (num_nodes is {num_nodes}), or {num_nodes} twice in '
      'a row of padding.'
    )
  loops = np.count_nonzero(pairs[:, 0] == pairs[:, 1])
  if loops:
    raise ValueError(f'{name} holds {loops} self-loops; remove them.')
  codes = np.sort(pairs.min(axis=1) * num_nodes + pairs.max(axis=1))
  doubles = np.count_nonzero(codes[1:] == codes[:-1])
  if doubles:
    raise ValueError(
      f'{name} holds {doubles} edges more than once (in either order); expected'
      ' a simple undirected graph with each edge once.'
    )
