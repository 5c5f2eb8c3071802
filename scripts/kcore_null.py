r"""Compares a network with random ones of the same degrees; goes on if killed.

Examples:
  # The paper's million random networks, on all devices of this machine:
  python scripts/kcore_null.py --network=kcore_output/network.npz \
      --num_nulls=1000000 --chunk=8192 --save_dir=null_million

  # A list of edges, and how many rounds of switches are enough:
  python scripts/kcore_null.py --network=edges.txt --num_nulls=2000 --mixing

Random networks are uniform over all graphs with the degrees of --network: each
starts there and goes through --rounds rounds of switches of all its edges.
Their numbers depend on --seed only, not on chunks, devices or interruptions.

Start the same command again after an interruption: what was drawn until the
last save is in null_state.npz and is not drawn again. A larger --num_nulls goes
on from a smaller one.

Into --save_dir go null.json (mean and spread of k_max and of every shell, p, z,
accepted switches), null.png and null_state.npz.
"""

import math
import sys
import time

import _command_line
import _kcore_data
import jax
from absl import flags
from etils import epath

_NETWORK = flags.DEFINE_string(
  'network',
  None,
  'network.npz of kcore_analyze or its folder, an .npy adjacency matrix, or a'
  ' text file with two columns of node numbers from 0.',
)
_NUM_NULLS = flags.DEFINE_integer(
  'num_nulls', 1000, 'Random networks.', lower_bound=1
)
_ROUNDS = flags.DEFINE_integer(
  'rounds', 20, 'Rounds of switches per random network.', lower_bound=1
)
_CHUNK = flags.DEFINE_integer(
  'chunk', 256, 'Random networks per call of the devices.', lower_bound=1
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of all random numbers.')
_SAVE_DIR = flags.DEFINE_string(
  'save_dir', 'kcore_null', 'Output folder, local or gs://.'
)
_SAVE_EVERY = flags.DEFINE_float(
  'save_every', 10.0, 'Seconds between saves.', lower_bound=0.0
)
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Begin anew instead of going on.'
)
_MIXING = flags.DEFINE_bool(
  'mixing', False, 'Also follow k_max over rounds, to see how many suffice.'
)
_COMPILATION_CACHE = flags.DEFINE_string(
  'compilation_cache',
  'default',
  'Where JAX keeps compiled programs between runs: a folder, "default"'
  " (JAX_COMPILATION_CACHE_DIR or the user's cache folder) or empty for"
  ' nowhere.',
)


def main() -> int:
  """Draws the random networks; returns the exit code."""
  network = _kcore_data.read_network(_NETWORK.value)
  from jaxpapers.kcore import null, report
  from jaxpapers.kcore.coreness import coreness
  from jaxpapers.kcore.edges import Edges

  _command_line.use_compilation_cache(_COMPILATION_CACHE.value)
  folder = epath.Path(_SAVE_DIR.value)
  file = folder / 'null_state.npz'
  edges, nodes = network['edges'], network['num_nodes']
  values = coreness(Edges(edges, nodes))
  k_max = int(values.max())
  mesh = _mesh()
  key = jax.random.key(_SEED.value)
  state = None
  if file.exists() and not _OVERWRITE.value:
    state = _load_state(file, key, edges, nodes)
  print(
    f'{nodes} nodes, {len(edges)} links, k_max {k_max};'
    f' {jax.device_count()} {jax.default_backend()} device(s)'
    + (f'; {state.done} random networks are there' if state else ''),
    flush=True,
  )
  began, drawn = time.perf_counter(), state.done if state else 0
  state = _draw(key, edges, nodes, mesh, state, file)
  seconds = time.perf_counter() - began
  summary = null.summarize(state, len(edges), _ROUNDS.value)
  numbers = {
    'nodes': nodes,
    'links': len(edges),
    'k_max': k_max,
    'num_nulls': len(summary.k_max),
    'rounds': _ROUNDS.value,
    'seed': _SEED.value,
    'k_max_mean': float(summary.k_max.mean()),
    'k_max_std': float(summary.k_max.std()),
    'k_max_counts': _counts(summary.k_max),
    'p': summary.p_value(k_max),
    'z': summary.z_score(k_max),
    'occupancy_mean': summary.occ_mean,
    'occupancy_std': summary.occ_std,
    'swaps_per_edge': summary.swaps_per_edge,
    'mixed': summary.mixed,
  }
  if _MIXING.value:
    numbers['mixing'] = _mixing(key, edges, nodes, mesh)
  report.put(folder / 'null.json', report.to_json(numbers))
  _picture(folder, values, summary)
  print(
    f'k_max {k_max}, random {numbers["k_max_mean"]:.3f} ±'
    f' {numbers["k_max_std"]:.3f}, z = {numbers["z"]:.1f},'
    f' p = {numbers["p"]:.3g}; {summary.swaps_per_edge:.1f} accepted swaps per'
    f' edge; {(state.done - drawn) / seconds:.0f} random networks per second'
  )
  if not summary.mixed:
    per_round = summary.swaps_per_edge / _ROUNDS.value
    enough = max(20, math.ceil(3.1 / max(per_round, 1e-3)))
    print(
      'The random networks may be under-mixed: fewer than 20 rounds, or than 3'
      f' accepted swaps per edge. --rounds={enough} would do; see --mixing.',
      file=sys.stderr,
    )
  return 0


