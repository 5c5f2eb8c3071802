r"""Looks for the faults of published splits: is this test set fair?

Examples:
  # A split of the paper: its test part is no random sample, and that is said.
  python scripts/recsys_audit.py --study=spectralcf_ml1m

  # Negatives that the user has, and what only ties decide:
  python scripts/recsys_audit.py --train=music.train.rating \
      --test=music.test.rating --negatives=music.test.negative \
      --method=item_knn_cf_cosine --set=top_k=100

It counts pairs that are in training and test data, stored negatives that are in
training, users and items without history; compares the popularity of the test
part with that of all data and of a random part of the same size; and, with
--method, says what a metric is worth in the best and in the worst order of
equal scores. --findings prints what the study found in each of its 18 papers.

The exit code is 1 if something was found, so that it can guard a pipeline.
"""

import dataclasses

import _command_line
import _recsys_data
import _results
from absl import flags
from etils import epath

from jaxpapers import recsys
from jaxpapers.recsys import methods, metrics, published, reproduction

_METHOD = flags.DEFINE_string('method', None, 'Also fit this and try its ties.')
_SET = flags.DEFINE_multi_string('set', [], 'A parameter, as name=value.')
_METRIC = flags.DEFINE_enum(
  'metric', 'hit_rate', metrics.METRICS, 'What ties are tried on.'
)
_CUTOFF = flags.DEFINE_integer('cutoff', 10, 'Its cutoff.', lower_bound=1)
_FINDINGS = flags.DEFINE_bool(
  'findings', False, 'Print what the study found, and end.'
)
_SAVE_DIR = flags.DEFINE_string(
  'save_dir', None, 'Output folder for audit.json; nothing by default.'
)
_recsys_data.define_data_flags()


def main() -> int:
  """Audits; returns 1 if something was found."""
  if _FINDINGS.value:
    for paper in published.PAPERS:
      mark = 'reproducible' if paper.reproducible else 'not reproducible'
      cells = f' Metrics won: {paper.cells}.' if paper.cells else ''
      doubt = '' if paper.certain else ' (from memory)'
      print(
        f'{paper.name}, {paper.venue}, {mark}{doubt}: {paper.finding}{cells}'
      )
    return 0
  parameters = {}
  if _METHOD.value:
    parameters = _recsys_data.parse_parameters(_METHOD.value, _SET.value)
  problem = _recsys_data.load_problem()
  _recsys_data.print_repairs(problem)
  data = problem.data
  train = data.train
  if data.profiles is not None:
    train = recsys.union(data.train, data.profiles)
  try:
    report = recsys.audit_split(
      train, data.test, data.negatives, seed=flags.FLAGS.seed
    )
    ties = None
    if _METHOD.value:
      reproduction.check_method(_METHOD.value, data)
      model = methods.fit(
        _METHOD.value,
        data.train,
        parameters,
        features=data.features,
        seed=flags.FLAGS.seed,
      )
      ties = recsys.audit_ties(
        model,
        data.train,
        data.test,
        metric=_METRIC.value,
        cutoff=_CUTOFF.value,
        allow_overlap=True,
        **problem.options(),
      )
  except ValueError as error:
    raise _recsys_data.usage(error) from error
  _show(report, ties)
  if _SAVE_DIR.value:
    content = dataclasses.asdict(report)
    if ties is not None:
      content['ties'] = dataclasses.asdict(ties)
    path = epath.Path(_SAVE_DIR.value) / 'audit.json'
    _results.write_json(path, content)
  return 1 if report.flags else 0


def _show(report, ties):
  print(f'{report.users} users with {report.test_items} test items')
  if report.negatives is not None:
    print(
      f'{report.seen_negatives} of {report.negatives} negatives are in train,'
      f' {report.negatives_in_test} in test'
    )
  print('popularity        train      test')
  for key in ('kendall_tau', 'gini', 'shannon', 'herfindahl', 'max', 'mean'):
    print(f'{key:12s} {report.train[key]:10.4f} {report.test[key]:10.4f}')
  print(f'tau of a random test part of this size: {report.tau_random:.4f}')
  if ties is not None:
    print(
      f'{ties.metric}@{ties.cutoff}: {ties.pessimistic:.4f} in the worst order'
      f' of ties, {ties.expected:.4f} on average, {ties.optimistic:.4f} in the'
      f' best; {ties.users_tied} users have ties'
    )
  for name, words in report.flags.items():
    print(f'FOUND {name}: {words}')
  if not report.flags:
    print('Nothing found.')


if __name__ == '__main__':
  _command_line.run(main)
