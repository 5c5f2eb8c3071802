"""Percolation of a weighted network: every level at once, from one tree.

The components of {weight >= level} change at the weights of the maximum
spanning tree only. One pass of Prim's algorithm and one of Kruskal's over its
N - 1 edges give the whole curve of arXiv:1903.09630, figure 3a, without a grid.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.kcore import edges as graphs


class Percolation(NamedTuple):
  """The percolation curve, one entry per edge of the maximum spanning tree.

  Entries of equal level all hold the sizes after the whole level, since links
  of equal weight appear together.

  Attributes:
    level: [N - 1], of the type of the levels, descending. A level below 0 (for
      floating-point levels: -inf) joins what no link joins.
    giant: int32[N - 1], size of the largest component of {weight >= level}.
    second: int32[N - 1], size of the second largest.
    mst_edges: int32[N - 1, 2], the edges of the tree in this order.
  """

  level: Any
  giant: Any
  second: Any
  mst_edges: Any


def percolation_curve(levels: Any) -> Percolation:
  """The exact percolation curve of a weighted network.

  Works under jit and vmap. Time and memory grow with N^2, whatever the number
  of levels.

  Args:
    levels: int32[N, N] from `quantize_levels`, or weights of any real type
      that JAX holds; symmetric. The diagonal is ignored. Without x64 JAX holds
      float64 weights as float32, which is taken where no two distinct weights
      become one.

  Returns:
    The curve. `giant_at` reads it at any threshold.

  Raises:
    ValueError: `levels` is not square, or, where known, not symmetric or not
      finite, or has distinct weights that would be one without x64.

  Example:
    >>> levels = np.array([[0, 9, 5], [9, 0, 5], [5, 5, 0]])
    >>> curve = percolation_curve(levels)
    >>> curve.level.tolist(), curve.giant.tolist(), curve.second.tolist()
    ([9, 5], [2, 3], [1, 0])
  """
  graphs.check_symmetric(levels, 'levels')
  _check_exact(levels)
  levels = jnp.asarray(levels)
  n = levels.shape[0]
  if n < 2:
    none = jnp.zeros(0, jnp.int32)
    return Percolation(
      jnp.zeros(0, levels.dtype), none, none, none.reshape(0, 2)
    )
  return _curve(levels)


def giant_at(curve: Percolation, level: Any) -> jax.Array:
  """Size of the largest component of {weight >= level}.

  Args:
    curve: from `percolation_curve`.
    level: thresholds, any shape, of the type of `curve.level`.

  Returns:
    int32 of that shape.

  Example:
    >>> curve = percolation_curve(np.array([[0, 9, 5], [9, 0, 5], [5, 5, 0]]))
    >>> giant_at(curve, np.array([10, 6, 0])).tolist()
    [1, 2, 3]
  """
  # Number of tree edges that are there at this threshold.
  count = jnp.searchsorted(
    -jnp.asarray(curve.level), -jnp.asarray(level), 'right'
  )
  sizes = jnp.concatenate([jnp.ones(1, jnp.int32), curve.giant])
  return sizes[count]


def module_merge_thresholds(
  levels: Any, module: Any, num_modules: int, quorum: float = 0.5
) -> tuple[jax.Array, jax.Array]:
  """At which level each pair of modules becomes one.

  lambda_out(a, b) is the highest level at which one component of {weight >=
  level} holds more than a fraction `quorum` of module a and more than that of
  module b. Module a connects inside from the level above its first merge:
  lambda_in(a) = max over b of lambda_out(a, b), plus one. Works under jit and
  vmap; costs N^2 + N M^2.

  Args:
    levels: int32[N, N] as in `percolation_curve`; negative is no link.
    module: int[N] in 0..num_modules - 1.
    num_modules: M.
    quorum: fraction of a module that makes it part of a component, in [0, 1).

  Returns:
    lambda_in: int32[M], -1 for a module that never merges.
    lambda_out: int32[M, M], symmetric, -1 for pairs that never merge. On the
      diagonal the level at which more than the quorum of the module itself is
      connected, 2**31 - 1 if one node is that already.

  Raises:
    ValueError: an argument has the wrong shape or type; where values are known,
      `levels` is not symmetric or a module has no node.

  Example:
    >>> levels = np.array([[0, 9, 5], [9, 0, 5], [5, 5, 0]])
    >>> lambda_in, lambda_out = module_merge_thresholds(levels, [0, 0, 1], 2)
    >>> lambda_in.tolist(), lambda_out.tolist()
    ([6, 6], [[9, 5], [5, 2147483647]])
  """
  graphs.check_symmetric(levels, 'levels')
  levels = jnp.asarray(levels)
  if not jnp.issubdtype(levels.dtype, jnp.integer):
    raise ValueError(
      f'levels has dtype {levels.dtype}; expected the integers that '
      'quantize_levels makes.'
    )
  levels = levels.astype(jnp.int32)
  check_module(module, levels.shape[0], num_modules)
  if not graphs.is_traced(quorum) and not 0 <= quorum < 1:
    raise ValueError(
      f'quorum is {quorum}; expected a fraction in [0, 1): no component holds '
      'more than the whole of a module.'
    )
  if graphs.is_traced(module, quorum):
    labels = jnp.asarray(module, jnp.int32)
    size = jnp.zeros(num_modules, jnp.int32).at[labels].add(1)
    need = jnp.floor(quorum * size).astype(jnp.int32) + 1
  else:
    size = np.bincount(np.asarray(module), minlength=num_modules)
    need = jnp.asarray(np.floor(quorum * size) + 1, jnp.int32)
  module = jnp.asarray(module, jnp.int32)
  member = module[:, None] == jnp.arange(num_modules, dtype=jnp.int32)
  return _merge_levels(levels, member.astype(jnp.int32), need)


def check_module(module: Any, num_nodes: int, num_modules: int) -> None:
  """Raises unless these labels are 0..num_modules-1, each of them used.

  Args:
    module: int[N]; values are not looked at while tracing.
    num_nodes: N.
    num_modules: M.

  Raises:
    ValueError: names the argument and says what is wrong with it.
  """
  if module is None:
    raise ValueError('module is None; expected the label 0..M-1 of each node.')
  if not num_modules >= 1:
    raise ValueError(f'num_modules is {num_modules}; expected 1 or more.')
  if np.shape(module) != (num_nodes,):
    raise ValueError(
      f'module has shape {np.shape(module)}; expected ({num_nodes},), one '
      'label per node. Were nodes dropped from the series only?'
    )
  if graphs.is_traced(module):
    return
  module = np.asarray(module)
  if module.dtype.kind not in 'iu':
    raise ValueError(
      f'module has dtype {module.dtype}; expected integer labels 0..M-1.'
    )
  if module.size and (module.min() < 0 or module.max() >= num_modules):
    raise ValueError(
      f'module holds labels in [{module.min()}, {module.max()}]; expected '
      f'0..{num_modules - 1}.'
    )
  empty = np.flatnonzero(np.bincount(module, minlength=num_modules) == 0)
  if empty.size:
    raise ValueError(
      f'module: no node has label {empty.tolist()}; expected every label of '
      f'0..{num_modules - 1}. Renumber: numpy.unique(module, '
      'return_inverse=True)[1].'
    )


def known_labels(module: Any, num_nodes: int) -> np.ndarray:
  """Labels of known values, checked, as an array of the host.

  Args:
    module: int[N], labels 0..M-1, each of them used.
    num_nodes: N.

  Returns:
    The labels; M is their maximum plus one.

  Raises:
    ValueError: as in `check_module`.

  Example:
    >>> known_labels([0, 1, 0], 3).max() + 1
    np.int64(2)
  """
  labels = None if module is None else np.asarray(module)
  # The largest label says how many there are, if they are labels at all.
  integers = labels is not None and labels.dtype.kind in 'iu' and labels.size
  highest = int(labels.max()) + 1 if integers else 1
  check_module(labels, num_nodes, max(highest, 1))
  return labels


def _check_exact(levels):
  """Refuses weights that become equal, or overflow, in the type of JAX."""
  if graphs.is_traced(levels):
    return
  levels = np.asarray(levels)
  dtype = jnp.asarray(levels[:0]).dtype
  if dtype == levels.dtype:
    return
  exact = np.unique(levels[np.triu_indices(len(levels), 1)])
  with np.errstate(over='ignore'):
    held = exact.astype(dtype)
  if dtype.kind == 'f':
    lost = np.any(held[1:] == held[:-1]) or not np.all(np.isfinite(held))
  else:
    lost = np.any(held != exact)
  if lost:
    raise ValueError(
      f'levels has dtype {levels.dtype}, which JAX holds as {dtype}, and '
      'weights would be lost or become one. Pass quantize_levels(levels)[0], '
      'which is exact and keeps their order, or call under '
      'jax.enable_x64(True).'
    )


def _spanning_tree(levels):
  """Prim's algorithm: (edges [N-1, 2], level [N-1]) from high to low level."""
  n = levels.shape[0]
  nodes = jnp.arange(n, dtype=jnp.int32)
  if jnp.issubdtype(levels.dtype, jnp.floating):
    lowest = jnp.asarray(-jnp.inf, levels.dtype)
  else:
    lowest = jnp.asarray(jnp.iinfo(levels.dtype).min, levels.dtype)

  def grow(state, _):
    outside, best, parent = state
    level = jnp.max(jnp.where(outside, best, lowest))
    # argmax, as two reductions that vectorise. It is int64 under x64, too.
    new = jnp.min(jnp.where(outside & (best == level), nodes, n - 1))
    row = jax.lax.dynamic_index_in_dim(levels, new, keepdims=False)
    edge = jnp.stack([parent[new], new])
    outside = outside & (nodes != new)
    closer = outside & (row > best)
    best = jnp.where(closer, row, best)
    parent = jnp.where(closer, new, parent)
    return (outside, best, parent), (edge, level)

  state = (nodes > 0, levels[0], jnp.zeros(n, jnp.int32))
  _, (edges, level) = jax.lax.scan(grow, state, length=n - 1)
  order = jnp.argsort(level, descending=True, stable=True)
  return edges[order], level[order]


