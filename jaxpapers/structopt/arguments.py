"""Checks of the arguments that `optimize` and `optimize_batch` share."""

import dataclasses
import difflib

import jax
import jax.numpy as jnp

from jaxpapers.structopt import domain, methods, models

_PHYSICS = (
  'penal',
  'emin',
  'e0',
  'filter_radius',
  'constrain',
  'solver',
  'tol',
  'maxiter',
  'precision',
  'poisson',
)


def parse_settings(
  problem, method, cnn_kwargs, dynamic_depth, projection, learning_rate, physics
) -> methods.Settings:
  """Checks the arguments that select a program."""
  if not isinstance(problem, domain.Problem):
    raise TypeError(
      f'problem is {problem!r}; expected a Problem, such as'
      " get_problem('mbb_beam_96x32_0.5')."
    )
  if method not in methods.METHODS:
    near = difflib.get_close_matches(method, methods.METHODS, 1, 0.3)
    hint = f' Did you mean {near[0]!r}?' if near else ''
    raise ValueError(
      f'method is {method!r}; expected one of {methods.METHODS}.{hint}'
    )
  unknown = sorted(set(physics) - set(_PHYSICS))
  if unknown:
    raise ValueError(
      f'unknown argument {unknown[0]!r}; besides the named ones, {_PHYSICS} are'
      ' passed on.'
    )
  penal = physics.get('penal', 3.0)
  if not penal > 0:
    raise ValueError(
      f'penal is {penal!r}; expected a positive exponent such as 3.'
    )
  cnn = dict(cnn_kwargs or {})
  if dynamic_depth:
    resizes, filters, channels = models.dynamic_depth(
      problem.nelx, problem.nely
    )
    chosen = {
      'resizes': resizes,
      'conv_filters': filters,
      'dense_channels': channels,
    }
    clash = sorted(set(chosen) & set(cnn))
    if clash:
      raise ValueError(
        f'cnn_kwargs sets {clash[0]}, which dynamic_depth chooses; drop one.'
      )
    cnn |= chosen
  cnn = {k: tuple(v) if isinstance(v, list) else v for k, v in cnn.items()}
  fields = {field.name for field in dataclasses.fields(models.CNNDesign)}
  unknown = sorted(set(cnn) - (fields - {'nely', 'nelx', 'parent', 'name'}))
  if unknown:
    raise ValueError(
      f'cnn_kwargs has {unknown[0]!r}, which models.CNNDesign does not take.'
    )
  if jax.default_backend() == 'cpu':
    # Within a compiled loop XLA's convolutions on CPU are ten times slower
    # than outside it; matrix products are not.
    cnn.setdefault('conv_method', 'matmul')
  return methods.Settings(
    method=method,
    nely=problem.nely,
    nelx=problem.nelx,
    cnn=tuple(sorted(cnn.items())),
    physics=tuple(sorted(physics.items())),
    projected=projection is not None,
    learning_rate=float(learning_rate),
  )


def single_key(key, seed):
  """One key from `key` or `seed`."""
  if seed is not None:
    if key is not None:
      raise ValueError('Give key or seed, not both.')
    if int(seed) != seed or seed < -1:
      raise ValueError(
        f'seed is {seed}; expected an integer from 0, or -1 for a constant'
        ' start.'
      )
    return None if seed == -1 else jax.random.key(int(seed))
  if key is None:
    return None
  if not is_key(key) or key.shape:
    raise ValueError(
      f'key is {key!r}; expected one typed key such as jax.random.key(0). For'
      ' several, see optimize_batch.'
    )
  return key


def is_key(key) -> bool:
  """Whether `key` is a typed key or an array of them."""
  return isinstance(key, jax.Array) and jnp.issubdtype(
    key.dtype, jax.dtypes.prng_key
  )


def positive(name: str, value) -> int:
  """`value` as an integer; raises unless it is one and at least 1."""
  if int(value) != value or value < 1:
    raise ValueError(f'{name} is {value}; expected a positive integer.')
  return int(value)


def anonymous(problem: domain.Problem) -> domain.Problem:
  """Strips the static fields that would select another compiled program."""
  return problem.replace(name='', category='')


def sharpness(projection, evaluations: int) -> tuple[float, float]:
  """(beta, eta) in force; unused numbers if nothing is projected."""
  pair = projection(evaluations) if callable(projection) else projection
  beta, eta = (1.0, 0.5) if pair is None else pair
  beta, eta = float(beta), float(eta)
  if not beta > 0 or not 0 < eta < 1:
    raise ValueError(
      f'projection is ({beta}, {eta}); expected beta > 0 and 0 < eta < 1.'
    )
  return beta, eta
