"""Content of items, and training of the autoencoders that read it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

_HIGH = jax.lax.Precision.HIGHEST


class Content(NamedTuple):
  """Features of items, as lists: most are 0.

  Attributes:
    ids: Features of each item, int32 `[num_items, width]`, padded with
      `num_features`.
    values: Their values, float32.
  """

  ids: Any
  values: Any


def put_content(features: Any, num_items: int) -> tuple[Content, int]:
  """Puts features on the device.

  Args:
    features: Items by features, scipy sparse or numpy, values from 0 to 1.
    num_items: Rows that are expected.

  Returns:
    The content, and the number of features.

  Raises:
    ValueError: The shape is wrong, or a value is not from 0 to 1.
  """
  from jaxpapers.recsys import optional

  matrix = optional.sparse().csr_array(features)
  if matrix.shape[0] != num_items:
    raise ValueError(
      f'features have {matrix.shape[0]} rows; expected {num_items}, one for'
      ' each item.'
    )
  values = matrix.data.astype(np.float32)
  if len(values) and not (values.min() >= 0 and values.max() <= 1):
    raise ValueError(
      f'features go from {values.min()} to {values.max()}; expected values'
      ' from 0 to 1, which a sigmoid can be. Scale them, for instance by their'
      ' largest.'
    )
  lengths = np.diff(matrix.indptr)
  width = max(int(lengths.max(initial=1)), 1)
  num_features = matrix.shape[1]
  ids = np.full((num_items, width), num_features, np.int32)
  padded = np.zeros((num_items, width), np.float32)
  inside = np.arange(width) < lengths[:, None]
  ids[inside], padded[inside] = matrix.indices, values
  return Content(jnp.asarray(ids), jnp.asarray(padded)), num_features


def take(data: Any, rows: Any, num_features: int) -> jax.Array:
  """Dense rows of content, or of an array.

  Args:
    data: `Content`, or float `[n, num_features]`.
    rows: int `[b]`.
    num_features: Number of columns.

  Returns:
    float32 `[b, num_features]`.
  """
  if not isinstance(data, Content):
    return data[rows]
  dense = jnp.zeros((len(rows), num_features), jnp.float32)
  at = jnp.arange(len(rows))[:, None]
  return dense.at[at, data.ids[rows]].set(data.values[rows], mode='drop')


def number_of_rows(data: Any) -> int:
  """Rows of content, or of an array."""
  return len(data.ids) if isinstance(data, Content) else len(data)


def mask_noise(key: Any, x: Any, noise: float) -> jax.Array:
  """Sets a share of the numbers to 0, at random."""
  return jnp.where(jax.random.bernoulli(key, 1 - noise, x.shape), x, 0)


def reconstruction(logits: Any, x: Any) -> jax.Array:
  """Cross-entropy summed over features, averaged over items."""
  return optax.sigmoid_binary_cross_entropy(logits, x).sum(-1).mean()


def dot(x: Any, kernel: Any) -> jax.Array:
  """A product in full precision."""
  return jnp.matmul(x, kernel, precision=_HIGH)


def glorot(key: Any, inputs: int, outputs: int) -> jax.Array:
  """A weight matrix, uniform in +-sqrt(6 / (inputs + outputs))."""
  return jax.nn.initializers.glorot_uniform()(key, (inputs, outputs))


# What `train` minimises: a hashable object, called with parameters, data, rows
# int [b], targets [n, ...] and a key.
Loss = Callable[..., Any]

_OPTIMIZERS = {
  'adam': optax.adam,
  'adadelta': functools.partial(optax.adadelta, rho=0.99, eps=1e-8),
}


def start_state(optimizer: str, params: Any) -> Any:
  """State of an optimizer by name: 'adam', or 'adadelta' as CDL has it."""
  return _OPTIMIZERS[optimizer](0.0).init(params)


def draw_batches(
  key: Any, n: int, batch_size: int, steps: int, cover: bool
) -> jax.Array:
  """Items of the batches of an epoch, int32 `[steps, batch_size]`.

  Args:
    key: Of the order.
    n: Number of items.
    batch_size: Items of a batch.
    steps: Batches.
    cover: Whether the batches are parts of one order of all items, so that an
      epoch covers them. CVAE's code draws each batch anew, without repetition
      within it: more than a third of the items are in no batch of an epoch.
  """
  if cover:
    rows = jnp.resize(jax.random.permutation(key, n), steps * batch_size)
    return rows.reshape(steps, batch_size)
  keys = jax.random.split(key, steps)
  return jax.vmap(lambda k: jax.random.permutation(k, n)[:batch_size])(keys)


@functools.partial(
  jax.jit,
  static_argnames=('loss', 'optimizer', 'batch_size', 'steps', 'cover'),
)
def train_epoch(
  key: Any,
  params: Any,
  state: Any,
  data: Any,
  targets: Any,
  learning_rate: Any,
  *,
  loss: Loss,
  optimizer: str,
  batch_size: int,
  steps: int,
  cover: bool = False,
) -> tuple[Any, Any]:
  """Some steps on batches of items.

  Args:
    key: Of batches and noise.
    params: Parameters.
    state: Of the optimizer.
    data: `Content`, or an array.
    targets: What `loss` gets besides, `[n, ...]`; or None.
    learning_rate: Size of steps.
    loss: What is minimised.
    optimizer: 'adam' or 'adadelta'.
    batch_size: Items of a batch.
    steps: Batches.
    cover: See `draw_batches`.

  Returns:
    New parameters and state.
  """
  order, noise = jax.random.split(key)
  rows = draw_batches(order, number_of_rows(data), batch_size, steps, cover)

  def step(carry, given):
    params, state = carry
    rows, key = given
    gradient = jax.grad(loss)(params, data, rows, targets, key)
    update, state = _OPTIMIZERS[optimizer](learning_rate).update(
      gradient, state, params
    )
    return (optax.apply_updates(params, update), state), None

  keys = jax.random.split(noise, steps)
  return jax.lax.scan(step, (params, state), (rows, keys))[0]


def train(
  key: Any,
  params: Any,
  data: Any,
  *,
  loss: Loss,
  optimizer: str,
  learning_rate: float,
  batch_size: int,
  epochs: int,
  cover: bool = False,
) -> Any:
  """Epochs of `train_epoch` with a fresh optimizer; returns parameters."""
  n = number_of_rows(data)
  batch_size = min(batch_size, n)
  steps = -(-n // batch_size) if cover else max(n // batch_size, 1)
  state = start_state(optimizer, params)
  for epoch in range(epochs):
    params, state = train_epoch(
      jax.random.fold_in(key, epoch), params, state, data, None, learning_rate,
      loss=loss, optimizer=optimizer, batch_size=batch_size, steps=steps,
      cover=cover,
    )  # fmt: skip
  return params


@dataclasses.dataclass(frozen=True)
class LayerLoss:
  """A denoising autoencoder of one layer, with tied weights.

  Attributes:
    num_features: Width of its input.
    noise: Share of the input that is set to 0.
    weight_decay: Half of it times the sum of squares of the kernel is added.
  """

  num_features: int
  noise: float = 0.3
  weight_decay: float = 0.0

  def __call__(self, params, data, rows, targets, key):
    """Cross-entropy of the clean input, and weight decay."""
    del targets
    x = take(data, rows, self.num_features)
    hidden = encode_layer(params, mask_noise(key, x, self.noise))
    logits = dot(hidden, params['kernel'].T) + params['visible_bias']
    return (
      reconstruction(logits, x)
      + self.weight_decay / 2 * (params['kernel'] ** 2).sum()
    )


def encode_layer(params: Any, x: Any) -> jax.Array:
  """sigma(x W + b)."""
  return jax.nn.sigmoid(dot(x, params['kernel']) + params['bias'])


def pretrain_layers(
  key: Any,
  data: Any,
  num_features: int,
  widths: tuple[int, ...],
  *,
  noise: float,
  weight_decay: float = 0.0,
  **options: Any,
) -> tuple[list[dict[str, Any]], Any]:
  """Trains a stack of denoising autoencoders, each on the codes of the last.

  Args:
    key: Of starts, batches and noise.
    data: `Content`, or an array.
    num_features: Its columns.
    widths: Of the layers.
    noise: Share of an input that is set to 0.
    weight_decay: Of the kernels.
    **options: Of `train`.

  Returns:
    Of each layer kernel, bias and visible_bias; and the codes of the last.
  """
  layers = []
  for k, width in enumerate(widths):
    start, run = jax.random.split(jax.random.fold_in(key, k))
    params = {
      'kernel': glorot(start, num_features, width),
      'bias': jnp.zeros(width),
      'visible_bias': jnp.zeros(num_features),
    }
    loss = LayerLoss(num_features, noise, weight_decay)
    params = train(run, params, data, loss=loss, **options)
    data = map_rows(encode_layer, params, data, num_features)
    layers.append(params)
    num_features = width
  return layers, data


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def map_rows(
  function: Callable[[Any, Any], Any],
  params: Any,
  data: Any,
  num_features: int,
  block: int = 1024,
) -> jax.Array:
  """`function(params, x)` of all items, some of them dense at a time.

  Args:
    function: Hashable.
    params: Its first argument.
    data: `Content`, or an array.
    num_features: Number of columns.
    block: Items at a time.

  Returns:
    What the function returns for all items, `[n, ...]`.
  """
  n = number_of_rows(data)
  block = min(block, n)
  count = -(-n // block)
  rows = jnp.minimum(jnp.arange(count * block), n - 1).reshape(count, block)
  out = jax.lax.map(
    lambda some: function(params, take(data, some, num_features)), rows
  )
  return out.reshape(-1, *out.shape[2:])[:n]
