"""Tests of batching: which examples, in which order, from where again."""

import itertools
import json
import pickle

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import data
from jaxpapers.data import pipeline, randomness


def _arrays(count=23):
  rng = np.random.default_rng(0)
  return {
    'index': np.arange(count),
    'image': rng.integers(0, 256, (count, 2, 3), np.uint8),
  }


class OneByOne:
  """A source without `take`, as a folder of images is."""

  def __init__(self, count=23):
    self._arrays = _arrays(count)

  def __len__(self):
    return len(self._arrays['index'])

  def __getitem__(self, index):
    if type(index) is not int:
      raise TypeError(f'index is {type(index)}')
    return {name: value[index] for name, value in self._arrays.items()}


def _jitter(example, rng):
  return {**example, 'noise': rng.random(2)}


def _batch_jitter(batch, rng):
  return {**batch, 'noise': rng.uniform((2,)), 'shift': rng.integers(9)}


def _fail_at_7(example, rng):
  del rng
  if example['index'] == 7:
    raise data.CorruptFileError('img_7.jpg: cannot be decoded')
  return example


def _joined(parts):
  """Puts the parts of the processes together, in their order."""
  return {
    name: np.concatenate([part[name] for part in parts]) for name in parts[0]
  }


class BatchesCase(parameterized.TestCase):
  def assert_same(self, first, second):
    first, second = list(first), list(second)
    self.assertEqual(len(first), len(second))
    for one, two in zip(first, second):
      self.assertEqual(set(one), set(two))
      for name in one:
        np.testing.assert_array_equal(one[name], two[name], name)
        self.assertEqual(one[name].dtype, two[name].dtype)


