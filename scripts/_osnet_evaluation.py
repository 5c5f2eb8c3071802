"""Numbers of a gallery and its queries: what osnet_eval reports."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import _command_line
import _osnet_model
import numpy as np

from jaxpapers.osnet import (
  datasets,
  metrics,
  ranking,
  rerank,
  verification,
)

PLAIN = 'features'
# Pairs whose distances are sorted for the ROC curve.
_PAIRS = 20_000_000


@dataclasses.dataclass(frozen=True)
class Options:
  """What is computed besides the plain ranking.

  Attributes:
    metric: 'euclidean' or 'cosine'.
    normalize: Whether features have the norm 1.
    max_rank: Length of the CMC curve.
    rerank: Whether to re-rank.
    k1: See `k_reciprocal_rerank`.
    k2: See there.
    lam: See there.
    candidates: How many of each query's gallery images to re-rank; 0 for all.
    expand: Neighbours of query expansion; 0 for none.
    alpha: Its exponent.
  """

  metric: str
  normalize: bool
  max_rank: int
  rerank: bool
  k1: int
  k2: int
  lam: float
  candidates: int
  expand: int
  alpha: float


@dataclasses.dataclass(frozen=True)
class Side:
  """Queries, or a gallery.

  Attributes:
    paths: Of the images.
    pids: Identities.
    camids: Cameras.
    features: float32 [n, D].
  """

  paths: np.ndarray
  pids: np.ndarray
  camids: np.ndarray
  features: np.ndarray


@dataclasses.dataclass
class Result:
  """All that is reported of one data set.

  Attributes:
    name: Of the data set.
    query: Queries.
    gallery: Gallery.
    protocol: As of `rank_metrics`.
    counts: Split -> kind -> number.
    unreadable: Messages.
    ranks: Name of a way to rank -> numbers.
    distances: Name -> function from rows of queries to distances [n, G].
    roc: Verification, or None where one identity is all there is.
    histogram: Edges, shares of pairs of the same and of different people.
    stride: Every how many-th query the two above look at.
  """

  name: str
  query: Side
  gallery: Side
  protocol: str
  counts: Mapping[str, Mapping[str, int]]
  unreadable: list[str]
  ranks: dict[str, ranking.RankResult] = dataclasses.field(default_factory=dict)
  distances: dict[str, Any] = dataclasses.field(default_factory=dict)
  roc: verification.VerificationResult | None = None
  histogram: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
  stride: int = 1

  def labels(self) -> tuple[np.ndarray, ...]:
    """Identities and cameras, in the order of `rank_metrics`."""
    return (
      self.query.pids,
      self.gallery.pids,
      self.query.camids,
      self.gallery.camids,
    )


def evaluate(
  model: _osnet_model.Model, data: datasets.ReIDDataset, options: Options
) -> Result:
  """Computes features and ranks the gallery.

  Args:
    model: The network.
    data: Queries and gallery.
    options: What to compute.

  Returns:
    The numbers.

  Raises:
    UsageError: If an image cannot be read, no query has a match, or an option
      does not fit the data.
  """
  query, lost = _side(model, data.query, f'{data.name}, queries', options)
  if data.gallery.paths == data.query.paths:
    gallery, others = query, {}
  else:
    gallery, others = _side(
      model, data.gallery, f'{data.name}, gallery', options
    )
  counts = {part: dict(data.counts[part]) for part in ('query', 'gallery')}
  for part, messages in (('query', lost), ('gallery', others)):
    if messages:
      counts[part]['unreadable'] = len(messages)
  result = Result(
    data.name,
    query,
    gallery,
    data.protocol,
    counts,
    [*lost.values(), *others.values()],
  )
  try:
    _rank_all(result, options)
    _verify(result, options)
  except ValueError as error:
    raise _command_line.UsageError(
      f'{data.name}: {_command_line.one_line(error)}'
    ) from error
  missing = int((~result.ranks[PLAIN].valid).sum())
  if missing:
    counts['query']['without a match'] = missing
  return result


def _side(model, split, what, options):
  found, lost = _osnet_model.embed(
    model, split.paths, what, normalize=options.normalize
  )
  kept = np.setdiff1d(np.arange(len(found)), list(lost))
  paths = np.array(split.paths, object)[kept]
  side = Side(paths, split.pids[kept], split.camids[kept], found[kept])
  return side, lost


def _rank_all(result, options):
  shared = {'max_rank': options.max_rank, 'protocol': result.protocol}
  qf, gf = result.query.features, result.gallery.features

  def plain(name, qf, gf):
    result.ranks[name] = ranking.rank_metrics(
      qf, gf, *result.labels(), metric=options.metric, **shared
    )
    result.distances[name] = lambda rows: np.asarray(
      metrics.pairwise_distance(qf[rows], gf, options.metric)
    )

  def reranked(name, qf, gf):
    rows = _reranked(qf, gf, options)
    result.ranks[name] = ranking.rank_metrics_from_distance(
      rows, *result.labels(), **shared
    )
    result.distances[name] = rows

  plain(PLAIN, qf, gf)
  if options.expand:
    expanded = [
      np.asarray(x)
      for x in rerank.alpha_query_expansion(
        qf, gf, options.expand, options.alpha, options.metric
      )
    ]
    plain('query expansion', *expanded)
  if options.rerank:
    reranked('re-ranked', qf, gf)
    if options.expand:
      reranked('query expansion, re-ranked', *expanded)


def _reranked(qf, gf, options):
  """Function from queries to distances after re-ranking, [n, G].

  Images that are no candidates come last.
  """
  shared = {'metric': options.metric}
  parameters = (options.k1, options.k2, options.lam)
  number = min(options.candidates or len(gf), len(gf))
  if number == len(gf):
    return rerank.k_reciprocal_rows(qf, gf, *parameters, **shared)
  new, index = rerank.k_reciprocal_rerank_features(
    qf, gf, *parameters, candidates=number, **shared
  )

  def rows(chosen):
    chosen = np.arange(len(qf))[chosen]
    out = np.array(
      metrics.pairwise_distance(qf[chosen], gf, options.metric), np.float32
    )
    least = out.min(1, keepdims=True)
    # Candidates are at most 1.
    out = 1 + (out - least) / np.maximum(np.ptp(out, 1)[:, None], 1e-12)
    out = np.nextafter(out, np.float32(3))
    np.put_along_axis(out, index[chosen], new[chosen], axis=1)
    return out

  return rows


def _verify(result, options):
  """ROC curve and histogram of distances, of as many queries as can be."""
  pairs = len(result.query.pids) * len(result.gallery.pids)
  stride = max(1, -(-pairs // _PAIRS))
  rows = np.arange(0, len(result.query.pids), stride)
  dist = result.distances[PLAIN](rows)
  q_pids, g_pids, q_cams, g_cams = result.labels()
  labels = (q_pids[rows], g_pids, q_cams[rows], g_cams)
  same = labels[0][:, None] == g_pids
  left_out = same & (labels[2][:, None] == g_cams)
  positive, negative = dist[same & ~left_out], dist[~same]
  result.stride = stride
  if not positive.size or not negative.size:
    return
  result.roc = verification.verification_roc(dist, *labels)
  # All distances are zero where features have collapsed.
  edges = np.linspace(0, max(np.quantile(negative, 0.999), 1e-6), 61)
  result.histogram = (
    edges,
    np.histogram(positive, edges)[0] / positive.size,
    np.histogram(negative, edges)[0] / negative.size,
  )


def summary(result: Result) -> dict[str, Any]:
  """The numbers as plain values, for JSON.

  Args:
    result: From `evaluate`.

  Returns:
    Nested dictionaries.
  """
  out: dict[str, Any] = {
    'protocol': result.protocol,
    'counts': result.counts,
    'unreadable': result.unreadable,
    'ranking': {name: row(one) for name, one in result.ranks.items()},
  }
  for name, one in result.ranks.items():
    out['ranking'][name]['cmc'] = one.cmc
  if result.roc is not None:
    out['verification'] = {
      'auc': result.roc.auc,
      'eer': result.roc.eer,
      'eer_threshold': result.roc.eer_threshold,
      'every_nth_query': result.stride,
      'operating_points': operating_points(result.roc),
    }
  return out


def row(one: ranking.RankResult) -> dict[str, Any]:
  """The numbers that everybody quotes."""
  ranks = [k for k in (1, 5, 10, 20) if k <= len(one.cmc)]
  return {
    **{f'rank{k}': float(one.cmc[k - 1]) for k in ranks},
    'mAP': one.mAP,
    'mINP': one.mINP,
    'queries': one.num_valid,
  }


def operating_points(
  roc: verification.VerificationResult,
) -> list[dict[str, float]]:
  """Thresholds for some rates of false positives.

  Args:
    roc: The curve.

  Returns:
    For each rate, the distance and what is accepted rightly.
  """
  return [
    {
      'fpr': rate,
      'tpr': verification.tpr_at_fpr(roc, rate),
      'threshold': verification.threshold_at_fpr(roc, rate),
    }
    for rate in (1e-4, 1e-3, 1e-2, 1e-1)
    if rate * roc.num_negative >= 1
  ]


def per_query(result: Result) -> list[dict[str, Any]]:
  """A row for each query, of the plain ranking.

  Args:
    result: From `evaluate`.

  Returns:
    The rows.
  """
  one = result.ranks[PLAIN]
  return [
    {
      'path': path,
      'pid': int(pid),
      'camera': int(cam),
      'valid': bool(valid),
      'ap': float(ap) if valid else '',
      'inp': float(inp) if valid else '',
      'first_rank': int(first) if valid else '',
    }
    for path, pid, cam, valid, ap, inp, first in zip(
      result.query.paths,
      result.query.pids,
      result.query.camids,
      one.valid,
      one.ap,
      one.inp,
      one.first_rank,
      strict=True,
    )
  ]
