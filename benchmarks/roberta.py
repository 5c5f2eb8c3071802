"""RoBERTa's training step beside Hugging Face's, its head, masking, text.

Prints one JSON object. Every number is of this run; peers and ours alternate,
see `_side_by_side.py`. Ratios are ours over the peer's.

  python benchmarks/roberta.py                     # CPU, several minutes
  python benchmarks/roberta.py --parts=step --model=small --repeats=10
  python benchmarks/roberta.py --parts=accelerator # with a GPU or a TPU
  python benchmarks/roberta.py --parts=tokenizer,pipeline --data=FOLDER

What is measured:
  step: training steps (forward, backward, Adam; dropout .1; float32) of
    roberta-base on 8 x 128 and of a small model (4 layers of 256) on 32 x 128,
    15 % of the tokens predicted, projected to the vocabulary at these alone:
    `training.make_train_step` with fairseq's Adam, against transformers'
    RobertaModel and lm_head, given the same positions, with torch's fused
    AdamW. Weights are equal at the start; dropout makes the losses differ.
  head: our step with logits at the masked positions against logits everywhere.
  masking: choosing and replacing tokens inside jit, as a share of a step.
  compile: seconds of the processors to trace and compile base's forward pass of
    8 x 512 tokens, layers one by one and as one scanned body.
  tokenizer: MB/s of ByteLevelBPE, with and without the words that it remembers
    from a first pass, and of the library tokenizers (loading included in cold).
  pipeline: tokens/s from a tokenised corpus to batches in memory.
  accelerator: base and large, 512 tokens, bfloat16: tokens/s, share of the
    peak (MFU), memory; plain against fused attention; transformers with
    autocast, SDPA and torch.compile beside it where torch sees the device.

The peers need `pip install torch transformers`; without them ours is measured
alone. --data holds encoder.json, vocab.bpe, dict.txt and *.txt.
"""

import functools
import os
import statistics
import time

import _roberta_text
import _side_by_side
from absl import app, flags

_PARTS = flags.DEFINE_list(
  'parts',
  ['step', 'head', 'masking', 'compile', 'tokenizer', 'pipeline'],
  'What to measure.',
)
_MODEL = flags.DEFINE_list('model', ['base', 'small'], 'Models of the steps.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Alternations.')
_BATCH = flags.DEFINE_integer('batch', 64, 'Sequences on an accelerator.')
_DATA = flags.DEFINE_string(
  'data',
  os.path.join(os.environ.get('JAXPAPERS_DATA', ''), 'roberta'),
  "Folder of GPT-2's vocabulary and text files.",
)

_VOCAB, _MASK = 50265, 50264
_SHAPES = {'base': (8, 128), 'small': (32, 128)}


def _config(name, **changes):
  from jaxpapers.nn import EncoderConfig
  from jaxpapers.roberta import config

  if name == 'small':
    return EncoderConfig(_VOCAB, 256, 4, 4, 1024, **changes)
  return {'base': config.roberta_base, 'large': config.roberta_large}[name](
    **changes
  )


