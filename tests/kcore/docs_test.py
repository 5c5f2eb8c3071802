"""Runs the example of docs/kcore.md."""

import re

from absl.testing import absltest

from tests.helpers import repository


class DocsTest(absltest.TestCase):
  def test_example_of_the_library(self):
    text = (repository.ROOT / 'docs' / 'kcore.md').read_text('utf-8')
    (code,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    names = {}
    exec(compile(code, 'docs/kcore.md', 'exec'), names)
    self.assertEqual(int(names['core'].max()), 95)
    # At twice the critical coupling the model prunes to the 48-core.
    self.assertGreater(int(names['active'].sum()), 111)
    self.assertGreater(float(names['gradient'].J), 0)
    self.assertEqual(names['gradient'].adj.shape, (610, 610))

  def test_pictures_are_there(self):
    text = (repository.ROOT / 'docs' / 'kcore.md').read_text('utf-8')
    pictures = re.findall(r'\]\((images/[^)]+)\)', text)
    self.assertNotEmpty(pictures)
    for picture in pictures:
      self.assertTrue((repository.ROOT / 'docs' / picture).is_file(), picture)


if __name__ == '__main__':
  absltest.main()
