"""The tiny models of the golden files, with weights that follow from names."""

import re

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxpapers.adapters import AdapterConfig, trees
from jaxpapers.nn import EncoderConfig, TransformerEncoder
from tests.helpers import goldens

# (pattern, replacement) from the authors' names of variables to our paths.
_BERT = (
  (r'^bert/embeddings/word_embeddings$', 'encoder/token_embedding/embedding'),
  (
    r'^bert/embeddings/token_type_embeddings$',
    'encoder/token_type_embedding/embedding',
  ),
  (
    r'^bert/embeddings/position_embeddings$',
    'encoder/position_embedding/embedding',
  ),
  (r'^bert/embeddings/LayerNorm/', 'encoder/embedding_norm/'),
  (r'^bert/encoder/layer_(\d+)/', r'encoder/layers_\1/'),
  (r'/attention/self/', '/attention/'),
  (r'/attention/output/adapters/', '/attention_adapter/'),
  (r'/attention/output/LayerNorm/', '/attention_norm/'),
  (r'/attention/output/dense/', '/attention/output/'),
  (r'/intermediate/dense/', '/ffn/intermediate/'),
  (r'(layers_\d+)/output/adapters/', r'\1/ffn_adapter/'),
  (r'(layers_\d+)/output/LayerNorm/', r'\1/ffn_norm/'),
  (r'(layers_\d+)/output/dense/', r'\1/ffn/output/'),
  (r'^bert/pooler/', 'pooler/'),
  (r'^output_weights$', 'output/kernel'),
  (r'^output_bias$', 'output/bias'),
  (r'gamma$', 'scale'),
  (r'beta$', 'bias'),
  (r'weights1$', 'down/kernel'),
  (r'biases1$', 'down/bias'),
  (r'weights2$', 'up/kernel'),
  (r'biases2$', 'up/bias'),
)
_HUB = (
  (r'^roberta\.', ''),
  (r'\.', '/'),
  (r'^embeddings/word_embeddings/weight', 'encoder/token_embedding/embedding'),
  (
    r'^embeddings/position_embeddings/weight',
    'encoder/position_embedding/embedding',
  ),
  (
    r'^embeddings/token_type_embeddings/weight',
    'encoder/token_type_embedding/embedding',
  ),
  (r'^embeddings/LayerNorm', 'encoder/embedding_norm'),
  (r'^encoder/layer/(\d+)/', r'encoder/layers_\1/'),
  (r'/attention/self/', '/attention/'),
  (r'/attention/output/adapters/task/', '/attention_adapter/'),
  (r'/attention/output/LayerNorm/', '/attention_norm/'),
  (r'/attention/output/dense/', '/attention/output/'),
  (r'/intermediate/dense/', '/ffn/intermediate/'),
  (r'(layers_\d+)/output/adapters/task/', r'\1/ffn_adapter/'),
  (r'(layers_\d+)/output/LayerNorm/', r'\1/ffn_norm/'),
  (r'(layers_\d+)/output/dense/', r'\1/ffn/output/'),
  (r'adapter_down/0/', 'down/'),
  (r'adapter_up/', 'up/'),
  (r'out_proj', 'output'),
  (r'norm/weight$', 'norm/scale'),
  (r'weight$', 'kernel'),
)


class Classifier(nn.Module):
  """Encoder, dense, tanh, dense: the parameters of BERT's or RoBERTa's model.

  Attributes:
    config: The encoder's.
    adapter: Factory of adapters.
    num_labels: Number of classes.
    pooler: Whether the first dense layer is called `pooler/dense`, and the
      second `output`; else `classifier/dense` and `classifier/output`.
  """

  config: EncoderConfig
  adapter: AdapterConfig | None = None
  num_labels: int = 3
  pooler: bool = False

  @nn.compact
  def __call__(self, ids, *, capture_hiddens=False, **inputs):
    encoder = TransformerEncoder(
      self.config, adapter=self.adapter, name='encoder'
    )
    hidden, between = encoder(ids, capture_hiddens=True, **inputs)
    options = {
      'dtype': self.config.dtype,
      'param_dtype': self.config.param_dtype,
    }
    if self.pooler:
      pooled = Pooler(options, name='pooler')(hidden[:, 0])
      logits = nn.Dense(self.num_labels, name='output', **options)(pooled)
    else:
      pooled, logits = Head(self.num_labels, options, name='classifier')(
        hidden[:, 0]
      )
    if capture_hiddens:
      return logits, (between, pooled)
    return logits


class Pooler(nn.Module):
  """Dense, tanh."""

  options: dict

  @nn.compact
  def __call__(self, x):
    return jnp.tanh(nn.Dense(x.shape[-1], name='dense', **self.options)(x))


