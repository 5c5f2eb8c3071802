"""Eight devices give the losses of one."""

import json

import numpy as np
from absl.testing import absltest, parameterized

from tests.helpers import devices

_CODE = """
  import json
  import logging
  import jax
  import optax
  from jax.sharding import PartitionSpec as P
  from jaxpapers import training
  from tests.training import toy

  class Compilations(logging.Handler):
    count = 0

    def emit(self, record):
      self.count += 'Compiling jit(step)' in record.getMessage()

  compilations = Compilations()
  logging.getLogger('jax').addHandler(compilations)
  jax.config.update('jax_log_compiles', True)
  assert jax.device_count() == {count}
  results = {{}}
  for axes in {axes!r}:
    mesh = training.make_mesh(axes)
    rules = [
      ('Dense_0/kernel', P('fsdp', 'model')),
      ('Dense_0/bias', P('model')),
      ('Dense_1/kernel', P('model', None)),
    ]
    for name, options in (
      ('plain', {{}}),
      ('all', {{'accumulate': 2, 'ema': 0.9}}),
    ):
      # Momentum: Adam would blow up the rounding of a zero gradient.
      tx = optax.sgd(0.1, momentum=0.9)
      state = training.create_state(
        toy.init, tx, jax.random.key(0), mesh=mesh, rules=rules,
        ema='ema' in options)
      step = training.make_train_step(
        toy.loss_fn, tx, mesh=mesh, rules=rules, **options)
      losses = []
      compilations.count = 0
      for index in range(8):
        batch = training.put_batch(toy.example_batch(index), mesh)
        state, metrics = step(state, batch)
        losses.append(float(metrics['loss']))
      kernel = state.params['Dense_0']['kernel']
      momentum = state.opt_state[0].trace['Dense_0']['kernel']
      results[axes + ' ' + name] = {{
        'losses': losses,
        'compiled': compilations.count,
        'shard': kernel.sharding.shard_shape(kernel.shape),
        'momentum': momentum.sharding.shard_shape(kernel.shape),
      }}
  print(json.dumps(results))
"""


def results(axes, count):
  out = devices.run(_CODE.format(axes=axes, count=count), device_count=count)
  return json.loads(out.splitlines()[-1])


class DevicesTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.one = results(['data:1'], 1)
    cls.eight = results(
      ['data:8', 'model:8', 'data:4,model:2', 'data:2,fsdp:2,model:2'], 8
    )

  @parameterized.parameters(
    ('data:8', [8, 16]),
    ('model:8', [8, 2]),
    ('data:4,model:2', [8, 8]),
    ('data:2,fsdp:2,model:2', [4, 8]),
  )
  def test_losses(self, axes, shard):
    for name in ('plain', 'all'):
      expected = self.one[f'data:1 {name}']['losses']
      found = self.eight[f'{axes} {name}']
      self.assertGreater(np.ptp(expected), 0.1)  # There is something to differ.
      # Sums in another order, in float32.
      np.testing.assert_allclose(found['losses'], expected, rtol=0, atol=1e-6)
      self.assertEqual(found['compiled'], 1)
      self.assertEqual(found['shard'], shard)
      self.assertEqual(found['momentum'], shard)


class MisuseTest(absltest.TestCase):
  def test_state_and_step_disagree(self):
    out = devices.run(
      """
      import json
      import jax, optax
      from jax.sharding import PartitionSpec as P
      from jaxpapers import training
      from tests.training import toy
      tx = optax.sgd(0.1)
      mesh = training.make_mesh('data:4,model:2')
      rules = [('Dense_0/kernel', P(None, 'model'))]
      messages = []
      for state_mesh, state_rules in ((mesh, rules), (None, ())):
        state = training.create_state(
          toy.init, tx, jax.random.key(0), mesh=state_mesh, rules=state_rules)
        step = training.make_train_step(toy.loss_fn, tx, mesh=mesh)
        try:
          training.fit(state, step, toy.Batches(), num_steps=3, mesh=mesh,
                       console=False)
        except ValueError as error:
          messages.append(str(error))
      print(json.dumps(messages))
      """
    )
    rules, mesh = json.loads(out.splitlines()[-1])
    self.assertRegex(rules, 'params/Dense_0/kernel lay .*the same rules')
    self.assertRegex(mesh, r'lies on 1 device\(s\), the mesh has 8.*same mesh')


class PopulationTest(absltest.TestCase):
  def test_members_on_their_own_devices(self):
    out = devices.run(
      """
      import json
      import jax, numpy as np, optax
      from jaxpapers import training
      from tests.training import toy
      tx = optax.sgd(0.1)
      keys = jax.random.split(jax.random.key(0), 4)
      found = []
      for axes in (None, 'population:4,data:2'):
        mesh = axes and training.make_mesh(axes)
        state = training.create_state(toy.init, tx, keys, mesh=mesh)
        step = training.make_train_step(
          toy.loss_fn, tx, mesh=mesh, population=True)
        for index in range(4):
          batch = training.put_batch(toy.example_batch(index), mesh)
          state, metrics = step(state, batch)
        found.append(np.asarray(metrics['loss']).tolist())
      kernel = state.params['Dense_0']['kernel']
      print(json.dumps([*found, kernel.sharding.shard_shape(kernel.shape)]))
      """
    )
    plain, spread, shard = json.loads(out.splitlines()[-1])
    np.testing.assert_allclose(spread, plain, atol=1e-6)
    self.assertEqual(shard, [1, 8, 16])


if __name__ == '__main__':
  absltest.main()
