"""Tests of weighted sums of rows and of their sparse gradients."""

import contextlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.product_keys import bag, row_sparse


def case(seed=0, t=6, r=4, n=9, d=5):
  rng = np.random.default_rng(seed)
  values = rng.standard_normal((n, d)).astype(np.float32)
  ids = rng.integers(0, n, (t, r)).astype(np.int32)
  weights = rng.standard_normal((t, r)).astype(np.float32)
  x = rng.standard_normal((t, d)).astype(np.float32)
  return values, ids, weights, x


def gpu_that_is_not_here():
  """From JAX 0.11 on kernels are lowered for a GPU of a certain kind."""
  if not hasattr(jax.sharding, 'AbstractDevice'):
    return contextlib.nullcontext()
  device = jax.sharding.AbstractDevice('NVIDIA H100 80GB HBM3', 132, 'gpu')
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
  return jax.sharding.use_abstract_mesh(mesh)


class BagTest(parameterized.TestCase):
  @parameterized.parameters('scan', 'gather', 'auto', 'pallas')
  def test_is_the_sum(self, impl):
    values, ids, weights, x = case()
    ids[0, 0], ids[1, 1] = 9, -1  # Neither is a row.

    def plain(values, weights, x):
      inside = (ids >= 0) & (ids < 9)
      rows = jnp.where(inside[..., None], values[ids % 9], 0)
      y = jnp.einsum('tr,trd->td', weights, rows)
      return jnp.sum(y * x), (y, jnp.einsum('trd,td->tr', rows, x))

    def ours(values, weights, x):
      y = bag.embedding_bag(values, ids, weights, impl=impl)
      return jnp.sum(y * x), (y, bag.embedding_dot(values, ids, x, impl=impl))

    for function in (ours, jax.jit(ours)):
      _, (y, dots) = function(values, weights, x)
      _, (expected, dot) = plain(values, weights, x)
      np.testing.assert_allclose(y, expected, atol=1e-5)
      np.testing.assert_allclose(dots, dot, atol=1e-5)
    for index in (0, 1):
      options = {'argnums': (0, 1, 2)}
      gradients, wanted = (
        jax.grad(
          lambda *a, f=f, i=index: jnp.sum(jnp.sin(f(*a)[1][i])), **options
        )(values, weights, x)
        for f in (ours, plain)
      )
      for g, w in zip(gradients, wanted):
        np.testing.assert_allclose(g, w, atol=1e-5)

  @parameterized.parameters('scan', 'pallas')
  def test_gradients_of_gradients(self, impl):
    values, ids, weights, x = case()
    other = {'bag': weights, 'dot': x}
    ours = {
      'bag': lambda v, w: bag.embedding_bag(v, ids, w, impl=impl),
      'dot': lambda v, x: bag.embedding_dot(v, ids, x, impl=impl),
    }
    plain = {
      'bag': lambda v, w: jnp.einsum('tr,trd->td', w, v[ids]),
      'dot': lambda v, x: jnp.einsum('td,trd->tr', x, v[ids]),
    }

    def twice(function):
      def first(*arguments):
        gradients = jax.grad(lambda *a: jnp.sin(function(*a)).sum(), (0, 1))
        return sum((g**2).sum() for g in gradients(*arguments))

      return jax.grad(first, (0, 1))

    for kind, b in other.items():
      got, expected = (twice(f[kind])(values, b) for f in (ours, plain))
      for g, w in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-4)
    whole = np.round(10 * values).astype(np.int8)

    def bend(w):
      y = bag.embedding_bag(whole, ids, w, impl=impl)
      return (jax.grad(lambda w: (y * y).sum())(w) + (y * y).sum()).sum()

    self.assertTrue(bool(jnp.isfinite(jax.grad(bend)(weights)).all()))

  @parameterized.parameters('int8', 'uint8', 'int64')
  def test_types_of_ids(self, dtype):
    values, ids, weights, x = case(n=300)
    ids = ids % 100
    expected = bag.embedding_bag(values, ids, weights)
    with jax.enable_x64(True):
      ids = ids.astype(dtype)
      y = bag.embedding_bag(values, ids, weights)
      np.testing.assert_array_equal(y, expected)
      if dtype == 'int64':
        far = ids + 2**32
        for impl in ('scan', 'gather', 'pallas'):
          y = bag.embedding_bag(values, far, weights, impl=impl)
          np.testing.assert_array_equal(y, np.zeros_like(expected))

  @parameterized.parameters('scan', 'gather', 'pallas')
  def test_vmap(self, impl):
    values, ids, weights, x = map(
      lambda *a: np.stack(a), *(case(seed) for seed in range(2))
    )

    def loss(values, ids, weights, x):
      y = bag.embedding_bag(values, ids, weights, impl=impl)
      return jnp.sum(y * x)

    make = jax.value_and_grad(loss, argnums=(0, 2))
    both = jax.vmap(make)(values, ids, weights, x)
    for i in range(2):
      one = make(values[i], ids[i], weights[i], x[i])
      jax.tree.map(
        lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-5),
        both,
        one,
      )

  def test_integers_and_narrow_types(self):
    values, ids, weights, _ = case()
    expected = bag.embedding_bag(np.round(10 * values), ids, weights)
    whole = np.round(10 * values).astype(np.int8)
    np.testing.assert_allclose(
      bag.embedding_bag(whole, ids, weights), expected, rtol=1e-6
    )
    jax.grad(lambda w: bag.embedding_bag(whole, ids, w).sum())(weights)
    narrow = jnp.asarray(values, jnp.bfloat16)
    y = bag.embedding_bag(narrow, ids, weights)
    self.assertEqual(y.dtype, jnp.float32)
    again = bag.embedding_bag(narrow.astype(jnp.float32), ids, weights)
    np.testing.assert_array_equal(y, again)
    table = jax.grad(lambda v: bag.embedding_bag(v, ids, weights).sum())(narrow)
    self.assertEqual(table.dtype, jnp.bfloat16)

  def test_kernel_with_several_blocks_and_tiles(self):
    # 600 columns are two blocks, 19 reads three tiles, both not full.
    values, ids, weights, x = case(t=3, r=19, n=30, d=600)
    ids[0, 0] = 30
    for make, other in (
      (bag.embedding_bag, weights),
      (bag.embedding_dot, x),
    ):
      kernel, plain = (
        make(values, ids, other, impl=impl) for impl in ('pallas', 'gather')
      )
      np.testing.assert_allclose(kernel, plain, atol=2e-5)

  @parameterized.parameters('float32', 'bfloat16', 'int8')
  def test_kernel_lowers_for_gpus(self, dtype):
    # Down to the code that Triton compiles; no GPU is needed for that.
    def loss(weights, values, ids, x):
      y = bag.embedding_bag(values, ids, weights, impl='pallas')
      return jnp.sum(y * x)

    shapes = (
      jax.ShapeDtypeStruct((16, 32), 'float32'),
      jax.ShapeDtypeStruct((256, 512), dtype),
      jax.ShapeDtypeStruct((16, 32), 'int32'),
      jax.ShapeDtypeStruct((16, 512), 'float32'),
    )
    with gpu_that_is_not_here():
      traced = jax.jit(jax.grad(loss)).trace(*shapes)
      text = traced.lower(lowering_platforms=('cuda',)).as_text()
      self.assertIn('__gpu$xla.gpu.triton', text)
      text = traced.lower(lowering_platforms=('tpu',)).as_text()
    self.assertNotIn('custom_call @__gpu', text)

  @parameterized.parameters(True, False)
  def test_what_gpus_get_by_default(self, kernels):
    # Not a shape of another test: traced functions are remembered.
    n = 301 + kernels
    shapes = (
      jax.ShapeDtypeStruct((n, 128), 'float32'),
      jax.ShapeDtypeStruct((16, 128), 'int32'),
      jax.ShapeDtypeStruct((16, 128), 'float32'),
    )
    with (
      gpu_that_is_not_here(),
      mock.patch.object(bag, '_has_one_new_gpu', lambda: kernels),
    ):
      for function in (bag.embedding_bag, bag.embedding_dot):
        traced = jax.jit(lambda *x, f=function: f(*x)).trace(*shapes)
        text = traced.lower(lowering_platforms=('cuda',)).as_text()
        self.assertEqual('xla.gpu.triton' in text, kernels)

  @parameterized.parameters(
    ('gpu', 1, '9.0', True),
    ('gpu', 1, '7.5', False),
    ('gpu', 1, 'gfx90a', False),
    ('gpu', 2, '9.0', False),
    ('tpu', 1, None, False),
  )
  def test_where_kernels_are_best(self, backend, count, capability, expected):
    devices = [mock.Mock(compute_capability=capability)] * count
    with (
      mock.patch.object(jax, 'default_backend', lambda: backend),
      mock.patch.object(jax, 'device_count', lambda: count),
      mock.patch.object(jax, 'devices', lambda: devices),
    ):
      self.assertEqual(bag._has_one_new_gpu(), expected)

  @parameterized.parameters(*bag.IMPLEMENTATIONS)
  def test_nothing_to_read(self, impl):
    values = jnp.ones((5, 3))
    for t, r in ((0, 4), (2, 0)):
      ids, weights = jnp.zeros((t, r), int), jnp.ones((t, r))
      y = bag.embedding_bag(values, ids, weights, impl=impl)
      np.testing.assert_array_equal(y, np.zeros((t, 3)))
      y = bag.embedding_dot(values, ids, jnp.ones((t, 3)), impl=impl)
      self.assertEqual(y.shape, (t, r))
    ids, weights = jnp.zeros((2, 4), int), jnp.ones((2, 4))
    y = bag.embedding_bag(values[:, :0], ids, weights, impl=impl)
    self.assertEqual(y.shape, (2, 0))
    y = bag.embedding_dot(values[:, :0], ids, jnp.ones((2, 0)), impl=impl)
    np.testing.assert_array_equal(y, np.zeros((2, 4)))

  @parameterized.parameters(('scan', 4), ('gather', 40))
  def test_temporaries(self, impl, mebibytes):
    t, r, d, n = 1024, 128, 512, 4096

    def compiled(function):
      arguments = (
        jax.ShapeDtypeStruct((n, d), 'float32'),
        jax.ShapeDtypeStruct((t, r), 'int32'),
        jax.ShapeDtypeStruct((t, r), 'float32'),
      )
      return jax.jit(function).lower(*arguments).compile()

    def forward(values, ids, weights):
      return bag.embedding_bag(values, ids, weights, impl=impl)

    memory = compiled(forward).memory_analysis()
    # All rows would be 256 MiB.
    self.assertLess(memory.temp_size_in_bytes, mebibytes * 2**20)

  def test_bad_input(self):
    values, ids, weights, x = case()
    with self.assertRaisesRegex(ValueError, "impl is 'fast'"):
      bag.embedding_bag(values, ids, weights, impl='fast')
    with self.assertRaisesRegex(ValueError, 'weights has shape'):
      bag.embedding_bag(values, ids, weights.T)
    with self.assertRaisesRegex(ValueError, 'values has shape'):
      bag.embedding_bag(values[0], ids, weights)
    with self.assertRaisesRegex(TypeError, 'ids is float32'):
      bag.embedding_bag(values, weights, weights)
    with self.assertRaisesRegex(ValueError, 'x has shape'):
      bag.embedding_dot(values, ids, x[:, :2])


