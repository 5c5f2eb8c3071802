"""A regression, a task with test files, and SQuAD through the programs."""

import json

import numpy as np
import pytest
from absl.testing import absltest

from jaxpapers import adapters, roberta
from jaxpapers.roberta import metrics, squad, squad_scores
from tests.adapters import scripts_test
from tests.helpers import scripts


def write_sts(folder):
  """Rows of STS-B whose score is the number of sunny words."""
  rng = np.random.default_rng(0)
  for name, count in (('train', 160), ('dev', 40), ('test', 10)):
    rows = ['\t'.join(f'column{i}' for i in range(10))]
    for _ in range(count):
      sunny = int(rng.integers(0, 4))
      words = [*rng.choice(scripts_test._SUNNY, sunny)]
      words += [*rng.choice(scripts_test._RAINY, 3 - sunny)]
      rng.shuffle(words)
      text = ' '.join(words), str(rng.choice(['day', 'home']))
      score = () if name == 'test' else (str(5 * sunny / 3),)
      rows.append('\t'.join((str(len(rows) - 1), *'-' * 6, *text, *score)))
    folder.mkdir(exist_ok=True)
    (folder / f'{name}.tsv').write_text('\n'.join(rows) + '\n')


def write_squad(path, count, answered=True):
  """Passages of which the question asks for the first or the last word."""
  rng = np.random.default_rng(len(path.name))
  paragraphs = []
  for i in range(count):
    words = [str(w) for w in rng.choice(scripts_test._RAINY, 4)]
    first = bool(i % 2)
    context = f'{words[0]} day {words[1]} {words[2]} walk {words[3]}'
    start = 0 if first else len(context) - len(words[3])
    answer = {'text': words[0 if first else 3], 'answer_start': start}
    qas = [
      {
        'id': f'{path.stem}{i}',
        'question': 'sun' if first else 'beach',
        'answers': [answer] if answered else [],
      }
    ]
    paragraphs.append({'context': context, 'qas': qas})
  path.write_text(json.dumps({'data': [{'paragraphs': paragraphs}]}))


class RegressionTest(absltest.TestCase):
  @pytest.mark.slow
  def test_sts_b(self):
    root = scripts_test.folder()
    write_sts(root / 'STS-B')
    workdir = root / 'sts'
    flags = (
      *scripts_test.common(),
      '--config.task=STS-B',
      '--config.max_len=24',
    )
    scripts_test.run(
      self,
      'adapters_finetune',
      *flags,
      '--config.epochs=20',
      '--config.learning_rate=3e-3',
      '--config.adapter.layer_sizes=(8, (0, 24))',
      '--config.seeds=(0, 1)',
      f'--workdir={workdir}',
    )
    rows = json.loads((workdir / 'results.json').read_text())
    dev = roberta.load_glue(root, 'STS-B', 'dev')
    for row in rows:
      # The constant that a model without an idea gives has no correlation.
      self.assertGreater(row['valid_pearson'], 0.8)
      self.assertGreater(row['valid_spearman'], 0.8)
      self.assertAlmostEqual(
        row['valid_pearson_and_spearman'],
        (row['valid_pearson'] + row['valid_spearman']) / 2,
      )
      self.assertNotIn('test_pearson', row)
      answers = workdir / f'answers_{row["seed"]}' / 'STS-B.tsv'
      lines = answers.read_text().splitlines()
      self.assertLen(lines, 11)
      for line in lines[1:]:
        self.assertBetween(float(line.split('\t')[1]), 0, 5)

    # The server says the same scores, among tasks of other kinds.
    classifier, _ = scripts_test.finetuned()
    requests = [
      {'task': 'sts', 'text': a, 'text_b': b}
      for a, b in zip(dev.first, dev.second)
    ]
    requests.insert(3, {'task': 'weather', 'text': 'the sun walk'})
    (workdir / 'in.jsonl').write_text('\n'.join(map(json.dumps, requests)))
    scripts_test.run(
      self,
      'adapters_serve_bank',
      f'--model={root}/model',
      f'--tasks=sts={workdir}/task_0.safetensors,'
      f'weather={classifier}/task_0.safetensors',
      f'--input={workdir}/in.jsonl',
      f'--output={workdir}/out.jsonl',
      f'--compilation_cache={root}/cache',
    )
    answers = [
      json.loads(line)
      for line in (workdir / 'out.jsonl').read_text().splitlines()
    ]
    self.assertIn(answers.pop(3)['label'], ('rainy', 'sunny'))
    scores = [answer['score'] for answer in answers]
    self.assertAlmostEqual(
      metrics.pearson(scores, dev.labels), rows[0]['valid_pearson'], places=4
    )

    # Removal measures the task's own metric, span by span.
    scripts_test.run(
      self,
      'adapters_ablate',
      f'--run={workdir}',
      f'--compilation_cache={root}/cache',
    )
    removal = json.loads((workdir / 'removal.json').read_text())
    np.testing.assert_allclose(
      removal['pearson_and_spearman'],
      [row['valid_pearson_and_spearman'] for row in rows],
      atol=1e-5,
    )
    self.assertIsNone(removal['majority'])


