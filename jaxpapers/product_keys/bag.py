"""Weighted sums of table rows, without the rows in memory.

`V[ids]` for T tokens of R reads is an array `[T, R, D]`: 8 GiB for 16k tokens
of a memory of the paper's size. Here the reads come one after the other, and
what is kept is `[T, D]`.
"""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.product_keys import bag_pallas

__all__ = ['embedding_bag', 'embedding_dot']

IMPLEMENTATIONS = ('auto', 'scan', 'gather', 'pallas')
# Elements that 'gather' reads at a time: 16 MiB of float32.
_CHUNK = 2**22
# Elements of rows that 'scan' multiplies at a time: 2 MiB, near a CPU's caches.
_IN_CACHE = 2**19
# Reads of a token that 'scan' adds in one pass: on a CPU a third of the time.
_UNROLL = 8


def embedding_bag(
  values: jax.Array,
  ids: jax.Array,
  weights: jax.Array,
  *,
  impl: str = 'auto',
) -> jax.Array:
  """`y[t] = sum_r weights[t, r] * values[ids[t, r]]`, summed in float32.

  Gradients flow to `values` (a dense array: see `row_sparse` for one that is
  not) and `weights`. Temporaries are O(T * D), forwards and backwards.

  Args:
    values: Table `[N, D]`, floating-point, or integers where no gradient of it
      is taken.
    ids: Rows, integers `[T, R]`. Those out of range read zeros and get no
      gradient.
    weights: `[T, R]`.
    impl: 'scan' reads the r-th row of all tokens at a time, 'gather' all rows
      of as many tokens as 16 MiB hold, 'pallas' is a kernel for GPUs
      (`bag_pallas`; interpreted on CPU, 'gather' on TPU). 'auto' is the kernel
      where all processes together have one GPU (of compute capability 8.0 or
      more), 'scan' on CPUs and on other GPUs, among which a table may be split,
      and 'gather' on TPUs.

  Returns:
    `[T, D]`, float32 or wider.

  Raises:
    ValueError: If shapes do not fit or `impl` is unknown.
    TypeError: If `ids` are no integers.

  Example:
    >>> values = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> embedding_bag(values, jnp.array([[0, 1]]), jnp.array([[1.0, 2.0]]))
    Array([[ 7., 10.]], dtype=float32)
  """
  values, ids = _checked(values, ids, impl)
  weights = jnp.asarray(weights)
  if ids.shape != weights.shape:
    raise ValueError(
      f'weights has shape {weights.shape}; expected that of ids, {ids.shape}.'
    )
  return _bag(impl, values, ids, weights)


def embedding_dot(
  values: jax.Array,
  ids: jax.Array,
  x: jax.Array,
  *,
  impl: str = 'auto',
) -> jax.Array:
  """`y[t, r] = <x[t], values[ids[t, r]]>`, summed in float32.

  The transpose of `embedding_bag`, with the same care for memory.

  Args:
    values: Table `[N, D]`.
    ids: Rows, integers `[T, R]`. Those out of range give 0.
    x: `[T, D]`.
    impl: See `embedding_bag`; 'scan' here reads all rows of as many tokens as 2
      MiB hold, and GPUs without the kernel gather.

  Returns:
    `[T, R]`, float32 or wider.

  Raises:
    ValueError: If shapes do not fit or `impl` is unknown.
    TypeError: If `ids` are no integers.

  Example:
    >>> values = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> embedding_dot(values, jnp.array([[0, 1]]), jnp.array([[1.0, 1.0]]))
    Array([[3., 7.]], dtype=float32)
  """
  values, ids = _checked(values, ids, impl)
  x = jnp.asarray(x)
  if x.shape != (ids.shape[0], values.shape[1]):
    raise ValueError(
      f'x has shape {x.shape}; expected {(ids.shape[0], values.shape[1])}, the'
      ' tokens of ids and the width of values.'
    )
  return _dot(impl, values, ids, x)


def _checked(values, ids, impl):
  if impl not in IMPLEMENTATIONS:
    choices = ', '.join(map(repr, IMPLEMENTATIONS))
    raise ValueError(f'impl is {impl!r}; expected one of {choices}.')
  values, ids = jnp.asarray(values), jnp.asarray(ids)
  if values.ndim != 2 or ids.ndim != 2:
    raise ValueError(
      f'values has shape {values.shape} and ids {ids.shape}; expected [N, D]'
      ' and [T, R].'
    )
  if not jnp.issubdtype(ids.dtype, jnp.integer):
    raise TypeError(f'ids is {ids.dtype}; expected integers.')
  if ids.dtype.itemsize < 4:  # The number of rows may not fit.
    ids = ids.astype(jnp.int32)
  # Negative ids would count from the end; of 64 bits half are looked at.
  outside = (ids < 0) | (ids >= values.shape[0])
  return values, jnp.where(outside, values.shape[0], ids)


# Compiled once for each shape, also where the caller compiles nothing.
_compiled = functools.partial(jax.jit, static_argnames='impl')


