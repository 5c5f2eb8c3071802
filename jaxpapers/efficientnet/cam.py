"""Class activation maps: where a network sees a class."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxpapers.efficientnet.config import ModelConfig
from jaxpapers.efficientnet.model import EfficientNet

UPSAMPLINGS = (None, 'bilinear', 'nearest', 'cubic')


def class_activation_map(
  config: ModelConfig,
  variables: Mapping[str, Any],
  images: jax.Array,
  class_ids: jax.Array | None = None,
  upsample: str | None = 'bilinear',
) -> jax.Array:
  """Weighs the last features as the classifier does (Zhou et al. 2016).

  M[n, h, w] = sum_c kernel[c, class n] features[n, h, w, c]

  Before upsampling the mean over h and w is the logit without its bias.

  Args:
    config: The network.
    variables: `{'params', 'batch_stats'}`.
    images: Normalised, `[N, H, W, C]`.
    class_ids: Classes `[N]` or several for each image `[N, K]`; the one with
      the largest logit by default.
    upsample: 'bilinear', 'nearest' or 'cubic' to the images' size, or None.

  Returns:
    `[N, H, W]`, or `[N, K, H, W]` for several classes; `[.., h, w]` without
    upsampling.

  Raises:
    ValueError: If the network has no classifier, or shapes do not fit.

  Example:
    >>> config = ModelConfig(width=0.25, depth=0.5, num_classes=10)
    >>> x = jnp.ones((1, 32, 32, 3))
    >>> variables = EfficientNet(config).init(jax.random.key(0), x)
    >>> class_activation_map(config, variables, x).shape
    (1, 32, 32)
  """
  if not config.num_classes:
    raise ValueError('config has no classes; maps need a classifier.')
  if upsample not in UPSAMPLINGS:
    raise ValueError(
      f'upsample is {upsample!r}; expected one of {UPSAMPLINGS}.'
    )
  if class_ids is not None:
    class_ids = jnp.asarray(class_ids)
    if class_ids.ndim not in (1, 2) or class_ids.shape[0] != images.shape[0]:
      raise ValueError(
        f'class_ids has shape {class_ids.shape}; expected [N] or [N, K] for'
        f' {images.shape[0]} images.'
      )
    if not jnp.issubdtype(class_ids.dtype, jnp.integer):
      raise TypeError(f'class_ids is {class_ids.dtype}; expected integers.')
    _check_classes(class_ids, config.num_classes)
  return _maps(config, variables, images, class_ids, upsample)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _maps(config, variables, images, class_ids, upsample):
  logits, endpoints = EfficientNet(config).apply(
    variables, images, return_endpoints=True
  )
  if class_ids is None:
    class_ids = logits.argmax(-1)
  kernel = variables['params']['classifier']['kernel']
  wide = jnp.promote_types(kernel.dtype, jnp.float32)
  features = endpoints['head_1x1'].astype(wide)
  weights = jnp.moveaxis(kernel.astype(wide)[:, class_ids], 0, -1)
  several = class_ids.ndim == 2
  # In full precision: the mean of a map has to be the logit.
  maps = jnp.einsum(
    'nhwc,nkc->nkhw' if several else 'nhwc,nc->nhw',
    features,
    weights,
    precision='highest',
  )
  if upsample is None:
    return maps
  size = (*maps.shape[:-2], *images.shape[1:3])
  return jax.image.resize(maps, size, upsample)


def _check_classes(class_ids, num_classes):
  if isinstance(class_ids, jax.core.Tracer) or not class_ids.size:
    return
  low, high = int(class_ids.min()), int(class_ids.max())
  if low < 0 or high >= num_classes:
    raise ValueError(
      f'class_ids has values from {low} to {high}; expected 0 to'
      f' {num_classes - 1}.'
    )


def rescale_map(maps: jax.Array) -> jax.Array:
  """Stretches each map to 0 to 1, to be shown.

  Args:
    maps: `[..., H, W]`.

  Returns:
    The same shape; a map without contrast becomes 0.
  """
  low = maps.min((-2, -1), keepdims=True)
  span = maps.max((-2, -1), keepdims=True) - low
  return jnp.where(span > 0, (maps - low) / jnp.where(span > 0, span, 1), 0)
