"""The example of docs/training.md runs as it stands."""

import os
import re
import subprocess
import sys
import tempfile

from absl.testing import absltest

from tests.helpers import scripts
from tests.helpers.repository import ROOT


class DocsTest(absltest.TestCase):
  def test_example(self):
    text = (ROOT / 'docs' / 'training.md').read_text('utf-8')
    code = re.search(r'```python\n(import flax.*?)```', text, re.DOTALL)[1]
    self.assertLess(len([line for line in code.splitlines() if line]), 50)
    with tempfile.TemporaryDirectory() as folder:
      done = subprocess.run(
        [sys.executable, '-c', code],
        env=scripts.environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
      )
      self.assertEqual(done.returncode, 0, done.stderr)
      self.assertIn('metrics.jsonl', os.listdir(os.path.join(folder, 'my_run')))
    accuracy = re.findall(r'0\.\d+', done.stdout.rpartition('[')[2])
    self.assertLen(accuracy, 3)
    self.assertGreater(float(accuracy[-1]), 0.6)


if __name__ == '__main__':
  absltest.main()
