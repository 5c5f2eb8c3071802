"""Pre-training and fine-tuning RoBERTa, and BERT on the same transformer.

Liu et al. (2019), arXiv:1907.11692.
"""

from jaxpapers.nn.encoder_config import EncoderConfig
from jaxpapers.roberta.blocks import BlockSource
from jaxpapers.roberta.bpe import ByteLevelBPE
from jaxpapers.roberta.choice import (
  encode_csqa,
  encode_race,
  load_csqa,
  load_race,
)
from jaxpapers.roberta.config import (
  bert_base,
  bert_large,
  roberta_base,
  roberta_large,
)
from jaxpapers.roberta.corpus import TokenCorpus
from jaxpapers.roberta.fill_mask import MaskFiller
from jaxpapers.roberta.finetune import (
  make_finetune_loss,
  make_predict,
  predict_all,
  with_pretrained,
)
from jaxpapers.roberta.finetune_data import (
  TokenBatches,
  TokenExamples,
  glue_examples,
)
from jaxpapers.roberta.formats import (
  bucket_by_length,
  pack_doc_sentences,
  pack_full_sentences,
  pack_lines,
  pack_stream,
)
from jaxpapers.roberta.glue import load_glue, write_submission
from jaxpapers.roberta.heads import ClassificationHead, MaskedLMHead, Pooler
from jaxpapers.roberta.losses import mlm_loss, perplexity, span_loss
from jaxpapers.roberta.masking import MaskedBatch, example_keys, mask_tokens
from jaxpapers.roberta.masking_host import fairseq_mask
from jaxpapers.roberta.metrics import (
  accuracy,
  f1_binary,
  matthews,
  pearson,
  spearman,
)
from jaxpapers.roberta.model import (
  RobertaForMaskedLM,
  RobertaForMultipleChoice,
  RobertaForQuestionAnswering,
  RobertaForSequenceClassification,
)
from jaxpapers.roberta.pairs import segment_pairs, sentence_pairs
from jaxpapers.roberta.pretrained import (
  load_pretrained,
  params_from_fairseq,
  params_from_hf,
  params_to_fairseq,
  params_to_hf,
  save_pretrained,
)
from jaxpapers.roberta.pretrained_config import (
  config_from_fairseq,
  config_from_hf,
  config_to_hf,
)
from jaxpapers.roberta.pretraining import (
  MaskingScheme,
  make_held_out_metrics,
  make_pretrain_loss,
  with_perplexity,
)
from jaxpapers.roberta.sharding import encoder_rules
from jaxpapers.roberta.squad import (
  load_squad,
  squad_answers,
  squad_features,
)
from jaxpapers.roberta.squad_scores import squad_metrics
from jaxpapers.roberta.tasks import GLUE_TASKS
from jaxpapers.roberta.tokenization import tokenize_corpus
from jaxpapers.roberta.wsc import (
  encode_wsc,
  load_winogrande,
  load_wsc,
  positive_examples,
  query_wins,
  wsc_loss,
)
from jaxpapers.training.optimizers import (
  bert_adam,
  fairseq_adam,
  polynomial_warmup_schedule,
  scale_by_fairseq_adam,
)

__all__ = [
  'BlockSource',
  'ByteLevelBPE',
  'ClassificationHead',
  'EncoderConfig',
  'GLUE_TASKS',
  'MaskFiller',
  'MaskedBatch',
  'MaskedLMHead',
  'MaskingScheme',
  'Pooler',
  'RobertaForMaskedLM',
  'RobertaForMultipleChoice',
  'RobertaForQuestionAnswering',
  'RobertaForSequenceClassification',
  'TokenBatches',
  'TokenCorpus',
  'TokenExamples',
  'accuracy',
  'bert_adam',
  'bert_base',
  'bert_large',
  'bucket_by_length',
  'config_from_fairseq',
  'config_from_hf',
  'config_to_hf',
  'encode_csqa',
  'encode_race',
  'encode_wsc',
  'encoder_rules',
  'example_keys',
  'f1_binary',
  'fairseq_adam',
  'fairseq_mask',
  'glue_examples',
  'load_csqa',
  'load_glue',
  'load_pretrained',
  'load_race',
  'load_squad',
  'load_winogrande',
  'load_wsc',
  'make_finetune_loss',
  'make_held_out_metrics',
  'make_predict',
  'make_pretrain_loss',
  'mask_tokens',
  'matthews',
  'mlm_loss',
  'pack_doc_sentences',
  'pack_full_sentences',
  'pack_lines',
  'pack_stream',
  'params_from_fairseq',
  'params_from_hf',
  'params_to_fairseq',
  'params_to_hf',
  'pearson',
  'perplexity',
  'polynomial_warmup_schedule',
  'positive_examples',
  'predict_all',
  'query_wins',
  'roberta_base',
  'roberta_large',
  'save_pretrained',
  'scale_by_fairseq_adam',
  'segment_pairs',
  'sentence_pairs',
  'span_loss',
  'spearman',
  'squad_answers',
  'squad_features',
  'squad_metrics',
  'tokenize_corpus',
  'with_perplexity',
  'with_pretrained',
  'write_submission',
  'wsc_loss',
]
