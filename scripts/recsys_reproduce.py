r"""Computes tables of the study again, beside the published numbers.

Examples:
  # Table 4: every method with the parameters that the paper prints.
  python scripts/recsys_reproduce.py --studies=table_4

  # The same with equal scores in the order of the study's program:
  NPY_DISABLE_CPU_FEATURES="X86_V4 X86_V3 AVX512_ICL AVX512_SKX AVX512F AVX2" \
      python scripts/recsys_reproduce.py --studies=table_4 --ties=numpy

  # All tables whose data are given, without what takes minutes a row:
  python scripts/recsys_reproduce.py --studies=all --fast

  # A network with its epochs from validation data, and baselines beside it:
  python scripts/recsys_reproduce.py --studies=strong_ml1m --methods=mult_vae

  # Tuned by ourselves, 35 configurations each, on validation data:
  python scripts/recsys_reproduce.py --studies=cmn_citeulike_a \
      --hparams=search --methods=RP3beta,item_knn_cf_cosine

Each finished row is a file in SAVE_DIR/rows: the same command after an
interruption goes on where it was; another --seed or --num_trials computes rows
again. Into --save_dir go STUDY.txt, STUDY.csv and
index.html, which shows all studies and needs no other file. Rows that differ
from the published ones by more than their tolerance are marked.

Where the paper prints no parameters for the data of a study they are searched.
Networks have the parameters of their authors; only the number of epochs is
chosen again, on validation data. (SpectralCF is searched, as in the study;
SpectralCF_article_default is not.) They are run if they are named, or with
--neural.
"""

import dataclasses
import io
import json

import _command_line
import _recsys_data
import _results
import numpy as np
from absl import flags
from etils import epath

from jaxpapers import recsys
from jaxpapers.data import files
from jaxpapers.recsys import (
  methods,
  numpy_ties,
  published,
  ranking,
  report,
  reproduction,
  search,
  studies,
)

