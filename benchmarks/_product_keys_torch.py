"""The peer of the benchmark of product keys: torch, from the formulas."""


class Layer:
  """The same of torch: a module, parameters with rows, and the others."""

  def __init__(self, module, x, cotangent, rows=()):
    import torch

    self.module, self.x, self.cotangent = module, x, cotangent
    rows = list(rows)
    names = {id(p) for p in rows}
    others = [p for p in module.parameters() if id(p) not in names]
    self.optimizers = [torch.optim.Adam(others, lr=1e-3, foreach=True)]
    if rows:
      self.optimizers.append(torch.optim.SparseAdam(rows, lr=1e-3))

  def forward(self):
    """Output of a batch, without what a backward pass needs."""
    import torch

    def call():
      with torch.no_grad():
        self.module(self.x)

    return call

  def _backward(self):
    for optimizer in self.optimizers:
      optimizer.zero_grad(set_to_none=True)
    (self.module(self.x) * self.cotangent).sum().backward()

  def backward(self):
    """Output and gradients; those of the table are rows, not summed."""
    return self._backward

  def optimizer(self):
    """From gradients to new parameters."""
    self._backward()

    def call():
      for optimizer in self.optimizers:
        optimizer.step()

    return call

  def step(self):
    """All of it."""

    def call():
      self._backward()
      for optimizer in self.optimizers:
        optimizer.step()

    return call


def memory(sizes, params, values, x, cotangent) -> Layer:
  """The paper's layer from its formulas, with our weights.

  q = BN(W x + b); the k best of each half; the k best of their k^2 sums;
  softmax; sum over heads and reads.

  Args:
    sizes: Keys of a half, width, heads, reads of a head, width of a query.
    params: Ours.
    values: Our table.
    x: Tokens.
    cotangent: Of the output.
  """
  import numpy as np
  import torch
  from torch import nn
  from torch.nn import functional

  n_keys, width, heads, knn, query = sizes

  def tensor(array):
    return torch.tensor(np.array(array))

  class Memory(nn.Module):
    def __init__(self):
      super().__init__()
      self.query = nn.Linear(width, heads * query)
      self.norm = nn.BatchNorm1d(heads * query)
      self.keys = nn.Parameter(tensor(params['keys']))
      self.values = nn.EmbeddingBag(n_keys**2, width, mode='sum', sparse=True)
      with torch.no_grad():
        (dense,) = [v for k, v in params['query'].items() if 'kernel' in v]
        self.query.weight.copy_(tensor(dense['kernel']).T)
        self.query.bias.copy_(tensor(dense['bias']))
        self.values.weight.copy_(tensor(values))

    def forward(self, x):
      tokens = x.shape[0]
      q = self.norm(self.query(x)).view(tokens, heads, 2, query // 2)
      best = []
      for half in range(2):
        scores = torch.einsum('thd,hnd->thn', q[:, :, half], self.keys[:, half])
        best.append(scores.topk(knn, dim=-1))
      (s0, i0), (s1, i1) = best
      sums = (s0[..., :, None] + s1[..., None, :]).flatten(-2)
      ids = (i0[..., :, None] * n_keys + i1[..., None, :]).flatten(-2)
      scores, place = sums.topk(knn, dim=-1)
      ids = ids.gather(-1, place)
      weights = functional.softmax(scores.float(), dim=-1)
      ids, weights = ids.view(tokens, -1), weights.view(tokens, -1)
      return self.values(ids, per_sample_weights=weights)

  module = Memory().train()
  return Layer(module, tensor(x), tensor(cotangent), module.values.parameters())


def feed_forward(x, cotangent) -> Layer:
  """A feed-forward layer four times as wide inside."""
  import numpy as np
  import torch
  from torch import nn

  width = x.shape[-1]
  module = nn.Sequential(
    nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
  )
  return Layer(
    module, torch.tensor(np.array(x)), torch.tensor(np.array(cotangent))
  )
