"""Is one method better than another, user by user?"""

import functools
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.recsys import optional


class PairedTests(NamedTuple):
  """Tests of the hypothesis that two methods are equally good.

  Attributes:
    difference: Mean of a - b.
    interval: Its 95 % bootstrap interval.
    t: Statistic and two-sided p of the paired t-test.
    wilcoxon: Statistic and two-sided p of Wilcoxon's signed-rank test.
    bootstrap: Two-sided p of the bootstrap.
    normal: Whether both look normal to three tests, as in the study's code.
    chosen: 't' if they do, else 'wilcoxon'; 'equal' if a is b.
    p: p of the chosen test; NaN for equal vectors.
    corrected: The same, corrected for all comparisons that were made together.
  """

  difference: float
  interval: tuple[float, float]
  t: tuple[float, float]
  wilcoxon: tuple[float, float]
  bootstrap: float
  normal: bool
  chosen: str
  p: float
  corrected: float = float('nan')


def paired_tests(
  a: Any,
  b: Any,
  correction: str = 'holm',
  *,
  key: Any = None,
  resamples: int = 10_000,
  normal_at: float = 0.05,
) -> Any:
  """Compares methods by their metric of each user.

  Args:
    a: Metric of each user, `[u]`, of one method; or a mapping from names to
      such vectors, for many methods.
    b: The same of the one that they are compared with, for the same users.
    correction: For many methods; see `correct`. One p needs none.
    key: JAX key of the bootstrap; `jax.random.key(0)` by default.
    resamples: Of the bootstrap.
    normal_at: Smallest p of the normality tests that passes.

  Returns:
    `PairedTests`: all tests, and the one that the study's code would choose.
    For a mapping, name -> `PairedTests`, their p corrected together.

  Raises:
    ValueError: Shapes differ, there are fewer than three users, or NaNs.

  Example:
    >>> a = np.array([0.1, 0.4, 0.35, 0.8, 0.3])
    >>> paired_tests(a, a - 0.1 * a).difference.__round__(3)
    0.039
  """
  options = {'key': key, 'resamples': resamples, 'normal_at': normal_at}
  if not isinstance(a, Mapping):
    return _paired(a, b, **options)
  found = {name: _paired(vector, b, **options) for name, vector in a.items()}
  adjusted = correct([test.p for test in found.values()], correction)
  return {
    name: test._replace(corrected=float(p))
    for (name, test), p in zip(found.items(), adjusted, strict=True)
  }


def _paired(a, b, key, resamples, normal_at):
  """One method against one."""
  stats = optional.load('scipy.stats')
  a, b = _vector(a, 'a'), _vector(b, 'b')
  if a.shape != b.shape:
    raise ValueError(
      f'a has {len(a)} users, b {len(b)}; expected the same users in both.'
    )
  if len(a) < 3:
    raise ValueError(f'a has {len(a)} users; expected three or more.')
  nan = float('nan')
  if (a == b).all():
    return PairedTests(
      0.0, (0.0, 0.0), (nan, nan), (nan, nan), nan, False, 'equal', nan
    )
  normal = all(p > normal_at for x in (a, b) for p in normality(x).values())
  t = stats.ttest_rel(a, b)
  wilcoxon = stats.wilcoxon(a, b)
  low, high, p = _bootstrap(a - b, key, resamples)
  chosen = 't' if normal else 'wilcoxon'
  tests = {
    't': (float(t.statistic), float(t.pvalue)),
    'wilcoxon': (float(wilcoxon.statistic), float(wilcoxon.pvalue)),
  }
  return PairedTests(
    float((a - b).mean()),
    (low, high),
    **tests,
    bootstrap=p,
    normal=normal,
    chosen=chosen,
    p=tests[chosen][1],
    corrected=tests[chosen][1],
  )


def normality(x: np.ndarray) -> dict[str, float]:
  """P of three tests whether numbers are normal: the study's."""
  stats = optional.load('scipy.stats')
  if x.std() == 0:
    return {'shapiro': 0.0}
  with warnings.catch_warnings():
    # Of more than 5000 users its p is not exact: it is far from passing then.
    warnings.simplefilter('ignore', UserWarning)
    result = {'shapiro': float(stats.shapiro(x).pvalue)}
  if len(x) >= 8:
    result['dagostino'] = float(stats.normaltest(x).pvalue)
  result['kolmogorov'] = float(
    stats.kstest(x, 'norm', args=(x.mean(), x.std())).pvalue
  )
  return result


