r"""Evaluates a re-identification network and writes a report, one HTML file.

Examples:
  # Weights of torchreid on Market-1501, with re-ranking:
  python scripts/osnet_eval.py --weights=osnet_x1_0_market.pth \
      --model=osnet_x1_0 --dataset=market1501 --data=/data --rerank \
      --output=report

  # A run of osnet_train on data sets that it has not seen:
  python scripts/osnet_eval.py --weights=runs/ain --data=/data \
      --dataset=dukemtmc,msmt17 --output=report

  # Your own images; identity and camera are in their names:
  python scripts/osnet_eval.py --weights=runs/ain --query=shop/query \
      --gallery=shop/gallery --pattern='^(?P<pid>\w+)-(?P<cam>\d+)-' \
      --output=report

  # People that are drawn; no data needed:
  python scripts/osnet_eval.py --weights=synthetic --dataset=synthetic \
      --output=report

Into --output go report.html (curves, thresholds, ranked lists, activation maps:
everything in one file), report.json and a table of the queries of each data
set. Features are computed once for the same weights and files: see --cache.

A query is not compared with images of its identity and camera. Junk (identity
-1) is left out of the gallery, and queries without a match are left out of the
means; the report counts all of them. An image that cannot be read is an error
unless --skip_unreadable is set.
"""

import _command_line
import _osnet_evaluation
import _osnet_model
import _osnet_report
import _results
from absl import flags

from jaxpapers import data as data_lib
from jaxpapers.data import files
from jaxpapers.osnet import datasets, splits, synth

_osnet_model.define_flags()
_DATASET = flags.DEFINE_list(
  'dataset',
  [],
  f'Data sets: {", ".join(datasets.DATASETS)} or synthetic.',
)
_DATA = flags.DEFINE_string('data', '', 'Folder that holds them.')
_QUERY = flags.DEFINE_string('query', '', 'Folder of queries of your own.')
_GALLERY = flags.DEFINE_string('gallery', '', 'Folder of their gallery.')
_PATTERN = flags.DEFINE_string(
  'pattern',
  datasets.MARKET_PATTERN,
  'Of their names: a regular expression with groups pid and, if there are'
  ' cameras, cam.',
)
_CUHK03 = flags.DEFINE_enum(
  'cuhk03',
  'detected-new',
  [f'{a}-{b}' for a in ('detected', 'labeled') for b in ('new', 'classic')],
  'Boxes and protocol of CUHK03.',
)
_SPLIT = flags.DEFINE_integer(
  'split', 0, 'Of the classic protocol, and of viper and those after it.'
)
_DISTRACTORS = flags.DEFINE_bool(
  'distractors', False, 'Add the 500,000 distractors of Market-1501.'
)
_NORMALIZE = flags.DEFINE_bool('normalize', False, 'Features of the norm 1.')
_RERANK = flags.DEFINE_bool('rerank', False, 'Re-rank k-reciprocally, too.')
_K1 = flags.DEFINE_integer('k1', 20, 'Reciprocal neighbours.', lower_bound=1)
_K2 = flags.DEFINE_integer('k2', 6, 'Neighbours to average.', lower_bound=1)
_LAMBDA = flags.DEFINE_float(
  'lambda', 0.3, 'Weight of the original distance.', 0, 1
)
_CANDIDATES = flags.DEFINE_integer(
  'candidates',
  0,
  'Gallery images of each query to re-rank; 0 for all.',
  lower_bound=0,
)
_EXPAND = flags.DEFINE_integer(
  'expand', 0, 'Neighbours of query expansion, itself one; 0 for none.', 0
)
_ALPHA = flags.DEFINE_float('alpha', 3.0, 'Exponent of its weights.', 0)
_MAX_RANK = flags.DEFINE_integer('max_rank', 50, 'Of the CMC curve.', 1)
_EXAMPLES = flags.DEFINE_integer('examples', 8, 'Ranked lists of a kind.', 0)
_TOP = flags.DEFINE_integer('top', 10, 'Images in a list.', 1)
_SEED = flags.DEFINE_integer('seed', 0, 'Of examples and of drawn people.', 0)
_IDENTITIES = flags.DEFINE_integer(
  'identities', 80, 'Of drawn people, a multiple of 4.', 4
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Folder for the report.', required=True
)


