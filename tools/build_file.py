"""Writes BUILD from the tree, or checks that it still says what the tree says.

  python tools/build_file.py            rewrite BUILD
  python tools/build_file.py --check    print what is wrong, exit 1 if anything

Every room of jaxpapers/ becomes one py_library, every script and benchmark one
py_binary, every test file one py_test; deps are what the files import, inside
functions too. The check reads BUILD as the subset of Starlark that is also
Python syntax: calls whose arguments are literals or glob().
"""

import ast
import dataclasses
import pathlib
import re
import sys
from collections.abc import Iterable, Mapping

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Import name -> distribution, where lower case alone does not give it.
DISTRIBUTIONS = {
  'PIL': 'pillow',
  'absl': 'absl_py',
  'mpl_toolkits': 'matplotlib',
  'orbax': 'orbax_checkpoint',
  'skfem': 'scikit_fem',
  'skimage': 'scikit_image',
  'sklearn': 'scikit_learn',
  'sksparse': 'scikit_sparse',
  'tensorboardX': 'tensorboardx',
  'yaml': 'pyyaml',
}

# Files at the root that tests of the repository itself read.
ROOT_FILES = (
  '.gitignore',
  'BUILD',
  'CHANGELOG.md',
  'CITATION.cff',
  'CONTRIBUTING.md',
  'LICENSE',
  'MODULE.bazel',
  'Makefile',
  'README.md',
  'pyproject.toml',
  'setup.py',
)

HEADER = '''\
"""Bazel targets of jaxpapers.

Written by tools/build_file.py from the tree: run `make build-file` after
adding a room, script or test, or after changing what one imports.
"""

load("@rules_python//python:defs.bzl", "py_binary", "py_library", "py_test")

package(default_visibility = ["//visibility:public"])
'''


@dataclasses.dataclass(frozen=True)
class Glob:
  """A glob() call: the patterns that it takes in and leaves out."""

  include: tuple[str, ...]
  exclude: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Target:
  """One rule of BUILD: its kind, its name and its other arguments."""

  rule: str
  name: str
  attributes: Mapping[str, object]


def imported_modules(source: str, package: str = '') -> set[str]:
  """Dotted names that a file imports, at any depth.

  Args:
    source: text of the file.
    package: dotted name of the package it is in, for relative imports.

  Returns:
    Full names. `from a import b` gives both `a` and `a.b`, since `b` may be a
    module. `importlib.import_module('a')` counts where the name is a literal.
  """
  names = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ''
      if node.level:
        parents = package.split('.')[: len(package.split('.')) - node.level + 1]
        base = '.'.join([*parents, base]).rstrip('.')
      names.add(base)
      names.update(f'{base}.{alias.name}' for alias in node.names)
    elif isinstance(node, ast.Call) and node.args:
      function = ast.unparse(node.func)
      argument = node.args[0]
      if function in ('importlib.import_module', 'import_module') and (
        isinstance(argument, ast.Constant) and isinstance(argument.value, str)
      ):
        names.add(argument.value)
  return names


def distribution(module: str) -> str:
  """Name of the distribution of a third-party module, as Bazel spells it."""
  top = module.partition('.')[0]
  return DISTRIBUTIONS.get(top, top.lower())


def python_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """All .py files below a folder, sorted; none if there is no such folder."""
  return sorted(folder.rglob('*.py'))


