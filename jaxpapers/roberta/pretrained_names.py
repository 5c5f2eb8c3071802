"""Names of RoBERTa's and BERT's weights elsewhere, as tables."""

from jaxpapers.nn.encoder_config import EncoderConfig
from jaxpapers.weights import RenameTable, Rule, layouts

# Leaf of ours, name of Hugging Face, name of fairseq, layout. A name without a
# last part stands for weight and bias.
_EMBEDDINGS = (
  (
    'token_embedding/embedding',
    'embeddings.word_embeddings.weight',
    'embed_tokens.weight',
    'rows',
  ),
  (
    'position_embedding/embedding',
    'embeddings.position_embeddings.weight',
    'embed_positions.weight',
    'copy',
  ),
  (
    'token_type_embedding/embedding',
    'embeddings.token_type_embeddings.weight',
    'segment_embeddings.weight',
    'copy',
  ),
  ('embedding_norm', 'embeddings.LayerNorm', 'layernorm_embedding', 'norm'),
  ('final_norm', 'encoder.LayerNorm', 'layer_norm', 'norm'),
)
_LAYER = (
  ('attention/query', 'attention.self.query', 'self_attn.q_proj', 'heads_out'),
  ('attention/key', 'attention.self.key', 'self_attn.k_proj', 'heads_out'),
  ('attention/value', 'attention.self.value', 'self_attn.v_proj', 'heads_out'),
  ('attention/output', 'attention.output.dense', 'self_attn.out_proj', 'heads'),
  (
    'attention_norm',
    'attention.output.LayerNorm',
    'self_attn_layer_norm',
    'norm',
  ),
  ('ffn/intermediate', 'intermediate.dense', 'fc1', 'dense'),
  ('ffn/output', 'output.dense', 'fc2', 'dense'),
  ('ffn_norm', 'output.LayerNorm', 'final_layer_norm', 'norm'),
)
# None: no such thing there.
_HEADS = (
  ('lm_head/dense', 'lm_head.dense', 'encoder.lm_head.dense', 'dense'),
  ('lm_head/norm', 'lm_head.layer_norm', 'encoder.lm_head.layer_norm', 'norm'),
  ('lm_head/bias', 'lm_head.bias', 'encoder.lm_head.bias', 'rows'),
  (
    'lm_head/decoder',
    'lm_head.decoder.weight',
    'encoder.lm_head.weight',
    'rows',
  ),
  (
    'classifier/dense',
    'classifier.dense',
    'classification_heads.{n:word}.dense',
    'dense',
  ),
  (
    'classifier/output',
    'classifier.out_proj',
    'classification_heads.{n:word}.out_proj',
    'dense',
  ),
  ('pooler/dense', 'pooler.dense', None, 'dense'),
  ('output', 'classifier', None, 'dense'),
  ('choice', 'classifier', None, 'dense'),
  ('qa', 'qa_outputs', None, 'dense'),
  # Nobody else has this head: names of ours in their style.
  ('answerable/dense', 'answerable.dense', None, 'dense'),
  ('answerable/output', 'answerable.out_proj', None, 'dense'),
  ('nsp/dense', 'pooler.dense', None, 'dense'),
  ('nsp/output', 'cls.seq_relationship', None, 'dense'),
)

# What a file of Hugging Face may have instead of the names above.
HF_RENAMES = (
  (r'^(roberta|bert|xlm_roberta|camembert)\.', ''),
  (r'\.LayerNorm\.gamma$', '.LayerNorm.weight'),
  (r'\.LayerNorm\.beta$', '.LayerNorm.bias'),
  # Both are the same array there.
  (r'^(lm_head|cls\.predictions)\.decoder\.bias$', 'lm_head.bias'),
)
# RoBERTa's names of the masked-LM head -> BERT's.
BERT_HEAD = (
  ('lm_head.dense.', 'cls.predictions.transform.dense.'),
  ('lm_head.layer_norm.', 'cls.predictions.transform.LayerNorm.'),
  ('lm_head.bias', 'cls.predictions.bias'),
  ('lm_head.decoder.', 'cls.predictions.decoder.'),
)
_HF_IGNORED = (r'^embeddings\.(position|token_type)_ids$',)

