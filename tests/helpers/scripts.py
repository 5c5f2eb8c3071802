"""Runs the programs in scripts/ as a user does, in processes of their own."""

import os
import subprocess
import sys

from tests.helpers.repository import ROOT


def command(name: str, *flags: str) -> list[str]:
  """The command line of a script."""
  return [sys.executable, str(ROOT / 'scripts' / f'{name}.py'), *flags]


def environment(**variables: str) -> dict[str, str]:
  """Environment of a script: on the CPU, with the repository importable."""
  paths = [str(ROOT), os.environ.get('PYTHONPATH', '')]
  return {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': os.pathsep.join(path for path in paths if path),
    **variables,
  }


def run(
  name: str, *flags: str, timeout: float = 600.0, **variables: str
) -> subprocess.CompletedProcess:
  """Runs a script to its end.

  Args:
    name: its file name without `.py`.
    *flags: its arguments.
    timeout: seconds after which it is killed.
    **variables: additions to its environment.

  Returns:
    The finished process with its output as text; its exit code is not checked.
  """
  return subprocess.run(
    command(name, *flags),
    env=environment(**variables),
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=timeout,
    check=False,
  )


def assert_usage_error(case, done: subprocess.CompletedProcess, *words) -> None:
  """Checks that a script refused its flags in one line that helps.

  Args:
    case: the test case.
    done: the finished process.
    *words: what the line has to contain.
  """
  case.assertEqual(done.returncode, 2, done.stderr)
  lines = done.stderr.strip().splitlines()
  case.assertLen(lines, 1, done.stderr)
  for word in (*words, '--help'):
    case.assertIn(word, lines[0])
