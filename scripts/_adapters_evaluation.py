"""What members that were trained say, and how good it is."""

import dataclasses
import math
from typing import Any

import _adapters_squad
import _adapters_tasks
import _adapters_training
import jax
import jax.numpy as jnp
from etils import epath

from jaxpapers import adapters
from jaxpapers.roberta import finetune, finetune_data, glue, squad
from jaxpapers.training import sharding as sharding_lib


@dataclasses.dataclass(frozen=True)
class Gated:
  """A model whose adapters have gates, for `finetune.make_predict`.

  Attributes:
    model: The model.
    gates: `[layers, 2]`, or None.
  """

  model: Any
  gates: Any = None

  @property
  def config(self) -> Any:
    """The encoder's."""
    return self.model.config

  def apply(self, variables: Any, ids: Any, **options: Any) -> Any:
    """As the model's."""
    if self.gates is not None:
      options['adapter_inputs'] = {'gate': self.gates}
    return self.model.apply(variables, ids, **options)


class Predictor:
  """Predictions of all members, compiled once for each length.

  Example:
    outputs = Predictor(trained, config, problem)('valid')
    outputs[1]['logits']  # A list: of the second member, an array a text.
  """

  def __init__(
    self,
    trained: _adapters_training.Trained,
    config: Any,
    problem: _adapters_tasks.Problem,
  ):
    """Makes the program.

    Args:
      trained: The members.
      config: The setting.
      problem: Model and task.
    """
    self._trained, self._problem = trained, problem
    self._lengths = _adapters_training.lengths(config, problem.encoder)
    parts = 1
    if trained.mesh is not None:
      parts = math.prod(
        size
        for name, size in trained.mesh.shape.items()
        if name in sharding_lib.BATCH_AXES
      )
    self._size = -(-config.eval_batch_size // parts) * parts

    @jax.jit
    def predict(task, frozen, gates, batch):
      one = finetune.make_predict(
        Gated(trained.model, gates), problem.goal.kind, mesh=trained.mesh
      )
      found = jax.vmap(
        lambda member: one(adapters.merge_params(member, frozen), batch)
      )(task)
      # predict_all wants examples first.
      return {name: jnp.moveaxis(x, 0, 1) for name, x in found.items()}

    self._predict = predict

  def __call__(self, split: str, gates: Any = None) -> list[dict[str, list]]:
    """Outputs of a split.

    Args:
      split: Its name.
      gates: Of adapters, `[layers, 2]`; None for all of them.

    Returns:
      For each member what `finetune.predict_all` gives.
    """
    trained = self._trained
    examples = self._problem.splits[split]
    # Labels are not shown to the model.
    examples = finetune_data.TokenExamples(examples.ids, {}, examples.pad_id)

    outputs = finetune.predict_all(
      lambda task, batch: self._predict(task, trained.frozen, gates, batch),
      trained.task,
      examples,
      self._size,
      mesh=trained.mesh,
      lengths=self._lengths,
    )
    return [
      {name: [row[i] for row in rows] for name, rows in outputs.items()}
      for i in range(len(trained.members))
    ]


def evaluate(
  trained: _adapters_training.Trained,
  config: Any,
  problem: _adapters_tasks.Problem,
  folder: epath.Path | None = None,
) -> list[dict[str, Any]]:
  """One row of scores for each member.

  Args:
    trained: The members.
    config: The setting.
    problem: Model and task.
    folder: Where answers of SQuAD, and those to GLUE's test sets, are written;
      None for nowhere.

  Returns:
    The rows; NaN for members that failed.
  """
  predictor = Predictor(trained, config, problem)
  outputs = {split: predictor(split) for split in problem.measured}
  rows = []
  for i, member in enumerate(trained.members):
    failed = trained.failed[i]
    row = {
      'seed': member.seed,
      'learning_rate': member.learning_rate,
      'init_std': member.init_std,
      'status': 'failed' if failed else 'ok',
      'trained': trained.trained[0],
      'trained_in_encoder': trained.trained[1],
    }
    for split, found in outputs.items():
      scores = dict.fromkeys(problem.goal.metrics, math.nan)
      if not failed:
        scores = problem.scores(split, found[i], config)
      row |= {f'{split}_{name}': value for name, value in scores.items()}
    rows.append(row)
  # Every process predicts, the first one writes.
  tests = {
    split: predictor(split)
    for split in (problem.sources if folder is not None else ())
    if split in problem.splits and split not in ('train', 'valid')
  }
  if folder is not None and jax.process_index() == 0:
    for i, member in enumerate(trained.members):
      if trained.failed[i]:
        continue
      place = folder / f'answers_{member.seed}'
      if problem.goal.kind == 'span':
        answers = _adapters_squad.answers(
          problem.sources['valid'], outputs['valid'][i], config
        )
        squad.write_answers(place, answers, config.squad.na_threshold)
      for split, found in tests.items():
        glue.write_submission(
          place,
          problem.sources[split],
          _adapters_tasks.predictions(problem.goal, found[i]),
        )
  return rows


def load_members(
  folder: epath.Path, config: Any, problem: _adapters_tasks.Problem
) -> _adapters_training.Trained:
  """The members of a finished run of adapters_finetune.

  Args:
    folder: Its folder.
    config: Its config.
    problem: Model and task.

  Returns:
    The members, as `train` returned them.

  Raises:
    ValueError: If a file does not fit the model.
  """
  paths = sorted(folder.glob('task_*.safetensors'))
  seeds = [int(path.stem.removeprefix('task_')) for path in paths]
  members = tuple(
    _adapters_training.Member(seed, config.learning_rate) for seed in seeds
  )
  model = _adapters_tasks.make_model(
    config, problem.encoder, problem.goal, problem.tokenizer
  )
  trainable, frozen = _adapters_training.initial(
    config, problem.params, model, members[:1]
  )
  if config.frozen != 'float32' and frozen:
    frozen = adapters.compress_frozen(frozen, config.frozen)
  like = jax.tree.map(lambda x: x[0], trainable)
  tasks = [adapters.load_task(path, like=like) for path in paths]
  for path, task in zip(paths, tasks):
    if jax.tree.structure(task) != jax.tree.structure(like):
      raise ValueError(
        f'{path} has other parameters than the mode {config.mode} trains.'
      )
  task = jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks)
  return _adapters_training.trained_of(
    members, task, adapters.put_frozen(frozen), model
  )


def read_metadata(path: Any) -> dict[str, Any]:
  """What serving has to know of a task file.

  Raises:
    ValueError: If adapters_finetune did not write it.
  """
  about = adapters.load_task_metadata(path)
  for name in ('classes', 'mode', 'config'):
    if name not in about:
      raise ValueError(
        f'{path}: it has no {name}; adapters_finetune writes it.'
      )
  return {'kind': 'classification', **about}
