"""What has to be kept of a null ensemble to go on with it, and its file."""

import hashlib
import io
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath


class NullState(NamedTuple):
  """An ensemble so far: what has to be kept to go on with it.

  Attributes:
    done: number of nulls drawn.
    k_max: int32[done], largest coreness of each.
    accepted: int32[done], number of switches made for each.
    occ_sum: int64[K + 1], nodes in each shell, summed over nulls.
    occ_square: int64[K + 1], its square, summed over nulls.
    run: fingerprint of key, graph and rounds.
  """

  done: int
  k_max: np.ndarray
  accepted: np.ndarray
  occ_sum: np.ndarray
  occ_square: np.ndarray
  run: str


def save_null_state(path: Any, state: NullState) -> None:
  """Writes a state to one file, complete or not at all.

  Args:
    path: of an .npz file, local or of any store that etils reads.
    state: what to keep.

  Example:
    >>> empty = np.zeros(0, np.int32)
    >>> state = NullState(0, empty, empty, np.zeros(3), np.zeros(3), 'run')
    >>> save_null_state('state.npz', state)  # doctest: +SKIP
  """
  path = epath.Path(path)
  buffer = io.BytesIO()
  np.savez(buffer, **state._asdict())
  path.parent.mkdir(parents=True, exist_ok=True)
  # A process that is killed while it writes leaves the old file whole.
  partial = path.parent / f'{path.name}.partial'
  partial.write_bytes(buffer.getvalue())
  partial.replace(path)


def load_null_state(path: Any) -> NullState:
  """Reads what `save_null_state` wrote.

  Args:
    path: of the file.

  Returns:
    The state.

  Raises:
    ValueError: the file is something else.
    FileNotFoundError: there is none.

  Example:
    >>> load_null_state('state.npz')  # doctest: +SKIP
  """
  with np.load(io.BytesIO(epath.Path(path).read_bytes())) as file:
    missing = set(NullState._fields) - set(file.files)
    if missing:
      raise ValueError(
        f'path {path} is no state of a null ensemble: no {sorted(missing)}.'
      )
    values = {name: file[name] for name in NullState._fields}
  values['done'], values['run'] = int(values['done']), str(values['run'])
  return NullState(**values)


def fingerprint(
  key: jax.Array, edges: np.ndarray, num_nodes: int, rounds: int
) -> str:
  """A short text that differs for another key, graph or number of rounds.

  Args:
    key: typed random key.
    edges: int32[m, 2].
    num_nodes: N.
    rounds: rounds per null.

  Returns:
    16 hexadecimal digits.

  Example:
    >>> len(fingerprint(jax.random.key(0), np.array([[0, 1]]), 2, 20))
    16
  """
  digest = hashlib.sha256(np.ascontiguousarray(edges).tobytes())
  digest.update(np.asarray(jax.random.key_data(key)).tobytes())
  digest.update(f'{jax.random.key_impl(key)} {num_nodes} {rounds}'.encode())
  return digest.hexdigest()[:16]
