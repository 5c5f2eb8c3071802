"""Search space, reward, algorithms on the synthetic benchmark, records."""

import functools
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers.efficientnet import controller as lib
from jaxpapers.efficientnet import history, nas
from jaxpapers.efficientnet.search_space import (
  OPTIONS,
  generator,
  layer_macs,
)
from jaxpapers.training import shared_studies
from tests.helpers import goldens, scripts


def temporary():
  return pathlib.Path(tempfile.mkdtemp(prefix='search_'))


def tokens_of(result):
  return np.stack([trial.tokens for trial in result.trials])


class SpaceTest(parameterized.TestCase):
  def test_synthetic_goldens(self):
    evaluate = nas.SyntheticBenchmark()
    for row in goldens.load_json('efficientnet', 'nas_synthetic.json'):
      macs = evaluate.space.macs(row['tokens'])
      self.assertEqual(macs, row['macs'])
      accuracy = evaluate(row['tokens'])
      # Sums of a hundred float64 numbers in another order.
      self.assertAlmostEqual(accuracy, row['acc'], delta=1e-12)
      self.assertAlmostEqual(
        float(nas.reward(accuracy, macs)), row['reward'], delta=1e-12
      )

  def test_sizes(self):
    self.assertEqual(int(np.prod(OPTIONS)), 432)
    self.assertEqual(nas.SearchSpace().shape, (7, 6))

  @parameterized.parameters('mobilenet_v2', 'efficientnet_b0')
  def test_decode_and_encode(self, reference):
    space = nas.SearchSpace(reference)
    for tokens in space.sample(3, 20):
      blocks = space.decode(tokens)
      again = space.encode(blocks)
      self.assertEqual(space.decode(again), blocks)
      self.assertEqual(space.macs(again), space.macs(tokens))
      self.assertEqual(space.params(again), space.params(tokens))

  def test_counts_by_layers(self):
    # The table of blocks against a sum over layers.
    space = nas.SearchSpace(resolution=97)
    for tokens in space.sample(0, 5):
      side = 49
      total = side**2 * 27 * space.stem_filters
      for layers in space.layers(tokens):
        for layer in layers:
          total += layer_macs(layer, side)
          side = -(-side // layer.stride)
      last = layer.filters
      total += side**2 * last * 1280 + 1280 * 1000
      self.assertEqual(space.macs(tokens), total)

  def test_reference_is_mobilenet_v2(self):
    space = nas.SearchSpace()
    blocks = space.decode(space.reference_tokens())
    filters = [block.filters for block in blocks]
    self.assertEqual(filters, [16, 24, 32, 64, 96, 160, 320])
    self.assertEqual([block.layers for block in blocks], [1, 2, 3, 4, 3, 3, 1])

  def test_samples_follow_from_the_key(self):
    space = nas.SearchSpace()
    first = space.sample(jax.random.key(1), 200)
    self.assertTrue((first == space.sample(jax.random.key(1), 200)).all())
    self.assertFalse((first == space.sample(jax.random.key(2), 200)).all())
    for dimension, options in enumerate(OPTIONS):
      counts = np.bincount(first[:, :, dimension].ravel(), minlength=options)
      self.assertLen(counts, options)
      # 1400 draws: five standard deviations.
      expected = 1400 / options
      np.testing.assert_allclose(counts, expected, atol=5 * expected**0.5)

  def test_mutation_changes_one_token(self):
    space, rng = nas.SearchSpace(), generator(0)
    tokens = space.sample(rng)
    places = set()
    for _ in range(300):
      child = nas.mutate(space, tokens, rng)
      changed = np.argwhere(child != tokens)
      self.assertLen(changed, 1)
      space.check(child)
      places.add(tuple(changed[0].tolist()))
    self.assertGreater(len(places), 38)  # Of 42.

  def test_bad_input(self):
    space = nas.SearchSpace()
    with self.assertRaisesRegex(ValueError, 'reference is .x.'):
      nas.SearchSpace('x')
    with self.assertRaisesRegex(ValueError, 'for 7 strides'):
      nas.SearchSpace(((8,), (1,)))
    with self.assertRaisesRegex(ValueError, 'stem_stride is 0'):
      nas.SearchSpace(stem_stride=0)
    with self.assertRaisesRegex(ValueError, r'strides \(0,\)'):
      nas.SearchSpace(((8,), (1,)), (0,))
    with self.assertRaisesRegex(ValueError, r'expected integers \[7, 6\]'):
      space.macs([1, 2, 3])
    tokens = space.reference_tokens()
    tokens[3, 1] = 2
    with self.assertRaisesRegex(ValueError, "'kernel' of block 3 is 2"):
      space.decode(tokens)
    blocks = list(space.decode(space.reference_tokens()))
    blocks[0] = nas.SearchBlock('conv', 7, 0.0, 'none', 16, 1, 1)
    with self.assertRaisesRegex(ValueError, 'block 0 has kernel 7'):
      space.encode(blocks)
    with self.assertRaisesRegex(TypeError, 'rng is str'):
      space.sample('seed')


class RewardTest(parameterized.TestCase):
  def test_target_does_not_rank_with_equal_exponents(self):
    rng = np.random.default_rng(0)
    accuracy, macs = rng.uniform(0.5, 0.8, 50), rng.uniform(1e8, 1e9, 50)
    orders = [
      np.argsort(nas.reward(accuracy, macs, target)).tolist()
      for target in (1e8, 4e8, 1e9)
    ]
    self.assertEqual(orders[0], orders[1])
    self.assertEqual(orders[0], orders[2])
    hard = [
      np.argsort(nas.reward(accuracy, macs, t, 0.0, -1.0)).tolist()
      for t in (1e8, 1e9)
    ]
    self.assertNotEqual(hard[0], hard[1])

  def test_hard_form(self):
    objective = nas.hard_objective(4e8)
    macs = np.linspace(1e8, 1e9, 40)
    rewards = np.array([objective(0.7, m) for m in macs])
    np.testing.assert_array_equal(rewards[macs <= 4e8], 0.7)
    above = rewards[macs > 4e8]
    self.assertTrue((np.diff(above) < 0).all())
    np.testing.assert_allclose(above, 0.7 * 4e8 / macs[macs > 4e8])
    self.assertGreater(objective(0.71, 9e8), objective(0.7, 9e8))

  def test_transforms(self):
    accuracy, macs = jnp.array([0.7, 0.8]), jnp.array([2e8, 6e8])
    plain = nas.reward(np.asarray(accuracy), np.asarray(macs))
    jitted = jax.jit(nas.reward)(accuracy, macs)
    np.testing.assert_allclose(jitted, plain, rtol=1e-6)
    slope = jax.vmap(jax.grad(nas.reward))(accuracy, macs)
    np.testing.assert_allclose(slope, plain / np.asarray(accuracy), rtol=1e-6)
    with self.assertRaisesRegex(ValueError, 'target is 0'):
      nas.reward(0.5, 1e8, 0)

  def test_pareto_front(self):
    rng = np.random.default_rng(1)
    macs, accuracy = rng.integers(1, 20, 60), rng.integers(0, 20, 60) / 20
    front = nas.pareto_front(macs, accuracy).tolist()
    for i in range(60):
      beaten = any(
        macs[j] <= macs[i]
        and accuracy[j] >= accuracy[i]
        and (macs[j] < macs[i] or accuracy[j] > accuracy[i])
        for j in range(60)
      )
      twin = any(
        macs[j] == macs[i] and accuracy[j] == accuracy[i] for j in range(i)
      )
      self.assertEqual(i in front, not beaten and not twin)
    self.assertEqual(nas.pareto_front([1, 2], [np.nan, 0.5]).tolist(), [1])
    area = nas.hypervolume([1, 2], [0.5, 0.7], (4, 0.4))
    self.assertAlmostEqual(area, 0.1 * np.log(4) + 0.2 * np.log(2))


class AlgorithmsTest(parameterized.TestCase):
  def test_evolution_beats_random(self):
    evaluate, evolved, sooner = nas.SyntheticBenchmark(), [], []
    for seed in range(10):
      curve = nas.regularized_evolution(evaluate, 1000, seed).best_so_far()
      chance = nas.random_search(evaluate, 1000, seed).best.score
      evolved.append(curve[-1])
      sooner.append(curve[299])
      self.assertGreater(curve[-1], chance)
    # The bounds of the specification; measured here: .876 and .847.
    self.assertGreaterEqual(np.mean(evolved), 0.865)
    self.assertGreaterEqual(np.mean(sooner), 0.82)

  def test_oldest_leaves(self):
    # The best of all trials has no children once it is too old.
    def evaluate(tokens):
      evaluate.count += 1
      return 1.0 if evaluate.count == 1 else 0.5

    evaluate.count = 0
    result = nas.regularized_evolution(
      evaluate, 40, 0, population=8, sample=8, objective=lambda a, m: a
    )
    parents = [trial.info.get('parent') for trial in result.trials]
    self.assertEqual(parents[:8], [None] * 8)
    self.assertEqual(parents[8], 0)  # Still there when child 8 is made.
    self.assertNotIn(0, parents[9:])

  def test_failures_count_as_worst(self):
    def evaluate(tokens):
      return float('nan') if tokens[0, 0] == 0 else 0.5

    result = nas.random_search(evaluate, 30, 0)
    self.assertTrue(any(np.isnan(t.accuracy) for t in result.trials))
    self.assertEqual(result.best.accuracy, 0.5)
    for trial in result.trials:
      self.assertEqual(np.isnan(trial.accuracy), np.isinf(trial.score))

  def test_batches_are_proposed_together(self):
    benchmark, sizes = nas.SyntheticBenchmark(), []

    def evaluate(tokens):
      sizes.append(len(tokens))
      return [benchmark(row) for row in tokens]

    result = nas.regularized_evolution(
      evaluate, 50, 0, population=8, sample=4, batch_size=16
    )
    self.assertEqual(sizes, [16, 16, 16, 2])
    self.assertLen(result.trials, 50)
    parents = [trial.info.get('parent', -1) for trial in result.trials]
    for index in range(16, 32):
      self.assertBetween(parents[index], 8, 15)

  def test_bad_arguments(self):
    evaluate = nas.SyntheticBenchmark()
    with self.assertRaisesRegex(ValueError, 'budget is 0'):
      nas.random_search(evaluate, 0, 0)
    with self.assertRaisesRegex(ValueError, 'sample is 9, population 8'):
      nas.regularized_evolution(evaluate, 5, 0, population=8, sample=9)
    with self.assertRaisesRegex(
      ValueError, r'evaluate returned shape \[1, 2\]'
    ):
      nas.random_search(lambda tokens: [0.5, 0.5], 5, 0)


WORKER = """
import sys, time
from jaxpapers.efficientnet import controller as lib
from jaxpapers.efficientnet import nas
benchmark = nas.SyntheticBenchmark()
def evaluate(tokens):
  time.sleep(float(sys.argv[3]))
  return benchmark(tokens)
kind, place = sys.argv[1:3]
history = nas.FolderHistory(place) if kind == 'folder' else (
  nas.OptunaHistory(place))
nas.regularized_evolution(
  evaluate, int(sys.argv[4]), 5, population=8, sample=4, history=history)
"""


def worker(kind, place, pause, budget):
  return subprocess.Popen(
    [sys.executable, '-c', WORKER, kind, str(place), str(pause), str(budget)],
    env=scripts.environment(),
  )


def history_of(kind, place, **options):
  if kind == 'folder':
    return nas.FolderHistory(place, **options)
  return nas.OptunaHistory(str(place), **options)


class RecordsTest(parameterized.TestCase):
  @parameterized.parameters('folder', 'optuna')
  def test_goes_on_where_it_was(self, kind):
    place = temporary() / 'record'
    evaluate = nas.SyntheticBenchmark()
    search = functools.partial(
      nas.regularized_evolution, evaluate, population=8, sample=4
    )
    search(budget=20, rng=5, history=history_of(kind, place))
    resumed = search(budget=40, rng=5, history=history_of(kind, place))
    whole = search(budget=40, rng=5)
    np.testing.assert_array_equal(tokens_of(resumed), tokens_of(whole))
    self.assertEqual(
      [t.score for t in resumed.trials], [t.score for t in whole.trials]
    )
    with self.assertRaisesRegex(ValueError, 'holds another search: population'):
      nas.regularized_evolution(
        evaluate, 40, 5, population=9, sample=4, history=history_of(kind, place)
      )
    with self.assertRaisesRegex(ValueError, 'resolution was 224'):
      space = nas.SearchSpace(resolution=32)
      search(budget=4, rng=5, space=space, history=history_of(kind, place))

  @parameterized.parameters('folder', 'optuna')
  def test_goes_on_after_kill(self, kind):
    place = temporary() / 'record'
    first = worker(kind, place, 0.05, 60)

    def finished():
      if kind == 'folder':
        return sum(1 for _ in place.glob('claims/0*')) - 1
      return place.read_text().count('"reward') if place.exists() else 0

    try:
      deadline = time.monotonic() + 200
      while finished() < 12:
        self.assertLess(time.monotonic(), deadline)
        time.sleep(0.02)
    finally:
      first.send_signal(signal.SIGKILL)
      first.wait()
    # Killed in an evaluation: one number is claimed and has no result.
    record = history_of(kind, place)
    evaluate = nas.SyntheticBenchmark()
    resumed = nas.regularized_evolution(
      evaluate, 60, 5, population=8, sample=4, history=record
    )
    whole = nas.regularized_evolution(evaluate, 60, 5, population=8, sample=4)
    np.testing.assert_array_equal(tokens_of(resumed), tokens_of(whole))

  def test_goes_on_from_every_moment_at_which_it_was_killed(self):
    # The third of five trials; a line of the journal is one step.
    folder, evaluate = temporary(), nas.SyntheticBenchmark()
    search = functools.partial(
      nas.regularized_evolution, evaluate, 5, 7, population=2, sample=2
    )
    gone = shared_studies.this_process() | {'started': 'long ago'}
    with mock.patch.object(shared_studies, 'this_process', lambda: gone):
      whole = search(history=nas.OptunaHistory(str(folder / 'whole')))
    lines = (folder / 'whole').read_text().splitlines(keepends=True)
    begins = [i for i, line in enumerate(lines) if '"owner"' in line]
    self.assertLen(begins, 5)
    steps = range(begins[2] - 2, begins[3] + 1)
    self.assertGreater(len(steps), 40)
    # Parameters of the trial, all but the first and the last, are alike.
    for n in [*steps[:7], *steps[-6:]]:
      place = folder / str(n)
      place.write_text(''.join(lines[:n]))
      resumed = search(history=nas.OptunaHistory(str(place)))
      np.testing.assert_array_equal(
        tokens_of(resumed), tokens_of(whole), f'after {n} lines'
      )

  def test_another_process_of_the_same_number(self):
    # As in a container that was started again.
    place = temporary() / 'record'
    before = nas.FolderHistory(place)
    before.open({'a': 1})
    self.assertEqual(before.claim(2), 0)
    owner = json.loads((place / 'claims' / '000000').read_text())
    self.assertFalse(history.is_dead(owner))
    if owner['started'] is None:
      self.skipTest('this system does not say when a process began')
    self.assertTrue(history.is_dead(owner | {'started': '1'}))
    (place / 'claims' / '000000').write_text(
      json.dumps(owner | {'started': '1'})
    )
    after = nas.FolderHistory(place)
    after.open({'a': 1})
    self.assertEqual([after.claim(2) for _ in range(3)], [0, 1, None])
    self.assertFalse(history.is_dead(owner | {'host': 'another'}))

  def test_half_a_line_is_ignored(self):
    place = temporary() / 'record'
    nas.random_search(
      nas.SyntheticBenchmark(), 5, 0, history=nas.FolderHistory(place)
    )
    path = next(place.glob('trials/*.jsonl'))
    with path.open('a') as file:
      file.write(json.dumps({'index': 5})[:6])
    self.assertLen(nas.FolderHistory(place).finished(), 5)

  @parameterized.parameters('folder', 'optuna')
  @pytest.mark.slow
  def test_workers_share_a_budget(self, kind):
    place = temporary() / 'record'
    workers = [worker(kind, place, 0.02, 40) for _ in range(2)]
    for process in workers:
      self.assertEqual(process.wait(250), 0)
    record = history_of(kind, place)
    result = nas.regularized_evolution(
      lambda tokens: self.fail('nothing is left'),
      40,
      5,
      population=8,
      sample=4,
      history=record,
    )
    self.assertEqual([t.index for t in result.trials], list(range(40)))
    if kind == 'folder':
      names = list(place.glob('trials/*.jsonl'))
      self.assertLen(names, 2)
      for name in names:  # Both worked.
        self.assertNotEmpty(name.read_text())

  def test_dead_workers_of_optuna(self):
    place = temporary() / 'journal'
    dead = nas.OptunaHistory(str(place))
    settings = {'a': 1}
    dead.open(settings)
    self.assertEqual(dead.claim(3), 0)
    other = nas.OptunaHistory(str(place))
    other.open(settings)
    space = nas.SearchSpace()
    trial = functools.partial(
      nas.Trial, tokens=space.reference_tokens(), macs=1, accuracy=0.5, score=1
    )
    for expected in (1, 2):
      self.assertEqual(other.claim(3), expected)
      other.record(trial(expected))
    self.assertIsNone(other.claim(3))
    again = nas.OptunaHistory(str(place), retry=True)
    again.open(settings)
    self.assertEqual(again.claim(3), 0)
    again.record(trial(0))
    self.assertIsNone(again.claim(3))
    self.assertEqual([t.index for t in again.finished()], [0, 1, 2])


class ControllerTest(absltest.TestCase):
  def test_probabilities(self):
    controller = lib.Controller(12, 8)
    params = lib._init(controller, jax.random.key(0))
    score = jax.jit(jax.vmap(lambda t: lib.score_tokens(controller, params, t)))
    tokens, log_probs = lib._sample(
      controller, params, jax.random.key(1), jnp.arange(64)
    )
    tokens = np.asarray(tokens)
    for dimension in range(12):
      options = OPTIONS[dimension % 6]
      self.assertBetween(tokens[:, dimension].max(), 0, options - 1)
    scored, entropies = score(tokens)
    # float32 sums of 12 terms, batched and not.
    np.testing.assert_allclose(scored, log_probs, atol=1e-5)
    # Nearly uniform before training.
    uniform = 2 * np.log(OPTIONS).sum()
    np.testing.assert_allclose(entropies, uniform, rtol=1e-2)

  def test_resumes_to_the_same_trials(self):
    place = temporary() / 'record'
    evaluate = nas.SyntheticBenchmark()
    options = {'batch': 8, 'hidden_dim': 16}
    search = functools.partial(nas.ppo_search, evaluate, rng=1, **options)
    search(budget=21, history=nas.FolderHistory(place))
    resumed = search(budget=40, history=nas.FolderHistory(place))
    whole = search(budget=40)
    np.testing.assert_array_equal(tokens_of(resumed), tokens_of(whole))
    updates = [trial.info['updates'] for trial in whole.trials]
    self.assertEqual(updates, [i // 8 for i in range(40)])

  def test_bad_settings(self):
    with self.assertRaisesRegex(ValueError, 'batch is 0'):
      nas.PPO(batch=0)
    with self.assertRaisesRegex(ValueError, 'baseline is 1'):
      nas.PPO(baseline=1.0)

  @pytest.mark.nightly
  def test_beats_random(self):
    evaluate, wins = nas.SyntheticBenchmark(), 0
    for seed in range(10):
      learned = nas.ppo_search(evaluate, 1000, seed).best.score
      wins += learned > nas.random_search(evaluate, 1000, seed).best.score
    self.assertGreaterEqual(wins, 9)

  @pytest.mark.slow
  def test_beats_random_once(self):
    evaluate = nas.SyntheticBenchmark()
    learned = nas.ppo_search(evaluate, 600, 0).best.score
    chance = nas.random_search(evaluate, 600, 0).best.score
    self.assertGreater(learned, chance)


if __name__ == '__main__':
  absltest.main()
