"""The checks of `tests/optax_contract_test.py`, one function each.

A check takes `factory(learning_rate=...)`, which makes a transform, and raises
whatever exception the fault gives. It assumes that updates follow from
gradients, state and parameters alone (no randomness), and that a leaf is
handled for itself or by a reduction over all leaves.
"""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType

from tests.helpers import goldens

LEARNING_RATE = 0.125  # Exact in bfloat16.


def make_params(tag: str = 'params') -> Any:
  """A nested tree with a kernel, a bias, a stacked kernel and a scalar."""
  shapes = {
    'dense': {'kernel': (8, 4), 'bias': (4,)},
    'stack': {'kernel': (2, 8, 8)},
    'scale': (),
  }
  return jax.tree_util.tree_map_with_path(
    lambda path, shape: jnp.asarray(
      goldens.normal(tag + jax.tree_util.keystr(path), shape), jnp.float32
    ),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def make_gradients(step: int = 0) -> Any:
  """Gradients of the shapes of `make_params`, different at each step."""
  return make_params(f'gradients{step}')


def run_steps(tx, params, gradients, update=None) -> tuple[Any, Any]:
  """Parameters and state after one step per entry of `gradients`."""
  update = update or tx.update
  state = tx.init(params)
  for gradient in gradients:
    updates, state = update(gradient, state, params)
    params = optax.apply_updates(params, updates)
  return params, state


def assert_close(actual, expected, rtol=1e-5, atol=1e-6):
  """Equal up to float32 rounding: fusion under jit reorders operations."""
  chex.assert_trees_all_close(actual, expected, rtol=rtol, atol=atol)


def assert_same_types(actual, expected, what: str):
  """Same tree structure, shapes and dtypes, leaf by leaf."""
  if jax.tree.structure(actual) != jax.tree.structure(expected):
    raise AssertionError(
      f'{what}: the tree changed from {jax.tree.structure(expected)} to '
      f'{jax.tree.structure(actual)}.'
    )
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected)
  ):
    if (jnp.shape(a), jnp.result_type(a)) != (jnp.shape(b), jnp.result_type(b)):
      raise AssertionError(
        f'{what}: {jax.tree_util.keystr(path)} changed from '
        f'{jnp.result_type(b)}{jnp.shape(b)} to '
        f'{jnp.result_type(a)}{jnp.shape(a)}.'
      )


def check_pure(factory):
  """Equal calls give equal results: nothing is kept outside the state."""
  tx = factory(learning_rate=LEARNING_RATE)
  params, gradient = make_params(), make_gradients()
  state = tx.init(params)
  first = tx.update(gradient, state, params)
  second = tx.update(gradient, state, params)
  chex.assert_trees_all_equal(first, second)


def check_jit(factory):
  """A jitted update gives what an unjitted one gives."""
  tx = factory(learning_rate=LEARNING_RATE)
  gradients = [make_gradients(step) for step in range(3)]
  expected = run_steps(tx, make_params(), gradients)
  actual = run_steps(tx, make_params(), gradients, jax.jit(tx.update))
  assert_close(actual, expected)


def check_eval_shape(factory):
  """Init runs on shapes alone, and they are those of the real state."""
  tx = factory(learning_rate=LEARNING_RATE)
  params = make_params()
  abstract = jax.eval_shape(tx.init, params)
  assert_same_types(abstract, tx.init(params), 'eval_shape of init')


def check_stable_state(factory):
  """An update keeps the state's structure, shapes and dtypes."""
  tx = factory(learning_rate=LEARNING_RATE)
  params = make_params()
  state = tx.init(params)
  for step in range(3):
    updates, new_state = tx.update(make_gradients(step), state, params)
    assert_same_types(updates, params, 'updates')
    assert_same_types(new_state, state, 'state')
    state = new_state
  leaves = jax.tree.leaves(state)
  if not all(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves):
    raise AssertionError(f'state: not all leaves are arrays: {leaves}')


def check_no_recompilation(factory):
  """A jitted training step is traced once, whatever the number of steps."""
  tx = factory(learning_rate=LEARNING_RATE)
  traces = []

  @jax.jit
  def step(params, state, gradient):
    traces.append(None)
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  params = make_params()
  state = tx.init(params)
  for index in range(4):
    params, state = step(params, state, make_gradients(index))
  if len(traces) != 1:
    raise AssertionError(f'traced {len(traces)} times in 4 steps.')