class RowSparseTest(parameterized.TestCase):
  @parameterized.parameters((9,), (100,))
  def test_is_the_dense_gradient(self, n):
    values, ids, weights, x = case(n=n)
    ids[0, 0], ids[1, 1], weights[2, 2] = n, -1, 0
    dense = jax.grad(lambda v: jnp.sum(bag.embedding_bag(v, ids, weights) * x))(
      values
    )
    for make in (
      row_sparse.row_sparse_sum,
      jax.jit(row_sparse.row_sparse_sum, static_argnums=1),
    ):
      total = make([(ids, weights, x)], n)
      self.assertEqual(total.rows.shape, (min(n, 24), 5))
      np.testing.assert_allclose(total.dense(n), dense, atol=1e-5)
      used = np.asarray(total.ids)
      used = used[used < n]
      inside = ids[(ids >= 0) & (ids < n)]
      np.testing.assert_array_equal(used, np.unique(inside))

  @parameterized.parameters((50,), (3000,))
  def test_rows_that_are_read_again(self, n):
    # 800 reads: more than are added at a time on CPU. Of 50 rows most are read
    # again and again, of 3000 few.
    _, ids, weights, x = case(t=40, r=20, n=n)
    ids[5] = n

    @jax.jit
    def total(weights, x):
      found = row_sparse.row_sparse_sum([(ids, weights, x)], n)
      return found.dense(n), found.ids

    expected = np.zeros((n + 1, 5))
    np.add.at(expected, ids, weights[:, :, None] * x[:, None].astype(float))
    dense, used = total(weights, x)
    np.testing.assert_allclose(dense, expected[:-1], atol=1e-5)
    present = np.unique(ids[ids < n])
    np.testing.assert_array_equal(used[: len(present)], present)
    self.assertTrue(bool((used[len(present) :] == n).all()))
    # Linear in both, so that gradients of its gradients are known, too.
    g = np.random.default_rng(1).standard_normal((n, 5)).astype(np.float32)
    got = jax.grad(lambda *a: jnp.vdot(total(*a)[0], g), argnums=(0, 1))(
      weights, x
    )
    rows = np.where((ids < n)[..., None], g[ids % n], 0)
    np.testing.assert_allclose(
      got[0], np.einsum('trd,td->tr', rows, x), atol=1e-5
    )
    np.testing.assert_allclose(
      got[1], np.einsum('trd,tr->td', rows, weights), atol=2e-5
    )

  def test_adds_to_arrays(self):
    gradient = row_sparse.RowSparse(jnp.array([1, 4]), jnp.ones((2, 3)))
    table = jnp.zeros((4, 3), jnp.bfloat16)
    moved = table + gradient  # Row 4 is none.
    self.assertEqual(moved.dtype, jnp.bfloat16)
    np.testing.assert_array_equal(moved[:, 0].astype(float), [0, 1, 0, 0])
    self.assertLen(jax.tree.leaves(gradient), 2)

  def test_tables_of_modules_and_around_them(self):
    _, ids, weights, x = case()
    reads = {
      'a': {'m': {'values': {'ids': ids, 'weights': weights}}},
      'b': {'m': {'values': {'ids': ids + 1, 'weights': weights}}},
    }
    g = {'a': {'m': {'value_out': x}}, 'b': {'m': {'value_out': 2 * x}}}
    own = row_sparse.sparse_value_grads(reads, g, 10)
    one = row_sparse.row_sparse_sum([(ids, weights, x)], 10)
    two = row_sparse.row_sparse_sum([(ids + 1, weights, 2 * x)], 10)
    np.testing.assert_array_equal(own['a']['m']['values'].rows, one.rows)
    np.testing.assert_array_equal(own['b']['m']['values'].rows, two.rows)
    table = np.zeros((10, 5), np.float32)
    shared = row_sparse.sparse_value_grads(reads, g, {'values': table})
    np.testing.assert_allclose(
      shared['values'].dense(10), one.dense(10) + two.dense(10), atol=1e-5
    )
    mixed = row_sparse.sparse_value_grads(
      reads, g, {'values': table, 'b': {'m': {'values': table}}}
    )
    np.testing.assert_array_equal(mixed['values'].rows, one.rows)
    with self.assertRaisesRegex(ValueError, 'belong to no table'):
      row_sparse.sparse_value_grads(reads, g, {'a': {'m': {'values': table}}})
    with self.assertRaisesRegex(ValueError, 'no layer reads'):
      row_sparse.sparse_value_grads(
        reads, g, {'values': table, 'c': {'values': table}}
      )
    with self.assertRaisesRegex(ValueError, r'values has shape .2, 10, 5.'):
      row_sparse.sparse_value_grads(
        reads, g, {'values': np.zeros((2, 10, 5), np.float32)}
      )
    with self.assertRaisesRegex(ValueError, 'has no a/m/value_out'):
      row_sparse.sparse_value_grads(reads, {'a': {'m': {}}}, 10)


if __name__ == '__main__':
  absltest.main()
