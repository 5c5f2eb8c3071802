"""The fields that all configs of fine-tuning have."""

from typing import Any

import ml_collections

from jaxpapers.roberta import pretraining_recipes


def finetune_config(**fields: Any) -> ml_collections.ConfigDict:
  """A config of a fine-tuning program.

  -1, and 0 for the duration, leave a value to the recipe of the task.

  Args:
    **fields: Further fields, or other values.

  Returns:
    The config; its fields are explained by the programs' --help.

  Example:
    >>> finetune_config(task='RTE').weight_decay
    -1.0
  """
  common = {
    'model': '',
    'tokenizer': '',
    'architecture': pretraining_recipes.model_config('base'),
    'random_weights': False,
    'data': '',
    'seeds': (1,),
    'learning_rate': -1.0,
    'batch_size': -1,
    'weight_decay': -1.0,
    'warmup': -1,
    'updates': 0,
    'epochs': 0,
    'b2': 0.98,
    'eps': 1e-6,
    'clip_norm': 0.0,
    'decay': 'all',
    'dropout': -1.0,
    'attention_dropout': -1.0,
    'head_dropout': 0.0,
    'max_len': 0,
    'lengths': (),
    'train_examples': 0,
    'accumulate': 1,
    'eval_batch_size': 64,
    'evaluate_every': 0,
    'patience': 0,
    'evaluate_only': False,
    'keep_head': False,
    'export': True,
    'bfloat16': False,
    'sharding': 'data',
    'attention_impl': 'plain',
    'remat': False,
    'scan_layers': False,
    'log_every': 50,
  }
  return ml_collections.ConfigDict(common | fields)
