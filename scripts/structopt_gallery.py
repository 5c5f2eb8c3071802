r"""Shows all designs in one HTML page, with their compliances.

Examples:
  python scripts/structopt_gallery.py --runs=runs
  python scripts/structopt_gallery.py --runs=runs --output=bridges.html \
      --problem_filter=bridge --methods=cnn-lbfgs,mma

The page is one file that needs nothing else: the pictures are inside. For each
task it has the best design of every method, its compliance, and how far that is
from the best of the methods and from the paper's value for a typical run of
1000 evaluations (Hoyer et al. 2019, arXiv:1909.04240). Designs are mirrored at
symmetry planes, as in the paper. It can be searched and sorted.
"""

import base64
import collections
import html
import io
import re
import string

import _command_line
from absl import flags

from jaxpapers.structopt import analysis, problems, published, reports, runs
from jaxpapers.structopt.history import History
from jaxpapers.structopt.render import to_image, write_bytes

_RUNS = flags.DEFINE_string(
  'runs', None, 'Folder that structopt_optimize wrote (its --save_dir).'
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'The page; by default gallery.html in the folder of the runs.'
)
_PROBLEM_FILTER = flags.DEFINE_string(
  'problem_filter', '', 'Regular expression; only tasks that contain it.'
)
_METHODS = flags.DEFINE_list(
  'methods', None, 'Methods to show, separated by commas; by default all.'
)

