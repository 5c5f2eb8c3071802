"""RoBERTa-large as in the paper: 8192 x 512 tokens, 500,000 updates.

On 256 chips of 16 GB: --mesh=data:16,fsdp:16. The layers are one scanned body,
whose activations are computed again in the backward pass; the token table has
50304 rows, so that it can be divided, and the rows beyond 50265 are left out of
the exported model.
"""

from jaxpapers.roberta import pretraining_recipes


def get_config():
  """The config of the program."""
  config = pretraining_recipes.pretrain_config('large')
  config.optimizer.learning_rate = 4e-4
  config.optimizer.warmup_steps = 30_000
  config.bfloat16 = True
  config.sharding = 'fsdp+tensor'
  config.model.scan_layers = True
  config.model.remat = True
  config.model.vocab_multiple = 128
  return config
