"""Tables of names, both ways, and what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.sharding import SingleDeviceSharding

from jaxpapers import weights
from jaxpapers.weights import RenameTable, Rule, layouts
from tests.helpers import goldens


def array(name, *shape):
  return goldens.normal(name, shape).astype(np.float32)


def shapes(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


class LayoutTest(parameterized.TestCase):
  @parameterized.parameters(
    (layouts.COPY, (2, 3), (2, 3)),
    (layouts.LINEAR, (2, 3), (3, 2)),
    (layouts.CONV, (8, 4, 3, 5), (3, 5, 4, 8)),
    (layouts.CONV, (8, 1, 3, 5), (3, 5, 1, 8)),
    (layouts.CONV, (8, 4, 3), (3, 4, 8)),
    (layouts.POINTWISE, (8, 4, 1, 1), (4, 8)),
    (layouts.TF_DEPTHWISE, (3, 5, 8, 1), (3, 5, 1, 8)),
    (layouts.heads_out(2), (6, 4), (4, 2, 3)),
    (layouts.heads_out(2), (6,), (2, 3)),
    (layouts.heads_in(2), (4, 6), (2, 3, 4)),
    (layouts.padded_rows(5, 8), (5, 3), (8, 3)),
    (layouts.padded_rows(5, 8), (5,), (8,)),
  )
  def test_back_and_forth(self, layout, there, here):
    x = array('x', *there)
    self.assertEqual(layout.read(x).shape, here)
    np.testing.assert_array_equal(layout.write(layout.read(x)), x)

  def test_meaning(self):
    # A linear layer, its heads and a convolution compute what torch's do.
    x, w = array('x', 5, 4), array('w', 6, 4)
    y = x @ w.T
    np.testing.assert_array_equal(x @ layouts.LINEAR.read(w), y)
    heads = np.einsum('bi,ihd->bhd', x, layouts.heads_out(2).read(w))
    np.testing.assert_allclose(heads.reshape(5, 6), y, rtol=1e-5)
    z, v = y.reshape(5, 2, 3), array('v', 4, 6)
    back = np.einsum('bhd,hdo->bo', z, layouts.heads_in(2).read(v))
    np.testing.assert_allclose(back, y @ v.T, rtol=1e-5, atol=1e-5)
    kernel, image = array('k', 3, 2, 3, 3), array('i', 1, 2, 5, 5)
    theirs = jax.lax.conv(image, kernel, (1, 1), 'VALID')
    ours = jax.lax.conv_general_dilated(
      image.transpose(0, 2, 3, 1),
      layouts.CONV.read(kernel),
      (1, 1),
      'VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    # The two sum in another order.
    np.testing.assert_allclose(
      ours.transpose(0, 3, 1, 2), theirs, rtol=1e-4, atol=1e-5
    )

  @parameterized.parameters(
    (layouts.LINEAR, (2,)),
    (layouts.POINTWISE, (2, 2, 3, 3)),
    (layouts.heads_out(4), (6, 4)),
    (layouts.heads_in(4), (4, 6)),
    (layouts.padded_rows(5, 8), (6, 2)),
  )
  def test_what_does_not_fit(self, layout, shape):
    with self.assertRaises(ValueError):
      layout.read(np.zeros(shape))


class TableTest(parameterized.TestCase):
  def test_a_network_with_batch_norm(self):
    # The names of a small MBConv network, as timm and torchvision have them.
    tree = {
      'params': {
        f'stage{s}_block{j}': {
          'depthwise_conv': {'kernel': array(f'd{s}{j}', 3, 3, 1, 4)},
          'bn': {'scale': array(f's{s}{j}', 4), 'bias': array(f'b{s}{j}', 4)},
        }
        for s in (0, 1)
        for j in (0, 1)
      },
      'batch_stats': {
        f'stage{s}_block{j}': {'bn': {'mean': array(f'm{s}{j}', 4)}}
        for s in (0, 1)
        for j in (0, 1)
      },
    }
    ours = 'stage{s}_block{j}'
    for theirs, first in (('blocks.{s}.{j}', 0), ('features.{s+1}.{j}', 1)):
      table = RenameTable(
        [
          Rule(
            f'{theirs}.dw.weight',
            f'params/{ours}/depthwise_conv/kernel',
            layouts.CONV,
          ),
          Rule(f'{theirs}.bn.weight', f'params/{ours}/bn/scale'),
          Rule(f'{theirs}.bn.bias', f'params/{ours}/bn/bias'),
          Rule(f'{theirs}.bn.running_mean', f'batch_stats/{ours}/bn/mean'),
        ],
        ignored=('num_batches_tracked$',),
      )
      state = table.to_state_dict(tree)
      self.assertLen(state, 16)
      name = theirs.split('.')[0] + f'.{first}.1.dw.weight'
      self.assertEqual(state[name].shape, (4, 1, 3, 3))
      state['x.num_batches_tracked'] = np.array(3)
      again = table.to_tree(state, shapes(tree))
      jax.tree.map(np.testing.assert_array_equal, again, tree)

  def test_stacked_and_fused(self):
    targets = tuple(f'layers/{name}/kernel' for name in ('q', 'k'))
    table = RenameTable(
      [
        *(
          Rule(f'layer.{{i}}.{t[7]}.weight', t, layouts.LINEAR) for t in targets
        ),
        Rule('layer.{i}.qk.weight', targets, layouts.LINEAR),
      ]
    )
    tree = {
      'layers': {
        'q': {'kernel': array('q', 12, 2, 3)},
        'k': {'kernel': array('k', 12, 2, 3)},
      }
    }
    state = table.to_state_dict(tree)
    self.assertLen(state, 24)
    np.testing.assert_array_equal(
      state['layer.11.k.weight'], tree['layers']['k']['kernel'][11].T
    )
    fused = {
      f'layer.{i}.qk.weight': np.concatenate(
        [state[f'layer.{i}.{name}.weight'] for name in 'qk']
      )
      for i in reversed(range(12))
    }
    for checkpoint in (state, fused):
      again = table.to_tree(checkpoint, shapes(tree))
      jax.tree.map(np.testing.assert_array_equal, again, tree)
    # The fused line alone writes the fused array.
    only = RenameTable(table.rules[-1:])
    again = only.to_state_dict(tree)
    self.assertCountEqual(again, fused)
    np.testing.assert_array_equal(
      again['layer.3.qk.weight'], fused['layer.3.qk.weight']
    )
    del tree['layers']['k']
    with self.assertRaisesRegex(
      weights.WeightMismatchError, '1 missing:\n  layers/k/kernel'
    ):
      only.to_state_dict(tree)
    del fused['layer.7.qk.weight']
    fused['layer.12.qk.weight'] = np.zeros((6, 2))
    with self.assertRaises(weights.WeightMismatchError) as caught:
      table.to_tree(fused, shapes(tree))
    self.assertEqual(caught.exception.missing, ['layers/q/kernel'])
    self.assertEqual(caught.exception.unexpected, ['layer.12.qk.weight'])

  def test_all_that_is_wrong_at_once(self):
    table = RenameTable(
      [
        Rule('{n:word}.weight', '{n:word}/kernel', layouts.LINEAR),
        Rule('{n:word}.bias', '{n:word}/bias'),
      ]
    )
    like = {
      'a': {'kernel': jax.ShapeDtypeStruct((3, 2), 'float32')},
      'b': {'kernel': jax.ShapeDtypeStruct((3, 2), 'float32')},
    }
    state = {
      'a.weight': np.zeros((2, 4), 'float32'),
      'c.weight': np.zeros((2, 2), 'float32'),
      'a.b.weight': np.zeros(1, 'float32'),
    }
    with self.assertRaises(weights.WeightMismatchError) as caught:
      table.to_tree(state, like)
    error = caught.exception
    self.assertEqual(error.missing, ['b/kernel'])
    self.assertEqual(error.unexpected, ['c.weight', 'a.b.weight'])
    self.assertEqual(
      str(error),
      'The checkpoint does not fit.\n'
      '1 missing:\n  b/kernel\n'
      '2 unexpected:\n  c.weight\n  a.b.weight\n'
      '1 of another shape:\n  a/kernel: a.weight is (2, 4), expected (2, 3) for'
      ' (3, 2) in the tree',
    )
    state['a.weight'] = np.zeros((2, 3), 'float32')
    allowed = table.to_tree(
      state, like, allow_missing=('^b/',), allow_unexpected=(r'c\.', 'b')
    )
    self.assertEqual(list(allowed), ['a'])
    self.assertEqual(list(table.to_tree(state, like, strict=False)), ['a'])
    with self.assertRaises(weights.WeightMismatchError):
      table.to_tree(state, like, allow_missing=('^b/',))
    state['a.weight'] = np.zeros((2, 4), 'float32')
    with self.assertRaisesRegex(weights.WeightMismatchError, 'another shape'):
      table.to_tree(state, like, strict=False)
    with self.assertRaisesRegex(
      weights.WeightMismatchError,
      'The tree .*\n1 unexpected:\n  d/scale',
    ):
      table.to_state_dict({'d': {'scale': np.ones(1)}})

  def test_two_names_of_one_leaf(self):
    table = RenameTable(
      [Rule('new', 'a', aliases=('old',)), Rule('other', 'a')],
      renames=((r'^prefix\.', ''),),
    )
    like = {'a': jax.ShapeDtypeStruct((2,), 'float32')}
    x = array('x', 2)
    for name in ('new', 'old', 'other', 'prefix.old'):
      np.testing.assert_array_equal(table.to_tree({name: x}, like)['a'], x)
    table.to_tree({'new': x, 'prefix.old': x.copy()}, like)
    with self.assertRaisesRegex(ValueError, 'new and prefix.old are both a,'):
      table.to_tree({'new': x, 'prefix.old': x + 1}, like)
    self.assertEqual(list(table.to_state_dict({'a': x})), ['new'])

  def test_one_array_for_two_leaves(self):
    table = RenameTable([Rule('w', 'a'), Rule('w', 'b')])
    x = array('x', 2)
    tree = table.to_tree({'w': x}, {'a': x, 'b': x})
    np.testing.assert_array_equal(tree['b'], x)
    self.assertEqual(list(table.to_state_dict(tree)), ['w'])
    with self.assertRaisesRegex(ValueError, 'are both w, but differ'):
      table.to_state_dict({'a': x, 'b': x + 1})

  def test_types_and_devices(self):
    table = RenameTable([Rule('w', 'a'), Rule('n', 'count')])
    half = array('x', 4).astype(jnp.bfloat16)
    state = {'w': half, 'n': np.array(3, np.int64)}
    like = {
      'a': jax.ShapeDtypeStruct((4,), jnp.float32),
      'count': jax.ShapeDtypeStruct((), jnp.int32),
    }
    tree = table.to_tree(state, like)
    self.assertEqual(tree['a'].dtype, np.float32)
    self.assertEqual(tree['count'].dtype, np.int32)
    np.testing.assert_array_equal(tree['a'], half.astype(np.float32))
    tree = table.to_tree(
      state,
      like,
      dtype=jnp.bfloat16,
      shardings=SingleDeviceSharding(jax.devices()[0]),
    )
    self.assertIsInstance(tree['a'], jax.Array)
    self.assertEqual(tree['a'].dtype, jnp.bfloat16)
    self.assertEqual(tree['count'].dtype, jnp.int32)
    with self.assertRaisesRegex(ValueError, 'a: w is int8; .*Quantized'):
      table.to_tree({**state, 'w': np.zeros(4, np.int8)}, like)

  def test_two_numbers_that_the_leaf_lacks(self):
    table = RenameTable([Rule('l.{i}.{j}', 'l')])
    with self.assertRaisesRegex(ValueError, 'expected one at most'):
      table.to_tree({'l.0.0': np.zeros(1)}, {'l': np.zeros((1, 1))})


class MergeTest(absltest.TestCase):
  def test_loaded_leaves_replace_fresh_ones(self):
    fresh = {
      'encoder': {'w': jnp.zeros((2, 3), jnp.bfloat16)},
      'head': {'w': jnp.ones(2)},
    }
    loaded = {'encoder': {'w': np.ones((2, 3))}, 'lm_head': {'w': np.ones(1)}}
    merged = weights.merge(fresh, loaded, allow_unexpected=('^lm_head/',))
    self.assertEqual(jax.tree.structure(merged), jax.tree.structure(fresh))
    self.assertEqual(merged['encoder']['w'].dtype, jnp.bfloat16)
    self.assertIsInstance(merged['encoder']['w'], jax.Array)
    np.testing.assert_array_equal(merged['encoder']['w'], np.ones((2, 3)))
    np.testing.assert_array_equal(fresh['encoder']['w'], np.zeros((2, 3)))
    with self.assertRaisesRegex(
      weights.WeightMismatchError, 'unexpected:\n  lm_head/w'
    ):
      weights.merge(fresh, loaded)
    with self.assertRaisesRegex(
      weights.WeightMismatchError, r'head/w: head/w is \(3,\), expected \(2,\)'
    ):
      weights.merge(fresh, {'head': {'w': np.ones(3)}})

  def test_flatten(self):
    tree = {'a': {'b': 1, 'c': {'d': 2}}, 'e': 3}
    flat = weights.flatten(tree)
    self.assertEqual(flat, {'a/b': 1, 'a/c/d': 2, 'e': 3})
    self.assertEqual(weights.unflatten(flat), tree)
    with self.assertRaisesRegex(ValueError, 'goes through a leaf'):
      weights.unflatten({'a': 1, 'a/b': 2})
    with self.assertRaisesRegex(ValueError, 'a leaf and a branch'):
      weights.unflatten({'a/b': 1, 'a': 2})


if __name__ == '__main__':
  absltest.main()
