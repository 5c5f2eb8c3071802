"""Where numbers go, and what can be read again."""

import io
import json
import pathlib
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest

from jaxpapers import training
from jaxpapers.training import throughput, writers


class WritersTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def test_json_lines_round_trip(self):
    writer = training.JsonLines(self.folder)
    rows = [
      (0, 'eval', {'accuracy': np.float32(0.25)}),
      (2, 'train', {'loss': 1.5, 'members': np.array([1.0, np.nan])}),
      (4, 'train', {'loss': np.inf, 'extra': np.int32(3)}),
    ]
    for row in rows:
      writer.write(*row)
    writer.close()
    for line in (self.folder / 'metrics.jsonl').read_text().splitlines():
      # No NaN or Infinity, which is not JSON.
      json.loads(line, parse_constant=self.fail)
    found = training.read_metrics(self.folder, 'train')
    np.testing.assert_array_equal(found['step'], [2, 4])
    np.testing.assert_array_equal(found['loss'], [1.5, np.inf])
    np.testing.assert_array_equal(found['members'][0], [1, np.nan])
    self.assertTrue(np.isnan(found['members'][1]).all())
    np.testing.assert_array_equal(found['extra'], [np.nan, 3])
    self.assertEqual(training.read_metrics(self.folder, 'test'), {})
    self.assertEqual(training.read_metrics(self.folder / 'none', 'test'), {})

  def test_names_of_columns_are_taken(self):
    writer = training.JsonLines(self.folder)
    self.addCleanup(writer.close)
    for name in ('step', 'split'):
      with self.assertRaisesRegex(ValueError, f"'train' is called '{name}'"):
        writer.write(1, 'train', {name: 7.0})

  def test_home_folder(self):
    with mock.patch.dict('os.environ', HOME=str(self.folder)):
      writer = training.JsonLines('~/run')
      writer.write(1, 'train', {'loss': 2.0})
      writer.close()
      found = training.read_metrics('~/run', 'train')
    self.assertEqual(found['loss'].tolist(), [2])
    self.assertTrue((self.folder / 'run' / 'metrics.jsonl').exists())

  def test_json_lines_keep_rows_up_to_the_step(self):
    for first, steps, expected in (
      (-1, (0, 5, 10), [0, 5, 10]),
      (5, (8,), [0, 5, 8]),
      (-1, (1,), [1]),
    ):
      writer = training.JsonLines(self.folder, first)
      for step in steps:
        writer.write(step, 'train', {'loss': 1.0})
      writer.close()
      found = training.read_metrics(self.folder, 'train')
      self.assertEqual(found['step'].tolist(), expected)
    self.assertLen(list(self.folder.iterdir()), 1)  # Nothing temporary.

  def test_json_lines_where_files_cannot_grow(self):
    # An object store: files are written whole.
    writer = training.JsonLines(self.folder)
    writer._remote, writer._file = True, None
    writer.write(1, 'train', {'loss': 1.0})
    self.assertEqual(training.read_metrics(self.folder, 'train'), {})
    writer.flush()
    writer.write(2, 'train', {'loss': 2.0})
    writer.close()
    found = training.read_metrics(self.folder, 'train')
    self.assertEqual(found['loss'].tolist(), [1, 2])

  def test_tensorboard(self):
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import RecordWriter  # noqa: F401

    writer = training.TensorBoard(self.folder)
    writer.write(3, 'train', {'loss': 0.5, 'each': np.array([1.0, 2.0])})
    writer.close()
    data = next(self.folder.glob('events*')).read_bytes()
    values = {}
    while data:
      # A record: length, checksum of it, the event, checksum of that.
      length = int.from_bytes(data[:8], 'little')
      event = event_pb2.Event.FromString(data[12 : 12 + length])
      for value in event.summary.value:
        values[value.tag] = (event.step, value.simple_value)
      data = data[16 + length :]
    self.assertEqual(
      values,
      {
        'train/loss': (3, 0.5),
        'train/each/0': (3, 1.0),
        'train/each/1': (3, 2.0),
      },
    )

  def test_console(self):
    with mock.patch('sys.stdout', new_callable=io.StringIO) as out:
      console = training.Console(100)
      console.advance(50, 0.5)
      console.write(50, 'train', {'loss': 0.123456, 'n': np.int32(7)})
      console.write(50, 'eval', {'members': np.arange(10.0)})
      console.close()
    self.assertIn('step 50  train  loss 0.1235  n 7\n', out.getvalue())
    self.assertIn('members [0 .. 9]', out.getvalue())

  def test_without_tensorboard_only_lines(self):
    with mock.patch.dict('sys.modules', tensorboardX=None):
      found = writers.default_writers(self.folder, -1)
    self.assertLen(found, 1)
    with mock.patch.dict('sys.modules', tensorboardX=None):
      with self.assertRaisesRegex(ImportError, r'jaxpapers\[training\]'):
        training.TensorBoard(self.folder)