def check_dtypes(factory):
  """Updates have the parameters' dtypes: bfloat16, float32, and mixed."""
  tx = factory(learning_rate=LEARNING_RATE)
  dtypes = {
    'bfloat16': lambda path: jnp.bfloat16,
    'float32': lambda path: jnp.float32,
    'mixed': lambda path: jnp.bfloat16 if 'bias' in path else jnp.float32,
  }
  for name, choose in dtypes.items():

    def cast(path, leaf, choose=choose):
      return leaf.astype(choose(jax.tree_util.keystr(path)))

    params = jax.tree_util.tree_map_with_path(cast, make_params())
    gradient = jax.tree_util.tree_map_with_path(cast, make_gradients())
    state = tx.init(params)
    updates, new_state = tx.update(gradient, state, params)
    assert_same_types(updates, params, f'{name} updates')
    assert_same_types(new_state, state, f'{name} state')
    chex.assert_tree_all_finite(updates)


def check_inject_hyperparams(factory):
  """The learning rate may be a traced number in the state, or a schedule."""
  params, gradient = make_params(), make_gradients()

  def first_update(tx):
    return tx.update(gradient, tx.init(params), params)[0]

  tx = optax.inject_hyperparams(factory)(learning_rate=LEARNING_RATE)
  state = tx.init(params)
  state.hyperparams['learning_rate'] = jnp.asarray(4 * LEARNING_RATE)
  updates, _ = jax.jit(tx.update)(gradient, state, params)
  assert_close(updates, first_update(factory(learning_rate=4 * LEARNING_RATE)))

  schedule = optax.constant_schedule(LEARNING_RATE)
  tx = optax.inject_hyperparams(factory)(learning_rate=schedule)
  expected = first_update(factory(learning_rate=LEARNING_RATE))
  assert_close(first_update(tx), expected)


def check_masked(factory):
  """Under optax.masked only the chosen leaves are touched, as if alone."""
  params, gradient = make_params(), make_gradients()
  tx = optax.masked(
    factory(learning_rate=LEARNING_RATE),
    {'dense': {'kernel': True, 'bias': False}, 'stack': True, 'scale': False},
  )
  updates, _ = jax.jit(tx.update)(gradient, tx.init(params), params)
  chex.assert_trees_all_equal(
    (updates['dense']['bias'], updates['scale']),
    (gradient['dense']['bias'], gradient['scale']),
  )

  def chosen(tree):
    return {
      'dense': {'kernel': tree['dense']['kernel']},
      'stack': tree['stack'],
    }

  alone = factory(learning_rate=LEARNING_RATE)
  expected, _ = alone.update(
    chosen(gradient), alone.init(chosen(params)), chosen(params)
  )
  assert_close(chosen(updates), expected)


def check_multi_transform(factory):
  """Two of them side by side on parts of one tree do not mix."""
  params = make_params()
  gradients = [make_gradients(step) for step in range(2)]
  labels = {'dense': 'a', 'stack': 'b', 'scale': 'b'}
  tx = optax.multi_transform(
    {
      'a': factory(learning_rate=LEARNING_RATE),
      'b': factory(learning_rate=2 * LEARNING_RATE),
    },
    labels,
  )
  actual, _ = run_steps(tx, params, gradients, jax.jit(tx.update))
  for label, rate in (('a', LEARNING_RATE), ('b', 2 * LEARNING_RATE)):

    def part(tree, label=label):
      return {k: v for k, v in tree.items() if labels[k] == label}

    alone = factory(learning_rate=rate)
    expected, _ = run_steps(alone, part(params), list(map(part, gradients)))
    assert_close(part(actual), expected)


def check_multi_steps(factory):
  """Gradient accumulation: two micro-steps equal one step on their mean."""
  params = make_params()
  micro = [make_gradients(0), make_gradients(1)]
  mean = jax.tree.map(lambda a, b: (a + b) / 2, *micro)
  tx = optax.MultiSteps(factory(learning_rate=LEARNING_RATE), 2)
  actual, _ = run_steps(tx, params, micro, jax.jit(tx.update))
  expected, _ = run_steps(factory(learning_rate=LEARNING_RATE), params, [mean])
  # The running mean of the gradients rounds differently from (a + b) / 2.
  assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def check_vmap(factory):
  """Training several models under vmap equals training them in turn."""
  tx = factory(learning_rate=LEARNING_RATE)
  params = [make_params(f'params{i}') for i in range(3)]
  gradients = [make_gradients(i) for i in range(3)]

  def two_steps(p, g):
    return run_steps(tx, p, [g, jax.tree.map(lambda x: -x / 2, g)])

  stack = functools.partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
  actual = jax.vmap(two_steps)(stack(*params), stack(*gradients))
  expected = stack(*map(two_steps, params, gradients))
  assert_close(actual, expected)


