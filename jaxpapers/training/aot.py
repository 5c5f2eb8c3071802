"""Compiling a training step for TPUs that are not here.

The TPU compiler comes as a library, libtpu, and compiles for a named topology
on any x86-64 Linux machine. Whether a step fits, what it costs and how it talks
over the network is thus known before a pod is rented.
"""

import collections
import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from jaxpapers.training import job as job_lib
from jaxpapers.training import sharding as sharding_lib
from jaxpapers.training.throughput import estimate_flops, peak_flops

# Bytes of memory of one device, from Google's documentation of the chips.
_MEMORY = {
  'TPU v2': 8 * 2**30,  # A device is a core, half a chip.
  'TPU v3': 16 * 2**30,
  'TPU v4': 32 * 2**30,
  'TPU v5 lite': 16 * 2**30,
  'TPU v5': 95 * 2**30,
  'TPU v6 lite': 32 * 2**30,
}
_COLLECTIVES = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
_BYTES = {'pred': 1, 's4': 0.5, 'u4': 0.5, 's8': 1, 'u8': 1, 'bf16': 2} | {
  f'{kind}{bits}': bits // 8 for kind in 'fsu' for bits in (16, 32, 64)
}


@dataclasses.dataclass(frozen=True)
class Report:
  """What the compiler says of a step.

  Sizes are bytes on one device, operations those of one device in one step.

  Attributes:
    topology: Its name, as 'v5e:2x2'.
    device_kind: As JAX calls the devices.
    mesh: Size of each mesh axis.
    arguments: Memory of state and batch.
    outputs: Memory of the results that is not the arguments' used again.
    temporaries: Memory in between.
    code: Size of the program.
    available: Memory of a device; None where it is not known.
    flops: Operations of matrix products and convolutions.
    bytes_accessed: Memory traffic; the body of a loop counts once.
    collectives: Name -> number of operations and bytes of their results.
    seconds: Time that compilation took.
    compiled: The compiled step.
  """

  topology: str
  device_kind: str
  mesh: Mapping[str, int]
  arguments: int
  outputs: int
  temporaries: int
  code: int
  available: int | None
  flops: float
  bytes_accessed: float
  collectives: Mapping[str, tuple[int, int]]
  seconds: float
  compiled: Any = dataclasses.field(repr=False, default=None)

  @property
  def total(self) -> int:
    """Memory that one device needs."""
    return self.arguments + self.outputs + self.temporaries + self.code

  def as_dict(self) -> dict[str, Any]:
    """The numbers, for JSON."""
    fields = dataclasses.asdict(dataclasses.replace(self, compiled=None))
    fields.pop('compiled')
    return fields | {'total': self.total}

  def __str__(self) -> str:
    used = f'{_size(self.total)}'
    if self.available:
      share = 100 * self.total / self.available
      used += f' of {_size(self.available)} ({share:.1f} %)'
    mesh = ' x '.join(f'{name} {size}' for name, size in self.mesh.items())
    lines = [
      f'{self.topology}: {self.device_kind}, mesh {mesh},'
      f' compiled in {self.seconds:.1f} s',
      f'  memory per device     {used}',
      f'    state and batch     {_size(self.arguments)}',
      f'    new outputs         {_size(self.outputs)}',
      f'    temporaries         {_size(self.temporaries)}',
      f'    program             {_size(self.code)}',
      f'  FLOPs per device      {self.flops:.4g}',
      f'  memory traffic        {_size(self.bytes_accessed)}',
    ]
    if peak := peak_flops(self.device_kind):
      lines.append(f'  at peak speed         {1e3 * self.flops / peak:.3g} ms')
    lines.append('  collectives           ' + (self._collectives() or 'none'))
    return '\n'.join(lines)

  def _collectives(self) -> str:
    return ', '.join(
      f'{count} {name} ({_size(size)})'
      for name, (count, size) in self.collectives.items()
    )


