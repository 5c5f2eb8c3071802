"""Meshes, and regular expressions that say how arrays lie on them."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Axes over which the examples of a batch are split, where a mesh has them.
BATCH_AXES = ('data', 'fsdp')
# Axis over which the members of a population are split, where a mesh has it.
POPULATION_AXIS = 'population'

Spec = PartitionSpec | Callable[[str, tuple[int, ...], Mesh], PartitionSpec]
Rules = Sequence[tuple[str, Spec]]


def make_mesh(
  axes: Mapping[str, int] | str, devices: Sequence[Any] | None = None
) -> Mesh:
  """A mesh of named axes over all devices.

  Args:
    axes: Size of each axis by name, as a mapping or as text:
      'data:-1,model:2'. One size may be -1: it takes what is left.
    devices: The devices; all devices of all processes by default. They may be
      those of a topology for ahead-of-time compilation.

  Returns:
    The mesh, its axes in the order given.

  Raises:
    ValueError: If the text cannot be read or the sizes do not use all devices.

  Example:
    >>> make_mesh('data:-1,model:1').axis_names
    ('data', 'model')
  """
  if isinstance(axes, str):
    axes = _parse_axes(axes)
  axes = dict(axes)
  count = jax.device_count() if devices is None else len(devices)
  free = [name for name, size in axes.items() if size == -1]
  given = math.prod(size for size in axes.values() if size != -1)
  text = ','.join(f'{name}:{size}' for name, size in axes.items())
  if not axes or len(free) > 1 or given < 1:
    raise ValueError(
      f'axes is {text!r}; expected at least one axis, sizes of 1 or more and'
      " at most one -1, as in 'data:-1,model:2'."
    )
  if free:
    axes[free[0]] = count // given
  if math.prod(axes.values()) != count:
    raise ValueError(
      f'axes {text!r} do not fit {count} device(s); expected sizes whose'
      f' product is {count}, or one of them -1.'
    )
  return jax.make_mesh(
    tuple(axes.values()),
    tuple(axes),
    axis_types=(AxisType.Auto,) * len(axes),
    devices=devices,
  )


def _parse_axes(text: str) -> dict[str, int]:
  axes = {}
  for part in filter(None, (part.strip() for part in text.split(','))):
    name, colon, size = part.partition(':')
    if not colon or not re.fullmatch(r'-1|\d+', size.strip()):
      raise ValueError(
        f"cannot read {part!r} in mesh {text!r}; expected 'name:size,"
        "name:size', as in 'data:-1,model:2'."
      )
    axes[name.strip()] = int(size)
  return axes


def path_name(path) -> str:
  """A tree path as text with slashes: 'params/Dense_0/kernel'.

  Args:
    path: Key path, as `jax.tree_util.tree_map_with_path` gives it.

  Returns:
    Its keys, names and indices joined by '/'.
  """
  return jax.tree_util.keystr(path, simple=True, separator='/')


def fsdp(axis: str = 'data', min_size: int = 2**16) -> Callable[..., Any]:
  """Rule value that splits the largest dimension of a leaf over one axis.

  Fully sharded data parallelism: parameters and optimizer state are spread over
  the devices that share the batch, and gathered where they are used.

  Args:
    axis: Mesh axis.
    min_size: Leaves with fewer elements are replicated: gathering them would
      cost more than it saves.

  Returns:
    A function of path, shape and mesh for the right side of a rule.

  Example:
    >>> rules = [('.*', fsdp('data'))]
  """

  def spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    del path
    size = mesh.shape.get(axis, 1)
    if math.prod(shape) < min_size or size == 1:
      return PartitionSpec()
    fitting = [d for d, length in enumerate(shape) if length % size == 0]
    if not fitting:
      return PartitionSpec()
    best = max(fitting, key=lambda d: shape[d])
    return PartitionSpec(
      *[axis if d == best else None for d in range(best + 1)]
    )

  return spec


def shard_rules(
  tree: Any, rules: Rules, mesh: Mesh, *, population: bool = False
) -> Any:
  """The sharding of every leaf, by the first rule whose pattern is in its path.

  Patterns are searched in the leaf's whole path, such as
  'params/Dense_0/kernel' or 'opt_state/0/mu/Dense_0/kernel': a pattern that
  names the parameter alone also covers its momentum. A leaf that no rule
  matches is replicated, and so are dimensions of size one and optimizer
  statistics of another rank than the parameter (a norm per layer, say).

  Args:
    tree: Arrays, tracers or ShapeDtypeStructs.
    rules: Pairs of a regular expression and a PartitionSpec, or a function
      `(path, shape, mesh) -> PartitionSpec` such as `fsdp()`. Axes that the
      mesh does not have count as absent, so one list serves every mesh.
    mesh: The mesh.
    population: Whether a leading axis of members comes before what the rules
      speak of; it lies on the axis 'population' where the mesh has one.

  Returns:
    A tree of NamedSharding, of the structure of `tree`.

  Raises:
    ValueError: If a dimension cannot be divided evenly, or a parameter has
      fewer dimensions than its rule.

  Example:
    >>> rules = [('Dense_.*/kernel', PartitionSpec(None, 'model'))]
  """
  check_auto(mesh)
  compiled = [(re.compile(pattern), spec) for pattern, spec in rules]

  def sharding(path, leaf):
    name = path_name(path)
    shape = tuple(np.shape(leaf))
    lead: tuple[str | None, ...] = ()
    if population:
      if not shape:
        raise ValueError(
          f'{name} has no axis of members; with population=True every leaf of'
          ' the state has a leading one.'
        )
      lead = (POPULATION_AXIS if POPULATION_AXIS in mesh.shape else None,)
      if lead[0] and shape[0] % mesh.shape[POPULATION_AXIS]:
        raise ValueError(
          f'{shape[0]} members cannot be split evenly over axis'
          f' {POPULATION_AXIS!r} of size {mesh.shape[POPULATION_AXIS]}.'
        )
      shape = shape[1:]
    spec = next((s for p, s in compiled if p.search(name)), PartitionSpec())
    if callable(spec):
      spec = spec(name, shape, mesh)
    entries = (*lead, *_fit(spec, name, shape, mesh))
    # As XLA writes the shardings of results: a step whose inputs differ from
    # its outputs in a trailing None would be compiled twice.
    while entries and entries[-1] is None:
      entries = entries[:-1]
    return NamedSharding(mesh, PartitionSpec(*entries))

  return jax.tree_util.tree_map_with_path(sharding, tree)


def _fit(spec, name: str, shape: tuple[int, ...], mesh: Mesh) -> tuple:
  """A spec without what the mesh or the leaf does not have."""
  if len(spec) > len(shape):
    if name.startswith('params'):
      raise ValueError(
        f'{name} has shape {shape}, fewer dimensions than its rule {spec}.'
        ' Make the pattern of the rule narrower.'
      )
    return ()
  fitted = []
  for entry, length in zip(spec, shape):
    names = entry if isinstance(entry, tuple) else (entry,)
    names = tuple(n for n in names if n is not None and n in mesh.shape)
    parts = math.prod(mesh.shape[n] for n in names)
    if length == 1 or not names:
      fitted.append(None)
    elif length % parts and name.startswith('opt_state'):
      # Statistics of the optimizer are often smaller than their parameter.
      fitted.append(None)
    elif length % parts:
      raise ValueError(
        f'{name} has shape {shape}: a dimension of {length} cannot be split'
        f' evenly over {" x ".join(names)} = {parts} devices. Change the mesh'
        ' or the rule.'
      )
    else:
      fitted.append(names if len(names) > 1 else names[0])
  return tuple(fitted)


def check_auto(mesh: Mesh) -> None:
  """Refuses meshes whose shardings are part of types.

  Raises:
    ValueError: If an axis is Explicit, as `jax.make_mesh` makes them by itself.
  """
  if any(kind != AxisType.Auto for kind in mesh.axis_types):
    raise ValueError(
      f'mesh has axes of types {mesh.axis_types}; expected Auto ones. Make it'
      " with training.make_mesh('data:-1,model:2'), or give jax.make_mesh"
      ' axis_types=(AxisType.Auto,) * number of axes.'
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Sharding of a batch: its leading axis over the mesh's batch axes."""
  axes = tuple(name for name in BATCH_AXES if name in mesh.shape)
  return NamedSharding(mesh, PartitionSpec(axes if axes else None))


