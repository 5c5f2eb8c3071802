"""The fine-tuning programs and roberta_fill_mask, from files to files."""

import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import training
from jaxpapers.roberta import pretrained, squad, squad_scores
from tests.helpers import scripts
from tests.roberta import tiny

NOUNS = ('cat', 'dog', 'bird', 'man', 'mouse')
_MODEL = None


def setUpModule():
  global _MODEL
  _MODEL = tempfile.TemporaryDirectory()
  tiny.save_pretrained(_MODEL.name)


def tearDownModule():
  _MODEL.cleanup()


def sentences(count, start=0):
  """Sentences and whether they are good."""
  rows = []
  for i in range(start, start + count):
    good = (i * 7 + i // 3) % 2
    word = 'good' if good else 'bad'
    rows.append((f'the {NOUNS[i % 5]} is {word} "', good))
  return rows


class ScriptsTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def write(self, name, content):
    path = self.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding='utf-8')
    return path

  def write_json_lines(self, name, rows):
    return self.write(name, ''.join(json.dumps(row) + '\n' for row in rows))

  def write_sst2(self):
    def table(rows):
      return ''.join('\t'.join(map(str, row)) + '\n' for row in rows)

    self.write('SST-2/train.tsv', table([('s', 'label'), *sentences(40)]))
    self.write('SST-2/dev.tsv', table([('s', 'label'), *sentences(20, 40)]))
    test = [(i, text) for i, (text, _) in enumerate(sentences(9, 60))]
    self.write('SST-2/test.tsv', table([('index', 'sentence'), *test]))

  def flags(self, workdir, *more):
    more = sorted(more, key=lambda flag: not flag.startswith('--config='))
    first = sum(flag.startswith('--config=') for flag in more)
    return [
      *more[:first],
      f'--model={_MODEL.name}',
      f'--data={self.folder}',
      f'--workdir={self.folder / workdir}',
      '--config.eval_batch_size=16',
      '--config.lengths=(32,)',
      '--quiet',
      *more[first:],
    ]

  def run_script(self, name, workdir, *more):
    done = scripts.run(name, *self.flags(workdir, *more))
    self.assertEqual(done.returncode, 0, done.stderr)
    return done, self.folder / workdir

  def results(self, workdir):
    return json.loads((workdir / 'results.json').read_text())


GLUE = (
  '--task=SST-2',
  '--config.updates=50',
  '--config.evaluate_every=10',
  '--config.batch_size=16',
  '--config.learning_rate=.01',
)


class GlueTest(ScriptsTestCase):
  def test_from_tables_to_submission(self):
    self.write_sst2()
    done, workdir = self.run_script(
      'roberta_finetune_glue', 'out', *GLUE, '--seeds=1,2'
    )
    self.assertIn('median', done.stdout)
    results = self.results(workdir)
    # 'good' or 'bad' is all there is to know.
    self.assertGreater(results['median']['accuracy'], 0.9)
    seeds = [results['seeds'][s]['best']['accuracy'] for s in '12']
    self.assertAlmostEqual(results['median']['accuracy'], np.median(seeds))
    for seed in (1, 2):
      rows = training.read_metrics(workdir / f'seed{seed}', 'dev')
      self.assertEqual(rows['step'].tolist(), [10, 20, 30, 40, 50])
      best = results['seeds'][str(seed)]
      self.assertEqual(best['best']['accuracy'], rows['accuracy'].max())
      self.assertEqual(
        best['best_step'], rows['step'][rows['accuracy'].argmax()]
      )
      lines = (workdir / f'seed{seed}/submission/SST-2.tsv').read_text()
      self.assertLen(lines.splitlines(), 10)
      self.assertFalse((workdir / f'seed{seed}/checkpoints').exists())
    self.assertTrue((workdir / 'dev.png').read_bytes().startswith(b'\x89PNG'))
    config = json.loads((workdir / 'config.json').read_text())
    self.assertEqual(config['task'], 'SST-2')
    self.assertEqual(config['seeds'], [1, 2])
    exported = json.loads((workdir / 'model/config.json').read_text())
    self.assertEqual(exported['id2label'], {'0': '0', '1': '1'})
    self.assertEqual(exported['classifier_dropout'], 0.0)
    # The exported model answers as the best one did.
    best = results['best_seed']
    done, evaluated = self.run_script(
      'roberta_finetune_glue',
      'again',
      '--task=SST-2',
      f'--model={workdir / "model"}',
      '--config.evaluate_only',
    )
    self.assertEqual(
      self.results(evaluated)['best'], results['seeds'][str(best)]['best']
    )
    self.assertEqual(
      (evaluated / 'submission/SST-2.tsv').read_text(),
      (workdir / f'seed{best}/submission/SST-2.tsv').read_text(),
    )

  @pytest.mark.slow
  def test_goes_on_after_a_kill(self):
    self.write_sst2()
    more = (*GLUE, '--config.updates=100', '--seeds=1')
    _, whole = self.run_script('roberta_finetune_glue', 'whole', *more)
    # Killed at once after some checkpoint, wherever it is then.
    command = scripts.command(
      'roberta_finetune_glue', *self.flags('killed', *more)
    )
    process = subprocess.Popen(
      command, env=scripts.environment(), stdout=subprocess.DEVNULL
    )
    rows = self.folder / 'killed/seed1/metrics.jsonl'
    for _ in range(3000):
      time.sleep(0.1)
      if rows.exists() and rows.read_text().count('"dev"') >= 3:
        break
      self.assertIsNone(process.poll(), 'it ended before it was killed')
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    self.assertFalse((self.folder / 'killed/results.json').exists())
    _, killed = self.run_script('roberta_finetune_glue', 'killed', *more)
    self.assertEqual(self.results(killed), self.results(whole))
    for split in ('train', 'dev'):
      expected = training.read_metrics(whole / 'seed1', split)
      got = training.read_metrics(killed / 'seed1', split)
      for name in ('step', 'loss', 'accuracy'):
        if name in expected:
          np.testing.assert_array_equal(got[name], expected[name], name)
    # Once more: nothing is left to do.
    done, _ = self.run_script('roberta_finetune_glue', 'killed', *more)
    self.assertIn('nothing left to do', done.stdout)

  @parameterized.parameters(
    (('--task=SST-2', '--model='), ('--model', 'empty')),
    (('--task=SNLI',), ('--task', 'expected one of CoLA')),
    (('--task=RTE',), ('--data', 'RTE/dev.tsv')),
  )
  def test_wrong_flags(self, more, words):
    self.write_sst2()
    done = scripts.run('roberta_finetune_glue', *self.flags('out', *more))
    scripts.assert_usage_error(self, done, *words)
    self.assertFalse((self.folder / 'out').exists())


