"""Tests of interactions, readers and splits."""

import pathlib
import tempfile

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import recsys
from jaxpapers.recsys import readers, splits


def _random(users=40, items=30, seed=0, density=0.2):
  rng = np.random.default_rng(seed)
  return recsys.from_dense(
    (rng.random((users, items)) < density) * rng.integers(1, 6, (users, items))
  )


def _folder(case):
  """A folder that goes away with the test."""
  folder = tempfile.TemporaryDirectory()
  case.addCleanup(folder.cleanup)
  return pathlib.Path(folder.name)


class InteractionsTest(parameterized.TestCase):
  def test_round_trips(self):
    x = _random()
    dense = x.to_dense()
    np.testing.assert_array_equal(x.to_csr().toarray(), dense)
    np.testing.assert_array_equal(x.transpose().to_dense(), dense.T)
    items, values = x.to_padded([3, 7])
    for row, user in enumerate((3, 7)):
      kept = items[row] < x.num_items
      np.testing.assert_array_equal(
        items[row][kept], np.nonzero(dense[user])[0]
      )
      np.testing.assert_array_equal(
        values[row][kept], dense[user][dense[user] > 0]
      )

  @parameterized.parameters(('last', 2), ('max', 5), ('sum', 7))
  def test_duplicates_are_merged_and_counted(self, rule, value):
    x, repairs = recsys.check_interactions(
      [1, 1, 0, 0], [2, 2, 0, 1], [5, 2, 0, 3], duplicates=rule
    )
    self.assertEqual(x.to_dense()[1, 2], value)
    self.assertEqual((repairs.duplicates, repairs.zeros), (1, 1))
    self.assertEqual((repairs.users_without, repairs.items_without), (0, 1))

  @parameterized.parameters(
    (dict(user=[0, -1], item=[0, 0]), 'negative id'),
    (dict(user=[0, 1], item=[0]), 'same length'),
    (dict(user=[0, 1.5], item=[0, 0]), 'whole numbers'),
    (dict(user=[0], item=[0], value=[np.nan]), 'NaN'),
    (dict(user=[0], item=[0], value=[-1]), 'negative'),
    (dict(user=[0], item=[3], shape=(1, 3)), 'shape allows'),
    (dict(user=[0, 0], item=[1, 1], duplicates='refuse'), 'more than once'),
    (dict(user=[0], item=[1], duplicates='first'), 'duplicates'),
  )
  def test_bad_columns(self, arguments, words):
    with self.assertRaisesRegex(ValueError, words):
      recsys.interactions(**arguments)

  def test_union_and_overlap(self):
    x = _random()
    first, second = splits.split_holdout(0, x)
    self.assertFalse(recsys.overlap(first, second).any())
    both = recsys.union(first, second)
    np.testing.assert_array_equal(both.to_dense(), x.to_dense())
    self.assertEqual(int(recsys.overlap(x, second).sum()), len(second))
    wide = recsys.interactions([0, 1, 2], [4, 3, 2], shape=(3, 5))
    found = recsys.overlap(recsys.from_dense(np.eye(3, 4)), wide)
    self.assertEqual(found.tolist(), [False, False, True])
    self.assertEqual([len(a) for a in x.pairs_of([])], [0, 0])

  def test_empty_data(self):
    x = recsys.interactions([], [], shape=(3, 4))
    self.assertEqual(x.to_dense().shape, (3, 4))
    self.assertEqual(x.to_padded()[0].tolist(), [[4]] * 3)


