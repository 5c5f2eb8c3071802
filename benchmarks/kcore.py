"""k-cores, null ensembles and percolation side by side with peers.

Prints one JSON object. Peers and ours alternate in one process, so that a busy
machine slows all of them alike. `wall` is the smallest and the median time of a
call, `cpu` the smallest processor time of all threads: on a busy machine the
one that repeats.

  python benchmarks/kcore.py                       # all, a few minutes
  python benchmarks/kcore.py --parts=null --repeats=30

What is measured:

  null         one null graph and its k_max: ours (20 rounds of global switches,
               as many trials as 10 per edge), igraph's rewire (10 trials per
               edge) and coreness, networkx's double_edge_swap to the number of
               switches that ours accepts, and core_number
  coreness     one graph: ours, igraph, networkx; and 1000 graphs in one call
  percolation  the whole curve: ours, scipy's single linkage (levels only) and
               its connected components on a grid of 100
  device       nulls per second of `null_coreness` on the default device, and
               the number of nulls that --num_nulls asks for

The peers igraph, networkx and scipy are left out where they are not installed.
"""

import importlib.metadata
import importlib.util
import json
import platform
import statistics
import sys
import time

import numpy as np
from absl import app, flags

_PARTS = flags.DEFINE_list(
  'parts', ['null', 'coreness', 'percolation', 'device'], 'What to measure.'
)
_REPEATS = flags.DEFINE_integer('repeats', 15, 'Calls of the fast programs.')
_NETWORK = flags.DEFINE_string(
  'network',
  '',
  'An .npz with `edges` [m, 2] and `n`. By default made networks of 608 nodes '
  'and 1317 edges, and of 610 and 10725, with heavy-tailed degrees.',
)
_SIZES = flags.DEFINE_list('sizes', ['630', '2000', '5000'], 'Percolation.')
_NUM_NULLS = flags.DEFINE_integer('num_nulls', 512, 'Nulls of the device part.')
_CHUNK = flags.DEFINE_integer('chunk', 256, 'Nulls per call of the device.')


def _installed(name):
  return importlib.util.find_spec(name) is not None


def _measure(programs, repeats):
  """Alternates programs; name -> seconds. A program may have its own count."""
  wall = {name: [] for name in programs}
  cpu = {name: [] for name in programs}
  for program, _ in programs.values():
    program()  # Compiles, and fills caches.
  for turn in range(repeats):
    for name, (program, most) in programs.items():
      if turn >= most:
        continue
      start, start_cpu = time.perf_counter(), time.process_time()
      program()
      cpu[name].append(time.process_time() - start_cpu)
      wall[name].append(time.perf_counter() - start)
  return {
    name: {
      'wall': [min(times), statistics.median(times)],
      'cpu': min(cpu[name]),
      'calls': len(times),
    }
    for name, times in wall.items()
  }


def _made_network(n, m, seed=0):
  """A simple graph with heavy-tailed degrees (Chung and Lu's weights)."""
  rng = np.random.default_rng(seed)
  weight = rng.pareto(1.5, n) + 0.3
  weight = np.minimum(weight, np.quantile(weight, 0.98))
  edges = set()
  while len(edges) < m:
    u, v = rng.choice(n, 2, p=weight / weight.sum())
    if u != v:
      edges.add((min(u, v), max(u, v)))
  return np.array(sorted(edges), np.int32), n


def _networks():
  if _NETWORK.value:
    with np.load(_NETWORK.value) as file:
      return {'given': (file['edges'].astype(np.int32), int(file['n']))}
  return {
    '608 nodes, 1317 edges': _made_network(608, 1317),
    '610 nodes, 10725 edges': _made_network(610, 10725),
  }


