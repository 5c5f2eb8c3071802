"""Nearest neighbours of items and of users: collaborative, content, hybrid."""

from typing import Any

import numpy as np

from jaxpapers.recsys import numpy_ties, optional
from jaxpapers.recsys import weighting as weighting_lib
from jaxpapers.recsys.data import Interactions
from jaxpapers.recsys.models import ItemModel, UserModel
from jaxpapers.recsys.similarities import similarity_top_k


def item_knn(
  train: Interactions,
  *,
  top_k: int | None = 50,
  shrink: float = 100.0,
  similarity: str = 'cosine',
  normalize: bool = True,
  weighting: str = 'none',
  alpha: float = 0.5,
  tversky: tuple[float, float] = (1.0, 1.0),
  score_with: str = 'raw',
  ties: str = 'index',
  **options: Any,
) -> ItemModel:
  """Items are alike whose users are (ItemKNN-CF).

  Args:
    train: Interactions.
    top_k: Neighbours of an item; None for all.
    shrink: See `similarities.similarity`.
    similarity: One of `similarities.KINDS`.
    normalize: See `similarities.similarity`.
    weighting: 'none', 'TF-IDF' or 'BM25', with items as documents.
    alpha: Of the asymmetric cosine.
    tversky: Of Tversky.
    score_with: Sum over 'raw' or 'weighted' profiles; the original code does
      the latter, which for TF-IDF is a factor for each user.
    ties: Of neighbours that are equally near keep those of lower 'index', or,
      as the study's program, those that 'numpy' puts first (`numpy_ties`).
    **options: More of `similarities.from_gram`.

  Returns:
    An item model.

  Raises:
    ValueError: `score_with`, `similarity` or `weighting` is unknown.
  """
  _check_score_with(score_with)
  matrix = train.csr
  if weighting != 'none':
    matrix = weighting_lib.weight(matrix.T, weighting).T
  return ItemModel(
    _neighbours(
      matrix,
      top_k,
      similarity,
      shrink=shrink,
      normalize=normalize,
      alpha=alpha,
      tversky=tversky,
      ties=ties,
      **options,
    ),
    matrix.tocsr() if score_with == 'weighted' else None,
  )


def user_knn(
  train: Interactions,
  *,
  top_k: int | None = 50,
  shrink: float = 100.0,
  similarity: str = 'cosine',
  normalize: bool = True,
  weighting: str = 'none',
  alpha: float = 0.5,
  tversky: tuple[float, float] = (1.0, 1.0),
  neighbours: str = 'reverse',
  score_with: str = 'raw',
  ties: str = 'index',
  **options: Any,
) -> UserModel:
  """Users are alike who have the same items (UserKNN-CF).

  Args:
    train: Interactions.
    top_k: Neighbours of a user; None for all.
    shrink: See `similarities.similarity`.
    similarity: One of `similarities.KINDS`.
    normalize: See `similarities.similarity`.
    weighting: 'none', 'TF-IDF' or 'BM25', with items as documents.
    alpha: Of the asymmetric cosine.
    tversky: Of Tversky.
    neighbours: With 'reverse', as in the paper, v counts for u if u is among
      the nearest of v; with 'forward', if v is among the nearest of u.
    score_with: Sum 'raw' interactions, as the published numbers do, or
      'weighted' ones, as the published code does.
    ties: See `item_knn`.
    **options: More of `similarities.from_gram`.

  Returns:
    A model for the users of `train`.

  Raises:
    ValueError: `neighbours` or `score_with` is unknown.
  """
  if neighbours not in ('reverse', 'forward'):
    raise ValueError(
      f"neighbours is {neighbours!r}; expected 'reverse' or 'forward'."
    )
  _check_score_with(score_with)
  matrix = train.csr
  if weighting != 'none':
    matrix = weighting_lib.weight(matrix.T, weighting).T.tocsr()
  return _user_model(
    matrix.T,
    train.csr if score_with == 'raw' else matrix,
    neighbours,
    top_k,
    similarity,
    shrink=shrink,
    normalize=normalize,
    alpha=alpha,
    tversky=tversky,
    ties=ties,
    **options,
  )