class SquadTest(ScriptsTestCase):
  def write_squad(self, name, count):
    paragraphs = []
    for i in range(count):
      who, where = NOUNS[i % 5], NOUNS[(i + 2) % 5]
      context = f'The {who} ran after the {where}. Nobody sat on the mat.'
      answer = {'text': f'The {who}', 'answer_start': 0}
      qas = [
        {'id': f'{name}{i}', 'question': 'Who ran?', 'answers': [answer]},
        {'id': f'{name}{i}no', 'question': 'Why bad films?', 'answers': []},
      ]
      paragraphs.append({'context': context, 'qas': qas})
    self.write(name, json.dumps({'data': [{'paragraphs': paragraphs}]}))

  def test_version_2(self):
    self.write_squad('train-v2.0.json', 30)
    self.write_squad('dev-v2.0.json', 8)
    config = scripts.ROOT / 'scripts/configs/roberta/finetune_squad.py:2.0'
    _, workdir = self.run_script(
      'roberta_finetune_squad',
      'out',
      f'--config={config}',
      '--config.updates=60',
      '--config.evaluate_every=20',
      '--config.batch_size=16',
      '--config.learning_rate=.01',
      '--config.max_question_len=12',
      '--config.lengths=(64,)',
    )
    results = self.results(workdir)
    # There is an answer to one of two questions, and they differ in words.
    self.assertGreater(results['median']['f1'], 50.0)
    questions = squad.load_squad(self.folder / 'dev-v2.0.json')
    seed = workdir / 'seed1'
    answers, probs = (
      json.loads((seed / name).read_text())
      for name in ('predictions.json', 'na_prob.json')
    )
    scores = squad_scores.squad_metrics(questions, answers, probs, 0.5)
    for name in ('exact', 'f1', 'HasAns_f1', 'NoAns_f1'):
      self.assertAlmostEqual(scores[name], results['median'][name], msg=name)
    _, params = pretrained.load_pretrained(workdir / 'model', heads=None)
    self.assertContainsSubset({'qa', 'answerable'}, params)

  def test_version_1_refuses_questions_without_answers(self):
    self.write_squad('train-v1.1.json', 2)
    self.write_squad('dev-v1.1.json', 2)
    done = scripts.run('roberta_finetune_squad', *self.flags('out'))
    scripts.assert_usage_error(self, done, 'no answer', 'finetune_squad.py:2.0')


CHOICE = (
  '--config.updates=4',
  '--config.evaluate_every=2',
  '--config.batch_size=8',
)


