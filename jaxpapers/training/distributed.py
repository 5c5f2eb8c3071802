"""Several processes as one program."""

import os
from typing import Any

import jax


def initialize_distributed(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  auto: bool = False,
  shutdown_timeout_seconds: int = 300,
) -> bool:
  """Joins the other processes if arguments or environment ask for it.

  Call it before anything else of JAX. Without arguments, `auto` and the
  variable JAX_COORDINATOR_ADDRESS the process stays alone.

  Args:
    coordinator_address: 'host:port' of process 0.
    num_processes: How many there are.
    process_id: Which this is, from 0.
    auto: Let JAX find the three by itself: TPU pods, Slurm, Open MPI,
      Kubernetes.
    shutdown_timeout_seconds: How long a process that ends waits for the others.

  Returns:
    Whether the process is one of several now.

  Raises:
    ValueError: If some of the three are given and others cannot be found.
  """
  given = (coordinator_address, num_processes, process_id)
  asked = any(value is not None for value in given)
  if not (asked or auto or os.environ.get('JAX_COORDINATOR_ADDRESS')):
    return False
  if num_processes is not None and process_id is not None:
    if not 0 <= process_id < num_processes:
      raise ValueError(
        f'process_id is {process_id}; expected 0 to num_processes - 1 ='
        f' {num_processes - 1}.'
      )
  try:
    jax.distributed.initialize(
      *given, shutdown_timeout_seconds=shutdown_timeout_seconds
    )
  except ValueError as error:
    raise ValueError(
      f'{error} Give coordinator_address, num_processes and process_id.'
    ) from error
  return True


def fetch(tree: Any) -> Any:
  """A tree of arrays, whole, in the memory of every process.

  Every process has to call it, and needs the memory.

  Args:
    tree: Arrays on the devices of any processes.

  Returns:
    The tree with NumPy arrays.
  """
  if jax.process_count() == 1:
    return jax.device_get(tree)
  from jax.experimental import multihost_utils

  return jax.tree.map(
    lambda x: multihost_utils.process_allgather(x, tiled=True), tree
  )
