"""Layca on the kernels of a network, and something else on the rest."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from jaxpapers.layca import checks, rotation, trees
from jaxpapers.layca.transform import LaycaState, layca

# A base that adds noise to a gradient keeps its sign on the whole.
_OPPOSED = -0.5
# Rounding of norms, with 32 bits and with 16.
_ROUNDING = {4: 1e-5, 2: 2e-2}


def with_layca(
  base: optax.GradientTransformation,
  learning_rate: Any,
  *,
  select: Callable[[str, Any], bool] | Any = None,
  others: optax.GradientTransformation | None = None,
  **options: Any,
) -> optax.GradientTransformationExtraArgs:
  """Trains kernels with a base direction and Layca, the rest with `others`.

  As in the paper, what is no kernel (biases, scales and centres of batch
  normalisation, embeddings) is frozen unless `others` is given; a warning
  names these parameters, once. Clipping by global norm inside `base`
  sees the chosen parameters alone.

  Args:
    base: direction of ascent: `optax.identity()` for SGD, `optax.trace(0.9)`,
      `optax.scale_by_adam()`. Not `optax.adam(...)`, which is negated.
    learning_rate: as in `layca`.
    select: chooses what Layca rotates: function of (path, leaf), or a prefix
      tree of booleans; None for `is_kernel`.
    others: transform for the rest, a complete optimizer such as
      `optax.adam(1e-3)`; None for `optax.set_to_zero()`.
    **options: the other arguments of `layca`. Trees are for the whole
      parameter tree or by path.

  Returns:
    The transform.

  Raises:
    ValueError: base is negated or contains Layca; at init: nothing is chosen.

  Example:
    >>> params = {'kernel': jnp.eye(2), 'bias': jnp.zeros(2)}
    >>> tx = with_layca(optax.trace(0.9), 3.0**-3, others=optax.sgd(0.1))
    >>> state = tx.init(params)
  """
  options = checks.keyword_options(options)
  _check_base(base)
  frozen = others is None or _is_zero(others)
  if others is None:
    others = optax.set_to_zero()
  # partition passes extra arguments only to those that take them.
  rotated = optax.chain(
    optax.with_extra_args_support(base), layca(learning_rate, **options)
  )
  partition = optax.partition(
    {'layca': rotated, 'others': others}, _labels_of(select)
  )

  def init(params):
    names, leaves, _ = trees.flatten(params)
    chosen = _chosen(select, names, leaves)
    present = [not trees.is_absent(leaf) for leaf in leaves]
    rest = [
      name
      for name, leaf_is_there, is_chosen in zip(
        names, present, chosen, strict=True
      )
      if leaf_is_there and not is_chosen
    ]
    if any(present) and len(rest) == sum(present):
      raise ValueError(
        f'select chooses none of the parameters {rest}; expected at least one.'
        ' By default those are chosen whose last key contains the word kernel.'
      )
    if frozen and rest:
      warn_of_frozen(', '.join(rest))
    return partition.init(params)

  return optax.GradientTransformationExtraArgs(init, partition.update)


@functools.cache
def warn_of_frozen(names: str) -> None:
  """Warns of parameters that stay as they are, the first time only.

  Optimizers are made and initialised several times, as by inject_hyperparams,
  and want to be heard once.

  Args:
    names: the parameters, as text.
  """
  logging.warning(
    'Layca: frozen at their initial values, since they are not selected and'
    ' no transform is given for others: %s',
    names,
  )


def check_chain(
  tx: optax.GradientTransformation, params: Any = None
) -> optax.GradientTransformation:
  """Tries an optimizer on a few numbers: is Layca used as it must be?

  Finds what cannot be seen from inside: a transform after Layca, which breaks
  the sphere, and a base that is negated already, which is climbed. Two updates
  are computed.

  Args:
    tx: optimizer with Layca in it.
    params: parameters to try it on, if it depends on their structure; a single
      16 x 16 kernel by default.

  Returns:
    The same optimizer.

  Raises:
    ValueError: it has no Layca, leaves the sphere, or goes uphill.

  Example:
    >>> tx = check_chain(optax.chain(optax.trace(0.9), layca(3.0**-3)))
  """
  rng = np.random.default_rng(0)

  def random(leaf):
    draw = rng.standard_normal(np.shape(leaf)) + 0.1
    return jnp.asarray(draw, jnp.result_type(leaf))

  if params is None:
    params = {'kernel': jnp.zeros((16, 16), jnp.float32)}
  start = jax.tree.map(random, params)
  gradient = jax.tree.map(random, params)
  state = tx.init(start)
  if not rotation.find_states(state):
    raise ValueError('tx has no layca in it; expected an optimizer that has.')
  # A norm that has to grow shows at once whether updates arrive as they are,
  # however small the rate is.
  state = jax.tree.map(
    lambda s: (
      s._replace(target_norm=jax.tree.map(lambda n: 2 * n, s.target_norm))
      if isinstance(s, LaycaState)
      else s
    ),
    state,
    is_leaf=lambda s: isinstance(s, LaycaState),
  )
  now, first = start, None
  for _ in range(2):
    updates, state = tx.update(gradient, state, now)
    now = optax.apply_updates(now, updates)
    first = now if first is None else first
  for found in rotation.find_states(state):
    names, norms, _ = trees.flatten(found.target_norm)
    rotated = {
      name
      for name, norm in zip(names, norms, strict=True)
      if not trees.is_absent(norm)
    }
    _check_layers(rotated, start, first, now, gradient)
  return tx


def _check_layers(rotated, start, first, now, gradient):
  """Raises if rotated layers changed their norm or moved uphill."""
  flat = zip(
    *(trees.flatten(t)[1] for t in (start, first, now, gradient)), strict=True
  )
  for name, (w, one, two, g) in zip(trees.flatten(start)[0], flat, strict=True):
    if name not in rotated:
      continue
    tolerance = _ROUNDING.get(w.dtype.itemsize, 1e-5)
    w, one, two, g = (np.asarray(x, np.float64) for x in (w, one, two, g))
    if abs(np.linalg.norm(two) / np.linalg.norm(one) - 1) > tolerance:
      raise ValueError(
        f'the norm of {name!r} changes from {np.linalg.norm(one):.6g} to'
        f' {np.linalg.norm(two):.6g} in a step; expected layca to be the last'
        ' transform of the chain. Remove what follows it.'
      )
    tangent = g - np.vdot(g, w) / np.vdot(w, w) * w
    moved = one / np.linalg.norm(one) - w / np.linalg.norm(w)
    if _cosine(moved, tangent) > -_OPPOSED:
      raise ValueError(f'{name!r} goes uphill; {_NEGATED}')


_NEGATED = (
  'expected a base that gives directions of ascent, of the sign of the gradient'
  ' and without a learning rate: optax.scale_by_adam() instead of'
  ' optax.adam(...), optax.identity() or optax.trace(...) instead of'
  ' optax.sgd(...).'
)


def _cosine(a, b):
  norms = np.linalg.norm(a) * np.linalg.norm(b)
  return np.vdot(a, b) / norms if norms else 0.0


def _sample_update(tx, gradient, params):
  """An update of a transform on one kernel as NumPy, and its state.

  Of three updates with the same gradient, the last that is not zero: a schedule
  with a warmup begins with a learning rate of 0.

  None where this cannot be tried: the transform is made for another tree, wants
  further arguments, or has traced numbers in it.
  """
  try:
    with jax.ensure_compile_time_eval():
      params = {'kernel': jnp.asarray(params, jnp.float32)}
      state = tx.init(params)
      gradient = {'kernel': jnp.asarray(gradient, jnp.float32)}
      after, found = state, None
      for _ in range(3):
        updates, after = tx.update(gradient, after, params)
        update = np.asarray(updates['kernel'], np.float64)
        if found is None or update.any():
          found = update
      return found, state
  except Exception:  # Whatever the transform says of a tree not its own.
    return None, None


def _check_base(base):
  if not isinstance(base, optax.GradientTransformation):
    raise TypeError(
      f'base is a {type(base).__name__}; expected an optax transform, such as'
      ' optax.identity() for SGD.'
    )
  rng = np.random.default_rng(0)
  gradient, params = rng.standard_normal((2, 16, 16)) + 0.1
  update, state = _sample_update(base, gradient, params)
  if state is not None and rotation.find_states(state):
    raise ValueError(
      'base contains layca already; expected the direction only, since whatever'
      ' follows layca breaks the sphere.'
    )
  if update is not None and _cosine(update, gradient) < _OPPOSED:
    raise ValueError(f'base gives the negated gradient; {_NEGATED}')


def _is_zero(others):
  update, _ = _sample_update(others, np.ones((2, 2)), np.eye(2))
  return update is not None and not update.any()


def _chosen(select, names, leaves):
  """Which leaves are rotated, as a list of booleans."""
  if select is None:
    select = trees.is_kernel
  if callable(select):
    return [
      not trees.is_absent(leaf) and bool(select(name, leaf))
      for name, leaf in zip(names, leaves, strict=True)
    ]
  present = [not trees.is_absent(leaf) for leaf in leaves]
  values = trees.match_prefix(select, names, present, 'select')
  return [bool(v) and there for v, there in zip(values, present, strict=True)]


def _labels_of(select):
  def labels(tree):
    # Absent leaves are no leaves for optax either.
    names, leaves, treedef = trees.flatten(tree)
    return treedef.unflatten(
      [
        leaf if trees.is_absent(leaf) else ('layca' if is_chosen else 'others')
        for leaf, is_chosen in zip(
          leaves, _chosen(select, names, leaves), strict=True
        )
      ]
    )

  return labels
