"""Models from folders and into folders, for the pre-training programs."""

from typing import Any

import _command_line
import _roberta_pretraining
import _training_command_line
import jax
import jax.numpy as jnp
from etils import epath

from jaxpapers import training
from jaxpapers.roberta import bpe, pretrained


def load_initial(config: Any) -> tuple[Any, Any] | None:
  """Shape and parameters to begin with, of `init_from`; None without it.

  Raises:
    UsageError: If they cannot be read.
  """
  if not config.init_from:
    return None
  # What does not change the weights; the shape is the checkpoint's.
  fields = (
    'dropout_rate',
    'attention_dropout_rate',
    'attention_impl',
    'padding',
    'vocab_multiple',
    'remat',
    'scan_layers',
  )
  try:
    return pretrained.load_pretrained(
      epath.Path(config.init_from).expanduser(),
      heads=('lm_head', 'nsp')
      if config.format in _roberta_pretraining.PAIRS
      else ('lm_head',),
      dtype=_roberta_pretraining.dtype_of(config),
      **{name: config.model[name] for name in fields},
    )
  except (OSError, ValueError) as error:
    raise _command_line.UsageError(
      f'--config.init_from: {_command_line.one_line(error)}'
    ) from error


def is_tied(params: Any) -> bool:
  """Whether parameters to begin with, or None, have no output table."""
  return params is None or 'decoder' not in params.get('lm_head', {})


def with_params(state: training.TrainState, params: Any) -> training.TrainState:
  """A state of step 0 with other parameters, lying as its own did.

  Heads that the parameters do not have stay as they are.
  """
  given = {name: params.get(name, old) for name, old in state.params.items()}
  return state.replace(
    params=jax.tree.map(
      lambda old, new: jax.device_put(
        jnp.asarray(new, old.dtype), old.sharding
      ),
      state.params,
      given,
    )
  )


def export(
  run: _training_command_line.Run,
  problem: _roberta_pretraining.Problem,
  params: Any,
  tokenizer: bpe.ByteLevelBPE,
  folder: epath.Path,
) -> None:
  """Writes model and tokenizer as a Hugging Face folder.

  Args:
    run: The flags.
    problem: What was trained.
    params: Its parameters, on all processes.
    tokenizer: Its tokenizer.
    folder: Where to.
  """
  params = training.fetch(params)
  if not run.first:
    return
  pretrained.save_pretrained(str(folder), problem.encoder, params)
  tokenizer.save(folder)
  _training_command_line.say(f'The model is in {folder}.')
