"""Members of a setting, trained in one program on one frozen tree."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import _adapters_tasks
import _command_line
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpapers import adapters, roberta, training
from jaxpapers.roberta import finetune_data


class Interrupted(Exception):
  """SIGTERM came; `result` is what fit returned."""

  def __init__(self, result: training.FitResult):
    super().__init__(result.message)
    self.result = result


@dataclasses.dataclass(frozen=True)
class Member:
  """What differs between members: numbers only.

  Attributes:
    seed: Of adapters, head and dropout.
    learning_rate: Peak of the schedule.
    init_std: Of the adapters, None for the config's.
  """

  seed: int
  learning_rate: float
  init_std: float | None = None


@dataclasses.dataclass(frozen=True)
class Trained:
  """Members after training.

  Attributes:
    members: What differed.
    task: Their parameters, leaves `[members, ...]`.
    frozen: What they share.
    model: The model.
    failed: Whether a member ended with a loss that is no number, `[members]`.
    trained: Trained parameters of a member, all and those in the encoder.
    mesh: Where they lie.
  """

  members: tuple[Member, ...]
  task: Any
  frozen: Any
  model: Any
  failed: tuple[bool, ...]
  trained: tuple[int, int]
  mesh: Any = None

  def of(self, index: int) -> Any:
    """Parameters of one member."""
    return jax.tree.map(lambda x: x[index], self.task)


def members_of(config: Any) -> tuple[Member, ...]:
  """One member for each seed."""
  return tuple(Member(seed, config.learning_rate) for seed in config.seeds)


@dataclasses.dataclass(frozen=True)
class FinetuneJob(training.Job):
  """A job whose frozen parameters are an argument of the step of their own.

  Attributes:
    frozen: The frozen tree, or the shapes of its leaves.
  """

  frozen: Any = None

  def step(self, mesh: jax.sharding.Mesh | None = None) -> Any:
    """The training step, jitted for a mesh."""
    placed = {} if mesh is None else {'mesh': mesh, 'rules': self.rules}
    return adapters.make_finetune_step(
      self.loss_fn, self.tx, self.frozen, population=True, **placed
    )


def make_job(
  config: Any, members: Sequence[Member] = (), total: int = 1000
) -> training.Job:
  """The training step of a config, without data.

  Args:
    config: The setting.
    members: By default one for each seed of the config.
    total: Updates; of no importance for what a step costs.

  Returns:
    What can be compiled; its frozen tree are shapes.

  Raises:
    UsageError: If the setting is impossible.
  """
  _adapters_tasks.check(config)
  members = tuple(members or members_of(config))
  encoder, params, tokenizer = _adapters_tasks.load_base(config)
  goal = _adapters_tasks.load_goal(config)
  model = _adapters_tasks.make_model(config, encoder, goal, tokenizer)
  try:
    frozen = jax.eval_shape(
      lambda: initial(config, params, model, members, jit=False)[1]
    )
    if config.frozen != 'float32' and frozen:
      frozen = jax.eval_shape(
        lambda tree: adapters.compress_frozen(tree, config.frozen), frozen
      )
    rules = roberta.encoder_rules(config.sharding)
  except ValueError as error:
    raise _command_line.UsageError(
      f'--config.mode={config.mode}: {error}'
    ) from error

  def init(key):
    del key  # Members have seeds.
    trainable = initial(config, params, model, members[:1], jit=False)[0]
    return jax.tree.map(lambda x: x[0], trainable), {}

  length = _adapters_tasks.max_len(config, encoder)
  return FinetuneJob(
    init,
    roberta.make_finetune_loss(model, goal.kind),
    optimizer(config, total),
    _batch(config, goal, length),
    rules=rules,
    population=len(members),
    frozen=frozen,
  )


def _batch(config, goal, length):
  """Shapes of a batch."""
  size = config.batch_size
  fields = {'label': jnp.int32}
  if goal.kind == 'regression':
    fields = {'label': jnp.float32}
  elif goal.kind == 'span':
    fields = dict.fromkeys(('start', 'end', 'answerable'), jnp.int32)
  return {
    'ids': jax.ShapeDtypeStruct((size, length), jnp.int32),
    'mask': jax.ShapeDtypeStruct((size,), jnp.bool_),
    **{name: jax.ShapeDtypeStruct((size,), t) for name, t in fields.items()},
  }


def train(
  config: Any,
  problem: _adapters_tasks.Problem,
  members: Sequence[Member] = (),
  *,
  workdir: Any = None,
  mesh: Any = None,
  console: bool = False,
) -> Trained:
  """Trains members.

  Args:
    config: The setting.
    problem: Model and task.
    members: By default one for each seed of the config.
    workdir: For checkpoints and numbers; None for a run in memory.
    mesh: Where it runs.
    console: Whether to show progress.

  Raises:
    Interrupted: If SIGTERM came; what was trained is in `workdir`.
    UsageError: If the setting is impossible.
  """
  members = tuple(members or members_of(config))
  model = _adapters_tasks.make_model(
    config, problem.encoder, problem.goal, problem.tokenizer
  )
  try:
    trainable, frozen = initial(config, problem.params, model, members)
    rules = roberta.encoder_rules(config.sharding)
    batches = _batches(config, problem, members, mesh)
  except ValueError as error:
    raise _command_line.UsageError(
      f'--config.mode={config.mode}: {error}'
    ) from error
  if config.frozen != 'float32' and frozen:
    frozen = adapters.compress_frozen(frozen, config.frozen)
  total = config.epochs * batches.steps_per_epoch
  tx = optimizer(config, total)
  keys = jnp.stack([jax.random.key(m.seed + 10_000) for m in members])
  placed = {} if mesh is None else {'mesh': mesh, 'rules': rules}
  state = adapters.create_finetune_state(trainable, tx, keys, **placed)
  peaks = jnp.asarray([m.learning_rate for m in members], jnp.float32)
  old = state.opt_state.hyperparams['peak']
  state = state.replace(
    opt_state=state.opt_state._replace(
      hyperparams={'peak': jax.device_put(peaks, old.sharding)}
    )
  )
  step = adapters.make_finetune_step(
    roberta.make_finetune_loss(model, problem.goal.kind),
    tx,
    frozen,
    population=True,
    **placed,
  )
  try:
    result = training.fit(
      state,
      step,
      batches,
      num_steps=total,
      workdir=workdir,
      mesh=mesh,
      log_every=config.log_every,
      console=console,
      examples_per_step=config.batch_size * len(members),
    )
  except training.NonFiniteLossError:
    # Of every member: the paper's sweep has learning rates that do this.
    nan = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), trainable)
    return trained_of(members, nan, step.frozen, model, mesh)
  if not result.finished:
    raise Interrupted(result)
  return trained_of(members, result.state.params, step.frozen, model, mesh)


def _batches(config, problem, members, mesh):
  """Batches for training, this process's part of them."""
  index, count = training.batch_share(mesh)
  return finetune_data.TokenBatches(
    problem.splits['train'],
    config.batch_size,
    seed=members[0].seed,
    lengths=lengths(config, problem.encoder),
    process_index=index,
    process_count=count,
  )


