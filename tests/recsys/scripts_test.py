"""Tests of the programs, each run as a user does."""

import csv
import json
import pathlib
import signal
import subprocess
import tempfile
import time

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers.recsys import methods, report, reproduction, studies
from tests.helpers import scripts


def _folder(case):
  """A folder that goes away with the test."""
  folder = tempfile.TemporaryDirectory()
  case.addCleanup(folder.cleanup)
  return pathlib.Path(folder.name)


def _write_ratings(folder, users=60, items=30, seed=0):
  """Two groups of users with tastes of their own, as csv."""
  rng = np.random.default_rng(seed)
  path = pathlib.Path(folder) / 'ratings.csv'
  lines = ['user,item,rating,timestamp']
  for user in range(users):
    likes = np.arange(items) % 2 == user % 2
    chosen = rng.random(items) < np.where(likes, 0.5, 0.05)
    for item in np.flatnonzero(chosen):
      stars = rng.integers(3, 6)
      lines.append(f'u{user},i{item},{stars},{rng.integers(1000)}')
  path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
  return path


class ScriptsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = _folder(self)
    self.ratings = f'--interactions={_write_ratings(self.folder)}'

  def _run(self, name, *arguments, code=0, **options):
    done = scripts.run(name, *arguments, **options)
    self.assertEqual(done.returncode, code, done.stderr + done.stdout)
    return done.stdout

  def test_evaluate_and_audit(self):
    out = self._run(
      'recsys_evaluate', self.ratings, '--method=item_knn_cf_cosine',
      '--set=top_k=10', '--set=shrink=2', '--cutoffs=3,5',
      '--sampled_negatives=8', '--ties=expected',
      f'--save_dir={self.folder}/out',
    )  # fmt: skip
    self.assertIn('users per second', out)
    content = json.loads((self.folder / 'out/evaluation.json').read_text())
    self.assertEqual(content['parameters'], {'top_k': 10, 'shrink': 2})
    self.assertGreater(content['metrics']['hit'][str(5)], 0.5)
    with np.load(self.folder / 'out/per_user.npz') as file:
      self.assertAlmostEqual(
        file['ndcg'][:, 0].mean(), content['metrics']['ndcg']['3']
      )
    self.assertEmpty(list(self.folder.glob('out/*.partial')))
    done = scripts.run(
      'recsys_audit',
      self.ratings,
      '--method=TopPopular',
      f'--save_dir={self.folder}/audit',
    )
    content = json.loads((self.folder / 'audit/audit.json').read_text())
    # Of so few interactions also a random part may look like none.
    self.assertEqual(done.returncode, bool(content['flags']), done.stderr)
    self.assertNotIn('overlap', content['flags'])
    self.assertIn('tau of a random test part', done.stdout)
    self.assertLessEqual(
      content['ties']['pessimistic'], content['ties']['optimistic']
    )

  def test_a_network_comes_with_tuned_baselines(self):
    out = self._run(
      'recsys_evaluate', self.ratings, '--method=mult_vae',
      '--set=hidden=(8,)', '--set=latent=4', '--set=epochs=12',
      '--set=learning_rate=0.02', '--cutoffs=5,10', '--num_trials=2',
      '--best_test_epoch', f'--save_dir={self.folder}/out',
    )  # fmt: skip
    for words in ('RP3beta: ', 'corrected p', 'OPTIMISTIC'):
      self.assertIn(words, out)
    content = json.loads((self.folder / 'out/evaluation.json').read_text())
    baselines = content['baselines']
    self.assertSameElements(baselines, reproduction.BASELINES)
    self.assertGreater(baselines['RP3beta']['validation'], 0)
    self.assertIsNone(baselines['TopPopular']['validation'])
    self.assertGreater(content['metrics']['hit'][str(5)], 0.3)
    epoch, value = content['optimistic_best_test_epochs']['ndcg']
    self.assertBetween(epoch, 1, 12)
    self.assertGreaterEqual(value, content['metrics']['ndcg']['10'])
    self.assertTrue((self.folder / 'out/per_user_rp3beta.npz').exists())

  def test_tune_then_recommend(self):
    common = (
      self.ratings, '--methods=RP3beta', '--num_trials=4', '--num_random=2',
      f'--save_dir={self.folder}/tuned',
    )  # fmt: skip
    out = self._run('recsys_tune', *common, '--evaluate_test')
    self.assertIn('RP3beta: test ndcg@10', out)
    tuned = self.folder / 'tuned/tuned.json'
    content = json.loads(tuned.read_text())['RP3beta']
    self.assertLen(content['trials'], 4)
    values = [trial['value'] for trial in content['trials']]
    self.assertEqual(content['validation'], max(values))
    saved = self.folder / 'recommended.csv'
    self._run(
      'recsys_recommend', self.ratings, f'--tuned={tuned}', '--users=u1,u4',
      '--top_n=5', f'--save_file={saved}',
    )  # fmt: skip
    rows = list(csv.DictReader(saved.open(encoding='utf-8')))
    self.assertEqual({row['user'] for row in rows}, {'u1', 'u4'})
    self.assertLen(rows, 10)
    # Their group's items, which they do not have yet, come first.
    self.assertEqual(int(rows[0]['item'][1:]) % 2, 1)
    known = (self.folder / 'ratings.csv').read_text()
    for row in rows:
      self.assertNotIn(f'{row["user"]},{row["item"]},', known)
    # Other data are another search, and other methods' results stay.
    tuned.write_text(json.dumps({'RP3beta': content, 'EASE_R': {}}))
    (self.folder / 'other').mkdir()
    other = _write_ratings(self.folder / 'other', seed=1)
    out = self._run(
      'recsys_tune', f'--interactions={other}', *common[1:2],
      '--num_trials=2', '--num_random=1', common[-1],
    )  # fmt: skip
    self.assertEqual(sum(': top_k=' in line for line in out.splitlines()), 2)
    content = json.loads(tuned.read_text())
    self.assertLen(content['RP3beta']['trials'], 2)
    self.assertIn('EASE_R', content)

  def test_recommend_by_features(self):
    genres = self.folder / 'items.csv'
    lines = [f'i{item},g{item % 3}' for item in (*range(29), 99)]
    genres.write_text('\n'.join(['item,genre', *lines]) + '\n')
    flags = [self.ratings, f'--features={genres}', '--users=u1', '--top_n=8']
    out = self._run(
      'recsys_recommend', *flags, '--method=item_knn_cbf_cosine',
      '--set=shrink=0', '--set=top_k=30',
    )  # fmt: skip
    had = [0, 0, 0]
    for line in (self.folder / 'ratings.csv').read_text().splitlines():
      user, item, rating, _ = line.split(',')
      if user == 'u1' and item != 'i29':  # Which has no genre.
        had[int(item[1:]) % 3] += int(rating)
    rows = list(csv.DictReader(out.splitlines()))
    self.assertLen(rows, 8)
    for row in rows:
      # Items of one genre have similarity 1: the score sums ratings.
      total = had[int(row['item'][1:]) % 3]
      self.assertAlmostEqual(float(row['score']), total, delta=1e-4)
    self.assertAlmostEqual(float(rows[0]['score']), max(had), delta=1e-4)
    done = scripts.run('recsys_recommend', *flags, '--method=RP3beta')
    scripts.assert_usage_error(self, done, 'does not look at features')

  def test_negatives_by_the_names_of_the_interactions(self):
    files = {
      'train.tsv': '5\t10\n5\t40\n7\t40\n7\t30\n7\t10\n',
      'test.tsv': '5\t20\n7\t20\n',
      'negatives': '(7,20)\t10\n(5,20)\t30\n',
    }
    for name, text in files.items():
      (self.folder / name).write_text(text)
    arguments = [f'--{n[:-4]}={self.folder}/{n}' for n in files if '.' in n]
    arguments += [f'--negatives={self.folder}/negatives', '--cutoffs=1']
    out = self._run(
      'recsys_evaluate', *arguments, '--method=TopPopular',
      f'--save_dir={self.folder}/out',
    )  # fmt: skip
    # User 7 has item 10: it is no negative, and nothing is left.
    self.assertIn('1 users without negatives', out)
    content = json.loads((self.folder / 'out/evaluation.json').read_text())
    self.assertEqual(content['metrics']['hit_rate']['1'], 0.5)
    (self.folder / 'negatives').write_text('(7,20)\t10\n(5,20)\t31\n')
    done = scripts.run('recsys_evaluate', *arguments, '--method=TopPopular')
    scripts.assert_usage_error(self, done, '1 items that no interaction has')

  @parameterized.parameters(
    ('recsys_evaluate', ['--method=EASEE'], 'EASE_R'),
    ('recsys_evaluate', ['--method=EASE_R', '--set=l3=4'], 'l3'),
    ('recsys_evaluate', ['--method=EASE_R', '--set=l2'], 'name=value'),
    ('recsys_evaluate', ['--method=EASE_R', '--set=l2=many'], 'expected float'),
    ('recsys_evaluate', ['--method=EASE_R', '--cutoffs=99'], '30 items'),
    ('recsys_evaluate', ['--method=neumf', '--set=epochs=a'], 'expected int'),
    ('recsys_audit', ['--negatives=x'], 'does not go with --interactions'),
    ('recsys_evaluate', ['--method=EASE_R', '--study=table_4'], 'one of'),
  )
  def test_usage_errors(self, name, arguments, words):
    done = scripts.run(name, self.ratings, *arguments)
    scripts.assert_usage_error(self, done, words)


