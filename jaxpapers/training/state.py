"""The state of a training run: one immutable tree."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxpapers.training import sharding as sharding_lib


@struct.dataclass
class TrainState:
  """Everything that a step changes, and nothing else.

  In a population every leaf has a leading axis of members.

  Attributes:
    step: Number of updates made, int32 scalar.
    params: Parameters.
    model_state: What the model keeps besides parameters (`batch_stats` ...).
    opt_state: State of the optax transform.
    rng: Typed key. It stays the same; steps fold their number into it.
    ema_params: Exponential moving average of the parameters, in float32 at
      least, or None.
  """

  step: jax.Array
  params: Any
  model_state: Any
  opt_state: Any
  rng: jax.Array
  ema_params: Any = None

  @property
  def eval_params(self) -> Any:
    """The averaged parameters where there are any, else the parameters."""
    return self.params if self.ema_params is None else self.ema_params


def create_state(
  init: Callable[[jax.Array], tuple[Any, Any]],
  tx: optax.GradientTransformation,
  rng: jax.Array,
  *,
  mesh: jax.sharding.Mesh | None = None,
  rules: sharding_lib.Rules = (),
  ema: bool = False,
) -> TrainState:
  """Makes the state of step 0, each device its own part of it.

  The initialisation is one compiled program with sharded outputs: no device
  ever holds more than its share.

  Args:
    init: Maps a typed key to parameters and model state (`{}` where the model
      has none).
    tx: The optimizer.
    rng: Typed key, or an array of keys `[members]` for a population. Equal keys
      give members with the same initial parameters.
    mesh: Where the state lies; None for the default device.
    rules: How it lies there, see `shard_rules`.
    ema: Whether to keep a moving average of the parameters.

  Returns:
    The state.

  Raises:
    TypeError: If `rng` is not a typed key.

  Example:
    >>> init = lambda key: ({'w': jax.random.normal(key, (3,))}, {})
    >>> state = create_state(init, optax.sgd(0.1), jax.random.key(0))
    >>> int(state.step)
    0
  """
  make = state_maker(init, tx, rng, ema=ema)
  if mesh is None:
    return jax.jit(make)(rng)
  abstract = jax.eval_shape(make, rng)
  shardings = sharding_lib.shard_rules(
    abstract, rules, mesh, population=jnp.ndim(rng) == 1
  )
  return jax.jit(make, out_shardings=shardings)(rng)


def abstract_state(
  init: Callable[[jax.Array], tuple[Any, Any]],
  tx: optax.GradientTransformation,
  rng: jax.Array | None = None,
  *,
  mesh: jax.sharding.Mesh | None = None,
  rules: sharding_lib.Rules = (),
  ema: bool = False,
) -> TrainState:
  """Shapes, dtypes and shardings of `create_state`, computing nothing.

  Args:
    init: As in `create_state`.
    tx: As in `create_state`.
    rng: As in `create_state`, or shapes of it; a single key by default.
    mesh: As in `create_state`; may be of devices that are not there.
    rules: As in `create_state`.
    ema: As in `create_state`.

  Returns:
    The state with a ShapeDtypeStruct for every array: what `restore` and
    ahead-of-time compilation need.
  """
  if rng is None:
    rng = jax.eval_shape(lambda: jax.random.key(0))
  abstract = jax.eval_shape(state_maker(init, tx, rng, ema=ema), rng)
  if mesh is None:
    return abstract
  shardings = sharding_lib.shard_rules(
    abstract, rules, mesh, population=len(rng.shape) == 1
  )
  return with_shardings(abstract, shardings)


def with_shardings(tree: Any, shardings: Any) -> Any:
  """ShapeDtypeStructs of the leaves of a tree, with shardings."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    tree,
    shardings,
  )


def _average(x):
  """A copy, since the step donates both; bfloat16 would never move."""
  if jnp.issubdtype(x.dtype, jnp.floating):
    return jnp.array(x, jnp.promote_types(x.dtype, jnp.float32))
  return jnp.copy(x)


def state_maker(init, tx, rng, *, ema: bool) -> Callable[[Any], TrainState]:
  """Function from a key, or keys, to the state of step 0."""
  if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key) or len(rng.shape) > 1:
    raise TypeError(
      f'rng is {rng.dtype}{list(rng.shape)}; expected a typed key,'
      ' jax.random.key(seed), or a vector of them for a population.'
    )

  def make(key):
    init_key, step_key = jax.random.split(key)
    made = init(init_key)
    if not isinstance(made, tuple) or len(made) != 2:
      raise TypeError(
        f'init returned a {type(made).__name__}; expected a pair (params,'
        ' model_state), with model_state {} where the model keeps nothing else.'
      )
    params, model_state = made
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      model_state=model_state,
      opt_state=tx.init(params),
      rng=step_key,
      ema_params=jax.tree.map(_average, params) if ema else None,
    )

  return jax.vmap(make) if len(rng.shape) == 1 else make
