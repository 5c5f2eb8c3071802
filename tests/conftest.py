"""Fixtures for tests that are written as functions."""

import pytest

from tests.helpers import data


@pytest.fixture(scope='session')
def jaxpapers_data():
  """`tests.helpers.data.require`: a path below JAXPAPERS_DATA, or a skip."""
  return data.require
