"""Runs of the ablations of OSNet: one folder for each network and seed."""

import json
from typing import Any

import _command_line
import _osnet_data
import _osnet_training
import _results
import _training_command_line
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from jaxpapers import training
from jaxpapers.osnet import (
  architecture_search,
  losses,
  optimizers,
  recipes,
  scale_probe,
)
from jaxpapers.osnet import config as config_lib

RESULT = 'result.json'
# What a table shows of each task, best first.
_COLUMNS = ('rank1', 'mAP', 'mINP', 'mA', 'F1', 'accuracy')
_LAGS = tuple(f'lag{lag}' for lag in scale_probe.LAGS)


def options_of(name: str) -> dict[str, Any]:
  """Options of a variant of the paper.

  Raises:
    UsageError: If there is no such variant.
  """
  known = recipes.variants()
  if name not in known:
    raise _command_line.UsageError(
      f'--config.variants has {name!r}; expected of {tuple(known)}'
    )
  return known[name]


def recipe_of(config: Any, variant: str, seed: int) -> Any:
  """The config of one run.

  Args:
    config: Of the study.
    variant: Name of a variant.
    seed: Of weights, order and augmentation; and of the people, if they are
      drawn.

  Returns:
    A config of osnet_train.py.
  """
  # A copy to the bottom: options of one variant are not those of the next.
  recipe = ml_collections.ConfigDict(config.recipe.to_dict())
  for name, value in options_of(variant).items():
    recipe.model.options[name] = value
  recipe.seed = seed
  if 'synthetic' in recipe.data.sources:
    recipe.data.seed = seed
  return ml_collections.FrozenConfigDict(recipe)


def run_training(
  run: _training_command_line.Run,
) -> list[dict[str, Any]] | None:
  """Trains every variant with every seed; finished runs are not repeated.

  Args:
    run: The flags.

  Returns:
    A row of each run; None if a signal came.
  """
  config, rows = run.config, []
  for variant in config.variants:
    options_of(variant)
  # Seeds first: whoever stops early has all networks.
  for seed in config.seeds:
    opened = None
    for variant in config.variants:
      folder = run.workdir / f'{variant}-{seed}'
      kept = folder / RESULT
      if kept.exists():
        rows.append(json.loads(kept.read_text()))
        continue
      recipe = recipe_of(config, variant, seed)
      _osnet_training.make_problem(recipe)
      opened = opened or _osnet_data.open_data(recipe)
      data, tests = opened
      problem = _osnet_training.make_problem(recipe, data)
      part = _training_command_line.Run(recipe, folder, run.mesh, False)
      result = _osnet_training.fit(part, recipe, problem, data, tests)
      if not result.finished:
        run.exit_code(result)
        return None
      row = {'variant': variant, 'seed': seed, 'steps': result.step}
      row['params'] = _count(result.state.params)
      for test in tests:
        prefix = '' if len(tests) == 1 else f'{test.name}/'
        numbers = training.read_metrics(folder, test.name)
        row |= {
          prefix + name: float(values[-1])
          for name, values in numbers.items()
          if name != 'step'
        }
      if run.first:
        _results.write_json(kept, row)
      rows.append(row)
      _say(run, row)
  return rows


def _count(params):
  """Parameters without the classifier, as the paper counts them."""
  return sum(
    leaf.size
    for name, tree in params.items()
    if name != 'classifier'
    for leaf in jax.tree.leaves(tree)
  )


def _say(run, row):
  if run.console:
    shown = [
      f'{name} {100 * row[name]:.1f}'
      for name in (*_COLUMNS, *_LAGS)
      if name in row
    ]
    _training_command_line.say(
      f'{row["variant"]}, seed {row["seed"]}: {", ".join(shown)}'
    )


