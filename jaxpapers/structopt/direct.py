"""Sparse direct solution by nested-dissection Cholesky in pure JAX.

The stiffness matrix of a rectangular grid is factorised block by block along a
static elimination plan (see ``nested_dissection.py``): every step is a batched
dense Cholesky factorisation, a triangular solve and a matrix product, so that
the whole factorisation jits, vmaps and runs on CPU, GPU and TPU without an
external sparse library. Exact to rounding for any density contrast that
float64 can represent.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpapers.structopt import dense, elements, nested_dissection


def _leaf_tensor(leaf, order, stiffness):
  """``[elements, dofs, dofs]``: contribution of each element of a leaf."""
  position = {node: i for i, node in enumerate(order)}
  count = len(order)
  tensor = np.zeros((leaf[0] * leaf[1], 2 * count, 2 * count))
  pairs = itertools.product(range(leaf[0]), range(leaf[1]))
  for e, (ey, ex) in enumerate(pairs):
    local = [position[ey + cy, ex + cx] for cy, cx in elements.CORNERS_2D]
    dofs = np.array([2 * n + c for n in local for c in (0, 1)])
    tensor[e][np.ix_(dofs, dofs)] = stiffness
  return tensor


def _eliminate(k_ee, k_ek, k_kk):
  """Partial Cholesky: inverse factor, coupling and Schur complement."""
  inverse = dense.inverse_cholesky(k_ee)
  if k_ek.shape[-1] == 0:
    return inverse, k_ek, k_kk
  coupling = dense.matmul(inverse, k_ek)
  product = dense.matmul(dense.transpose(coupling), coupling)
  return inverse, coupling, k_kk - product


def _gather(children, patches):
  """Sums the children's flattened arrays into one merged array."""
  flat = jnp.concatenate(
    [*children, jnp.zeros((children[0].shape[0], 1), children[0].dtype)],
    axis=1,
  )

  def take(index):
    return jnp.take(flat, index, axis=1, mode='clip')

  out = take(patches[0].index)
  for patch in patches[1:]:
    box = tuple(
      slice(a, a + n)
      for a, n in zip(patch.start, patch.index.shape, strict=True)
    )
    # A slice update, not ``.at[].add``, which would become a slow scatter.
    piece = out[(slice(None), *box)] + take(patch.index)
    out = lax.dynamic_update_slice(out, piece, (0, *patch.start))
  return out


def _members(array, members):
  """Rows ``members`` of ``array``; no copy when that is all of them."""
  if len(members) == array.shape[0] and np.array_equal(
    members, np.arange(len(members))
  ):
    return array
  start, step = int(members[0]), 1
  if len(members) > 1:
    step = int(members[1] - members[0])
  regular = start + step * np.arange(len(members))
  if step > 0 and np.array_equal(members, regular):
    return lax.slice_in_dim(
      array, start, int(members[-1]) + 1, stride=step, axis=0
    )
  return jnp.take(array, members, axis=0)


def _owned(plan):
  """Per leaf group, the one copy of each node that loads enter through."""
  sizes = [group.nodes.size for group in plan.levels[0]]
  owned = np.zeros(sum(sizes), bool)
  owned[plan.owner] = True
  pieces = np.split(owned, np.cumsum(sizes)[:-1])
  return [
    piece.reshape(group.nodes.shape)
    for piece, group in zip(pieces, plan.levels[0], strict=True)
  ]


