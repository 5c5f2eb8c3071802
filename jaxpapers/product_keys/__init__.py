"""Product-key memory layers, Lample et al. (2019, arXiv:1907.05242)."""

from jaxpapers.product_keys.bag import embedding_bag, embedding_dot
from jaxpapers.product_keys.batch_norm import MaskedBatchNorm
from jaxpapers.product_keys.language_model import (
  TransformerLM,
  language_model_loss,
  memory_factories,
  parse_positions,
)
from jaxpapers.product_keys.layout import TableLayout
from jaxpapers.product_keys.memory import FlatMemory, ProductKeyMemory
from jaxpapers.product_keys.optimizers import (
  clip_by_row_norm,
  inverse_sqrt_schedule,
  lazy_adam,
  memory_optimizer,
  xlm_adam,
)
from jaxpapers.product_keys.quantize import QuantizedTable, quantize_values
from jaxpapers.product_keys.retrieval import (
  addressing_loss,
  flat_key_topk,
  product_key_topk,
)
from jaxpapers.product_keys.row_sparse import (
  RowSparse,
  row_sparse_sum,
  sparse_value_grads,
)
from jaxpapers.product_keys.sharding import (
  ShardedBag,
  make_sharded_bag,
  shard_value_table,
  sharded_embedding_bag,
  sharded_embedding_dot,
  table_layouts,
)
from jaxpapers.product_keys.train import (
  MemoryJob,
  make_memory_train_step,
  sparse_value_and_grad,
)
from jaxpapers.product_keys.usage import (
  MemoryUsage,
  measure_usage,
  memory_usage_by_head,
  memory_usage_init,
  memory_usage_report,
  memory_usage_update,
)
from jaxpapers.product_keys.variants import PEER, MemoryPlus

__all__ = [
  'FlatMemory',
  'MaskedBatchNorm',
  'MemoryJob',
  'MemoryPlus',
  'MemoryUsage',
  'PEER',
  'ProductKeyMemory',
  'QuantizedTable',
  'RowSparse',
  'ShardedBag',
  'TableLayout',
  'TransformerLM',
  'addressing_loss',
  'clip_by_row_norm',
  'embedding_bag',
  'embedding_dot',
  'flat_key_topk',
  'inverse_sqrt_schedule',
  'language_model_loss',
  'lazy_adam',
  'make_memory_train_step',
  'make_sharded_bag',
  'measure_usage',
  'memory_factories',
  'memory_optimizer',
  'memory_usage_by_head',
  'memory_usage_init',
  'memory_usage_report',
  'memory_usage_update',
  'parse_positions',
  'product_key_topk',
  'quantize_values',
  'row_sparse_sum',
  'shard_value_table',
  'sharded_embedding_bag',
  'sharded_embedding_dot',
  'sparse_value_and_grad',
  'sparse_value_grads',
  'table_layouts',
  'xlm_adam',
]
