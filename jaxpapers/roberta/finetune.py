"""Fine-tuning: the loss of each kind of task, and its predictions.

A batch has 'ids' and, False for what only fills it up, 'mask' bool [B]; and

  classification   'label' int32 [B]
  regression       'label' float32 [B], on the task's own scale
  choice           'label' int32 [B]; 'ids' are [B, C, S]
  span             'start', 'end' and, of SQuAD v2, 'answerable' int32 [B]
  wsc              what `wsc.encode_wsc` gives; 'ids' are [B, 1 + C, S]
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers import training
from jaxpapers.roberta import finetune_data, losses, wsc
from jaxpapers.roberta.tasks import GlueTask

KINDS = ('classification', 'regression', 'choice', 'span', 'wsc')


def make_finetune_loss(
  model: Any,
  task: str | GlueTask,
  *,
  label_scale: float = 5.0,
  margin: tuple[float, float] | None = None,
) -> Callable[..., Any]:
  """Makes the loss of a task, for `training.make_train_step`.

  Args:
    model: One of the models of `jaxpapers.roberta`, as the kind of task needs
      it; `RobertaForMaskedLM` for WSC.
    task: One of `KINDS`, or a task of GLUE.
    label_scale: Of a regression: labels are divided by it; 5 for STS-B.
    margin: Of WSC: see `wsc.wsc_loss`.

  Returns:
    Function `(params, model_state, batch, rng) -> (loss, (model_state,
    metrics))`: means over the examples that 'mask' counts, their 'count', and
    the 'accuracy' where there are classes.

  Raises:
    ValueError: If there is no such kind.

  Example:
    >>> loss_fn = make_finetune_loss(model, 'span')  # doctest: +SKIP
  """
  kind = kind_of(task)

  def loss_fn(params, model_state, batch, rng):
    outputs = _outputs(
      model,
      kind,
      params,
      batch,
      deterministic=False,
      rngs={'dropout': rng},
    )
    each, correct = _losses(kind, outputs, batch, label_scale, margin)
    mask = batch.get('mask')
    mask = jnp.ones(each.shape, bool) if mask is None else mask
    count = mask.sum().astype(each.dtype)

    def mean(values):
      return jnp.where(mask, values, 0).sum() / jnp.maximum(count, 1)

    metrics = {'count': count}
    if correct is not None:
      metrics['accuracy'] = mean(correct.astype(each.dtype))
    return mean(each), (model_state, metrics)

  return loss_fn


def make_predict(
  model: Any,
  task: str | GlueTask,
  *,
  mesh: jax.sharding.Mesh | None = None,
  label_scale: float = 5.0,
) -> Callable[[Any, Any], dict[str, jax.Array]]:
  """Makes the function that predicts one batch.

  Args:
    model: As for `make_finetune_loss`.
    task: As for `make_finetune_loss`.
    mesh: Where parameters and batch lie; None for the default device.
    label_scale: As for `make_finetune_loss`; scores are on the task's scale.

  Returns:
    Jitted function `(params, batch)` to 'logits' [B, C] of classes or choices;
    'score' [B] of a regression; 'start' and 'end' [B, S] and, of v2,
    'answerable' [B]; or 'scores' [B, 1 + C] of WSC. Every device has all of
    them.
  """
  kind = kind_of(task)

  @jax.jit
  def predict(params, batch):
    if mesh is not None:
      batch = jax.lax.with_sharding_constraint(
        batch, training.batch_sharding(mesh)
      )
    outputs = _outputs(model, kind, params, batch, deterministic=True)
    if kind == 'regression':
      outputs = {'score': outputs['logits'][:, 0] * label_scale}
    if mesh is not None:
      outputs = jax.lax.with_sharding_constraint(
        outputs,
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()),
      )
    return outputs

  return predict


def predict_all(
  predict: Callable[[Any, Any], dict[str, jax.Array]],
  params: Any,
  examples: finetune_data.TokenExamples,
  batch_size: int,
  *,
  mesh: jax.sharding.Mesh | None = None,
  lengths: tuple[int, ...] = finetune_data.LENGTHS,
) -> dict[str, list[np.ndarray]]:
  """Predictions of all examples, in their order.

  Args:
    predict: Of `make_predict`.
    params: Parameters.
    examples: What to look at.
    batch_size: Examples of a batch.
    mesh: That of `predict`.
    lengths: As for `finetune_data.TokenBatches`.

  Returns:
    Name -> an array for each example; `np.stack` makes one of them where all
    have the same shape.
  """
  found = {}
  for indices, outputs in _predictions(
    predict, params, examples, batch_size, mesh, lengths
  ):
    for name, values in outputs.items():
      rows = found.setdefault(name, [None] * len(examples))
      for index, value in zip(indices, values):
        rows[index] = value
  return found


def _predictions(
  predict, params, examples, batch_size, mesh, lengths
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
  share = training.batch_share(mesh)
  waiting = None
  for indices, batch in finetune_data.ordered_batches(
    examples,
    batch_size,
    lengths=lengths,
    process_index=share[0],
    process_count=share[1],
  ):
    outputs = predict(params, training.put_batch(batch, mesh))
    # One behind: the device works while the last results are fetched.
    if waiting is not None:
      yield waiting[0], jax.device_get(waiting[1])
    waiting = indices, outputs
  yield waiting[0], jax.device_get(waiting[1])


def with_pretrained(
  state: training.TrainState, pretrained: Mapping[str, Any]
) -> training.TrainState:
  """A state whose parameters are pre-trained where there are such.

  Heads that are not among them keep their random initialisation.

  Args:
    state: A new state, of step 0; on a mesh or not.
    pretrained: Tree of arrays, `{'encoder': ..., ...}`: some of the top-level
      entries of the parameters, each complete.

  Returns:
    The state; each array lies where it lay.

  Raises:
    ValueError: If an entry is none of the parameters', or a leaf has another
      shape; says which.
  """
  unknown = sorted(set(pretrained) - set(state.params))
  if unknown:
    raise ValueError(
      f'pretrained has {", ".join(unknown)}; the model has'
      f' {", ".join(sorted(state.params))}.'
    )
  params = dict(state.params)
  for name, tree in pretrained.items():
    old, new = jax.tree.structure(params[name]), jax.tree.structure(tree)
    if old != new:
      raise ValueError(
        f'pretrained {name} has the structure {new}; the model has {old}.'
      )

    def place(path, leaf, value, name=name):
      if jnp.shape(value) != leaf.shape:
        path = jax.tree_util.keystr(path, simple=True, separator='/')
        raise ValueError(
          f'pretrained {name}/{path} has shape {jnp.shape(value)}; the model'
          f' has {leaf.shape}.'
        )
      # A copy: the first step takes the memory of the state's arrays.
      return jax.device_put(np.array(value, leaf.dtype), leaf.sharding)

    params[name] = jax.tree_util.tree_map_with_path(place, params[name], tree)
  ema = state.ema_params
  if ema is not None:
    ema = jax.tree.map(lambda p, e: jnp.array(p, e.dtype), params, ema)
  return state.replace(params=params, ema_params=ema)


def kind_of(task: str | GlueTask) -> str:
  """The kind of a task of GLUE, or a kind that is known.

  Raises:
    ValueError: If it is not.
  """
  if isinstance(task, GlueTask):
    return 'regression' if task.regression else 'classification'
  if task not in KINDS:
    raise ValueError(
      f'task is {task!r}; expected one of {", ".join(KINDS)}, or a task of'
      ' GLUE.'
    )
  return task


def _outputs(model, kind, params, batch, **options) -> dict[str, jax.Array]:
  variables = {'params': params}
  ids = batch['ids']
  if kind == 'wsc':
    flat = ids.reshape(-1, ids.shape[-1])
    positions = batch['positions'].reshape(len(flat), -1)
    logits = model.apply(variables, flat, positions=positions, **options)
    logits = logits.reshape(*batch['positions'].shape, -1)
    scores = wsc.phrase_scores(logits, batch['targets'], batch['weights'])
    return {'scores': scores}
  if kind != 'span':
    return {'logits': model.apply(variables, ids, **options)}
  start, end, answerable = model.apply(variables, ids, **options)
  # Padding is no place for an answer, and a wider batch no other task.
  valid = ids != model.config.pad_id
  outputs = {
    name: jnp.where(valid, logits, jnp.finfo(logits.dtype).min)
    for name, logits in (('start', start), ('end', end))
  }
  if answerable is not None:
    outputs['answerable'] = answerable
  return outputs


def _losses(kind, outputs, batch, label_scale, margin):
  """Loss of each example, and whether it is right where that has a meaning."""
  if kind == 'wsc':
    scores, there = outputs['scores'], batch['candidates']
    query, others = scores[:, 0], scores[:, 1:]
    wins = ((query[:, None] >= others) | ~there).all(1)
    return wsc.wsc_loss(query, others, there, margin=margin), wins
  if kind == 'span':
    each = losses.span_loss(
      outputs['start'], outputs['end'], batch['start'], batch['end']
    )
    if 'answerable' not in outputs:
      return each, None
    logits, there = outputs['answerable'], batch['answerable']
    each = each + losses.answerable_loss(logits, there)
    return each, (logits > 0) == (there > 0)
  logits = outputs['logits']
  if kind == 'regression':
    return losses.regression_loss(logits, batch['label'] / label_scale), None
  each = losses.cross_entropy(logits, batch['label'])
  return each, logits.argmax(-1) == batch['label']
