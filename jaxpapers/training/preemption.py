"""Being told to stop by SIGTERM, as cluster managers and spot machines do."""

import signal
import threading

import jax


class StopSignal:
  """Notices SIGTERM while it is entered, on one process or many.

  On several processes the signal may reach only one of them, and all have to
  save the same step: there `jax.distributed`, which listens to the signal, is
  asked; it makes all processes answer alike.
  """

  def __init__(self):
    """Nothing has arrived yet."""
    self._arrived = False
    self._previous = None
    self._listening = False

  def __enter__(self):
    # Signals can only be handled in the main thread. With several processes
    # the handler of jax.distributed has to stay.
    if (
      threading.current_thread() is threading.main_thread()
      and jax.process_count() == 1
    ):
      self._previous = signal.signal(signal.SIGTERM, self._handle)
      self._listening = True
    return self

  def _handle(self, number, frame):
    del number, frame
    self._arrived = True

  def __exit__(self, *_):
    if self._listening:
      # None stands for a handler that was not installed from Python.
      signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)
      self._listening = False

  def arrived(self, step: int) -> bool:
    """Whether to stop after this step; the same answer in every process.

    Args:
      step: Number of steps made; called once for each, in every process.
    """
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils

      return multihost_utils.reached_preemption_sync_point(step)
    return self._arrived
