"""Norms, angles and rotations of layers that neither overflow nor cancel."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Pair(NamedTuple):
  """What one pass over a layer's weights w and direction d gives.

  All are arrays that broadcast against the leaf (reduced axes have length 1).

  Attributes:
    weight_norm: ||w||.
    direction_norm: ||d||.
    cosine: <w, d> / (||w|| ||d||); 0 where a norm is 0.
  """

  weight_norm: jax.Array
  direction_norm: jax.Array
  cosine: jax.Array


def reduced_axes(ndim: int, layer_axes: Sequence[int]) -> tuple[int, ...]:
  """The axes over which a layer's norm runs."""
  return tuple(axis for axis in range(ndim) if axis not in layer_axes)


def inner(
  a: jax.Array, b: jax.Array, axes: tuple[int, ...], axis_name: Any = None
) -> jax.Array:
  """Inner products over some axes, which are kept with length 1."""
  total = jnp.sum(a * b, axes, keepdims=True)
  return total if axis_name is None else jax.lax.psum(total, axis_name)


def positive(x: jax.Array) -> jax.Array:
  """`x`, or 1 where it is 0: a divisor that leaves no NaN in gradients."""
  return jnp.where(x == 0, 1, x)


def root(x: jax.Array) -> jax.Array:
  """Square root with derivative 0 at 0."""
  return jnp.where(x == 0, 0, jnp.sqrt(positive(x)))


def largest(
  x: jax.Array, axes: tuple[int, ...], axis_name: Any = None
) -> jax.Array:
  """Largest magnitude over some axes, 1 where all are 0; no derivative."""
  value = jnp.max(jax.lax.stop_gradient(jnp.abs(x)), axes, keepdims=True)
  if axis_name is not None:
    value = jax.lax.pmax(value, axis_name)
  return positive(value)


def norm(
  x: jax.Array, axes: tuple[int, ...], axis_name: Any = None
) -> jax.Array:
  """Norms over some axes, right wherever they are representable themselves."""
  scale = largest(x, axes, axis_name)
  scaled = x / scale
  return root(inner(scaled, scaled, axes, axis_name)) * scale


def _cosine(product, a, b):
  return product / positive(a) / positive(b)


def _scaled_pair(w, d, axes, axis_name):
  w_scale = largest(w, axes, axis_name)
  d_scale = largest(d, axes, axis_name)
  a, b = w / w_scale, d / d_scale
  a_norm = root(inner(a, a, axes, axis_name))
  b_norm = root(inner(b, b, axes, axis_name))
  cosine = _cosine(inner(a, b, axes, axis_name), a_norm, b_norm)
  return Pair(a_norm * w_scale, b_norm * d_scale, cosine)


@jax.custom_batching.custom_vmap
def _for_all_members(condition: jax.Array) -> jax.Array:
  """A condition; under vmap, whether it holds for all members.

  `lax.cond` stays a branch under vmap if its predicate is the same for all. It
  may be used where both branches are right.
  """
  return condition


@_for_all_members.def_vmap
def _(axis_size, in_batched, condition):
  del axis_size
  if in_batched[0]:
    condition = jnp.all(condition, axis=0)
  return _for_all_members(condition), False


def measure(
  weights: Sequence[jax.Array],
  directions: Sequence[jax.Array],
  axes: Sequence[tuple[int, ...]],
  axis_name: Any = None,
) -> list[Pair]:
  """Norms and cosines of many layers in one pass over memory.

  Plain sums of squares are taken first. Only if one of them came near the ends
  of the range of its type (numbers of 1e-25 or 1e19 in float32, or a gradient
  that is exactly 0) a second look is taken, scaled by the largest magnitudes.
  There is one such branch for all layers, and for all members under vmap, since
  an accelerator waits for its host at a branch.

  Args:
    weights: arrays of any shape.
    directions: arrays of the same shapes and dtypes.
    axes: for each, the axes to reduce.
    axis_name: mapped axes over which the layers are split.

  Returns:
    One `Pair` each.
  """
  if not weights:
    return []
  plain, safe = [], []
  for w, d, over in zip(weights, directions, axes, strict=True):
    ww, dd, wd = (
      inner(x, y, over, axis_name) for x, y in ((w, w), (d, d), (w, d))
    )
    plain.append((ww, dd, wd))
    info = jnp.finfo(w.dtype)
    # Squares that fell below `tiny` may add up to this share of the sum.
    low = float(info.tiny) * max(w.size, 1) / float(info.eps)
    high = float(info.max) / 16
    for total in jax.lax.stop_gradient((ww, dd)):
      safe.append(jnp.all((total > low) & (total < high)))

  def from_plain():
    pairs = []
    for ww, dd, wd in plain:
      a, b = root(ww), root(dd)
      pairs.append(Pair(a, b, _cosine(wd, a, b)))
    return pairs

  def from_scaled():
    return [
      _scaled_pair(w, d, over, axis_name)
      for w, d, over in zip(weights, directions, axes, strict=True)
    ]

  all_safe = _for_all_members(jnp.all(jnp.stack(safe)))
  return jax.lax.cond(all_safe, from_plain, from_scaled)


def unit(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
  """Unit vectors along some axes, and whether the norm was 0."""
  scaled = x / largest(x, axes)
  length = root(inner(scaled, scaled, axes))
  return scaled / positive(length), length == 0


def half_squared_chord(
  a: jax.Array, b: jax.Array, axes: tuple[int, ...]
) -> jax.Array:
  """1 - cos(a, b) as ||a/|a| - b/|b|||^2 / 2, which does not cancel.

  Two vectors of which exactly one is 0 count as orthogonal, two zeros as equal.

  Args:
    a: array.
    b: array of that shape and dtype.
    axes: axes to reduce; they are dropped.

  Returns:
    Cosine distances, never negative.
  """
  (u, a_zero), (v, b_zero) = unit(a, axes), unit(b, axes)
  difference = u - v
  distance = inner(difference, difference, axes) / 2
  distance = jnp.where(a_zero != b_zero, 1, distance)
  return jnp.squeeze(distance, axes)
