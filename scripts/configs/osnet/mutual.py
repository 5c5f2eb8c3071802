"""Two networks that learn from each other (deep mutual learning).

Cross-entropy, half a triplet loss of the hardest pairs, and the cross-entropy
to what the other network says; cosine distance. Give --config.weights.
"""

from jaxpapers.osnet import recipes


def get_config():
  """The config of the program."""
  config = recipes.finetune_config('cosine')
  config.loss.mutual, config.loss.triplet = True, 0.5
  config.sampler = 'pk'
  config.metric = 'cosine'
  return config
