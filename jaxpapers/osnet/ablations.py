"""Networks of the ablations of the paper, and two controls."""

from typing import Any


def variants() -> dict[str, dict[str, Any]]:
  """Ablations of the paper as changes of `model.options`.

  Returns:
    Name -> options. 'T4' is the network itself; 'equal' (four streams of one
    scale) and 'single' (one deep stream) are controls that the paper lacks.

  Example:
    >>> variants()['add']
    {'aggregation': 'add'}
  """
  return {
    'T4': {},
    'T1': {'streams': (1,)},
    'T2': {'streams': (1, 2)},
    'T3': {'streams': (1, 2, 3)},
    'full-conv': {'lite': False},
    'same-depth': {'streams': (4, 4, 4, 4)},
    'concat': {'aggregation': 'concat'},
    'add': {'aggregation': 'add'},
    'separate': {'aggregation': 'separate'},
    'streamwise': {'aggregation': 'streamwise'},
    'fixed': {'aggregation': 'fixed'},
    'equal': {'streams': (1, 1, 1, 1)},
    'single': {'streams': (4,)},
  }
