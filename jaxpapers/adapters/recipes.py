"""Configs of the adapter programs: every field, and the paper's values."""

import ml_collections

FIELDS = """\
Fields of a config (change one by --config.FIELD=VALUE):
  model            Folder of a model, Hugging Face's or fairseq's, or of
                   roberta_pretrain (WORKDIR/model); or 'random'.
  architecture     Of 'random': fields of nn.transformer.EncoderConfig.
  tokenizer        Folder of its vocabulary; by default the model's.
  random_weights   Use shape and vocabulary of the model, not its weights.
  task             sms_spam, corporate_messaging, disasters, global_warming,
                   airline; a task of GLUE (STS-B is a regression); SQuAD1.1 or
                   SQuAD2.0; or a name of one's own, for which the data has
                   NAME.tsv: class, tab, text, no header.
  data             Folder of the data. Tasks that are neither GLUE's nor SQuAD
                   are split 80 / 10 / 10.
  layout           Of GLUE: glue, or raw for files from before it.
  squad            Of SQuAD: train_file, dev_file (by default the official
                   names), doc_stride, max_question_len, max_answer_len, n_best,
                   na_threshold.
  split_seed       Of that split.
  train_examples   Use only the first so many; 0 for all.
  max_len          Most tokens of an example.
  lengths          Lengths of batches, each of which compiles; () for max_len.
  mode             adapter, layer_norm, top_k, head or full: what is trained.
  adapter          size, or layer_sizes, a number or a pair (after attention,
                   after the feed-forward layer) for each layer; preset, one of
                   those of adapters.AdapterConfig; init_std, -1 for the
                   preset's.
  k                Layers of the mode top_k.
  train_embeddings Of the mode top_k.
  head             mlp or linear: whether its dense layer is trained, too. A
                   BERT's pooler is that layer, and linear leaves it as it was
                   pre-trained, as the authors do.
  dropout, attention_dropout: -1 for the model's own.
  head_dropout     Dropout of the head; .1 in the authors' code.
  frozen           float32, bfloat16 or int8: how the frozen tree is stored.
  bfloat16         Compute in bfloat16.
  attention_impl, remat, scan_layers: see nn.transformer.EncoderConfig.
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
      'architecture': {
        'vocab_size': 50265,
        'hidden_size': 768,
        'num_layers': 12,
        'num_heads': 12,
        'mlp_dim': 3072,
        'max_len': 512,
      },
      'tokenizer': '',
      'random_weights': False,
      'task': 'sms_spam',
      'data': '',
      'layout': 'glue',
      'squad': {
        'train_file': '',
        'dev_file': '',
        'doc_stride': 128,
        'max_question_len': 64,
        'max_answer_len': 30,
        'n_best': 20,
        'na_threshold': 0.5,
      },
      'split_seed': 0,
      'train_examples': 0,
      'max_len': 128,
      'lengths': (),
      'mode': 'adapter',
      'adapter': {
        'preset': 'houlsby2019_paper',
        'size': 64,
        'layer_sizes': (),
        'init_std': -1.0,
      },
      'k': 1,
      'train_embeddings': False,
      'head': 'mlp',
      'dropout': -1.0,
      'attention_dropout': -1.0,
      'head_dropout': 0.1,
      'frozen': 'float32',
      'bfloat16': False,
      'attention_impl': 'plain',
      'remat': False,
      'scan_layers': False,
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


def squad_config(version: str = '1.1') -> ml_collections.ConfigDict:
  """SQuAD: windows of 384 tokens, 10 epochs.

  The paper sweeps learning rates from 3e-5 to 1e-3, 3, 10 and 20 epochs
  (section 3.5).

  Args:
    version: '1.1' or '2.0'.

  Returns:
    The config.

  Raises:
    ValueError: If there is no such version.
  """
  if version not in ('1.1', '2.0'):
    raise ValueError(f"version is {version!r}; expected '1.1' or '2.0'.")
  config = base_config()
  config.task = f'SQuAD{version}'
  config.max_len = 384
  config.epochs = 10
  return config


TRADEOFF_FIELDS = """
  tasks            Instead of task: several.
  sizes            Of adapters.
  layers           k of the mode top_k.
  modes            What is compared, full fine-tuning among it.
  learning_rates   Of each mode; the best one is chosen by validation.
  epoch_grid       Likewise.\
"""

SCALE_FIELDS = """
  tasks, modes     Instead of task and mode: several.
  scales           Of the adapters' initialisation, or learning rates.\
"""


