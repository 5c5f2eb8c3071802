"""A vocabulary and models that a test can make in a second."""

import functools
import pathlib
import tempfile

import jax
import jax.numpy as jnp

from jaxpapers.nn.encoder_config import EncoderConfig
from jaxpapers.roberta import bpe, model, pretrained

_TEXT = (
  'The cat sat on the mat and the dog ran after the cat.\n'
  'Who ran after the dog? Nobody knows: a bird, a mouse or a man.\n'
  'Good films are good, bad films are bad, and some are neither.\n'
)


@functools.cache
def tokenizer() -> bpe.ByteLevelBPE:
  """A vocabulary of 320 tokens."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'text.txt')
    path.write_text(_TEXT * 20, encoding='utf-8')
    return bpe.ByteLevelBPE.train([path], 320)


def config(**changes) -> EncoderConfig:
  """One layer of 32, for 64 tokens of `tokenizer`."""
  fields = {'hidden_size': 32, 'num_layers': 1, 'num_heads': 2, 'mlp_dim': 64}
  size = tokenizer().vocab_size
  return EncoderConfig(size, **fields | {'max_len': 64} | changes)


def save_pretrained(folder, seed=0) -> None:
  """Writes a model with a masked-LM head and its vocabulary."""
  init = model.RobertaForMaskedLM(config()).init
  params = init(jax.random.key(seed), jnp.zeros((1, 4), jnp.int32))['params']
  pretrained.save_pretrained(folder, config(), params)
  tokenizer().save(folder)
