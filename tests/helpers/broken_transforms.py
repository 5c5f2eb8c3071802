"""Gradient descent in which one rule of the optax contract is broken.

They prove that the checks of `tests.helpers.optax_contract` can fail.
"""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType


def broken(init=None, update=None):
  """Plain gradient descent with `init` or `update` replaced by a fault."""

  def factory(learning_rate):
    def sound(updates, state, params=None, **extra_args):
      del params, extra_args
      return jax.tree.map(lambda u: -learning_rate * u, updates), state

    def faulty(updates, state, params=None, **extra_args):
      return update(learning_rate, updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(
      init or (lambda params: optax.EmptyState()), faulty if update else sound
    )

  return factory


def scaled(updates, factor):
  return jax.tree.map(lambda u: -factor * u, updates)


def forgets_purity(learning_rate):
  calls = []

  def update(updates, state, params=None, **extra_args):
    calls.append(None)
    return scaled(updates, learning_rate / len(calls)), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )


def reads_values(rate, updates, state, params, **extra_args):
  norm = float(optax.tree.norm(updates))
  return scaled(updates, rate / max(norm, 1.0)), state


def init_reads_values(params):
  return [float(jnp.sum(leaf)) for leaf in jax.tree.leaves(params)]


def grows_state(rate, updates, state, params, **extra_args):
  return scaled(updates, rate), (*state, jnp.zeros(()))


def strengthens_type(rate, updates, state, params, **extra_args):
  return scaled(updates, rate), jnp.asarray(state, jnp.float32) + 1


def promotes(rate, updates, state, params, **extra_args):
  return scaled(updates, jnp.full((), rate, jnp.float32)), state


def branches_on_rate(rate, updates, state, params, **extra_args):
  return scaled(updates, rate if rate < 0.25 else 0.25), state


def knows_names(rate, updates, state, params, **extra_args):
  bias = -rate * updates['dense']['bias']
  updates = scaled(updates, rate)
  return {**updates, 'dense': {**updates['dense'], 'bias': bias}}, state


_shared_calls = []


def shares_a_count(rate, updates, state, params, **extra_args):
  # Two instances count together: the second sees the steps of the first.
  _shared_calls.append(None)
  return scaled(updates, rate / len(_shared_calls)), state


def concatenates(rate, updates, state, params, **extra_args):
  flat = [jnp.ravel(leaf) for leaf in jax.tree.leaves(updates)]
  norm = jnp.linalg.norm(jnp.concatenate(flat))
  return scaled(updates, rate / jnp.maximum(norm, 1.0)), state


def refuses_extra_args(rate, updates, state, params, **extra_args):
  if extra_args:
    raise TypeError(f'unexpected arguments {sorted(extra_args)}')
  return scaled(updates, rate), state


def counts_devices(rate, updates, state, params, **extra_args):
  return scaled(updates, rate / jax.device_count()), state


def gathers(rate, updates, state, params, **extra_args):
  mesh = jax.make_mesh((jax.device_count(),), ('all',), (AxisType.Auto,))
  everywhere = jax.NamedSharding(mesh, jax.P())
  updates = scaled(updates, rate)
  return jax.lax.with_sharding_constraint(updates, everywhere), state


# check -> (transform that breaks it, what the failure says). The message is
# part of the proof: the check has to fail for the reason it is there for.
BROKEN = {
  'pure': (forgets_purity, 'differ|not equal|Not equal'),
  'jit': (broken(update=reads_values), 'traced array|Tracer'),
  'eval_shape': (broken(init=init_reads_values), 'traced array|Tracer'),
  'stable_state': (
    broken(init=lambda params: (), update=grows_state),
    'state: the tree changed',
  ),
  'no_recompilation': (
    broken(init=lambda params: jnp.asarray(0.0), update=strengthens_type),
    'traced 2 times',
  ),
  'dtypes': (broken(update=promotes), 'bfloat16 updates.*to float32'),
  'inject_hyperparams': (broken(update=branches_on_rate), 'boolean|Tracer'),
  'masked': (broken(update=knows_names), "can't multiply sequence"),
  'multi_transform': (broken(update=shares_a_count), 'close|differ'),
  'multi_steps': (
    broken(init=lambda params: (), update=grows_state),
    'structure|arity|Custom|length',
  ),
  'vmap': (broken(update=reads_values), 'traced array|Tracer'),
  'empty_trees': (broken(update=concatenates), 'at least one array'),
  'extra_args': (broken(update=refuses_extra_args), 'unheard_of'),
}
BROKEN_SHARDING = {
  'counts_devices': (broken(update=counts_devices), 'close|differ'),
  'gathers': (broken(update=gathers), 'is sharded as'),
}
