"""How fast a run is, and how much of the hardware it uses."""

import math
import re
import time
from collections.abc import Iterator
from typing import Any

import jax

# Dense bfloat16 matrix multiplication, FLOP/s of one device, from the vendors'
# data sheets. First words of `jax.Device.device_kind`.
_PEAK_FLOPS = (
  ('TPU v6 lite', 918e12),
  ('TPU v5 lite', 197e12),
  ('TPU v5p', 459e12),
  ('TPU v5', 459e12),
  ('TPU v4', 275e12),
  ('TPU v3', 61.5e12),  # A device is a core, half a chip.
  ('TPU v2', 22.5e12),
  ('NVIDIA GB200', 2250e12),
  ('NVIDIA GH200', 989e12),
  ('NVIDIA B200', 2250e12),
  ('NVIDIA H200', 989e12),
  ('NVIDIA H100 PCIe', 756e12),
  ('NVIDIA H100', 989e12),
  ('NVIDIA A100', 312e12),
  ('NVIDIA A10', 125e12),
  ('NVIDIA L40S', 362e12),
  ('NVIDIA L4', 121e12),
)


def peak_flops(device: Any | None = None) -> float | None:
  """Peak of dense bfloat16 matrix products on a device, in FLOP/s.

  Args:
    device: A device, or what JAX calls its kind; the first by default.

  Returns:
    The figure of its data sheet; None where it is not known (CPUs).

  Example:
    >>> peak_flops('TPU v5 lite')
    197000000000000.0
  """
  device = device or jax.devices()[0]
  kind = device if isinstance(device, str) else device.device_kind
  for prefix, flops in _PEAK_FLOPS:
    if re.match(rf'{prefix}(?!\w)', kind):
      return flops
  return None


def estimate_flops(step, *arguments: Any) -> float:
  """Operations of the matrix products and convolutions in one call.

  Counted in the traced program, scans as often as they run, both branches of a
  condition as the larger one; a `while` of unknown length counts once.
  Elementwise work, which is no part of a device's peak, is left out.

  Args:
    step: A jitted function.
    *arguments: Its arguments, or their shapes.

  Returns:
    Additions and multiplications over all devices.

  Example:
    >>> x = jax.ShapeDtypeStruct((64, 32), 'float32')
    >>> estimate_flops(jax.jit(lambda x: x @ x.T), x) == 2 * 64 * 32 * 64
    True
  """
  return float(_count(step.trace(*arguments).jaxpr.jaxpr))


def _count(jaxpr) -> float:
  total = 0.0
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    if name == 'dot_general':
      (contracted, _), _ = params['dimension_numbers']
      shape = equation.invars[0].aval.shape
      inner = math.prod(shape[axis] for axis in contracted)
      total += 2 * inner * math.prod(equation.outvars[0].aval.shape)
    elif name == 'conv_general_dilated':
      features = params['dimension_numbers'].rhs_spec[0]
      kernel = equation.invars[1].aval.shape
      inner = math.prod(kernel) / kernel[features]
      total += 2 * inner * math.prod(equation.outvars[0].aval.shape)
    else:
      counts = [_count(inner) for inner in _subjaxprs(params)]
      if name == 'cond':
        total += max(counts, default=0)
      else:
        total += _repetitions(name, params) * sum(counts)
  return total


def _repetitions(name: str, params) -> int:
  if name == 'scan':
    return params['length']
  # In it, shapes are those of one device.
  return params['mesh'].size if name == 'shard_map' else 1


def _subjaxprs(params) -> Iterator[Any]:
  for value in params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      item = getattr(item, 'jaxpr', item)
      if hasattr(item, 'eqns'):
        yield item


class Throughput:
  """Steps per second since the last look, pauses left out."""

  def __init__(
    self,
    examples_per_step: float | None = None,
    flops_per_step: float | None = None,
  ):
    """Begins to count at the first `start`.

    Args:
      examples_per_step: Examples, or tokens, of all devices together.
      flops_per_step: Floating-point operations of all devices together.
    """
    self._examples, self._flops = examples_per_step, flops_per_step
    self._peak = peak_flops()
    self._spent, self._steps, self._began = 0.0, 0, None

  def start(self) -> None:
    """Steps are being made from now on."""
    if self._began is None:
      self._began = time.perf_counter()

  def pause(self) -> None:
    """Something else is being done from now on: evaluation, say."""
    if self._began is not None:
      self._spent += time.perf_counter() - self._began
      self._began = None

  def count(self, steps: int = 1) -> None:
    """That many steps have been made."""
    self._steps += steps

  def read(self) -> dict[str, float]:
    """Rates since the last call, and a new beginning; {} without steps."""
    self.pause()
    steps, seconds = self._steps, self._spent
    self._spent, self._steps = 0.0, 0
    self.start()
    if not steps or seconds <= 0:
      return {}
    rates = {'steps_per_second': steps / seconds}
    if self._examples:
      rates['examples_per_second'] = self._examples * steps / seconds
    if self._flops and self._peak:
      possible = self._peak * jax.device_count() * seconds
      rates['mfu'] = self._flops * steps / possible
    return rates
