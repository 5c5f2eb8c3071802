"""The loop: rows, evaluations, resuming, stopping, and being stopped."""

import itertools
import json
import os
import pathlib
import signal
import tempfile
import threading
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxpapers import training
from jaxpapers.training import throughput
from tests.training import toy


def rows(folder):
  """Rows of metrics.jsonl without the rates, which are never the same."""
  text = (pathlib.Path(folder) / 'metrics.jsonl').read_text()
  found = []
  for line in text.splitlines():
    row = json.loads(line)
    found.append({k: v for k, v in row.items() if 'per_second' not in k})
  return found


class LoopTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def toy_run(self, name, num_steps, **options):
    options = {'console': False, 'tensorboard': False} | options
    return toy.run(self.folder / name, num_steps, **options)

  def test_rows_are_means_over_the_steps_between(self):
    tx = optax.sgd(0.1)
    state = training.create_state(toy.plain_init, tx, jax.random.key(0))
    step = training.make_train_step(toy.plain_loss_fn, tx)
    losses = []

    def recording(state, batch):
      state, metrics = step(state, batch)
      losses.append(float(metrics['loss']))
      return state, metrics

    training.fit(
      state,
      recording,
      toy.Batches(),
      num_steps=7,
      workdir=self.folder,
      log_every=3,
      console=False,
      examples_per_step=32,
    )
    found = training.read_metrics(self.folder, 'train')
    np.testing.assert_array_equal(found['step'], [3, 6, 7])
    expected = [np.mean(losses[:3]), np.mean(losses[3:6]), losses[6]]
    np.testing.assert_allclose(found['loss'], expected, rtol=1e-12)
    np.testing.assert_array_equal(found['count'], [96, 96, 32])
    np.testing.assert_allclose(
      found['examples_per_second'] / found['steps_per_second'], 32
    )
    events = list((self.folder / 'tensorboard').glob('events*'))
    self.assertNotEmpty(events)

  def test_resumed_run_is_the_straight_run(self):
    straight = self.toy_run('straight', 37)
    # 23 is no multiple of log_every: a row is cut in two by the interruption.
    self.toy_run('cut', 23)
    cut = self.toy_run('cut', 37)
    self.assertEqual((cut.step, cut.reason), (37, 'done'))
    for a, b in zip(
      jax.tree.leaves(straight.state), jax.tree.leaves(cut.state)
    ):
      if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
      np.testing.assert_array_equal(a, b)
    expected = [r for r in rows(self.folder / 'straight')]
    found = [r for r in rows(self.folder / 'cut') if r['step'] != 23]
    self.assertEqual([r['step'] for r in found], [r['step'] for r in expected])
    for row in found:
      if row['step'] != 24:  # Its last step is alone: 23 was a row's end.
        self.assertIn(row, expected)

  def test_resuming_frees_the_initial_state(self):
    # Two states may be more than a device holds.
    tx = optax.sgd(0.1)
    for steps in (3, 5):
      state = training.create_state(toy.plain_init, tx, jax.random.key(0))
      result = training.fit(
        state,
        training.make_train_step(toy.plain_loss_fn, tx, donate=False),
        toy.Batches(),
        num_steps=steps,
        workdir=self.folder,
        console=False,
      )
    self.assertEqual(result.step, 5)
    self.assertTrue(state.params['w'].is_deleted())

  def test_clock_counts_the_time_of_the_steps_it_counts(self):
    # Every step is finished before the clock is stopped for an evaluation.
    made, fetched, seen = [], [], []
    tx = optax.sgd(0.1)
    state = training.create_state(toy.plain_init, tx, jax.random.key(0))
    step = training.make_train_step(toy.plain_loss_fn, tx)

    def counting(state, batch):
      made.append(1)
      return step(state, batch)

    device_get = jax.device_get

    def fetching(x):
      fetched.extend([1] * (isinstance(x, dict) and 'loss' in x))
      return device_get(x)

    pause = throughput.Throughput.pause

    def pausing(clock):
      if clock._began is not None:
        seen.append((len(made), len(fetched)))
      pause(clock)

    with (
      mock.patch.object(jax, 'device_get', fetching),
      mock.patch.object(throughput.Throughput, 'pause', pausing),
    ):
      training.fit(
        state,
        counting,
        toy.Batches(),
        num_steps=12,
        workdir=self.folder,
        log_every=5,
        checkpoint_every=7,
        evaluations=[training.Evaluation('e', lambda s: {}, every=3)],
        console=False,
      )
    # Steps with a row, an evaluation or a checkpoint after them.
    due = {3, 5, 6, 7, 9, 10, 12}
    self.assertContainsSubset(due, {made for made, _ in seen})
    for made_then, fetched_then in seen:
      if made_then in due:
        self.assertEqual(made_then, fetched_then)

  def test_home_folder(self):
    with mock.patch.dict(os.environ, HOME=str(self.folder)):
      self.toy_run('x', 3)
      toy.run('~/run', 3, console=False, tensorboard=False)
    self.assertSameElements(
      os.listdir(self.folder / 'run'), os.listdir(self.folder / 'x')
    )
    self.assertFalse(os.path.exists('~'))

  def test_iterator_gains_a_position(self):
    class Plain:
      def __init__(self):
        self.batches = toy.Batches()

      def __iter__(self):
        return self

      def __next__(self):
        return next(self.batches)

    results = []
    for kinds in ((toy.Batches,), (Plain, toy.Batches)):
      for steps, kind in zip((5, 9)[-len(kinds) :], kinds):
        tx = optax.sgd(0.1)
        state = training.create_state(toy.plain_init, tx, jax.random.key(0))
        result = training.fit(
          state,
          training.make_train_step(toy.plain_loss_fn, tx),
          kind(),
          num_steps=steps,
          workdir=self.folder / str(len(kinds)),
          console=False,
        )
      results.append(result.state.params['w'])
    np.testing.assert_array_equal(*results)

  def test_finished_run_is_not_run_again(self):
    self.toy_run('run', 12)
    before = rows(self.folder / 'run')
    again = self.toy_run('run', 12)
    self.assertEqual((again.step, again.reason), (12, 'done'))
    self.assertEqual(rows(self.folder / 'run'), before)

  def test_iterator_without_a_position_is_drawn_again(self):
    class Endless:
      def __init__(self):
        self.index = itertools.count()

      def __iter__(self):
        return self

      def __next__(self):
        return toy.example_batch(next(self.index))

    results = []
    for name, stops in (('a', (20,)), ('b', (9, 20))):
      for stop in stops:
        tx = optax.sgd(0.1)
        state = training.create_state(toy.init, tx, jax.random.key(0))
        step = training.make_train_step(toy.loss_fn, tx)
        result = training.fit(
          state,
          step,
          Endless(),
          num_steps=stop,
          workdir=self.folder / name,
          console=False,
        )
      results.append(result.state.params['Dense_0']['kernel'])
    np.testing.assert_array_equal(*results)

  def test_evaluations_run_when_due(self):
    calls = []

    def evaluation(name, **options):
      def function(state):
        calls.append((name, int(state.step)))
        return {'value': np.arange(2.0) + int(state.step)}

      return training.Evaluation(name, function, **options)

    evaluations = [
      evaluation('epoch', every=5, offset=1, at_start=True),
      evaluation('end', every=100, at_end=True),
    ]
    self.toy_run('run', 12, evaluations=evaluations)
    self.assertEqual(
      calls,
      [('epoch', 0), ('epoch', 1), ('epoch', 6), ('epoch', 11), ('end', 12)],
    )
    found = training.read_metrics(self.folder / 'run', 'epoch')
    np.testing.assert_array_equal(found['step'], [0, 1, 6, 11])
    np.testing.assert_array_equal(found['value'][:, 1], [1, 2, 7, 12])
    # Rows of a resumed run begin after those that are there.
    self.toy_run('run', 17, evaluations=evaluations)
    found = training.read_metrics(self.folder / 'run', 'epoch')
    np.testing.assert_array_equal(found['step'], [0, 1, 6, 11, 16])

  def test_rows_after_the_checkpoint_are_written_again(self):
    self.toy_run('run', 12)
    path = self.folder / 'run' / 'metrics.jsonl'
    expected = rows(self.folder / 'run')
    with path.open('a') as file:
      file.write('{"step": 16, "split": "train", "loss": 1}\n{"step": 20, "sp')
    self.toy_run('run', 12)
    self.assertEqual(rows(self.folder / 'run'), expected)

  def test_stop_when(self):
    def stop(step, split, metrics):
      self.assertIn(split, ('train', 'eval'))
      if split == 'eval' and metrics['value'] > 7:
        return f'value {metrics["value"]:g} is large'
      return None

    tx = optax.sgd(0.1)

    def fit():
      state = training.create_state(toy.plain_init, tx, jax.random.key(0))
      return training.fit(
        state,
        training.make_train_step(toy.plain_loss_fn, tx),
        toy.Batches(),
        num_steps=50,
        workdir=self.folder,
        evaluations=[
          training.Evaluation('eval', lambda s: {'value': int(s.step)}, every=2)
        ],
        stop_when=stop,
        console=False,
      )

    result = fit()
    self.assertEqual((result.step, result.reason), (8, 'stopped'))
    self.assertEqual(result.message, 'value 8 is large')
    self.assertTrue(result.finished)
    # The same command does not train on.
    again = fit()
    self.assertEqual((again.step, again.message), (8, 'value 8 is large'))

  def test_stop_when_sees_again_what_came_before(self):
    def patience():
      seen = []

      def stop(step, split, metrics):
        del step
        if split == 'eval':
          seen.append(metrics['value'])
        return 'enough' if len(seen) == 5 else None

      return stop

    for name, ends in (('straight', (30,)), ('cut', (6, 30))):
      for end in ends:
        tx = optax.sgd(0.1)
        state = training.create_state(toy.plain_init, tx, jax.random.key(0))
        result = training.fit(
          state,
          training.make_train_step(toy.plain_loss_fn, tx),
          toy.Batches(),
          num_steps=end,
          workdir=self.folder / name,
          evaluations=[
            training.Evaluation('eval', lambda s: {'value': 1.0}, every=2)
          ],
          stop_when=patience(),
          console=False,
        )
      self.assertEqual((result.step, result.reason), (10, 'stopped'))

  @parameterized.parameters('loss', 'parameters')
  def test_not_a_number(self, where):
    tx = optax.sgd(0.1)

    def loss_fn(params, model_state, batch, rng):
      loss, aux = toy.plain_loss_fn(params, model_state, batch, rng)
      if where == 'loss':
        return jnp.where(batch['bad'].any(), jnp.nan, loss), aux
      # Finite itself; its gradient at the root of 0 is not.
      good = jnp.where(batch['bad'].any(), 0.0, 1.0)
      return loss + 0.01 * jnp.sqrt(good * (params['w'] ** 2).sum()), aux

    def batches():
      for index in itertools.count():
        bad = np.full(32, index == 12)
        yield toy.example_batch(index) | {'bad': bad}

    state = training.create_state(toy.plain_init, tx, jax.random.key(0))
    with self.assertRaises(training.NonFiniteLossError) as caught:
      training.fit(
        state,
        training.make_train_step(loss_fn, tx),
        batches(),
        num_steps=40,
        workdir=self.folder,
        checkpoint_every=5 if where == 'loss' else 13,
        console=False,
      )
    message = str(caught.exception)
    self.assertIn('at step 13', message)
    if where == 'loss':
      self.assertRegex(message, 'nan at step 13.*last good checkpoint is step')
      self.assertRegex(message, 'checkpoint is step 10 in .*checkpoints')
      with training.Checkpoints(self.folder / 'checkpoints') as checkpoints:
        self.assertEqual(checkpoints.latest(), 10)
    else:
      # Caught before it could become the newest checkpoint.
      self.assertIn('the parameters are not', message)
      self.assertIn('no checkpoint before', message)

  def test_population_survives_a_member(self):
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    keys = jnp.broadcast_to(jax.random.key(0), (2,))
    state = training.create_state(toy.plain_init, tx, keys)
    rates = jnp.array([0.1, jnp.nan])
    state = state.replace(
      opt_state=optax.tree.set(state.opt_state, learning_rate=rates)
    )
    result = training.fit(
      state,
      training.make_train_step(toy.plain_loss_fn, tx, population=True),
      toy.Batches(),
      num_steps=6,
      workdir=self.folder,
      log_every=2,
      console=False,
    )
    self.assertEqual(result.reason, 'done')
    found = training.read_metrics(self.folder, 'train')
    self.assertEqual(found['loss'].shape, (3, 2))
    self.assertTrue(np.isfinite(found['loss'][:, 0]).all())
    self.assertTrue(np.isnan(found['loss'][1:, 1]).all())

  def test_sigterm_saves_and_the_next_run_resumes(self):
    straight = self.toy_run('straight', 30)

    def terminate(state):
      del state
      os.kill(os.getpid(), signal.SIGTERM)
      return {}

    before = signal.getsignal(signal.SIGTERM)
    result = self.toy_run(
      'run',
      30,
      evaluations=[training.Evaluation('x', terminate, every=100, offset=17)],
    )
    self.assertEqual((result.step, result.reason), (17, 'preempted'))
    self.assertFalse(result.finished)
    self.assertRegex(
      result.message, 'SIGTERM: saved step 17 of 30 in .*goes on'
    )
    self.assertIs(signal.getsignal(signal.SIGTERM), before)
    resumed = self.toy_run('run', 30)
    self.assertEqual(resumed.step, 30)
    np.testing.assert_array_equal(
      resumed.state.params['Dense_1']['kernel'],
      straight.state.params['Dense_1']['kernel'],
    )
    # 17 is no multiple of log_every: the row of 20 is that of the straight run.
    resumed, straight = (
      [r for r in rows(self.folder / name) if r['split'] == 'train']
      for name in ('run', 'straight')
    )
    self.assertEqual(resumed, straight)

  def test_runs_in_other_threads(self):
    # Python handles signals in the main thread only.
    results = []
    thread = threading.Thread(
      target=lambda: results.append(self.toy_run('run', 3))
    )
    thread.start()
    thread.join()
    self.assertEqual(results[0].step, 3)

  def test_data_that_end(self):
    tx = optax.sgd(0.1)
    state = training.create_state(toy.plain_init, tx, jax.random.key(0))
    step = training.make_train_step(toy.plain_loss_fn, tx)
    with self.assertRaisesRegex(
      ValueError, 'ended after step 3; num_steps is 9'
    ):
      training.fit(
        state,
        step,
        [toy.example_batch(i) for i in range(3)],
        num_steps=9,
        console=False,
      )

  @parameterized.parameters('num_steps', 'log_every', 'checkpoint_every')
  def test_bad_numbers(self, name):
    options = {'num_steps': 5, name: 0}
    with self.assertRaisesRegex(ValueError, f'{name} is 0'):
      training.fit(None, None, [], **options)

  def test_evaluation_never(self):
    with self.assertRaisesRegex(ValueError, 'every is 0'):
      training.Evaluation('x', dict, every=0)

  def test_without_a_folder_nothing_is_written(self):
    before = set(os.listdir('.'))
    result = toy.run(None, 5, console=False)
    self.assertEqual(result.step, 5)
    self.assertEqual(set(os.listdir('.')), before)


if __name__ == '__main__':
  absltest.main()