class BatchesTest(BatchesCase):
  def test_an_epoch_has_each_example_once_with_its_own_values(self):
    source = _arrays()
    steps = data.batches(source, 5, num_epochs=1, remainder='keep')
    self.assertEqual(steps.steps_per_epoch, 5)
    batches = list(steps)
    self.assertEqual([len(b['index']) for b in batches], [5, 5, 5, 5, 3])
    joined = _joined(batches)
    self.assertEqual(sorted(joined['index']), list(range(23)))
    self.assertNotEqual(joined['index'].tolist(), list(range(23)))
    np.testing.assert_array_equal(
      joined['image'], source['image'][joined['index']]
    )

  def test_epochs_have_different_orders_and_seeds_too(self):
    steps = data.batches(_arrays(), 23, seed=0, num_epochs=3)
    orders = {tuple(batch['index']) for batch in steps}
    other = next(data.batches(_arrays(), 23, seed=1))
    self.assertLen(orders | {tuple(other['index'])}, 4)

  def test_drop_leaves_out_different_examples(self):
    seen = [set() for _ in range(6)]
    for step, batch in enumerate(data.batches(_arrays(), 10, num_epochs=6)):
      self.assertLen(batch['index'], 10)
      seen[step // 2] |= set(batch['index'].tolist())
    self.assertEqual({len(s) for s in seen}, {20})
    self.assertGreater(len({frozenset(s) for s in seen}), 1)

  def test_pad_marks_repetitions(self):
    steps = data.batches(_arrays(), 10, num_epochs=2, remainder='pad')
    batches = list(steps)
    self.assertEqual([b['mask'].sum() for b in batches], [10, 10, 3] * 2)
    self.assertEqual({b['mask'].dtype for b in batches}, {np.dtype(bool)})
    last = batches[2]
    self.assertEqual(last['mask'].tolist(), [True] * 3 + [False] * 7)
    self.assertEqual(set(last['index'][3:]), {last['index'][2]})
    real = np.concatenate([b['index'][b['mask']] for b in batches[:3]])
    self.assertEqual(sorted(real), list(range(23)))

  def test_padded_batches_compile_once(self):
    traces = []

    @jax.jit
    def step(batch):
      traces.append(1)
      return (batch['image'].sum((1, 2)) * batch['mask']).sum()

    source = _arrays()
    source['image'] = source['image'].astype(np.int32)
    steps = data.batches(source, 8, num_epochs=2, remainder='pad')
    total = sum(int(step(batch)) for batch in steps)
    self.assertEqual(total, 2 * source['image'].sum())
    self.assertLen(traces, 1)

  def test_without_shuffle(self):
    steps = data.batches(_arrays(), 7, num_epochs=2, shuffle=False)
    got = [batch['index'].tolist() for batch in steps]
    epoch = [list(range(k, k + 7)) for k in (0, 7, 14)]
    self.assertEqual(got, epoch * 2)

  def test_never_ends_by_default(self):
    steps = data.batches(_arrays(), 23, num_threads=0)
    for _ in range(50):
      batch = next(steps)
    self.assertEqual(steps.get_state()['step'], 50)
    self.assertEqual(sorted(batch['index']), list(range(23)))

  @parameterized.parameters('drop', 'pad', 'keep')
  def test_arrays_and_single_examples_give_the_same(self, remainder):
    options = dict(seed=3, num_epochs=2, remainder=remainder)
    self.assert_same(
      data.batches(_arrays(), 5, **options),
      data.batches(OneByOne(), 5, **options),
    )

  @parameterized.product(
    count=[1, 2, 4], remainder=['drop', 'pad'], transform=['one', 'batch']
  )
  def test_processes_share_the_same_global_batch(
    self, count, remainder, transform
  ):
    options = dict(seed=5, num_epochs=3, remainder=remainder)
    if transform == 'one':
      options['transform'] = _jitter
    else:
      options['batch_transform'] = _batch_jitter
    whole = data.batches(
      _arrays(), 8, process_index=0, process_count=1, **options
    )
    parts = [
      data.batches(
        _arrays(), 8, process_index=index, process_count=count, **options
      )
      for index in range(count)
    ]
    self.assertEqual(parts[0].local_batch_size, 8 // count)
    self.assert_same(whole, map(_joined, zip(*parts, strict=True)))

  @parameterized.parameters(0, 1, 3, 5, 12, 14, 15)
  def test_resumes_anywhere(self, stop):
    # Steps 5 and 10 begin epochs; 15 is the end.
    options = dict(seed=2, num_epochs=3, remainder='pad', transform=_jitter)
    straight = list(data.batches(_arrays(), 5, **options))
    self.assertLen(straight, 15)
    first = data.batches(_arrays(), 5, num_threads=2, prefetch=4, **options)
    self.assert_same(straight[:stop], [next(first) for _ in range(stop)])
    state = json.loads(json.dumps(first.get_state()))
    second = data.batches(_arrays(), 5, **options)
    next(second)  # set_state has to throw away what was read ahead
    second.set_state(state)
    self.assertEqual(second.get_state(), state)
    self.assert_same(straight[stop:], second)

  def test_goes_back(self):
    steps = data.batches(_arrays(), 5, num_epochs=1)
    state = steps.get_state()
    first = list(steps)
    with self.assertRaises(StopIteration):
      next(steps)
    steps.set_state(state)
    self.assert_same(first, steps)

  def test_resumes_with_another_number_of_processes(self):
    options = dict(seed=2, num_epochs=2)
    before = data.batches(
      _arrays(), 4, process_index=1, process_count=2, **options
    )
    for _ in range(3):
      next(before)
    parts = [
      data.batches(_arrays(), 4, process_index=i, process_count=4, **options)
      for i in range(4)
    ]
    for part in parts:
      part.set_state(before.get_state())
    straight = list(data.batches(_arrays(), 4, **options))
    self.assert_same(straight[3:], map(_joined, zip(*parts, strict=True)))

  @parameterized.parameters(
    ('seed', dict(seed=1)),
    ('batch_size', dict(batch_size=6)),
    ('shuffle', dict(shuffle=False)),
    ('remainder', dict(remainder='pad')),
    ('num_examples', dict(source=_arrays(24))),
  )
  def test_state_of_another_run(self, name, change):
    state = data.batches(_arrays(), 5).get_state()
    arguments = {'source': _arrays(), 'batch_size': 5, **change}
    steps = data.batches(**arguments)
    with self.assertRaisesRegex(ValueError, f'state has {name} = '):
      steps.set_state(state)

  def test_state_beyond_the_end(self):
    steps = data.batches(_arrays(), 5, num_epochs=1)
    with self.assertRaisesRegex(ValueError, 'step = 5; expected 0 to 4'):
      steps.set_state({**steps.get_state(), 'step': 5})

  @parameterized.parameters(0, 1, 3)
  def test_same_step_again_after_an_error(self, num_threads):
    class Flaky(OneByOne):
      calls = itertools.count()  # exact among threads

      def __getitem__(self, index):
        if next(self.calls) == 7:
          raise OSError('the disk was away')
        return super().__getitem__(index)

    steps = data.batches(Flaky(), 5, num_epochs=2, num_threads=num_threads)
    got, errors = [], 0
    while len(got) < 8:
      try:
        got.append(next(steps))
      except OSError:
        errors += 1
    self.assertEqual(errors, 1)
    self.assert_same(got, data.batches(OneByOne(), 5, num_epochs=2))

  def test_state_is_json_whatever_the_integers(self):
    steps = data.batches(_arrays(), np.int64(5), seed=np.uint32(7))
    state = json.loads(json.dumps(steps.get_state()))
    self.assertEqual(state['seed'], 7)
    steps.set_state(state)

  def test_is_a_grain_iterator(self):
    import grain

    steps = data.batches(_arrays(), 5)
    self.assertIsInstance(steps, grain.DatasetIterator)
    steps.close()
    with self.assertRaisesRegex(ValueError, 'closed'):
      next(steps)

  def test_tuples_and_bare_arrays(self):
    pairs = [(np.full(2, i), i) for i in range(6)]
    first, second = next(data.batches(pairs, 6, shuffle=False))
    np.testing.assert_array_equal(first[:, 0], second)
    bare = next(data.batches([np.ones(3)] * 4, 4))
    self.assertEqual(bare.shape, (4, 3))

  @parameterized.named_parameters(
    ('size', dict(batch_size=0), 'batch_size is 0; expected a positive'),
    (
      'processes',
      dict(process_index=0, process_count=3),
      'batch_size is 5; .* multiple of the number of processes, 3',
    ),
    (
      'process_index',
      dict(process_index=2, process_count=1),
      'process_index is 2; expected 0',
    ),
    (
      'large',
      dict(batch_size=24),
      'has 23 examples, fewer than batch_size, 24',
    ),
    ('remainder', dict(remainder='mask'), "remainder is 'mask'; expected one"),
    ('empty', dict(source={'x': np.zeros((0, 2))}), 'source is empty'),
    ('workers', dict(num_workers=-1), 'num_workers is -1; expected 0 or more'),
    ('epochs', dict(num_epochs=-1), 'num_epochs is -1'),
    (
      'keep',
      dict(batch_size=10, remainder='keep', process_index=0, process_count=2),
      'last batch has 3 examples, which 2 processes cannot share',
    ),
    (
      'lengths',
      dict(source={'x': np.zeros(3), 'y': np.zeros(4)}),
      "lengths {'x': 3, 'y': 4}",
    ),
    ('scalar', dict(source={'x': 1}), "lengths {'x': 'a scalar'}"),
  )
  def test_bad_arguments(self, change, message):
    arguments = {'source': _arrays(), 'batch_size': 5, **change}
    with self.assertRaisesRegex(ValueError, message):
      data.batches(**arguments)

  def test_bad_sources(self):
    with self.assertRaisesRegex(TypeError, 'source is generator; expected'):
      data.batches((i for i in range(3)), 2)
    steps = data.batches([np.ones(3)] * 5, 2, remainder='pad')
    with self.assertRaisesRegex(TypeError, "'pad', which adds 'mask'"):
      next(steps)

  def test_shapes_that_differ(self):
    source = [{'image': np.zeros((k, 4))} for k in (3, 3, 5)]
    steps = data.batches(source, 3, shuffle=False)
    with self.assertRaisesRegex(
      ValueError, r"example\['image'\] has shape \[5, 4\] for index 2 and \[3,"
    ):
      next(steps)


class WorkersTest(BatchesCase):
  """Worker processes: few tests, as each starts several."""

  def test_same_batches_and_states(self):
    options = dict(seed=4, num_epochs=2, remainder='pad', transform=_jitter)
    straight = list(data.batches(OneByOne(), 5, **options))
    steps = data.batches(OneByOne(), 5, num_workers=2, **options)
    self.assert_same(straight[:3], [next(steps) for _ in range(3)])
    state = json.loads(json.dumps(steps.get_state()))
    self.assertEqual(state['step'], 3)
    steps.close()
    steps = data.batches(OneByOne(), 5, num_workers=3, num_threads=0, **options)
    steps.set_state(state)
    self.assert_same(straight[3:], steps)
    steps.close()

  def test_error_in_a_worker_keeps_its_words(self):
    steps = data.batches(
      OneByOne(), 23, num_workers=1, num_epochs=1, transform=_fail_at_7
    )
    with self.assertRaisesRegex(data.CorruptFileError, 'img_7.jpg: cannot be'):
      next(steps)
    steps.close()

  def test_plan_can_be_sent_to_workers_after_use(self):
    plan = pipeline.BatchPlan(
      OneByOne(),
      5,
      seed=0,
      num_epochs=2,
      shuffle=True,
      transform=_jitter,
      batch_transform=None,
      remainder='drop',
      process_index=0,
      process_count=1,
    )
    self.assert_same([plan[6]], [pickle.loads(pickle.dumps(plan))[6]])


class RandomnessTest(parameterized.TestCase):
  def test_order_is_fixed_for_ever(self):
    # A resumed run relies on it. SplitMix64's finaliser by Python's integers:
    def mix(state, word):
      state = ((state ^ word) + 0x9E3779B97F4A7C15) % 2**64
      state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
      state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
      return state ^ state >> 31

    def key(index):
      state = 0
      for word in (7, randomness.ORDER, 3, index):
        state = mix(state, word)
      return state

    expected = sorted(range(50), key=key)
    self.assertEqual(randomness.permutation(50, 7, 3).tolist(), expected)

  def test_orders_are_uniform(self):
    # 24 orders of 4; 4800 epochs: mean 200 each, standard deviation 14.
    orders, counts = np.unique(
      [randomness.permutation(4, 11, epoch) for epoch in range(4800)],
      axis=0,
      return_counts=True,
    )
    self.assertLen(orders, 24)
    chi_squared = ((counts - 200) ** 2 / 200).sum()
    # 23 degrees of freedom: P(> 49.7) = 0.001.
    self.assertLess(chi_squared, 49.7)

  def test_batch_random(self):
    rng = randomness.BatchRandom(0, 0, np.arange(20000))
    uniform = rng.uniform((3,), low=-1, high=1)
    self.assertEqual(uniform.shape, (20000, 3))
    self.assertBetween(uniform.min(), -1, -0.999)
    self.assertBetween(uniform.max(), 0.999, 1)
    # 5 standard errors: 0.577 / sqrt(20000) = 0.0041.
    self.assertLess(np.abs(uniform.mean(0)).max(), 0.021)
    following = rng.uniform((3,), low=-1, high=1)
    columns = np.concatenate([uniform, following], axis=1)
    correlation = np.corrcoef(columns.T) - np.eye(6)
    self.assertLess(np.abs(correlation).max(), 0.036)  # 5 / sqrt(20000)
    # Neighbours in index.
    lag = np.corrcoef(uniform[:-1, 0], uniform[1:, 0])[0, 1]
    self.assertLess(abs(lag), 0.036)
    counts = np.bincount(rng.integers(5), minlength=5)
    self.assertLen(counts, 5)
    self.assertLess(np.abs(counts - 4000).max(), 5 * np.sqrt(4000 * 0.8))

  def test_generators_differ_by_seed_epoch_and_example(self):
    draws = {
      randomness.example_generator(seed, epoch, index).random()
      for seed in range(3)
      for epoch in range(3)
      for index in range(3)
    }
    self.assertLen(draws, 27)

  def test_padding_keeps_a_mask_of_the_examples(self):
    examples = _arrays() | {'mask': np.arange(23)}
    batches = data.batches(examples, 10, remainder='pad')
    with self.assertRaisesRegex(ValueError, "have a 'mask' of their own"):
      next(batches)


if __name__ == '__main__':
  absltest.main()
