"""What a training script trains: everything that shapes the compiled step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxpapers.training import sharding as sharding_lib
from jaxpapers.training import state as state_lib
from jaxpapers.training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Job:
  """Model, loss, optimizer and shapes, before there is any data or device.

  A script makes one from its config; it can then be trained here, or compiled
  for hardware that is elsewhere.

  Attributes:
    init: Maps a key to parameters and model state.
    loss_fn: See `make_train_step`.
    tx: The optimizer.
    batch: Tree of ShapeDtypeStruct of a global batch.
    rules: How the state lies on a mesh, see `shard_rules`.
    accumulate: Number of microbatches.
    ema: Decay of the moving average of the parameters, or None.
    compute_dtype: See `make_train_step`.
    population: Number of members that train in one program; 0 for one run.
    gather_axis: See `make_train_step`.
  """

  init: Callable[[jax.Array], tuple[Any, Any]]
  loss_fn: step_lib.LossFn
  tx: optax.GradientTransformation
  batch: Any
  rules: sharding_lib.Rules = ()
  accumulate: int = 1
  ema: float | Callable[[jax.Array], jax.Array] | None = None
  compute_dtype: Any = None
  population: int = 0
  gather_axis: str | None = None

  def step(self, mesh: jax.sharding.Mesh | None = None):
    """The training step, jitted for a mesh."""
    return step_lib.make_train_step(
      self.loss_fn,
      self.tx,
      mesh=mesh,
      rules=self.rules,
      accumulate=self.accumulate,
      ema=self.ema,
      compute_dtype=self.compute_dtype,
      population=bool(self.population),
      gather_axis=self.gather_axis,
    )

  def state(
    self, rng: jax.Array, mesh: jax.sharding.Mesh | None = None
  ) -> state_lib.TrainState:
    """The state of step 0.

    Args:
      rng: Typed key; for a population one of each member, or one that is split.
      mesh: Where the state lies.
    """
    if self.population and rng.ndim == 0:
      rng = jax.random.split(rng, self.population)
    return state_lib.create_state(
      self.init,
      self.tx,
      rng,
      mesh=mesh,
      rules=self.rules,
      ema=self.ema is not None,
    )

  def abstract(self, mesh: jax.sharding.Mesh | None = None) -> tuple[Any, Any]:
    """Shapes of the state and of a batch, with shardings on a mesh."""
    rng = jax.eval_shape(
      lambda: (
        jax.random.split(jax.random.key(0), self.population)
        if self.population
        else jax.random.key(0)
      )
    )
    state = state_lib.abstract_state(
      self.init,
      self.tx,
      rng,
      mesh=mesh,
      rules=self.rules,
      ema=self.ema is not None,
    )
    batch = self.batch
    if mesh is not None:
      sharding = sharding_lib.batch_sharding(mesh)
      batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        batch,
      )
    return state, batch