def _batch_parts(mesh: Mesh) -> int:
  return math.prod(
    mesh.shape[name] for name in BATCH_AXES if name in mesh.shape
  )


def batch_share(mesh: Mesh | None = None) -> tuple[int, int]:
  """Which part of every batch this process has to load.

  Usually the k-th of as many parts as there are processes. Where a batch axis
  does not separate processes (tensor parallelism wider than a host, a mesh
  without batch axes), several load the same part.

  Args:
    mesh: The mesh; without one the process loads everything.

  Returns:
    Index of the part, and how many there are: `process_index` and
    `process_count` of `jaxpapers.data.batches`.

  Raises:
    ValueError: If the processes' parts of a batch overlap or are not
      contiguous.

  Example:
    >>> batch_share(make_mesh('data:-1'))
    (0, 1)
  """
  if mesh is None or jax.process_count() == 1:
    return 0, 1
  parts = _batch_parts(mesh)
  indices = batch_sharding(mesh).devices_indices_map((parts,))
  owned: dict[int, set[int]] = {}
  for device, (index,) in indices.items():
    owned.setdefault(device.process_index, set()).add(index.start or 0)
  shares = sorted({tuple(sorted(own)) for own in owned.values()})
  # Equal parts in a row: the first is 0, 1, .. n - 1, and so on.
  if [i for share in shares for i in share] != list(range(parts)) or (
    len({len(share) for share in shares}) > 1
  ):
    raise ValueError(
      f'mesh {dict(mesh.shape)} gives the processes the parts {shares} of a'
      f' batch in {parts}; expected equal, contiguous parts. Put the batch axes'
      ' first, or use sizes that the devices of a process divide.'
    )
  mine = tuple(sorted(owned[jax.process_index()]))
  return shares.index(mine), len(shares)


