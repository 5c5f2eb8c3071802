"""How far layers have turned: monitors that run inside a jitted step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpapers.layca import checks, geometry, trees
from jaxpapers.layca.transform import LaycaState


def _layers(function, first, second, layer_axes, what):
  """Maps a function of two arrays and the axes of a layer over two trees."""
  names, leaves, treedef = trees.flatten(first)
  others = treedef.flatten_up_to(second)
  absent = [
    trees.is_absent(a) or trees.is_absent(b)
    for a, b in zip(leaves, others, strict=True)
  ]
  shapes = [
    None if gone else jnp.shape(leaf)
    for leaf, gone in zip(leaves, absent, strict=True)
  ]
  axes = trees.resolve_axes(layer_axes, names, shapes)
  out = []
  for name, a, b, gone, over in zip(
    names, leaves, others, absent, axes, strict=True
  ):
    if gone:
      out.append(a if trees.is_absent(a) else b)
      continue
    if jnp.shape(a) != jnp.shape(b):
      raise ValueError(
        f'{what} has shape {jnp.shape(b)} at {name!r}; expected {jnp.shape(a)}.'
      )
    dtype = jnp.result_type(a, b)
    if not jnp.issubdtype(dtype, jnp.floating):
      raise TypeError(f'{name!r} has dtype {dtype}; expected real floats.')
    dtype = jnp.promote_types(dtype, jnp.float32)
    reduced = geometry.reduced_axes(jnp.ndim(a), over)
    out.append(function(jnp.asarray(a, dtype), jnp.asarray(b, dtype), reduced))
  return treedef.unflatten(out)


def layer_rotation(params: Any, reference: Any, layer_axes: Any = None) -> Any:
  """Cosine distance of every layer to where it was, the paper's indicator.

  `1 - cos(w, w_0)`, computed as ||w/|w| - w_0/|w_0|||^2 / 2 so that small
  rotations do not round to 0 and none is negative. It is 0 at the start and
  near 1 when a layer has forgotten it.

  Args:
    params: tree of weights.
    reference: tree of the same structure and shapes: the initial weights.
    layer_axes: as in `layca`.

  Returns:
    Tree of distances in float32 (float64 for float64), each of the shape of the
    leaf's layer axes, () if it has none. Where one of both is exactly zero the
    distance is 1, where both are, 0. None and masked leaves stay.

  Raises:
    TypeError: a leaf is not real.
    ValueError: shapes differ.

  Example:
    >>> w = {'kernel': jnp.asarray([1.0, 0.0])}
    >>> layer_rotation({'kernel': jnp.asarray([0.0, 2.0])}, w)
    {'kernel': Array(1., dtype=float32)}
  """
  return _layers(
    geometry.half_squared_chord, params, reference, layer_axes, 'reference'
  )


def step_tangent(old: Any, new: Any, layer_axes: Any = None) -> Any:
  """Tangent of the angle by which every layer turned between two trees.

  After one update of Layca it is the layer's learning rate. Of another
  optimizer's updates it makes the table for `replay_schedules`.

  Args:
    old: tree of weights before.
    new: tree of weights after.
    layer_axes: as in `layca`.

  Returns:
    Tree of tangents, shaped as in `layer_rotation`; inf for right angles.

  Raises:
    TypeError: a leaf is not real.
    ValueError: shapes differ.

  Example:
    >>> old = {'kernel': jnp.asarray([1.0, 0.0])}
    >>> step_tangent(old, {'kernel': jnp.asarray([2.0, 1.0])})
    {'kernel': Array(0.5, dtype=float32)}
  """

  def tangent(a, b, axes):
    distance = geometry.half_squared_chord(a, b, axes)
    sine = geometry.root(jnp.maximum(distance * (2 - distance), 0))
    return sine / jnp.abs(1 - distance)

  return _layers(tangent, old, new, layer_axes, 'new')


class LayerRotationState(NamedTuple):
  """State of `track_layer_rotation`.

  Attributes:
    reference: the initial weights.
    distance: cosine distances to them after the last update, as
      `layer_rotation` gives them.
  """

  reference: Any
  distance: Any


def track_layer_rotation(
  reference_dtype: Any = None,
  *,
  layer_axes: Any = None,
  select: Callable[[str, Any], bool] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Keeps the cosine distance of every layer to its initial weights in state.

  Updates pass unchanged, so that it may follow `layca`; put it last, since it
  measures where the updates that it sees lead. Read the distances from the
  state, `optax.tree.get(opt_state, 'distance')`.

  Args:
    reference_dtype: type in which initial weights are kept, that of the
      parameters by default. bfloat16 halves the memory; the distance is then to
      the rounded weights, which are 3e-6 away from the true ones.
    layer_axes: as in `layca`.
    select: function of (path, leaf) that chooses layers; all by default.

  Returns:
    The transform. Its state holds a copy of the parameters chosen.

  Example:
    >>> params = {'kernel': jnp.asarray([1.0, 0.0])}
    >>> tx = optax.chain(optax.sgd(1.0), track_layer_rotation())
    >>> grads = {'kernel': jnp.asarray([1.0, -2.0])}
    >>> _, state = tx.update(grads, tx.init(params), params)
    >>> float(state[1].distance['kernel'])
    1.0
  """

  def chosen(tree):
    if select is None:
      return tree
    names, leaves, treedef = trees.flatten(tree)
    return treedef.unflatten(
      [
        leaf if not trees.is_absent(leaf) and select(name, leaf) else None
        for name, leaf in zip(names, leaves, strict=True)
      ]
    )

  def init(params):
    reference = jax.tree.map(
      lambda x: jnp.array(x, reference_dtype or x.dtype), chosen(params)
    )
    distance = layer_rotation(reference, reference, layer_axes)
    return LayerRotationState(reference, distance)

  def update(updates, state, params=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(checks.NO_PARAMS_MSG)
    new = chosen(optax.apply_updates(params, updates))
    distance = layer_rotation(new, state.reference, layer_axes)
    return updates, LayerRotationState(state.reference, distance)

  return optax.GradientTransformationExtraArgs(init, update)


def find_states(opt_state: Any, kind: type = LaycaState) -> list[Any]:
  """All states of one kind in an optimizer's state, in order.

  Args:
    opt_state: state of any optax optimizer.
    kind: class of the state.

  Returns:
    The states found.

  Example:
    >>> find_states((LaycaState(0, None), 1))[0].count
    0
  """
  leaves = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, kind))
  return [leaf for leaf in leaves if isinstance(leaf, kind)]