class FactorizedStiffness:
  """A factorised stiffness matrix; ``solve`` applies its inverse.

  Attributes:
    plan: the elimination plan.
    factors: per level and group, the pair (inverse of the
      Cholesky factor, coupling to the kept degrees of freedom).
    free: ``[leaf groups]`` list of local masks of free degrees of freedom.
  """

  def __init__(self, plan, factors, free):
    self.plan = plan
    self.factors = factors
    self.free = free

  def solve(self, forces):
    """Displacements of ``K u = f`` with fixed degrees of freedom at zero.

    Args:
      forces: ``[*cases, ny + 1, nx + 1, 2]`` nodal forces; entries on fixed
        degrees of freedom are ignored. All cases share the factorisation.

    Returns:
      Displacements with the shape of ``forces``, in the dtype of the factors.
    """
    plan = self.plan
    dtype = self.factors[0][0][0].dtype
    cases = forces.shape[:-3]
    ny, nx = plan.ny, plan.nx
    py, px = plan.padded
    f = forces.astype(dtype).reshape((-1, ny + 1, nx + 1, 2))
    f = jnp.pad(f, ((0, 0), (0, py - ny), (0, px - nx), (0, 0)))
    f = jnp.moveaxis(f.reshape((f.shape[0], -1, 2)), 0, -1)  # node, xy, case
    vectors = []
    for group, free, mine in zip(
      plan.levels[0], self.free, _owned(plan), strict=True
    ):
      local = f[group.nodes] * mine[..., None, None]
      local = local.reshape((local.shape[0], -1, local.shape[-1]))
      vectors.append(local * free[..., None])
    return self._substitute(vectors, cases)

  def _substitute(self, vectors, cases):
    plan = self.plan
    reduced = []  # forward: g = L^-1 f_e per level and group
    kept = []
    for level, groups in enumerate(plan.levels):
      if level:
        vectors = [self._collect(group, kept) for group in groups]
      kept, saved = [], []
      for group, vector, (inverse, coupling) in zip(
        groups, vectors, self.factors[level], strict=True
      ):
        e = 2 * group.eliminated
        g = dense.matmul(inverse, vector[:, :e])
        saved.append(g)
        kept.append(vector[:, e:] - dense.matmul(dense.transpose(coupling), g))
      reduced.append(saved)
    outer = [jnp.zeros_like(v) for v in kept]  # the root keeps nothing
    for level in reversed(range(len(plan.levels))):
      groups = plan.levels[level]
      stacked = []
      for g, u_kept, (inverse, coupling) in zip(
        reduced[level], outer, self.factors[level], strict=True
      ):
        u_gone = dense.matmul(
          dense.transpose(inverse), g - dense.matmul(coupling, u_kept)
        )
        stacked.append(jnp.concatenate([u_gone, u_kept], axis=1))
      if level:
        outer = self._distribute(level, stacked)
    return self._nodal(stacked, cases)

  def _collect(self, group, kept):
    children = [_members(kept[g], members) for g, members in group.children]
    columns = children[0].shape[-1]
    flat = jnp.concatenate(
      [
        *children,
        jnp.zeros((len(group.blocks), 1, columns), children[0].dtype),
      ],
      axis=1,
    )
    out = None
    for patch in group.vector_patches:
      piece = jnp.take(flat, patch.index, axis=1, mode='clip')
      if out is None:
        out = piece
      else:
        a = patch.start[0]
        piece = piece + out[:, a : a + piece.shape[1]]
        out = lax.dynamic_update_slice(out, piece, (0, a, 0))
    return out

  def _distribute(self, level, stacked):
    """Kept values of every child group of ``level``, in child order."""
    below = self.plan.levels[level - 1]
    pieces = [[] for _ in below]
    order = [[] for _ in below]
    for group, values in zip(self.plan.levels[level], stacked, strict=True):
      for (child, members), down in zip(
        group.children, group.down, strict=True
      ):
        pieces[child].append(jnp.take(values, down, axis=1, mode='clip'))
        order[child].append(members)
    outer = []
    for piece, members in zip(pieces, order, strict=True):
      together = jnp.concatenate(piece, axis=0)
      back = np.argsort(np.concatenate(members))
      outer.append(_members(together, back))
    return outer

  def _nodal(self, stacked, cases):
    plan = self.plan
    py, px = plan.padded
    columns = stacked[0].shape[-1]
    flat = jnp.concatenate(
      [s.reshape((-1, 2, columns)) for s in stacked], axis=0
    )
    u = jnp.take(flat, plan.owner, axis=0, mode='clip')
    u = jnp.moveaxis(u, -1, 0).reshape((columns, py + 1, px + 1, 2))
    u = u[:, : plan.ny + 1, : plan.nx + 1]
    return u.reshape((*cases, plan.ny + 1, plan.nx + 1, 2))