class SquadTest(absltest.TestCase):
  def flags(self, version):
    root = scripts_test.folder()
    return (
      f'--config={scripts.ROOT}/scripts/configs/adapters/squad.py:{version}',
      *scripts_test.common(),
      '--config.max_len=24',
      '--config.squad.max_question_len=8',
      '--config.squad.max_answer_len=6',
      '--config.learning_rate=1e-2',
      f'--config.data={root}',
    )

  @pytest.mark.slow
  def test_version_1(self):
    root = scripts_test.folder()
    write_squad(root / 'train-v1.1.json', 120)
    write_squad(root / 'dev-v1.1.json', 30)
    workdir = root / 'squad'
    scripts_test.run(
      self,
      'adapters_finetune',
      *self.flags('1.1'),
      '--config.epochs=30',
      '--config.seeds=(0, 1)',
      f'--workdir={workdir}',
    )
    rows = json.loads((workdir / 'results.json').read_text())
    questions = squad.load_squad(root / 'dev-v1.1.json')
    for row in rows:
      # One of two words: who does not read the question has half of them.
      self.assertGreater(row['valid_exact'], 0.8)
      path = workdir / f'answers_{row["seed"]}' / 'predictions.json'
      answers = json.loads(path.read_text())
      scores = squad_scores.squad_metrics(questions, answers)
      self.assertAlmostEqual(scores['f1'] / 100, row['valid_f1'])
      self.assertAlmostEqual(scores['exact'] / 100, row['valid_exact'])
    task = adapters.load_task(workdir / 'task_0.safetensors')
    self.assertSameElements(task, ['encoder', 'qa'])

    done = scripts.run(
      'adapters_serve_bank',
      f'--model={root}/model',
      f'--tasks=squad={workdir}/task_0.safetensors',
    )
    scripts.assert_usage_error(self, done, 'SQuAD1.1', 'marks words')

  @pytest.mark.nightly
  def test_version_2(self):
    root = scripts_test.folder()
    for name, count in (('train-v2.0.json', 60), ('dev-v2.0.json', 20)):
      write_squad(root / name, count)
    workdir = root / 'squad2'
    scripts_test.run(
      self,
      'adapters_finetune',
      *self.flags('2.0'),
      '--config.epochs=2',
      '--config.seeds=(0,)',
      f'--workdir={workdir}',
    )
    answers = workdir / 'answers_0'
    self.assertTrue((answers / 'na_prob.json').exists())
    task = adapters.load_task(workdir / 'task_0.safetensors')
    self.assertSameElements(task, ['encoder', 'qa', 'answerable'])

  @pytest.mark.nightly
  def test_unanswerable_questions_are_of_version_2(self):
    root = scripts_test.folder()
    write_squad(root / 'empty.json', 4, answered=False)
    done = scripts.run(
      'adapters_finetune',
      *self.flags('1.1'),
      '--config.squad.train_file=empty.json',
      f'--workdir={root}/refused',
    )
    scripts.assert_usage_error(self, done, 'SQuAD2.0', 'no answer')


if __name__ == '__main__':
  absltest.main()
