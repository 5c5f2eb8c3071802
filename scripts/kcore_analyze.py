r"""k-core percolation of brain networks: analyses recordings, writes a report.

Examples:
  # Made recordings with a planted core; no data needed:
  python scripts/kcore_analyze.py --synthetic --save_dir=kcore_synthetic

  # fMRI runs in a BIDS folder, words that are seen against masked ones:
  python scripts/kcore_analyze.py --data=dataset --condition='word.*' \
      --second_condition='masked.*' --save_dir=kcore_words

  # A folder with bold.nii.gz, mask.nii.gz and attributes.txt (for each scan a
  # label and the number of its run), such as PyMVPA's slice of Haxby's data:
  python scripts/kcore_analyze.py --data=haxby_slice \
      --second_condition=scrambledpix --save_dir=kcore_haxby

  # A connectivity matrix and a table of its nodes, modules in column 9:
  python scripts/kcore_analyze.py --matrix=meancorr_utr.npy \
      --labels=parcel_data.txt --label_column=9 --coord_columns=3,4,5 \
      --label_pattern='7Networks_.*' --save_dir=kcore_myconnectome

What happens: recordings -> active voxels (linear model, --p_value) -> modules
(spatial clusters, or --atlas) -> correlations -> percolation -> thresholds
lambda_in and lambda_out -> network -> k-shells and the innermost core ->
statistics, random networks of the same degrees (--num_nulls), collapse of the
dynamical model, and what other choices on the way would have given.

Into --save_dir go report.html (all of it, self-contained), results.json (all
numbers), figures/*.png, and network.npz for kcore_null and kcore_collapse.

The method is that of Arese Lucini, Del Ferraro, Sigman & Makse (2019,
arXiv:1903.09630); docs/kcore.md says what public data can show of it.
"""

import time

import _command_line
import _kcore_data
from absl import flags
from etils import epath

_DATA = flags.DEFINE_string(
  'data', None, 'Folder of recordings, BIDS or with labels of scans.'
)
_MATRIX = flags.DEFINE_string(
  'matrix',
  None,
  'Connectivity matrix, .npy or text: square, or its upper triangle in a row.',
)
_SYNTHETIC = flags.DEFINE_bool(
  'synthetic', False, 'Analyse recordings of the generator.'
)
_SAVE_DIR = flags.DEFINE_string(
  'save_dir', 'kcore_output', 'Output folder, local or gs://.'
)
_NUM_STREAMS = flags.DEFINE_integer(
  'num_streams', 10, '--synthetic: number of recordings.', lower_bound=1
)
_MASK = flags.DEFINE_string('mask', None, '--data: mask image for all runs.')
_ATLAS = flags.DEFINE_string(
  'atlas', None, '--data: image of regions, which become the modules.'
)
_TR = flags.DEFINE_float(
  'tr', None, '--data: seconds between scans, where headers are wrong.'
)
_REST = flags.DEFINE_string(
  'rest', 'rest|baseline|fixation', '--data: labels that are no stimulus.'
)
_CONDITION = flags.DEFINE_string(
  'condition',
  '.*',
  '--data: regular expression of the events whose network is analysed.',
)
_SECOND = flags.DEFINE_string(
  'second_condition', '', '--data: events of the second state; empty for none.'
)
_P = flags.DEFINE_float('p_value', 1e-6, '--data: level of active voxels.')
_P_SECOND = flags.DEFINE_float(
  'p_second', 1e-2, 'Level of active voxels in the second state.'
)
_CONSENSUS = flags.DEFINE_float(
  'consensus',
  None,
  '--data: voxels of the second state have to be active in this part of the'
  ' runs, as in the paper (0.8). By default one model is fitted to all runs.'
  ' --synthetic has 0.8.',
)
_CONNECTIVITY = flags.DEFINE_enum(
  'connectivity', '26', ['6', '18', '26'], '--data: neighbours in a cluster.'
)
_MIN_SIZE = flags.DEFINE_integer(
  'min_size', 6, '--data: smallest module.', lower_bound=1
)
_LABELS = flags.DEFINE_string(
  'labels', None, '--matrix: table with a row per node.'
)
_LABEL_COLUMN = flags.DEFINE_integer(
  'label_column', 1, '--matrix: column of the module in --labels, from 1.'
)
_LABEL_PATTERN = flags.DEFINE_string(
  'label_pattern', '.+', '--matrix: leaves out nodes with other labels.'
)
_COORDS = flags.DEFINE_list(
  'coord_columns', [], '--matrix: columns of x, y, z in --labels, from 1.'
)
_STRATEGY = flags.DEFINE_enum(
  'strategy',
  'module_merge',
  ['module_merge', 'largest_jump', 'global'],
  'How thresholds follow from the percolation.',
)
_STEP = flags.DEFINE_float(
  'step', 0.01, 'Grid of thresholds; 0 takes every level.', lower_bound=0.0
)
_QUORUM = flags.DEFINE_float(
  'quorum', 0.5, 'Part of a module that has to be in a merge.'
)
_THRESHOLD = flags.DEFINE_float(
  'threshold', None, '--strategy=global: links from here.'
)
_DENSITY = flags.DEFINE_float(
  'density', None, '--strategy=global: part of all pairs to link.'
)
_SHOWN = flags.DEFINE_integer(
  'shown', 0, 'Index of the network that the figures show.', lower_bound=0
)
_NUM_NULLS = flags.DEFINE_integer(
  'num_nulls', 1000, 'Random networks per network; 0 for none.', lower_bound=0
)
_NULL_NETWORKS = flags.DEFINE_integer(
  'null_networks',
  1,
  'How many networks are compared with random ones, from --shown on.',
  lower_bound=1,
)
_ROUNDS = flags.DEFINE_integer(
  'rounds',
  0,
  'Rounds of switches per random network; 0 for 20, or more where it takes more'
  ' to accept three switches per edge.',
  lower_bound=0,
)
_SEED = flags.DEFINE_integer(
  'seed', 0, 'Of the random networks, and the first of --synthetic.'
)
_SENSITIVITY = flags.DEFINE_bool(
  'sensitivity', True, 'Try other grids, quorums and strategies.'
)
_BACKGROUND = flags.DEFINE_float('background', 0.1, 'I of the model.')
_RESISTANCE = flags.DEFINE_float('resistance', 1.0, 'R of the model.')
_SLOPE = flags.DEFINE_float('slope', 60.0, 'n of the model.')
_ALPHA = flags.DEFINE_float('alpha', 1.0, 'Threshold of the model.')
_COMPILATION_CACHE = flags.DEFINE_string(
  'compilation_cache',
  'default',
  'Where JAX keeps compiled programs between runs: a folder, "default"'
  " (JAX_COMPILATION_CACHE_DIR or the user's cache folder) or empty for"
  ' nowhere.',
)


