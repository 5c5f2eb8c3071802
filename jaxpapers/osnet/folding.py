"""Batch norms folded into the convolutions in front of them."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

_EPSILON = 1e-5
# What a norm follows, in the module that holds both; the last that is there.
_LINEAR = ('conv', 'pointwise', 'depthwise', 'linear')


def fold_batch_norm(variables: Mapping[str, Any]) -> dict[str, Any]:
  """Makes batch norms part of the layers in front of them, for inference.

    W' = W s,   b' = bias - mean s,   s = scale / sqrt(var + 1e-5)

  The result is for the network whose config has `folded=True`:

    net = OSNet(dataclasses.replace(cfg, folded=True), num_classes)
    out = net.apply(fold_batch_norm(variables), x)

  Args:
    variables: 'params' and 'batch_stats' of an `OSNet`.

  Returns:
    {'params': ...}: of norms only biases are left. Instance norms stay.

  Raises:
    ValueError: If there are no statistics to fold.

  Example:
    >>> one = np.ones(1, 'float32')
    >>> layer = {'conv': {'kernel': one.reshape(1, 1, 1, 1)},
    ...          'norm': {'scale': one, 'bias': one}}
    >>> stats = {'norm': {'mean': one, 'var': 4 * one}}
    >>> folded = fold_batch_norm({'params': layer, 'batch_stats': stats})
    >>> round(float(folded['params']['norm']['bias'][0]), 3)
    0.5
  """
  if not variables.get('batch_stats'):
    raise ValueError(
      f'variables has {sorted(variables)}; expected params and batch_stats of a'
      ' network that is not folded yet.'
    )
  return {'params': _fold(variables['params'], variables['batch_stats'])}


def _fold(params, stats):
  out = {
    name: _fold(value, stats.get(name, {}))
    if isinstance(value, Mapping)
    else value
    for name, value in params.items()
  }
  if 'mean' in stats.get('norm', {}):
    norm, kept = params.get('norm', {}), stats['norm']
    # In the widest type that there is: the errors of 50 layers add up.
    mean, var = (np.asarray(kept[k], np.float64) for k in ('mean', 'var'))
    factor = np.asarray(norm.get('scale', 1.0), np.float64) / np.sqrt(
      var + _EPSILON
    )
    bias = np.asarray(norm.get('bias', 0.0), np.float64) - mean * factor
    name = [name for name in _LINEAR if name in params][-1]
    layer = params[name]
    out[name] = {
      key: jnp.asarray(np.asarray(value, np.float64) * factor, value.dtype)
      for key, value in layer.items()
    }
    out['norm'] = {'bias': jnp.asarray(bias, kept['mean'].dtype)}
  return out
