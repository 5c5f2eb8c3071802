"""Finite elements side by side: ours, SciPy's SuperLU, CHOLMOD.

Prints one JSON object. Every number is a wall-clock time of this run; peers and
ours alternate, so that a busy machine slows all of them alike, and ratios are
of medians.

  python benchmarks/structopt.py                 # everything, several minutes
  python benchmarks/structopt.py --parts=solve --sizes=64x64,128x128
  python benchmarks/structopt.py --parts=cnn

What is measured: the compliance and its gradient with respect to the densities
(cone filter, power law, assembly, factorisation, solution, adjoint), on designs
taken from the middle of an optimisation (20 optimality-criteria steps), whose
stiffness contrast is 1e9. The peers get a precomputed sparsity pattern and
CHOLMOD its symbolic analysis for free.
"""

import json
import platform
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
from absl import app, flags

_PARTS = flags.DEFINE_list(
  'parts', ['solve', 'slope', 'cnn', 'memory'], 'What to measure.'
)
_SIZES = flags.DEFINE_list(
  'sizes', ['64x64', '128x128', '256x192', '512x256'], 'Meshes, width x height.'
)
_REPEATS = flags.DEFINE_integer('repeats', 7, 'Alternations per mesh.')
_PEERS = flags.DEFINE_bool('peers', True, 'Measure SuperLU and CHOLMOD too.')
_MEMORY_PROBE = flags.DEFINE_string('memory_probe', '', 'Internal: one mesh.')

# Tasks of the suite where it has one of that size, else the same family.
_TASKS = {
  (64, 64): 'l_shape_0.4_64x64_0.4',
  (128, 128): 'causeway_bridge_top_128x128_0.2',
  (256, 192): 'cantilever_beam_two_point_256x192_0.15',
}


def _problem(width, height):
  from jaxpapers.structopt import families, get_problem

  name = _TASKS.get((width, height))
  if name:
    return get_problem(name)
  return families.cantilever_beam_full(width, height, 0.3)


def _design(problem, steps=20):
  """A real mid-optimisation density field."""
  from jaxpapers.structopt import optimize

  # Displacements need no more than this for a direction of descent.
  history = optimize(
    problem, method='oc', steps=steps, solver='mgcg', tol=1e-6, maxiter=2000
  )
  return np.asarray(history.final_design, np.float64)


def _ours(problem, solver, **kwargs):
  import jax
  import jax.numpy as jnp

  from jaxpapers.structopt import compliance, cone_filter, simp

  forces, free = problem.nodal_forces, problem.free

  def value(x):
    youngs = simp(cone_filter(x, 2.0, problem.mask))
    return compliance(youngs, forces, free, solver=solver, **kwargs)

  with jax.enable_x64(True):
    function = jax.jit(jax.value_and_grad(value))
    like = jax.ShapeDtypeStruct(problem.mask.shape, jnp.float64)
    start = time.perf_counter()
    compiled = function.lower(like).compile()
    seconds = time.perf_counter() - start

  def call(x):
    with jax.enable_x64(True):
      return jax.block_until_ready(compiled(jnp.asarray(x)))

  return call, seconds


