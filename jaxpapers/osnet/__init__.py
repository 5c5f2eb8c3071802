"""OSNet: omni-scale features for person re-identification."""

from jaxpapers.osnet.architecture_search import (
  SearchOSNet,
  architecture_weights,
  child_config,
  temperature_at,
)
from jaxpapers.osnet.attributes import AttributeMetrics, attribute_metrics
from jaxpapers.osnet.augment import (
  RandomPatchPool,
  color_jitter,
  normalize,
  random_erase,
  random_flip,
  random_translate,
)
from jaxpapers.osnet.blocks import MixedOSBlock, OSBlock
from jaxpapers.osnet.complexity import Complexity, complexity, torchreid_params
from jaxpapers.osnet.config import (
  CONFIGS,
  OSNetConfig,
  config_for,
  scaled,
  scaled_resolution,
)
from jaxpapers.osnet.datasets import (
  CUHK01,
  CUHK03,
  DATASETS,
  GRID,
  MSMT17,
  PA100K,
  PRID,
  DukeMTMC,
  Market1501,
  ReIDDataset,
  ReIDSplit,
  VIPeR,
  iLIDS,
  image_folder,
  image_folders,
  merge,
  open_reid,
  relabel,
)
from jaxpapers.osnet.exchange import (
  from_torch_state_dict,
  load_torch_checkpoint,
  save_torch_checkpoint,
  to_torch_state_dict,
)
from jaxpapers.osnet.features import (
  cached_features,
  extract_features,
  load_image,
)
from jaxpapers.osnet.folding import fold_batch_norm
from jaxpapers.osnet.layers import (
  AggregationGate,
  InstanceNorm2d,
  LiteConv3x3,
  TorchBatchNorm,
)
from jaxpapers.osnet.losses import (
  attribute_weights,
  batch_hard_triplet,
  circle,
  cross_entropy_label_smoothing,
  mutual_learning,
  weighted_bce,
)
from jaxpapers.osnet.metrics import l2_normalize, pairwise_distance
from jaxpapers.osnet.network import OSNet, OSNetOutput
from jaxpapers.osnet.optimizers import (
  cosine_schedule,
  freeze_base,
  osnet_finetune,
  osnet_from_scratch,
  scale_by_amsgrad_torch,
  step_schedule,
)
from jaxpapers.osnet.ranking import (
  RankResult,
  rank_metrics,
  rank_metrics_from_distance,
)
from jaxpapers.osnet.rerank import (
  alpha_query_expansion,
  k_reciprocal_rerank,
  k_reciprocal_rerank_features,
  k_reciprocal_rows,
)
from jaxpapers.osnet.retrieval import nearest
from jaxpapers.osnet.samplers import SampledSource, domain_sampler, pk_sampler
from jaxpapers.osnet.single_shot import single_shot_cmc
from jaxpapers.osnet.synth import make_benchmark, make_population, render
from jaxpapers.osnet.verification import (
  VerificationResult,
  threshold_at_fpr,
  tpr_at_fpr,
  verification_roc,
)
from jaxpapers.osnet.visualize import activation_map, ranked_list

__all__ = [
  'AttributeMetrics',
  'attribute_metrics',
  'CUHK01',
  'CUHK03',
  'DATASETS',
  'GRID',
  'MSMT17',
  'PA100K',
  'PRID',
  'DukeMTMC',
  'Market1501',
  'ReIDDataset',
  'ReIDSplit',
  'VIPeR',
  'iLIDS',
  'image_folder',
  'image_folders',
  'merge',
  'open_reid',
  'relabel',
  'cached_features',
  'extract_features',
  'load_image',
  'l2_normalize',
  'pairwise_distance',
  'RankResult',
  'rank_metrics',
  'rank_metrics_from_distance',
  'alpha_query_expansion',
  'k_reciprocal_rerank',
  'k_reciprocal_rerank_features',
  'k_reciprocal_rows',
  'nearest',
  'single_shot_cmc',
  'VerificationResult',
  'threshold_at_fpr',
  'tpr_at_fpr',
  'verification_roc',
  'activation_map',
  'ranked_list',
  'CONFIGS',
  'AggregationGate',
  'Complexity',
  'InstanceNorm2d',
  'LiteConv3x3',
  'MixedOSBlock',
  'OSBlock',
  'OSNet',
  'OSNetConfig',
  'OSNetOutput',
  'RandomPatchPool',
  'SampledSource',
  'SearchOSNet',
  'TorchBatchNorm',
  'architecture_weights',
  'attribute_weights',
  'batch_hard_triplet',
  'child_config',
  'circle',
  'color_jitter',
  'complexity',
  'config_for',
  'cosine_schedule',
  'cross_entropy_label_smoothing',
  'domain_sampler',
  'fold_batch_norm',
  'freeze_base',
  'from_torch_state_dict',
  'load_torch_checkpoint',
  'make_benchmark',
  'make_population',
  'mutual_learning',
  'normalize',
  'osnet_finetune',
  'osnet_from_scratch',
  'pk_sampler',
  'random_erase',
  'random_flip',
  'random_translate',
  'render',
  'save_torch_checkpoint',
  'scale_by_amsgrad_torch',
  'scaled',
  'scaled_resolution',
  'step_schedule',
  'temperature_at',
  'to_torch_state_dict',
  'torchreid_params',
  'weighted_bce',
]