class ThroughputTest(absltest.TestCase):
  def test_pauses_do_not_count(self):
    clock = mock.Mock(side_effect=[0.0, 2.0, 12.0, 14.0, 14.0, 15.0, 15.0])
    with mock.patch('time.perf_counter', clock):
      rates = throughput.Throughput(examples_per_step=10)
      rates.start()  # at 0
      rates.count(4)
      rates.pause()  # at 2
      rates.start()  # at 12
      rates.count(4)
      found = rates.read()  # at 14
    self.assertEqual(found, {'steps_per_second': 2, 'examples_per_second': 20})

  def test_utilisation(self):
    clock = mock.Mock(side_effect=[0.0, 1.0, 1.0])
    with (
      mock.patch('time.perf_counter', clock),
      mock.patch.object(throughput, 'peak_flops', return_value=1e12),
    ):
      rates = throughput.Throughput(flops_per_step=1e11)
      rates.start()
      rates.count(5)
      self.assertAlmostEqual(rates.read()['mfu'], 0.5)

  def test_nothing_to_tell(self):
    rates = throughput.Throughput(examples_per_step=10)
    rates.start()
    self.assertEqual(rates.read(), {})

  def test_flops_of_a_product(self):
    import jax
    import jax.numpy as jnp

    x = jnp.ones((64, 32))
    found = training.estimate_flops(jax.jit(lambda a: a @ a.T), x)
    # 64 * 64 * 32 multiplications and as many additions.
    self.assertEqual(found, 2 * 64 * 64 * 32)

  def test_flops_of_loops_branches_and_convolutions(self):
    import jax
    import jax.numpy as jnp

    x = jnp.ones((8, 8))
    product = 2 * 8**3
    for function, expected in (
      (lambda x: jax.lax.scan(lambda c, _: (c @ x, 0), x, length=5)[0], 5),
      (lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x, lambda: x), 1),
      (jax.checkpoint(lambda x: (x @ x) @ x), 2),
      (jax.vmap(lambda row: x @ row), 1),
    ):
      found = training.estimate_flops(jax.jit(function), x)
      self.assertEqual(found, expected * product)
    image, kernel = jnp.ones((2, 6, 6, 4)), jnp.ones((3, 3, 2, 10))
    grouped = jax.jit(
      lambda a, b: jax.lax.conv_general_dilated(
        a,
        b,
        (1, 1),
        'SAME',
        feature_group_count=2,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      )
    )
    self.assertEqual(
      training.estimate_flops(grouped, image, kernel),
      2 * (2 * 6 * 6 * 10) * (3 * 3 * 2),
    )

  def test_flops_of_a_step_do_not_depend_on_accumulation(self):
    import jax
    import optax

    from tests.training import toy

    found = []
    for accumulate in (1, 4):
      tx = optax.sgd(1.0)
      state = training.create_state(toy.init, tx, jax.random.key(0))
      step = training.make_train_step(toy.loss_fn, tx, accumulate=accumulate)
      found.append(training.estimate_flops(step, state, toy.example_batch(0)))
    self.assertEqual(*found)
    self.assertGreater(found[0], 0)

  def test_peaks(self):
    self.assertEqual(training.peak_flops('TPU v5 lite'), 197e12)
    self.assertEqual(training.peak_flops('TPU v5p'), 459e12)
    self.assertEqual(training.peak_flops('NVIDIA H100 80GB HBM3'), 989e12)
    self.assertEqual(training.peak_flops('NVIDIA A100-SXM4-80GB'), 312e12)
    self.assertEqual(training.peak_flops('NVIDIA L40S'), 362e12)
    self.assertEqual(training.peak_flops('NVIDIA L4'), 121e12)
    self.assertIsNone(training.peak_flops('NVIDIA L40'))
    self.assertIsNone(training.peak_flops('cpu'))


if __name__ == '__main__':
  absltest.main()