def content_knn(
  train: Interactions,
  features: Any,
  *,
  side: str = 'item',
  top_k: int | None = 50,
  shrink: float = 100.0,
  similarity: str = 'cosine',
  normalize: bool = True,
  weighting: str = 'none',
  alpha: float = 0.5,
  tversky: tuple[float, float] = (1.0, 1.0),
  ties: str = 'index',
) -> ItemModel | UserModel:
  """Items (or users) are alike that have the same features (CBF).

  Args:
    train: Interactions.
    features: Items (users) by features, `Interactions`, scipy or numpy.
    side: 'item' or 'user': whose features they are.
    top_k: Neighbours; None for all.
    shrink: See `similarities.similarity`.
    similarity: One of `similarities.KINDS`.
    normalize: See `similarities.similarity`.
    weighting: 'none', 'TF-IDF' or 'BM25', items (users) as documents.
    alpha: Of the asymmetric cosine.
    tversky: Of Tversky.
    ties: See `item_knn`.

  Returns:
    An item (user) model.

  Raises:
    ValueError: `features` has another number of rows than there are items.
  """
  features = weighting_lib.weight(_features(train, features, side), weighting)
  settings = {
    'shrink': shrink,
    'normalize': normalize,
    'alpha': alpha,
    'tversky': tversky,
    'ties': ties,
  }
  if side == 'user':
    return _user_model(
      features.T, train.csr, 'reverse', top_k, similarity, **settings
    )
  return ItemModel(_neighbours(features.T, top_k, similarity, **settings))


def hybrid_knn(
  train: Interactions,
  features: Any,
  feature_weight: float = 1.0,
  *,
  side: str = 'item',
  weighting: str = 'none',
  **settings: Any,
) -> ItemModel | UserModel:
  """Features and interactions side by side (CFCBF).

  Args:
    train: Interactions.
    features: Items (users) by features.
    feature_weight: Factor of the features.
    side: 'item' or 'user'.
    weighting: Of both together, items (users) as documents.
    **settings: What `content_knn` takes.

  Returns:
    An item (user) model.
  """
  sparse = optional.sparse()
  own = train.csr.T if side == 'item' else train.csr
  both = sparse.hstack(
    [_features(train, features, side) * np.float32(feature_weight), own],
    format='csr',
  )
  return content_knn(train, both, side=side, weighting=weighting, **settings)


def _check_score_with(score_with):
  if score_with not in ('raw', 'weighted'):
    raise ValueError(
      f"score_with is {score_with!r}; expected 'raw' or 'weighted'."
    )


def _features(train, features, side):
  if side not in ('item', 'user'):
    raise ValueError(f"side is {side!r}; expected 'item' or 'user'.")
  if isinstance(features, Interactions):
    features = features.csr
  features = optional.sparse().csr_array(features, dtype=np.float32)
  expected = train.num_items if side == 'item' else train.num_users
  if features.shape[0] != expected:
    raise ValueError(
      f'features has {features.shape[0]} rows; expected one for each {side},'
      f' {expected}.'
    )
  return features


def _neighbours(matrix, top_k, kind, *, ties='index', **settings):
  if ties not in ('index', 'numpy'):
    raise ValueError(f"ties is {ties!r}; expected 'index' or 'numpy'.")
  if ties == 'numpy':
    return numpy_ties.nearest(matrix, kind, top_k, **settings)
  # Rows are walked when scoring.
  return similarity_top_k(matrix, kind, k=top_k, **settings).tocsr()


def _user_model(matrix, profiles, direction, top_k, kind, **settings):
  weights = _neighbours(matrix, top_k, kind, **settings)
  if direction == 'forward':
    weights = weights.T.tocsr()
  return UserModel(weights, profiles.tocsr())
