"""Meshes and rules, on this process's one device and on eight fake ones."""

import json

import jax
import numpy as np
from absl.testing import absltest, parameterized
from jax.sharding import PartitionSpec

from jaxpapers import training
from tests.helpers import devices


class MeshTest(parameterized.TestCase):
  def test_text_and_mapping(self):
    for axes in ('data:-1,model:1', {'data': 1, 'model': -1}):
      mesh = training.make_mesh(axes)
      self.assertEqual(dict(mesh.shape), {'data': 1, 'model': 1})

  @parameterized.parameters(
    ('data:3', 'product is 1'),
    ('data:-1,model:-1', 'at most one -1'),
    ('data', "cannot read 'data'"),
    ('data:two', "cannot read 'data:two'"),
    ('data:0', 'sizes of 1 or more'),
    ('', 'at least one axis'),
  )
  def test_bad_axes(self, axes, words):
    with self.assertRaisesRegex(ValueError, words):
      training.make_mesh(axes)

  def test_axes_that_are_part_of_types(self):
    mesh = jax.make_mesh(
      (1,), ('data',), axis_types=(jax.sharding.AxisType.Explicit,)
    )
    with self.assertRaisesRegex(ValueError, 'expected Auto.*make_mesh'):
      training.shard_rules({'a': np.ones(2)}, [], mesh)
    with self.assertRaisesRegex(ValueError, 'expected Auto'):
      training.make_train_step(lambda *args: None, None, mesh=mesh)

  def test_share_of_a_batch(self):
    self.assertEqual(training.batch_share(None), (0, 1))
    self.assertEqual(training.batch_share(training.make_mesh('data:1')), (0, 1))

  def test_scalars_in_a_batch(self):
    with self.assertRaisesRegex(ValueError, "'temperature' is a scalar"):
      training.put_batch({'temperature': 1.0}, training.make_mesh('data:1'))


class RulesTest(parameterized.TestCase):
  """On a mesh of one device: specs are formed as on any other."""

  def specs(self, tree, rules, **options):
    mesh = training.make_mesh('data:1,model:1')
    shardings = training.shard_rules(tree, rules, mesh, **options)
    return jax.tree.map(lambda s: s.spec, shardings)

  def test_first_rule_wins_and_others_are_replicated(self):
    tree = {'params': {'a': np.ones((2, 4)), 'b': np.ones(4)}}
    rules = [
      ('a$', PartitionSpec('data', 'model')),
      ('.*', PartitionSpec('data')),
    ]
    specs = self.specs(tree, rules)['params']
    self.assertEqual(specs['a'], PartitionSpec('data', 'model'))
    self.assertEqual(specs['b'], PartitionSpec('data'))
    self.assertEqual(
      self.specs(tree, rules[:1])['params']['b'], PartitionSpec()
    )

  def test_optimizer_follows_its_parameter(self):
    tree = {
      'params': {'kernel': np.ones((2, 4))},
      'opt_state': {
        'mu': {'kernel': np.ones((2, 4))},
        'norm': {'kernel': np.ones((1, 1))},
        'factored': {'kernel': np.ones(4)},
        'count': np.ones(()),
      },
    }
    spec = PartitionSpec(None, 'model')
    specs = self.specs(tree, [('kernel', spec)])
    self.assertEqual(specs['params']['kernel'], spec)
    self.assertEqual(specs['opt_state']['mu']['kernel'], spec)
    for name in ('norm', 'factored'):
      self.assertNotIn('model', specs['opt_state'][name]['kernel'], name)

  def test_axes_that_the_mesh_lacks(self):
    tree = {'a': np.ones((2, 4))}
    rules = [('a', PartitionSpec(('data', 'expert'), 'tensor'))]
    self.assertEqual(self.specs(tree, rules)['a'], PartitionSpec('data'))

  def test_population_comes_first(self):
    tree = {'a': np.ones((3, 2, 4))}
    rules = [('a', PartitionSpec(None, 'model'))]
    specs = self.specs(tree, rules, population=True)
    self.assertEqual(specs['a'], PartitionSpec(None, None, 'model'))
    with self.assertRaisesRegex(ValueError, 'step has no axis of members'):
      self.specs({'step': np.ones(())}, rules, population=True)

  def test_rule_with_too_many_dimensions(self):
    tree = {'params': {'bias': np.ones(4)}}
    with self.assertRaisesRegex(ValueError, r'params/bias.*\(4,\).*narrower'):
      self.specs(tree, [('.*', PartitionSpec(None, 'model'))])


class EightDevicesTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    out = devices.run(
      """
      import json
      import jax
      import numpy as np
      from jax.sharding import PartitionSpec as P
      from jaxpapers import training

      def error(function):
        try:
          function()
        except ValueError as e:
          return str(e)
        return 'nothing was raised'

      mesh = training.make_mesh('data:4,model:2')
      rules = [('w', P(None, 'model'))]
      big = {'params': {'w': np.zeros((512, 256)), 'b': np.zeros(256)}}
      flat = training.shard_rules(big, [('.*', training.fsdp('data'))], mesh)
      batch = training.put_batch({'x': np.zeros((8, 3))}, mesh)
      print(json.dumps({
        'indivisible': error(lambda: training.shard_rules(
          {'params': {'w': np.zeros((2, 5))}}, rules, mesh)),
        'members': error(lambda: training.shard_rules(
          {'w': np.zeros((3, 2, 4))}, rules,
          training.make_mesh('population:2,data:4'), population=True)),
        'batch': error(lambda: training.put_batch(
          {'x': np.zeros((6, 3))}, mesh)),
        'statistics': str(training.shard_rules(
          {'opt_state': {'row': {'w': np.zeros((2, 5))}}}, rules, mesh
        )['opt_state']['row']['w'].spec),
        'big': str(flat['params']['w'].spec),
        'small': str(flat['params']['b'].spec),
        'shard': batch['x'].addressable_shards[0].data.shape,
        'axes': [list(training.make_mesh(a).shape.values())
                 for a in ('data:-1', 'data:-1,model:2', 'a:2,b:-1,c:2')],
      }))
      """
    )
    cls.found = json.loads(out.splitlines()[-1])

  def test_errors_name_what_does_not_fit(self):
    self.assertRegex(
      self.found['indivisible'], r'params/w.*\(2, 5\).*model = 2 devices'
    )
    self.assertRegex(self.found['members'], '3 members.*size 2')
    self.assertRegex(self.found['batch'], "'x'.*6 examples.*4 devices")

  def test_statistics_that_do_not_divide_are_replicated(self):
    self.assertEqual(self.found['statistics'], str(PartitionSpec()))

  def test_fsdp_splits_the_largest_dimension_of_large_leaves(self):
    self.assertEqual(self.found['big'], str(PartitionSpec('data')))
    self.assertEqual(self.found['small'], str(PartitionSpec()))

  def test_batches_are_split(self):
    self.assertEqual(self.found['shard'], [2, 3])

  def test_free_axis(self):
    self.assertEqual(self.found['axes'], [[8], [4, 2], [2, 2, 2]])


if __name__ == '__main__':
  absltest.main()
