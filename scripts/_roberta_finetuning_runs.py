"""The runs of a fine-tuning program: one from every seed."""

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import _command_line
import _roberta_finetuning
import _roberta_finetuning_results as results_lib
import _training_command_line
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from jaxpapers import training
from jaxpapers.nn import transformer
from jaxpapers.roberta import finetune, finetune_data, pretrained
from jaxpapers.training import sharding as sharding_lib


class Interrupted(Exception):
  """SIGTERM came; `result` is what `training.fit` returned."""

  def __init__(self, result: training.FitResult):
    super().__init__(result.message)
    self.result = result


class Predictor:
  """Predictions of a task's model, compiled once for all seeds."""

  def __init__(
    self,
    config: Any,
    task: _roberta_finetuning.Task,
    base: _roberta_finetuning.Base,
    mesh: Any,
  ):
    model = _roberta_finetuning.make_model(task, base.encoder, base.params)
    self._predict = finetune.make_predict(model, task.kind, mesh=mesh)
    self._lengths, self._mesh = (
      _roberta_finetuning.lengths(config, base.encoder),
      mesh,
    )
    parts = _batch_parts(mesh)
    self._size = -(-config.eval_batch_size // parts) * parts

  def __call__(
    self, params: Any, examples: finetune_data.TokenExamples
  ) -> dict[str, list[np.ndarray]]:
    """See `finetune.predict_all`; labels are not shown to the model."""
    fields = {
      name: value
      for name, value in examples.fields.items()
      if name in ('positions', 'targets', 'weights', 'candidates')
    }
    examples = finetune_data.TokenExamples(
      examples.ids, fields, examples.pad_id
    )
    return finetune.predict_all(
      self._predict,
      params,
      examples,
      self._size,
      mesh=self._mesh,
      lengths=self._lengths,
    )


def _batch_parts(mesh) -> int:
  return math.prod(
    size for name, size in mesh.shape.items() if name in sharding_lib.BATCH_AXES
  )


def run_task(
  run: _training_command_line.Run,
  task: _roberta_finetuning.Task,
  base: _roberta_finetuning.Base,
  train: finetune_data.TokenExamples | None,
  evaluate: Callable[[Predictor, Any], dict[str, float]],
  finish: Callable[[Predictor, Any, epath.Path], dict[str, Any]],
) -> int:
  """Fine-tunes from every seed, and writes results, predictions and a model.

  Args:
    run: The flags.
    task: The task.
    base: The model.
    train: What to train on; None with `evaluate_only`.
    evaluate: Numbers of parameters on the dev set.
    finish: Writes predictions of the best parameters of a seed into a folder;
      returns what else to put into its results.

  Returns:
    Exit code.

  Raises:
    UsageError: If something does not fit, or the loss is no number.
  """
  config = run.config
  predictor = Predictor(config, task, base, run.mesh)
  if config.evaluate_only:
    job = _roberta_finetuning.make_job(config, task, base)
    state = job.state(jax.random.key(0), run.mesh)
    params = finetune.with_pretrained(state, base.params).params
    found = evaluate(predictor, params)
    extra = finish(predictor, params, run.workdir)
    results_lib.write_results(
      run, run.workdir / 'results.json', {'best': found, **extra}
    )
    results_lib.show(task.name, {'model': found})
    return 0
  if config.train_examples:
    train = train.first(config.train_examples)
  job = _roberta_finetuning.make_job(config, task, base, len(train))
  _check_mesh(config, task, run.mesh)
  step = job.step(run.mesh)
  found = {}
  try:
    for seed in config.seeds:
      folder = run.workdir / f'seed{seed}'
      found[seed] = _one_seed(
        run, task, base, train, job, step, predictor, evaluate, finish, folder
      )
  except Interrupted as stop:
    return run.exit_code(stop.result)
  except training.NonFiniteLossError as error:
    raise _command_line.UsageError(str(error)) from error
  results_lib.conclude(run, task, found, export=_exporter(run, task, base, job))
  return 0


def _check_mesh(config, task, mesh) -> None:
  parts, size = _batch_parts(mesh), _roberta_finetuning.batch_size(config, task)
  if size // config.accumulate % parts:
    raise _command_line.UsageError(
      f'--mesh={flags.FLAGS.mesh}: a microbatch has'
      f' {size // config.accumulate} examples, which {parts} devices cannot'
      f' share evenly. Choose a multiple of {parts}, or --mesh=data:1'
    )


def _one_seed(
  run, task, base, train, job, step, predictor, evaluate, finish, folder
):
  config = run.config
  path = folder / 'results.json'
  if path.exists():
    _training_command_line.say(f'{path} is there: nothing left to do.')
    return json.loads(path.read_text())
  seed = int(folder.name.removeprefix('seed'))
  state = job.state(jax.random.key(seed), run.mesh)
  if base.params is not None:
    state = finetune.with_pretrained(state, base.params)
  share = training.batch_share(run.mesh)
  batches = finetune_data.TokenBatches(
    train,
    _roberta_finetuning.batch_size(config, task),
    seed=seed,
    lengths=_roberta_finetuning.lengths(config, base.encoder),
    process_index=share[0],
    process_count=share[1],
  )
  per_epoch = batches.steps_per_epoch
  total = _roberta_finetuning.num_updates(config, task, len(train))
  best = results_lib.Best(folder, task.main_metric, config.patience)

  def measure(state):
    metrics = evaluate(predictor, state.params)
    best.offer(int(jax.device_get(state.step)), metrics, state.params)
    return metrics

  result = training.fit(
    state,
    step,
    batches,
    num_steps=total,
    workdir=folder,
    mesh=run.mesh,
    evaluations=[
      training.Evaluation(
        'dev',
        measure,
        every=config.evaluate_every or per_epoch,
        at_end=True,
      )
    ],
    stop_when=best.stop_when,
    log_every=config.log_every,
    checkpoint_every=config.evaluate_every or per_epoch,
    keep=1,
    console=run.console,
    examples_per_step=_roberta_finetuning.batch_size(config, task),
  )
  if not result.finished:
    raise Interrupted(result)
  params = best.restore(result.state.params)
  extra = finish(predictor, params, folder)
  found = {
    'seed': seed,
    'best': best.metrics,
    'best_step': best.step,
    'steps': result.step,
    'stopped': result.message,
    **extra,
  }
  results_lib.write_results(run, path, found)
  results_lib.remove(run, folder / 'checkpoints')
  return found


def _exporter(run, task, base, job):
  """Function that writes the model of a seed's folder; None for no export."""
  if not run.config.export:
    return None

  def export(folder, step, target):
    like = job.state(jax.random.key(0), run.mesh).params
    params = training.restore(folder / f'best-{step}', like)
    params = training.fetch(params)
    if not run.first:
      return
    encoder = base.encoder
    if encoder.scan_layers:
      params = transformer.unstack_layers(params)
    plain = dataclasses.replace(
      encoder, scan_layers=False, remat=False, dtype=jnp.float32
    )
    if base.tokenizer is not None:
      base.tokenizer.save(target)
    pretrained.save_pretrained(
      str(target),
      plain,
      params,
      labels=task.labels,
      head_dropout_rate=run.config.head_dropout,
    )

  return export