def main() -> None:
  """Evaluates on each data set."""
  _command_line.use_compilation_cache(flags.FLAGS.compilation_cache)
  _check_flags()
  model = _osnet_model.load()
  output = files.as_path(_OUTPUT.value)
  opened = _open(model, output)
  options = _osnet_evaluation.Options(
    metric=model.metric,
    normalize=_NORMALIZE.value,
    max_rank=_MAX_RANK.value,
    rerank=_RERANK.value,
    k1=_K1.value,
    k2=_K2.value,
    lam=_LAMBDA.value,
    candidates=_CANDIDATES.value,
    expand=_EXPAND.value,
    alpha=_ALPHA.value,
  )
  results = []
  for data in opened:
    result = _osnet_evaluation.evaluate(model, data, options)
    results.append(result)
    _results.show(
      [
        {'data': result.name, 'ranked by': name, **_osnet_evaluation.row(one)}
        for name, one in result.ranks.items()
      ]
    )
  about = [
    ('weights', model.weights),
    ('images', f'{model.hw[0]} x {model.hw[1]}'),
    ('distance', model.metric + (', normalised' if _NORMALIZE.value else '')),
    ('trained on', model.trained_on),
  ]
  if _RERANK.value:
    text = f'k1 {_K1.value}, k2 {_K2.value}, lambda {_LAMBDA.value:g}'
    about.append(('re-ranking', text))
  if _EXPAND.value:
    about.append(
      ('query expansion', f'{_EXPAND.value}, alpha {_ALPHA.value:g}')
    )
  page = _osnet_report.page(
    model,
    results,
    about,
    examples=_EXAMPLES.value,
    top=_TOP.value,
    seed=_SEED.value,
  )
  for result in results:
    _results.write_csv(
      output / f'queries_{result.name}.csv', _osnet_evaluation.per_query(result)
    )
  _results.write_json(
    output / 'report.json',
    {
      'model': model.name,
      **{name.replace(' ', '_'): text for name, text in about if text},
      'results': {r.name: _osnet_evaluation.summary(r) for r in results},
    },
  )
  data_lib.write_file(output / 'report.html', page)
  print(f'Wrote {output / "report.html"}')


def _check_flags():
  """Refuses flags that do not fit, before anything is read."""
  if bool(_QUERY.value) != bool(_GALLERY.value):
    raise _command_line.UsageError(
      '--query and --gallery: one is missing; give both folders'
    )
  if not _QUERY.value and not _DATASET.value:
    raise _command_line.UsageError(
      '--dataset is missing; or give --query and --gallery'
    )
  if _IDENTITIES.value % 4:
    raise _command_line.UsageError(
      f'--identities is {_IDENTITIES.value}; give a multiple of 4'
    )
  known = (*datasets.DATASETS, 'synthetic')
  for name in _DATASET.value:
    if name not in known:
      raise _command_line.UsageError(
        f'--dataset: {name!r} is none of {", ".join(known)}'
      )
    if name != 'synthetic' and not _DATA.value:
      raise _command_line.UsageError(
        f'--data is missing; give the folder that holds {name}'
      )


def _open(model, output):
  """The data sets that the flags name."""
  try:
    found = [_open_one(name, model, output) for name in _DATASET.value]
    if _QUERY.value:
      query, gallery = datasets.image_folders(
        (_QUERY.value, _GALLERY.value), _PATTERN.value
      )
      # Nothing is trained here.
      found.append(
        splits.counted(datasets.ReIDDataset('folder', query, query, gallery))
      )
  except (OSError, ValueError) as error:
    raise _command_line.UsageError(
      f'--{"query" if _QUERY.value else "data"}:'
      f' {_command_line.one_line(error)}'
    ) from error
  return found


def _open_one(name, model, output):
  if name == 'synthetic':
    folder = output / (
      f'synthetic_{_SEED.value}_{_IDENTITIES.value}_{model.hw[0]}x{model.hw[1]}'
    )
    if not (folder / 'complete').exists():
      benchmark = synth.make_benchmark(
        _SEED.value, test_identities=_IDENTITIES.value, size=model.hw
      )
      synth.write_market_folder(folder, benchmark)
      data_lib.write_file(folder / 'complete', '')
    return datasets.Market1501(folder)._replace(name='synthetic')
  if name == 'market1501' and _DISTRACTORS.value:
    return datasets.Market1501(_DATA.value, distractors=True)
  return datasets.open_reid(
    name, _DATA.value, cuhk03=_CUHK03.value, split=_SPLIT.value
  )


if __name__ == '__main__':
  _command_line.run(main)
