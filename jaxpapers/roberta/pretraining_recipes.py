"""What a pre-training run is told: every field of its config, and its sizes."""

from typing import Any

import ml_collections

FIELDS = """\
Fields of a config (change one by --config.FIELD=VALUE):
  corpus, valid    Folders that roberta_tokenize wrote: to train on, and held
                   out. Without valid nothing is evaluated.
  tokenizer        Folder of the vocabulary; by default the corpus has it.
  vocab_size,      0 and -1 take them from the tokenizer.
  mask_id
  model            Fields of nn.transformer.EncoderConfig.
  format           full, doc, stream or lines; segment_pairs or sentence_pairs
                   with next-sentence prediction.
  block_size       Tokens of a sequence, specials included.
  buckets          Of format doc: lengths, as (64, 128, 256, 512). Sequences are
                   padded to the next of them, and batches of the shorter ones
                   have more, so that every batch has as many tokens.
  max_blocks,      Use so many sequences only, evenly spread; 0 for all.
  valid_blocks
  batch_size       Sequences of an update, over all devices.
  accumulate       Microbatches in which an update is computed.
  num_steps        Updates.
  masking          num_masks (0: a new mask in every epoch; n: n of each example
                   take turns), mask_prob, keep_prob, random_prob, whole_words,
                   specials (whether <s> and </s> may be hidden).
  optimizer        learning_rate, warmup_steps, end_learning_rate, power, b1,
                   b2, eps, weight_decay, decay (all or no_bias_ln), clip_norm
                   (0: none).
  bfloat16         Compute in bfloat16; parameters and optimizer stay float32.
  sharding         data, fsdp, tensor or fsdp+tensor; on axes of --mesh.
  init_from        Folder of a model to go on from, written by this program, by
                   Hugging Face or by fairseq. It says what shape the model has.
  seed             Of weights, masks, dropout and order.
  evaluate_every, log_every, checkpoint_every: steps.\
"""

# Shapes of the papers' models; what is not said here is EncoderConfig's.
SIZES = {
  'tiny': {
    'hidden_size': 128,
    'num_layers': 2,
    'num_heads': 2,
    'mlp_dim': 512,
    'max_len': 128,
  },
  'med_small': {
    'hidden_size': 512,
    'num_layers': 6,
    'num_heads': 8,
    'mlp_dim': 2048,
  },
  'base': {
    'hidden_size': 768,
    'num_layers': 12,
    'num_heads': 12,
    'mlp_dim': 3072,
  },
  'large': {
    'hidden_size': 1024,
    'num_layers': 24,
    'num_heads': 16,
    'mlp_dim': 4096,
  },
}


def model_config(size: str, **changes: Any) -> ml_collections.ConfigDict:
  """Fields of an encoder of one of the papers' sizes.

  Args:
    size: 'tiny', 'med_small' (nyu-mll), 'base' or 'large'.
    **changes: Other fields of `EncoderConfig`.

  Returns:
    A ConfigDict.

  Raises:
    ValueError: If there is no such size.
  """
  if size not in SIZES:
    raise ValueError(f'size is {size!r}; expected one of {list(SIZES)}.')
  fields = {
    'max_len': 512,
    'dropout_rate': 0.1,
    'attention_dropout_rate': 0.1,
    'attention_impl': 'plain',
    'padding': 'right',
    'norm': 'post',
    'vocab_multiple': 1,
    'remat': False,
    'scan_layers': False,
  }
  return ml_collections.ConfigDict(fields | SIZES[size] | changes)


def pretrain_config(size: str) -> ml_collections.ConfigDict:
  """A config of roberta_pretrain with the paper's values for all sizes.

  Args:
    size: See `model_config`.

  Returns:
    The config; learning rate, warmup, batch and number of updates are those of
    RoBERTa-base (Table 9).
  """
  return ml_collections.ConfigDict(
    {
      'tokenizer': '',
      'corpus': '',
      'valid': '',
      'vocab_size': 50265,
      'mask_id': 50264,
      'model': model_config(size),
      'format': 'full',
      'block_size': 512,
      'buckets': (),
      'max_blocks': 0,
      'valid_blocks': 0,
      'batch_size': 8192,
      'accumulate': 1,
      'num_steps': 500_000,
      'masking': {
        'num_masks': 0,
        'mask_prob': 0.15,
        'keep_prob': 0.1,
        'random_prob': 0.1,
        'whole_words': False,
        'specials': True,
      },
      'optimizer': {
        'learning_rate': 6e-4,
        'warmup_steps': 24_000,
        'end_learning_rate': 0.0,
        'power': 1.0,
        'b1': 0.9,
        'b2': 0.98,
        'eps': 1e-6,
        'weight_decay': 0.01,
        'decay': 'all',
        'clip_norm': 0.0,
      },
      'bfloat16': False,
      'sharding': 'data',
      'init_from': '',
      'seed': 1,
      'evaluate_every': 10_000,
      'log_every': 100,
      'checkpoint_every': 5_000,
    }
  )
