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
  """

  members: tuple[Member, ...]
  task: Any
  frozen: Any
  model: Any
  failed: tuple[bool, ...]
  trained: tuple[int, int]

  def of(self, index: int) -> Any:
    """Parameters of one member."""
    return jax.tree.map(lambda x: x[index], self.task)


def members_of(config: Any) -> tuple[Member, ...]:
  """One member for each seed."""
  return tuple(Member(seed, config.learning_rate) for seed in config.seeds)


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
  rules = roberta.encoder_rules(config.sharding)
  encoder = problem.encoder
  model = _adapters_tasks.make_model(config, encoder, len(problem.classes))
  try:
    trainable, frozen = initial(config, problem, model, members)
  except ValueError as error:
    raise _command_line.UsageError(
      f'--config.mode={config.mode}: {error}'
    ) from error
  if config.frozen != 'float32' and frozen:
    frozen = adapters.compress_frozen(frozen, config.frozen)
  length = _adapters_tasks.max_len(config, encoder)
  batches = finetune_data.TokenBatches(
    problem.splits['train'],
    config.batch_size,
    seed=members[0].seed,
    lengths=tuple(config.lengths) or (length,),
    **dict(
      zip(
        ('process_index', 'process_count'),
        training.batch_share(mesh),
        strict=True,
      )
    ),
  )
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
    roberta.make_finetune_loss(model, 'classification'),
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
    return _trained(members, nan, step.frozen, model)
  if not result.finished:
    raise Interrupted(result)
  return _trained(members, result.state.params, step.frozen, model)


def _trained(members, task, frozen, model) -> Trained:
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


def initial(config, problem, model, members):
  """Trained parts of all members, stacked, and what is frozen."""
  options = partition_options(config)
  ids = jnp.zeros((1, 4), jnp.int32)
  varies = any(member.init_std is not None for member in members)
  if varies and model.adapter is not None:
    # An initialisation is its scale times one of scale 1.
    model = model.clone(adapter=model.adapter.replace(init_std=1.0))

  def one(key, base):
    if base is None:
      params = model.init(key, ids)['params']
    else:
      params = adapters.init_adapters(key, model, base, ids)
    return adapters.partition_params(params, **options)

  keys = jnp.stack([jax.random.key(member.seed) for member in members])
  trainable = jax.jit(jax.vmap(lambda key, base: one(key, base)[0], (0, None)))(
    keys, problem.params
  )
  frozen = jax.jit(lambda key, base: one(key, base)[1])(keys[0], problem.params)
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


def logits_of(
  trained: Trained, config: Any, problem: _adapters_tasks.Problem, split: str
) -> np.ndarray:
  """Logits of a split, `[members, examples, classes]`."""
  examples = problem.splits[split]

  @jax.jit
  def predict(task, frozen, ids):
    def one(task):
      params = adapters.merge_params(task, frozen)
      return trained.model.apply({'params': params}, ids)

    return jax.vmap(one)(task)

  length = _adapters_tasks.max_len(config, problem.encoder)
  out = None
  for rows, batch in finetune_data.ordered_batches(
    examples,
    config.eval_batch_size,
    lengths=tuple(config.lengths) or (length,),
  ):
    logits = np.asarray(predict(trained.task, trained.frozen, batch['ids']))
    if out is None:
      out = np.zeros((logits.shape[0], len(examples), logits.shape[2]))
    out[:, rows] = logits
  return out


def evaluate(
  trained: Trained, config: Any, problem: _adapters_tasks.Problem
) -> list[dict[str, Any]]:
  """One row of scores for each member."""
  splits = [name for name in ('valid', 'test') if name in problem.splits]
  logits = {
    split: logits_of(trained, config, problem, split) for split in splits
  }
  rows = []
  for i, member in enumerate(trained.members):
    row = {
      'seed': member.seed,
      'learning_rate': member.learning_rate,
      'init_std': member.init_std,
      'status': 'failed' if trained.failed[i] else 'ok',
      'trained': trained.trained[0],
      'trained_in_encoder': trained.trained[1],
    }
    for split in splits:
      for name, value in problem.scores(split, logits[split][i]).items():
        value = float('nan') if trained.failed[i] else float(value)
        row[f'{split}_{name}'] = value
    rows.append(row)
  return rows
