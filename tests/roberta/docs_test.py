"""The example of docs/roberta.md runs as it stands; its configs exist."""

import contextlib
import io
import re

import pytest
from absl.testing import absltest

from tests.helpers.repository import ROOT


class DocsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.text = (ROOT / 'docs' / 'roberta.md').read_text('utf-8')

  @pytest.mark.slow
  def test_loop(self):
    code = re.search(r'```python\n(import jax.*?)```', self.text, re.DOTALL)[1]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
      exec(compile(code, 'docs/roberta.md', 'exec'), {})  # noqa: S102
    loss, count = map(float, printed.getvalue().split())
    # ln 320 is 5.77; 8 sequences of 64 hide 9 or 10 tokens each.
    self.assertBetween(loss, 5, 6.5)
    self.assertBetween(count, 72, 80)

  def test_what_is_named_exists(self):
    for name in re.findall(r'scripts/[\w/]+\.py|images/\w+\.png', self.text):
      path = ROOT / (f'docs/{name}' if name.startswith('images') else name)
      self.assertTrue(path.is_file(), name)
    for name in re.findall(r'`(pretrain_\w+)[:`]', self.text):
      path = ROOT / 'scripts' / 'configs' / 'roberta' / f'{name}.py'
      if not name.endswith('_test'):
        self.assertTrue(path.is_file(), name)


if __name__ == '__main__':
  absltest.main()
