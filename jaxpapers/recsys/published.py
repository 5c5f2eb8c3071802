"""The published numbers, the tuned parameters, and what the study found."""

import functools
import json
import pathlib
from typing import Any, NamedTuple

_FILE = pathlib.Path(__file__).with_name('published.json')


@functools.cache
def _content() -> dict[str, Any]:
  return json.loads(_FILE.read_text('utf-8'))


def tables() -> tuple[str, ...]:
  """Names of the tables of accuracy and of lists that are stored."""
  return tuple(_content()['accuracy'])


def table(name: str) -> dict[str, Any]:
  """A published table.

  Args:
    name: Such as 'table_4', of the appendix of the 2021 extension.

  Returns:
    'model' and 'dataset', 'columns' (such as 'HR@5') and 'rows': method ->
    values, None where the paper has none.

  Raises:
    ValueError: There is no such table.

  Example:
    >>> table('table_4')['rows']['RP3beta']
    [0.8326, 0.7227, 0.9002, 0.7447]
  """
  if name not in _content()['accuracy']:
    raise ValueError(f'name is {name!r}; expected one of {tables()}.')
  return _content()['accuracy'][name]


def tuned(name: str) -> dict[str, dict[str, Any]]:
  """Hyper-parameters of a table, as the appendix prints them.

  Args:
    name: Of the table.

  Returns:
    Method -> parameters of its fit function; empty where none are stored.
  """
  found = _content()['tuned'].get(name, {})
  if isinstance(found, str):
    found = _content()['tuned'][found]
  return {
    method: {
      key: tuple(value) if isinstance(value, list) else value
      for key, value in parameters.items()
    }
    for method, parameters in found.items()
  }


class Paper(NamedTuple):
  """A paper of the study.

  Attributes:
    name: Of the method.
    venue: Conference and year.
    reproducible: By the study's two criteria: code that runs, and data.
    certain: Whether this is from the study itself or from memory.
    finding: What the study found.
    cells: Metrics won against neighbours and graph methods, of how many.
  """

  name: str
  venue: str
  reproducible: bool
  certain: bool
  finding: str
  cells: str = ''


PAPERS: tuple[Paper, ...] = (
  Paper(
    'CMN',
    'SIGIR 2018',
    True,
    True,
    'Neighbours and graph methods win on both dense data sets; on Epinions'
    ' TopPopular beats everything personal. The authors evaluate on test data'
    ' after every epoch.',
    '4 of 12; 0 with TopPopular',
  ),
  Paper(
    'MCRec',
    'KDD 2018',
    True,
    True,
    'NDCG is relative to the hits that were retrieved; each metric reports its'
    ' own best test epoch; two files of meta-paths are swapped.',
    '0 of 3',
  ),
  Paper(
    'CVAE',
    'KDD 2017',
    True,
    True,
    'Content neighbours win at P=10 on citeulike-a; at P=1 every collaborative'
    ' row is the order of ties.',
    '9 of 24',
  ),
  Paper(
    'CDL',
    'KDD 2015',
    True,
    True,
    'As CVAE, which it beats for short lists and P=1. Needs Matlab and C++.',
    '9 of 24',
  ),
  Paper(
    'NeuMF',
    'WWW 2017',
    True,
    True,
    'The released code chooses the number of epochs on test data; chosen on'
    ' validation data, simple methods win on Pinterest and linear ones on'
    ' MovieLens 1M.',
    '6 of 12; 0 with SLIM',
  ),
  Paper(
    'SpectralCF',
    'RecSys 2018',
    True,
    True,
    'The released test part is no random sample of the ratings. On random'
    ' splits of three data sets it is at or below TopPopular.',
    '0',
  ),
  Paper(
    'Mult-VAE',
    'WWW 2018',
    True,
    True,
    'The only clear winner over neighbours and graph methods; SLIM and EASE'
    ' match or beat its NDCG.',
    '12 of 12; 10 with SLIM',
  ),
  *(
    Paper(name, venue, False, False, 'No code that runs, or no data.')
    for name, venue in (
      ('MPCN', 'KDD 2018'),
      ('RKGE', 'RecSys 2018'),
      ('RecGAN', 'RecSys 2018'),
      ('Attentive song features', 'RecSys 2018'),
      ('3D-CNN session recommender', 'RecSys 2017'),
      ('ConvMF', 'RecSys 2016'),
      ('Meta-Prod2Vec', 'RecSys 2016'),
      ('CARA', 'SIGIR 2018'),
      ('ACF', 'SIGIR 2017'),
      ('LRML', 'WWW 2018'),
      ('Multi-view DSSM', 'WWW 2015'),
    )
  ),
)
"""The 18 papers of the study; names of those not reproducible are uncertain."""
