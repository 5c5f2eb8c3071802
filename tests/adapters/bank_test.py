"""Many tasks in one batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest

from jaxpapers import adapters
from jaxpapers.adapters import trees
from jaxpapers.nn import EncoderConfig
from tests.adapters import golden_models
from tests.helpers import devices

CONFIG = EncoderConfig(
  50, 16, 1, 2, 32, max_len=8, dropout_rate=0.0, attention_dropout_rate=0.0
)
# Classes and bottleneck of each task.
TASKS = {'spam': (2, 4), 'mood': (5, 8), 'topic': (3, 1), 'plain': (2, 0)}
IDS = np.random.default_rng(0).integers(2, 50, (8, 6)).astype(np.int32)
MIXED = ['mood', 'spam', 'topic', 'mood', 'plain', 'spam', 'topic', 'topic']


def model_of(classes, size):
  return golden_models.Classifier(
    CONFIG, adapters.AdapterConfig(size, init_std=0.3), classes
  )


def numbers(model, seed):
  """Parameters of a model: around 1 for norms, small, all different."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(model.init, jax.random.key(0), IDS)['params']
  return jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.asarray(
      ('scale' in str(path)) + 0.3 * rng.normal(size=x.shape), jnp.float32
    ),
    shapes,
  )


@functools.cache
def setting():
  """Base parameters, the frozen tree, tasks, and logits of each by itself."""
  base = numbers(golden_models.Classifier(CONFIG), 0)
  base = {'encoder': base['encoder']}
  tasks, alone, frozen = {}, {}, None
  for i, (name, (classes, size)) in enumerate(TASKS.items()):
    model = model_of(classes, size)
    mode = 'adapter' if size else 'layer_norm'
    # Every number, biases and norms too, is the task's own.
    tasks[name], _ = adapters.partition_params(numbers(model, i + 1), mode)
    _, frozen = adapters.partition_params(
      adapters.insert_task(numbers(model, 0), base), mode
    )
    task = tasks[name]
    alone[name] = np.asarray(
      jax.jit(model.apply)({'params': adapters.merge_params(task, frozen)}, IDS)
    )
  return base, frozen, tasks, alone


def apply(params, ids):
  # Sizes come with the parameters: the widest of the bank.
  down = params['encoder']['layers_0']['ffn_adapter']['down']['kernel']
  classes = params['classifier']['output']['bias'].shape[-1]
  return model_of(classes, down.shape[-1]).apply({'params': params}, ids)


class BankTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.base, cls.frozen, cls.tasks, cls.alone = setting()
    cls.bank = adapters.AdapterBank.create(cls.tasks, capacity=6)
    # A staticmethod: a function in a class would be bound.
    cls.predict = staticmethod(cls.bank.predictor(apply, cls.frozen))

  def check(self, logits, names, rows=slice(None)):
    for i, name in enumerate(names):
      classes = TASKS[name][0]
      wanted = self.alone[name][rows][i]
      np.testing.assert_allclose(
        logits[i, :classes], wanted, rtol=0, atol=1e-6, err_msg=name
      )
      self.assertTrue(np.isneginf(logits[i, classes:]).all())

  def test_mixed_batch(self):
    logits = np.asarray(self.predict(self.bank, self.bank.ids(MIXED), IDS))
    self.assertEqual(logits.shape, (8, 5))
    self.check(logits, MIXED)

  def padded_and_not(self, activation, make, dtype=jnp.float32):
    """What three sizes give in a bank of the largest, and by themselves."""
    rng = np.random.default_rng(1)
    x = jnp.asarray(make(rng, (4, 3, 6)), dtype)
    tasks, wanted = {}, {}
    for m in (1, 5, 9):
      shapes = {
        'down': {'kernel': (6, m), 'bias': (m,)},
        'up': {'kernel': (m, 6), 'bias': (6,)},
      }
      params = jax.tree.map(
        lambda shape: jnp.asarray(make(rng, shape), dtype),
        shapes,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
      )
      adapter = adapters.BottleneckAdapter(m, activation)
      wanted[m] = jax.jit(adapter.apply)({'params': params}, x)
      tasks[str(m)] = {'my_adapter': params}
    bank = adapters.AdapterBank.create(tasks)
    adapter = adapters.BottleneckAdapter(9, activation)
    predict = bank.predictor(
      lambda params, x: adapter.apply({'params': params['my_adapter']}, x), {}
    )
    for m, value in wanted.items():
      yield predict(bank, bank.ids([str(m)] * 4), x), value

  def test_padding_is_exact(self):
    # What is padded adds act(0) times 0. Of numbers whose sums are exact in
    # float32 nothing is left but that: the same bits.
    def quarters(rng, shape):
      return rng.integers(-8, 9, shape) / 4

    for found, wanted in self.padded_and_not('relu', quarters):
      np.testing.assert_array_equal(found, wanted)

  def test_padding_costs_no_digits(self):
    # Otherwise a product of another width may add in another order: products
    # of 5 and 9 columns differ so on x86, without any adapter. That is a unit
    # in the last place of the largest entry or two, 2.4e-7 of 4.
    def normal(rng, shape):
      return 0.5 * rng.normal(size=shape)

    for found, wanted in self.padded_and_not('gelu_tanh', normal):
      largest = float(np.abs(wanted).max())
      np.testing.assert_allclose(
        found, wanted, rtol=0, atol=2 * float(np.spacing(np.float32(largest)))
      )
    with jax.enable_x64(True):
      for found, wanted in self.padded_and_not(
        'gelu_tanh', normal, jnp.float64
      ):
        self.assertEqual(found.dtype, np.float64)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-14)

  def test_another_task_changes_nothing_for_the_others(self):
    first = {n: t for n, t in self.tasks.items() if n != 'spam'}
    bank = adapters.AdapterBank.create(first, capacity=6)
    names = [n for n in MIXED if n != 'spam'] + ['mood'] * 2
    before = self.predict(bank, bank.ids(names), IDS)
    more = bank.add('spam', self.tasks['spam'])
    self.assertEqual(more.names[:3], bank.names[:3])
    after = self.predict(more, more.ids(names), IDS)
    np.testing.assert_array_equal(before, after)
    # In the fourth row now, in the first of the other bank.
    both = [np.asarray(self.predict(b, b.ids(['spam'] * 8), IDS)) for b in
            (more, self.bank)]  # fmt: skip
    np.testing.assert_array_equal(*both)
    self.check(both[0], ['spam'] * 8)

  def test_rows_come_and_go(self):
    bank = adapters.AdapterBank.create(
      {'topic': self.tasks['topic'], 'spam': self.tasks['spam']}
    )
    self.assertLen(bank, 2)
    smaller = bank.remove('topic')
    self.assertEqual((len(smaller), smaller.names), (1, ('', 'spam')))
    again = smaller.add('mood', self.tasks['mood'])
    self.assertEqual(again.names, ('mood', 'spam'))
    grown = again.add('topic', self.tasks['topic'])
    self.assertEqual(grown.names, ('mood', 'spam', 'topic'))
    self.assertEqual(grown.num_outputs.tolist(), [5, 2, 3])
    for name in grown.names:
      jax.tree.map(
        np.testing.assert_array_equal, grown.task(name), self.tasks[name]
      )

  def test_norms_that_a_task_did_not_train(self):
    bare = {
      path: leaf
      for path, leaf in trees.flatten(self.tasks['topic']).items()
      if '_norm/' not in path
    }
    tasks = {'spam': self.tasks['spam'], 'bare': trees.unflatten(bare)}
    with self.assertRaisesRegex(ValueError, "'bare' has no .*_norm/.* base"):
      adapters.AdapterBank.create(tasks)
    bank = adapters.AdapterBank.create(tasks, base=self.base)
    np.testing.assert_array_equal(
      bank.task('bare')['encoder']['layers_0']['ffn_norm']['scale'],
      self.base['encoder']['layers_0']['ffn_norm']['scale'],
    )

  def test_bad_tasks(self):
    with self.assertRaisesRegex(ValueError, 'tasks is empty'):
      adapters.AdapterBank.create({})
    with self.assertRaisesRegex(ValueError, "'spam' is in the bank already"):
      self.bank.add('spam', self.tasks['spam'])
    with self.assertRaisesRegex(ValueError, "'' is no name"):
      self.bank.add('', self.tasks['spam'])
    with self.assertRaisesRegex(ValueError, "'news' is not in the bank"):
      self.bank.ids(['spam', 'news'])
    for row in (4, 7, -1):
      with self.assertRaisesRegex(ValueError, f'task_ids has {row}'):
        self.predict(self.bank, np.full(8, row, np.int32), IDS)
    for path in (
      'encoder/layers_0/ffn_norm/scale',
      'encoder/layers_0/ffn_adapter/up/bias',
    ):
      flat = trees.flatten(self.tasks['spam'])
      flat[path] = jnp.ones(20)
      with self.assertRaisesRegex(ValueError, f'{path} has shape'):
        self.bank.add('wide', trees.unflatten(flat))

  def test_rows_out_of_range_give_nan_under_jit(self):
    run = jax.jit(
      lambda ids: adapters.route(
        apply,
        self.bank.params,
        self.bank.num_outputs,
        self.frozen,
        ids,
        IDS[:2],
      )
    )
    logits = run(jnp.array([0, 17]))
    self.assertTrue(np.isfinite(logits[0, :2]).all())
    self.assertTrue(np.isnan(logits[1, :2]).all())


_MESH = """
import numpy as np
from jaxpapers import adapters, training
from tests.adapters import bank_test
from jax.sharding import PartitionSpec as P

_, frozen, tasks, alone = bank_test.setting()
bank = adapters.AdapterBank.create(tasks)
mesh = training.make_mesh('data:4,model:2')
rules = [(r'intermediate/kernel', P(None, 'model'))]
predict = bank.predictor(bank_test.apply, frozen, mesh=mesh, rules=rules)
names = bank_test.MIXED
logits = predict(bank, bank.ids(names), bank_test.IDS)
assert len(logits.sharding.device_set) == 8, logits.sharding
logits = np.asarray(logits)
for i, name in enumerate(names):
  classes = bank_test.TASKS[name][0]
  np.testing.assert_allclose(
    logits[i, :classes], alone[name][i], rtol=0, atol=1e-6)
print('fine')
"""


class MeshTest(absltest.TestCase):
  @pytest.mark.slow
  def test_mixed_batch(self):
    self.assertIn('fine', devices.run(_MESH))


if __name__ == '__main__':
  absltest.main()
