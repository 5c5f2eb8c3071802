"""The command `jaxpapers`: lists the scripts and runs one of them by name.

A script is an ordinary absl program; `jaxpapers NAME --flag` and
`python scripts/NAME.py --flag` are the same run. Nothing is imported to list
them, so the list comes at once and does not need a script's own dependencies.
"""

import ast
import difflib
import pathlib
import runpy
import sys
from collections.abc import Mapping, Sequence

import jaxpapers

# Room -> what to print above its scripts. Prefixes of the script names.
PAPERS: Mapping[str, str] = {
  'adapters': 'Bottleneck adapters (Houlsby et al. 2019)',
  'efficientnet': 'EfficientNet (Tan & Le 2019)',
  'kcore': 'k-core percolation of brain networks (Arese Lucini et al. 2019)',
  'layca': 'Layer rotation (Carbonnelle & De Vleeschouwer 2018)',
  'osnet': 'OSNet person re-identification (Zhou et al. 2019)',
  'product_keys': 'Product-key memory (Lample et al. 2019)',
  'recsys': 'Top-n recommendation (Ferrari Dacrema et al. 2019)',
  'roberta': 'RoBERTa (Liu et al. 2019)',
  'structopt': 'Neural structural optimization (Hoyer et al. 2019)',
}

USAGE = """\
usage: jaxpapers                   list the scripts
       jaxpapers SCRIPT [FLAGS]    run one; SCRIPT --help shows its flags
       jaxpapers --version
"""


def scripts_folder() -> pathlib.Path:
  """Folder that holds the scripts of this installation.

  A wheel carries them as the package `jaxpapers_scripts`, beside this one; in
  a checkout they are in `scripts/`.

  Returns:
    An existing folder.

  Raises:
    FileNotFoundError: if neither place exists.
  """
  root = pathlib.Path(__file__).resolve().parent.parent
  candidates = (root / 'jaxpapers_scripts', root / 'scripts')
  for folder in candidates:
    if folder.is_dir():
      return folder
  raise FileNotFoundError(
    f'The scripts are missing: neither {candidates[0]} nor {candidates[1]} '
    'is a folder. Reinstall jaxpapers.'
  )


def list_scripts(folder: pathlib.Path) -> dict[str, str]:
  """One-line description of every script, by name.

  Args:
    folder: folder of `<paper>_<verb>.py` files. Names that begin with an
      underscore are helpers of the scripts and are left out.

  Returns:
    Name (without `.py`) -> first line of the module docstring, '' where there
    is none or the file does not parse. Sorted by name.
  """
  scripts = {}
  for path in sorted(folder.glob('*.py')):
    if path.name.startswith('_'):
      continue
    try:
      docstring = ast.get_docstring(ast.parse(path.read_text('utf-8'))) or ''
    except (SyntaxError, UnicodeDecodeError):
      docstring = ''
    scripts[path.stem] = docstring.partition('\n')[0].strip()
  return scripts


def paper_of(script: str) -> str | None:
  """Room that a script belongs to, None where its name begins with none."""
  for paper in PAPERS:
    if script == paper or script.startswith(paper + '_'):
      return paper
  return None


def format_listing(scripts: Mapping[str, str]) -> str:
  """The scripts as text, grouped by paper, those of no paper last."""
  if not scripts:
    return 'No scripts are installed.\n'
  width = max(map(len, scripts)) + 2
  lines = []
  for paper in (*PAPERS, None):
    names = [name for name in scripts if paper_of(name) == paper]
    if names:
      lines += ['', PAPERS.get(paper, 'Other') if paper else 'Other']
      lines += [f'  {n:<{width}}{scripts[n]}'.rstrip() for n in names]
  return '\n'.join(lines[1:]) + '\n'


def main(argv: Sequence[str] | None = None) -> int:
  """Entry point of the console command.

  Args:
    argv: arguments without the program name; None takes `sys.argv[1:]`.

  Returns:
    Exit code: 0, 2 for a name that no script has, 1 where the installation
    has no scripts. A script that is run ends the process by its own exit code.
  """
  argv = list(sys.argv[1:] if argv is None else argv)
  try:
    folder = scripts_folder()
  except FileNotFoundError as error:
    print(f'jaxpapers: {error}', file=sys.stderr)
    return 1
  scripts = list_scripts(folder)

  if not argv or argv[0] in ('-h', '--help', 'help'):
    print(USAGE)
    print(format_listing(scripts), end='')
    return 0
  if argv[0] == '--version':
    print(f'jaxpapers {jaxpapers.__version__}')
    return 0

  name = argv[0].removesuffix('.py')
  if name not in scripts:
    near = difflib.get_close_matches(name, scripts, n=1, cutoff=0.4)
    hint = f'Did you mean {near[0]!r}? ' if near else ''
    print(
      f'jaxpapers: there is no script {argv[0]!r}. {hint}'
      'Run `jaxpapers` without arguments for the list.',
      file=sys.stderr,
    )
    return 2

  path = folder / f'{name}.py'
  # What `python path` would set: absl reads the program's name from sys.argv,
  # and a script finds the helpers beside it on sys.path.
  sys.argv = [str(path), *argv[1:]]
  sys.path.insert(0, str(folder))
  runpy.run_path(str(path), run_name='__main__')
  return 0


if __name__ == '__main__':
  sys.exit(main())
