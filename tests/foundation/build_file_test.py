"""BUILD says what the tree says, and the check that says so can fail."""

import pathlib
import tempfile

from absl.testing import absltest, parameterized

from tests.helpers import repository

ROOT = repository.ROOT
build_file = repository.load_build_file()

# A small checkout with one of everything.
TREE = {
  'jaxpapers/__init__.py': '',
  'jaxpapers/nn/__init__.py': 'import flax.linen',
  'jaxpapers/toy/__init__.py': 'from jaxpapers.toy.model import f',
  'jaxpapers/toy/model.py': (
    'import math\nimport jax\nfrom jaxpapers import nn\n'
    'def f():\n  from PIL import Image\n'
  ),
  'scripts/toy_run.py': 'from absl import app\nimport jaxpapers.toy.model',
  'benchmarks/_turns.py': 'import numpy',
  'benchmarks/toy.py': 'import _turns\nfrom jaxpapers import toy',
  'tests/__init__.py': '',
  'tests/helpers/__init__.py': '',
  'tests/helpers/files.py': 'import numpy as np',
  'tests/toy/model_test.py': (
    'from tests.helpers import files\nimport jaxpapers.toy'
  ),
  'tests/testdata/toy/golden.json': '{}',
}


class RealTreeTest(absltest.TestCase):
  def test_build_is_up_to_date(self):
    faults = build_file.problems(ROOT)
    hint = '\n'.join([*faults, 'Run `make build-file`.'])
    self.assertEmpty(faults, hint)

  def test_every_room_script_and_test_has_a_target(self):
    # Told without the generator, which could overlook the same thing twice.
    targets = build_file.parse((ROOT / 'BUILD').read_text('utf-8'))
    rules = {(target.rule, target.name) for target in targets}
    sources = {
      source
      for target in targets
      if isinstance(target.attributes.get('srcs'), list)
      for source in target.attributes['srcs']
    }
    for init in ROOT.glob('jaxpapers/*/__init__.py'):
      self.assertIn(('py_library', init.parent.name), rules)
    for script in ROOT.glob('scripts/[a-z]*.py'):
      self.assertIn(('py_binary', script.stem), rules)
    for test in ROOT.glob('tests/**/*_test.py'):
      self.assertIn(test.relative_to(ROOT).as_posix(), sources)


class CheckTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.root = pathlib.Path(folder.name)
    for name, text in TREE.items():
      self.write(name, text)
    self.write('BUILD', '')
    text = build_file.render(build_file.expected_targets(self.root))
    self.write('BUILD', text)

  def write(self, name, text):
    path = self.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')

  def targets(self):
    text = (self.root / 'BUILD').read_text('utf-8')
    return {t.name: t for t in build_file.parse(text)}

  def test_a_written_file_has_no_faults(self):
    self.assertEmpty(build_file.problems(self.root))

  @parameterized.parameters(
    ('toy', 'py_library', [':jaxpapers', ':nn', '@pypi//jax', '@pypi//pillow']),
    ('toy_run', 'py_binary', [':jaxpapers', ':toy', '@pypi//absl_py']),
    (
      'benchmarks_toy',
      'py_binary',
      [':benchmarks_common', ':jaxpapers', ':toy'],
    ),
    ('benchmarks_common', 'py_library', ['@pypi//numpy']),
    ('tests_helpers', 'py_library', ['@pypi//numpy']),
    (
      'toy_model_test',
      'py_test',
      [':jaxpapers', ':tests', ':tests_helpers', ':toy'],
    ),
  )
  def test_deps_are_the_imports(self, name, rule, deps):
    target = self.targets()[name]
    self.assertEqual(target.rule, rule)
    self.assertSameElements(
      set(target.attributes['deps']) | {':jaxpapers'}, {*deps, ':jaxpapers'}
    )

  def test_test_data_are_attached(self):
    data = self.targets()['toy_model_test'].attributes['data']
    self.assertEqual(data, [':testdata_toy'])

  @parameterized.parameters(
    ('jaxpapers/new/__init__.py', '', 'py_library new is missing.'),
    ('scripts/new_run.py', '', 'py_binary new_run is missing.'),
    ('tests/toy/new_test.py', '', 'py_test toy_new_test is missing.'),
    ('benchmarks/new.py', '', 'py_binary benchmarks_new is missing.'),
    (
      'jaxpapers/toy/model.py',
      'def f():\n  def g():\n    import scipy.sparse',
      'toy: deps lacks @pypi//scipy.',
    ),
    ('jaxpapers/toy/model.py', '', 'toy: deps has @pypi//jax, which it'),
    (
      'scripts/toy_run.py',
      'from jaxpapers import nn',
      'toy_run: deps lacks :nn.',
    ),
  )
  def test_a_change_of_the_tree_is_noticed(self, path, text, fault):
    self.write(path, text)
    self.assertIn(fault, '\n'.join(build_file.problems(self.root)))

  @parameterized.parameters(
    'scripts/toy_run.py',
    'tests/toy/model_test.py',
    'tests/helpers/files.py',
  )
  def test_a_missing_file_is_noticed(self, path):
    (self.root / path).unlink()
    faults = '\n'.join(build_file.problems(self.root))
    self.assertIn(f'srcs names {path}, which is not there.', faults)

  @parameterized.parameters(
    ('name = "toy"', 'name = "toys"', 'py_library toys belongs to nothing'),
    ('jaxpapers/nn/**', 'jaxpapers/mm/**', 'matches nothing'),
    ('main = "scripts/toy_run.py"', 'main = "x.py"', 'main is x.py'),
    ('name = "nn"', 'name = "toy"', 'toy is there twice.'),
    ('py_test(', 'py_binary(', 'is a py_binary, expected a py_test.'),
  )
  def test_a_change_of_build_is_noticed(self, old, new, fault):
    text = (self.root / 'BUILD').read_text('utf-8')
    self.assertIn(old, text)
    self.write('BUILD', text.replace(old, new))
    self.assertIn(fault, '\n'.join(build_file.problems(self.root)))

  @parameterized.parameters('x = 1', '[f() for f in x]', 'f(name = g())')
  def test_other_starlark_is_refused(self, text):
    with self.assertRaisesRegex(ValueError, 'BUILD line 1'):
      build_file.parse(text)


class ImportsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('import a.b', {'a.b'}),
    ('from a import b as c', {'a', 'a.b'}),
    ('from . import b', {'p.q', 'p.q.b'}),
    ('from ..r import b', {'p.r', 'p.r.b'}),
    ('if x:\n  def f():\n    import a', {'a'}),
    ('importlib.import_module("a.b")', {'a.b'}),
    ('importlib.import_module(name)', set()),
    ('"import a"  # import b', set()),
  )
  def test_imported_modules(self, source, expected):
    found = build_file.imported_modules(source, 'p.q')
    self.assertEqual(found, expected)


if __name__ == '__main__':
  absltest.main()
