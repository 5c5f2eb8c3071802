"""Layca: an optax transform that rotates each layer by a set angle per step.

Carbonnelle & De Vleeschouwer (2018), arXiv:1806.01603, section 4. Each layer's
weights w stay on a sphere of fixed radius. Of the direction d that a base
optimizer gives, only the part t tangent to the sphere counts, and only its
direction: the step turns w by the angle arctan(learning_rate), whatever d is.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpapers.layca import checks, geometry, rates, trees

# What `target_norm` holds where init saw shapes only; norms are never negative.
_UNKNOWN = -1.0


class LaycaState(NamedTuple):
  """State of `layca`, a plain tree: 4 bytes per layer in float32.

  Attributes:
    count: number of updates so far, int32.
    target_norm: for each leaf the norm of its layers, in float32 (float64 for
      float64 parameters); reduced axes have length 1. The norm at
      initialisation, or with target_norm='current' that of the last step.
    tangent_norm: with normalize=('ema', b), the square root of the running mean
      of squared tangent norms, without bias correction; otherwise None.
  """

  count: jax.Array
  target_norm: Any
  tangent_norm: Any = None


class _Leaves(NamedTuple):
  """The present leaves of a tree, and how to put a tree together again."""

  names: list[str]
  shapes: list[tuple[int, ...] | None]
  axes: list[tuple[int, ...]]
  present: list[int]
  leaves: list[Any]
  treedef: Any

  def unflatten(self, values):
    leaves = list(self.leaves)
    for index, value in zip(self.present, values, strict=True):
      leaves[index] = value
    return jax.tree.unflatten(self.treedef, leaves)


def layca(
  learning_rate: Any,
  *,
  multipliers: Any = None,
  layer_axes: Any = None,
  project: bool = True,
  normalize: str | tuple[str, Any] = 'norm',
  target_norm: Any = 'initial',
  eps: Any = 1e-6,
  eps_abs: Any = None,
  rate_in_direction: bool = False,
  compute_dtype: Any = np.dtype('float32'),  # noqa: B008
  axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """Turns each layer by arctan(learning_rate) towards -direction.

  With R = ||w||, for every layer: t = d - <d, w> w / R^2, then
  `w_new = (w - rho R t / ||t||) / sqrt(1 + rho^2)`, scaled to the target norm.
  It comes LAST in a chain:

    clip, centralise, accumulate -> base direction -> layca -> (nothing)

  The input is a direction of ascent, of the sign of a gradient and of any
  scale: `optax.chain(optax.trace(0.9), layca(3**-3))`. Give it
  `optax.scale_by_adam()`, not `optax.adam(...)`, whose output is negated
  already and would be climbed; `with_layca` and `check_chain` refuse that. The
  output is new minus old weights. Whatever follows in the chain (scaling,
  weight decay, clipping) breaks the sphere. L2 before layca is removed by the
  projection unless a base such as Adam rescales it; clipping has no effect.

  The rate is the tangent of an angle: 3^-3 (2.1 degrees a step) is a good start
  for SGD, RMSprop and Adagrad, 3^-5 for Adam and other bases that average
  gradients; divide it by 5 to 10 near the end. No warmup is needed.

  All leaves given are rotated: choose kernels with `with_layca` or
  `optax.masked`. Any layout of a kernel will do, but leaves that hold several
  layers (nn.scan, experts) need `layer_axes`, else they are one layer. A last
  layer without normalisation keeps its norm, which caps its logits: leave it
  out if the loss has to reach zero. Parameters may be sharded under jit.

  Reductions run in `compute_dtype` (float64 for float64 parameters). bfloat16
  parameters keep their norm, but below a rate of 3^-5 their rounding swallows
  the rotation (init warns): keep float32 parameters and compute the network in
  bfloat16 instead. `optax.inject_hyperparams` rounds the rate to the type of
  the parameters too, unless it is given hyperparam_dtype=jnp.float32.

  Args:
    learning_rate: rho: number, schedule of the step count (0 at the first
      update), table [steps] or [steps, layers of the leaf] that is replayed and
      clamped at its end, array with one rate per layer of a leaf, or a prefix
      tree or dict {path: rate} of these. 0 gives no motion. An array of the
      lengths of a leaf's layer axes is one rate per layer, even if it might be
      a table of as many steps: give that as `replay_schedule(table)`.
    multipliers: factors of the learning rate per layer: prefix tree, or dict
      {path: factor} of `depth_multipliers`; None for 1.
    layer_axes: axes that index independent layers in a leaf, such as 0 for
      nn.scan: None, int, tuple of ints, prefix tree of these, or a function of
      (path, shape). `per_neuron()` rotates every output unit for itself.
    project: False leaves d as it is ("Hyperball"): the step has length
      rho ||w||, part of which is undone by the return to the sphere.
    normalize: 'norm' divides t by its norm; ('ema', b) by the root of the
      bias-corrected running mean of its squared norm, so that the angle varies.
    target_norm: 'initial' returns to the norm that the layer had at init,
      'current' (the paper) to the norm before the step, which drifts by
      rounding; or a number.
    eps: a layer does not turn if ||t|| <= eps ||d||, where t is rounding noise.
    eps_abs: the paper's rule: no turn if rho ||t|| <= eps_abs (the paper:
      1e-7). It makes the step depend on the scale of gradients.
    rate_in_direction: whether d contains the learning rate already, so that
      eps_abs is compared with ||t|| itself.
    compute_dtype: least precise type for the reductions and the step.
    axis_name: mapped axes over which the leaves are split in shard_map. init
      may be called outside of the map, on whole parameters.

  Returns:
    The transform. Its state is a `LaycaState`.

  Raises:
    TypeError: a leaf is not real (at init).
    ValueError: an argument is wrong; at init: a layer has fewer than two
      elements, a concrete layer has norm 0 (inside jit its update is 0), or
      `layer_axes` does not fit; at update: `params` is None.

  Example:
    >>> params = {'kernel': jnp.asarray([[3.0, 0.0], [0.0, 4.0]])}
    >>> tx = layca(1.0)
    >>> grads = {'kernel': jnp.asarray([[0.0, 9.0], [0.0, 0.0]])}
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> new = optax.apply_updates(params, updates)['kernel']
    >>> [round(float(x), 3) for x in (new[0, 1], jnp.linalg.norm(new))]
    [-3.536, 5.0]
  """
  ema = checks.arguments(normalize, target_norm)

  def split(params):
    names, leaves, treedef = trees.flatten(params)
    shapes = [None if trees.is_absent(x) else jnp.shape(x) for x in leaves]
    axes = trees.resolve_axes(layer_axes, names, shapes)
    present = [i for i, shape in enumerate(shapes) if shape is not None]
    return _Leaves(names, shapes, axes, present, leaves, treedef)

  def evaluate(tree, count):
    return rates.evaluate(
      learning_rate, multipliers, count, tree.names, tree.shapes, tree.axes
    )

  def init(params):
    tree = split(params)
    for i in tree.present:
      checks.leaf(
        tree.names[i], tree.leaves[i], _reduced(tree, i), axis_name is None
      )
    leaves = [tree.leaves[i] for i in tree.present]
    over = tuple(_reduced(tree, i) for i in tree.present)
    dtypes = tuple(_work_dtype(leaf, compute_dtype) for leaf in leaves)
    norms = _initial_norms(leaves, over, dtypes, _bound(axis_name))
    for i, norm in zip(tree.present, norms, strict=True):
      checks.initial_norm(tree.names[i], norm)
    checks.half_precision(tree.names, tree.leaves, evaluate(tree, 0))
    state_norm = None
    if ema is not None:
      state_norm = tree.unflatten([jnp.zeros_like(norm) for norm in norms])
    count = jnp.zeros([], jnp.int32)
    return LaycaState(count, tree.unflatten(norms), state_norm)

  def update(updates, state, params=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(checks.NO_PARAMS_MSG)
    tree = split(params)
    directions = tree.treedef.flatten_up_to(updates)
    norms = tree.treedef.flatten_up_to(state.target_norm)
    running = [None] * len(norms)
    if ema is not None:
      running = tree.treedef.flatten_up_to(state.tangent_norm)
    # A parameter without gradient stays where it is.
    active = [i for i in tree.present if not trees.is_absent(directions[i])]
    all_rates = evaluate(tree, state.count)
    dtypes = {i: _work_dtype(tree.leaves[i], compute_dtype) for i in active}
    w = {i: jnp.asarray(tree.leaves[i], dtypes[i]) for i in active}
    d = {i: jnp.asarray(directions[i], dtypes[i]) for i in active}
    over = {i: _reduced(tree, i) for i in active}
    pairs = geometry.measure(
      list(w.values()), list(d.values()), list(over.values()), axis_name
    )
    if isinstance(target_norm, str):
      checks.left_the_sphere(
        state.count,
        [tree.names[i] for i in active],
        [norms[i] for i in active],
        [pair.weight_norm for pair in pairs],
      )
    out = list(directions)
    for i, pair in zip(active, pairs, strict=True):
      radius, norms[i] = _radius(target_norm, norms[i], pair.weight_norm)
      delta, running[i] = _turn(
        w[i],
        d[i],
        pair,
        rate=jnp.asarray(all_rates[i], dtypes[i]),
        radius=radius,
        running=running[i],
        decay=ema,
        count=state.count,
        project=project,
        eps=eps,
        eps_abs=eps_abs,
        rate_in_direction=rate_in_direction,
        total=functools.partial(
          geometry.inner, axes=over[i], axis_name=axis_name
        ),
      )
      out[i] = delta.astype(jnp.result_type(tree.leaves[i]))
    return jax.tree.unflatten(tree.treedef, out), LaycaState(
      optax.safe_increment(state.count),
      jax.tree.unflatten(tree.treedef, norms),
      None if ema is None else jax.tree.unflatten(tree.treedef, running),
    )

  return optax.GradientTransformationExtraArgs(init, update)


def hyperball(
  learning_rate: Any, **options: Any
) -> optax.GradientTransformationExtraArgs:
  """Layca without the projection: steps of length rho ||w||, then the sphere.

  The radial part of the direction shortens the rotation instead of being
  removed first.

  Args:
    learning_rate: as in `layca`.
    **options: the other arguments of `layca`.

  Returns:
    The transform, to be last in a chain.

  Example:
    >>> tx = optax.chain(optax.scale_by_adam(), hyperball(3.0**-5))
  """
  options = checks.keyword_options(options)
  return layca(learning_rate, project=False, **options)


def _turn(
  w,
  d,
  pair,
  *,
  rate,
  radius,
  running,
  decay,
  count,
  project,
  eps,
  eps_abs,
  rate_in_direction,
  total: Callable[..., jax.Array],
):
  """Change of one leaf, and its running tangent norm.

  Everything below is in units of ||w|| and ||d||, so that neither matters. The
  tangent is measured from itself (the difference of two squares would cancel
  when d is nearly radial); its remaining radial part `tilt`, which is rounding,
  is taken out in the coefficients, without another pass over memory. As t is
  then orthogonal to w, the new norm is known and not measured.
  """
  w_norm, d_norm, cosine = pair
  per_w = 1 / geometry.positive(w_norm)
  per_d = 1 / geometry.positive(d_norm)
  if project:
    t = d * per_d - w * (cosine * per_w)
    tilt = total(t, w) * per_w
    length = geometry.root(jnp.maximum(total(t, t) - tilt**2, 0))
    # For rounding noise the difference may be 0 where t is not.
    cosine = jnp.zeros_like(length)
  else:
    t, tilt = d * per_d, jnp.zeros_like(w_norm)
    length = jnp.where(d_norm == 0, 0, jnp.ones_like(d_norm))
  # A rate of 0 is not among these: there is no motion, but a derivative.
  still = (length <= eps) | (w_norm == 0) | (radius == 0)
  if eps_abs is not None:
    factor = 1 if rate_in_direction else jnp.abs(rate)
    still |= factor * length * d_norm <= eps_abs
  step = rate
  if decay is not None:
    running, ratio = _running_norm(running, length * d_norm, decay, count)
    step = rate * ratio
  growth = step * (step - 2 * cosine)  # ||w'||^2 / ||w||^2 - 1
  stretch = geometry.root(jnp.maximum(1 + growth, 0))
  per_length = 1 / jnp.where(still, 1, length)
  pull = radius * step / geometry.positive(stretch)
  excess = (radius - w_norm) * per_w
  # A still layer returns to its norm, but not for the rounding of a norm.
  tolerance = 32 * float(jnp.finfo(w.dtype).eps)
  correct = (jnp.abs(excess) > tolerance) & (w_norm > 0) & (radius > 0)
  back = jnp.where(correct, excess, 0)
  excess = jnp.where(rate == 0, back, excess)
  # The factor of w minus 1, kept apart so that small steps do not cancel.
  along = (
    excess / geometry.positive(stretch)
    - growth / (geometry.positive(stretch) * (1 + stretch))
    + pull * tilt * per_length * per_w
  )
  along = jnp.where(still, back, along)
  pull = jnp.where(still, 0, pull)
  return along * w - pull * (t * per_length), running


def _running_norm(running, tangent, decay, count):
  """Running root mean square of tangents, and tangent over it."""
  decay = jnp.asarray(decay, tangent.dtype)
  scale = geometry.positive(
    jax.lax.stop_gradient(jnp.maximum(running, jnp.abs(tangent)))
  )
  mean = decay * (running / scale) ** 2 + (1 - decay) * (tangent / scale) ** 2
  running = geometry.root(mean) * scale
  corrected = running / jnp.sqrt(1 - decay ** (count + 1))
  return running, tangent / geometry.positive(corrected)


def _radius(target_norm, stored, current):
  """Norm of the layer after the step, and the norm to keep in the state."""
  if not isinstance(target_norm, str):
    return jnp.broadcast_to(
      jnp.asarray(target_norm, current.dtype), current.shape
    ), stored
  if target_norm == 'current':
    return current, current
  known = jnp.where(stored < 0, current, stored)
  return known, known


def _reduced(tree, index):
  return geometry.reduced_axes(len(tree.shapes[index]), tree.axes[index])


def _work_dtype(leaf, compute_dtype):
  # result_type accepts an array too, which optax.inject_hyperparams makes of
  # jnp.float32.
  return jnp.promote_types(jnp.result_type(compute_dtype), leaf.dtype)


def _bound(axis_name):
  """The mapped axes, or None outside of their map: leaves are whole there."""
  if axis_name is not None:
    try:
      jax.lax.axis_index(axis_name)
    except NameError:
      return None
  return axis_name


def _initial_norms(leaves, over, dtypes, axis_name):
  """Norms of all leaves in one program; unknown for abstract leaves."""
  known = [
    i for i, x in enumerate(leaves) if not isinstance(x, jax.ShapeDtypeStruct)
  ]
  found = _norms(
    [leaves[i] for i in known],
    tuple(over[i] for i in known),
    tuple(dtypes[i] for i in known),
    axis_name,
  )
  norms = dict(zip(known, found, strict=True))
  for i, leaf in enumerate(leaves):
    if i not in norms:
      kept = [1 if a in over[i] else n for a, n in enumerate(leaf.shape)]
      norms[i] = jnp.full(kept, _UNKNOWN, dtypes[i])
  return [norms[i] for i in range(len(leaves))]


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _norms(leaves, over, dtypes, axis_name):
  return [
    geometry.norm(jnp.asarray(x, dtype), axes, axis_name)
    for x, axes, dtype in zip(leaves, over, dtypes, strict=True)
  ]