def put_batch(batch: Any, mesh: Mesh | None = None) -> Any:
  """Moves a batch to the devices, split over the mesh's batch axes.

  Args:
    batch: Tree of numpy arrays `[local_batch, ...]`: the share of this process,
      see `batch_share`. Leaves that are already on the devices pass through.
    mesh: The mesh; None for the default device.

  Returns:
    Tree of arrays `[global_batch, ...]`.

  Raises:
    ValueError: If the examples cannot be divided evenly among the devices.
  """
  if mesh is None:
    return jax.tree.map(
      lambda x: x if isinstance(x, jax.Array) else jax.device_put(x), batch
    )
  sharding = batch_sharding(mesh)
  parts = _batch_parts(mesh)
  shares = batch_share(mesh)[1]

  def put(path, x):
    if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(
      sharding, x.ndim
    ):
      return x
    if np.ndim(x) == 0:
      raise ValueError(
        f'batch leaf {path_name(path)!r} is a scalar; expected a leading axis'
        ' of examples.'
      )
    total = np.shape(x)[0] * shares
    if total % parts or not total:
      raise ValueError(
        f'batch leaf {path_name(path)!r} has shape {np.shape(x)}, one of'
        f' {shares} part(s): {total} examples cannot be split evenly over'
        f' {parts} devices. Choose a batch size that {parts} divides.'
      )
    if jax.process_count() == 1:
      return jax.device_put(x, sharding)
    return jax.make_array_from_process_local_data(
      sharding, np.asarray(x), (total, *np.shape(x)[1:])
    )

  return jax.tree_util.tree_map_with_path(put, batch)
