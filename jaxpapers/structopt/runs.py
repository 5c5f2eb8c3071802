"""A folder of optimization runs: what is in it and under which names.

  <folder>/<task>/<method>_seed<k>.json   losses and settings
                                  .npz    designs
                                  .png    the best design, mirrored
                                  .gif    its evolution

A run without a seed, which starts from a constant, is `<method>_constant`.
The JSON file is written last: where it is, the run is finished and the other
files are whole. The folder may be on any file system that etils.epath knows.
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxpapers.structopt import domain, render
from jaxpapers.structopt.history import History

CONSTANT = -1
"""The seed of a run that starts from a constant."""

NETWORK_METHODS = ('cnn-lbfgs', 'adam')
"""Methods whose variables are the weights of a network: all need a seed."""

_FILE = re.compile(r'(?P<method>.+)_(seed(?P<seed>\d+)|constant)\.json')
# Pictures are enlarged to about this many pixels.
_PICTURE = 512


class Key(NamedTuple):
  """What identifies a run.

  Attributes:
    problem: name of the task.
    method: name of the method.
    seed: seed of the network's initial weights; `CONSTANT` for none.
  """

  problem: str
  method: str
  seed: int

  def __str__(self) -> str:
    start = 'constant' if self.seed == CONSTANT else f'seed {self.seed}'
    return f'{self.problem} {self.method} {start}'


@dataclasses.dataclass(frozen=True)
class Run:
  """The losses of a run, from whatever source.

  Attributes:
    key: what it is.
    losses: compliance at each evaluation, float [evaluations]; NaN where
      nothing was recorded.
    steps: index of the last evaluation that was allowed.
    stem: path of its files without their suffixes; None if it has none.
    metadata: what was stored along.
  """

  key: Key
  losses: np.ndarray
  steps: int
  stem: Any = None
  metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


def stem(folder, key: Key):
  """Path of a run's files without their suffixes.

  Args:
    folder: folder of the runs.
    key: the run.

  Returns:
    An `epath.Path`. Add suffixes by `with_suffix` of this module: task names
    have dots in them.
  """
  start = 'constant' if key.seed == CONSTANT else f'seed{key.seed}'
  return _epath(folder) / key.problem / f'{key.method}_{start}'


def with_suffix(path, suffix: str):
  """`path` with `suffix` appended to its name."""
  return path.parent / (path.name + suffix)


def save(
  folder,
  key: Key,
  history: History,
  problem: domain.Problem,
  keep_frames: bool = False,
) -> None:
  """Stores a finished run and its pictures; each file appears as a whole.

  Args:
    folder: folder of the runs.
    key: the run.
    history: its record. If it has frames, an animation is made of them.
    problem: the task, whose symmetry planes the pictures mirror.
    keep_frames: whether the .npz file holds the frames too. They are most of
      its size.
  """
  path = stem(folder, key)
  scale = max(1, _PICTURE // max(render.mirrored(problem.mask, problem).shape))
  frames = [*history.frames]
  if frames:
    images = [render.to_image(x, problem, scale=scale) for x in frames]
    render.save_gif(with_suffix(path, '.gif'), images)
  image = render.to_image(history.best_design, problem, scale=scale)
  render.save_png(with_suffix(path, '.png'), image)
  if not keep_frames:
    none = np.zeros((0, 0, 0), np.float32)
    history = dataclasses.replace(history, frames=none, frame_evaluations=())
  history.save(path)


def load(folder, key: Key) -> Run | None:
  """Reads the losses of one run.

  Args:
    folder: folder of the runs.
    key: the run.

  Returns:
    The run, or None if it is not finished.

  Raises:
    ValueError: its file is damaged.
  """
  return _read(stem(folder, key), key)


def find(folder, problem_filter: str = '') -> list[Run]:
  """Reads the losses of all finished runs in a folder.

  Args:
    folder: folder of the runs.
    problem_filter: regular expression that task names have to contain.

  Returns:
    The runs, by task, method and seed.

  Raises:
    ValueError: the folder does not exist, or a file in it is damaged.
  """
  folder = _epath(folder)
  if not folder.is_dir():
    raise ValueError(f'There is no folder {str(folder)!r}.')
  keys = []
  for path in folder.glob('*/*.json'):
    match = _FILE.fullmatch(path.name)
    if match and re.search(problem_filter, path.parent.name):
      seed = CONSTANT if match['seed'] is None else int(match['seed'])
      keys.append(Key(path.parent.name, match['method'], seed))
  return [run for key in sorted(keys) if (run := load(folder, key))]


def clean(folder, key: Key) -> None:
  """Removes what a killed process left of an unfinished run."""
  path = stem(folder, key)
  if path.parent.is_dir():
    for leftover in path.parent.glob(f'.{path.name}.*'):
      leftover.unlink(missing_ok=True)


def plan(
  problems: Iterable[str],
  methods: Sequence[str],
  num_seeds: int = 1,
  baseline_seeds: int = 0,
) -> list[Key]:
  """The runs of an experiment, those of one task together.

  Args:
    problems: names of the tasks.
    methods: names of the methods.
    num_seeds: seeds 0, 1, ... of the methods with a network.
    baseline_seeds: seeds from which the others start, besides the constant.

  Returns:
    Their keys.
  """
  keys = []
  for problem in problems:
    for method in methods:
      seeds = [CONSTANT, *range(baseline_seeds)]
      if method in NETWORK_METHODS:
        seeds = range(num_seeds)
      keys += [Key(problem, method, seed) for seed in seeds]
  return keys


def share(keys: Sequence[Key], index: int, count: int) -> list[Key]:
  """The part of an experiment that one of several processes runs.

  The pairs of task and seed are dealt out in turn, all methods of a pair to
  the same process.

  Args:
    keys: all runs; the same in every process.
    index: number of the process.
    count: number of processes.

  Returns:
    Its runs, in the order given.
  """
  order = {name: i for i, name in enumerate(dict.fromkeys(k[0] for k in keys))}
  pairs = sorted({(key.seed, order[key.problem]) for key in keys})
  mine = set(pairs[index::count])
  return [key for key in keys if (key.seed, order[key.problem]) in mine]


def suggestion(name: str, names: Iterable[str]) -> str:
  """A sentence that suggests near names; empty if there are none."""
  near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
  return f' Did you mean {", ".join(near)}?' if near else ''


def _read(path, key: Key) -> Run | None:
  file = with_suffix(path, '.json')
  if not file.exists():
    return None
  try:
    record = json.loads(file.read_text())
    return Run(
      key=key,
      losses=np.array(record['losses'], np.float64),
      steps=int(record['steps']),
      stem=path,
      metadata=record['metadata'],
    )
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f'{str(file)!r} is not the record of a run ({error!r}); remove it, so'
      ' that the run is made again.'
    ) from error


def _epath(path):
  from etils import epath  # imports slowly

  return epath.Path(path)
