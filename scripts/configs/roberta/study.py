"""The paper's comparisons of section 4 on small text: masks, formats, batches.

study.py is sized for two processor cores and WikiText-2's validation set, one
megabyte: some minutes for each study. study.py:smoke only shows that it runs.
study.py:base has the paper's sizes (BERT-base, 256 x 512 tokens, a million
updates) and needs accelerators and the paper's text.
"""

import ml_collections

from jaxpapers.roberta import pretraining_recipes

_MASKING = {
  'dynamic': {'masking': {'num_masks': 0}},
  '10 masks': {'masking': {'num_masks': 10}},
  '1 mask': {'masking': {'num_masks': 1}},
}
_FORMATS = {
  'segment pairs': {'format': 'segment_pairs'},
  'sentence pairs': {'format': 'sentence_pairs'},
  'full sentences': {'format': 'full'},
  'doc sentences': {'format': 'doc'},
}


def get_config(size='small'):
  """The config of the program."""
  make = {'small': _small, 'smoke': _smoke, 'base': _base}
  if size not in make:
    raise ValueError(
      f'size is {size!r}; expected study.py, study.py:smoke or study.py:base.'
    )
  return make[size]()


def _small():
  config = pretraining_recipes.pretrain_config('tiny')
  config.vocab_size, config.mask_id = 0, -1  # The tokenizer's.
  config.model.hidden_size, config.model.mlp_dim = 64, 256
  config.block_size = 64
  config.optimizer.learning_rate = 3e-3
  config.seeds = (1, 2, 3)
  config.members_at_once = 1
  config.valid_blocks = 480
  config.evaluations = 12
  config.studies = ml_collections.ConfigDict(
    {
      # 200 sequences, 80 epochs: enough to learn a single mask by heart.
      'masking': {
        'max_blocks': 200,
        'batch_size': 20,
        'epochs': 80,
        'warmup': 0.06,
        'settings': _MASKING,
      },
      # Equal epochs; the learning rate is the best of two for the first seed.
      'batch': {
        'max_blocks': 4096,
        'epochs': 2,
        'warmup': 0.06,
        'settings': {
          '8': {'batch_size': 8, 'learning_rates': (2e-3, 4e-3)},
          '32': {'batch_size': 32, 'learning_rates': (4e-3, 8e-3)},
          '128': {'batch_size': 128, 'learning_rates': (8e-3, 1.6e-2)},
        },
      },
      # Equal numbers of tokens in an update, and of updates.
      'format': {
        'tokens_per_batch': 1536,
        'num_steps': 800,
        'warmup': 0.06,
        'settings': _FORMATS,
      },
    }
  )
  return config


def _smoke():
  config = _small()
  config.model.update(
    {'hidden_size': 32, 'mlp_dim': 64, 'num_layers': 1, 'max_len': 32}
  )
  config.block_size = 32
  config.seeds = (1, 2)
  config.valid_blocks = 16
  config.evaluations = 2
  studies = config.studies
  studies.masking.max_blocks, studies.masking.batch_size = 16, 8
  studies.masking.epochs = 2
  studies.batch.max_blocks, studies.batch.epochs = 32, 1
  studies.batch.settings = ml_collections.ConfigDict(
    {
      '4': {'batch_size': 4, 'learning_rates': (1e-3, 2e-3)},
      '8': {'batch_size': 8, 'learning_rates': (2e-3,)},
    }
  )
  studies.format.tokens_per_batch, studies.format.num_steps = 128, 4
  return config


def _base():
  config = pretraining_recipes.pretrain_config('base')
  config.vocab_size, config.mask_id = 0, -1
  config.optimizer.learning_rate = 1e-4
  config.bfloat16 = True
  config.seeds = (1, 2, 3, 4, 5)
  config.members_at_once = 1
  config.valid_blocks = 0
  config.evaluations = 20
  config.studies = ml_collections.ConfigDict(
    {
      'masking': {
        'batch_size': 256,
        'num_steps': 1_000_000,
        'warmup': 0.01,
        'settings': _MASKING,
      },
      # Batch, updates and learning rate of the paper's Table 3.
      'batch': {
        'warmup': 0.06,
        'settings': {
          '256': {
            'batch_size': 256,
            'num_steps': 1_000_000,
            'learning_rates': (1e-4,),
          },
          '2048': {
            'batch_size': 2048,
            'num_steps': 125_000,
            'learning_rates': (7e-4,),
          },
          '8192': {
            'batch_size': 8192,
            'num_steps': 31_000,
            'learning_rates': (1e-3,),
          },
        },
      },
      'format': {
        'tokens_per_batch': 256 * 512,
        'num_steps': 1_000_000,
        'warmup': 0.01,
        'settings': _FORMATS,
      },
    }
  )
  return config
