"""From design variables to physical densities.

The pipeline of Hoyer et al. (2019, arXiv:1909.04240) constrains the volume
first and filters second: logits pass a sigmoid whose shift makes the mean
density equal the volume fraction, then a cone filter removes features smaller
than its radius, then SIMP turns densities into Young's moduli. (The paper's
prose has the two steps in the other order; its published code and numbers have
this one.) So the mean of the filtered density is close to the volume fraction
but not equal to it; `physical_density(..., constrain='physical')` makes it so.

Array functions keep the precision of their argument: float32 in, float32 out;
NumPy float64 or Python floats are computed in float64 whether or not JAX's x64
mode is on.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.structopt import checks, domain, roots


def _keeps_precision(function):
  """Lets float64 arguments stay float64 when x64 is off.

  Only the first argument decides the precision: the other arrays are cast to
  its dtype, and Python scalars are weakly typed, so that float32 stays float32
  inside the scope.
  """

  @functools.wraps(function)
  def wrapped(x, *args, **kwargs):
    with jax.enable_x64(True):
      x = jnp.asarray(x)
      if not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(jnp.float64)
      return function(x, *args, **kwargs)

  return wrapped


def _as_like(value, x):
  """Casts a mask or a number to the dtype of `x`, staying in NumPy if it can.

  A mask that is known while tracing then folds into constants.
  """
  if isinstance(value, jax.Array):
    return value.astype(x.dtype)
  return np.asarray(value).astype(x.dtype)


@_keeps_precision
def cone_filter(x, radius=2.0, mask=1.0, dim=2):
  """Averages densities over a disc with linearly decreasing weights.

  `y_i = m_i sum_j w_ij m_j x_j / sum_j w_ij m_j` with
  `w_ij = max(0, radius - |i - j|)`, where j runs over the elements of the
  domain: neighbours outside it, and void ones, are left out of the average.
  With radius 2 the weights are 2 for the element itself, 1 for the four that
  share an edge and 2 - sqrt(2) for the diagonal ones. The map is linear in `x`.

  Args:
    x: densities `(..., nely, nelx)`.
    radius: distance in elements at which the weights reach zero. A Python
      number: it sets the size of the stencil.
    mask: 1 where material may be placed, 0 in the void; `(nely, nelx)` or a
      scalar.
    dim: number of axes that are space, the last ones; 3 averages over balls.

  Returns:
    Filtered densities, shape and dtype of `x`; zero where `mask` is.

  Raises:
    ValueError: if `radius` is not positive or the shapes disagree.

  Example:
    >>> float(cone_filter(np.eye(3))[1, 1].round(3))
    0.5
  """
  if not radius > 0:
    raise ValueError(
      f'radius must be positive, got {radius}; any radius up to 1 leaves the '
      'densities as they are.'
    )
  if x.ndim < dim:
    axes = '..., nely, nelx' if dim == 2 else '..., nelz, nely, nelx'
    raise ValueError(
      f'x has shape {x.shape}; expected element densities ({axes}).'
    )
  mask = _as_like(mask, x)
  if mask.ndim and mask.shape != x.shape[-dim:]:
    raise ValueError(
      f'mask has shape {mask.shape}; expected {x.shape[-dim:]} as the last '
      f'{dim} axes of x, or a scalar.'
    )
  if radius <= 1:
    return x * mask
  mask = mask * np.ones(x.shape[-dim:], x.dtype)
  xp = np if isinstance(mask, np.ndarray) else jnp
  weight = _spread(mask, radius, dim, xp)
  inverse = mask / xp.where(mask > 0, weight, 1)
  spread = _self_adjoint(functools.partial(_spread, radius=radius, dim=dim))
  return spread(x * mask) * inverse


def _self_adjoint(function):
  """Declares that a linear function of one array is its own transpose.

  Reverse mode would otherwise transpose slices into pads outside the float64
  scope, which fails when x64 is off. Presenting the function as the solution
  of `identity(y) = x` is the one declaration in JAX that keeps forward mode,
  reverse mode and vmap alike.
  """
  return lambda x: jax.lax.custom_linear_solve(
    lambda y: y, x, solve=lambda _, b: function(b), symmetric=True
  )


def _spread(x, radius, dim, xp=jnp):
  """Sums neighbours weighted by the cone, treating the outside as zero.

  Slices of one padded array, summed in groups of equal weight, are several
  times faster than a convolution on CPU and fuse into one loop.
  """
  reach = math.ceil(radius) - 1
  rings = {}
  for shift in itertools.product(range(-reach, reach + 1), repeat=dim):
    if math.hypot(*shift) < radius:
      rings.setdefault(sum(d * d for d in shift), []).append(shift)
  padding = [(0, 0)] * (x.ndim - dim) + [(reach, reach)] * dim
  padded = xp.pad(x, padding)

  def shifted(shift):
    starts = [reach + d for d in shift]
    ends = [s + n for s, n in zip(starts, x.shape[-dim:], strict=True)]
    return padded[(..., *map(slice, starts, ends))]

  total = 0.0
  for square, shifts in sorted(rings.items()):
    ring = sum(map(shifted, shifts))
    total = total + (radius - math.sqrt(square)) * ring
  return total


@_keeps_precision
def mean_density(x, mask=1.0, filter_radius=2.0):
  """Mean of the filtered densities over the elements open to design.

  Args:
    x: densities `(..., nely, nelx)` before filtering.
    mask: 1 where material may be placed, 0 in the void.
    filter_radius: radius of the cone filter.

  Returns:
    `mean(cone_filter(x)) / mean(mask)`, shape `(...)`.
  """
  filtered = cone_filter(x, filter_radius, mask)
  return filtered.mean(axis=(-2, -1)) / _as_like(mask, x).mean()


@_keeps_precision
def volume_sigmoid(z, volfrac, mask=1.0):
  """Squashes logits into densities whose mean is the volume fraction.

  Computes `sigmoid(z + b)` where `mask` is 1 and 0 elsewhere, with the shift b
  for which the mean over the masked-in entries is `volfrac`. Its
  derivatives, of any order and in both modes, come from the implicit function
  theorem, `db/dz_k = -s_k / sum(s)` with s the sigmoid's slopes. The ratio is
  computed as a softmax of the slopes' logarithms, so that logits of any size
  (all slopes underflow beyond about 700) have finite derivatives.

  Args:
    z: logits, any shape; one constraint spans all of it (use `jax.vmap` for a
      batch).
    volfrac: wanted mean density, the volume fraction; in (0, 1).
    mask: 1 where material may be placed, 0 in the void; shape of `z` or a
      scalar.

  Returns:
    Densities, shape and dtype of `z`.

  Raises:
    ValueError: if `volfrac` is known and outside (0, 1), or the mask
      has the wrong shape or, if known, is zero everywhere.

  Example:
    >>> float(volume_sigmoid(np.array([-1.0, 0.0, 3.0]), 0.25).mean())
    0.25
  """
  checks.check_fraction(volfrac, 'volfrac')
  mask = _as_like(mask, z)
  if mask.ndim and mask.shape != z.shape:
    raise ValueError(
      f'mask has shape {mask.shape}; expected that of z, {z.shape}, or a '
      'scalar.'
    )
  if isinstance(mask, np.ndarray) and not mask.any():
    raise ValueError('mask is zero everywhere: no element is open to design.')
  mask = jnp.broadcast_to(mask, z.shape)
  fraction = jnp.asarray(volfrac, z.dtype)
  return mask * jax.nn.sigmoid(z + _sigmoid_shift(z, fraction, mask))


@jax.custom_jvp
def _sigmoid_shift(z, fraction, mask):
  """The b with `mean(sigmoid(z + b))` over the mask equal to `fraction`."""
  low, high = _shift_bracket(z, fraction, mask)

  def excess(b):
    # On the logit scale the mean is nearly linear in b, exactly so when all
    # logits are equal, which is where Newton's method wants it.
    s = jax.nn.sigmoid(z + b)
    mean = (mask * s).sum() / mask.sum()
    slope = (mask * s * (1 - s)).sum() / mask.sum()
    scale = jnp.maximum(mean * (1 - mean), jnp.finfo(z.dtype).tiny)
    value = _logit(mean) - _logit(fraction)
    return value, slope / scale

  return roots.monotone_root(excess, low, high)


@_sigmoid_shift.defjvp
def _sigmoid_shift_jvp(primals, tangents):
  z, fraction, mask = primals
  dz, dfraction, _ = tangents
  # Under jit this rule is traced after the caller's float64 scope has ended.
  with jax.enable_x64(True):
    b = _sigmoid_shift(z, fraction, mask)
    t = jnp.where(mask > 0, z + b, 0.0)
    log_slope = jax.nn.log_sigmoid(t) + jax.nn.log_sigmoid(-t)
    peak = jnp.where(mask > 0, log_slope, -jnp.inf).max(initial=-jnp.inf)
    peak = jax.lax.stop_gradient(peak)
    relative = mask * jnp.exp(log_slope - peak)
    total = relative.sum()
    # Where the sigmoid is saturated everywhere the volume does not respond to
    # b and 1 / slope overflows; the bound keeps the product finite.
    floor = math.log(float(jnp.finfo(z.dtype).tiny)) / 2
    gain = mask.sum() / total * jnp.exp(-jnp.maximum(peak, floor))
    db = gain * dfraction - (relative * dz).sum() / total
  return b, db


def _logit(p):
  return jnp.log(p) - jnp.log1p(-p)


def _shift_bracket(z, fraction, mask):
  """Shifts at which every masked-in sigmoid is below and above `fraction`."""
  lowest = jnp.where(mask > 0, z, jnp.inf).min(initial=jnp.inf)
  highest = jnp.where(mask > 0, z, -jnp.inf).max(initial=-jnp.inf)
  return _logit(fraction) - highest, _logit(fraction) - lowest


@_keeps_precision
def simp(x, p=3.0, emin=1e-9, e0=1.0):
  """Young's moduli of partly filled elements (modified SIMP).

  `E = emin + x**p * (e0 - emin)`: intermediate densities are made
  uneconomical by `p` > 1, and `emin` keeps the stiffness matrix regular.

  Args:
    x: densities in [0, 1], any shape. Negative ones give negative moduli.
    p: penalisation exponent, positive.
    emin: modulus of the void.
    e0: modulus of the solid.

  Returns:
    Moduli, shape and dtype of `x`.

  Raises:
    ValueError: if `p` is a number that is not positive.
  """
  # An integer power is a product: cheaper than pow, and its derivatives at
  # x = 0 need no special case.
  if not isinstance(p, (int, float)):
    p = _as_like(p, x)
  elif not p > 0:
    raise ValueError(f'p must be a positive exponent such as 3, got {p}.')
  elif float(p).is_integer():
    p = int(p)
  return emin + x**p * (e0 - emin)


@_keeps_precision
def heaviside(x, beta, eta=0.5):
  """Pushes densities towards 0 and 1 by a smoothed step.

  The projection of Wang, Lazarov & Sigmund (2011),
  `(tanh(beta eta) + tanh(beta (x - eta))) / (tanh(beta eta) +
  tanh(beta (1 - eta)))`. It keeps 0 and 1 fixed and tends to the identity as
  `beta` goes to 0 and to a step at `eta` as it grows.

  Args:
    x: densities in [0, 1], any shape.
    beta: sharpness, positive; a number or a traced scalar.
    eta: threshold, in (0, 1).

  Returns:
    Projected densities, shape and dtype of `x`.

  Raises:
    ValueError: if `beta` or `eta` is a number out of its range.
  """
  if isinstance(beta, (int, float)) and not beta > 0:
    raise ValueError(f'beta must be positive, got {beta}.')
  if isinstance(eta, (int, float)) and not 0 < eta < 1:
    raise ValueError(f'eta must lie strictly between 0 and 1, got {eta}.')
  beta, eta = jnp.asarray(beta, x.dtype), jnp.asarray(eta, x.dtype)
  low = jnp.tanh(beta * eta)
  return (low + jnp.tanh(beta * (x - eta))) / (low + jnp.tanh(beta * (1 - eta)))


def beta_continuation(step, *, start=1.0, factor=2.0, every=50, maximum=32.0):
  """Sharpness of the Heaviside projection after a number of steps.

  Starts soft, so that the design can still move, and multiplies the sharpness
  by `factor` every `every` steps until it reaches `maximum`.

  Args:
    step: number of optimization steps done, an integer or a traced scalar.
    start: sharpness of the first `every` steps.
    factor: growth at each change.
    every: steps between changes.
    maximum: largest sharpness.

  Returns:
    The sharpness, a float32 scalar.

  Example:
    >>> [float(beta_continuation(step)) for step in (0, 49, 50, 1000)]
    [1.0, 1.0, 2.0, 32.0]
  """
  exponent = jnp.asarray(step) // every
  beta = start * factor ** exponent.astype(jnp.float32)
  return jnp.minimum(beta, jnp.float32(maximum))


@_keeps_precision
def self_weight(x, g):
  """Nodal forces by which the structure's own weight loads it.

  Each element hands a quarter of its weight `g * x` to each of its corners.
  The force is towards negative y, like the loads of the published tasks.

  Args:
    x: physical densities `(..., nely, nelx)`.
    g: weight of a full element.

  Returns:
    Forces `(..., nely + 1, nelx + 1, 2)`, y-major nodes, dtype of `x`.
  """
  row = jnp.zeros_like(x[..., :1, :])
  # Concatenated rather than padded: its transpose needs no float64 scope.
  rows = jnp.concatenate([x, row], -2) + jnp.concatenate([row, x], -2)
  column = jnp.zeros_like(rows[..., :1])
  nodal = jnp.concatenate([rows, column], -1) + jnp.concatenate(
    [column, rows], -1
  )
  down = -g / 4 * nodal
  return jnp.stack([jnp.zeros_like(down), down], axis=-1)


@_keeps_precision
def physical_density(
  z,
  problem: domain.Problem,
  *,
  constrain_volume=True,
  filter_radius=2.0,
  projection=None,
  constrain='design',
):
  """Densities that the finite elements see.

  In this order: logits become densities of the right volume (or, without
  `constrain_volume`, the argument is multiplied by the mask), passive solids
  are filled, the cone filter smooths, and the optional projection sharpens.
  Passive solids are 1 and masked-out elements 0 in the result too.

  Args:
    z: `(nely, nelx)` logits, or densities in [0, 1] without
      `constrain_volume`.
    problem: the task; its mask, volume fraction and passive solids are used.
    constrain_volume: whether `z` are logits to pass through the volume sigmoid.
    filter_radius: radius of the cone filter, in elements.
    projection: None, or `(beta, eta)` of the Heaviside projection.
    constrain: what has the wanted mean over the mask: `'design'`, the
      densities before filter and projection, as in the paper; or `'physical'`,
      the result.

  Returns:
    Physical densities `(nely, nelx)`, dtype of `z`.

  Raises:
    ValueError: if `z` does not fit the task or, where its values are known,
      holds NaN or densities outside [0, 1]; if `constrain` is unknown.
  """
  if z.shape != (problem.nely, problem.nelx):
    raise ValueError(
      f'z has shape {z.shape}; expected (nely, nelx) = '
      f'({problem.nely}, {problem.nelx}) of problem {problem.name!r}.'
    )
  if constrain not in ('design', 'physical'):
    raise ValueError(
      f"constrain must be 'design' or 'physical', got {constrain!r}."
    )
  if constrain_volume:
    checks.check_finite(z, 'z')
  else:
    checks.check_densities(z, 'z')
  mask = _as_like(problem.mask, z)
  solid = None if problem.solid is None else _as_like(problem.solid, z)

  def fill(x):
    return x if solid is None else solid + (1 - solid) * x

  def finish(x):
    x = fill(cone_filter(fill(x), filter_radius, mask))
    return x if projection is None else heaviside(x, *projection)

  if not constrain_volume:
    return finish(z * mask)
  checks.check_fraction(problem.volume_fraction, 'volume_fraction')
  if constrain == 'physical':
    shift = _physical_shift(z, problem.volume_fraction, mask, finish)
    return finish(mask * jax.nn.sigmoid(z + shift))
  if solid is None:
    return finish(volume_sigmoid(z, problem.volume_fraction, mask))
  # The passive solids take their share, the rest is left for the design.
  free = mask * (1 - solid)
  left = problem.volume_fraction * mask.sum() - solid.sum()
  return finish(volume_sigmoid(z, left / free.sum(), free))


def _physical_shift(z, fraction, mask, finish):
  """The shift for which the finished densities have the wanted mean."""
  fraction = jnp.asarray(fraction, z.dtype)
  # The sigmoid is 0 or 1 to double precision this far from the logits.
  low, high = _shift_bracket(z, jnp.asarray(0.5, z.dtype), mask)
  low, high = low - 40.0, high + 40.0

  def excess(b):
    x = finish(mask * jax.nn.sigmoid(z + b))
    return x.sum() / mask.sum() - fraction

  def solve(function, _):
    def value_and_slope(b):
      return jax.jvp(function, (b,), (jnp.ones_like(b),))

    return roots.monotone_root(value_and_slope, low, high)

  def tangent_solve(function, y):
    with jax.enable_x64(True):
      slope = function(jnp.ones_like(y))
      return y / jnp.where(slope == 0, 1, slope)

  return jax.lax.custom_root(excess, low, solve, tangent_solve)
