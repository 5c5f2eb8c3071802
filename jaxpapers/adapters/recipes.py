"""Configs of the adapter programs: every field, and the paper's values."""

import ml_collections

FIELDS = """\
Fields of a config (change one by --config.FIELD=VALUE):
  model            Folder of a model, Hugging Face's or fairseq's, or of
                   roberta_pretrain (WORKDIR/model).
  tokenizer        Folder of its vocabulary; by default the model's.
  random_weights   Use shape and vocabulary of the model, not its weights.
  task             sms_spam, corporate_messaging, disasters, global_warming,
                   airline, a task of GLUE, or a name of one's own, for which
                   --data has NAME.tsv: class, tab, text, no header.
  data             Folder of the data. Tasks that are not GLUE's are split 80 /
                   10 / 10.
  split_seed       Of that split.
  train_examples   Use only the first so many; 0 for all.
  max_len          Most tokens of an example.
  lengths          Lengths of batches, each of which compiles; () for max_len.
  mode             adapter, layer_norm, top_k, head or full: what is trained.
  adapter          Fields of adapters.AdapterConfig; preset names one of its
                   presets instead.
  k                Layers of the mode top_k.
  train_embeddings Of the mode top_k.
  head             mlp or linear: whether its dense layer is trained, too.
  head_dropout     Dropout of the head; .1 in the authors' code.
  frozen           float32, bfloat16 or int8: how the frozen tree is stored.
  bfloat16         Compute in bfloat16.
  learning_rate, epochs, batch_size, warmup (a part of all updates),
  weight_decay, clip_norm: of BERT's Adam.
  seeds            Members: each has its own adapters, head and dropout. They
                   are trained in one program on the same batches.
  sharding         data, fsdp, tensor or fsdp+tensor; on axes of --mesh.\
"""


def base_config() -> ml_collections.ConfigDict:
  """The config of all programs: the paper's values where it has them."""
  return ml_collections.ConfigDict(
    {
      'model': '',
      'tokenizer': '',
      'random_weights': False,
      'task': 'sms_spam',
      'data': '',
      'split_seed': 0,
      'train_examples': 0,
      'max_len': 128,
      'lengths': (),
      'mode': 'adapter',
      'adapter': {
        'preset': 'houlsby2019_paper',
        'size': 64,
        'init_std': -1.0,
      },
      'k': 1,
      'train_embeddings': False,
      'head': 'mlp',
      'head_dropout': 0.1,
      'frozen': 'float32',
      'bfloat16': False,
      'learning_rate': 3e-4,
      'epochs': 20,
      'batch_size': 32,
      'warmup': 0.1,
      'weight_decay': 0.01,
      'clip_norm': 1.0,
      'seeds': (0, 1, 2),
      'sharding': 'data',
      'eval_batch_size': 64,
      'log_every': 100,
    }
  )
