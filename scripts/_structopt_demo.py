"""The demonstration of structopt_optimize: one bridge, four methods."""

import _command_line
import numpy as np

from jaxpapers.structopt import figures, problems, render, reports, runs
from jaxpapers.structopt.history import History

# Here the network's head start shows within a hundred evaluations.
_PROBLEM = 'thin_support_bridge_64x64_0.3'
_DEFAULTS = {
  'methods': ['cnn-lbfgs', 'pixel-lbfgs', 'mma', 'oc'],
  'optimization_steps': 120,
  'frames': 40,
}
_CHOSEN = ('problem', 'problem_filter', 'quick_run', 'num_seeds', 'batch')
_CHOSEN += ('baseline_seeds',)
_SCALE = 2  # pixels along each side of an element in the animation


def choose(flags) -> None:
  """Sets the flags of the demonstration.

  Args:
    flags: absl's FLAGS.

  Raises:
    UsageError: a flag was given that the demonstration decides.
  """
  for name in _CHOSEN:
    if not flags[name].using_default_value:
      raise _command_line.UsageError(
        f'--demo chooses the task and the runs itself; leave out --{name}'
      )
  for name, value in _DEFAULTS.items():
    if flags[name].using_default_value:
      setattr(flags, name, value)
  flags.problem = [_PROBLEM]


def draw(keys, folder) -> None:
  """Draws the designs side by side, and how they came about.

  Args:
    keys: the runs, one for each method.
    folder: where they are stored and where the pictures go.
  """
  from etils import epath

  problem = problems.get_problem(keys[0].problem)
  histories = [History.load(runs.stem(folder, key)) for key in keys]
  figure = figures.strip(
    [history.best_design for history in histories],
    problem,
    [
      f'{reports.title(h.method)}: compliance {h.best_loss:.2f}'
      for h in histories
    ],
    title=(
      f'A bridge of {problem.nelx} x {problem.nely} elements, and its mirror'
      f' images, with {problem.volume_fraction:.0%}'
      f' material, {histories[0].steps} evaluations'
    ),
    columns=2,
    loads=True,
    supports=True,
  )
  folder = epath.Path(folder)
  figures.save_figure(folder / 'demo.png', figure)
  print(f'\nPicture:   {folder / "demo.png"}')
  if all(len(history.frames) for history in histories):
    render.save_gif(folder / 'demo.gif', _frames(histories, problem))
    print(f'Animation: {folder / "demo.gif"}')


def _frames(histories, problem):
  """Pictures of all designs after equal numbers of evaluations."""
  moments = sorted({k for h in histories for k in h.frame_evaluations})
  images = []
  for moment in moments:
    cells = []
    for history in histories:
      taken = np.searchsorted(history.frame_evaluations, moment, 'right')
      frame = history.frames[max(0, taken - 1)]
      cells.append(_labelled(frame, history, problem, moment))
    rows = [np.hstack(cells[i : i + 2]) for i in range(0, len(cells), 2)]
    images.append(np.vstack(rows))
  return images


def _labelled(frame, history, problem, moment):
  """A design in a frame, its method and compliance above it."""
  import PIL.Image
  import PIL.ImageDraw
  import PIL.ImageFont

  design = render.to_image(frame, problem, scale=_SCALE)
  margin, head = 10, 30
  cell = np.full(
    (design.shape[0] + head + margin, design.shape[1] + 2 * margin),
    255,
    np.uint8,
  )
  cell[head:-margin, margin:-margin] = design
  image = PIL.Image.fromarray(cell)
  best = history.padded()[min(moment, history.steps + 1) - 1]
  PIL.ImageDraw.Draw(image).text(
    (margin, 8),
    f'{reports.title(history.method)}   {best:.2f}   {moment} evaluations',
    fill=0,
    font=PIL.ImageFont.load_default(size=15),
  )
  return np.array(image)
