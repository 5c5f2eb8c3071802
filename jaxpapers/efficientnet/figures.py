"""Pictures: studies of scaling; fronts and progress of searches."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxpapers.efficientnet.reward import pareto_front

_COLORS = ('#1b6ca8', '#d1495b', '#3c8d5a', '#8a6fb0', '#c98a1b', '#333333')
_GREY = '#999999'


def study(rows: Sequence[Any], title: str = '') -> Any:
  """Accuracy over multiply-adds, one point a network, bars over seeds.

  Args:
    rows: `StudyRow`s; the first is the base.
    title: Above.

  Returns:
    A figure of matplotlib.
  """
  figure, axes = _figure(6, 4)
  base = rows[0]
  for index, row in enumerate(rows):
    color = _COLORS[(index - 1) % len(_COLORS)] if index else _GREY
    if index:
      axes.plot(
        (base.macs, row.macs), (base.mean, row.mean), color=color, lw=0.8
      )
    axes.errorbar(
      row.macs,
      row.mean,
      row.deviation,
      fmt='o',
      color=color,
      capsize=3,
      label=row.name,
    )
    axes.plot(
      [row.macs] * len(row.accuracies),
      row.accuracies,
      '.',
      color=color,
      ms=3,
      alpha=0.6,
    )
  axes.set_xscale('log')
  axes.set_xlabel('multiply-adds per image')
  axes.set_ylabel('test accuracy')
  axes.set_title(title, fontsize=10)
  axes.legend(frameon=False)
  return figure


def grid(rows: Sequence[Mapping[str, float]]) -> Any:
  """Accuracy over the true cost of the points of a grid search.

  Args:
    rows: Of `GridResult.rows`.

  Returns:
    A figure of matplotlib.
  """
  figure, axes = _figure(6, 4)
  points = axes.scatter(
    [row['ratio'] for row in rows],
    [row['accuracy'] for row in rows],
    c=[row['alpha'] for row in rows],
    s=24,
  )
  best = rows[0]
  axes.annotate(
    f'({best["alpha"]:g}, {best["beta"]:g}, {best["gamma"]:g})',
    (best['ratio'], best['accuracy']),
    textcoords='offset points',
    xytext=(6, 4),
    fontsize=8,
  )
  axes.set_xlabel('multiply-adds over those of the base')
  axes.set_ylabel('accuracy')
  figure.colorbar(points, ax=axes, label='α, factor of the depth')
  return figure


def search_front(
  searches: Mapping[str, Any], target: float | None = None
) -> Any:
  """All architectures of searches, and the front of each.

  Args:
    searches: Label -> `SearchResult`.
    target: Multiply-adds to mark.

  Returns:
    A figure of matplotlib.
  """
  figure, axes = _figure(6, 4)
  for color, (label, result) in zip(_cycle(), searches.items()):
    macs = np.array([trial.macs for trial in result.trials], float)
    accuracy = np.array([trial.accuracy for trial in result.trials])
    front = pareto_front(macs, accuracy)
    axes.plot(macs, accuracy, '.', color=color, ms=4, alpha=0.35)
    axes.step(
      macs[front],
      accuracy[front],
      'o-',
      where='post',
      color=color,
      ms=4,
      label=f'{label}: front of {len(macs)}',
    )
  if target:
    axes.axvline(target, color=_GREY, lw=0.8, ls=':')
  axes.set_xscale('log')
  axes.set_xlabel('multiply-adds per image')
  axes.set_ylabel('accuracy')
  axes.legend(frameon=False)
  return figure


def search_progress(searches: Mapping[str, Sequence[Any]]) -> Any:
  """Best reward so far, mean and range over repetitions.

  Args:
    searches: Label -> `SearchResult`s of one budget.

  Returns:
    A figure of matplotlib.
  """
  figure, axes = _figure(6, 4)
  for color, (label, results) in zip(_cycle(), searches.items()):
    curves = np.stack([result.best_so_far() for result in results])
    trials = np.arange(1, curves.shape[1] + 1)
    axes.plot(trials, curves.mean(0), color=color, label=label)
    if len(curves) > 1:
      axes.fill_between(
        trials, curves.min(0), curves.max(0), color=color, alpha=0.15, lw=0
      )
  axes.set_xlabel('architectures evaluated')
  axes.set_ylabel('best reward so far')
  axes.legend(frameon=False)
  return figure


def cost_histogram(
  searches: Mapping[str, Any], target: float | None = None
) -> Any:
  """Multiply-adds of what searches tried, under soft and hard objectives.

  Args:
    searches: Label -> `SearchResult`.
    target: Multiply-adds to mark.

  Returns:
    A figure of matplotlib.
  """
  figure, axes = _figure(6, 3.5)
  costs = {
    label: [trial.macs for trial in result.trials]
    for label, result in searches.items()
  }
  everything = np.concatenate([np.asarray(c, float) for c in costs.values()])
  edges = np.geomspace(everything.min(), everything.max() * 1.001, 31)
  for color, (label, values) in zip(_cycle(), costs.items()):
    axes.hist(
      values, edges, histtype='stepfilled', color=color, alpha=0.35, label=label
    )
  if target:
    axes.axvline(target, color=_GREY, lw=0.8, ls=':', label='target')
  axes.set_xscale('log')
  axes.set_xlabel('multiply-adds per image')
  axes.set_ylabel('architectures')
  axes.legend(frameon=False)
  return figure


def _cycle():
  while True:
    yield from _COLORS


def _figure(width: float, height: float) -> tuple[Any, Any]:
  try:
    from matplotlib import figure as figure_lib
  except ImportError as error:
    raise ImportError(
      "Figures need matplotlib: pip install 'jaxpapers[efficientnet]'."
    ) from error
  figure = figure_lib.Figure(figsize=(width, height), layout='constrained')
  axes = figure.add_subplot()
  for side in ('top', 'right'):
    axes.spines[side].set_visible(False)
  return figure, axes
