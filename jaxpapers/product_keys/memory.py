"""Memory layers: a query finds k of N slots, their values are summed.

Lample et al. (2019, arXiv:1907.05242), with every option of the authors' code
that changes a number.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpapers.nn.dropout import dropout
from jaxpapers.product_keys import keys as keys_lib
from jaxpapers.product_keys import queries, weighting
from jaxpapers.product_keys.bag import embedding_bag
from jaxpapers.product_keys.checks import check_input, check_options
from jaxpapers.product_keys.quantize import read_table
from jaxpapers.product_keys.retrieval import (
  addressing_loss,
  check_k,
  check_sub_keys,
  flat_key_topk,
  product_key_topk,
)

__all__ = ['FlatMemory', 'ProductKeyMemory']


class ProductKeyMemory(nn.Module):
  """A layer of `n_keys`^2 values, of which each head reads `knn`.

  Query, scores and weights are float32 or wider whatever `dtype` is.

  The table is the variable 'values' `[n_keys^2, v_dim]`, in the collection
  'memory' or among the parameters. Where the collection 'reads' is mutable the
  layer keeps there what it read, and where a collection 'perturbations' is
  given its 'value_out' is added to the sum of values: from both follows the
  gradient of the table without an array of its size (`sparse_value_grads`).
  Where the collection 'losses' is mutable it gets 'addressing', see
  `addressing_loss`.

  Attributes:
    n_keys: Keys in each half.
    k_dim: Width of queries; even.
    heads: Heads. Each has its own keys and reads the same values.
    knn: Slots that a head reads.
    v_dim: Width of the values; that of x by default.
    query_sizes: Widths of hidden layers of the query network; () for one linear
      layer, None for no network: x itself, the same for every head.
    query_norm: 'batch' behind every layer of the query network, 'layer' and
      'qk' per head and half at its end ('qk' also for the keys: scores are
      cosines, times a gain of each head that is learned and begins with
      sqrt(k_dim / 2)), or None. Papers' main results have 'batch'.
    score: 'softmax', 'relu' or 'none'.
    temperature: Divides scores.
    input_dropout: Rate, of x.
    query_dropout: Rate, of queries.
    value_dropout: Rate, of what comes out.
    sparse_values: Whether the table is in the collection 'memory'; otherwise it
      is a parameter like others, with a dense gradient.
    dtype: Type of the result; that of x by default.
    param_dtype: Type of parameters and table.
    key_init: 'uniform', 'gaussian', 'binary', 'xlm', 'xlm_gaussian' or a
      function; see `keys.make_keys`.
    query_net: 'one' network for all heads, or one for each 'per_half'.
    query_init: Initializer of the query network's kernels; torch's by default.
    query_bias: Whether the query network has biases.
    query_kernels: For images `[..., height, width, d]`: odd sizes of the
      kernels of the query network's layers, which are convolutions then. None
      for tokens that know nothing of each other.
    query_residual: Whether such layers are bottlenecks with a residual.
    normalize_query: Whether each half of a query has length 1.
    normalize_keys: Whether keys begin with length 1.
    share_keys: Whether all heads and halves have one codebook.
    train_keys: Whether keys are parameters; otherwise they are in the
      collection 'constants'.
    train_query: Whether the query network gets gradients.
    detach_input: Whether none flow from the query to x.
    score_subtract: 'min', 'mean', 'median' or None, taken off the weights.
    score_normalize: Whether magnitudes of weights sum to 1.
    shuffle_query: Whether heads get reordered x; see `shuffled_queries`.
    shuffle_ids: Whether each head renames its slots by a permutation of its
      own, in the collection 'constants'.
    modulo: Ids are taken modulo this number, that of the table's rows; 0 for
      as many rows as slots.
    zero_values: Whether values begin with zero.
    prune: See `product_key_topk`.
    recall: See `product_key_topk`; None for exact search.
    output_norm: Whether layer normalisation follows the sum of values.
    bag: Function (values, ids, weights) that sums rows, such as one of
      `sharding.make_sharded_bag`.
    momentum: Of batch normalisation.
    axis_name: See `MaskedBatchNorm`.

  Example:
    >>> memory = ProductKeyMemory(n_keys=8, k_dim=8, heads=2, knn=4)
    >>> x = jnp.ones((2, 5, 16))
    >>> variables = memory.init(jax.random.key(0), x, train=False)
    >>> memory.apply(variables, x, train=False).shape
    (2, 5, 16)
    >>> variables['memory']['values'].shape
    (64, 16)
  """

  n_keys: int = 512
  k_dim: int | None = 512
  heads: int = 4
  knn: int = 32
  v_dim: int | None = None
  query_sizes: tuple[int, ...] | None = ()
  query_norm: str | None = 'batch'
  score: str = 'softmax'
  temperature: float = 1.0
  input_dropout: float = 0.0
  query_dropout: float = 0.0
  value_dropout: float = 0.0
  sparse_values: bool = True
  dtype: Any = None
  param_dtype: Any = jnp.float32
  key_init: str | Callable = 'uniform'
  query_net: str = 'one'
  query_init: Callable | None = None
  query_bias: bool = True
  query_kernels: tuple[int, ...] | None = None
  query_residual: bool = False
  normalize_query: bool = False
  normalize_keys: bool = False
  share_keys: bool = False
  train_keys: bool = True
  train_query: bool = True
  detach_input: bool = False
  score_subtract: str | None = None
  score_normalize: bool = False
  shuffle_query: bool = False
  shuffle_ids: bool = False
  modulo: int = 0
  zero_values: bool = False
  prune: bool = True
  recall: float | None = None
  output_norm: bool = False
  bag: Callable = embedding_bag
  momentum: float = 0.1
  axis_name: Any = None

  @property
  def num_slots(self) -> int:
    """Slots that can be found."""
    return self.n_keys**2

  @property
  def table_rows(self) -> int:
    """Rows of the table."""
    return self.modulo or self.num_slots

  @property
  def _parts(self) -> int:
    return 2

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    mask: jax.Array | None = None,
    train: bool | None = None,
    values: Any = None,
    deterministic: bool | None = None,
  ) -> jax.Array:
    """Reads the memory for each token.

    Args:
      x: `[..., d]`.
      mask: Tokens that are not padding, bool `[...]`; all by default. The
        others get zeros, and change no statistics, reads and gradients.
      train: Whether dropout is on and batch normalisation takes the statistics
        of this batch. Such statistics look at later tokens: evaluate with
        False.
      values: A table that is owned elsewhere and shared by several layers; no
        table is made then.
      deterministic: `not train`, for callers who name it so. Give one of both.

    Returns:
      `[..., v_dim]`.

    Raises:
      ValueError: If sizes do not fit, or x has no token or, where it has values
        (not under `jit`), no valid one, or NaN.
    """
    if (train is None) == (deterministic is None):
      raise ValueError(
        f'train is {train} and deterministic {deterministic}; expected one of'
        ' both.'
      )
    train = (not deterministic) if train is None else train
    x = jnp.asarray(x)
    check_input(x, mask, 2 if self.query_kernels is None else 3)
    dim = x.shape[-1]
    k_dim = self.k_dim or dim // 2
    self._check(dim, k_dim)
    flat = x.reshape(-1, dim)
    valid = None if mask is None else mask.reshape(-1)
    flat = self._drop(flat, self.input_dropout, train)
    if self.query_kernels is not None:
      # The query network looks at neighbours.
      query = self._query(flat.reshape(x.shape), mask, train, k_dim)
    else:
      query = self._query(flat, valid, train, k_dim)
    query = self._drop(query, self.query_dropout, train)
    scores, ids = self._search(query, k_dim, valid)
    weights = weighting.score_weights(
      scores,
      self.score,
      self.temperature,
      self.score_subtract,
      self.score_normalize,
    )
    ids = self._rename(ids)
    if valid is not None:
      # Out of range: such reads are left out everywhere.
      ids = jnp.where(valid[:, None, None], ids, self.table_rows)
      weights = jnp.where(valid[:, None, None], weights, 0)
    ids = ids.reshape(ids.shape[0], -1)
    weights = weights.reshape(ids.shape)
    y = self._read(flat, ids, weights, values)
    y = self._finish(flat, y)
    if self.output_norm:
      y = nn.LayerNorm(param_dtype=self.param_dtype, name='output_norm')(y)
    if valid is not None:
      y = jnp.where(valid[:, None], y, 0)
    y = self._drop(y, self.value_dropout, train)
    y = y.astype(self.dtype or x.dtype)
    return y.reshape(*x.shape[:-1], y.shape[-1])

  def _check(self, dim: int, k_dim: int) -> None:
    """Refuses sizes that do not fit."""
    if k_dim < 2 or k_dim % 2:
      raise ValueError(
        f'k_dim is {k_dim}; expected an even number, since each half of a query'
        ' has its own keys.'
      )
    check_sub_keys('n_keys', self.n_keys)
    check_k(self.knn, self.n_keys, 'keys in each half, n_keys', 'knn')
    check_options(self, dim, k_dim)

  def _query(self, x, mask, train: bool, k_dim: int):
    """Queries [T, H, parts, k_dim / parts], float32 or wider."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    if self.detach_input:
      x = jax.lax.stop_gradient(x)
    if self.shuffle_query:
      query = queries.shuffled_queries(x, self.heads)
    elif self.query_sizes is None:
      query = jnp.broadcast_to(x[:, None], (x.shape[0], self.heads, k_dim))
    else:
      query = self._network(k_dim, wide, train)(x, mask)
      if not self.train_query:
        query = jax.lax.stop_gradient(query)
    query = query.astype(wide).reshape(
      -1, self.heads, self._parts, k_dim // self._parts
    )
    if self.query_norm == 'layer':
      query = nn.LayerNorm(
        feature_axes=(-3, -2, -1),
        use_fast_variance=False,
        param_dtype=self.param_dtype,
        name='query_norm',
      )(query)
    if self.normalize_query or self.query_norm == 'qk':
      query = unit(query)
    return query

  def _network(self, k_dim: int, dtype, train: bool):
    groups = 1 if self.query_net == 'one' else self.heads * self._parts
    options = {
      'groups': groups,
      'features': (*self.query_sizes, self.heads * k_dim // groups),
      'batch_norm': self.query_norm == 'batch',
      'use_bias': self.query_bias,
      'momentum': self.momentum,
      'axis_name': self.axis_name,
      'kernel_init': self.query_init,
      'dtype': dtype,
      'param_dtype': self.param_dtype,
      'train': train,
      'name': 'query',
    }
    if self.query_kernels is None:
      return queries.QueryNetwork(**options)
    return queries.QueryConvolutions(
      kernels=self.query_kernels, residual=self.query_residual, **options
    )

  def _search(self, query, k_dim: int, valid):
    """Scores and ids [T, H, k]."""
    shape = (self.n_keys, k_dim // 2)
    keys = self._keys(shape, (self.heads, 2, *shape))
    if not self.is_initializing() and self.is_mutable_collection('losses'):
      self.put_variable(
        'losses', 'addressing', addressing_loss(query, keys, valid)
      )
    search = functools.partial(
      product_key_topk, k=self.knn, prune=self.prune, recall=self.recall
    )
    return self._find(search, query, keys)

  def _find(self, function, query, keys):
    # A bag for several devices spreads the search, too.
    search = getattr(self.bag, 'search', None)
    return search(function, query, keys) if search else function(query, keys)

  def _keys(self, shared: tuple[int, ...], own: tuple[int, ...]):
    shape = shared if self.share_keys else own

    def init(rng):
      return keys_lib.make_keys(
        self.key_init, rng, shape, self.param_dtype, self.normalize_keys
      )

    if self.train_keys:
      keys = self.param('keys', init)
    else:
      keys = self._constant('keys', init)
    keys = keys.astype(jnp.promote_types(keys.dtype, jnp.float32))
    if self.query_norm == 'qk':
      if self.share_keys:
        keys = jnp.broadcast_to(keys, own)
      gain = self.param(
        'gain',
        nn.initializers.constant(shape[-1] ** 0.5),
        (self.heads,),
        self.param_dtype,
      )
      gain = gain.reshape(-1, *(1,) * (len(own) - 1)).astype(keys.dtype)
      keys = unit(keys) * gain
    return keys

  def _constant(self, name: str, init: Callable):
    return self.variable(
      'constants', name, lambda: init(self.make_rng('params'))
    ).value

  def _rename(self, ids):
    if self.shuffle_ids:

      def draw(rng):
        keys = jax.random.split(rng, self.heads)
        return jax.vmap(
          lambda key: jax.random.permutation(key, self.num_slots)
        )(keys).astype(jnp.int32)

      orders = self._constant('permutations', draw)
      ids = orders[jnp.arange(self.heads)[:, None], ids]
    return ids % self.modulo if self.modulo else ids

  def _read(self, x, ids, weights, values):
    """The weighted sum of values, [T, v_dim]."""
    values = self._table('values', self.v_dim or x.shape[-1], values)
    self._keep('values', ids=ids, weights=weights)
    return self._perturb(
      'value_out', read_table(self.bag, values, ids, weights)
    )

  def _finish(self, x, y):
    del x
    return y

  def _table(self, name: str, width: int, given):
    """A table of values: given, or this layer's own."""
    shape = (self.table_rows, width)
    if given is not None:
      if tuple(given.shape) != shape:
        raise ValueError(
          f'{name} has shape {given.shape}; expected {shape}, slots and width.'
        )
      return given

    def init(rng):
      if self.zero_values:
        return jnp.zeros(shape, self.param_dtype)
      draw = jax.random.normal(rng, shape, self.param_dtype)
      return draw * jnp.asarray(width**-0.5, self.param_dtype)

    if not self.sparse_values:
      return self.param(name, init)
    return self.variable(
      'memory', name, lambda: init(self.make_rng('params'))
    ).value

  def _keep(self, name: str, **read) -> None:
    if not self.is_initializing():
      self.sow('reads', name, read, init_fn=dict, reduce_fn=lambda _, x: x)

  def _perturb(self, name: str, y):
    """Adds what the caller perturbs y by, if anything."""
    # Not nn.perturb: that would put an array of the size of a batch into what
    # init returns.
    if self.is_initializing():
      return y
    if self.has_variable('perturbations', name):
      return y + self.get_variable('perturbations', name)
    if self.is_mutable_collection('perturbations'):
      self.put_variable('perturbations', name, jnp.zeros_like(y))
    return y

  def _drop(self, x, rate: float, train: bool):
    if not train or not rate:
      return x
    return dropout(self.make_rng('dropout'), x, rate)


class FlatMemory(ProductKeyMemory):
  """The same with `n_keys` keys that are no products: O(N) for comparison.

  Attributes are those of `ProductKeyMemory`; `n_keys` is the number of slots.

  Example:
    >>> memory = FlatMemory(n_keys=40, k_dim=8, heads=2, knn=4)
    >>> x = jnp.ones((5, 16))
    >>> variables = memory.init(jax.random.key(0), x, train=False)
    >>> variables['params']['keys'].shape
    (2, 40, 8)
  """

  @property
  def num_slots(self) -> int:
    """Slots that can be found."""
    return self.n_keys

  @property
  def _parts(self) -> int:
    return 1

  def _check(self, dim: int, k_dim: int) -> None:
    if k_dim < 1:
      raise ValueError(f'k_dim is {k_dim}; expected 1 or more.')
    check_k(self.knn, self.n_keys, 'keys, n_keys', 'knn')
    check_options(self, dim, k_dim)

  def _search(self, query, k_dim: int, valid):
    del valid
    shape = (self.n_keys, k_dim)
    keys = self._keys(shape, (self.heads, *shape))
    search = functools.partial(flat_key_topk, k=self.knn, recall=self.recall)
    return self._find(search, query[:, :, 0], keys)


def unit(x: jax.Array) -> jax.Array:
  """Vectors of length 1, zero where x is; gradients are finite there."""
  squares = jnp.square(x).sum(axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(squares, jnp.finfo(x.dtype).tiny))
