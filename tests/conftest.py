"""Fixtures for tests that are written as functions, and memory limits."""

import gc
import os

import jax
import pytest

from tests.helpers import data

# `make test` runs processes side by side: each would take most of a GPU.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')


@pytest.fixture(scope='session')
def jaxpapers_data():
  """`tests.helpers.data.require`: a path below JAXPAPERS_DATA, or a skip."""
  return data.require


# A process may have 65 530 mappings (vm.max_map_count). The largest file of
# tests makes some 27 000.
_MANY_MAPPINGS = 20_000


def _num_mappings() -> int:
  """Memory mappings of this process; 0 where the system does not tell."""
  try:
    with open('/proc/self/maps', 'rb') as file:
      return sum(1 for _ in file)
  except OSError:
    return 0


@pytest.fixture(scope='module', autouse=True)
def _forget_compiled_programs():
  """Drops compiled programs between files before there are too many.

  Each holds some memory mappings. A process that runs the whole suite would
  come to have more than it may, and die with a segmentation fault wherever it
  happens to be. Dropping them after every file costs time: files share the
  small programs of operations that run one by one.
  """
  yield
  if _num_mappings() > _MANY_MAPPINGS:
    jax.clear_caches()
    gc.collect()
