"""The house rules that a program can check."""

import ast
import re
import sys

from absl.testing import absltest

from jaxpapers import __version__, cli
from tests.helpers import repository

ROOT = repository.ROOT
build_file = repository.load_build_file()
SHARED_ROOMS = ('data', 'nn', 'training', 'weights')
MAX_LINES = 500


def sources(*folders):
  """Path from the root -> text of every Python file in these folders."""
  return {
    path.relative_to(ROOT).as_posix(): path.read_text('utf-8')
    for folder in folders
    for path in sorted((ROOT / folder).rglob('*.py'))
  }


def setup_constants():
  """The literal lists of requirements in setup.py, without running it."""
  constants = {}
  for node in ast.parse((ROOT / 'setup.py').read_text('utf-8')).body:
    if isinstance(node, ast.Assign):
      try:
        constants[node.targets[0].id] = ast.literal_eval(node.value)
      except ValueError:
        pass  # Put together from the others.
  return constants


def distributions(requirements):
  """Names of requirements as Bazel spells them, without extras, versions."""
  names = {re.match(r'[\w.-]+', line).group() for line in requirements}
  return {re.sub('[-.]', '_', name).lower() for name in names}


def top_level(source):
  """The part of a file that runs when it is imported."""
  statements = [
    node
    for node in ast.parse(source).body
    if isinstance(node, (ast.Import, ast.ImportFrom))
  ]
  return '\n'.join(map(ast.unparse, statements))


def third_party(source):
  """Distributions that a file imports from outside."""
  return {
    build_file.distribution(name)
    for name in build_file.imported_modules(source, 'jaxpapers')
    if name.partition('.')[0] not in LOCAL | sys.stdlib_module_names
  }


LOCAL = {'', 'jaxpapers', 'jaxpapers_scripts', 'scripts', 'tests', 'tools'} | {
  path.stem for path in ROOT.glob('scripts/*.py')
}
# Comes with jax.
ALWAYS = {'jaxlib', 'setuptools'}


class RoomsTest(absltest.TestCase):
  def test_each_room_is_a_package(self):
    for folder in ROOT.glob('jaxpapers/*'):
      if any(folder.glob('*.py')):
        self.assertTrue((folder / '__init__.py').is_file(), folder.name)

  def test_no_paper_imports_another(self):
    for path, source in sources('jaxpapers').items():
      own = path.split('/')[1]
      for name in build_file.imported_modules(source, 'jaxpapers'):
        parts = name.split('.')
        if parts[0] != 'jaxpapers' or len(parts) < 2 or own == 'cli.py':
          continue
        allowed = SHARED_ROOMS if own in SHARED_ROOMS else (own, *SHARED_ROOMS)
        self.assertFalse(
          parts[1] in cli.PAPERS and parts[1] not in allowed,
          f'{path} imports {name}',
        )

  def test_files_hold_one_idea(self):
    for path, source in sources('jaxpapers', 'scripts', 'tests').items():
      lines = len(source.splitlines())
      self.assertLessEqual(lines, MAX_LINES, f'{path} has {lines} lines')

  def test_tests_run_as_programs(self):
    # Bazel runs the file itself: without this line nothing would be tested.
    for path, source in sources('tests').items():
      if path.endswith('_test.py'):
        self.assertIn('absltest.main()', source, path)

  def test_slow_marks_take_effect(self):
    # absl's parameterized makes new functions and drops a mark put on top.
    for path, source in sources('tests').items():
      for node in ast.walk(ast.parse(source)):
        for decorator in getattr(node, 'decorator_list', ())[:-1]:
          self.assertNotIn(
            ast.unparse(decorator),
            ('pytest.mark.slow', 'pytest.mark.nightly'),
            f'{path}: {node.name}: put the mark below the other decorators',
          )

  def test_no_paths_of_one_machine(self):
    pattern = re.compile(r"""['"(\s](/home/|/root/|/tmp/|/Users/)""")
    for path, source in sources('jaxpapers', 'scripts', 'benchmarks').items():
      self.assertIsNone(pattern.search(source), path)


class RequirementsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    constants = setup_constants()
    self.core = distributions(constants['INSTALL_REQUIRES']) | ALWAYS
    self.papers = constants['PAPER_EXTRAS']
    self.tools = constants['TOOL_EXTRAS']

  def test_what_the_core_imports_is_installed(self):
    for path, source in sources('jaxpapers').items():
      missing = third_party(top_level(source)) - self.core
      self.assertEmpty(missing, f'{path}: import in the function that needs it')

  def test_what_scripts_import_is_installed(self):
    # So that --help works whatever extras there are.
    for path, source in sources('scripts').items():
      missing = third_party(top_level(source)) - self.core
      self.assertEmpty(missing, f'{path}: import in the function that needs it')

  def test_what_a_paper_imports_is_in_its_extra(self):
    host_solvers = {'sksparse': 'scikit_sparse', 'nlopt': 'nlopt'}
    bench_only = set(host_solvers.values())
    for path, source in sources('jaxpapers').items():
      room = path.split('/')[1]
      if room in self.papers:
        extra = distributions(self.papers[room])
        missing = third_party(source) - self.core - extra - bench_only
        self.assertEmpty(missing, f'{path}: add it to the extra {room}')

  def test_what_tests_import_is_in_the_test_extra(self):
    test = distributions(self.tools['test']) | self.core
    for path, source in sources('tests').items():
      found = third_party(source) - {'scikit_sparse'}
      self.assertEmpty(found - test, f'{path}: add it to the extra test')

  def test_one_extra_per_paper(self):
    self.assertSameElements(self.papers, cli.PAPERS)

  def test_test_extra_is_light(self):
    heavy = {'torch', 'tensorflow', 'transformers'}
    self.assertEmpty(distributions(self.tools['test']) & heavy)

  def test_locked_versions_cover_the_requirements(self):
    lines = (ROOT / 'requirements_lock.txt').read_text('utf-8').splitlines()
    locked = distributions(line for line in lines if line)
    wanted = self.core - ALWAYS | distributions(self.tools['test'])
    for extra in self.papers.values():
      wanted |= distributions(extra)
    self.assertEmpty(wanted - locked, 'run `make lock`')

  def test_version_is_the_same_everywhere(self):
    citation = (ROOT / 'CITATION.cff').read_text('utf-8')
    module = (ROOT / 'MODULE.bazel').read_text('utf-8')
    self.assertIn(f'\nversion: {__version__}\n', citation)
    self.assertIn(f'version = "{__version__}"', module)


if __name__ == '__main__':
  absltest.main()