class SplitsTest(parameterized.TestCase):
  def test_user_fraction_follows_the_rule_of_the_study(self):
    x = _random(density=0.4)
    train, test = recsys.split_user_fraction(0, x, 0.8)
    n = x.user_counts()
    expected = np.round(n * 0.8).astype(int)
    expected -= (expected == n) & (n > 1)
    np.testing.assert_array_equal(train.user_counts(), expected)
    np.testing.assert_array_equal(
      recsys.union(train, test).to_dense(), x.to_dense()
    )

  def test_same_key_same_split(self):
    x = _random()
    for key in (5, jax.random.key(5)):
      first = recsys.split_user_fraction(key, x)[0]
      second = recsys.split_user_fraction(key, x)[0]
      np.testing.assert_array_equal(first.keys(), second.keys())
    other = recsys.split_user_fraction(6, x)[0]
    self.assertFalse(np.array_equal(first.keys(), other.keys()))

  def test_leave_one_out(self):
    x = recsys.interactions(
      [0, 0, 0, 1, 2, 2], [4, 1, 2, 0, 3, 1], time=[5, 9, 7, 1, 2, 3]
    )
    train, test = recsys.split_leave_one_out(0, x, by='time')
    self.assertEqual(
      list(zip(test.user, test.item, strict=True)), [(0, 1), (2, 1)]
    )
    self.assertEqual(len(train), 4)
    _, test = recsys.split_leave_one_out(0, x)
    self.assertEqual(test.user_counts().tolist(), [1, 0, 1])
    with self.assertRaisesRegex(ValueError, 'no times'):
      recsys.split_leave_one_out(0, _random(), by='time')

  def test_folds_are_a_partition(self):
    x = _random()
    tests = [test for _, test in recsys.split_k_fold(0, x, 4)]
    keys = np.concatenate([test.keys() for test in tests])
    np.testing.assert_array_equal(np.sort(keys), x.keys())
    counts = np.stack([test.user_counts() for test in tests])
    self.assertLessEqual((counts.max(0) - counts.min(0)).max(), 1)

  def test_strong_generalization_keeps_users_and_items_apart(self):
    x = _random(users=60, density=0.3)
    parts = recsys.split_strong_generalization(98765, x, 10, 12)
    train, val, test = parts.users
    self.assertEqual((len(val), len(test)), (10, 12))
    self.assertLen(set(train) | set(val) | set(test), len(train) + 22)
    self.assertEqual(set(parts.train.user), set(train))
    for known, target, users in (
      (parts.val_fold_in, parts.val_target, val),
      (parts.test_fold_in, parts.test_target, test),
    ):
      self.assertTrue(set(known.user) <= set(users))
      self.assertFalse(recsys.overlap(known, target).any())
      self.assertTrue((parts.train.item_counts()[target.item] > 0).all())

  def test_negatives_are_new_and_unbiased(self):
    x = _random(users=4, items=12, density=0.4)
    users = np.repeat(np.arange(4), 500)
    found = recsys.sample_negatives(0, x, users, 3)
    dense = x.to_dense()
    self.assertTrue((dense[users[:, None], found] == 0).all())
    self.assertTrue((np.diff(found, axis=1) > 0).all())
    for user in range(4):
      free = np.flatnonzero(dense[user] == 0)
      counts = np.bincount(found[users == user].ravel(), minlength=12)[free]
      # 1500 draws: five standard deviations of a binomial.
      expected = 1500 / len(free)
      self.assertLess(np.abs(counts - expected).max(), 5 * expected**0.5)
    with self.assertRaisesRegex(ValueError, 'items left'):
      recsys.sample_negatives(0, x, [0], 12)

  def test_empty_parts_are_refused(self):
    x = recsys.interactions([0, 1], [0, 1])
    with self.assertRaisesRegex(ValueError, 'empty'):
      recsys.split_user_fraction(0, x)


