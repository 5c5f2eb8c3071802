"""Stops iterative methods on validation data, and keeps the best model."""

import functools
from typing import Any

from jaxpapers.recsys import evaluation
from jaxpapers.recsys.data import Interactions


class EarlyStopping:
  """A monitor for the fit functions of iterative methods.

  Looks at validation data every `every` epochs, and ends the fit when
  `patience` looks in a row were no strict improvement: the protocol of the
  study. It never sees test data. The number of the best epoch is what the
  last fit, on training and validation data, is made with.

  Attributes:
    every: Epochs between looks; a fit need not call it in between.
    best: The best model so far, None before the first look.
    best_epoch: Its epoch.
    best_value: Its metric.
    history: (epoch, metric) of all looks.
    phases: Parameter -> the monitor of an earlier part of the fit; see `phase`.
  """

  def __init__(
    self,
    train: Interactions,
    validation: Interactions,
    *,
    metric: str = 'ndcg',
    cutoff: int = 10,
    every: int = 5,
    patience: int = 5,
    **options: Any,
  ):
    """Makes a monitor.

    Args:
      train: What the model is fitted on.
      validation: Validation items.
      metric: What counts, larger is better.
      cutoff: Where lists are cut.
      every: Epochs between looks.
      patience: Looks without improvement before the end.
      **options: Of `evaluate_model`: negatives, exclude_seen, ties.
    """
    if every < 1 or patience < 1:
      raise ValueError(
        f'every is {every} and patience {patience}; expected 1 or more.'
      )
    self._again = functools.partial(
      EarlyStopping,
      train,
      validation,
      metric=metric,
      cutoff=cutoff,
      every=every,
      patience=patience,
      **options,
    )
    self._data = train, validation
    self._metric, self._cutoff = metric, cutoff
    self.every, self._patience = every, patience
    self._options = options
    self.best: Any = None
    self.best_epoch = 0
    self.best_value = float('-inf')
    self.history: list[tuple[int, float]] = []
    self.phases: dict[str, EarlyStopping] = {}
    self._worse = 0

  def __call__(self, epoch: int, model: Any) -> bool:
    """Looks if it is time to; returns whether the fit should end."""
    if epoch % self.every:
      return False
    result = evaluation.evaluate_model(
      model,
      *self._data,
      (self._cutoff,),
      metrics=(self._metric,),
      **self._options,
    )
    value = result.mean(self._metric, self._cutoff)
    self.history.append((epoch, value))
    if value > self.best_value:
      self.best, self.best_epoch, self.best_value = model, epoch, value
      self._worse = 0
    else:
      self._worse += 1
    return self._worse >= self._patience

  def phase(self, parameter: str) -> 'EarlyStopping':
    """A monitor for an earlier part of the same fit, such as pretraining.

    Args:
      parameter: Of the fit function: the number of epochs of that part. The
        last fit gets the best one.

    Returns:
      A fresh monitor on the same data, which `phases` keeps.
    """
    self.phases[parameter] = self._again()
    return self.phases[parameter]

  def epochs(self) -> dict[str, int]:
    """Parameter -> number of epochs, 'epochs' and those of all phases.

    Parts that were too short for a look are left out.
    """
    found = {'epochs': self, **self.phases}
    return {
      name: part.best_epoch
      for name, part in found.items()
      if part.best is not None
    }

  def result(self, model: Any) -> Any:
    """The best model; the last one where no look was taken."""
    return model if self.best is None else self.best