class Tree:
  """What is in a checkout, and which target each import belongs to."""

  def __init__(self, root: pathlib.Path):
    self.root = root
    self.rooms = [
      path.name
      for path in sorted(root.glob('jaxpapers/*'))
      if path.is_dir() and python_files(path)
    ]
    scripts = sorted(root.glob('scripts/*.py'))
    self.scripts = [p for p in scripts if not p.name.startswith('_')]
    self.script_helpers = [
      p for p in scripts if p.name.startswith('_') and p.name != '__init__.py'
    ]
    benchmarks = sorted(root.glob('benchmarks/*.py'))
    self.benchmarks = [p for p in benchmarks if not p.name.startswith('_')]
    self.benchmark_helpers = [p for p in benchmarks if p.name.startswith('_')]
    self.tools = sorted(root.glob('tools/*.py'))
    files = [
      p for p in python_files(root / 'tests') if 'testdata' not in p.parts
    ]
    self.tests = [p for p in files if p.name.endswith('_test.py')]
    self.test_support: dict[str, list[pathlib.Path]] = {}
    for path in files:
      if not path.name.endswith('_test.py'):
        folder = '_'.join(path.relative_to(root).parent.parts)
        self.test_support.setdefault(folder, []).append(path)

  def relative(self, path: pathlib.Path) -> str:
    """Path from the root, with forward slashes."""
    return path.relative_to(self.root).as_posix()

  def deps(self, files: Iterable[pathlib.Path], own: str) -> list[str]:
    """Labels of what files import, without the target they are in."""
    labels = set()
    for path in files:
      parts = path.relative_to(self.root).parent.parts
      source = path.read_text(encoding='utf-8')
      for module in imported_modules(source, '.'.join(parts)):
        labels.add(self._label(module))
    return sorted(labels - {None, f':{own}'}, key=lambda x: (x[0] != ':', x))

  def _label(self, module: str) -> str | None:
    """Label of the target that provides a module; None for Python's own."""
    parts = module.split('.')
    top, rest = parts[0], parts[1:]
    if top in ('scripts', 'jaxpapers_scripts') and rest:
      top, rest = rest[0], []
    if top in {p.stem for p in self.scripts}:
      return f':{top}'
    if top in {p.stem for p in self.script_helpers}:
      return ':scripts_common'
    if top in {p.stem for p in self.benchmark_helpers}:
      return ':benchmarks_common'
    if top in ('', 'scripts', 'jaxpapers_scripts', '__future__'):
      return None
    if top == 'jaxpapers':
      return f':{rest[0]}' if rest and rest[0] in self.rooms else ':jaxpapers'
    if top == 'tests':
      for stop in range(len(parts), 0, -1):
        if '_'.join(parts[:stop]) in self.test_support:
          return ':' + '_'.join(parts[:stop])
      return None
    if top == 'tools':
      return ':tools'
    if top in sys.stdlib_module_names:
      return None
    return f'@pypi//{distribution(top)}'


def expected_targets(root: pathlib.Path = ROOT) -> list[Target]:
  """The targets that BUILD should hold, in the order in which it holds them.

  Args:
    root: folder of the checkout.

  Returns:
    Libraries, binaries, tests, then the file groups that tests read.
  """
  tree = Tree(root)
  targets = [_library('jaxpapers', tree, root.glob('jaxpapers/*.py'))]
  for room in tree.rooms:
    files = python_files(root / 'jaxpapers' / room)
    # A room's modules come and go without a change here; its deps do not.
    sources = Glob((f'jaxpapers/{room}/**/*.py',))
    target = _library(room, tree, files, sources, (':jaxpapers',))
    if any((root / 'jaxpapers' / room).glob('*.json')):
      # What setup.py lists as package_data.
      target.attributes['data'] = Glob((f'jaxpapers/{room}/*.json',))
    targets.append(target)
  if tree.script_helpers:
    targets.append(_library('scripts_common', tree, tree.script_helpers))
  if tree.benchmark_helpers:
    helpers = tree.benchmark_helpers
    targets.append(_library('benchmarks_common', tree, helpers))
  for name, files in tree.test_support.items():
    targets.append(_library(name, tree, files))
  if tree.tools:
    targets.append(_library('tools', tree, tree.tools))

  for path in tree.scripts:
    targets.append(_binary(path.stem, tree, path))
  for path in tree.benchmarks:
    targets.append(_binary(f'benchmarks_{path.stem}', tree, path))
  for path in tree.tests:
    targets.append(_test(tree, path))

  for folder in sorted(root.glob('tests/testdata/*')):
    if folder.is_dir() and any(folder.iterdir()):
      files = Glob((f'tests/testdata/{folder.name}/**',))
      group = {'srcs': files}
      targets.append(Target('filegroup', f'testdata_{folder.name}', group))
  patterns = [name for name in ROOT_FILES if (root / name).exists()]
  patterns += [
    f'{name}/**'
    for name in ('benchmarks', 'docs', 'jaxpapers', 'scripts', 'tests', 'tools')
    if any((root / name).rglob('*.*'))
  ]
  everything = Glob(tuple(sorted(patterns)), ('**/__pycache__/**',))
  targets.append(Target('filegroup', 'tree', {'srcs': everything}))
  return targets


