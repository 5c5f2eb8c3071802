"""What the scaling and the search program share: tables and figures."""

from typing import Any

import _command_line
import jax

from jaxpapers import training


def check_run(run: Any, batch_size: int | None = None) -> None:
  """Refuses what workers that share a record cannot do.

  Args:
    run: The flags.
    batch_size: That of the recipe; None if nothing is trained.

  Raises:
    UsageError: If processes are joined, a record would lie where it cannot, or
      the devices cannot share a batch.
  """
  if jax.process_count() > 1:
    raise _command_line.UsageError(
      f'{jax.process_count()} processes are joined, but each trains networks of'
      ' its own here. Start the program on each machine without --distributed,'
      ' with one --workdir that all see'
    )
  if '://' in str(run.workdir):
    raise _command_line.UsageError(
      f'--workdir={run.workdir} is a URL; expected a folder of a file system:'
      ' workers claim their shares there'
    )
  if batch_size is not None:
    check_batch(batch_size, run.mesh, '--config.recipe.batch_size')


def check_batch(size: int, mesh: jax.sharding.Mesh, flag: str) -> None:
  """Refuses a batch that the devices cannot share.

  Raises:
    UsageError: Names the flag.
  """
  try:
    training.batch_sharding(mesh).shard_shape((size,))
  except ValueError as error:
    raise _command_line.UsageError(
      f'{flag} is {size}, which the {mesh.size} devices of --mesh cannot share'
      ' evenly'
    ) from error