@_compiled
def _sum_rows(impl, values, ids, weights):
  """Sums of weighted rows, [T, D]."""
  dtype = _wide(values, weights)

  def scan(values, ids, weights):
    def add(total, read):
      row, weight = read
      return total + weight[:, None] * _rows(values, row, dtype), None

    start = jnp.zeros((ids.shape[0], values.shape[1]), dtype)
    # XLA makes one pass over the sums of as many reads, in the same order.
    reads = (ids.T, weights.T.astype(dtype))
    return jax.lax.scan(add, start, reads, unroll=_UNROLL)[0]

  def gather(values, ids, weights):
    def one(part):
      ids, weights = part
      # Not an einsum: a product of matrices would be rounded to TF32.
      return (_rows(values, ids, dtype) * weights[:, None]).sum(axis=0)

    return jax.lax.map(
      one,
      (ids, weights.astype(dtype)),
      batch_size=_tokens(values, ids, _CHUNK),
    )

  def pallas(values, ids, weights, interpret=False):
    return bag_pallas.bag(
      values, ids, weights.astype(dtype), interpret=interpret
    )

  return _choose(impl, scan, gather, pallas, scan, values, ids, weights)


@_compiled
def _dot_rows(impl, values, ids, x):
  """Products of rows with a vector of each token, [T, R]."""
  dtype = _wide(values, x)

  def scan(values, ids, x):
    def one(part):
      ids, x = part
      # Sums along a row, written out, take 1.7 times as long on a CPU.
      return jnp.matmul(_rows(values, ids, dtype), x, precision='highest')

    size = _tokens(values, ids, _IN_CACHE)
    return jax.lax.map(one, (ids, x), batch_size=size)

  def gather(values, ids, x):
    def one(part):
      ids, x = part
      return (_rows(values, ids, dtype) * x).sum(axis=1)

    return jax.lax.map(one, (ids, x), batch_size=_tokens(values, ids, _CHUNK))

  return _choose(
    impl, scan, gather, bag_pallas.dot, gather, values, ids, x.astype(dtype)
  )


@jax.jit
def _scatter_rows(values, ids, weights, x):
  """The gradient of the table: weights[t, r] * x[t] in row ids[t, r]."""
  dtype = _wide(values, weights)
  x = x.astype(dtype)

  def add(total, read):
    row, weight = read
    return total.at[row].add(weight[:, None] * x, mode='drop'), None

  start = jnp.zeros(values.shape, dtype)
  total, _ = jax.lax.scan(add, start, (ids.T, weights.T.astype(dtype)))
  return total.astype(values.dtype)


def _add_rows(values, ids, weights, x):
  """The gradient of a table; that of integers is none."""
  if not jnp.issubdtype(values.dtype, jnp.floating):
    return np.zeros(values.shape, jax.dtypes.float0)
  return _scatter_rows(values, ids, weights, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _bag(impl, values, ids, weights):
  return _sum_rows(impl, values, ids, weights)


def _bag_forward(impl, values, ids, weights):
  return _bag(impl, values, ids, weights), (values, ids, weights)


def _bag_backward(impl, saved, g):
  values, ids, weights = saved
  # What of these nobody asks for is removed by the compiler.
  return (
    _add_rows(values, ids, weights, g),
    np.zeros(ids.shape, jax.dtypes.float0),
    # With gradients of their own: kernels have none.
    _dot(impl, values, ids, g).astype(weights.dtype),
  )


_bag.defvjp(_bag_forward, _bag_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dot(impl, values, ids, x):
  return _dot_rows(impl, values, ids, x)


def _dot_forward(impl, values, ids, x):
  return _dot(impl, values, ids, x), (values, ids, x)


def _dot_backward(impl, saved, g):
  values, ids, x = saved
  return (
    _add_rows(values, ids, g, x),
    np.zeros(ids.shape, jax.dtypes.float0),
    _bag(impl, values, ids, g).astype(x.dtype),
  )


_dot.defvjp(_dot_forward, _dot_backward)


def _rows(values, ids, dtype):
  return values.at[ids].get(mode='fill', fill_value=0).astype(dtype)


def _tokens(values, ids, elements):
  """Of how many tokens the rows have as many elements."""
  return max(1, elements // max(1, ids.shape[1] * values.shape[1]))


def _wide(values, weights):
  """float32, or wider where an argument is."""
  dtype = jnp.promote_types(weights.dtype, jnp.float32)
  if jnp.issubdtype(values.dtype, jnp.floating):
    dtype = jnp.promote_types(values.dtype, dtype)
  return dtype


def _choose(impl, scan, gather, pallas, on_gpus, *arguments):
  # When the platform is known, which under jit and ahead of time is later than
  # here.
  by_platform = jax.lax.platform_dependent
  if 0 in (*arguments[0].shape, *arguments[1].shape):  # An empty grid.
    return scan(*arguments)
  if impl == 'auto':
    # Kernels count elements in 32 bits.
    small = arguments[0].size < 2**31
    gpus = pallas if small and _has_one_new_gpu() else on_gpus
    return by_platform(
      *arguments, cpu=scan, cuda=gpus, rocm=on_gpus, default=gather
    )
  if impl == 'pallas':
    interpreted = functools.partial(pallas, interpret=True)
    kernels = {'cpu': interpreted, 'cuda': pallas, 'rocm': pallas}
    return by_platform(*arguments, **kernels, default=gather)
  return {'scan': scan, 'gather': gather}[impl](*arguments)


def _has_one_new_gpu() -> bool:
  """Whether the kernels are the best choice: on one GPU that Triton knows.

  On several GPUs the table may be split over them, which the compiler can do
  with what XLA knows, and not with a kernel: each would get the whole table.
  """
  if jax.default_backend() != 'gpu' or jax.device_count() > 1:
    return False
  # Newer versions of JAX say that this part of Pallas will leave it.
  if importlib.util.find_spec('jax.experimental.pallas.triton') is None:
    return False
  try:
    capability = jax.devices()[0].compute_capability
    return float(capability) >= 8.0
  except (AttributeError, ValueError):  # Not NVIDIA's.
    return False
