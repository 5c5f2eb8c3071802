r"""Recommends items to users out of a file of interactions.

Examples:
  # Ten items for each of three users, by RP3beta:
  python scripts/recsys_recommend.py --interactions=ratings.csv \
      --users=17,42,99 --save_file=recommended.csv

  # Everybody, by EASE, with parameters of recsys_tune:
  python scripts/recsys_recommend.py --interactions=ratings.csv \
      --method=EASE_R --tuned=recsys_tuned/tuned.json --save_file=all.csv

  # Items that are alike in genres and in users; items.csv has item, genre:
  python scripts/recsys_recommend.py --interactions=ratings.csv \
      --features=items.csv --method=item_knn_cfcbf_cosine

The file may be csv, tsv, Parquet, MovieLens' and others; --file_format names it
if it is not clear. All of it is learnt from. Items that a user has are not
recommended unless --include_seen. The output has a line for each
recommendation: user, rank, item, score.
"""

import csv
import io
import json

import _command_line
import _recsys_data
import numpy as np
from absl import flags
from etils import epath

from jaxpapers import recsys
from jaxpapers.data import files
from jaxpapers.recsys import methods, readers

_INTERACTIONS = flags.DEFINE_string(
  'interactions', None, 'A file of interactions.', required=True
)
_FORMAT = flags.DEFINE_enum(
  'file_format', 'auto', ('auto', *readers.FORMATS), 'Its format.'
)
_THRESHOLD = flags.DEFINE_float(
  'threshold', None, 'Keep ratings of at least this, as 1.'
)
_recsys_data.define_features_flag()
_METHOD = flags.DEFINE_string('method', 'RP3beta', 'Name of the method.')
_SET = flags.DEFINE_multi_string('set', [], 'A parameter, as name=value.')
_TUNED = flags.DEFINE_string(
  'tuned', None, 'tuned.json of recsys_tune: its parameters of the method.'
)
_USERS = flags.DEFINE_list(
  'users', None, 'Names of users; by default all. @FILE has one in each line.'
)
_TOP = flags.DEFINE_integer('top_n', 10, 'Items for each.', lower_bound=1)
_SEEN = flags.DEFINE_bool('include_seen', False, 'Also what a user has.')
_SEED = flags.DEFINE_integer('seed', 0, 'For random methods.')
_SAVE = flags.DEFINE_string(
  'save_file', None, 'Output, CSV; by default to standard output.'
)


def main() -> int:
  """Fits and recommends; returns the exit code."""
  parameters = _recsys_data.parse_parameters(_METHOD.value, _SET.value)
  name = methods.find(_METHOD.value).name
  if _TUNED.value:
    parameters = {**_tuned(name), **parameters}
  try:
    loaded = readers.read_interactions(
      _INTERACTIONS.value, _FORMAT.value, threshold=_THRESHOLD.value
    )
    users = _users(loaded.users)
    train = loaded.interactions
    features = None
    if flags.FLAGS.features:
      if not methods.find(name).needs_features:
        raise ValueError(
          f'--features: {name} does not look at features; content methods do,'
          ' such as item_knn_cbf_cosine.'
        )
      features = _recsys_data.load_features(loaded.items)
    model = methods.fit(
      name, train, parameters, features=features, seed=_SEED.value
    )
    lists = recsys.rank_full(
      model,
      train,
      users,
      min(_TOP.value, train.num_items),
      exclude_seen=not _SEEN.value,
    )
  except (OSError, ValueError) as error:
    raise _recsys_data.usage(error) from error
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(['user', 'rank', 'item', 'score'])
  for user, items, scores in zip(*lists, strict=True):
    for rank, (item, score) in enumerate(zip(items, scores, strict=True), 1):
      if item >= 0:
        writer.writerow(
          [loaded.users[user], rank, loaded.items[item], f'{score:.6g}']
        )
  if not _SAVE.value:
    print(text.getvalue(), end='')
    return 0
  files.write_file(_SAVE.value, text.getvalue())
  short = int((lists.items[:, -1] < 0).sum())
  print(
    f'{_SAVE.value}: {len(users)} users'
    + (f', {short} of them with fewer than {_TOP.value} items' if short else '')
  )
  return 0


def _tuned(name):
  try:
    content = json.loads(epath.Path(_TUNED.value).read_text())
  except (OSError, ValueError) as error:
    raise _command_line.UsageError(f'--tuned={_TUNED.value}: {error}') from None
  if name not in content:
    raise _command_line.UsageError(
      f'--tuned={_TUNED.value} has {", ".join(content)}; not {name}'
    )
  return content[name]['parameters']


def _users(names):
  if _USERS.value is None:
    return np.arange(len(names))
  given = _USERS.value
  if len(given) == 1 and given[0].startswith('@'):
    lines = epath.Path(given[0][1:]).read_text().splitlines()
    given = [line.strip() for line in lines if line.strip()]
  place = {str(name): number for number, name in enumerate(names)}
  unknown = [name for name in given if name not in place]
  if unknown:
    raise ValueError(
      f'--users: {len(unknown)} names are not in the file, the first'
      f' {unknown[0]!r}.'
    )
  return np.array([place[name] for name in given])


if __name__ == '__main__':
  _command_line.run(main)