def _batch(size, length):
  """Ids, masked positions, what was there."""
  import numpy as np

  rng = np.random.default_rng(0)
  ids = rng.integers(4, _VOCAB - 4, (size, length)).astype(np.int32)
  ids[:, 0], ids[:, -1] = 0, 2
  slots = -(-15 * length // 100)
  positions = np.stack(
    [np.sort(rng.permutation(length)[:slots]) for _ in range(size)]
  ).astype(np.int32)
  targets = np.take_along_axis(ids, positions, 1)
  np.put_along_axis(ids, positions, _MASK, 1)
  return {'ids': ids, 'positions': positions, 'targets': targets}


def _loss_fn(config, everywhere=False):
  import jax.numpy as jnp

  from jaxpapers.roberta import losses, model

  masked = model.RobertaForMaskedLM(config)

  def loss_fn(params, model_state, batch, rng):
    positions = batch['positions']
    logits = masked.apply(
      {'params': params},
      batch['ids'],
      positions=None if everywhere else positions,
      deterministic=False,
      rngs={'dropout': rng},
    )
    if everywhere:
      targets = jnp.zeros_like(batch['ids'])
      rows = jnp.arange(len(targets))[:, None]
      weights = jnp.zeros(targets.shape).at[rows, positions].set(1.0)
      targets = targets.at[rows, positions].set(batch['targets'])
    else:
      targets = batch['targets']
      weights = jnp.ones(targets.shape)
    total, count = losses.mlm_loss(logits, targets, weights)
    return total / count, (model_state, {'count': count})

  def init(key):
    return masked.init(key, jnp.zeros((1, 4), jnp.int32))['params'], {}

  return init, loss_fn


def _our_step(config, batch, everywhere=False):
  """A call that makes one update, and the loss of the start."""
  import jax

  from jaxpapers import training
  from jaxpapers.training import optimizers

  init, loss_fn = _loss_fn(config, everywhere)
  tx = optimizers.fairseq_adam(1e-5, weight_decay=0.01)
  state = training.create_state(init, tx, jax.random.key(0))
  step = training.make_train_step(loss_fn, tx)
  batch = training.put_batch(batch)
  held = [state]

  def call():
    held[0], metrics = step(held[0], batch)
    jax.block_until_ready((held[0], metrics))
    return float(metrics['loss'])

  return call, held


def _peer_step(config, batch, device='cpu', params=None, fast=False):
  """The same of transformers, from our parameters if there are any."""
  import torch
  import transformers

  torch.set_num_threads(os.cpu_count())
  options = transformers.RobertaConfig(
    vocab_size=config.vocab_size,
    hidden_size=config.hidden_size,
    num_hidden_layers=config.num_layers,
    num_attention_heads=config.num_heads,
    intermediate_size=config.mlp_dim,
    max_position_embeddings=config.position_rows,
    type_vocab_size=1,
    layer_norm_eps=config.layer_norm_eps,
    attn_implementation='sdpa',
  )
  model = transformers.RobertaForMaskedLM(options)
  if params is not None:
    from jaxpapers.roberta import pretrained

    state = pretrained.params_to_hf(params, config)
    found = {k: torch.tensor(v) for k, v in state.items()}
    rest = model.load_state_dict(found, strict=False)
    if rest.unexpected_keys:
      raise ValueError(f'transformers does not know {rest.unexpected_keys}')
    model.roberta.embeddings.token_type_embeddings.weight.data.zero_()
  model.to(device).train()
  optimizer = torch.optim.AdamW(
    model.parameters(),
    lr=1e-5,
    betas=(0.9, 0.98),
    eps=1e-6,
    weight_decay=0.01,
    fused=True,
  )
  ids, positions, targets = (
    torch.tensor(batch[name], dtype=torch.long, device=device)
    for name in ('ids', 'positions', 'targets')
  )
  mask = ids != 1
  # What tells HF that nothing is padding spares it the mask.
  mask = None if bool(mask.all()) else mask

  def loss_of():
    hidden = model.roberta(ids, attention_mask=mask).last_hidden_state
    index = positions[..., None].expand(-1, -1, hidden.shape[-1])
    logits = model.lm_head(hidden.gather(1, index))
    return torch.nn.functional.cross_entropy(
      logits.flatten(0, 1).float(), targets.flatten()
    )

  forward = torch.compile(loss_of) if fast else loss_of

  def call():
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device, torch.bfloat16, enabled=fast):
      loss = forward()
    loss.backward()
    optimizer.step()
    return loss.item()

  return call


def _step():
  import jax

  result = {}
  for name in _MODEL.value:
    config, batch = _config(name), _batch(*_SHAPES[name])
    ours, held = _our_step(config, batch)
    params = jax.device_get(held[0].params)
    calls = {'jaxpapers': ours}
    if _side_by_side.has('torch', 'transformers'):
      calls['transformers'] = _peer_step(config, batch, params=params)
    wall, cpu, losses = _side_by_side.alternate(calls, _REPEATS.value)
    result[name] = {
      'batch': list(_SHAPES[name]),
      'predicted': int(batch['positions'].size),
      'parameters': sum(p.size for p in jax.tree.leaves(params)),
      'first_loss': {k: round(v, 4) for k, v in losses.items()},
      'repeats': _REPEATS.value,
      **_side_by_side.summary(wall, cpu, 'jaxpapers', 'transformers'),
    }
    del ours, held, calls
  return result


def _head():
  result = {}
  for name in _MODEL.value:
    config, batch = _config(name), _batch(*_SHAPES[name])
    masked, _ = _our_step(config, batch)
    everywhere, _ = _our_step(config, batch, everywhere=True)
    calls = {'masked': masked, 'everywhere': everywhere}
    wall, cpu, _ = _side_by_side.alternate(calls, _REPEATS.value)
    result[name] = _side_by_side.summary(wall, cpu, 'masked', 'everywhere')
  return result