class ReadersTest(parameterized.TestCase):
  def _file(self, name, text):
    path = _folder(self) / name
    path.write_text(text, encoding='utf-8')
    return path

  @parameterized.parameters(
    ('a.csv', 'u1,i1,5\nu1,i2,3\nu2,i1,4\n'),
    (
      'b.csv',
      'userId,movieId,rating,timestamp\nu1,i1,5,9\nu1,i2,3,8\nu2,i1,4,7\n',
    ),
    ('c.tsv', 'u1\ti1\t5\nu1\ti2\t3\nu2\ti1\t4\n'),
    ('d.dat', 'u1::i1::5::0\nu1::i2::3::0\nu2::i1::4::0\n'),
    (
      'e.inter',
      'user_id:token\titem_id:token\trating:float\nu1\ti1\t5\nu1\ti2\t3\nu2\ti1\t4\n',
    ),
  )  # fmt: skip
  def test_ratings(self, name, text):
    loaded = recsys.read_interactions(self._file(name, text))
    self.assertEqual(loaded.users.tolist(), ['u1', 'u2'])
    self.assertEqual(loaded.items.tolist(), ['i1', 'i2'])
    self.assertEqual(loaded.interactions.to_dense().tolist(), [[5, 3], [4, 0]])

  def test_netflix(self):
    path = self._file(
      'n.txt', '7:\n10,3,2005-01-01\n11,5,2005-01-02\n9:\n10,4,x\n'
    )
    loaded = recsys.read_interactions(path)
    self.assertEqual(loaded.items.tolist(), [7, 9])
    self.assertEqual(loaded.interactions.to_dense().tolist(), [[3, 4], [5, 0]])

  def test_lists(self):
    path = self._file('train.txt', '0 2 1\n2 0\n')
    x = recsys.read_interactions(path).interactions
    self.assertEqual(x.to_dense().tolist(), [[0, 1, 1], [0, 0, 0], [1, 0, 0]])
    path = self._file('ctr.txt', '2 1 3\n0\n1 0\n')
    x = recsys.read_interactions(path, 'ctr').interactions
    self.assertEqual(x.user_counts().tolist(), [2, 0, 1])
    path = self._file('bad.txt', '3 1 2\n')
    with self.assertRaisesRegex(ValueError, 'line 1: says 3'):
      recsys.read_interactions(path, 'ctr')

  def test_ncf(self):
    path = self._file('x.train.rating', '0\t5\t3\t11\n1\t2\t4\t12\n')
    x = recsys.read_interactions(path).interactions
    self.assertEqual(x.shape, (2, 6))
    self.assertEqual(x.time.tolist(), [11, 12])
    path = self._file('x.test.negative', '(1,3)\t4\t5\n(0,1)\t2\t3\n')
    users, items, negatives = recsys.read_ncf_negatives(path)
    self.assertEqual((users.tolist(), items.tolist()), ([0, 1], [1, 3]))
    self.assertEqual(negatives.tolist(), [[2, 3], [4, 5]])

  def test_parquet(self):
    import pyarrow
    import pyarrow.parquet

    path = _folder(self) / 'x.parquet'
    table = pyarrow.table({'user': [3, 3, 5], 'item': [1, 2, 1]})
    pyarrow.parquet.write_table(table, path)
    x = recsys.read_interactions(path).interactions
    self.assertEqual(x.to_dense().tolist(), [[1, 1], [1, 0]])
    for users in ([3, None, 5], [3.0, 3.5, 5.0]):
      table = pyarrow.table({'user': users, 'item': [1, 2, 1]})
      pyarrow.parquet.write_table(table, path)
      with self.assertRaisesRegex(ValueError, '1 entries that are missing'):
        recsys.read_interactions(path)

  def test_names_stay_as_they_are(self):
    path = self._file('a.csv', '\ufeffuser,item\n7,1\n007,1\n')
    loaded = recsys.read_interactions(path)
    self.assertEqual(loaded.users.tolist(), ['007', '7'])
    self.assertEqual(loaded.items.tolist(), [1])
    path = self._file('x.rating', 'u1\ti1\t5\n')
    with self.assertRaisesRegex(ValueError, "users such as 'u1'"):
      recsys.read_interactions(path)

  def test_threshold_and_complaints(self):
    path = self._file('a.csv', '1,1,5\n1,2,3\n2,1,4\n')
    x = recsys.read_interactions(path, threshold=4).interactions
    self.assertEqual(x.value.tolist(), [1, 1])
    with self.assertRaisesRegex(ValueError, 'value of 6'):
      recsys.read_interactions(path, threshold=6)
    with self.assertRaisesRegex(ValueError, 'file_format'):
      recsys.read_interactions(path, 'json')
    with self.assertRaisesRegex(ValueError, 'columns'):
      recsys.read_interactions(self._file('b.csv', '1,1,5\n1,2\n'))
    with self.assertRaisesRegex(ValueError, 'no interactions'):
      recsys.read_interactions(self._file('c.csv', 'user,item\n'))

  def test_guess(self):
    with self.assertRaisesRegex(ValueError, 'not clear'):
      readers.guess_format(self._file('a.txt', 'hello\n'))


if __name__ == '__main__':
  absltest.main()