def lengths(config: Any, encoder: Any) -> tuple[int, ...]:
  """Lengths of batches."""
  return tuple(config.lengths) or (_adapters_tasks.max_len(config, encoder),)


def trained_of(members, task, frozen, model, mesh=None) -> Trained:
  """Members with these parameters; which of them failed, and how many."""
  finite = jnp.stack(
    [
      jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))
      for x in jax.tree.leaves(task)
    ]
  ).all(0)
  of_encoder = task.get('encoder', {})
  return Trained(
    members,
    task,
    frozen,
    model,
    tuple(not f for f in np.asarray(finite)),
    tuple(
      adapters.count_params(tree) // len(members) for tree in (task, of_encoder)
    ),
    mesh,
  )


def partition_options(config: Any) -> dict[str, Any]:
  """Arguments of `partition_params`."""
  options = {'mode': config.mode, 'head': config.head}
  if config.mode == 'top_k':
    options |= {'k': config.k, 'train_embeddings': config.train_embeddings}
  adapter = _adapters_tasks.adapter_config(config)
  if adapter is not None:
    options['train_layer_norm'] = adapter.train_layer_norm
  return options


def initial(
  config: Any,
  base: Any,
  model: Any,
  members: Sequence[Member],
  jit: bool = True,
) -> tuple[Any, Any]:
  """Parameters at the start: the members' `[members, ...]`, and the frozen.

  Args:
    config: The setting.
    base: Pre-trained parameters; None for random ones.
    model: The model.
    members: What differs between members.
    jit: Whether to compile; where only shapes are wanted it is not worth it.

  Returns:
    What is trained, and what is not.
  """
  compiled = jax.jit if jit else lambda f: f
  options = partition_options(config)
  ids = jnp.zeros((1, 4), jnp.int32)
  varies = any(member.init_std is not None for member in members)
  if varies and model.adapter is not None:
    # An initialisation is its scale times one of scale 1.
    model = model.clone(adapter=model.adapter.replace(init_std=1.0))

  classifies = isinstance(model, roberta.RobertaForSequenceClassification)
  if (
    config.head == 'linear' and classifies and 'classifier' not in (base or {})
  ):
    raise ValueError(
      "head is 'linear', which leaves the dense layer of the head as it was"
      ' pre-trained, and the model has none. Use --config.head=mlp'
    )

  def one(key, base):
    if base is None:
      params = model.init(key, ids)['params']
    else:
      params = adapters.init_adapters(key, model, base, ids)
    return adapters.partition_params(params, **options)

  keys = jnp.stack([jax.random.key(member.seed) for member in members])
  trainable = compiled(
    jax.vmap(lambda key, base: one(key, base)[0], (0, None))
  )(keys, base)
  frozen = compiled(lambda key, base: one(key, base)[1])(keys[0], base)
  if varies and model.adapter is not None:
    scales = jnp.asarray([member.init_std for member in members])
    trainable = jax.tree_util.tree_map_with_path(
      functools.partial(_scaled, scales), trainable
    )
  return trainable, frozen


def _scaled(scales, path, leaf):
  name = jax.tree_util.keystr(path, simple=True, separator='/')
  if '_adapter/' in name and name.endswith('kernel'):
    return leaf * scales.reshape(-1, *[1] * (leaf.ndim - 1))
  return leaf


def optimizer(config: Any, total: int) -> optax.GradientTransformation:
  """BERT's Adam and schedule; each member has its own peak."""

  def make(peak):
    return adapters.bert_adam(
      adapters.bert_schedule(peak, int(config.warmup * total), total),
      config.weight_decay,
      clip_norm=config.clip_norm or None,
    )

  return optax.inject_hyperparams(make)(peak=config.learning_rate)
