r"""Structural optimization beyond the paper: five worked examples.

Examples:
  # A bridge that a load crosses, against one that carries all loads at once:
  python scripts/structopt_extras.py --example=multi_load --save_dir=extras

  # All five, on meshes of half the size:
  python scripts/structopt_extras.py --example=all --scale=0.5

The examples, and what each shows:
  multi_load    Load cases are a leading axis of the forces; they share one
                factorisation and their compliances add up.
  heaviside     A projection with growing sharpness turns the grey of the cone
                filter into black and white.
  self_weight   Material that must carry itself: the heavier it is, the more
                the bridge becomes an arch, and the less of it is used.
  mechanism     A force inverter: the objective is a displacement, the adjoint
                comes from differentiating through the linear solver.
  cantilever3d  Trilinear cubes and multigrid CG, drawn as a surface.

Each prints a table and writes EXAMPLE.png and EXAMPLE.npz (designs and losses)
into --save_dir. docs/structopt_extras.md explains them.
"""

import io

import _command_line
import numpy as np
from absl import flags

from jaxpapers.structopt import (
  beyond,
  density,
  families,
  fem,
  figures,
  mechanism,
  render,
  render3d,
  runner,
  solid3d,
)

_NAMES = (
  'multi_load',
  'heaviside',
  'self_weight',
  'mechanism',
  'cantilever3d',
)
_EXAMPLE = flags.DEFINE_enum(
  'example', None, [*_NAMES, 'all'], 'What to run.', required=True
)
_SAVE_DIR = flags.DEFINE_string(
  'save_dir', 'extras', 'Folder for pictures and numbers, local or gs://.'
)
_STEPS = flags.DEFINE_integer(
  'steps', None, 'Evaluations; by default as many as suit the example.', 1
)
_SCALE = flags.DEFINE_float(
  'scale', 1.0, 'Factor on the sides of the mesh.', 0.1, 4.0
)
_CACHE = flags.DEFINE_string(
  'compilation_cache',
  'default',
  'Folder in which JAX keeps compiled programs; empty for none.',
)


def main() -> None:
  """Runs the chosen examples."""
  _command_line.use_compilation_cache(_CACHE.value)
  chosen = _NAMES if _EXAMPLE.value == 'all' else (_EXAMPLE.value,)
  for name in chosen:
    print(f'\n{name}')
    figure, arrays = globals()[f'run_{name}']()
    _write(name, figure, arrays)


def run_multi_load():
  """A load that crosses a bridge, one case for each position."""
  problem = beyond.moving_load_bridge(*_sides(120, 40))
  tasks = {
    'loads one at a time': problem,
    'loads all at once': beyond.together(problem),
  }
  designs, arrays, captions = [], {}, []
  for label, task in tasks.items():
    run = _optimize(label, task, 'mma', 120)
    designs.append(run.best_feasible_design)
    youngs = density.simp(run.best_feasible_design)
    cases = [
      float(fem.compliance(youngs, forces, problem.free))
      for forces in problem.nodal_forces
    ]
    text = ', '.join(f'{c:.1f}' for c in cases)
    print(f'  designed for {label}: compliance of each load alone {text}')
    captions.append(
      f'designed for {label}\none load alone: worst compliance {max(cases):.1f}'
    )
    arrays |= {f'{label}: design': designs[-1], f'{label}: cases': cases}
  figure = figures.strip(
    designs, list(tasks.values()), captions, loads=True, supports=True
  )
  return figure, arrays


