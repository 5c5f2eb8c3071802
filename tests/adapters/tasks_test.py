"""One task's parameters: out of a model, onto disk, into another process."""

import pathlib
import tempfile

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jaxpapers import adapters, nn
from jaxpapers.adapters import trees
from jaxpapers.data import CorruptFileError
from tests.adapters import golden_models, partition_test
from tests.helpers import devices

_PREDICT = """
import jax, numpy as np
from jaxpapers import adapters
from tests.adapters import golden_models
model, params, _, golden = golden_models.hub()
task = adapters.load_task({path!r}, like=params)
params = adapters.insert_task(params, task)
logits = jax.jit(model.apply)({{'params': params}}, golden['input_ids'])
print(np.asarray(logits).tobytes().hex())
"""


class TasksTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)
    self.path = self.folder / 'task.safetensors'

  def trained(self, params, scale=0.5):
    """A task with numbers of its own."""
    task = adapters.extract_task(params, 'adapter')
    return jax.tree.map(lambda x: x + scale, task)

  def test_same_bytes_in_another_process(self):
    model, params, _, golden = golden_models.hub()
    task = self.trained(params)
    adapters.save_task(self.path, task, metadata={'labels': ['a', 'b', 'c']})
    self.assertEqual(
      [p.name for p in self.folder.iterdir()], ['task.safetensors']
    )
    own = adapters.insert_task(params, task)
    logits = jax.jit(model.apply)({'params': own}, golden['input_ids'])
    # One device, as here: the same program.
    printed = devices.run(
      _PREDICT.format(path=str(self.path)), device_count=1
    ).strip()
    self.assertEqual(printed, np.asarray(logits).tobytes().hex())
    metadata = adapters.load_task_metadata(self.path)
    self.assertEqual(metadata, {'labels': ['a', 'b', 'c']})
    # The same task is the same file.
    again = self.folder / 'again.safetensors'
    adapters.save_task(again, task, metadata=metadata)
    self.assertEqual(again.read_bytes(), self.path.read_bytes())
    # What a task costs on disk: its numbers and a header.
    header = self.path.stat().st_size - adapters.tree_bytes(task)
    self.assertBetween(header, 0, 8000)

  def test_insert_shares_and_does_not_change(self):
    params = partition_test.model_params()
    before = jax.tree.map(np.array, params)
    task = self.trained(params)
    new = adapters.insert_task(params, task)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    self.assertIs(
      new['encoder']['token_embedding']['embedding'],
      params['encoder']['token_embedding']['embedding'],
    )
    back = adapters.extract_task(new)
    jax.tree.map(np.testing.assert_array_equal, back, task)

  def test_rows_of_scanned_layers(self):
    params = partition_test.model_params(True)
    task = adapters.extract_task(params, 'top_k', k=1)
    task = jax.tree.map(lambda x: x + 1, task)
    new = adapters.insert_task(params, task)
    kernel = new['encoder']['layers']['ffn']['output']['kernel']
    old = params['encoder']['layers']['ffn']['output']['kernel']
    np.testing.assert_array_equal(kernel[:2], old[:2])
    np.testing.assert_array_equal(kernel[2:], old[2:] + 1)

  def test_tasks_of_other_models(self):
    params = partition_test.model_params()
    task = self.trained(params)
    adapters.save_task(self.path, task)
    other = trees.flatten(params)
    path = 'encoder/layers_1/ffn_adapter/down/kernel'
    other[path] = jnp.zeros((4, 5))
    other = trees.unflatten(other)
    for call in (
      lambda: adapters.insert_task(other, task),
      lambda: adapters.load_task(self.path, like=other),
      lambda: adapters.load_task(self.path, like=jax.eval_shape(lambda: other)),
    ):
      with self.assertRaisesRegex(
        ValueError, rf'{path} has shape \(4, 2\) in the task and \(4, 5\)'
      ):
        call()
    fewer = partition_test.model_params(num_layers=2)
    with self.assertRaisesRegex(ValueError, 'layers_2/.* is not in the model'):
      adapters.load_task(self.path, like=fewer)
    scanned = nn.stack_layers(params['encoder'])
    with self.assertRaisesRegex(ValueError, 'not in the model'):
      adapters.insert_task({'encoder': scanned}, task)

  def test_bad_files(self):
    with self.assertRaises(FileNotFoundError):
      adapters.load_task(self.path)
    with self.assertRaises(FileNotFoundError):
      adapters.load_task_metadata(self.path)
    with self.assertRaisesRegex(ValueError, 'no parameters'):
      adapters.save_task(self.path, {})
    with self.assertRaisesRegex(ValueError, 'safetensors'):
      adapters.save_task(self.folder / 'task.npz', {'a': jnp.ones(2)})
    self.path.write_bytes(b'no such thing')
    for read in (adapters.load_task, adapters.load_task_metadata):
      with self.assertRaisesRegex(CorruptFileError, 'task.safetensors'):
        read(self.path)

  def test_a_file_of_something_else(self):
    from jaxpapers.weights import safetensors_files

    safetensors_files.write_safetensors(self.path, {'a': np.ones(2)})
    with self.assertRaisesRegex(CorruptFileError, 'save_task'):
      adapters.load_task_metadata(self.path)


class InitAdaptersTest(absltest.TestCase):
  def test_keeps_the_base_and_makes_the_rest(self):
    model = flax.linen.Sequential(
      [flax.linen.Dense(4), adapters.BottleneckAdapter(2)]
    )
    x = jnp.ones((1, 3))
    wanted = jax.jit(model.init)(jax.random.key(0), x)['params']
    base = {
      'layers_0': {'kernel': jnp.ones((3, 4)), 'bias': jnp.ones(4)},
      'lm_head': {'bias': jnp.zeros(3)},
    }
    new = adapters.init_adapters(jax.random.key(0), model, base, x)
    self.assertEqual(jax.tree.structure(new), jax.tree.structure(wanted))
    self.assertIs(new['layers_0']['kernel'], base['layers_0']['kernel'])
    jax.tree.map(
      np.testing.assert_array_equal, new['layers_1'], wanted['layers_1']
    )

  def test_a_base_that_does_not_fit(self):
    model, params, _, golden = golden_models.hub()
    ids = jnp.asarray(golden['input_ids'])
    flat = trees.flatten(params)
    path = 'encoder/position_embedding/embedding'
    flat[path] = flat[path][:-1]
    with self.assertRaisesRegex(ValueError, f'{path} has shape .25, 32.'):
      adapters.init_adapters(
        jax.random.key(0), model, trees.unflatten(flat), ids
      )
    with self.assertRaisesRegex(ValueError, 'no path in common'):
      adapters.init_adapters(jax.random.key(0), model, {'bert': params}, ids)


if __name__ == '__main__':
  absltest.main()
