"""Fixtures for tests that are written as functions, and memory on GPUs."""

import os

import pytest

from tests.helpers import data

# `make test` runs processes side by side: each would take most of a GPU.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')


@pytest.fixture(scope='session')
def jaxpapers_data():
  """`tests.helpers.data.require`: a path below JAXPAPERS_DATA, or a skip."""
  return data.require
