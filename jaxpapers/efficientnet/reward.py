"""What the search maximises, and the front of what it found."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def reward(
  accuracy: Any,
  macs: Any,
  target: float = 4e8,
  alpha: float = -0.07,
  beta: float = -0.07,
) -> Any:
  """Accuracy times (cost / target)^w, the paper's objective.

  w is `alpha` up to the target and `beta` above it. With `alpha == beta`, as in
  the paper, the target multiplies every reward by the same number: it cannot
  change which of two networks is better. It matters with different exponents
  only; `alpha=0, beta=-1` is MnasNet's hard constraint, which leaves the
  accuracy alone up to the target.

  Args:
    accuracy: Of networks, any shape.
    macs: Their multiply-adds, of a shape that broadcasts.
    target: T, the wanted cost.
    alpha: Exponent where `macs <= target`.
    beta: Exponent above.

  Returns:
    Rewards of the broadcast shape; jax arrays if an input is one, otherwise
    float64 of numpy.

  Raises:
    ValueError: If `target` is not positive.

  Example:
    >>> round(float(reward(0.75, 8e8)), 4)  # 2 x the cost for 5 % accuracy
    0.7145
  """
  if not isinstance(target, jax.Array) and not target > 0:
    raise ValueError(f'target is {target}; expected more than 0 multiply-adds.')
  traced = any(isinstance(x, jax.Array) for x in (accuracy, macs, target))
  xp = jnp if traced else np
  if not traced:
    accuracy, macs = np.asarray(accuracy, float), np.asarray(macs, float)
  exponent = xp.where(macs <= target, alpha, beta)
  return accuracy * (macs / target) ** exponent


def pareto_front(macs: Any, accuracy: Any) -> np.ndarray:
  """Indices of the networks that no other one beats in both respects.

  Args:
    macs: Costs `[n]`.
    accuracy: Accuracies `[n]`; NaN never is on the front.

  Returns:
    Indices in the order of rising cost and accuracy. Of equals the first.

  Raises:
    ValueError: If the shapes differ.

  Example:
    >>> pareto_front([3, 1, 2, 4], [0.7, 0.5, 0.6, 0.65]).tolist()
    [1, 2, 0]
  """
  macs, accuracy = np.asarray(macs, float), np.asarray(accuracy, float)
  if macs.shape != accuracy.shape or macs.ndim != 1:
    raise ValueError(
      f'macs has shape {list(macs.shape)}, accuracy {list(accuracy.shape)};'
      ' expected the same [n].'
    )
  front, best = [], -np.inf
  # Cheapest first; of equal cost the most accurate first.
  for index in np.lexsort((np.arange(len(macs)), -accuracy, macs)):
    if accuracy[index] > best:
      front.append(int(index))
      best = accuracy[index]
  return np.array(front, int)


def hypervolume(macs: Any, accuracy: Any, reference: tuple[float, float]):
  """Area that a front dominates, over log cost and accuracy.

  Args:
    macs: Costs `[n]`.
    accuracy: Accuracies `[n]`.
    reference: A cost and an accuracy that are worse than what counts; networks
      beyond either count nothing.

  Returns:
    The area, in units of (factor e of cost) x (accuracy of 1).
  """
  macs, accuracy = np.asarray(macs, float), np.asarray(accuracy, float)
  area, floor = 0.0, reference[1]
  for index in pareto_front(macs, accuracy):
    if macs[index] < reference[0] and accuracy[index] > floor:
      width = np.log(reference[0] / macs[index])
      area += width * (accuracy[index] - floor)
      floor = accuracy[index]
  return float(area)
