"""Adapters in a Linen module that knows nothing of them."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from jaxpapers.adapters.config import AdapterConfig

NAME = 'bottleneck_adapter'

Where = (
  str
  | type[nn.Module]
  | Sequence[type[nn.Module]]
  | Callable[[nn.Module], bool | int]
)


def add_adapters(
  module: nn.Module,
  where: Where,
  config: AdapterConfig | None = None,
  method: str = '__call__',
) -> 'Adapted':
  """A module that calls another with adapters behind some of its submodules.

  The other module is not changed: an interceptor of Linen sees the calls of its
  submodules and passes what they return through an adapter. Parameters keep
  their paths, so that a checkpoint of the module fits; those of an adapter are
  in the submodule that it follows, under `bottleneck_adapter`. In layers under
  `nn.scan` they are stacked like the others.

  Args:
    module: The module, unbound.
    where: Which submodules: a regular expression that is searched in their
      path, as r'mlp$' in 'encoder/block_3/mlp'; a class or several; or a
      function from the bound submodule to a bool, or to a size. Usually what
      stands right before a residual sum, dropout included.
    config: Choices of the adapters; by default the paper's. Its `size` has to
      be one number; a function `where` may return others.
    method: Which method of the module is called.

  Returns:
    A module that is called like `module`, and takes `adapter_gates` besides: a
    factor of what adapters add, for all of them or by path of the submodule.
    What an adapter returns has the type of what it was given.

  Raises:
    TypeError: If `where` is something else.
    ValueError: If `config.size` is not one number; when called, if `where`
      matches nothing, or a submodule returns no array.

  Example:
    >>> import jax.numpy as jnp
    >>> model = add_adapters(nn.Sequential([nn.Dense(8), nn.Dense(4)]), r'_1$')
    >>> variables = model.init(jax.random.key(0), jnp.ones((2, 3)))
    >>> sorted(variables['params']['layers_1'])
    ['bias', 'bottleneck_adapter', 'kernel']
  """
  config = AdapterConfig() if config is None else config
  if isinstance(config.size, tuple):
    raise ValueError(
      f'config.size is {config.size}; expected one number. For different sizes'
      ' let where be a function that returns them.'
    )
  if not isinstance(where, (str, type)) and not callable(where):
    where = tuple(where)
  _matcher(where, config.size)
  return Adapted(module, where, config, method)


class Adapted(nn.Module):
  """What `add_adapters` returns.

  Attributes:
    module: The module that is called.
    where: See `add_adapters`.
    config: See `add_adapters`.
    method: See `add_adapters`.
  """

  module: nn.Module
  where: Any
  config: AdapterConfig = AdapterConfig()
  method: str = '__call__'

  def setup(self):
    # Parameters of the module are this module's: no folder around them.
    nn.share_scope(self, self.module)

  def __call__(self, *args: Any, adapter_gates: Any = None, **kwargs: Any):
    """Calls the module with adapters.

    Args:
      *args: Of the module.
      adapter_gates: None, a gate for all adapters, or gates by the paths that
        `find_sites` lists; those of other paths are 1.
      **kwargs: Of the module.

    Returns:
      What the module returns.

    Raises:
      ValueError: See `add_adapters`; or if a gate is of no site.
    """
    size_of = _matcher(self.where, self.config.size)
    with intercepted(size_of, self.config, adapter_gates) as sites:
      out = getattr(self.module, self.method)(*args, **kwargs)
    if not sites:
      raise ValueError(
        f'where={self.where!r} matches no submodule of'
        f' {type(self.module).__name__}. A regular expression is searched in'
        " paths such as 'encoder/block_3/mlp'; classes must be those of"
        ' submodules.'
      )
    if isinstance(adapter_gates, Mapping):
      unknown = [path for path in adapter_gates if path not in sites]
      if unknown:
        raise ValueError(
          f'adapter_gates has {unknown[0]!r}; adapters are behind {sites}.'
        )
    return out


def find_sites(module: Adapted, *args: Any, **kwargs: Any) -> list[str]:
  """Paths of the submodules that are followed by an adapter, in order.

  Nothing is computed.

  Args:
    module: What `add_adapters` returned.
    *args: Inputs of the module, or their shapes.
    **kwargs: Keyword arguments.

  Returns:
    The paths.
  """
  found = []

  def record(path):
    if path not in found:
      found.append(path)
    return 1.0

  jax.eval_shape(
    lambda *args: module.init(
      jax.random.key(0), *args, adapter_gates=_Recorder(record), **kwargs
    ),
    *args,
  )
  return found


@dataclasses.dataclass(frozen=True)
class _Recorder:
  """Gates that remember which paths were asked for."""

  record: Callable[[str], float]


@dataclasses.dataclass
class _Call:
  """A call of a matching submodule that has not returned."""

  path: tuple[str, ...]
  inner: bool = False


@contextlib.contextmanager
def intercepted(
  size_of: Callable[[nn.Module], int], config: AdapterConfig, gates: Any
) -> Iterator[list[str]]:
  """Context in which calls of some modules end in adapters.

  Args:
    size_of: Maps a bound module to the size of its adapter, 0 for none.
    config: Other choices.
    gates: See `Adapted`.

  Yields:
    Paths of the modules that got an adapter, filled in as they are called.
  """
  sites: list[str] = []
  calls: list[_Call] = []
  adapting = False

  def interceptor(call_next, args, kwargs, context):
    nonlocal adapting
    module = context.module
    if adapting or context.method_name != '__call__':
      return call_next(*args, **kwargs)
    size = size_of(module)
    if not size:
      return call_next(*args, **kwargs)
    path = module.path
    calls.append(_Call(path))
    try:
      out = call_next(*args, **kwargs)
    finally:
      call = calls.pop()
    # A lifted module (nn.scan, nn.remat) is called twice, from outside and
    # within; only what happens within is per layer.
    for outer in calls:
      outer.inner |= outer.path == path
    if call.inner:
      return out
    text = '/'.join(path)
    if text not in sites:
      sites.append(text)
    adapting = True
    try:
      return _adapt(module, out, args, size, config, _gate(gates, text))
    finally:
      adapting = False

  with nn.intercept_methods(interceptor):
    yield sites


def _adapt(module, out, args, size, config, gate):
  """What a module returned, or the first of it, through an adapter."""
  rest = None
  if isinstance(out, (tuple, list)) and out:
    out, *rest = out
  if not isinstance(out, jax.Array) or not out.ndim:
    raise ValueError(
      f'{"/".join(module.path)} returns {type(out).__name__}; an adapter needs'
      ' an array [..., d], alone or first in a tuple.'
    )
  source = None
  if config.parallel:
    if not args:
      raise ValueError(
        f'{"/".join(module.path)} was called without positional arguments; a'
        ' parallel adapter reads the first of them.'
      )
    source = args[0]
  # The adapter belongs to the module: whatever lifts that one lifts it, too.
  scope = module.scope.push(NAME, reuse=True)
  adapter = config.make(size, parent=scope)
  adapted = adapter(out, gate=gate, source=source).astype(out.dtype)
  return adapted if rest is None else (adapted, *rest)


def _gate(gates, path):
  if isinstance(gates, _Recorder):
    return gates.record(path)
  if isinstance(gates, Mapping):
    return gates.get(path)
  return gates


def _matcher(where, size) -> Callable[[nn.Module], int]:
  """Function from a module to the size of its adapter."""
  if isinstance(where, str):
    pattern = re.compile(where)
    return lambda m: size if pattern.search('/'.join(m.path)) else 0
  classes = where if isinstance(where, (tuple, list)) else (where,)
  if classes and all(isinstance(c, type) for c in classes):
    return lambda m: size if isinstance(m, tuple(classes)) else 0
  if callable(where):

    def call(module):
      answer = where(module)
      return size if answer is True else int(answer or 0)

    return call
  raise TypeError(
    f'where is {where!r}; expected a regular expression, a class of Linen'
    ' modules or several, or a function of a module.'
  )