def _join(component, edge):
  """Labels of the two components that a tree edge joins, and the new ones."""
  kept, gone = component[edge[0]], component[edge[1]]
  return kept, gone, jnp.where(component == gone, kept, component)


@jax.jit
def _curve(levels):
  n = levels.shape[0]
  edges, level = _spanning_tree(levels)

  def merge(state, edge):
    component, size = state
    kept, gone, component = _join(component, edge)
    size = size.at[kept].add(size[gone]).at[gone].set(0)
    giant = jnp.max(size)
    # Several components can be the largest: then the second is as large.
    ties = jnp.sum(size == giant, dtype=jnp.int32)
    second = jnp.max(jnp.where(size < giant, size, 0))
    second = jnp.where(ties > 1, giant, second)
    return (component, size), (giant, second)

  state = (jnp.arange(n, dtype=jnp.int32), jnp.ones(n, jnp.int32))
  _, (giant, second) = jax.lax.scan(merge, state, edges)
  # Sizes after the last edge of the same level.
  last = jnp.searchsorted(-level, -level, 'right').astype(jnp.int32) - 1
  return Percolation(level, giant[last], second[last], edges)


@jax.jit
def _merge_levels(levels, member, need):
  n, num_modules = member.shape
  edges, level = _spanning_tree(levels)

  def merge(state, tree):
    component, count, merged = state
    edge, level = tree
    kept, gone, component = _join(component, edge)
    count = count.at[kept].add(count[gone])
    present = count[kept] >= need
    both = present[:, None] & present[None, :]
    # Levels descend, so the first time is the highest.
    merged = jnp.where(both & (merged < 0), level, merged)
    return (component, count, merged), None

  none = jnp.full((num_modules, num_modules), -1, jnp.int32)
  alone = jnp.diag(need <= 1)
  top = jnp.iinfo(jnp.int32).max
  merged = jnp.where(alone, top, none)
  state = (jnp.arange(n, dtype=jnp.int32), member, merged)
  (_, _, merged), _ = jax.lax.scan(merge, state, (edges, level))
  merged = jnp.maximum(merged, -1)
  between = jnp.where(jnp.eye(num_modules, dtype=bool), -1, merged)
  first = jnp.max(between, axis=1)
  return jnp.where(first < 0, -1, first + 1), merged
