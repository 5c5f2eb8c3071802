"""Tests that evaluation keeps its memory bounded at the size of a product."""

import json
import subprocess
import sys

import pytest
from absl.testing import absltest

from tests.helpers import scripts

# Memory has a high-water mark for each process: it needs one of its own.
_PROGRAM = """
import json, resource
import numpy as np
from jaxpapers import recsys
users, items = 50_000, 10_000
rng = np.random.default_rng(0)
length = np.clip(rng.lognormal(np.log(70), 1, users), 5, items // 4).astype(int)
popularity = 1 / np.arange(1, items + 1)
item = rng.choice(items, length.sum(), p=popularity / popularity.sum())
key = np.unique(np.repeat(np.arange(users), length) * items + item)
x = recsys.interactions(key // items, key % items, shape=(users, items))
train, test = recsys.split_user_fraction(0, x)
model = recsys.FactorModel(
  rng.standard_normal((users, 32), np.float32),
  rng.standard_normal((items, 32), np.float32),
)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = recsys.evaluate_model(
  model, train, test, (10, 100), metrics=('precision', 'recall', 'map', 'ndcg')
)
print(json.dumps({
  'users': len(result.users),
  'with_test_items': int((test.user_counts() > 0).sum()),
  'lists': result.lists.items.shape,
  'shapes': [v.shape for v in result.per_user.values()],
  'ndcg': result.mean('ndcg', 100),
  'before': before * 1024,
  'peak': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
"""


class ScaleTest(absltest.TestCase):
  @pytest.mark.nightly
  def test_full_ranking_of_50000_users(self):
    done = subprocess.run(
      [sys.executable, '-c', _PROGRAM],
      env=scripts.environment(),
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    found = json.loads(done.stdout)
    self.assertEqual(found['users'], 50_000)
    self.assertEqual(found['with_test_items'], 50_000)
    self.assertEqual(found['lists'], [50_000, 100])
    self.assertEqual(found['shapes'], [[50_000, 2]] * 4)
    # Random factors: 100 of 10,000 items hold 1 % of the test items, or less.
    self.assertBetween(found['ndcg'], 1e-3, 0.02)
    # All scores at once would be 2 GB.
    self.assertLess(found['peak'], 1e9, found)


if __name__ == '__main__':
  absltest.main()
