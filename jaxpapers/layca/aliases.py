"""The paper's optimizers: Layca on top of SGD, Adam, RMSprop and Adagrad."""

from typing import Any

import optax

from jaxpapers.layca import bases, checks, rates
from jaxpapers.layca.wrappers import with_layca


def layca_sgd(
  learning_rate: Any,
  momentum: Any = 0.0,
  nesterov: bool = False,
  lr_in_momentum: bool = False,
  keras_eps: bool = False,
  *,
  decay: Any = 0.0,
  **options: Any,
) -> optax.GradientTransformationExtraArgs:
  """SGD with Layca on kernels; `with_layca` says what happens to the rest.

  Args:
    learning_rate: as in `layca`; 3^-3 in the paper, on every task.
    momentum: decay of the velocity; 0 for none.
    nesterov: whether the momentum is Nesterov's.
    lr_in_momentum: whether the velocity sums `lr g`, as in Keras, instead of g.
      They differ where the learning rate changes.
    keras_eps: accepted as in the other aliases, without effect: nothing is
      divided, so there is no eps. Keras' order of momentum is `lr_in_momentum`.
    decay: Keras' decay of the learning rate, `lr / (1 + decay step)`.
    **options: other arguments of `with_layca` and `layca`.

  Returns:
    The transform.

  Example:
    >>> tx = layca_sgd(3.0**-3, momentum=0.9)
  """
  del keras_eps
  options = checks.keyword_options(options)
  learning_rate = rates.decayed(learning_rate, decay)
  # A traced momentum is used whatever its value.
  if isinstance(momentum, (int, float)) and momentum == 0:
    return with_layca(optax.identity(), learning_rate, **options)
  base = optax.trace(momentum, nesterov)
  if lr_in_momentum:
    scaled = bases.scale_by_rates(
      learning_rate, options.get('multipliers'), options.get('layer_axes')
    )
    base = optax.chain(scaled, base)
    options = {'rate_in_direction': True, **options}
  return with_layca(base, learning_rate, **options)


def layca_amom_sgd(
  learning_rate: Any,
  momentum: Any = 0.9,
  nesterov: bool = False,
  keras_eps: bool = False,
  *,
  decay: Any = 0.0,
  **options: Any,
) -> optax.GradientTransformationExtraArgs:
  """SGD with Adam's kind of momentum, a running mean of gradients, and Layca.

  Args:
    learning_rate: as in `layca`; 3^-5 in the paper.
    momentum: decay of the mean.
    nesterov: whether the gradient is added once more, as in the original.
    keras_eps: accepted as in the other aliases, without effect: there is no
      eps.
    decay: Keras' decay of the learning rate.
    **options: other arguments of `with_layca` and `layca`.

  Returns:
    The transform.

  Example:
    >>> tx = layca_amom_sgd(3.0**-5)
  """
  del keras_eps
  base = bases.adam_like_momentum(momentum, nesterov)
  return with_layca(base, rates.decayed(learning_rate, decay), **options)


def layca_adam(
  learning_rate: Any,
  b1: Any = 0.9,
  b2: Any = 0.999,
  eps: Any = 1e-7,
  amsgrad: bool = False,
  keras_eps: bool = False,
  *,
  decay: Any = 0.0,
  **options: Any,
) -> optax.GradientTransformationExtraArgs:
  """Adam with Layca on kernels.

  Args:
    learning_rate: as in `layca`; 3^-5 in the paper, on every task.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: what is added to the denominator.
    amsgrad: whether the second moment may only grow.
    keras_eps: whether to follow Keras: eps beside the uncorrected root, and
      AMSGrad's maximum of uncorrected moments. optax's forms otherwise.
    decay: Keras' decay of the learning rate.
    **options: other arguments of `with_layca` and `layca`.

  Returns:
    The transform.

  Example:
    >>> tx = layca_adam(3.0**-5)
  """
  if keras_eps:
    base = bases.scale_by_keras_adam(b1, b2, eps, amsgrad)
  elif amsgrad:
    base = optax.scale_by_amsgrad(b1, b2, eps)
  else:
    base = optax.scale_by_adam(b1, b2, eps)
  return with_layca(base, rates.decayed(learning_rate, decay), **options)


def layca_rmsprop(
  learning_rate: Any,
  b2: Any = 0.9,
  eps: Any = 1e-7,
  keras_eps: bool = False,
  *,
  decay: Any = 0.0,
  **options: Any,
) -> optax.GradientTransformationExtraArgs:
  """RMSprop with Layca on kernels.

  Args:
    learning_rate: as in `layca`; 3^-3 in the paper, on every task.
    b2: decay of the mean of squared gradients.
    eps: what is added to the denominator.
    keras_eps: accepted as in the other aliases, without effect: eps is always
      added to the root, as in Keras, since optax's base can do that.
    decay: Keras' decay of the learning rate.
    **options: other arguments of `with_layca` and `layca`.

  Returns:
    The transform.

  Example:
    >>> tx = layca_rmsprop(3.0**-3)
  """
  del keras_eps
  base = optax.scale_by_rms(b2, eps, eps_in_sqrt=False)
  return with_layca(base, rates.decayed(learning_rate, decay), **options)


def layca_adagrad(
  learning_rate: Any,
  eps: Any = 1e-7,
  keras_eps: bool = False,
  *,
  decay: Any = 0.0,
  **options: Any,
) -> optax.GradientTransformationExtraArgs:
  """Adagrad with Layca on kernels; its sum starts at 0, as in the paper.

  Args:
    learning_rate: as in `layca`; 3^-3 in the paper, on every task.
    eps: what is added to the denominator.
    keras_eps: whether eps is added to the root, as in Keras, instead of to what
      is under it, as optax does.
    decay: Keras' decay of the learning rate.
    **options: other arguments of `with_layca` and `layca`.

  Returns:
    The transform.

  Example:
    >>> tx = layca_adagrad(3.0**-3)
  """
  if keras_eps:
    base = bases.scale_by_keras_adagrad(eps)
  else:
    base = optax.scale_by_rss(0.0, eps)
  return with_layca(base, rates.decayed(learning_rate, decay), **options)
