"""An epoch of Mult-VAE, here and in torch, for `recsys.py`."""

import importlib.util

import numpy as np


def programs(train, threads):
  """Programs of an epoch, and the number of users."""
  import jax
  import jax.numpy as jnp
  import optax

  from jaxpapers.recsys import autoencoders, sampling

  batch, n = 250, train.num_items
  module = autoencoders.MultVAE(n)
  tx = optax.adam(1e-3)
  users = np.flatnonzero(train.user_counts())
  csr = sampling.Csr(
    *map(jnp.asarray, (train.row_starts, train.item, train.value)),
    jnp.asarray(users, dtype=jnp.int32),
  )
  params = autoencoders._init(module, jax.random.key(0))
  state = params, tx.init(params), jnp.zeros((), jnp.int32)
  width = int(train.user_counts().max())
  epoch = autoencoders.make_epoch(
    module, tx, lambda count: 0.1, 0.0, batch, width
  )
  key = jax.random.key(1)
  dense = train.to_dense(users)
  placed = jnp.asarray(dense)

  @jax.jit
  def step(params, moments, x, key):
    loss, gradients = jax.value_and_grad(
      lambda p: autoencoders.profile_loss(module, p, x, beta=0.1, key=key)
    )(params)
    updates, moments = tx.update(gradients, moments, params)
    return optax.apply_updates(params, updates), moments, loss

  def steps():
    p, moments, _ = state
    for first in range(0, len(users) - batch + 1, batch):
      p, moments, loss = step(p, moments, placed[first : first + batch], key)
    jax.block_until_ready(p)

  found = {
    'ours': lambda: jax.block_until_ready(epoch(key, csr, state)),
    'ours, a step at a time': steps,
  }
  if importlib.util.find_spec('torch') is not None:
    found['torch'] = _torch_vae(dense, batch, threads)
  return found, len(users)


def _torch_vae(dense, batch, threads):
  """The same network and optimizer in torch."""
  import torch
  from torch.nn import functional

  torch.set_num_threads(threads)
  n = dense.shape[1]
  layers = torch.nn.ModuleList(
    torch.nn.Linear(*sizes)
    for sizes in ((n, 600), (600, 400), (200, 600), (600, n))
  )
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  # As here: full products on the CPU, TF32 on a GPU.
  torch.set_float32_matmul_precision('high')
  layers = layers.to(device)
  optimizer = torch.optim.Adam(layers.parameters(), 1e-3)
  x = torch.from_numpy(dense).to(device)

  def epoch():
    for first in range(0, len(x), batch):
      part = x[first : first + batch]
      h = functional.dropout(functional.normalize(part), 0.5)
      mean, log_variance = layers[1](torch.tanh(layers[0](h))).chunk(2, 1)
      z = mean + torch.randn_like(mean) * torch.exp(log_variance / 2)
      logits = layers[3](torch.tanh(layers[2](z)))
      loss = -(functional.log_softmax(logits, 1) * part).sum(1)
      kl = (log_variance.exp() + mean**2 - 1 - log_variance).sum(1) / 2
      optimizer.zero_grad()
      (loss + 0.1 * kl).mean().backward()
      optimizer.step()
    if device == 'cuda':
      torch.cuda.synchronize()

  return epoch