class Head(nn.Module):
  """Dense, tanh, dense; what is between, too."""

  num_labels: int
  options: dict

  @nn.compact
  def __call__(self, x):
    x = jnp.tanh(nn.Dense(x.shape[-1], name='dense', **self.options)(x))
    return x, nn.Dense(self.num_labels, name='output', **self.options)(x)


def bert():
  """The authors' model: module, parameters, spec and golden arrays."""
  spec = goldens.load_json('adapters', 'adapter_bert_tf_spec.json')
  c = spec['config']
  config = EncoderConfig(
    c['V'],
    c['H'],
    c['L'],
    c['A'],
    c['F'],
    max_len=c['P'],
    pad_id=0,
    position_offset=0,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
    gelu='tanh',
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
  )
  model = Classifier(
    config, AdapterConfig.preset('houlsby2019_code', size=c['m']), 3, True
  )
  flat = {}
  for entry in spec['parameters']:
    name, shape = entry['name'], tuple(entry['shape'])
    z = goldens.normal(name, shape)
    if name.endswith('gamma'):
      value = 1 + 0.1 * z
    elif name.endswith(('beta', 'bias', 'biases1', 'biases2')):
      value = 0.1 * z
    elif 'embeddings' in name:
      value = 0.5 * z
    elif name == 'output_weights':
      value = z / np.sqrt(shape[-1])
    else:
      value = z / np.sqrt(shape[0])
    flat[bert_path(name)] = bert_layout(name, value.astype(np.float32), config)
  return (
    model,
    trees.unflatten(flat),
    spec,
    goldens.load_npz('adapters', 'adapter_bert_tf.npz'),
  )


def bert_inputs(golden):
  """Inputs of the authors' model."""
  ids = jnp.asarray(golden['input_ids'])
  return ids, {
    'token_type_ids': jnp.asarray(golden['segment_ids']),
    'attention_mask': jnp.asarray(golden['input_mask']) == 1,
  }


def bert_path(name):
  """Our path of a variable of the authors' code."""
  for pattern, replacement in _BERT:
    name = re.sub(pattern, replacement, name)
  return name


def bert_layout(name, value, config):
  """A variable of theirs in our layout."""
  heads = (config.num_heads, config.head_dim)
  if name == 'output_weights':
    return value.T
  if 'biases' in name:
    return value[0]
  if re.search(r'self/\w+/kernel', name):
    return value.reshape(-1, *heads)
  if re.search(r'self/\w+/bias', name):
    return value.reshape(heads)
  if re.search(r'attention/output/dense/kernel', name):
    return value.reshape(*heads, -1)
  return value


def hub(dtype=jnp.float32):
  """AdapterHub's model: module, parameters, spec and golden arrays."""
  spec = goldens.load_json('adapters', 'adapterhub_roberta_spec.json')
  c = spec['config']
  config = EncoderConfig(
    c['vocab'],
    c['hidden'],
    c['layers'],
    c['heads'],
    c['ffn'],
    max_len=c['max_len'],
    type_vocab_size=1,
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
    dtype=dtype,
    param_dtype=dtype,
  )
  model = Classifier(
    config, AdapterConfig(size=spec['bottleneck'], activation='gelu'), 3
  )
  flat = {}
  for entry in spec['parameters']:
    name, shape = entry['name'], tuple(entry['shape'])
    z = goldens.normal(name, shape)
    if 'LayerNorm' in name:
      value = 1 + 0.1 * z if name.endswith('weight') else 0.1 * z
    elif name.endswith('bias'):
      value = 0.1 * z
    elif 'embeddings' in name:
      value = 0.5 * z
    else:
      value = z / np.sqrt(shape[-1])
    flat[hub_path(name)] = np.asarray(hub_layout(name, value, config), dtype)
  return (
    model,
    trees.unflatten(flat),
    spec,
    goldens.load_npz('adapters', 'adapterhub_roberta.npz'),
  )


def hub_path(name):
  """Our path of one of AdapterHub's parameters."""
  for pattern, replacement in _HUB:
    name = re.sub(pattern, replacement, name)
  return name


def hub_layout(name, value, config):
  """One of their arrays in our layout."""
  heads = (config.num_heads, config.head_dim)
  if value.ndim == 2 and 'embeddings' not in name:
    value = value.T
  if re.search(r'self\.\w+\.weight', name):
    return value.reshape(-1, *heads)
  if re.search(r'self\.\w+\.bias', name):
    return value.reshape(heads)
  if 'attention.output.dense.weight' in name:
    return value.reshape(*heads, -1)
  return value