def _vector(x, name):
  x = np.asarray(x, np.float64)
  if x.ndim != 1:
    raise ValueError(f'{name} has shape {x.shape}; expected one axis, users.')
  if not np.isfinite(x).all():
    raise ValueError(f'{name} holds NaN or infinite values.')
  return x


def _bootstrap(difference, key, resamples):
  means = _means(difference, key, resamples)
  low, high = np.percentile(means, (2.5, 97.5))
  # Both tails; at least one resample counts, so that p is never 0.
  tail = min((means <= 0).sum(), (means >= 0).sum())
  return (
    float(low),
    float(high),
    float(min(1, 2 * (tail + 1) / (resamples + 1))),
  )


def _means(values, key, resamples):
  """Means of resampled users."""
  if resamples < 1:
    raise ValueError(f'resamples is {resamples}; expected 1 or more.')
  key = jax.random.key(0) if key is None else key
  # Indices and values of a block take 256 MB at most.
  block = int(np.clip((1 << 24) // max(len(values), 1), 1, 256))
  means = []
  with jax.enable_x64(True):
    device = jnp.asarray(values)
    for first in range(0, resamples, block):
      part = jax.random.fold_in(key, first)
      means.append(np.asarray(_resample(device, part, block)))
  return np.concatenate(means)[:resamples]


@functools.partial(jax.jit, static_argnums=(2,))
def _resample(values, key, count):
  users = len(values)
  at = jax.random.randint(key, (count, users), 0, users)
  return values[at].mean(axis=1)


def confidence_interval(
  values: Any, *, key: Any = None, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
  """Bootstrap interval of a mean over users.

  Args:
    values: Metric of each user, `[u]`.
    key: JAX key; `jax.random.key(0)` by default.
    resamples: How many.
    level: Coverage.

  Returns:
    Lower and upper end.
  """
  values = _vector(values, 'values')
  if not len(values):
    raise ValueError('values is empty: there is no mean of no users.')
  tail = 50 * (1 - level)
  low, high = np.percentile(_means(values, key, resamples), (tail, 100 - tail))
  return float(low), float(high)


def correct(p_values: Any, method: str = 'holm') -> np.ndarray:
  """P values of many comparisons, corrected.

  Args:
    p_values: `[m]`; NaN stays NaN and is not counted.
    method: 'holm' bounds the chance of any false claim, 'benjamini-hochberg'
      the share of false ones; 'none'.

  Returns:
    Adjusted p values, `[m]`.

  Raises:
    ValueError: `method` is unknown.

  Example:
    >>> correct([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
  """
  p = np.asarray(p_values, np.float64)
  if method not in ('holm', 'benjamini-hochberg', 'none'):
    raise ValueError(
      f"method is {method!r}; expected 'holm', 'benjamini-hochberg' or 'none'."
    )
  result = p.copy()
  known = np.flatnonzero(~np.isnan(p))
  m = len(known)
  if method == 'none' or not m:
    return result
  order = known[np.argsort(p[known], kind='stable')]
  if method == 'holm':
    adjusted = np.maximum.accumulate(p[order] * (m - np.arange(m)))
  else:
    ratio = p[order] * m / np.arange(1, m + 1)
    adjusted = np.minimum.accumulate(ratio[::-1])[::-1]
  result[order] = np.minimum(adjusted, 1)
  return result


def compare_all(
  vectors: Mapping[str, Any],
  baseline: str,
  *,
  correction: str = 'holm',
  **options: Any,
) -> dict[str, tuple[PairedTests, float]]:
  """Every method against one.

  Args:
    vectors: Method -> metric of each user; the same users in all.
    baseline: The one that others are compared with.
    correction: See `correct`.
    **options: Of `paired_tests`.

  Returns:
    Method -> tests of method minus baseline, and the corrected p.
  """
  if baseline not in vectors:
    raise ValueError(f'baseline is {baseline!r}; there is {list(vectors)}.')
  others = {name: v for name, v in vectors.items() if name != baseline}
  tests = paired_tests(
    others, vectors[baseline], correction=correction, **options
  )
  return {name: (test, test.corrected) for name, test in tests.items()}
