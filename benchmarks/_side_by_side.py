"""What the benchmarks share: calls in turns, medians, ratios, parts.

All that is compared runs in one process, one after the other, again and again,
so that a busy machine slows all of it alike. Times are of the wall clock, and
of the processors ("cpu"): these count all threads of the process, and change
less with what else a machine does.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app

Times = dict[str, list[float]]

# Threads of OpenMP (torch's) would go on spinning for a while after each call,
# on the processors that are ours when it is our turn. Read when torch starts.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
os.environ.setdefault('KMP_BLOCKTIME', '0')


def has(*names: str) -> bool:
  """Whether all these packages are installed."""
  return all(importlib.util.find_spec(name) for name in names)


def use_threads() -> None:
  """Lets torch, if it is there, use the processors that this process may."""
  if has('torch'):
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))


def alternate(
  calls: Mapping[str, Callable[[], Any]], repeats: int
) -> tuple[Times, Times, dict[str, Any]]:
  """Runs calls in turns.

  Args:
    calls: Each has to wait until its work is done. What an attribute `prepare`
      of one does before each call is not counted.
    repeats: How often each is measured, after one call that is not.

  Returns:
    Milliseconds of the wall clock and of the processors, for each name, and
    what the first calls returned.
  """
  wall = {name: [] for name in calls}
  cpu = {name: [] for name in calls}
  first = {}
  for name, call in calls.items():
    _prepare(call)
    first[name] = call()
  for _ in range(repeats):
    for name, call in calls.items():
      _prepare(call)
      start, used = time.perf_counter(), time.process_time()
      call()
      wall[name].append(1e3 * (time.perf_counter() - start))
      cpu[name].append(1e3 * (time.process_time() - used))
  return wall, cpu, first


def _prepare(call):
  getattr(call, 'prepare', lambda: None)()


def summary(wall: Times, cpu: Times, ours: str, peer: str) -> dict[str, Any]:
  """Medians and least times, and ours over the peer's where both are there."""
  out = {}
  for kind, times in (('wall', wall), ('cpu', cpu)):
    for name, reduce in (('median', statistics.median), ('min', min)):
      out[f'{kind}_milliseconds_{name}'] = {
        key: float(f'{reduce(values):.4g}') for key, values in times.items()
      }
  if ours in wall and peer in wall:
    out[f'{ours}_over_{peer}'] = {
      f'{kind}_{name}': float(
        f'{reduce(times[ours]) / reduce(times[peer]):.3g}'
      )
      for kind, times in (('wall', wall), ('cpu', cpu))
      for name, reduce in (('median', statistics.median), ('min', min))
    }
  return out


def choose(flag: str, values: Sequence[str], known: Sequence[str]) -> None:
  """Refuses values of a flag that there are not."""
  unknown = sorted(set(values) - set(known))
  if unknown:
    raise app.UsageError(f'--{flag}: {unknown}; of {list(known)}')


def report(
  names: Sequence[str], parts: Mapping[str, Callable[[], Any]]
) -> None:
  """Runs the chosen parts; prints one JSON object, each part as it ends.

  Args:
    names: What --parts has.
    parts: All parts.
  """
  choose('parts', names, list(parts))
  import jax

  result = {
    'machine': f'{platform.processor() or platform.machine()},'
    f' {len(os.sched_getaffinity(0))} cores, {jax.default_backend()}',
    'jax': jax.__version__,
  }
  if has('torch'):
    result['torch'] = importlib.metadata.version('torch')
  for name in names:
    result[name] = parts[name]()
    print(json.dumps({name: result[name]}), file=sys.stderr)
  print(json.dumps(result, indent=2))