def _library(name, tree, files, sources=None, always=()) -> Target:
  files = sorted(files)
  attributes = {
    'srcs': sources or [tree.relative(path) for path in files],
    'imports': ['.'],
    'deps': sorted(
      {*tree.deps(files, name), *always}, key=lambda x: (x[0] != ':', x)
    ),
  }
  return Target('py_library', name, attributes)


def _binary(name: str, tree: Tree, path: pathlib.Path) -> Target:
  files = [path]
  attributes = {'srcs': [tree.relative(path)], 'main': tree.relative(path)}
  for room in tree.rooms:
    configs = python_files(tree.root / 'scripts' / 'configs' / room)
    if configs and path.stem.startswith(f'{room}_'):
      files += configs
      attributes['data'] = Glob((f'scripts/configs/{room}/**/*.py',))
  attributes['deps'] = tree.deps(files, name)
  return Target('py_binary', name, attributes)


def _test(tree: Tree, path: pathlib.Path) -> Target:
  parts = path.relative_to(tree.root / 'tests').with_suffix('').parts
  name = '_'.join(parts)
  source = path.read_text(encoding='utf-8')
  data = []
  if (tree.root / 'tests' / 'testdata' / parts[0]).is_dir():
    data.append(f':testdata_{parts[0]}')
  # Tests of the repository itself, and those that start scripts by their path.
  if parts[0] == 'foundation' or 'scripts' in source:
    data.append(':tree')
  deps = {*tree.deps([path], name), ':tests'}
  attributes = {
    'timeout': 'long',
    'srcs': [tree.relative(path)],
    'main': tree.relative(path),
    **({'data': data} if data else {}),
    'deps': sorted(deps, key=lambda x: (x[0] != ':', x)),
  }
  return Target('py_test', name, attributes)


def render(targets: Iterable[Target]) -> str:
  """Text of BUILD, formatted as buildifier formats it."""
  blocks = [HEADER]
  for target in targets:
    lines = [f'{target.rule}(', f'    name = "{target.name}",']
    for key, value in target.attributes.items():
      if value:
        lines.append(f'    {key} = {_render_value(value)},')
    blocks.append('\n'.join([*lines, ')']) + '\n')
  return '\n'.join(blocks)


def _render_value(value: object, indent: str = '    ') -> str:
  if isinstance(value, str):
    return f'"{value}"'
  if isinstance(value, Glob):
    if not value.exclude:
      return f'glob({_render_value(list(value.include), indent)})'
    inner = indent + '    '
    include = _render_value(list(value.include), inner)
    exclude = _render_value(list(value.exclude), inner)
    return f'glob(\n{inner}{include},\n{inner}exclude = {exclude},\n{indent})'
  if len(value) == 1:
    return f'["{value[0]}"]'
  items = ''.join(f'{indent}    "{item}",\n' for item in value)
  return f'[\n{items}{indent}]'


def parse(text: str) -> list[Target]:
  """Reads the text of a BUILD file.

  Args:
    text: Starlark in which every statement is a call (or a docstring) and
      every argument a literal or a glob().

  Returns:
    All rules, without load() and package().

  Raises:
    ValueError: for anything outside that subset, with its line.
  """
  targets = []
  for statement in ast.parse(text).body:
    call = getattr(statement, 'value', None)
    if isinstance(statement, ast.Expr) and isinstance(call, ast.Constant):
      continue
    if not (
      isinstance(statement, ast.Expr)
      and isinstance(call, ast.Call)
      and isinstance(call.func, ast.Name)
    ):
      raise ValueError(f'BUILD line {statement.lineno}: expected a rule call.')
    if call.func.id in ('load', 'package'):
      continue
    attributes = {k.arg: _parse_value(k.value) for k in call.keywords}
    name = attributes.pop('name', None)
    if not isinstance(name, str):
      raise ValueError(f'BUILD line {statement.lineno}: the rule has no name.')
    targets.append(Target(call.func.id, name, attributes))
  return targets