def factorize(plan, youngs, free, *, stiffness=None, springs=None, dtype=None):
  """Nested-dissection Cholesky factorisation of the stiffness matrix.

  Args:
    plan: elimination plan of the mesh, from ``make_plan(ny, nx)``.
    youngs: ``[ny, nx]`` Young's moduli, non-negative.
    free: ``[ny + 1, nx + 1, 2]`` bool, true where a displacement is free.
    stiffness: ``[8, 8]`` unit element stiffness; by default that of
      ``element_stiffness()``.
    springs: ``[ny + 1, nx + 1, 2]`` stiffnesses of springs to the ground, which
      are added to the diagonal, or None.
    dtype: dtype of the factors; by default that of ``youngs``.

  Returns:
    A ``FactorizedStiffness``. A singular or indefinite matrix gives NaN.
  """
  dtype = dtype or youngs.dtype
  if stiffness is None:
    stiffness = elements.element_stiffness()
  stiffness = np.asarray(stiffness)
  (hy, hx), (by, bx) = plan.leaf, plan.grid
  py, px = plan.padded
  e = jnp.pad(youngs.astype(dtype), ((0, py - plan.ny), (0, px - plan.nx)))
  e = e.reshape((by, hy, bx, hx)).transpose((0, 2, 1, 3))
  e = e.reshape((by * bx, hy * hx))

  def padded_nodes(nodal):
    nodal = jnp.pad(nodal, ((0, py - plan.ny), (0, px - plan.nx), (0, 0)))
    return nodal.reshape((-1, 2)).astype(dtype)

  mask = padded_nodes(free)
  grounded = None if springs is None else padded_nodes(springs)

  factors, schur, masks = [[]], [], []
  for group, mine in zip(plan.levels[0], _owned(plan), strict=True):
    gone = sorted(
      set(itertools.product(range(hy + 1), range(hx + 1))) - set(group.kept)
    )
    tensor = _leaf_tensor(plan.leaf, [*gone, *group.kept], stiffness)
    members = np.array([y * bx + x for y, x in group.blocks])
    moduli = _members(e, members)
    local = mask[group.nodes].reshape((len(members), -1))
    split = 2 * group.eliminated
    n = tensor.shape[-1]
    bounds = {'e': (0, split), 'k': (split, n)}
    parts = []
    for rows, cols in ('ee', 'ek', 'kk'):
      (r0, r1), (c0, c1) = bounds[rows], bounds[cols]
      block = jnp.asarray(tensor[:, r0:r1, c0:c1], dtype)
      part = jnp.tensordot(moduli, block, axes=1, precision='highest')
      part = part * local[:, r0:r1, None] * local[:, None, c0:c1]
      if rows == cols:
        part = part + jnp.eye(r1 - r0, dtype=dtype) * (
          1 - local[:, r0:r1, None]
        )
        if grounded is not None:
          spring = (grounded[group.nodes] * mine[..., None]).reshape(
            local.shape
          )
          spring = (spring * local)[:, r0:r1, None]
          part = part + jnp.eye(r1 - r0, dtype=dtype) * spring
      parts.append(part)
    inverse, coupling, rest = _eliminate(*parts)
    factors[0].append((inverse, coupling))
    schur.append(rest)
    masks.append(local)
  for groups in plan.levels[1:]:
    above, level = [], []
    for group in groups:
      children = [
        _members(schur[g], members).reshape((len(members), -1))
        for g, members in group.children
      ]
      parts = [_gather(children, p) for p in group.matrix_patches]
      inverse, coupling, rest = _eliminate(*parts)
      level.append((inverse, coupling))
      above.append(rest)
    factors.append(level)
    schur = above
  return FactorizedStiffness(plan, factors, masks)


jax.tree_util.register_pytree_node(
  FactorizedStiffness,
  lambda f: ((f.factors, f.free), f.plan),
  lambda plan, leaves: FactorizedStiffness(plan, *leaves),
)
make_plan = nested_dissection.make_plan
