"""mixup: convex combinations of images and of their labels."""

import jax
import jax.numpy as jnp


def mixup(
  rng: jax.Array, images: jax.Array, labels: jax.Array, alpha: float = 0.2
) -> tuple[jax.Array, jax.Array]:
  """Mixes each example with that at the mirrored place of the batch.

  As EfficientNet's code does: with lam = max(b, 1 - b), b ~ Beta(alpha, alpha)
  of its own for each example, `lam x_i + (1 - lam) x_(n - 1 - i)`.

  Args:
    rng: Typed key.
    images: [batch, height, width, channels]; of integers the result is float32.
    labels: One-hot or smoothed, [batch, classes].
    alpha: Strength; 0 leaves everything as it is.

  Returns:
    Images and labels, mixed.

  Raises:
    ValueError: If `alpha` is negative or `labels` are indices.

  Example:
    >>> x, y = jnp.ones((2, 4, 4, 3)), jnp.eye(2)
    >>> mixup(jax.random.key(0), x, y, 0.2)[1].sum(1).tolist()
    [1.0, 1.0]
  """
  if alpha < 0:
    raise ValueError(f'alpha is {alpha}; expected 0 or more.')
  if labels.ndim != 2:
    raise ValueError(
      f'labels has shape {list(labels.shape)}; expected [batch, classes]:'
      ' jax.nn.one_hot(labels, num_classes).'
    )
  if alpha == 0:
    return images, labels
  share = jax.random.beta(rng, alpha, alpha, (images.shape[0],), jnp.float32)
  share = jnp.maximum(share, 1 - share)

  def mixed(x):
    dtype = jnp.promote_types(x.dtype, jnp.bfloat16)
    if not jnp.issubdtype(x.dtype, jnp.floating):
      dtype = jnp.float32
    lam = share.reshape(-1, *(1,) * (x.ndim - 1)).astype(dtype)
    return lam * x.astype(dtype) + (1 - lam) * x[::-1].astype(dtype)

  return mixed(images), mixed(labels)