def tradeoff_config(variant: str = 'small') -> ml_collections.ConfigDict:
  """A grid for the trade-off of size and score.

  Args:
    variant: 'small'; 'paper' for the grids of section 3.3 and 3.4 on BERT-base:
      sizes 1 to 512, 1 to 12 layers; or 'squad' for that of section 3.5.

  Returns:
    The config.

  Raises:
    ValueError: If there is no such variant.
  """
  config = base_config()
  config.tasks = (
    'sms_spam',
    'corporate_messaging',
    'disasters',
    'global_warming',
  )
  config.modes = ('full', 'adapter', 'top_k', 'layer_norm', 'head')
  if variant == 'small':
    config.sizes, config.layers = (4, 16, 64), (1, 2)
    # The paper's for GLUE. Tiny models want larger ones of full fine-tuning.
    config.learning_rates = {
      'full': (3e-5, 3e-4),
      'top_k': (3e-5, 3e-4),
      'adapter': (3e-4, 3e-3),
      'layer_norm': (3e-4, 3e-3),
      'head': (3e-4, 3e-3),
    }
    config.epoch_grid = (6,)
  elif variant == 'paper':
    config.sizes = tuple(2**n for n in range(10))
    config.layers = (1, 2, 3, 5, 7, 9, 11, 12)
    rates = (1e-5, 3e-5, 1e-4, 3e-3)
    config.learning_rates = dict.fromkeys(config.modes, rates)
    config.epoch_grid = (20, 50, 100)
  elif variant == 'squad':
    config.update(squad_config())
    config.tasks = (config.task,)
    config.modes = ('full', 'adapter', 'top_k')
    config.sizes = tuple(2**n for n in range(10))
    config.layers = (1, 2, 3, 5, 7, 9, 11, 12)
    # Of full fine-tuning the paper has 2, 3 and 5 epochs; a grid is one.
    rates = (3e-5, 5e-5, 1e-4)
    config.learning_rates = {
      'full': rates,
      'top_k': rates,
      'adapter': (3e-5, 1e-4, 3e-4, 1e-3),
    }
    config.epoch_grid = (3, 10, 20)
  else:
    raise ValueError(
      f"variant is {variant!r}; expected 'small', 'paper' or 'squad'."
    )
  return config


def tradeoff_points(config) -> list[dict]:
  """The grid of a trade-off: one dictionary for each run.

  Args:
    config: Of `tradeoff_config`.

  Returns:
    'task', 'mode', 'size' (of adapters; number of layers; or 0),
    'learning_rate' and 'epochs' of each point.
  """
  sizes = {'adapter': config.sizes, 'top_k': config.layers}
  return [
    {
      'task': task,
      'mode': mode,
      'size': size,
      'learning_rate': rate,
      'epochs': epochs,
    }
    for task in config.tasks
    for mode in config.modes
    for size in sizes.get(mode, (0,))
    for rate in config.learning_rates[mode]
    for epochs in config.epoch_grid
  ]


def setting_of(config, point) -> ml_collections.FrozenConfigDict:
  """The config of one point of a grid.

  Args:
    config: The config.
    point: Of `tradeoff_points`, or some of its entries.

  Returns:
    A config of `base_config`'s fields.
  """
  setting = ml_collections.ConfigDict(config)
  for name in ('task', 'mode', 'learning_rate', 'epochs'):
    if name in point:
      setting[name] = point[name]
  if setting.mode == 'adapter' and 'size' in point:
    setting.adapter.size = point['size']
  elif setting.mode == 'top_k':
    setting.k = point['size']
  return ml_collections.FrozenConfigDict(setting)


def scale_config(variant: str = 'init') -> ml_collections.ConfigDict:
  """Scales of figure 6, right, or learning rates of figure 7.

  Args:
    variant: 'init' for standard deviations from 1e-7 to 1 of adapters, 'lr' for
      learning rates from 2e-5 to 1e-3 of adapters and of everything.

  Returns:
    The config.

  Raises:
    ValueError: If there is no such variant.
  """
  config = base_config()
  config.tasks = ('sms_spam', 'disasters')
  config.vary = {'init': 'init_std', 'lr': 'learning_rate'}.get(variant, '')
  if not config.vary:
    raise ValueError(f"variant is {variant!r}; expected 'init' or 'lr'.")
  config.modes = ('adapter',)
  if variant == 'init':
    config.scales = tuple(10.0**n for n in range(-7, 1))
  else:
    config.modes = ('adapter', 'full')
    config.scales = (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3)
  return config
