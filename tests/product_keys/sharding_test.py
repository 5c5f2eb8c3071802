"""Tests of tables that lie on several devices."""

import pytest
from absl.testing import absltest

from tests.helpers import devices

SETUP = """
  import jax, jax.numpy as jnp, numpy as np, optax
  from jaxpapers import product_keys as pk
  from jaxpapers import training
  from jaxpapers.training import aot

  def close(a, b):
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), a, b
    )

  def raises(words, call):
    try:
      call()
    except ValueError as error:
      assert words in str(error), error
    else:
      raise AssertionError(words)
"""


class ShardingTest(absltest.TestCase):
  @pytest.mark.slow
  def test_sums(self):
    devices.run(
      SETUP
      + """
  rng = np.random.default_rng(0)
  values = jnp.asarray(rng.standard_normal((32, 8)), jnp.float32)
  ids = jnp.asarray(rng.integers(0, 32, (13, 6)), jnp.int32)
  ids = ids.at[0, 0].set(32).at[1, 1].set(-1)
  weights = jnp.asarray(rng.standard_normal((13, 6)), jnp.float32)
  x = jnp.asarray(rng.standard_normal((13, 8)), jnp.float32)

  def check(bag, dot, values):
    def loss(values, weights, x):
      y, dots = bag(values, ids, weights), dot(values, ids, x)
      return jnp.sum(y * x) + jnp.sum(jnp.sin(dots)), (y, dots)
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(
      values, weights, x
    )

  expected = check(pk.embedding_bag, pk.embedding_dot, values)
  for shape, axis, kind in (
    ((4, 2), 'mem', 'row'),
    ((4, 2), 'mem', 'column'),
    ((2, 4), 'mem', 'row'),
    ((2, 4), 'mem', 'column'),
    ((4, 2), 'data', 'row'),
    ((2, 4), ('data', 'mem'), 'row'),
    ((4, 2), ('mem', 'data'), 'column'),
    ((4, 2), (), 'row'),
  ):
    mesh = training.make_mesh({'data': shape[0], 'mem': shape[1]})
    table = pk.shard_value_table(values, mesh, axis=axis, kind=kind)
    bag = pk.make_sharded_bag(mesh, kind=kind, axis=axis)
    close(check(bag, bag.dot, table), expected)
    text = jax.jit(bag).lower(table, ids, weights).compile().as_text()
    # A row that travels would be an array of the whole table.
    assert axis == () or 'f32[32,8]' not in text, (axis, kind)
    assert ('all-to-all' in text) == (kind == 'column'), (axis, kind)
  raises('split evenly', lambda: pk.shard_value_table(values[:31], mesh))
  raises('axis is', lambda: pk.shard_value_table(values, mesh, 'x'))
  raises('kind is', lambda: pk.shard_value_table(values, mesh, kind='r'))
  raises('and x', lambda: bag.dot(values, ids, x[:, :2]) and None)
  raises('weights', lambda: bag(values, ids, weights.T) and None)
  raises(
    'only its rows or only',
    lambda: pk.TableLayout.of(
      jax.NamedSharding(mesh, jax.P('data', 'mem'))
    ),
  )
  for n in (8, 31):
    mesh = training.make_mesh('data:8')
    rows = jnp.zeros((n, 2))
    rules = [('memory/.*values', jax.P('data'))]
    if n == 8:
      layout = pk.table_layouts({'values': rows}, rules, mesh)['values']
      assert (layout.kind, layout.parts) == ('row', 8)
    else:
      raises('split', lambda: pk.table_layouts({'values': rows}, rules, mesh))

  # A memory layer, table split by rows, its search spread over tokens.
  mesh = training.make_mesh('data:2,mem:4')
  for kind in (pk.ProductKeyMemory, pk.FlatMemory):
    memory = kind(n_keys=8, k_dim=8, heads=2, knn=3)
    tokens = jnp.asarray(rng.standard_normal((3, 5, 16)), jnp.float32)
    variables = memory.init(jax.random.key(0), tokens, train=False)
    def loss(memory, variables):
      y, _ = memory.apply(
        variables, tokens, train=True, mutable=['batch_stats']
      )
      return jnp.sum(jnp.sin(y))
    one = jax.jit(jax.grad(lambda v: loss(memory, v)))(variables)
    on_mesh = memory.clone(bag=pk.make_sharded_bag(mesh))
    many = jax.jit(jax.grad(lambda v: loss(on_mesh, v)))(variables)
    close(many, one)
      """
    )

  @pytest.mark.slow
  def test_training(self):
    # Adam of rows, each device its own: the numbers of one device, and what
    # travels is of the size of tokens.
    devices.run(
      SETUP
      + """
  slots, width, reads, batch_tokens = 4096, 16, 4, 64
  make = training.make_mesh
  batch = {
    'inputs': jnp.asarray(np.arange(64).reshape(8, 8) % 20),
    'targets': jnp.asarray(np.arange(1, 65).reshape(8, 8) % 20),
  }

  def train(cls, mesh, axis='mem', kind='row', mode='lazy', accumulate=1):
    bag, rules = pk.embedding_bag, ()
    if mesh is not None:
      bag = pk.make_sharded_bag(mesh, axis=axis, kind=kind)
      spec = jax.P(axis) if kind == 'row' else jax.P(None, axis)
      rules = [('memory/.*(values|up|down)', spec)]
    slots_of = {'n_keys': 64, 'k_dim': 8, 'heads': 1, 'knn': reads}
    model = pk.TransformerLM(
      20, 1, width, 2, memory_positions='0', memory=cls(**slots_of, bag=bag),
      max_len=8,
    )
    def init(key):
      v = dict(model.init(key, batch['inputs'], train=False))
      return {n: v.pop(n) for n in ('params', 'memory')}, v
    tx = pk.memory_optimizer(optax.sgd(0.1), 1e-2, mode)
    state = training.create_state(
      init, tx, jax.random.key(0), mesh=mesh, rules=rules
    )
    step = pk.make_memory_train_step(
      pk.language_model_loss(model), tx, mesh=mesh, rules=rules,
      accumulate=accumulate,
    )
    given = training.put_batch(batch, mesh)
    compiled = step.lower(state, given).compile()
    if mesh is not None:
      # Lists of parts, as of the table itself.
      names = (axis,) if isinstance(axis, str) else axis
      parts = int(np.prod([mesh.shape[name] for name in names]))
      local = slots * width * 4 // parts
      tables = len(jax.tree.leaves(state.params['memory']))
      found = aot.count_collectives(compiled.as_text())
      reduced = found.pop('all-reduce', (0, 0))[1]
      travels = sum(size for _, size in found.values())
      # Ids, weights and vectors of all tokens: in the sum and its gradient, in
      # the rows, and for two tables twice.
      one = batch_tokens * (width + 2 * reads) * 4
      assert travels < 8 * tables * one, (axis, kind, found)
      dense = sum(x.size for x in jax.tree.leaves(state.params['params']))
      assert reduced < 2 * dense * 4 + 4 * one, (axis, kind, reduced)
      assert travels < slots * width * 4 / 8
      used = compiled.memory_analysis()
      assert used.alias_size_in_bytes > 3 * tables * local, (axis, kind)
      # The rows of a gradient have places for all reads.
      if mode == 'lazy':
        room = batch_tokens * reads * width * 4 * tables
        assert used.temp_size_in_bytes < 8 * room + 2**18, used
    for _ in range(3):
      state, metrics = compiled(state, given)
    if mesh is not None:
      for leaf in jax.tree.leaves(state.params['memory']):
        assert leaf.sharding.is_equivalent_to(
          jax.NamedSharding(mesh, rules[0][1]), 2
        ), leaf.sharding
    moments = [
      x for x in jax.tree.leaves(state.opt_state) if x.shape == (slots, width)
    ]
    assert moments
    return jax.device_get((state.params, state.model_state, moments, metrics))

  product = train(pk.ProductKeyMemory, None)
  close(train(pk.ProductKeyMemory, make('data:2,mem:4')), product)
  close(
    train(pk.ProductKeyMemory, make('data:4,mem:2'), kind='column'), product
  )
  close(train(pk.ProductKeyMemory, make('data:8'), axis='data'), product)
  close(
    train(pk.ProductKeyMemory, make('data:2,mem:4'), mode='auto'), product
  )
  micro = train(pk.ProductKeyMemory, None, accumulate=2)
  close(
    train(pk.ProductKeyMemory, make('data:2,mem:4'), accumulate=2), micro
  )
  experts = train(pk.PEER, None)
  close(train(pk.PEER, make('data:2,mem:4')), experts)
  close(train(pk.PEER, make('data:4,mem:2'), kind='column'), experts)
      """
    )


if __name__ == '__main__':
  absltest.main()