class ChoiceTest(ScriptsTestCase):
  @pytest.mark.slow
  def test_race(self):
    content = {
      'article': 'The cat sat on the mat.',
      'questions': ['The _ sat.', 'Who sat?'],
      'options': [['cat', 'dog', 'man', 'bird']] * 2,
      'answers': ['A', 'A'],
    }
    for split in ('train', 'dev', 'test'):
      for level in ('middle', 'high'):
        self.write(f'{split}/{level}/1.txt', json.dumps(content))
    _, workdir = self.run_script(
      'roberta_finetune_choice', 'out', '--task=race', *CHOICE
    )
    results = self.results(workdir)
    self.assertContainsSubset(
      {'accuracy', 'accuracy_middle', 'accuracy_high'}, results['median']
    )
    test = results['seeds']['1']['test']
    path = workdir / 'seed1/test_predictions.jsonl'
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    right = np.mean([row['answer'] == 'A' for row in rows])
    self.assertAlmostEqual(test['accuracy'], right)

  @pytest.mark.slow
  def test_csqa(self):
    rows = [
      {
        'id': str(i),
        'answerKey': 'ABCDE'[i % 5],
        'question': {
          'stem': 'Who sat?',
          'choices': [
            {'label': label, 'text': noun}
            for label, noun in zip('ABCDE', NOUNS)
          ],
        },
      }
      for i in range(10)
    ]
    self.write_json_lines('train_rand_split.jsonl', rows)
    self.write_json_lines('dev_rand_split.jsonl', rows)
    for row in rows:
      del row['answerKey']
    self.write_json_lines('test_rand_split_no_answers.jsonl', rows)
    _, workdir = self.run_script(
      'roberta_finetune_choice', 'out', '--task=csqa', *CHOICE
    )
    lines = (workdir / 'seed1/test_predictions.jsonl').read_text().splitlines()
    self.assertLen(lines, 10)
    self.assertNotIn('test', self.results(workdir)['seeds']['1'])

  @pytest.mark.slow
  def test_wsc_and_winogrande(self):
    text = 'The {} saw the {} and it ran.'
    rows = []
    for i in range(10):
      first, second = NOUNS[i % 5], NOUNS[(i + 1) % 5]
      for span, label in ((f'The {first}', True), (f'the {second}', False)):
        target = {'span1_text': span, 'span2_text': 'it', 'span2_index': 6}
        row = {'text': text.format(first, second), 'target': target}
        rows.append({**row, 'label': label, 'idx': len(rows)})
    lone = {**rows[0], 'text': 'The cat saw one fish and it ran.', 'idx': 20}
    self.write_json_lines('train.jsonl', [*rows, lone])
    self.write_json_lines('val.jsonl', rows)
    for row in rows:
      del row['label']
    self.write_json_lines('test.jsonl', rows)
    done, workdir = self.run_script(
      'roberta_finetune_choice',
      'wsc',
      '--task=wsc',
      *CHOICE,
      '--config.margin=(1.0, 0.0)',
    )
    self.assertIn('train: 1 of 21 rows have no candidates', done.stdout)
    self.assertNotIn('dev:', done.stdout)
    text = (workdir / 'seed1/test_predictions.jsonl').read_text()
    answers = [json.loads(line) for line in text.splitlines()]
    self.assertEqual([a['idx'] for a in answers], list(range(20)))
    # Of two phrases one wins.
    for one, other in zip(answers[::2], answers[1::2]):
      self.assertCountEqual([one['label'], other['label']], ['True', 'False'])
    # However few candidates training has, there are all on dev and test.
    _, again = self.run_script(
      'roberta_finetune_choice',
      'again',
      '--task=wsc',
      f'--model={workdir / "model"}',
      '--config.evaluate_only',
      '--config.max_candidates=0',
    )
    self.assertEqual((again / 'test_predictions.jsonl').read_text(), text)
    rows = [
      {
        'qID': str(i),
        'sentence': f'The {a} saw the {b} and _ ran.',
        'option1': a,
        'option2': b,
        'answer': '12'[i % 2],
      }
      for i, (a, b) in enumerate(zip(NOUNS, NOUNS[1:]))
    ]
    for name in ('train_xl', 'dev'):
      self.write_json_lines(f'{name}.jsonl', rows)
    (self.folder / 'test.jsonl').unlink()
    _, workdir = self.run_script(
      'roberta_finetune_choice', 'winogrande', '--task=winogrande', *CHOICE
    )
    self.assertIn('accuracy', self.results(workdir)['median'])


class FillMaskTest(ScriptsTestCase):
  def test_lines_in_json_out(self):
    command = scripts.command(
      'roberta_fill_mask',
      f'--model={_MODEL.name}',
      '--json',
      '--top_k=2',
      '--batch_size=2',
    )
    done = subprocess.run(
      command,
      env=scripts.environment(),
      input='The <mask> sat.\n\n<mask> and <mask>\nA <mask>',
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    self.assertEqual([len(row['masks']) for row in rows], [1, 2, 1])
    for row in rows:
      for mask in row['masks']:
        first, second = (filling['probability'] for filling in mask)
        self.assertGreaterEqual(first, second)
        self.assertGreater(second, 0)

  def test_wrong_flags(self):
    done = scripts.run(
      'roberta_fill_mask', f'--model={_MODEL.name}', '--text=no place'
    )
    scripts.assert_usage_error(self, done, 'no <mask>')
    done = scripts.run(
      'roberta_fill_mask', f'--model={self.folder}', '--text=<mask>'
    )
    scripts.assert_usage_error(self, done, '--model', 'config.json')


if __name__ == '__main__':
  absltest.main()
