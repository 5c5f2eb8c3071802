"""Checkpoints of other libraries, read into Linen trees and written back.

PyTorch's files are read without torch, and nothing in them is run.
`docs/weights.md` shows how.
"""

from jaxpapers.weights import layouts
from jaxpapers.weights.mismatch import Misshaped, WeightMismatchError
from jaxpapers.weights.rename import RenameTable, Rule
from jaxpapers.weights.safetensors_files import write_safetensors
from jaxpapers.weights.state_dict import StateDict, open_state_dict
from jaxpapers.weights.torch_files import read_torch
from jaxpapers.weights.torch_pickle import Opaque, UnsafePickleError
from jaxpapers.weights.trees import flatten, merge, unflatten

__all__ = [
  'Misshaped',
  'Opaque',
  'RenameTable',
  'Rule',
  'StateDict',
  'UnsafePickleError',
  'WeightMismatchError',
  'flatten',
  'layouts',
  'merge',
  'open_state_dict',
  'read_torch',
  'unflatten',
  'write_safetensors',
]