def main() -> int:
  """Analyses what the flags name; returns the exit code."""
  kinds = [_DATA.value, _MATRIX.value, _SYNTHETIC.value or None]
  if sum(kind is not None for kind in kinds) != 1:
    raise _command_line.UsageError(
      'What to analyse? Give one of --data, --matrix and --synthetic'
    )
  for name in ('p_value', 'p_second'):
    if not 0 < flags.FLAGS[name].value < 1:
      raise _command_line.UsageError(
        f'--{name}={flags.FLAGS[name].value} has to lie between 0 and 1'
      )
  from jaxpapers.kcore import pipeline, report

  _command_line.use_compilation_cache(_COMPILATION_CACHE.value)
  began = time.perf_counter()

  def say(text):
    print(f'{time.perf_counter() - began:6.1f} s  {text}', flush=True)

  say('reading')
  study = _study()
  try:
    analysis = pipeline.analyze(study, _options(), say=say)
  except ValueError as error:
    raise _command_line.UsageError(str(error)) from error
  path = report.write(analysis, epath.Path(_SAVE_DIR.value), say=say)
  _print_summary(analysis)
  say(f'wrote {path}')
  return 0


def _study():
  from jaxpapers.kcore import study

  if _SYNTHETIC.value:
    try:
      return study.synthetic_study(
        _NUM_STREAMS.value,
        seed=_SEED.value,
        p=_P_SECOND.value,
        fraction=_CONSENSUS.value or 0.8,
      )
    except ValueError as error:
      raise _command_line.UsageError(str(error)) from error
  if _MATRIX.value is not None:
    return _kcore_data.read_matrix(
      _MATRIX.value,
      _LABELS.value,
      label_column=_LABEL_COLUMN.value,
      label_pattern=_LABEL_PATTERN.value,
      coord_columns=_COORDS.value,
    )
  return _kcore_data.read_folder(
    _DATA.value,
    mask=_MASK.value,
    atlas=_ATLAS.value,
    tr=_TR.value,
    rest=_REST.value,
    condition=_CONDITION.value,
    second_condition=_SECOND.value,
    p=_P.value,
    p_other=_P_SECOND.value,
    fraction=_CONSENSUS.value,
    connectivity=int(_CONNECTIVITY.value),
    min_size=_MIN_SIZE.value,
  )


def _options():
  from jaxpapers.kcore import pipeline

  return pipeline.Options(
    strategy=_STRATEGY.value,
    step=_STEP.value or None,
    quorum=_QUORUM.value,
    threshold=_THRESHOLD.value,
    density=_DENSITY.value,
    shown=_SHOWN.value,
    num_nulls=_NUM_NULLS.value,
    null_networks=_NULL_NETWORKS.value,
    rounds=_ROUNDS.value or None,
    seed=_SEED.value,
    sensitivity=_SENSITIVITY.value,
    I=_BACKGROUND.value,
    R=_RESISTANCE.value,
    n=_SLOPE.value,
    alpha=_ALPHA.value,
  )


def _print_summary(analysis) -> None:
  head = ['network', 'links', 'k_max', 'core', 'by module', 'U index']
  rows = [
    [
      result.name,
      len(result.edges),
      result.k_max,
      int(result.core.sum()),
      ' '.join(map(str, result.core_by_module.tolist())),
      f'{result.u_index:.2f}',
    ]
    for result in analysis.results
  ]
  rows = [head, *[[str(cell) for cell in row] for row in rows]]
  width = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    cells = (c.ljust(w) for c, w in zip(row, width, strict=True))
    print('  '.join(cells).rstrip())
  for index, null in analysis.nulls.items():
    result = analysis.results[index]
    print(
      f'{result.name}: k_max {result.k_max}, random networks '
      f'{null.k_max.mean():.2f} ± {null.k_max.std():.2f}, '
      f'p = {null.p_value(result.k_max):.2g}'
    )
    print(
      f'{result.name}: {null.rounds} rounds, {null.swaps_per_edge:.2f} accepted'
      ' swaps per edge' + ('' if null.mixed else ': may be under-mixed')
    )


if __name__ == '__main__':
  _command_line.run(main)
