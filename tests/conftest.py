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


@pytest.fixture(scope='module', autouse=True)
def _forget_compiled_programs():
  """Drops the programs of a file's tests when the last of them has run.

  Every compiled program holds some memory mappings, and a process may have
  65 530 of them (vm.max_map_count). One that runs the whole suite would come
  near, and die with a segmentation fault wherever it happens to be.
  """
  yield
  jax.clear_caches()
  gc.collect()