def _masking():
  import jax

  from jaxpapers.roberta import masking

  result = {}
  for name in _MODEL.value:
    size, length = _SHAPES[name]
    batch = _batch(size, length)
    step, _ = _our_step(_config(name), batch)
    ids = jax.numpy.asarray(batch['ids']).at[:].set(7)
    mask = jax.jit(
      functools.partial(masking.mask_tokens, vocab_size=_VOCAB, mask_id=_MASK)
    )
    keys = masking.example_keys(
      jax.random.key(0),
      jax.numpy.zeros(size, jax.numpy.int32),
      jax.numpy.arange(size),
    )

    def call(mask=mask, keys=keys, ids=ids):
      jax.block_until_ready(mask(keys, ids, ids != 1))

    wall, cpu, _ = _side_by_side.alternate(
      {'masking': call, 'step': step}, _REPEATS.value
    )
    result[name] = _side_by_side.summary(wall, cpu, 'masking', 'step')
  return result


def _compile():
  import jax
  import jax.numpy as jnp

  from jaxpapers.nn import transformer

  result = {}
  for name, scan in (('one by one', False), ('scanned', True)):
    encoder = transformer.TransformerEncoder(_config('base', scan_layers=scan))
    ids = jax.ShapeDtypeStruct((8, 512), jnp.int32)
    params = jax.eval_shape(encoder.init, jax.random.key(0), ids)
    start, used = time.perf_counter(), time.process_time()
    jax.jit(encoder.apply).lower(params, ids).compile()
    result[name] = {
      'wall_seconds': round(time.perf_counter() - start, 2),
      'cpu_seconds': round(time.process_time() - used, 2),
    }
  return result


def _flops_per_token(config, length):
  """Of a training step: three times the forward pass, 15 % predicted."""
  hidden = config.hidden_size
  layer = 8 * hidden**2 + 4 * hidden * config.mlp_dim + 4 * length * hidden
  head = 2 * hidden**2 + 2 * hidden * config.vocab_size
  return 3 * (config.num_layers * layer + 0.15 * head)


def _accelerator():
  import jax
  import jax.numpy as jnp

  from jaxpapers import training

  device = jax.devices()[0]
  if device.platform == 'cpu':
    return {'skipped': 'JAX sees no accelerator'}
  peak, size, length = training.peak_flops(device), _BATCH.value, 512
  batch, result = _batch(size, length), {'device': device.device_kind}
  variants = {
    'plain, dropout of probabilities': {'attention_impl': 'plain'},
    'plain': {'attention_impl': 'plain', 'attention_dropout_rate': 0.0},
    'fused': {
      'attention_impl': 'auto',
      'padding': 'right',
      'attention_dropout_rate': 0.0,
    },
  }

  def rates(calls):
    wall, _, losses = _side_by_side.alternate(calls, _REPEATS.value)
    out = {}
    for name, times in wall.items():
      rate = size * length / (1e-3 * statistics.median(times))
      share = rate * _flops_per_token(config, length) / (peak or float('nan'))
      out[name] = {
        'tokens_per_second': round(rate),
        'mfu_percent': round(100 * share, 1),
        'first_loss': round(losses[name], 4),
      }
    return out

  for name in ('base', 'large'):
    result[name] = {'batch': [size, length]}
    for variant, changes in variants.items():
      config = _config(
        name,
        dtype=jnp.bfloat16,
        vocab_multiple=128,
        scan_layers=True,
        **changes,
      )
      call, held = _our_step(config, batch)
      result[name].update(rates({variant: call}))
      del call, held
      stats = device.memory_stats() or {}
      # A maximum since the start: of the largest variant so far.
      peak_bytes = stats.get('peak_bytes_in_use')
      if peak_bytes:
        result[name][variant]['peak_gigabytes_so_far'] = round(
          peak_bytes / 1e9, 2
        )
    if _side_by_side.has('torch', 'transformers'):
      import torch

      if torch.cuda.is_available():
        peer = _peer_step(config, batch, 'cuda', fast=True)
        result[name].update(rates({'transformers': peer}))
  return result


def main(argv):
  """Runs the chosen parts and prints one JSON object."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  _side_by_side.choose('model', _MODEL.value, list(_SHAPES))
  parts = {
    'step': _step,
    'head': _head,
    'masking': _masking,
    'compile': _compile,
    'accelerator': _accelerator,
  }
  for name in ('tokenizer', 'pipeline'):
    call = getattr(_roberta_text, name)
    parts[name] = functools.partial(call, _DATA.value, _REPEATS.value)
  _side_by_side.report(_PARTS.value, parts)


if __name__ == '__main__':
  app.run(main)
