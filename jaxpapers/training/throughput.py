"""How fast a run is, and how much of the hardware it uses."""

import time
from typing import Any

import jax

# Dense bfloat16 matrix multiplication, FLOP/s of one device, from the vendors'
# data sheets. Prefixes of `jax.Device.device_kind`, longer ones first.
_PEAK_FLOPS = (
  ('TPU v6 lite', 918e12),
  ('TPU v6', 918e12),
  ('TPU v5 lite', 197e12),
  ('TPU v5p', 459e12),
  ('TPU v5', 459e12),
  ('TPU v4', 275e12),
  ('TPU v3', 61.5e12),  # A device is a core, half a chip.
  ('TPU v2', 22.5e12),
  ('NVIDIA GB200', 2250e12),
  ('NVIDIA B200', 2250e12),
  ('NVIDIA H200', 989e12),
  ('NVIDIA H100 PCIe', 756e12),
  ('NVIDIA H100', 989e12),
  ('NVIDIA A100', 312e12),
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
    if kind.startswith(prefix):
      return flops
  return None


def estimate_flops(step, *arguments: Any) -> float | None:
  """Floating-point operations of one call, counted by XLA before it optimizes.

  Nothing is compiled. A loop counts as often as XLA knows that it runs: the
  body of a `while` of unknown length counts once.

  Args:
    step: A jitted function.
    *arguments: Its arguments, or their shapes.

  Returns:
    The number over all devices; None where the backend does not tell.
  """
  try:
    analysis = step.lower(*arguments).cost_analysis()
  except NotImplementedError:
    return None
  if isinstance(analysis, list):
    analysis = analysis[0] if analysis else None
  return float(analysis['flops']) if analysis and 'flops' in analysis else None


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