def normalize_to(params: Any, target_norms: Any) -> Any:
  """Scales layers to given norms, keeping their directions.

  Averages of weights (EMA, Polyak) lie inside Layca's sphere; an averaged copy
  is brought back to it with this before it is evaluated.

  Args:
    params: tree of weights.
    target_norms: tree of norms as in `LaycaState.target_norm`, arrays that
      broadcast against the leaves; an optimizer state that contains one
      `LaycaState`; or a number for all leaves. Leaves without a norm are left
      as they are, and so are layers of norm 0.

  Returns:
    The tree of scaled weights, in their dtypes.

  Raises:
    ValueError: a norm does not broadcast, or the state has not one LaycaState.

  Example:
    >>> normalize_to({'kernel': jnp.asarray([3.0, 4.0])}, 10.0)
    {'kernel': Array([6., 8.], dtype=float32)}
  """
  names, leaves, treedef = trees.flatten(params)
  norms = _norms_by_name(target_norms, names)
  out = []
  for name, leaf in zip(names, leaves, strict=True):
    target = norms.get(name)
    if trees.is_absent(leaf) or trees.is_absent(target):
      out.append(leaf)
      continue
    dtype = jnp.promote_types(leaf.dtype, jnp.float32)
    target, weights = jnp.asarray(target, dtype), jnp.asarray(leaf, dtype)
    fits = target.ndim in (0, weights.ndim) and all(
      n in (1, m) for n, m in zip(target.shape, weights.shape)
    )
    if not fits:
      raise ValueError(
        f'target_norms has shape {target.shape} at {name!r}; expected a scalar'
        f' or {weights.ndim} axes that are 1 or as in {weights.shape}.'
      )
    axes = tuple(range(weights.ndim))
    if target.ndim:
      axes = tuple(i for i in axes if target.shape[i] == 1)
    scale = target / geometry.positive(geometry.norm(weights, axes))
    out.append((weights * scale).astype(leaf.dtype))
  return treedef.unflatten(out)


def _norms_by_name(target_norms, names):
  if isinstance(target_norms, (int, float, np.ndarray, jax.Array)):
    return dict.fromkeys(names, target_norms)
  states = find_states(target_norms)
  if states:
    if len(states) > 1:
      raise ValueError(
        f'target_norms has {len(states)} states of layca; give the target_norm'
        ' of one of them.'
      )
    target_norms = states[0].target_norm
  found, values, _ = trees.flatten(target_norms)
  return dict(zip(found, values, strict=True))
