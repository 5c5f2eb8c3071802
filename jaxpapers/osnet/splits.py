"""What a reader of a data set returns."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

_NOTHING: Mapping[str, int] = {}


class ReIDSplit(NamedTuple):
  """Images of people.

  Attributes:
    paths: Of the files, [n].
    pids: Identities as the files have them, int32 [n].
    camids: Cameras from 0, int32 [n].
    excluded: Kind -> number of images that were left out.
  """

  paths: tuple[str, ...]
  pids: np.ndarray
  camids: np.ndarray
  excluded: Mapping[str, int] = _NOTHING


class ReIDDataset(NamedTuple):
  """Training images, and queries to be found in a gallery.

  Attributes:
    name: Of the data set.
    train: To train on.
    query: To look for.
    gallery: Where.
    protocol: How it is evaluated: see `rank_metrics`.
    distractor: The identity of images of nobody in particular, if there is one.
    counts: Split -> what there is of what, and what was left out.
  """

  name: str
  train: ReIDSplit
  query: ReIDSplit
  gallery: ReIDSplit
  protocol: str = 'market1501'
  distractor: int | None = None
  counts: Mapping[str, Any] = _NOTHING


def make_split(
  folder: Any,
  names: Sequence[str],
  pids: Any,
  camids: Any,
  *,
  junk: Sequence[int] = (),
  excluded: Mapping[str, int] = _NOTHING,
) -> ReIDSplit:
  """A split of files in one folder.

  Args:
    folder: Where.
    names: Paths in it.
    pids: Identities, [n].
    camids: Cameras, [n].
    junk: Identities to leave out.
    excluded: What was left out before.

  Returns:
    The split.

  Raises:
    ValueError: Nothing is left.
  """
  pids, camids = np.asarray(pids, np.int32), np.asarray(camids, np.int32)
  kept = ~np.isin(pids, junk)
  if (~kept).any():
    excluded = {**excluded, 'junk': int((~kept).sum())}
  if not kept.any():
    raise ValueError(f'{folder} holds only junk, {len(pids)} images.')
  paths = tuple(
    str(folder / name) for name, there in zip(names, kept, strict=True) if there
  )
  return ReIDSplit(paths, pids[kept], camids[kept], excluded)


def chosen(split: ReIDSplit, mask: np.ndarray) -> ReIDSplit:
  """Some images of a split.

  Args:
    split: Of all.
    mask: bool [n].

  Returns:
    Of those.
  """
  return ReIDSplit(
    tuple(p for p, there in zip(split.paths, mask, strict=True) if there),
    split.pids[mask],
    split.camids[mask],
    split.excluded,
  )


def concatenated(parts: Sequence[ReIDSplit]) -> ReIDSplit:
  """One split of several.

  Args:
    parts: One or more.

  Returns:
    Of all images, in order.
  """
  return ReIDSplit(
    sum((tuple(part.paths) for part in parts), ()),
    np.concatenate([part.pids for part in parts]).astype(np.int32),
    np.concatenate([part.camids for part in parts]).astype(np.int32),
    {key: value for part in parts for key, value in part.excluded.items()},
  )


def counted(data: ReIDDataset) -> ReIDDataset:
  """The data set with its counts.

  Args:
    data: Without.

  Returns:
    With.
  """
  counts = {}
  for part in ('train', 'query', 'gallery'):
    split = getattr(data, part)
    people = split.pids
    if data.distractor is not None:
      people = people[people != data.distractor]
    counts[part] = {
      'images': len(split.paths),
      'identities': len(np.unique(people)),
      'cameras': len(np.unique(split.camids)),
      **split.excluded,
    }
    if len(people) < len(split.pids):
      counts[part]['distractors'] = len(split.pids) - len(people)
  return data._replace(counts=counts)
