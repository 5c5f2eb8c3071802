"""Runs test code on fake CPU devices.

The number of CPU devices is fixed when JAX starts, and the test process wants
one. Code for a mesh therefore runs in a process of its own:

  out = devices.run('''
    import jax
    assert jax.device_count() == 8
    print('fine')
  ''')
"""

import os
import subprocess
import sys
import textwrap

from tests.helpers.repository import ROOT


def environment(device_count: int = 8) -> dict[str, str]:
  """Environment of a process that sees `device_count` CPU devices.

  Args:
    device_count: number of fake devices.

  Returns:
    A copy of this process's environment in which JAX is held to the CPU and
    the repository root comes first on the import path.
  """
  env = dict(os.environ)
  flag = f'--xla_force_host_platform_device_count={device_count}'
  # The last of two equal XLA flags wins.
  env['XLA_FLAGS'] = f'{env.get("XLA_FLAGS", "")} {flag}'.strip()
  env['JAX_PLATFORMS'] = 'cpu'
  paths = [str(ROOT), env.get('PYTHONPATH', '')]
  env['PYTHONPATH'] = os.pathsep.join(path for path in paths if path)
  return env


def run(code: str, *, device_count: int = 8, timeout: float = 600.0) -> str:
  """Runs Python source on fake devices and returns what it printed.

  Args:
    code: source text; common indentation is removed. It can import `jaxpapers`
      and `tests`, and reports a failure by any exception.
    device_count: number of fake CPU devices.
    timeout: seconds after which the process is killed.

  Returns:
    Its standard output.

  Raises:
    AssertionError: if it ends with another exit code than 0; the message holds
      all that it printed.
  """
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code)],
    env=environment(device_count),
    cwd=ROOT,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=timeout,
    check=False,
  )
  if done.returncode != 0:
    raise AssertionError(
      f'Code on {device_count} devices ended with exit code {done.returncode}.'
      f'\n--- stdout\n{done.stdout}\n--- stderr\n{done.stderr}'
    )
  return done.stdout