def check_empty_trees(factory):
  """Trees without leaves, and None where a parameter has no gradient."""
  tx = factory(learning_rate=LEARNING_RATE)
  for empty in ({}, {'a': None}):
    updates, _ = tx.update(empty, tx.init(empty), empty)
    if updates != empty:
      raise AssertionError(f'updates of {empty} are {updates}.')
  kernel = make_params()['dense']['kernel']
  params = {'a': None, 'kernel': kernel}
  updates, _ = tx.update(params, tx.init(params), params)
  assert_same_types(updates, params, 'updates beside None')


def check_extra_args(factory):
  """Extra arguments meant for others in a chain are passed over."""
  params, gradient = make_params(), make_gradients()
  plain = factory(learning_rate=LEARNING_RATE)
  expected, _ = plain.update(gradient, plain.init(params), params)
  tx = optax.chain(factory(learning_rate=LEARNING_RATE), optax.identity())
  state = tx.init(params)
  updates, _ = tx.update(gradient, state, params, value=1.0, unheard_of=None)
  assert_close(updates, expected)


def check_sharding(factory, expected):
  """On a mesh: the numbers of one device, and updates sharded like params.

  Has to run where JAX sees 8 devices: see `sharding_failures`.

  Args:
    factory: as in `REGISTRY`.
    expected: what `train_for_sharding` gave where JAX sees one device.
  """
  for axis_type in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4, 2), ('data', 'model'), (axis_type, axis_type))
    with jax.set_mesh(mesh):
      result = train_on_mesh(factory, mesh)
    # A reduction over shards adds in another order.
    assert_close(result, np.asarray(expected, np.float32), rtol=1e-4)


def train_on_mesh(factory, mesh) -> np.ndarray:
  """The steps of `check_sharding` on a mesh; checks how updates lie on it."""

  def place(leaf):
    axes = [None] * leaf.ndim
    if leaf.ndim >= 2:
      axes[-2:] = ['data', 'model']
    return jax.device_put(leaf, jax.NamedSharding(mesh, jax.P(*axes)))

  tx = factory(learning_rate=LEARNING_RATE)
  params = jax.tree.map(place, make_params())
  state = jax.jit(tx.init)(params)
  update = jax.jit(tx.update)
  for step in range(3):
    gradient = jax.tree.map(place, make_gradients(step))
    updates, state = update(gradient, state, params)
    for (path, u), p in zip(
      jax.tree_util.tree_leaves_with_path(updates), jax.tree.leaves(params)
    ):
      if not u.sharding.is_equivalent_to(p.sharding, p.ndim):
        raise AssertionError(
          f'the update of {jax.tree_util.keystr(path)} is sharded as '
          f'{u.sharding}, its parameter as {p.sharding}.'
        )
    params = optax.apply_updates(params, updates)
  return flat(params)


def flat(tree) -> np.ndarray:
  """All leaves one after another, on the host."""
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def train_for_sharding(factory) -> list[float]:
  """The steps of `check_sharding` without a mesh, as a flat list."""
  tx = factory(learning_rate=LEARNING_RATE)
  gradients = [make_gradients(step) for step in range(3)]
  return flat(run_steps(tx, make_params(), gradients)[0]).tolist()


CONTRACT = {
  'pure': check_pure,
  'jit': check_jit,
  'eval_shape': check_eval_shape,
  'stable_state': check_stable_state,
  'no_recompilation': check_no_recompilation,
  'dtypes': check_dtypes,
  'inject_hyperparams': check_inject_hyperparams,
  'masked': check_masked,
  'multi_transform': check_multi_transform,
  'multi_steps': check_multi_steps,
  'vmap': check_vmap,
  'empty_trees': check_empty_trees,
  'extra_args': check_extra_args,
}
