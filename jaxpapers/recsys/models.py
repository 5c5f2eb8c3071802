"""What a fitted recommender is, and how it scores.

A method is two functions: `fit(train, ...) -> model`, and
`score(model, train, users) -> [users, num_items]`. `score` looks at the type of
the model; a new type joins with `@score.register`.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.recsys.data import Interactions


@flax.struct.dataclass
class PopularityModel:
  """The same scores for everybody.

  Attributes:
    scores: float32 `[num_items]`.
  """

  scores: Any


@flax.struct.dataclass
class RandomModel:
  """Uniform scores, a row of its own for each user.

  Attributes:
    seed: Of all rows.
  """

  seed: int = flax.struct.field(pytree_node=False, default=42)


@flax.struct.dataclass
class ItemModel:
  """Scores are the profile times a matrix of items: `R[u] @ weights`.

  Attributes:
    weights: `[num_items, num_items]`, row = item of the profile, column = item
      to score; a scipy sparse array, or a dense one.
    profiles: What to score with instead of the profile, scipy sparse
      `[num_users, num_items]`; usually None.

  `np.asarray` of a model is the dense matrix of its weights.
  """

  weights: Any
  profiles: Any = None

  def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
    """The weights, dense."""
    del copy
    weights = self.weights
    return np.array(weights.toarray() if is_sparse(weights) else weights, dtype)


@flax.struct.dataclass
class UserModel:
  """Scores are what others have: `weights[u] @ profiles`.

  Attributes:
    weights: `[num_users, num_users]`, scipy sparse.
    profiles: The matrix that is summed, scipy sparse `[num_users, num_items]`.
  """

  weights: Any
  profiles: Any


@flax.struct.dataclass
class FactorModel:
  """Scores are products of factors, plus biases.

  Attributes:
    users: float `[num_users, factors]`.
    items: float `[num_items, factors]`.
    user_bias: float `[num_users]`, or None.
    item_bias: float `[num_items]`, or None.
    bias: A number added to all.
  """

  users: Any
  items: Any
  user_bias: Any = None
  item_bias: Any = None
  bias: Any = 0.0


@functools.singledispatch
def score(model: Any, train: Interactions, users: Any) -> np.ndarray:
  """Scores of all items for some users; larger is better.

  Items that a user has seen are scored like any other: ranking leaves them out.

  Args:
    model: What a `fit` returned.
    train: The profiles to score from. Usually what the model was fitted on; for
      users whom the model has not seen, their known part (item models only).
    users: Rows of `train`, int `[b]`.

  Returns:
    float `[b, num_items]`.
  """
  del train, users
  raise TypeError(
    f'model is {type(model).__name__}, which no score function is registered'
    ' for. Use what a fit function returned.'
  )


@functools.singledispatch
def score_candidates(
  model: Any, train: Interactions, users: Any, items: Any
) -> np.ndarray:
  """Scores of some items for each user.

  Models whose score of an item is dear (a network of the pair) register here,
  and evaluations with negatives then leave all other items out.

  Args:
    model: What a `fit` returned.
    train: The profiles to score from.
    users: Rows of `train`, int `[b]`.
    items: Items of each, int `[b, c]`.

  Returns:
    float `[b, c]`.
  """
  scores = np.asarray(score(model, train, users))
  return np.take_along_axis(scores, np.asarray(items), 1)


def scores_pairs(model: Any) -> bool:
  """Whether a model has a way of its own to score some items only."""
  registered = score_candidates.dispatch(type(model))
  return registered is not score_candidates.dispatch(object)


def check_pairs(module: Any, train: Interactions) -> None:
  """Refuses data of other users and items than a network has tables for.

  Args:
    module: With `num_users` and `num_items`.
    train: Data to score from.

  Raises:
    ValueError: The numbers differ.
  """
  if (module.num_users, module.num_items) != train.shape:
    raise ValueError(
      f'model was fitted for {module.num_users} users and {module.num_items}'
      f' items; train has {train.num_users} and {train.num_items}. Embeddings'
      ' do not extend to new ones.'
    )


@score.register
def _(model: PopularityModel, train: Interactions, users: Any) -> np.ndarray:
  del train
  scores = np.asarray(model.scores)
  return np.broadcast_to(scores, (len(users), len(scores)))


@score.register
def _(model: RandomModel, train: Interactions, users: Any) -> np.ndarray:
  rows = [
    np.random.default_rng((model.seed, int(user))).random(
      train.num_items, np.float32
    )
    for user in users
  ]
  return np.stack(rows) if rows else np.zeros((0, train.num_items), np.float32)


@score.register
def _(model: ItemModel, train: Interactions, users: Any) -> np.ndarray:
  weights = model.weights
  if weights.shape[0] != train.num_items:
    raise ValueError(
      f'model was fitted for {weights.shape[0]} items; train has'
      f' {train.num_items}.'
    )
  profiles = train.csr if model.profiles is None else model.profiles
  if profiles.shape[0] != train.num_users:
    raise ValueError(
      f'model has weighted profiles of {profiles.shape[0]} users; train has'
      f" {train.num_users}. Fit with score_with='raw' for new users."
    )
  profiles = profiles[np.asarray(users)]
  if is_sparse(weights):
    return (profiles @ weights).toarray()
  if jax.default_backend() == 'cpu':
    return profiles @ np.asarray(weights)
  return score_items(weights, jnp.asarray(profiles.toarray()))


@jax.jit
def score_items(weights: Any, profiles: Any) -> jax.Array:
  """`profiles @ weights` in full precision; `[b, n]` times `[n, n]`."""
  return jnp.matmul(profiles, weights, precision=jax.lax.Precision.HIGHEST)


@score.register
def _(model: UserModel, train: Interactions, users: Any) -> np.ndarray:
  if model.weights.shape[0] != train.num_users:
    raise ValueError(
      f'model was fitted for {model.weights.shape[0]} users; train has'
      f' {train.num_users}. Neighbourhoods of users do not extend to new ones.'
    )
  product = model.weights[np.asarray(users)] @ model.profiles
  return product.toarray() if is_sparse(product) else product


@score.register
def _(model: FactorModel, train: Interactions, users: Any) -> Any:
  users = np.asarray(users)
  if model.users.shape[0] != train.num_users:
    raise ValueError(
      f'model has factors of {model.users.shape[0]} users; train has'
      f' {train.num_users}. For new users make an item model out of the item'
      ' factors: item_model_of_factors.'
    )
  if jax.default_backend() == 'cpu':
    result = np.asarray(model.users)[users] @ np.asarray(model.items).T
    if model.item_bias is not None:
      result = result + np.asarray(model.item_bias)
    if model.user_bias is not None:
      result = result + np.asarray(model.user_bias)[users, None]
    return result + np.asarray(model.bias) if np.any(model.bias) else result
  return score_factors(model, jnp.asarray(users))


@jax.jit
def score_factors(model: FactorModel, users: jax.Array) -> jax.Array:
  """Scores of a factor model under jit, `[b, num_items]`."""
  result = jnp.matmul(
    jnp.asarray(model.users)[users],
    jnp.asarray(model.items).T,
    precision=jax.lax.Precision.HIGHEST,
  )
  if model.item_bias is not None:
    result = result + model.item_bias
  if model.user_bias is not None:
    result = result + jnp.asarray(model.user_bias)[users, None]
  return result + model.bias


def is_sparse(matrix: Any) -> bool:
  """Whether this is a scipy sparse array."""
  return hasattr(matrix, 'tocsr')


def put_model(model: Any) -> Any:
  """A model with its dense matrices on the accelerator, if there is one.

  Otherwise each block of users would send them again.
  """
  if jax.default_backend() == 'cpu':
    return model
  if isinstance(model, ItemModel) and not is_sparse(model.weights):
    return model.replace(weights=jnp.asarray(model.weights))
  return (
    jax.tree.map(jnp.asarray, model)
    if (isinstance(model, FactorModel))
    else model
  )


def item_model_of_factors(items: Any) -> ItemModel:
  """PureSVD's other form, for users whom a model does not know: W = V V'.

  Args:
    items: Item factors V with orthonormal columns, `[num_items, factors]`.
  """
  items = np.asarray(items)
  return ItemModel(items @ items.T)


def fold_in(model: FactorModel, train: Interactions) -> FactorModel:
  """Factors for users whom a model does not know: means of their items'.

  A user's factor is the sum of the factors of their items, weighted by value,
  over the root of the length of the profile: the study's estimator for held-out
  users.

  Args:
    model: A factor model; its items are kept.
    train: The known part of the users.

  Returns:
    A model for the users of `train`.
  """
  lengths = np.maximum(train.user_counts(), 1)
  sums = train.csr @ np.asarray(model.items)
  return FactorModel(
    (sums / np.sqrt(lengths)[:, None]).astype(np.float32),
    model.items,
    item_bias=model.item_bias,
    bias=model.bias,
  )


def top_popular(train: Interactions) -> PopularityModel:
  """Items by the number of users who have them."""
  return PopularityModel(train.item_counts().astype(np.float32))


def random_scores(train: Interactions, seed: int = 42) -> RandomModel:
  """Uniform scores: what chance gives."""
  del train
  return RandomModel(seed)


def global_effects(
  train: Interactions, item_shrink: float = 25.0
) -> PopularityModel:
  """Items by their mean rating, shrunk towards the mean of all.

  b_i = sum_u (r_ui - mu) / (n_i + item_shrink). Biases of users do not change
  the order of items and are left out.
  """
  if not len(train):
    raise ValueError('train is empty: there is no mean rating.')
  deviation = train.value - train.value.mean(dtype=np.float64)
  total = np.bincount(train.item, deviation, minlength=train.num_items)
  return PopularityModel(
    (total / (train.item_counts() + item_shrink)).astype(np.float32)
  )


def to_sparse_bcoo(weights: Any) -> Any:
  """Weights for jitted products: `jax.experimental.sparse.BCOO`.

  Args:
    weights: scipy sparse or dense matrix.
  """
  from jax.experimental import sparse

  if is_sparse(weights):
    return sparse.BCOO.from_scipy_sparse(weights.tocoo())
  return sparse.BCOO.fromdense(jnp.asarray(weights))
