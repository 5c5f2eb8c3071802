"""Product-key memory layers, Lample et al. (2019, arXiv:1907.05242)."""

from jaxpapers.product_keys.bag import embedding_bag, embedding_dot
from jaxpapers.product_keys.batch_norm import MaskedBatchNorm
from jaxpapers.product_keys.memory import FlatMemory, ProductKeyMemory
from jaxpapers.product_keys.optimizers import (
  clip_by_row_norm,
  inverse_sqrt_schedule,
  lazy_adam,
  memory_optimizer,
  xlm_adam,
)
from jaxpapers.product_keys.retrieval import flat_key_topk, product_key_topk
from jaxpapers.product_keys.row_sparse import (
  RowSparse,
  row_sparse_sum,
  sparse_value_grads,
)
from jaxpapers.product_keys.usage import (
  MemoryUsage,
  memory_usage_init,
  memory_usage_report,
  memory_usage_update,
)
from jaxpapers.product_keys.variants import PEER, MemoryPlus

__all__ = [
  'FlatMemory',
  'MaskedBatchNorm',
  'MemoryPlus',
  'MemoryUsage',
  'PEER',
  'ProductKeyMemory',
  'RowSparse',
  'clip_by_row_norm',
  'embedding_bag',
  'embedding_dot',
  'flat_key_topk',
  'inverse_sqrt_schedule',
  'lazy_adam',
  'memory_optimizer',
  'memory_usage_init',
  'memory_usage_report',
  'memory_usage_update',
  'product_key_topk',
  'row_sparse_sum',
  'sparse_value_grads',
  'xlm_adam',
]