def _load_state(file, key, edges, nodes):
  """The random networks of an earlier run, if it was one like this."""
  from jaxpapers.kcore import null_state

  try:
    state = null_state.load_null_state(file)
  except ValueError as error:
    raise _command_line.UsageError(f'{error} (--overwrite)') from error
  if state.run != null_state.fingerprint(key, edges, nodes, _ROUNDS.value):
    raise _command_line.UsageError(
      f'{file} belongs to another run: --network, --seed and --rounds have to'
      ' be the same to go on; --overwrite begins anew'
    )
  if state.done > _NUM_NULLS.value:
    raise _command_line.UsageError(
      f'{file} holds {state.done} random networks already, more than'
      f' --num_nulls={_NUM_NULLS.value}'
    )
  return state


def _draw(key, edges, nodes, mesh, state, file):
  """Draws what is missing, with a bar, and saves now and then."""
  from tqdm import tqdm

  from jaxpapers.kcore import null, null_state

  saved = time.perf_counter()
  bar = tqdm(
    total=_NUM_NULLS.value,
    initial=state.done if state else 0,
    unit='null',
    dynamic_ncols=True,
    smoothing=0.1,
  )
  kept = state
  try:
    for kept in null.null_chunks(  # noqa: B020
      key,
      edges,
      nodes,
      _NUM_NULLS.value,
      rounds=_ROUNDS.value,
      chunk=_CHUNK.value,
      mesh=mesh,
      state=state,
    ):
      bar.update(kept.done - bar.n)
      bar.set_postfix_str(f'k_max {kept.k_max.mean():.2f}', refresh=False)
      if time.perf_counter() - saved >= _SAVE_EVERY.value:
        null_state.save_null_state(file, kept)
        saved = time.perf_counter()
  finally:
    # Also where the user stops it with Ctrl-C.
    bar.close()
    if kept is not None and kept is not state:
      null_state.save_null_state(file, kept)
  return kept


def _mesh():
  """All devices of this machine; None for one."""
  count = jax.device_count()
  return None if count == 1 else jax.make_mesh((count,), ('nulls',))


def _counts(k_max):
  import numpy as np

  values, counts = np.unique(k_max, return_counts=True)
  return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _mixing(key, edges, nodes, mesh):
  """Mean k_max along the chains, with the error of each change."""
  from jaxpapers.kcore import null

  mixing = null.null_mixing(
    key, edges, nodes, num_nulls=min(200, _NUM_NULLS.value), mesh=mesh
  )
  print('rounds  mean k_max  change ± s.e.   swaps per edge')
  for i, rounds in enumerate(mixing.rounds):
    change = f'{mixing.drift[0, i - 1]:+.3f} ± {mixing.drift[1, i - 1]:.3f}'
    print(
      f'{rounds:6d}  {mixing.mean[i]:10.3f}  {change if i else "":>14}'
      f'  {mixing.swaps_per_edge[i]:14.2f}'
    )
  return {
    'rounds': mixing.rounds,
    'k_max_mean': mixing.mean,
    'drift': mixing.drift,
    'swaps_per_edge': mixing.swaps_per_edge,
  }


def _picture(folder, coreness, summary):
  import numpy as np

  from jaxpapers.kcore import figures, report

  occupancy = np.bincount(np.asarray(coreness))
  figure = figures.null_band(occupancy, summary)
  report.put(folder / 'null.png', figures.to_png(figure))


if __name__ == '__main__':
  _command_line.run(main)
