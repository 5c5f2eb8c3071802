"""Top-n recommendation, honestly evaluated (Ferrari Dacrema et al. 2019)."""

from jaxpapers.recsys.audit import (
  SplitReport,
  TieReport,
  audit_split,
  audit_ties,
)
from jaxpapers.recsys.autoencoders import (
  MultDAE,
  MultVAE,
  mult_dae,
  mult_vae,
)
from jaxpapers.recsys.beyond_accuracy import (
  beyond_accuracy,
  intra_list_diversity,
)
from jaxpapers.recsys.cdl_network import CDL, cdl
from jaxpapers.recsys.cmn_network import CMN, PairwiseGMF
from jaxpapers.recsys.cmn_training import CmnModel, cmn, pairwise_gmf
from jaxpapers.recsys.ctr import ctr_log_likelihood, ctr_sweep
from jaxpapers.recsys.cvae_network import CVAE, cvae
from jaxpapers.recsys.data import (
  Interactions,
  check_interactions,
  from_dense,
  index_ids,
  interactions,
  overlap,
  union,
)
from jaxpapers.recsys.early_stopping import EarlyStopping
from jaxpapers.recsys.evaluation import Evaluation, evaluate_model
from jaxpapers.recsys.factors import nmf, pure_svd, truncated_svd
from jaxpapers.recsys.factors_sgd import asy_svd, bpr_mf, funk_svd
from jaxpapers.recsys.graph import p3_alpha, rp3_beta, walk_weights
from jaxpapers.recsys.implicit_als import ials
from jaxpapers.recsys.linear import ease, ease_path, ease_weights
from jaxpapers.recsys.mcrec_network import MCRec, McrecModel, mcrec
from jaxpapers.recsys.meta_paths import make_paths, paths_of
from jaxpapers.recsys.methods import METHODS, Method, Range, fit, register
from jaxpapers.recsys.metrics import METRICS, evaluate
from jaxpapers.recsys.models import (
  FactorModel,
  ItemModel,
  PopularityModel,
  RandomModel,
  UserModel,
  fold_in,
  global_effects,
  item_model_of_factors,
  random_scores,
  score,
  score_candidates,
  to_sparse_bcoo,
  top_popular,
)
from jaxpapers.recsys.neighbours import (
  content_knn,
  hybrid_knn,
  item_knn,
  user_knn,
)
from jaxpapers.recsys.neural_cf import GMF, MLPRec, NeuMF, fuse
from jaxpapers.recsys.neural_cf_training import gmf, mlp_rec, neumf
from jaxpapers.recsys.neural_losses import bce, bpr_loss, multinomial_elbo
from jaxpapers.recsys.optimism import best_test_epochs
from jaxpapers.recsys.popularity import describe, popularity_statistics
from jaxpapers.recsys.ranking import (
  Lists,
  Ranks,
  rank_candidates,
  rank_full,
)
from jaxpapers.recsys.readers import (
  load_parts,
  read_interactions,
  read_ncf_negatives,
)
from jaxpapers.recsys.search import (
  run_search,
  search_space,
  validation_objective,
)
from jaxpapers.recsys.significance import (
  compare_all,
  confidence_interval,
  correct,
  paired_tests,
)
from jaxpapers.recsys.similarities import (
  similarity,
  similarity_blocks,
  top_k_columns,
)
from jaxpapers.recsys.slim import slim_elastic_net
from jaxpapers.recsys.slim_sampled import slim_bpr
from jaxpapers.recsys.spectral_cf_network import SpectralCF, spectral_cf
from jaxpapers.recsys.spectrum import spectral_operator
from jaxpapers.recsys.splits import (
  StrongSplit,
  sample_negatives,
  split_holdout,
  split_k_fold,
  split_leave_one_out,
  split_strong_generalization,
  split_user_fraction,
)
from jaxpapers.recsys.tf1_optimizers import linear_to, rmsprop_tf1
from jaxpapers.recsys.weighting import bm25, tf_idf

__all__ = [
  'CDL',
  'CMN',
  'CVAE',
  'GMF',
  'METHODS',
  'METRICS',
  'CmnModel',
  'EarlyStopping',
  'Evaluation',
  'FactorModel',
  'Interactions',
  'ItemModel',
  'Lists',
  'MCRec',
  'MLPRec',
  'McrecModel',
  'Method',
  'MultDAE',
  'MultVAE',
  'NeuMF',
  'PairwiseGMF',
  'PopularityModel',
  'RandomModel',
  'Range',
  'Ranks',
  'SpectralCF',
  'SplitReport',
  'StrongSplit',
  'TieReport',
  'UserModel',
  'asy_svd',
  'audit_split',
  'audit_ties',
  'bce',
  'best_test_epochs',
  'beyond_accuracy',
  'bm25',
  'bpr_loss',
  'bpr_mf',
  'cdl',
  'check_interactions',
  'cmn',
  'compare_all',
  'confidence_interval',
  'content_knn',
  'correct',
  'ctr_log_likelihood',
  'ctr_sweep',
  'cvae',
  'describe',
  'ease',
  'ease_path',
  'ease_weights',
  'evaluate',
  'evaluate_model',
  'fit',
  'fold_in',
  'from_dense',
  'funk_svd',
  'fuse',
  'global_effects',
  'gmf',
  'hybrid_knn',
  'ials',
  'index_ids',
  'interactions',
  'intra_list_diversity',
  'item_knn',
  'item_model_of_factors',
  'linear_to',
  'load_parts',
  'make_paths',
  'mcrec',
  'mlp_rec',
  'mult_dae',
  'mult_vae',
  'multinomial_elbo',
  'neumf',
  'nmf',
  'overlap',
  'p3_alpha',
  'paired_tests',
  'pairwise_gmf',
  'paths_of',
  'popularity_statistics',
  'pure_svd',
  'random_scores',
  'rank_candidates',
  'rank_full',
  'read_interactions',
  'read_ncf_negatives',
  'register',
  'rmsprop_tf1',
  'rp3_beta',
  'run_search',
  'sample_negatives',
  'score',
  'score_candidates',
  'search_space',
  'similarity',
  'similarity_blocks',
  'slim_bpr',
  'slim_elastic_net',
  'spectral_cf',
  'spectral_operator',
  'split_holdout',
  'split_k_fold',
  'split_leave_one_out',
  'split_strong_generalization',
  'split_user_fraction',
  'tf_idf',
  'to_sparse_bcoo',
  'top_k_columns',
  'top_popular',
  'truncated_svd',
  'union',
  'user_knn',
  'validation_objective',
  'walk_weights',
]