def _null(edges, n):
  import jax

  from jaxpapers import kcore
  from jaxpapers.kcore.rewire import switch_rounds

  pairs = jax.numpy.asarray(edges)

  @jax.jit
  def one(key):
    u, v, accepted = switch_rounds(key, pairs[:, 0], pairs[:, 1], n, 20)
    graph = kcore.Edges(jax.numpy.stack([u, v], 1), n)
    return kcore.coreness(graph, method='peel').max(), accepted

  keys = iter(jax.random.split(jax.random.key(0), 10_000))
  k_max, accepted = one(jax.random.key(1))
  many, m = 8, len(edges)

  def chunk():
    kcore.null_coreness(next(keys), edges, n, many, chunk=many)

  import warnings

  warnings.simplefilter('ignore', kcore.UnderMixedWarning)
  programs = {
    'ours': (lambda: jax.block_until_ready(one(next(keys))), 10**9),
    f'ours, null_coreness of {many}': (chunk, 10**9),
  }
  if _installed('igraph'):
    import igraph

    graph = igraph.Graph(n, edges.tolist())

    def by_igraph():
      new = graph.copy()
      new.rewire(n=10 * m)
      return max(new.coreness())

    programs['igraph'] = (by_igraph, 10**9)
  if _installed('networkx'):
    import networkx

    start = networkx.Graph()
    start.add_nodes_from(range(n))
    start.add_edges_from(edges.tolist())

    def by_networkx():
      new = start.copy()
      networkx.double_edge_swap(new, int(accepted), max_tries=10**9)
      return max(networkx.core_number(new).values())

    programs['networkx'] = (by_networkx, 3)
  times = _measure(programs, _REPEATS.value)
  report = {'seconds': times, 'accepted_swaps': int(accepted), 'm': m}
  for peer in ('igraph', 'networkx'):
    if peer in times:
      report[f'{peer} / ours'] = {
        'wall': times[peer]['wall'][1] / times['ours']['wall'][1],
        'cpu': times[peer]['cpu'] / times['ours']['cpu'],
      }
  return report


def _coreness():
  import jax

  from jaxpapers import kcore

  report = {}
  for n, m in ((1000, 10_000), (1000, 50_000), (10_000, 100_000)):
    rng = np.random.default_rng(n + m)
    pairs = np.sort(rng.integers(0, n, (3 * m, 2)), axis=1)
    pairs = np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)
    pairs = rng.permutation(pairs)[:m].astype(np.int32)
    on_device = jax.numpy.asarray(pairs)
    programs = {}
    for method in ('peel', 'hindex', 'allk'):
      bound = kcore.degeneracy_bound(np.bincount(pairs.ravel(), minlength=n))
      # All k at once on edge lists of this size: N K counters per round.
      if method == 'allk' and n > 1000:
        continue

      def ours(method=method, n=n, bound=bound):
        return jax.jit(
          lambda p: kcore.coreness(
            kcore.Edges(p, n), method=method, k_bound=bound
          )
        )

      run = ours()
      programs[f'ours, {method}'] = (
        lambda run=run, p=on_device: jax.block_until_ready(run(p)),
        10**9,
      )
    if _installed('igraph'):
      import igraph

      graph = igraph.Graph(n, pairs.tolist())
      programs['igraph'] = (graph.coreness, 10**9)
    if _installed('networkx'):
      import networkx

      other = networkx.Graph(pairs.tolist())
      programs['networkx'] = (
        lambda other=other: networkx.core_number(other),
        3,
      )
    report[f'{n} nodes, {m} edges'] = _measure(programs, _REPEATS.value)

  # Small graphs, many at once: what null ensembles and windows of a scan are.
  number, n, p = 1000, 200, 0.04
  rng = np.random.default_rng(0)
  graphs = [
    np.argwhere(np.triu(rng.random((n, n)) < p, 1)) for _ in range(number)
  ]
  longest = max(map(len, graphs))
  batch = np.stack(
    [
      np.pad(g, ((0, longest - len(g)), (0, 0)), constant_values=n)
      for g in graphs
    ]
  ).astype(np.int32)

  def one(p):
    return kcore.coreness(kcore.Edges(p, n), method='peel')

  side_by_side = jax.jit(jax.vmap(one))
  in_turn = jax.jit(lambda batch: jax.lax.map(one, batch))
  batch = jax.numpy.asarray(batch)
  programs = {
    'ours, vmap': (lambda: jax.block_until_ready(side_by_side(batch)), 3),
    'ours, lax.map': (lambda: jax.block_until_ready(in_turn(batch)), 3),
  }
  if _installed('igraph'):
    import igraph

    made = [igraph.Graph(n, g.tolist()) for g in graphs]
    programs['igraph, loop'] = (lambda: [g.coreness() for g in made], 3)
  if _installed('networkx'):
    import networkx

    others = [networkx.Graph(g.tolist()) for g in graphs]
    programs['networkx, loop'] = (
      lambda: [networkx.core_number(g) for g in others],
      1,
    )
  report[f'{number} graphs of {n} nodes'] = _measure(programs, 3)
  return report