def run_heaviside():
  """Projection with continuation of its sharpness."""
  problem = families.mbb_beam(*_sides(96, 32), 0.5)
  steps = _STEPS.value or 240

  def projection(evaluation):
    every = max(1, steps // 6)
    return float(density.beta_continuation(evaluation, every=every)), 0.5

  tasks = {'cone filter': None, 'with projection': projection}
  designs, arrays, captions = [], {}, []
  for label, choice in tasks.items():
    run = _optimize(
      label, problem, 'mma', steps, projection=choice, filter_radius=3.0
    )
    x = run.final_design
    cut = (x > 0.5).astype(float)
    grey = float(beyond.non_discreteness(x))
    as_is, built = (
      float(fem.compliance(density.simp(d), problem.nodal_forces, problem.free))
      for d in (x, cut)
    )
    print(
      f'  {label}: compliance {as_is:.2f}, non-discreteness {100 * grey:.1f} %;'
      f' cut at 1/2: compliance {built:.2f}, volume {cut.mean():.4f}'
    )
    captions.append(
      f'{label}: compliance {as_is:.1f}, {100 * grey:.1f} % grey\n'
      f'cut at one half: compliance {built:.1f}'
    )
    designs.append(x)
    arrays |= {f'{label}: design': x, f'{label}: losses': run.losses}
  return figures.strip(designs, problem, captions, mirror=False), arrays


def run_self_weight():
  """The same bridge of ever heavier material."""
  designs, problems, captions, arrays = [], [], [], {}
  for weight in (0.0, 0.003, 0.02):
    # A full element's weight, on a mesh of any size the same total.
    each = weight / _SCALE.value**2
    # The deck scales too: two elements of a coarse mesh would be most of the
    # material that is allowed, and leave nothing to decide.
    deck = max(1, round(2 * _SCALE.value))
    problem = beyond.heavy_bridge(*_sides(64, 48), weight=each, deck=deck)
    run = _optimize(f'weight {weight}', problem, 'mma', 120)
    x = run.best_feasible_design
    own = each * x.sum()
    print(
      f'  own weight / load {own:.2f}: compliance'
      f' {run.best_feasible_loss:.2f}, volume {x.mean():.3f} of'
      f' {problem.volume_fraction} allowed'
    )
    captions.append(
      f'own weight {own:.1f} times the load\nvolume {x.mean():.3f} of'
      f' {problem.volume_fraction} allowed'
    )
    designs.append(x)
    problems.append(problem)
    arrays |= {
      f'weight {weight}: design': x,
      f'weight {weight}: losses': run.losses,
    }
  figure = figures.strip(designs, problems, captions, loads=True, supports=True)
  return figure, arrays


def run_mechanism():
  """The force inverter."""
  task = mechanism.force_inverter(*_sides(80, 40))
  steps = _STEPS.value or 150
  with _Progress('force inverter', steps) as progress:
    run = mechanism.optimize_mechanism(
      task, steps, callback=lambda n, loss: progress(n)
    )
  problem = task.problem
  u, _ = fem.solve_displacement(
    density.simp(run.design, emin=1e-3),
    problem.nodal_forces,
    problem.free,
    springs=task.nodal_springs,
  )
  u = np.asarray(u)
  push, pull = float(u[0, 0, 0]), float(u[0, -1, 0])
  print(
    f'  input moves {push:+.3f}, output {pull:+.3f} elements under a unit'
    f' force; volume {run.design.mean():.3f}'
  )
  arrays = {'design': run.design, 'losses': run.losses, 'displacement': u}
  return _mechanism_figure(run.design, u, push, pull), arrays


def run_cantilever3d():
  """A cantilever of cubes."""
  length, height, depth = _sides(48, 24, 12)
  task = solid3d.cantilever_3d(length, height, depth)
  steps = _STEPS.value or 40
  with _Progress('cantilever', steps) as progress:
    run = solid3d.optimize_solid(
      task, steps, callback=lambda n, loss, iterations: progress(n)
    )
  counts = run.iterations
  print(
    f'  {length} x {height} x {depth} elements (half, the rest by symmetry):'
    f' compliance {run.losses[0]:.1f} -> {run.losses[-1]:.3f}; CG iterations'
    f' {counts.min()} to {counts.max()}, mean {counts.mean():.1f}'
  )
  figure = render3d.draw_solid(
    run.design,
    mirror_z=task.mirror_z,
    title=f'{length} x {height} x {2 * depth} elements,'
    f' volume {run.design.mean():.2f}',
  )
  arrays = {
    'design': run.design,
    'losses': run.losses,
    'iterations': run.iterations,
  }
  return figure, arrays


def _optimize(label, problem, method, steps, **options):
  steps = _STEPS.value or steps
  with _Progress(label, steps) as progress:
    return runner.optimize(
      problem,
      method,
      steps,
      callback=lambda state: progress(state.evaluations),
      **options,
    )


def _sides(*sides: int) -> tuple[int, ...]:
  """Mesh sides after --scale, multiples of four."""
  return tuple(max(4, 4 * round(s * _SCALE.value / 4)) for s in sides)


class _Progress:
  """A progress bar that is told how far the work is."""

  def __init__(self, label, steps):
    self._label, self._total = label, steps + 1

  def __enter__(self):
    from tqdm import tqdm

    # Off where nobody watches: standard error is no terminal.
    self._bar = tqdm(
      total=self._total, desc=f'  {self._label}', unit='eval', disable=None
    )
    return lambda done: self._bar.update(done - self._bar.n)

  def __exit__(self, *_):
    self._bar.close()


def _mechanism_figure(x, u, push, pull):
  """The whole inverter, at rest and with its motion exaggerated."""
  from matplotlib.figure import Figure

  # The half was modelled below the symmetry plane.
  whole = np.concatenate([x[::-1], x])
  mirrored = u[::-1] * np.array([1.0, -1.0])
  u = np.concatenate([mirrored, u[1:]])
  nely, nelx = whole.shape
  grid = np.stack(np.meshgrid(np.arange(nelx + 1.0), np.arange(nely + 1.0)), -1)
  factor = 0.1 * nelx / max(abs(push), abs(pull))
  figure = Figure(figsize=(9.0, 4.9))
  places = ((0.03, grid, 'at rest'), (0.52, grid + factor * u, 'pushed'))
  for left, nodes, label in places:
    axes = figure.add_axes((left, 0.04, 0.45, 0.84))
    # Void moves with whatever is near; showing it would hide the structure.
    shown = np.ma.masked_less(whole, 0.3)
    axes.pcolormesh(
      nodes[..., 0], nodes[..., 1], shown, cmap='gray_r', vmin=0, vmax=1
    )
    axes.set_xlim(-0.22 * nelx, 1.22 * nelx)
    axes.set_ylim(1.04 * nely, -0.04 * nely)
    axes.set_aspect('equal')
    axes.set_axis_off()
    middle = nely / 2
    for row in (0, nely):
      axes.plot([-1.2] * 2, [row, abs(row - 0.06 * nely)], 'C0', linewidth=5)
    # The push from the left and, to the right of the structure, the pull.
    for start, tip, word in ((-0.2, -0.04, 'push'), (1.2, 1.04, 'pull')):
      axes.annotate(
        '',
        (tip * nelx, middle),
        (start * nelx, middle),
        arrowprops={'arrowstyle': '-|>', 'color': '#c8102e', 'linewidth': 2},
      )
      axes.text(
        (start + tip) / 2 * nelx,
        middle - 0.03 * nely,
        word,
        ha='center',
        va='bottom',
        color='#c8102e',
        fontsize=10,
      )
    axes.set_title(label, fontsize=11)
  figure.text(
    0.5,
    0.98,
    f'force inverter: input {push:+.2f}, output {pull:+.2f} elements'
    f' (motion drawn at {factor:.1f} : 1)',
    ha='center',
    va='top',
    fontsize=12,
  )
  return figure


def _write(name, figure, arrays) -> None:
  from etils import epath

  folder = epath.Path(_SAVE_DIR.value)
  figures.save_figure(folder / f'{name}.png', figure, dpi=100)
  buffer = io.BytesIO()
  np.savez_compressed(
    buffer,
    **{
      key.replace(': ', '.').replace(' ', '_'): np.asarray(value)
      for key, value in arrays.items()
    },
  )
  render.write_bytes(folder / f'{name}.npz', buffer.getvalue())
  print(f'  {folder / f"{name}.png"}, {folder / f"{name}.npz"}')


if __name__ == '__main__':
  _command_line.run(main)