def _write_study(folder):
  """A file in the form of table 4's, small."""
  rng = np.random.default_rng(0)
  dense = rng.random((40, 130)) < 0.08
  dense[:, :3] = True
  user, item = np.nonzero(dense)
  last = np.r_[user[1:] != user[:-1], True]
  negatives = [
    rng.choice(np.flatnonzero(~dense[u]), 20, replace=False) for u in range(40)
  ]
  path = pathlib.Path(folder) / 'citeulike_a_cmn_loo100.npz'
  np.savez(
    path,
    train_user=user[~last], train_item=item[~last],
    test_user=user[last], test_item=item[last],
    test_negatives=np.array(negatives), shape=dense.shape,
  )  # fmt: skip
  return path


class ReproduceTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = _folder(self)
    _write_study(self.folder)
    self.arguments = (
      '--studies=table_4', f'--data_dir={self.folder}',
      f'--save_dir={self.folder}/out',
    )  # fmt: skip

  def test_rows_are_kept_and_shown(self):
    some = '--methods=TopPopular,RP3beta,item_knn_cf_tversky'
    done = scripts.run('recsys_reproduce', *self.arguments, some)
    self.assertEqual(done.returncode, 0, done.stderr)
    rows = self.folder / 'out/rows/cmn_citeulike_a'
    stamp = (rows / 'rp3beta.published.json').stat().st_mtime_ns
    page = (self.folder / 'out/index.html').read_text()
    self.assertIn('7 of 18 papers', page)
    self.assertIn('0.8326', page)  # Published.
    self.assertNotIn('src="http', page)
    table = list(
      csv.DictReader((self.folder / 'out/cmn_citeulike_a.csv').open())
    )
    self.assertLen(table, 12)
    self.assertEqual({row['state'] for row in table}, {'differs'})
    done = scripts.run('recsys_reproduce', *self.arguments, some)
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertEqual(
      (rows / 'rp3beta.published.json').stat().st_mtime_ns, stamp
    )
    done = scripts.run(
      'recsys_reproduce', *self.arguments, some, '--ties=expected'
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertGreater(
      (rows / 'rp3beta.published.json').stat().st_mtime_ns, stamp
    )

  @pytest.mark.slow
  def test_a_network_gets_baselines_and_epochs_from_validation_data(self):
    arguments = (
      *self.arguments, '--methods=mult_vae', '--max_epochs=10',
      '--num_trials=2', '--num_random=1',
    )  # fmt: skip
    done = scripts.run('recsys_reproduce', *arguments)
    self.assertEqual(done.returncode, 0, done.stderr)
    rows = self.folder / 'out/rows/cmn_citeulike_a'
    content = {
      path.stem: json.loads(path.read_text()) for path in rows.glob('*.json')
    }
    self.assertSameElements(
      content,
      [
        'mult_vae.published',
        'toppopular.published',
        'itemknn_cf_cosine.published',
        'rp3beta.published',
      ],
    )
    row = content['mult_vae.published']
    self.assertEqual(row['source'], 'search')
    self.assertIn(row['parameters']['epochs'], (5, 10))
    self.assertGreater(row['validation'], 0)
    # What the paper prints for these data is tuned already.
    self.assertEqual(content['rp3beta.published']['source'], 'published')

  @pytest.mark.slow
  def test_search_goes_on_after_a_kill(self):
    arguments = (
      *self.arguments, '--methods=RP3beta', '--hparams=search',
      '--num_trials=6', '--num_random=3',
    )  # fmt: skip
    process = subprocess.Popen(
      scripts.command('recsys_reproduce', *arguments),
      env=scripts.environment(),
      stdout=subprocess.PIPE,
      text=True,
    )
    seen = 0
    deadline = time.monotonic() + 120
    for line in process.stdout:
      seen += 'RP3beta' in line
      if seen == 2 or time.monotonic() > deadline:
        break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = scripts.run('recsys_reproduce', *arguments)
    self.assertEqual(done.returncode, 0, done.stderr)
    again = sum(': top_k=' in line for line in done.stdout.splitlines())
    self.assertBetween(again, 1, 5)
    row = json.loads(
      (self.folder / 'out/rows/cmn_citeulike_a/rp3beta.search.json').read_text()
    )
    self.assertEqual(row['source'], 'search')
    self.assertGreater(row['validation'], 0)

  def test_errors(self):
    done = scripts.run(
      'recsys_reproduce', '--studies=table_32', f'--data_dir={self.folder}'
    )
    scripts.assert_usage_error(self, done, 'ml1m_5star_spectralcf_split.npz')
    done = scripts.run('recsys_reproduce', '--studies=table_99')
    scripts.assert_usage_error(self, done, 'table_99')


class ReportTest(absltest.TestCase):
  def test_failed_rows_and_states(self):
    study = studies.find('table_4')
    good = reproduction.Row(
      'RP3beta', {'top_k': 3}, 'published',
      dict.fromkeys(reproduction.columns_of(study), 0.83), {'HR@5': 0.8326},
      {'HR@5': (0.82, 0.84)}, {'HR@5': -0.0026}, 5e-4, False, 1.0, 2.0, {},
    )  # fmt: skip
    bad = reproduction.failed_row('EASE_R', 'published', ValueError('a\nb'))
    self.assertEqual(report.state(good), 'differs')
    self.assertEqual(report.state(bad), 'failed')
    text = report.text(study, [good, bad])
    self.assertIn('-0.0026', text)
    self.assertIn('failed: a b', text)
    self.assertIn('CMN (published)', text)
    page = report.page([(study, [good, bad], {'RP3beta': (0.0, 0.03)})])
    self.assertIn('class="best off"', page)
    self.assertIn('0.03', page)
    self.assertIn('failed', report.to_csv(study, [bad]))

  def test_methods_are_found(self):
    self.assertEqual(methods.find('slim elasticnet').name, 'SLIM ElasticNet')
    with self.assertRaisesRegex(ValueError, 'Did you mean'):
      methods.find('itemknn')
    with self.assertRaisesRegex(ValueError, 'already'):
      methods.register(methods.find('EASE_R'))


if __name__ == '__main__':
  absltest.main()
