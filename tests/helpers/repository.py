"""Where the checkout is, and its tool that writes BUILD."""

import importlib.util
import pathlib
import types

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def load_build_file() -> types.ModuleType:
  """The module tools/build_file.py.

  Loaded by its path, since other distributions also install a `tools`.
  """
  path = ROOT / 'tools' / 'build_file.py'
  spec = importlib.util.spec_from_file_location('build_file', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