_STUDIES = flags.DEFINE_list(
  'studies', ['cmn_citeulike_a'], 'Names, their tables (table_4), or all.'
)
_METHODS = flags.DEFINE_list(
  'methods', None, 'Rows to compute; by default all that can be.'
)
_HPARAMS = flags.DEFINE_enum(
  'hparams',
  'published',
  ['published', 'search'],
  'Parameters that the paper prints, or searched on validation data.',
)
_TIES = flags.DEFINE_enum(
  'ties',
  'index',
  ranking.LIST_TIES,
  'What decides between equal scores. numpy has the order of the published'
  ' rows, also of neighbours that are equally near; expected is the mean over'
  ' all orders.',
)
_FAST = flags.DEFINE_bool(
  'fast', False, 'Leave out rows that take minutes: SLIM, MF, NMF, iALS, EASE.'
)
_TRIALS = flags.DEFINE_integer(
  'num_trials', 35, 'Configurations of a search.', lower_bound=1
)
_RANDOM = flags.DEFINE_integer(
  'num_random', 5, 'Of these at random.', lower_bound=1
)
_MAX_EPOCHS = flags.DEFINE_integer(
  'max_epochs', None, 'Most epochs in a search.', lower_bound=1
)
_NEURAL = flags.DEFINE_bool(
  'neural', False, 'Also the networks: up to hours a row without a GPU.'
)
_BASELINES = flags.DEFINE_bool(
  'baselines', True, 'With networks in --methods also compute baselines.'
)
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Compute rows again that are there.'
)
_SAVE_DIR = flags.DEFINE_string(
  'save_dir', 'recsys_reproduction', 'Output folder.'
)
_DATA_DIR = flags.DEFINE_string(
  'data_dir',
  None,
  "Folder of the studies' files; by default recsys/ in $JAXPAPERS_DATA.",
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of random methods and searches.')
_SLOW = ('SLIM', 'MF', 'NMF', 'iALS', 'EASE', 'AsySVD')


def main() -> int:
  """Computes what is missing, writes all; returns the exit code."""
  folder = epath.Path(_SAVE_DIR.value)
  if _TIES.value == 'numpy' and not numpy_ties.scalar_sorts():
    variable, _, names = numpy_ties.SCALAR.partition('=')
    print(
      'numpy sorts with vector instructions here, which leave equal numbers in'
      ' another order than the published rows have. For theirs, set'
      f' {variable}="{names}".'
    )
  sections = []
  for name in _study_names():
    study, data = _recsys_data.load_study(name)
    rows, vectors = [], {}
    for method in _method_names(study, data):
      row, vector = _row(study, data, method, folder)
      rows.append(row)
      if vector is not None:
        vectors[row.method] = vector
      print(
        f'{study.name}  {row.method}: {report.state(row)}'
        f' ({row.fit_seconds:.1f} s + {row.evaluate_seconds:.1f} s)'
        f' {row.error}'.rstrip(),
        flush=True,
      )
    table = report.text(study, rows)
    files.write_file(folder / f'{study.name}.txt', table)
    files.write_file(folder / f'{study.name}.csv', report.to_csv(study, rows))
    print('\n' + table)
    sections.append((study, rows, _tests(study, rows, vectors)))
    files.write_file(folder / 'index.html', report.page(sections))
  counts = [report.state(row) for _, rows, _ in sections for row in rows]
  print(
    f'{counts.count("agrees")} rows agree with the paper,'
    f' {counts.count("differs")} differ, {counts.count("failed")} failed,'
    f' {counts.count("tuned") + counts.count("-")} cannot be compared.'
    f' index.html is in {folder}.'
  )
  return 0


def _study_names():
  if _STUDIES.value == ['all']:
    folder = _recsys_data.study_folder()
    names = [
      name
      for name, study in studies.STUDIES.items()
      if (folder / study.file).is_file()
    ]
    if not names:
      raise _command_line.UsageError(
        f'--studies=all: {folder} has none of the files of the studies'
      )
    return names
  try:
    return [studies.find(name).name for name in _STUDIES.value]
  except ValueError as error:
    raise _recsys_data.usage(error) from error


def _method_names(study, data):
  known = reproduction.rows_of(study, data)
  if _METHODS.value is not None:
    try:
      names = [methods.find(name).name for name in _METHODS.value]
    except ValueError as error:
      raise _recsys_data.usage(error) from error
    if _BASELINES.value:
      for name in tuple(names):
        names += reproduction.baselines_of(name, data)
    return list(dict.fromkeys(names))
  if not _NEURAL.value:
    known = [n for n in known if methods.find(n).family != 'neural']
  if _FAST.value:
    return [name for name in known if not name.startswith(_SLOW)]
  return known


def _row(study, data, method, folder):
  """A row from its file, or computed."""
  stem = method.lower().replace(' ', '_')
  base = folder / 'rows' / study.name / f'{stem}.{_HPARAMS.value}'
  file = base.parent / f'{base.name}.json'
  users = base.parent / f'{base.name}.npy'
  settings = _settings(_searched(study, method))
  if file.exists() and not _OVERWRITE.value:
    content = json.loads(file.read_text())
    same = content.pop('settings', settings) == settings
    row = reproduction.Row(**content)
    if same and not row.error:
      tolerance = reproduction.tolerance_of(study, row.method, _TIES.value)
      row = dataclasses.replace(
        row,
        tolerance=tolerance,
        agrees=reproduction.agreement(row.differences, tolerance),
      )
      return row, np.load(io.BytesIO(users.read_bytes()))
  try:
    row, vector = _compute(study, data, method, folder)
  except search.FAILURES as error:
    row = reproduction.failed_row(method, _HPARAMS.value, error)
    _results.write_json(file, dataclasses.asdict(row))
    return row, None
  content = io.BytesIO()
  np.save(content, vector)
  files.write_file(users, content.getvalue())
  _results.write_json(file, {**dataclasses.asdict(row), 'settings': settings})
  return row, vector


def _searched(study, method):
  """Whether parameters are searched, or at least the number of epochs."""
  found = methods.find(method)
  if found.family == 'neural':
    return True
  return bool(found.space) and (
    _HPARAMS.value == 'search'
    or found.name not in published.tuned(study.tables[0])
  )


def _settings(searched):
  """What a row depends on beside its method: with others it is another."""
  settings = {'seed': _SEED.value, 'ties': _TIES.value}
  if _TIES.value == 'numpy' and not numpy_ties.scalar_sorts():
    settings['sorts'] = 'vector'
  if searched:
    settings |= {
      'num_trials': _TRIALS.value,
      'num_random': _RANDOM.value,
      'max_epochs': _MAX_EPOCHS.value,
    }
  return settings


def _compute(study, data, method, folder):
  if not _searched(study, method):
    return reproduction.reproduce_row(
      study, data, method, seed=_SEED.value, ties=_TIES.value
    )
  (folder / 'rows').mkdir(parents=True, exist_ok=True)
  found = reproduction.tune(
    study,
    data,
    method,
    storage=str(folder / 'rows' / 'search.journal'),
    n_trials=_TRIALS.value,
    n_startup=_RANDOM.value,
    seed=_SEED.value,
    max_epochs=_MAX_EPOCHS.value,
    say=lambda line: print(f'{study.name}  {method} {line}', flush=True),
  )
  return reproduction.reproduce_row(
    study,
    data,
    method,
    parameters=reproduction.best_parameters(found.best),
    source='search',
    seed=_SEED.value,
    validation=found.best.value,
    ties=_TIES.value,
  )


def _tests(study, rows, vectors):
  """Every method against the best, for the metric that is tuned for."""
  if len(vectors) < 2:
    return {}
  best = max(vectors, key=lambda name: vectors[name].mean())
  return {
    name: (test.difference, p)
    for name, (test, p) in recsys.compare_all(
      vectors, best, resamples=1000
    ).items()
  }


if __name__ == '__main__':
  _command_line.run(main)
