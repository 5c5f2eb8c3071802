"""The command `jaxpapers`."""

import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest, parameterized

from jaxpapers import __version__, cli
from tests.helpers import repository

ROOT = repository.ROOT

SCRIPT = '''"""Does a toy thing.

More about it.
"""
import sys
from absl import app, flags
import _toy_helper

SIZE = flags.DEFINE_integer('size', 1, 'How large.')


def main(argv):
  del argv
  print('size', SIZE.value, _toy_helper.VALUE, __name__)
  sys.exit(SIZE.value)


if __name__ == '__main__':
  app.run(main)
'''


class CommandTest(parameterized.TestCase):
  """Runs the command on a copy of the package with scripts of the test."""

  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.root = pathlib.Path(folder.name)
    (self.root / 'jaxpapers').mkdir()
    for name in ('__init__.py', 'cli.py'):
      text = (ROOT / 'jaxpapers' / name).read_text('utf-8')
      (self.root / 'jaxpapers' / name).write_text(text, encoding='utf-8')

  def make_scripts(self, folder):
    scripts = self.root / folder
    scripts.mkdir()
    (scripts / '__init__.py').write_text('')
    (scripts / '_toy_helper.py').write_text('VALUE = 42\n')
    (scripts / 'structopt_toy.py').write_text(SCRIPT)
    (scripts / 'product_keys_toy.py').write_text('"""Second."""\n')
    (scripts / 'sundry.py').write_text('x = 1\n')

  def run_command(self, *argv):
    env = {**os.environ, 'PYTHONPATH': str(self.root)}
    return subprocess.run(
      [sys.executable, '-m', 'jaxpapers.cli', *argv],
      env=env,
      cwd=self.root,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      check=False,
    )

  @parameterized.parameters('scripts', 'jaxpapers_scripts')
  def test_lists_scripts_by_paper(self, folder):
    self.make_scripts(folder)
    done = self.run_command()
    self.assertEqual((done.returncode, done.stderr), (0, ''))
    listing = done.stdout.partition('\n\n')[2].splitlines()
    self.assertEqual(
      [line.split() for line in listing if line],
      [
        cli.PAPERS['product_keys'].split(),
        ['product_keys_toy', 'Second.'],
        cli.PAPERS['structopt'].split(),
        ['structopt_toy', 'Does', 'a', 'toy', 'thing.'],
        ['Other'],
        ['sundry'],
      ],
    )

  @parameterized.parameters('scripts', 'jaxpapers_scripts')
  def test_runs_a_script(self, folder):
    self.make_scripts(folder)
    done = self.run_command('structopt_toy', '--size=7')
    self.assertEqual(done.stdout, 'size 7 42 __main__\n', done.stderr)
    self.assertEqual(done.returncode, 7)

  def test_script_help_shows_its_flags(self):
    self.make_scripts('scripts')
    done = self.run_command('structopt_toy', '--help')
    self.assertIn('Does a toy thing.', done.stdout)
    self.assertIn('--size', done.stdout)
    self.assertEqual(done.stderr, '')

  def test_wrong_flag_of_a_script(self):
    self.make_scripts('scripts')
    done = self.run_command('structopt_toy', '--sise=7')
    self.assertNotEqual(done.returncode, 0)
    self.assertIn("Unknown command line flag 'sise'", done.stderr)
    self.assertNotIn('Traceback', done.stderr)

  @parameterized.parameters(
    ('structop_toy', "Did you mean 'structopt_toy'? "),
    ('_toy_helper', ''),
    ('__init__', ''),
    ('../structopt_toy', "Did you mean 'structopt_toy'? "),
    ('zzzzzzzz', ''),
  )
  def test_unknown_name(self, name, hint):
    self.make_scripts('scripts')
    done = self.run_command(name)
    self.assertEqual(done.returncode, 2)
    self.assertStartsWith(
      done.stderr, f'jaxpapers: there is no script {name!r}. {hint}'
    )
    self.assertLen(done.stderr.splitlines(), 1)

  def test_version_and_help(self):
    self.make_scripts('scripts')
    self.assertEqual(
      self.run_command('--version').stdout, f'jaxpapers {__version__}\n'
    )
    self.assertStartsWith(self.run_command('--help').stdout, 'usage: jaxpapers')

  def test_no_scripts_folder(self):
    done = self.run_command()
    self.assertEqual(done.returncode, 1)
    self.assertStartsWith(done.stderr, 'jaxpapers: The scripts are missing')

  def test_broken_script_does_not_break_the_list(self):
    self.make_scripts('scripts')
    (self.root / 'scripts' / 'kcore_broken.py').write_text('def (')
    self.assertEqual(self.run_command().returncode, 0)


class NamesTest(parameterized.TestCase):
  @parameterized.parameters(
    ('structopt_optimize', 'structopt'),
    ('product_keys_train', 'product_keys'),
    ('structoptimize', None),
  )
  def test_paper_of(self, script, paper):
    self.assertEqual(cli.paper_of(script), paper)

  def test_scripts_of_this_checkout_are_described(self):
    shared = {'compile_for_tpu'}  # Serves the scripts of all papers.
    for name, line in cli.list_scripts(ROOT / 'scripts').items():
      if name not in shared:
        self.assertIsNotNone(cli.paper_of(name), f'{name} names no paper')
      self.assertNotEmpty(line, f'{name} has no docstring')


if __name__ == '__main__':
  absltest.main()
