"""Runs the programs in scripts/ as a user does, in processes of their own."""

import os
import pathlib
import signal
import subprocess
import sys
import time

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


def kill_at_checkpoint(
  case, name: str, *flags: str, checkpoints: pathlib.Path
) -> None:
  """Runs a training program until it has a checkpoint, and kills it (-9).

  Args:
    case: the test case; it fails if the program ends by itself.
    name: of the script.
    *flags: its arguments.
    checkpoints: the folder in which checkpoints appear under their step.
  """
  process = subprocess.Popen(
    command(name, *flags),
    env=environment(),
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  deadline = time.monotonic() + 500
  while process.poll() is None and time.monotonic() < deadline:
    if checkpoints.is_dir() and any(
      entry.isdigit() for entry in os.listdir(checkpoints)
    ):
      process.send_signal(signal.SIGKILL)
      break
    time.sleep(0.01)
  _, error = process.communicate(timeout=100)
  case.assertEqual(process.returncode, -signal.SIGKILL, error)
