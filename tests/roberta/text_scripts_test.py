"""The programs that make a vocabulary and tokenise text, as users run them."""

import hashlib
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time

from absl.testing import absltest

from jaxpapers.roberta import corpus as corpus_lib
from jaxpapers.roberta import tokenization
from jaxpapers.roberta.bpe import ByteLevelBPE
from tests.helpers import goldens, scripts

_WORDS = 'the fox jumps over lazy dogs and sleeps under a tree'.split()


def _text(lines, tag='text'):
  rng = goldens.rng(f'roberta/text_scripts/{tag}')
  return ''.join(
    ' '.join(rng.choice(_WORDS, 9)) + ('\n\n' if i % 7 == 6 else '\n')
    for i in range(lines)
  )


def _content(folder):
  return {
    path.relative_to(folder).as_posix(): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


class TextScriptsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.text = self.folder / 'a.txt'
    self.text.write_text(_text(70), 'utf-8')
    self.vocabulary = self.folder / 'vocabulary'
    self.out = self.folder / 'tokens'

  def run_script(self, name, *flags, code=0):
    done = scripts.run(name, *flags)
    self.assertEqual(done.returncode, code, done.stderr + done.stdout)
    return done

  def train(self):
    bpe = ByteLevelBPE.train(self.text, 300)
    bpe.save(self.vocabulary)
    return bpe

  def flags(self, **changes):
    flags = {
      'files': self.text,
      'tokenizer': self.vocabulary,
      'output': self.out,
      'num_workers': 0,
      **changes,
    }
    return [f'--{name}={value}' for name, value in flags.items()]

  def test_from_text_to_tokens(self):
    lines = _text(70, 'more').split('\n')
    (self.folder / 'b.jsonl').write_text(
      ''.join(json.dumps({'body': line}) + '\n' for line in lines)
    )
    done = self.run_script(
      'roberta_train_bpe',
      f'--files={self.text},{self.folder / "b.jsonl"}',
      '--text_field=body',
      '--vocab_size=290',
      f'--output={self.vocabulary}',
    )
    self.assertIn('290 tokens in', done.stdout)
    self.assertIn("'The quick brown fox' becomes [T]", done.stdout)
    bpe = ByteLevelBPE.from_directory(self.vocabulary)
    self.assertEqual(bpe.vocab_size, 290)
    done = self.run_script(
      'roberta_tokenize',
      *self.flags(num_workers=2, shard_mb=0.001, text_field='body'),
    )
    corpus = corpus_lib.TokenCorpus(self.out)
    self.assertIn(f'{corpus.num_tokens:,} tokens', done.stdout)
    self.assertIn('10 documents', done.stdout)
    text = [
      '\n'.join(bpe.decode(line) for line in doc) for doc in corpus.documents()
    ]
    self.assertEqual('\n\n'.join(text), self.text.read_text().strip())
    # Again: nothing to do.
    again = self.run_script(
      'roberta_tokenize', *self.flags(shard_mb=0.001, text_field='body')
    )
    self.assertEqual(again.stdout, done.stdout)

  def test_killed(self):
    bpe = self.train()
    self.text.write_text(_text(30_000), 'utf-8')
    flags = self.flags(num_workers=2, shard_mb=0.004)
    process = subprocess.Popen(
      scripts.command('roberta_tokenize', *flags),
      env=scripts.environment(),
      stderr=subprocess.DEVNULL,
      start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while len(list(self.out.glob('shard-*.json'))) < 3:
      self.assertLess(time.monotonic(), deadline)
      self.assertIsNone(process.poll(), 'finished before it was killed')
      time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with self.assertRaisesRegex(FileNotFoundError, 'come to its end'):
      corpus_lib.TokenCorpus(self.out)
    # Its workers notice that it is gone.
    with self.assertRaises(ProcessLookupError):
      while time.monotonic() < deadline:
        os.killpg(process.pid, 0)
        time.sleep(0.05)
    self.run_script('roberta_tokenize', *flags)
    whole = self.folder / 'whole'
    tokenization.tokenize_corpus(
      self.text, bpe, whole, num_workers=0, shard_bytes=4000
    )
    self.assertEqual(_content(self.out), _content(whole))

  def test_few_merges(self):
    self.text.write_text('ab\n')
    done = self.run_script(
      'roberta_train_bpe',
      f'--files={self.text}',
      '--vocab_size=400',
      f'--output={self.vocabulary}',
    )
    self.assertIn('Fewer than --vocab_size=400', done.stderr)

  def test_misuse(self):
    bpe = self.train()
    bad = self.folder / 'bad.jsonl'
    bad.write_text('{"text": "a"}\n{"t": 3}\n')
    for name, flags, words in (
      ('roberta_train_bpe', [], ['--files is missing']),
      (
        'roberta_train_bpe',
        [f'--files={self.text}', f'--output={self.vocabulary}'],
        ['--output', '--overwrite'],
      ),
      (
        'roberta_tokenize',
        self.flags(tokenizer=self.folder),
        ['--tokenizer', 'vocab.json'],
      ),
      (
        'roberta_tokenize',
        self.flags(files=bad),
        ['--files', 'bad.jsonl, line 2'],
      ),
    ):
      done = scripts.run(name, *flags)
      scripts.assert_usage_error(self, done, *words)
    self.assertFalse((self.out / 'index.json').exists())
    tokenization.tokenize_corpus(self.text, bpe, self.out, num_workers=0)
    self.text.write_text('another text\n')
    done = scripts.run('roberta_tokenize', *self.flags())
    scripts.assert_usage_error(self, done, '--output', 'overwrite')
    self.run_script('roberta_tokenize', *self.flags(), '--overwrite')
    self.assertEqual(corpus_lib.TokenCorpus(self.out).num_lines, 1)


if __name__ == '__main__':
  absltest.main()
