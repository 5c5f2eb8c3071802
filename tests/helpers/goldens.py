"""Golden numbers: reading the files, and deriving weights from names.

A golden file holds inputs and outputs, never weights. Weights and random
inputs follow from a name, in the same way in every framework:

  z = Generator(PCG64(crc32(name))).standard_normal(shape)   # float64, C order

so both the program that wrote the file and the test that reads it build them.
"""

import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

TESTDATA = pathlib.Path(__file__).resolve().parent.parent / 'testdata'


def rng(tag: str) -> np.random.Generator:
  """Generator seeded by a name.

  Args:
    tag: any text; equal texts give equal streams on every machine.

  Returns:
    A PCG64 generator at the start of its stream.
  """
  return np.random.Generator(np.random.PCG64(zlib.crc32(tag.encode())))


def normal(tag: str, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
  """Standard normal numbers that follow from a name, times `scale`.

  Args:
    tag: name of the array.
    shape: its shape.
    scale: factor.

  Returns:
    float64 array of that shape, in C order.
  """
  return rng(tag).standard_normal(shape) * scale


def path(paper: str, *parts: str) -> pathlib.Path:
  """Path of a file below `tests/testdata/<paper>/`.

  Raises:
    FileNotFoundError: if it is not there; the message lists what is.
  """
  found = TESTDATA.joinpath(paper, *parts)
  if not found.exists():
    folder = found.parent
    there = sorted(p.name for p in folder.glob('*')) if folder.is_dir() else []
    raise FileNotFoundError(
      f'{found} is missing. Files in that folder: {", ".join(there) or "none"}.'
    )
  return found


def load_json(paper: str, *parts: str) -> Any:
  """Content of a JSON file below `tests/testdata/<paper>/`."""
  with path(paper, *parts).open(encoding='utf-8') as file:
    return json.load(file)


def load_npz(paper: str, *parts: str) -> Mapping[str, np.ndarray]:
  """All arrays of an .npz file below `tests/testdata/<paper>/`.

  Returns:
    Name -> array. Pickled objects are refused.
  """
  with np.load(path(paper, *parts), allow_pickle=False) as archive:
    return {name: archive[name] for name in archive.files}
