"""What choosing epochs on test data would report: the bias, made visible.

The released programs of NeuMF, CMN, MCRec and SpectralCF look at test data
after every epoch and print the best. That is not an evaluation. It is here
under a name of its own, so that the gap to an honest one can be seen.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxpapers.recsys import evaluation, methods
from jaxpapers.recsys.data import Interactions


@dataclasses.dataclass(frozen=True)
class TestEpochs:
  """A fit, watched on test data.

  Attributes:
    history: Epoch -> metric -> value on test data.
    best: Metric -> its best epoch and value: each metric has an epoch of its
      own, as in MCRec's tables.
  """

  # The name begins with Test, and it is none.
  __test__ = False

  history: Mapping[int, Mapping[str, float]]
  best: Mapping[str, tuple[int, float]]


def best_test_epochs(
  name: str,
  train: Interactions,
  test: Interactions,
  parameters: Mapping[str, Any] | None = None,
  *,
  metrics: Sequence[str] = ('hit_rate', 'ndcg'),
  cutoff: int = 10,
  every: int = 1,
  features: Any = None,
  seed: int = 0,
  **options: Any,
) -> TestEpochs:
  """Fits an iterative method and reports its best epochs *on test data*.

  Never put these numbers beside those of methods that saw validation data only.

  Args:
    name: Of the method.
    train: Interactions to fit.
    test: Test items.
    parameters: Of the method; all its epochs are done.
    metrics: What to watch.
    cutoff: Where lists are cut.
    every: Epochs between looks.
    features: For content methods.
    seed: For random methods.
    **options: Of `evaluate_model`: negatives, exclude_seen, ties, profiles.

  Returns:
    All looks, and the best of each metric.

  Raises:
    ValueError: The method has no epochs, or there are fewer than `every`.
  """
  method = methods.find(name)
  if not method.iterative:
    raise ValueError(f'{method.name} has no epochs to choose from.')
  history: dict[int, dict[str, float]] = {}

  def monitor(epoch, model):
    if epoch % every == 0:
      result = evaluation.evaluate_model(
        model, train, test, (cutoff,), metrics=metrics, **options
      )
      history[epoch] = {m: result.mean(m, cutoff) for m in metrics}
    return False

  methods.fit(
    name, train, parameters, features=features, seed=seed, monitor=monitor
  )
  if not history:
    raise ValueError(f'every is {every}, and the fit had fewer epochs.')
  best = {}
  for metric in metrics:
    epoch = max(history, key=lambda e: history[e][metric])
    best[metric] = (epoch, history[epoch][metric])
  return TestEpochs(history, best)