def _percolation():
  import jax

  from jaxpapers import kcore

  report = {}
  for n in map(int, _SIZES.value):
    rng = np.random.default_rng(n)
    corr = kcore.correlation_matrix(rng.standard_normal((n, 120)))
    levels, _ = kcore.quantize_levels(corr, 0.01)
    levels = jax.numpy.asarray(levels)
    single = jax.numpy.asarray(corr, jax.numpy.float32)
    run = jax.jit(kcore.percolation_curve)
    programs = {
      'ours, grid levels': (
        lambda run=run, x=levels: jax.block_until_ready(run(x)),
        10**9,
      ),
      'ours, float32 weights': (
        lambda run=run, x=single: jax.block_until_ready(run(x)),
        10**9,
      ),
      'ours, levels from correlations (grid)': (
        lambda c=corr: kcore.quantize_levels(c, 0.01),
        2,
      ),
    }
    if _installed('scipy'):
      from scipy.cluster import hierarchy
      from scipy.sparse import csgraph

      condensed = 1 - corr[np.triu_indices(n, 1)]
      programs['scipy linkage (levels only)'] = (
        lambda d=condensed: hierarchy.linkage(d, 'single'),
        10**9,
      )

      def on_a_grid(corr=corr, count=100):
        for threshold in np.arange(count) / count:
          csgraph.connected_components(corr >= threshold, directed=False)

      if n <= 1000:
        programs['scipy components, 100 thresholds'] = (on_a_grid, 1)
    report[f'{n} nodes'] = _measure(programs, min(_REPEATS.value, 5))
  return report


def _device(edges, n):
  import warnings

  import jax

  from jaxpapers import kcore

  warnings.simplefilter('ignore', kcore.UnderMixedWarning)
  total, chunk = _NUM_NULLS.value, _CHUNK.value
  start = time.perf_counter()
  kcore.null_coreness(jax.random.key(0), edges, n, chunk, chunk=chunk)
  first = time.perf_counter() - start
  start = time.perf_counter()
  null = kcore.null_coreness(jax.random.key(1), edges, n, total, chunk=chunk)
  seconds = time.perf_counter() - start
  return {
    'nulls': total,
    'chunk': chunk,
    'seconds': seconds,
    'first_chunk_seconds': first,
    'nulls_per_second': total / seconds,
    'swaps_per_edge': null.swaps_per_edge,
    'mean_k_max': float(null.k_max.mean()),
  }


def main(argv):
  """Runs the parts and prints their numbers."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  import jax

  report = {
    'python': platform.python_version(),
    'jax': jax.__version__,
    'device': jax.devices()[0].device_kind,
    'peers': {
      name: importlib.metadata.version(name)
      for name in ('igraph', 'networkx', 'scipy')
      if _installed(name)
    },
  }
  for part in _PARTS.value:
    if part == 'coreness':
      report[part] = _coreness()
    elif part == 'percolation':
      report[part] = _percolation()
    elif part in ('null', 'device'):
      program = _null if part == 'null' else _device
      report[part] = {
        name: program(*network) for name, network in _networks().items()
      }
    else:
      raise app.UsageError(f'--parts has {part!r}.')
    print(f'{part}: done', file=sys.stderr)
  print(json.dumps(report, indent=2))


if __name__ == '__main__':
  app.run(main)