class _Peer:
  """The same function with a sparse library."""

  def __init__(self, problem, library):
    import scipy.sparse as sparse

    from jaxpapers.structopt import element_stiffness, elements

    ny, nx = problem.nely, problem.nelx
    self.mask = problem.mask
    self.unit = element_stiffness(1.0, 0.3)
    node = np.arange((ny + 1) * (nx + 1)).reshape(ny + 1, nx + 1)
    local = [
      node[a : ny + a, b : nx + b].reshape(-1) for a, b in elements.CORNERS_2D
    ]
    self.dofs = np.stack([2 * n + c for n in local for c in (0, 1)], axis=1)
    free = problem.free.reshape(-1)
    self.keep = np.flatnonzero(free)
    self.force = problem.nodal_forces.reshape(-1)[self.keep]
    number = np.full(free.size, -1)
    number[self.keep] = np.arange(self.keep.size)
    rows = number[np.repeat(self.dofs, 8, axis=1)].reshape(-1)
    columns = number[np.tile(self.dofs, (1, 8))].reshape(-1)
    self.inside = (rows >= 0) & (columns >= 0)
    size = self.keep.size
    order = columns[self.inside].astype(np.int64) * size + rows[self.inside]
    unique, self.slot = np.unique(order, return_inverse=True)
    pointer = np.searchsorted(unique // size, np.arange(size + 1))
    self.matrix = sparse.csc_matrix(
      (np.ones(unique.size), unique % size, pointer), shape=(size, size)
    )
    self.filter = self._cone(sparse)
    self.solve = getattr(self, f'_{library}')()

  def _cone(self, sparse):
    ny, nx = self.mask.shape
    index = np.arange(ny * nx).reshape(ny, nx)
    parts = []
    for dy in (-1, 0, 1):
      for dx in (-1, 0, 1):
        a = index[max(0, dy) : ny + min(0, dy), max(0, dx) : nx + min(0, dx)]
        b = index[max(0, -dy) : ny - max(0, dy), max(0, -dx) : nx - max(0, dx)]
        weight = np.full(a.size, 2 - np.hypot(dy, dx))
        parts.append((weight, b.reshape(-1), a.reshape(-1)))
    value, row, column = (np.concatenate(p) for p in zip(*parts, strict=True))
    m = self.mask.reshape(-1)
    value = value * m[row] * m[column]
    matrix = sparse.csr_matrix((value, (row, column)))
    total = np.asarray(matrix.sum(1)).reshape(-1)
    scale = np.divide(m, total, out=np.zeros_like(m), where=total > 0)
    return sparse.diags(scale) @ matrix

  def _splu(self):
    from scipy.sparse.linalg import splu

    return lambda matrix: splu(matrix).solve(self.force)

  def _splu_symmetric(self):
    from scipy.sparse.linalg import splu

    options = {'SymmetricMode': True}
    return lambda matrix: splu(
      matrix,
      permc_spec='MMD_AT_PLUS_A',
      diag_pivot_thresh=0.0,
      options=options,
    ).solve(self.force)

  def _cholmod(self):
    from sksparse import cholmod

    symbolic = cholmod.analyze(self.matrix)
    return lambda matrix: symbolic.cholesky(matrix)(self.force)

  def __call__(self, x):
    density = self.filter @ x.reshape(-1)
    youngs = 1e-9 + density**3 * (1 - 1e-9)
    entries = (youngs[:, None] * self.unit.reshape(-1)).reshape(-1)
    self.matrix.data = np.bincount(
      self.slot, entries[self.inside], self.matrix.nnz
    )
    u = np.zeros(2 * (self.mask.shape[0] + 1) * (self.mask.shape[1] + 1))
    u[self.keep] = self.solve(self.matrix)
    local = u[self.dofs]
    energy = np.einsum('ei,ij,ej->e', local, self.unit, local, optimize=True)
    slope = -energy * 3 * density**2 * (1 - 1e-9)
    gradient = (self.filter.T @ slope).reshape(self.mask.shape)
    return youngs @ energy, gradient


def _peers(problem):
  found = {}
  for library in ('splu', 'splu_symmetric', 'cholmod'):
    try:
      found[library] = _Peer(problem, library)
    except ImportError as e:
      print(f'{library}: {e}', file=sys.stderr)
  return found


def _alternate(calls, x, repeats):
  times = {name: [] for name in calls}
  for call in calls.values():
    call(x)  # warm up
  for _ in range(repeats):
    for name, call in calls.items():
      start = time.perf_counter()
      call(x)
      times[name].append(time.perf_counter() - start)
  return {name: statistics.median(t) for name, t in times.items()}


def _parse(size):
  try:
    width, height = (int(n) for n in size.split('x'))
  except ValueError:
    raise app.UsageError(f'--sizes: {size!r} is not WIDTHxHEIGHT') from None
  return width, height


def _solve():
  from jaxpapers.structopt import simp, solve_displacement
  from jaxpapers.structopt.density import cone_filter

  rows = []
  for size in _SIZES.value:
    problem = _problem(*_parse(size))
    x = _design(problem)
    calls, compile_seconds = {}, {}
    for name, solver, kwargs in (
      ('auto', 'auto', {}),
      ('direct', 'direct', {}),
      ('mgcg', 'mgcg', {'maxiter': 2000}),
      ('mgcg_mixed', 'mgcg', {'maxiter': 2000, 'precision': 'mixed'}),
    ):
      calls[name], compile_seconds[name] = _ours(problem, solver, **kwargs)
    if _PEERS.value:
      calls.update(_peers(problem))
    values = {name: float(call(x)[0]) for name, call in calls.items()}
    seconds = _alternate(calls, x, _REPEATS.value)
    _, info = solve_displacement(
      simp(cone_filter(x, 2.0, problem.mask)),
      problem.nodal_forces,
      problem.free,
      solver='mgcg',
      maxiter=2000,
    )
    row = {
      'mesh': size,
      'task': problem.name,
      'milliseconds': {k: round(1e3 * t, 2) for k, t in seconds.items()},
      'compile_seconds': {k: round(t, 1) for k, t in compile_seconds.items()},
      'mgcg_iterations_to_1e-8': int(info.iterations),
      'compliance': values,
    }
    for peer in ('splu', 'splu_symmetric', 'cholmod'):
      if peer in seconds:
        row[f'auto_over_{peer}'] = round(seconds['auto'] / seconds[peer], 3)
    rows.append(row)
    print(json.dumps(row), file=sys.stderr)
  return rows


def _slope():
  """Growth of time with the number of elements, 128^2 to 512^2."""
  sides = (128, 256, 512)
  out = {}
  for solver in ('mgcg', 'direct'):
    seconds = []
    for side in sides:
      from jaxpapers.structopt import families

      problem = families.cantilever_beam_full(side, side, 0.3)
      # One design at every size: the coarse one, refined.
      if side == sides[0]:
        coarse = _design(problem)
      x = np.kron(coarse, np.ones((side // sides[0],) * 2))
      call, _ = _ours(problem, solver, maxiter=2000)
      seconds.append(_alternate({solver: call}, x, 3)[solver])
    fit = np.polyfit(np.log([s * s for s in sides]), np.log(seconds), 1)
    out[solver] = {
      'seconds': {
        f'{s}x{s}': round(t, 4) for s, t in zip(sides, seconds, strict=True)
      },
      'log_log_slope': round(float(fit[0]), 3),
    }
  return out


def _cnn():
  import jax

  from jaxpapers.structopt import get_problem, optimize

  problem = get_problem('mbb_beam_96x32_0.5')
  runs = []
  for seed in range(3):
    start = time.perf_counter()
    history = optimize(
      problem, method='cnn-lbfgs', steps=100, key=jax.random.key(seed)
    )
    runs.append((time.perf_counter() - start, float(history.best_loss)))
  steady = statistics.median(t for t, _ in runs[1:])
  return {
    'task': problem.name,
    'evaluations': 100,
    'first_run_seconds': round(runs[0][0], 1),
    'seconds_after_compilation': round(steady, 1),
    'compile_seconds': round(runs[0][0] - steady, 1),
    'best_compliance': [round(b, 3) for _, b in runs],
  }


def _probe(size):
  """Peak resident memory of one value and gradient, in this process."""
  width, height = _parse(size)
  from jaxpapers.structopt import families

  problem = families.cantilever_beam_full(width, height, 0.3)
  x = np.full((height, width), 0.3)
  call, _ = _ours(problem, 'mgcg', maxiter=2000)
  compiled = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  call(x)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  print(json.dumps({'before_mib': compiled // 1024, 'peak_mib': peak // 1024}))


def _memory():
  command = [sys.executable, __file__, '--memory_probe=1024x512']
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  return {'mesh': '1024x512', 'mgcg': json.loads(done.stdout)}


def main(argv):
  """Runs the chosen parts and prints one JSON object."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  if _MEMORY_PROBE.value:
    _probe(_MEMORY_PROBE.value)
    return
  parts = {'solve': _solve, 'slope': _slope, 'cnn': _cnn, 'memory': _memory}
  unknown = set(_PARTS.value) - set(parts)
  if unknown:
    raise app.UsageError(f'--parts: {sorted(unknown)}; choose of {list(parts)}')
  import os

  import jax

  result = {
    'machine': f'{platform.processor() or platform.machine()},'
    f' {os.cpu_count()} cores, {jax.default_backend()}',
    'jax': jax.__version__,
  }
  for part in _PARTS.value:
    result[part] = parts[part]()
  print(json.dumps(result, indent=2))


if __name__ == '__main__':
  app.run(main)