def run_probe(run: _training_command_line.Run) -> list[dict[str, Any]]:
  """Which lags of a texture each block can tell, see `scale_probe`.

  Args:
    run: The flags.

  Returns:
    A row of each block and seed.
  """
  config, rows = run.config, []
  unknown = sorted(set(config.variants) - set(scale_probe.VARIANTS))
  if unknown:
    raise _command_line.UsageError(
      f'--config.variants has {unknown}; expected of'
      f' {tuple(scale_probe.VARIANTS)}'
    )
  for seed in config.seeds:
    for variant in config.variants:
      folder = run.workdir / f'{variant}-{seed}'
      kept = folder / RESULT
      if kept.exists():
        rows.append(json.loads(kept.read_text()))
        continue
      result = scale_probe.run_probe(
        config_lib.OSNetConfig(**scale_probe.VARIANTS[variant]),
        (seed,),
        steps=config.probe.steps,
        batch=config.probe.batch_size,
        learning_rate=config.probe.learning_rate,
        test_images=config.probe.test_images,
      )
      row = {'variant': variant, 'seed': seed, 'steps': config.probe.steps}
      row |= dict(zip(_LAGS, np.asarray(result.accuracy[0], float).tolist()))
      row['loss'] = float(result.losses[0, -10:].mean())
      folder.mkdir(parents=True, exist_ok=True)
      _results.write_json(kept, row)
      rows.append(row)
      _say(run, row)
  return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Mean and standard deviation over seeds, a row for each network.

  Args:
    rows: Of the runs.

  Returns:
    Shares in percent as 'mean', and 'mean_sd' (with n - 1) where there are
    several seeds.
  """
  found = []
  for variant in dict.fromkeys(row['variant'] for row in rows):
    own = [row for row in rows if row['variant'] == variant]
    line = {'variant': variant, 'runs': len(own)}
    if 'params' in own[0]:
      line['params'] = own[0]['params']
    for name in own[0]:
      if name in ('variant', 'seed', 'steps', 'params', 'num_valid', 'loss'):
        continue
      values = 100 * np.array([row[name] for row in own])
      line[name] = float(values.mean())
      if len(own) > 1:
        line[f'{name}_sd'] = float(values.std(ddof=1))
    found.append(line)
  return found


def draw(path: Any, table: list[dict[str, Any]]) -> None:
  """Bars with standard deviations, those of errors by scale beside them.

  Args:
    path: Of the figure.
    table: Of `summary`.
  """
  try:
    import matplotlib.figure
  except ImportError as error:
    raise ImportError(
      "figures need matplotlib: pip install 'jaxpapers[osnet]'"
    ) from error
  scores = [c for c in (*_COLUMNS, *_LAGS) if c in table[0]][:4]
  errors = [
    name
    for name in table[0]
    if name.startswith('error_') and not name.endswith('_sd')
  ]
  panels = [scores] + ([errors] if errors else [])
  figure = matplotlib.figure.Figure(
    (5 * len(panels), 3.2), layout='constrained'
  )
  for axis, names in zip(np.ravel(figure.subplots(1, len(panels))), panels):
    wide = 0.8 / len(table)
    for number, line in enumerate(table):
      axis.bar(
        np.arange(len(names)) + wide * (number - (len(table) - 1) / 2),
        [line[name] for name in names],
        wide,
        yerr=[line.get(f'{name}_sd', 0.0) for name in names],
        label=line['variant'],
        error_kw={'linewidth': 0.8},
      )
    axis.set_xticks(
      np.arange(len(names)), [n.removeprefix('error_') for n in names]
    )
    axis.set_ylabel('% of queries' if names is errors else '%')
    axis.grid(axis='y', alpha=0.3)
  axis.legend(fontsize='small')
  _results.save_figure(path, figure)


def make_search_job(
  config: Any, data: _osnet_data.TrainData
) -> tuple[training.Job, int, Any]:
  """The training step of the search for OSNet-AIN.

  Args:
    config: Of the study.
    data: What is trained on.

  Returns:
    The job, updates of an epoch, and the network's config.

  Raises:
    UsageError: If a field does not fit.
  """
  recipe, search = config.recipe, config.search
  try:
    recipes.check(recipe)
    cfg = recipes.model_config(recipe)
    augmentation = recipes.augmentation(recipe)
    per_epoch = len(data) // recipe.batch_size
    if not per_epoch:
      raise ValueError(
        f'batch_size is {recipe.batch_size}; expected no more than the'
        f' {len(data)} training images.'
      )
    tx, _ = optimizers.osnet_from_scratch(
      recipe.epochs,
      per_epoch,
      recipe.optimizer.learning_rate,
      schedule=recipe.optimizer.schedule,
      milestones=tuple(recipe.optimizer.step_epochs),
      momentum=recipe.optimizer.momentum,
      weight_decay=recipe.optimizer.weight_decay,
    )
    temperatures = jnp.asarray(
      [
        architecture_search.temperature_at(
          epoch, search.start, search.factor, search.every, search.least
        )
        for epoch in range(recipe.epochs + 1)
      ]
    )
  except (TypeError, ValueError) as error:
    raise _command_line.UsageError(
      f'--config: {_command_line.one_line(error)}'
    ) from error
  model = architecture_search.SearchOSNet(cfg, data.num_classes)
  shape = (recipe.batch_size, recipe.height, recipe.width, 3)

  def init(key):
    keys = {'params': key, 'gumbel': key}
    variables = model.init(keys, jnp.zeros((1, *shape[1:]), jnp.float32))
    return variables['params'], {
      'batch_stats': variables['batch_stats'],
      'augmentation': augmentation.init(shape),
      'step': jnp.zeros((), jnp.int32),
    }

  def loss_fn(params, model_state, batch, rng):
    augment_key, gumbel_key = jax.random.split(rng)
    augmented, images = augmentation(
      model_state['augmentation'], augment_key, batch['image']
    )
    step = model_state['step']
    temperature = temperatures[jnp.minimum(step // per_epoch, recipe.epochs)]
    out, new = model.apply(
      {'params': params, 'batch_stats': model_state['batch_stats']},
      images,
      True,
      temperature,
      rngs={'gumbel': gumbel_key},
      mutable=['batch_stats'],
    )
    loss = losses.cross_entropy_label_smoothing(
      out.logits, batch['label'], recipe.loss.label_smoothing
    )
    right = out.logits.argmax(-1) == batch['label']
    model_state = {
      'batch_stats': new['batch_stats'],
      'augmentation': augmented,
      'step': step + 1,
    }
    metrics = {
      'accuracy': right.mean(dtype=jnp.float32),
      'temperature': temperature,
    }
    return loss, (model_state, metrics)

  batch = {
    'image': jax.ShapeDtypeStruct(shape, jnp.uint8),
    'label': jax.ShapeDtypeStruct(shape[:1], jnp.int32),
  }
  return training.Job(init, loss_fn, tx, batch), per_epoch, cfg


def run_search(run: _training_command_line.Run) -> bool:
  """Searches for the places of instance norms; writes the network found.

  Args:
    run: The flags.

  Returns:
    Whether it came to its end.
  """
  from jaxpapers import data as shared_data

  recipe = run.config.recipe
  data, _ = _osnet_data.open_data(recipe)
  job, per_epoch, cfg = make_search_job(run.config, data)
  index, count = training.batch_share(run.mesh)
  batches = shared_data.batches(
    data.source,
    recipe.batch_size,
    seed=recipe.seed,
    process_index=index,
    process_count=count,
    num_workers=recipe.data.workers,
  )
  try:
    result = training.fit(
      job.state(jax.random.key(recipe.seed), run.mesh),
      job.step(run.mesh),
      batches,
      num_steps=recipe.epochs * per_epoch,
      workdir=run.workdir,
      mesh=run.mesh,
      log_every=per_epoch,
      checkpoint_every=max(1, round(recipe.checkpoint_every * per_epoch)),
      console=run.console,
      examples_per_step=recipe.batch_size,
    )
  except training.NonFiniteLossError as error:
    raise _command_line.UsageError(str(error)) from error
  except shared_data.CorruptFileError as error:
    raise _command_line.UsageError(_command_line.one_line(error)) from error
  finally:
    batches.close()
  if not result.finished:
    run.exit_code(result)
    return False
  params = training.fetch(result.state.params)
  alphas = architecture_search.architecture_weights(params)
  child = architecture_search.child_config(params, cfg)
  if run.first:
    _results.write_json(
      run.workdir / 'architecture.json',
      {
        'instance_norm': [kind or '' for kind in child.instance_norm],
        'alpha': {name: alpha.tolist() for name, alpha in alphas.items()},
      },
    )
    option = str(tuple(kind or '' for kind in child.instance_norm))
    _training_command_line.say(
      f'Found {child.instance_norm}. To train it: osnet_train.py'
      f' --config.model.options.stem_norm=instance'
      f' --config.model.options.instance_norm="{option}"'
    )
  return True