# What files of fairseq before 0.9 have.
FAIRSEQ_RENAMES = (
  (r'^decoder\.', 'encoder.'),
  (r'\.emb_layer_norm\.', '.layernorm_embedding.'),
)
_FAIRSEQ_IGNORED = (r'\.version$', r'\._float_tensor$')


def hf_table(config: EncoderConfig) -> RenameTable:
  """Names of Hugging Face, without 'roberta.' or 'bert.' before them.

  Args:
    config: The encoder's: it says whether layers are scanned, and how many
      heads and padded rows there are.

  Returns:
    The table. BERT's names of the masked-LM head are read as RoBERTa's.
  """
  lines = [(f'encoder/{ours}', hf, kind) for ours, hf, _, kind in _EMBEDDINGS]
  lines += [
    (f'{_layers(config)}/{ours}', f'encoder.layer.{{i}}.{hf}', kind)
    for ours, hf, _, kind in _LAYER
  ]
  lines += [(ours, hf, kind) for ours, hf, _, kind in _HEADS]
  bert = tuple((f'^{_escape(b)}', a) for a, b in BERT_HEAD)
  return RenameTable(
    _rules(config, lines), renames=HF_RENAMES + bert, ignored=_HF_IGNORED
  )


def fairseq_table(config: EncoderConfig, head: str | None) -> RenameTable:
  """Names of fairseq.

  Args:
    config: As in `hf_table`.
    head: Name of the classification head, one of those that the model has.

  Returns:
    The table. It reads the fused projections of old files, too.
  """
  before = 'encoder.sentence_encoder'
  lines = [
    (f'encoder/{ours}', f'{before}.{name}', kind)
    for ours, _, name, kind in _EMBEDDINGS
  ]
  layers = _layers(config)
  lines += [
    (f'{layers}/{ours}', f'{before}.layers.{{i}}.{name}', kind)
    for ours, _, name, kind in _LAYER
  ]
  lines += [
    (ours, name.replace('{n:word}', head or 'none'), kind)
    for ours, _, name, kind in _HEADS
    if name is not None and (head or '{' not in name)
  ]
  rules = _rules(config, lines)
  for part, leaf in (('weight', 'kernel'), ('bias', 'bias')):
    # Last, so that they are never written.
    rules.append(
      Rule(
        f'{before}.layers.{{i}}.self_attn.in_proj_{part}',
        tuple(
          f'{layers}/attention/{name}/{leaf}'
          for name in ('query', 'key', 'value')
        ),
        layouts.heads_out(config.num_heads),
      )
    )
  return RenameTable(rules, renames=FAIRSEQ_RENAMES, ignored=_FAIRSEQ_IGNORED)


def _layers(config: EncoderConfig) -> str:
  return 'encoder/layers' if config.scan_layers else 'encoder/layers_{i}'


def _escape(text: str) -> str:
  return text.replace('.', r'\.')


def _rules(config: EncoderConfig, lines) -> list[Rule]:
  """Lines with one layout for weight and bias -> rules of the table."""
  rows = layouts.COPY
  if config.vocab_rows != config.vocab_size:
    rows = layouts.padded_rows(config.vocab_size, config.vocab_rows)
  whole = {'rows': rows, 'copy': layouts.COPY}
  heads_out = layouts.heads_out(config.num_heads)
  pairs = {
    'norm': ('scale', layouts.COPY, layouts.COPY),
    'dense': ('kernel', layouts.LINEAR, layouts.COPY),
    'heads_out': ('kernel', heads_out, heads_out),
    'heads': ('kernel', layouts.heads_in(config.num_heads), layouts.COPY),
  }
  rules = []
  for ours, name, kind in lines:
    if kind in whole:
      rules.append(Rule(name, ours, whole[kind]))
      continue
    leaf, kernel, bias = pairs[kind]
    rules.append(Rule(f'{name}.weight', f'{ours}/{leaf}', kernel))
    rules.append(Rule(f'{name}.bias', f'{ours}/bias', bias))
  return rules
