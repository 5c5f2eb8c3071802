r"""Ablations of OSNet: which scales it sees, what its parts are worth.

Examples:
  # Which lags of a texture one block can tell (a CPU is enough):
  python scripts/osnet_ablate.py \
      --config=scripts/configs/osnet/ablate.py:probe --workdir=probe

  # Omni-scale against single-scale on drawn people, three seeds, errors by
  # scale, with the two controls that the paper lacks:
  python scripts/osnet_ablate.py \
      --config=scripts/configs/osnet/ablate.py:synthetic --workdir=study

  # The ablations of the paper on Market-1501, from scratch:
  python scripts/osnet_ablate.py \
      --config=scripts/configs/osnet/ablate.py:variants \
      --config.recipe.data.folder=/data --workdir=gs://bucket/variants

  # Numbers of streams on CIFAR-10:
  python scripts/osnet_ablate.py \
      --config=scripts/configs/osnet/ablate.py:cifar \
      --config.recipe.data.folder=~/data/cifar10 --workdir=cifar

  # Where instance norms help: the search that found OSNet-AIN:
  python scripts/osnet_ablate.py \
      --config=scripts/configs/osnet/ablate.py:ain \
      --config.recipe.data.folder=/data --workdir=search

Config fields:
  study       probe; train (all but the search); or search
  variants    names of networks, see recipes.variants() and, of the probe,
              scale_probe.VARIANTS
  seeds       one run of each network for each
  probe.*     steps, batch_size, learning_rate, test_images
  search.*    start, factor, every, least: the temperature, in epochs
  recipe.*    what osnet_train.py takes as its config

Into --workdir goes a folder for each network and seed, then runs.csv,
summary.csv (percent, mean and standard deviation over seeds), summary.json and
summary.png; of a search metrics.jsonl, checkpoints and architecture.json.
Finished runs are not repeated, others go on where they were.

"""

import _command_line
import _osnet_data
import _osnet_studies
import _osnet_training
import _results
import _training_command_line
import ml_collections
from absl import flags

from jaxpapers import training

_training_command_line.define_flags('osnet/ablate.py:probe', 'osnet_ablate')
flags.adopt_module_key_flags(_training_command_line)

_STUDIES = ('probe', 'train', 'search')


def make_job(config: ml_collections.ConfigDict) -> training.Job:
  """A step of the first network, or of the search; for compile_for_tpu.py."""
  if config.study == 'search':
    data = _osnet_data.placeholder(config.recipe)
    return _osnet_studies.make_search_job(config, data)[0]
  recipe = _osnet_studies.recipe_of(config, config.variants[0], 0)
  return _osnet_training.make_problem(recipe).job


def main() -> int:
  """Runs a study and writes its tables."""
  config = _training_command_line.read_config()
  if config.study not in _STUDIES:
    raise _command_line.UsageError(
      f'--config.study is {config.study!r}; expected one of {_STUDIES}'
    )
  for name in ('variants', 'seeds'):
    if config.study != 'search' and not config[name]:
      raise _command_line.UsageError(
        f'--config.{name} is empty; expected one or more'
      )
  run = _training_command_line.start()
  if config.study == 'search':
    _osnet_studies.run_search(run)
    return 0
  if config.study == 'probe':
    rows = _osnet_studies.run_probe(run)
  else:
    rows = _osnet_studies.run_training(run)
  if rows and run.first:
    table = _osnet_studies.summary(rows)
    _results.write_csv(run.workdir / 'runs.csv', rows)
    _results.write_csv(run.workdir / 'summary.csv', table)
    _results.write_json(run.workdir / 'summary.json', table)
    _osnet_studies.draw(run.workdir / 'summary.png', table)
    _results.show(table)
  return 0


if __name__ == '__main__':
  _command_line.run(main)