def _parse_value(node: ast.expr) -> object:
  if isinstance(node, ast.Call) and ast.unparse(node.func) == 'glob':
    exclude = [k.value for k in node.keywords if k.arg == 'exclude']
    return Glob(
      tuple(ast.literal_eval(node.args[0])),
      tuple(ast.literal_eval(exclude[0])) if exclude else (),
    )
  try:
    return ast.literal_eval(node)
  except ValueError:
    raise ValueError(
      f'BUILD line {node.lineno}: {ast.unparse(node)} is neither a literal nor '
      'a glob().'
    ) from None


def problems(root: pathlib.Path = ROOT) -> list[str]:
  """What is wrong with the BUILD file of a checkout.

  Args:
    root: folder of the checkout.

  Returns:
    One sentence per fault: targets that are missing, unknown or there twice,
    files that do not exist, globs that match nothing, and attributes (deps
    among them) that differ from what the tree gives. Empty if all is well.
  """
  found: dict[str, Target] = {}
  faults = []
  for target in parse((root / 'BUILD').read_text(encoding='utf-8')):
    if target.name in found:
      faults.append(f'{target.name} is there twice.')
    found[target.name] = target
    faults += _missing_files(root, target)
  wanted = {target.name: target for target in expected_targets(root)}
  for name in wanted.keys() - found.keys():
    faults.append(f'{wanted[name].rule} {name} is missing.')
  for name in found.keys() - wanted.keys():
    faults.append(f'{found[name].rule} {name} belongs to nothing in the tree.')
  for name in wanted.keys() & found.keys():
    faults += _differences(wanted[name], found[name])
  return sorted(faults)


def _missing_files(root: pathlib.Path, target: Target) -> list[str]:
  faults = []
  name = target.name
  for key in ('srcs', 'data'):
    value = target.attributes.get(key, [])
    if isinstance(value, Glob):
      for pattern in value.include:
        # pathlib's final ** matches folders only.
        if not any(root.glob(re.sub(r'\*\*$', '**/*', pattern))):
          faults.append(f'{name}: {key} glob {pattern} matches nothing.')
    else:
      for item in value:
        is_label = item.startswith((':', '@', '/'))
        if not is_label and not (root / item).is_file():
          faults.append(f'{name}: {key} names {item}, which is not there.')
  return faults


def _differences(wanted: Target, found: Target) -> list[str]:
  name = wanted.name
  if wanted.rule != found.rule:
    return [f'{name} is a {found.rule}, expected a {wanted.rule}.']
  faults = []
  for key in wanted.attributes.keys() | found.attributes.keys():
    want, have = wanted.attributes.get(key), found.attributes.get(key)
    if not want and not have:
      continue
    if isinstance(want, list) and isinstance(have, list):
      for item in sorted(set(want) - set(have)):
        faults.append(f'{name}: {key} lacks {item}.')
      for item in sorted(set(have) - set(want)):
        faults.append(f'{name}: {key} has {item}, which it does not need.')
    elif want != have:
      faults.append(f'{name}: {key} is {have}, expected {want}.')
  return faults


def main(argv: list[str]) -> int:
  """Command line; returns the exit code."""
  if argv == ['--check']:
    faults = problems()
    for fault in faults:
      print(f'BUILD: {fault}')
    if faults:
      print('Run `make build-file` to write it anew.')
    return 1 if faults else 0
  if argv:
    print(__doc__, file=sys.stderr)
    return 2
  text = render(expected_targets())
  (ROOT / 'BUILD').write_text(text, encoding='utf-8')
  print(f'BUILD: {len(parse(text))} targets')
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
