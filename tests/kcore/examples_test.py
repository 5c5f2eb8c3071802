"""Runs the examples in the docstrings of the algorithms."""

import doctest
import importlib
import sys

import jax
import numpy as np
from absl.testing import absltest, parameterized

MODULES = (
  'collapse',
  'coreness',
  'correlation',
  'edges',
  'network',
  'null',
  'null_state',
  'percolation',
  'rewire',
  'score',
)


class ExamplesTest(parameterized.TestCase):
  @parameterized.parameters(*MODULES)
  def test_examples(self, name):
    name = f'jaxpapers.kcore.{name}'
    importlib.import_module(name)
    # Not the attribute: functions have the names of their modules.
    module = sys.modules[name]
    names = dict(vars(module), np=np, jax=jax)
    result = doctest.testmod(module, extraglobs=names)
    self.assertEqual(result.failed, 0)
    self.assertGreater(result.attempted, 1)


if __name__ == '__main__':
  absltest.main()