def compile_job(
  job: job_lib.Job,
  topology: str = 'v5e:2x2',
  axes: Mapping[str, int] | str = 'data:-1',
) -> Report:
  """Compiles a job's training step for a TPU topology.

  Args:
    job: What to train; nothing of it is computed.
    topology: Generation and shape: 'v5e:2x2', 'v5e:16x16', 'v4:2x2x1',
      'v6e:4x4' ...
    axes: The mesh, as in `make_mesh`.

  Returns:
    The compiler's report, with the compiled step.

  Raises:
    ImportError: If libtpu is not installed.
    ValueError: If there is no such topology, or the mesh does not fit it.
  """
  description = topology_description(topology)
  mesh = sharding_lib.make_mesh(axes, description.devices)
  state, batch = job.abstract(mesh)
  step = job.step(mesh)
  lowered = step.lower(state, batch)
  began = time.perf_counter()
  compiled = lowered.compile()
  seconds = time.perf_counter() - began
  memory = compiled.memory_analysis()
  cost = compiled.cost_analysis()
  cost = cost[0] if isinstance(cost, list) else cost
  kind = description.devices[0].device_kind
  return Report(
    topology=topology,
    device_kind=kind,
    mesh=dict(mesh.shape),
    arguments=memory.argument_size_in_bytes,
    outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    code=memory.generated_code_size_in_bytes,
    available=_MEMORY.get(kind),
    flops=estimate_flops(step, state, batch) / mesh.size,
    bytes_accessed=float(cost.get('bytes accessed', 0)),
    collectives=count_collectives(compiled.as_text()),
    seconds=seconds,
    compiled=compiled,
  )


def topology_description(name: str) -> Any:
  """JAX's description of a TPU topology, on a machine without TPUs.

  Args:
    name: As in `compile_job`.

  Returns:
    A description with `.devices`.

  Raises:
    ImportError: If libtpu is not installed.
    ValueError: If libtpu knows no such topology.
  """
  try:
    import libtpu  # noqa: F401
  except ImportError as error:
    raise ImportError(
      "Compiling for TPUs needs libtpu: pip install 'jaxpapers[tpu]'"
    ) from error
  from jax.experimental import topologies

  with _no_tpu_here():
    try:
      return topologies.get_topology_desc(platform='tpu', topology_name=name)
    except Exception as error:
      raise ValueError(
        f'There is no TPU topology {name!r} ({_first_line(error)}). Give'
        " generation and shape, as 'v5e:2x2', 'v5e:4x4' or 'v4:2x2x1'."
      ) from error


@contextlib.contextmanager
def _no_tpu_here() -> Iterator[None]:
  """Keeps libtpu from asking Google's metadata server what machine this is."""
  wanted = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    # Nobody else's TPU is taken: several compilations may run at once.
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  }
  before = {name: os.environ.get(name) for name in wanted}
  for name, value in wanted.items():
    os.environ.setdefault(name, value)
  try:
    yield
  finally:
    for name, value in before.items():
      if value is None:
        os.environ.pop(name, None)


def count_collectives(hlo: str) -> dict[str, tuple[int, int]]:
  """Counts the operations that talk to other devices in a compiled program.

  Args:
    hlo: Text of the program, from `compiled.as_text()`.

  Returns:
    Name -> number, and bytes of their results on one device; only those that
    occur. An operation in the body of a loop counts once.

  Example:
    >>> count_collectives('%r = f32[8]{0} all-reduce(f32[8]{0} %x), x={}')
    {'all-reduce': (1, 32)}
  """
  names = '|'.join(_COLLECTIVES)
  # What an asynchronous operation begins; its -done is the same operation.
  pattern = re.compile(rf' = (.*?) ({names})(-start)?\(')
  found: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
  for line in hlo.splitlines():
    match = pattern.search(line)
    if match:
      shapes = re.findall(r'(\w+)\[([\d,]*)\]', match[1])
      sizes = [_shape_bytes(*s) for s in shapes if s[0] in _BYTES]
      if match[3] and match[2] != 'all-reduce' and sizes:
        sizes = sizes[len(sizes) // 2 :]  # Operands come first.
      found[match[2]][0] += 1
      found[match[2]][1] += int(sum(sizes))
  return {name: tuple(found[name]) for name in _COLLECTIVES if name in found}


def _shape_bytes(kind: str, dimensions: str) -> float:
  size = _BYTES[kind]
  for length in filter(None, dimensions.split(',')):
    size *= int(length)
  return size


def _size(count: float) -> str:
  for unit in ('B', 'KiB', 'MiB', 'GiB'):
    if count < 1024 or unit == 'GiB':
      return f'{count:.4g} {unit}'
    count /= 1024
  raise AssertionError


def _first_line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0]
