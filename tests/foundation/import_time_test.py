"""`import jaxpapers` loads nothing heavy."""

import json
import os
import subprocess
import sys

from absl.testing import absltest

from tests.helpers import repository

ROOT = repository.ROOT


def modules_after(statement: str) -> set[str]:
  """Modules that a fresh Python has loaded by a statement, its own left out."""
  code = (
    'import json, sys\n'
    'before = set(sys.modules)\n'
    f'{statement}\n'
    'print(json.dumps(sorted(set(sys.modules) - before)))'
  )
  env = {**os.environ, 'PYTHONPATH': str(ROOT)}
  done = subprocess.run(
    [sys.executable, '-c', code],
    env=env,
    capture_output=True,
    text=True,
    check=True,
  )
  return set(json.loads(done.stdout.splitlines()[-1]))


class ImportTimeTest(absltest.TestCase):
  """Held to a list of modules: 50 ms would depend on the machine's load."""

  def test_package_loads_only_itself(self):
    self.assertEqual(modules_after('import jaxpapers'), {'jaxpapers'})

  def test_command_line_loads_only_the_standard_library(self):
    loaded = modules_after('import jaxpapers.cli')
    tops = {name.partition('.')[0] for name in loaded}
    self.assertEmpty(tops - {'jaxpapers'} - set(sys.stdlib_module_names))

  def test_rooms_load_no_optional_library(self):
    # Seconds of import that only some functions of a room need.
    optional = {
      'grain',
      'jax_md',
      'matplotlib',
      'nlopt',
      'orbax',
      'PIL',
      'skimage',
      'sksparse',
      'tensorboardX',
      'tokenizers',
      'torch',
      'tensorflow',
    }
    for init in sorted(ROOT.glob('jaxpapers/*/__init__.py')):
      room = f'jaxpapers.{init.parent.name}'
      with self.subTest(room):
        loaded = modules_after(f'import {room}')
        self.assertIn(room, loaded)
        self.assertEmpty({n.partition('.')[0] for n in loaded} & optional)


if __name__ == '__main__':
  absltest.main()