_PAGE = string.Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Structures designed by jaxpapers</title>
<style>
:root {
  color-scheme: light dark;
  --page: light-dark(#f4f5f7, #14171c);
  --card: light-dark(#ffffff, #1d2129);
  --ink: light-dark(#1c2430, #e8ebf0);
  --soft: light-dark(#667085, #98a2b3);
  --line: light-dark(#e2e5ea, #313743);
  --best: light-dark(#0b6e4f, #5fd3a6);
}
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif;
}
header, main { max-width: 1280px; margin: auto; padding: 0 20px; }
h1 { font-size: 26px; margin: 28px 0 4px; }
p { color: var(--soft); margin: 0 0 16px; max-width: 80ch; }
nav {
  position: sticky; top: 0; z-index: 1; background: var(--page);
  border-bottom: 1px solid var(--line); margin-bottom: 20px;
}
nav form {
  display: flex; gap: 12px; flex-wrap: wrap;
  max-width: 1280px; margin: auto; padding: 10px 20px;
}
input, select {
  font: inherit; color: inherit; background: var(--card);
  border: 1px solid var(--line); border-radius: 6px; padding: 5px 8px;
}
output { margin-left: auto; color: var(--soft); align-self: center; }
section {
  background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: 14px 18px 18px; margin-bottom: 18px;
}
h2 { font-size: 16px; margin: 0 0 10px; overflow-wrap: anywhere; }
h2 small { color: var(--soft); font-weight: normal; margin-left: 8px; }
.row {
  display: grid; gap: 16px; align-items: end;
  grid-template-columns: repeat(auto-fit, minmax(250px, 1fr));
}
figure { margin: 0; }
figure img {
  display: block; width: 100%; max-height: 240px; object-fit: contain;
  object-position: left bottom; image-rendering: pixelated;
}
@media (prefers-color-scheme: dark) { figure img { filter: invert(.9); } }
figcaption { margin-top: 8px; font-variant-numeric: tabular-nums; }
figcaption b { font-weight: 600; }
figcaption span { color: var(--soft); display: block; font-size: 13px; }
.best b { color: var(--best); }
[hidden] { display: none; }
</style>
</head>
<body>
<header>
<h1>Structures</h1>
<p>$intro</p>
</header>
<nav><form onsubmit="return false">
<input id="text" type="search" placeholder="Search tasks" aria-label="Search">
<select id="family" aria-label="Family"><option value="">all families</option>
$families
</select>
<select id="order" aria-label="Order">
<option value="place">in the paper's order</option>
<option value="size">small tasks first</option>
<option value="-size">large tasks first</option>
<option value="-spread">most different first</option>
</select>
<output id="count"></output>
</form></nav>
<main id="tasks">
$tasks
</main>
<script>
const get = id => document.getElementById(id);
const tasks = [...document.querySelectorAll('section')];
function show() {
  const text = get('text').value.toLowerCase(), family = get('family').value;
  let count = 0;
  for (const task of tasks) {
    task.hidden = !task.id.includes(text) ||
      (family && task.dataset.family !== family);
    count += !task.hidden;
  }
  get('count').value = count + ' of ' + tasks.length + ' tasks';
}
function sort() {
  const order = get('order').value, key = order.replace('-', '');
  const sign = order === key ? 1 : -1;
  tasks.sort((a, b) => sign * (a.dataset[key] - b.dataset[key]));
  get('tasks').append(...tasks);
}
get('text').oninput = get('family').onchange = show;
get('order').onchange = sort;
show();
</script>
</body>
</html>
""")

_TASK = string.Template("""\
<section id="$name" data-family="$family" data-size="$size"
 data-place="$place" data-spread="$spread">
<h2>$name<small>$about</small></h2>
<div class="row">
$figures
</div>
</section>""")

_FIGURE = string.Template("""\
<figure class="$kind">
<img alt="$method design of $name" src="data:image/png;base64,$png">
<figcaption><b>$method: $value</b><span>$details</span></figcaption>
</figure>""")


def main() -> None:
  """Writes the page."""
  if _RUNS.value is None:
    raise _command_line.UsageError(
      'Give --runs, the folder that structopt_optimize wrote'
    )
  try:
    found = runs.find(_RUNS.value, _PROBLEM_FILTER.value)
  except ValueError as error:
    raise _command_line.UsageError(str(error)) from error
  except re.error as error:
    raise _command_line.UsageError(
      f'--problem_filter is not a regular expression: {error}'
    ) from error
  there = sorted({run.key.method for run in found})
  for method in _METHODS.value or ():
    if method not in there:
      raise _command_line.UsageError(
        f'--methods: there is no {method!r} among these runs, only'
        f' {", ".join(there)}.'
      )
  best: dict[str, dict[str, runs.Run]] = collections.defaultdict(dict)
  number: dict[tuple[str, str], int] = collections.Counter()
  for run in found:
    problem, method, _ = run.key
    if _METHODS.value and method not in _METHODS.value:
      continue
    if problem not in problems.PROBLEMS:
      continue  # Its grid and mirror planes are unknown.
    number[problem, method] += 1
    other = best[problem].get(method)
    if other is None or run.losses.min() < other.losses.min():
      best[problem][method] = run
  if not best:
    raise _command_line.UsageError(f'There are no runs in {_RUNS.value!r}.')
  order = [name for name in problems.PROBLEMS if name in best]
  tasks = [_task(name, i, best[name], number) for i, name in enumerate(order)]
  families = dict.fromkeys(problems.get_problem(n).category for n in order)
  shown = sum(map(len, best.values()))
  page = _PAGE.substitute(
    intro=html.escape(
      f'{shown} designs of {len(order)} tasks: the stiffest that each method'
      ' found with the material allowed. Compliance is the work of the loads;'
      ' lower is better. Symmetric structures are completed by mirroring.'
    ),
    families='\n'.join(
      f'<option value="{html.escape(name)}">{html.escape(_words(name))}'
      '</option>'
      for name in families
    ),
    tasks='\n'.join(tasks),
  )
  output = _OUTPUT.value or f'{_RUNS.value.rstrip("/")}/gallery.html'
  write_bytes(output, page.encode())
  print(f'{shown} designs of {len(order)} tasks: {output}')


def _task(name: str, place: int, best, number) -> str:
  """The part of the page that shows one task."""
  problem = problems.get_problem(name)
  values = {method: run.losses.min() for method, run in best.items()}
  lowest = min(values.values())
  order = [m for m in analysis.METHODS if m in best]
  order += sorted(set(best) - set(order))
  typical = published.paper_scores()[0]
  cells = []
  for method in order:
    run, value = best[method], values[method]
    details = []
    if value > lowest:
      details.append(f'{reports.difference(value, lowest)} from the best')
    elif len(order) > 1:
      details.append('best of these')
    paper = typical.value(name, method)
    if paper == paper:  # Not NaN.
      details.append(f'{reports.difference(value, paper)} from the paper')
    count = number[name, method]
    seed = run.key.seed
    origin = 'constant start' if seed == runs.CONSTANT else f'seed {seed}'
    details.append(
      f'{len(run.losses)} evaluations, {origin}'
      + (f', best of {count} runs' if count > 1 else '')
    )
    cells.append(
      _FIGURE.substitute(
        kind='best' if value == lowest and len(order) > 1 else '',
        name=html.escape(name),
        method=html.escape(reports.title(method)),
        value=reports.number(value),
        details=html.escape(' · '.join(details)),
        png=_png(run, problem),
      )
    )
  about = (
    f'{problem.nelx} × {problem.nely} elements,'
    f' {100 * problem.volume_fraction:.4g} % material'
  )
  return _TASK.substitute(
    name=html.escape(name),
    family=html.escape(problem.category),
    size=problem.nelx * problem.nely,
    place=place,
    spread=f'{max(values.values()) / lowest - 1:.6f}',
    about=html.escape(about),
    figures='\n'.join(cells),
  )


def _png(run, problem) -> str:
  """The best design of a run as base64, one pixel for each element."""
  import PIL.Image

  history = History.load(run.stem)
  buffer = io.BytesIO()
  image = PIL.Image.fromarray(to_image(history.best_design, problem))
  image.save(buffer, format='PNG', optimize=True)
  return base64.b64encode(buffer.getvalue()).decode()


def _words(name: str) -> str:
  return name.replace('_', ' ')


if __name__ == '__main__':
  _command_line.run(main)
