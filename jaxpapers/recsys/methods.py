"""Methods by the names of the paper's tables, with their parameters' ranges.

A method joins with `register`: scripts then fit, tune and reproduce it.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxpapers.recsys import (
  factors,
  factors_sgd,
  graph,
  implicit_als,
  linear,
  models,
  neighbours,
  slim,
  slim_sampled,
)
from jaxpapers.recsys.data import Interactions


@dataclasses.dataclass(frozen=True)
class Range:
  """Values of a parameter.

  Attributes:
    kind: 'int', 'float' or 'choice'.
    low: Smallest.
    high: Largest.
    log: Whether to draw its logarithm uniformly.
    values: Of a choice.
  """

  kind: str
  low: float = 0.0
  high: float = 1.0
  log: bool = False
  values: tuple = ()


@dataclasses.dataclass(frozen=True)
class Method:
  """A recommender.

  Attributes:
    name: As in the paper's tables.
    fit: `fit(train, **parameters) -> model`. Gets `features` if
      `needs_features`, `seed` if `random`, `monitor` if `iterative`.
    space: Parameter -> range of the paper's search.
    fixed: Parameters that are not searched.
    needs_features: Whether it takes features of items.
    random: Whether it takes a seed.
    iterative: Whether it takes a monitor; `epochs` then comes from early
      stopping.
    family: 'baseline' or 'neural'.
    scores_new_users: Whether a model scores users whom training has not seen,
      by their known items: needed where users are held out.
    keeps_neighbours: Whether its fit takes `ties`: which of equal neighbours
      it keeps.
  """

  name: str
  fit: Callable[..., Any]
  space: Mapping[str, Range] = dataclasses.field(default_factory=dict)
  fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  needs_features: bool = False
  random: bool = False
  iterative: bool = False
  family: str = 'baseline'
  scores_new_users: bool = True
  keeps_neighbours: bool = False


METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
  """Adds a method.

  Raises:
    ValueError: The name is taken.
  """
  if method.name in METHODS:
    raise ValueError(f'there is a method {method.name!r} already.')
  METHODS[method.name] = method
  return method


def find(name: str) -> Method:
  """A method by name, whatever its case and punctuation.

  Raises:
    ValueError: There is none; the message names the nearest.

  Example:
    >>> find('item_knn_cf_cosine').name
    'ItemKNN CF cosine'
  """
  plain = {_plain(known): known for known in METHODS}
  if _plain(name) in plain:
    return METHODS[plain[_plain(name)]]
  near = difflib.get_close_matches(_plain(name), plain, 3, 0.4)
  hint = ', '.join(plain[n] for n in near) or ', '.join(METHODS)
  raise ValueError(f'there is no method {name!r}. Did you mean: {hint}?')


def _plain(name):
  return re.sub('[^a-z0-9]', '', name.lower())


def fit(
  name: str,
  train: Interactions,
  parameters: Mapping[str, Any] | None = None,
  *,
  features: Any = None,
  seed: int = 0,
  monitor: Any = None,
) -> Any:
  """Fits a method by name.

  Args:
    name: Of the method.
    train: Interactions.
    parameters: Of its fit function.
    features: Items by features, for content and hybrid methods.
    seed: For random methods.
    monitor: For iterative methods, such as `EarlyStopping`.

  Returns:
    A model; with a monitor that has a `result`, the best one.

  Raises:
    ValueError: The method or a parameter is unknown, or features are missing.
  """
  method = find(name)
  given = {**method.fixed, **(parameters or {})}
  if method.needs_features:
    if features is None:
      raise ValueError(
        f'{method.name} needs features of the items, and there are none.'
      )
    given['features'] = features
  if method.random:
    given.setdefault('seed', seed)
  if method.iterative and monitor is not None:
    given['monitor'] = monitor
  try:
    model = method.fit(train, **given)
  except TypeError as error:
    if 'unexpected keyword argument' in str(error):
      wrong = str(error).rpartition('argument ')[2].split('.')[0]
      raise ValueError(
        f'{method.name} has no parameter {wrong}; it has'
        f' {", ".join({**method.space, **method.fixed}) or "none"}.'
      ) from error
    raise
  if monitor is not None and method.iterative and hasattr(monitor, 'result'):
    return monitor.result(model)
  return model


def _integer(low, high, log=False):
  return Range('int', low, high, log)


def _uniform(low, high):
  return Range('float', low, high)


def _log(low, high):
  return Range('float', low, high, True)


def _choice(*values):
  return Range('choice', values=values)


_TOP_K = _integer(5, 1000)
_FLAG = _choice(True, False)
_REG = _log(1e-5, 1e-2)
_BATCH = _choice(*(2**i for i in range(11)))
_MODE = _choice('sgd', 'adagrad', 'adam')


def _knn_space(similarity):
  space = {'top_k': _TOP_K, 'shrink': _integer(0, 1000)}
  if similarity in ('cosine', 'jaccard', 'dice'):
    space['normalize'] = _FLAG
  if similarity in ('cosine', 'asymmetric'):
    space['weighting'] = _choice('none', 'TF-IDF', 'BM25')
  if similarity == 'asymmetric':
    space['alpha'] = _uniform(0, 2)
  if similarity == 'tversky':
    space |= {'tversky_alpha': _uniform(0, 2), 'tversky_beta': _uniform(0, 2)}
  return space


def _knn(function):
  def fit_knn(train, tversky_alpha=1.0, tversky_beta=1.0, **parameters):
    parameters.setdefault('tversky', (tversky_alpha, tversky_beta))
    return function(train, **parameters)

  return fit_knn


def _register_all():
  register(Method('Random', models.random_scores, random=True))
  register(Method('TopPopular', models.top_popular))
  register(Method('GlobalEffects', models.global_effects))
  for kind, function, features in (
    ('UserKNN CF', neighbours.user_knn, False),
    ('ItemKNN CF', neighbours.item_knn, False),
    ('ItemKNN CBF', neighbours.content_knn, True),
    ('ItemKNN CFCBF', neighbours.hybrid_knn, True),
  ):
    for similarity in ('cosine', 'dice', 'jaccard', 'asymmetric', 'tversky'):
      space = _knn_space(similarity)
      if kind == 'ItemKNN CFCBF':
        space['feature_weight'] = _log(1e-2, 1e2)
      register(
        Method(
          f'{kind} {similarity}',
          _knn(function),
          space,
          {'similarity': similarity},
          needs_features=features,
          scores_new_users=kind != 'UserKNN CF',
          keeps_neighbours=True,
        )
      )
  walk = {'top_k': _TOP_K, 'alpha': _uniform(0, 2), 'normalize': _FLAG}
  for name, function, more in (
    ('P3alpha', graph.p3_alpha, {}),
    ('RP3beta', graph.rp3_beta, {'beta': _uniform(0, 2)}),
  ):
    register(Method(name, function, {**walk, **more}, keeps_neighbours=True))
  register(Method('EASE_R', linear.ease, {'l2': _log(1, 1e7)}))
  register(
    Method(
      'SLIM BPR',
      slim_sampled.slim_bpr,
      {
        'top_k': _TOP_K,
        'symmetric': _FLAG,
        'sgd_mode': _MODE,
        'lambda_i': _REG,
        'lambda_j': _REG,
        'learning_rate': _log(1e-4, 1e-1),
      },
      {'epochs': 1500},
      random=True,
      iterative=True,
    )
  )
  register(
    Method(
      'SLIM ElasticNet',
      slim.slim_elastic_net,
      {
        'top_k': _TOP_K,
        'l1_ratio': _log(1e-5, 1),
        'alpha': _uniform(1e-3, 1),
      },
      {'tol': 1e-4},
    )
  )
  register(
    Method(
      'MF BPR',
      factors_sgd.bpr_mf,
      {
        'factors': _integer(1, 200),
        'sgd_mode': _MODE,
        'batch_size': _BATCH,
        'positive_reg': _REG,
        'negative_reg': _REG,
        'learning_rate': _log(1e-4, 1e-1),
      },
      {'epochs': 1500},
      random=True,
      iterative=True,
      scores_new_users=False,
    )
  )
  funk = {
    'factors': _integer(1, 200),
    'use_bias': _FLAG,
    'sgd_mode': _MODE,
    'batch_size': _BATCH,
    'item_reg': _REG,
    'user_reg': _REG,
    'learning_rate': _log(1e-4, 1e-1),
    'negative_quota': _uniform(0, 0.5),
  }
  for name, function in (
    ('MF FunkSVD', factors_sgd.funk_svd),
    ('AsySVD', factors_sgd.asy_svd),
  ):
    space = dict(funk)
    if name == 'AsySVD':
      del space['batch_size']
    register(
      Method(
        name,
        function,
        space,
        {'epochs': 500},
        random=True,
        iterative=True,
        scores_new_users=False,
      )
    )
  register(
    Method(
      'PureSVD',
      factors.pure_svd,
      {'factors': _integer(1, 350)},
      random=True,
      scores_new_users=False,
    )
  )
  register(
    Method(
      'NMF',
      _fit_nmf,
      {
        'factors': _integer(1, 350),
        'solver': _choice('coordinate', 'multiplicative'),
        'init': _choice('random', 'nndsvda'),
        'loss': _choice('frobenius', 'kullback-leibler'),
      },
      random=True,
      scores_new_users=False,
    )
  )
  register(
    Method(
      'iALS',
      _fit_ials,
      {
        'factors': _integer(1, 200),
        'scaling': _choice('linear', 'log'),
        'alpha': _log(1e-3, 50),
        'epsilon': _log(1e-3, 10),
        'reg': _REG,
      },
      {'epochs': 500},
      random=True,
      iterative=True,
      scores_new_users=False,
    )
  )


def _fit_ials(train, seed=0, **parameters):
  return implicit_als.ials(seed, train, **parameters)


def _fit_nmf(train, *, solver='multiplicative', loss='frobenius', **more):
  """Coordinate descent has one loss; a search draws both all the same."""
  if solver == 'coordinate':
    loss = 'frobenius'
  return factors.nmf(train, solver=solver, loss=loss, **more)


_register_all()
