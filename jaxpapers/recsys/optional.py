"""Libraries that only some functions need, with an error that helps."""

import importlib
from typing import Any


def load(name: str) -> Any:
  """Imports a library of the extra `recsys`.

  Raises:
    ImportError: It is missing; the message says what to install.
  """
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise ImportError(
      f"This needs {name.partition('.')[0]}: pip install 'jaxpapers[recsys]'."
    ) from error


def sparse() -> Any:
  """`scipy.sparse`."""
  return load('scipy.sparse')
