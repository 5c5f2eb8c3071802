"""What pre-training learns from real text, within measured budgets."""

import functools
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest

from jaxpapers import data, training
from jaxpapers.nn import transformer
from jaxpapers.roberta import (
  blocks,
  bpe,
  pretraining,
  pretraining_data,
  tokenization,
)
from jaxpapers.roberta import model as model_lib
from jaxpapers.training import optimizers
from tests.helpers import data as test_data

VOCAB, LENGTH = 1500, 48


@functools.cache
def corpora():
  """Sequences of WikiText-2's validation and test sets."""
  folder = test_data.require('roberta')
  train = folder / 'wikitext2_valid.txt'
  tokenizer = bpe.ByteLevelBPE.train(train, VOCAB)
  sources = []
  for path in (train, folder / 'wikitext2_test.txt'):
    out = pathlib.Path(tempfile.mkdtemp())
    tokens = tokenization.tokenize_corpus(
      path, tokenizer, out, document_rule='heading', num_workers=0
    )
    source = blocks.BlockSource(tokens, 'full', LENGTH)
    sources.append(source.take(np.arange(len(source))))
  return tokenizer, *sources


def some(source, count):
  indices = np.linspace(0, len(source['ids']) - 1, count).astype(int)
  return {name: value[indices] for name, value in source.items()}


def make(tokenizer, steps, *, width, rate, num_masks=0, dropout=0.0):
  """Model and programs."""
  config = transformer.EncoderConfig(
    VOCAB,
    width,
    2,
    2,
    4 * width,
    max_len=LENGTH,
    pad_id=tokenizer.pad_id,
    dropout_rate=dropout,
    attention_dropout_rate=0.0,
  )
  model = model_lib.RobertaForMaskedLM(config)
  scheme = pretraining.MaskingScheme(
    VOCAB, tokenizer.mask_id, tokenizer.pad_id, num_masks=num_masks
  )
  schedule = optimizers.polynomial_warmup_schedule(rate, steps // 16, steps)
  tx = optimizers.fairseq_adam(schedule)
  return model, scheme, tx


def held_out(state, model, scheme, source, population=False):
  step = training.make_eval_step(
    pretraining.make_held_out_metrics(model, scheme), population=population
  )
  batches = pretraining_data.held_out_batches([source], [50])
  return training.evaluate(state, step, batches)


class LearningTest(absltest.TestCase):
  @pytest.mark.data
  @pytest.mark.slow
  def test_learns_a_fixed_mask_by_heart(self):
    tokenizer, train, _ = corpora()
    steps = 100
    # Measured: .04 after 100 steps, .5 after 60.
    model, scheme, tx = make(
      tokenizer, steps, width=128, rate=4e-3, num_masks=1
    )
    state = training.create_state(
      pretraining.make_init(model, scheme), tx, jax.random.key(0)
    )
    step = training.make_train_step(
      pretraining.make_pretrain_loss(model, scheme), tx
    )
    batches = pretraining_data.training_batches(
      [data.ArraySource(some(train, 64))], [32], seed=0
    )
    losses = []
    for _ in range(steps):
      state, metrics = step(state, next(batches))
      losses.append(float(metrics['loss']))
    # At first it knows nothing: ln V is 7.31.
    self.assertAlmostEqual(losses[0], np.log(VOCAB), delta=0.03 * np.log(VOCAB))
    self.assertLess(np.mean(losses[-2:]), 1.0)

  @pytest.mark.data
  @pytest.mark.nightly
  def test_reads_what_is_hidden_off_its_neighbours(self):
    tokenizer, train, test = corpora()
    counts = pretraining_data.count_tokens(
      data.ArraySource(train), VOCAB, tokenizer.pad_id
    )
    entropy = pretraining_data.unigram_entropy(counts)
    self.assertAlmostEqual(entropy, 6.1, delta=0.1)
    steps = 900
    model, scheme, tx = make(tokenizer, steps, width=128, rate=4e-3)
    state = training.create_state(
      pretraining.make_init(model, scheme), tx, jax.random.key(0)
    )
    step = training.make_train_step(
      pretraining.make_pretrain_loss(model, scheme), tx
    )
    batches = pretraining_data.training_batches(
      [data.ArraySource(train)], [48], seed=0
    )
    for _ in range(steps):
      state, _ = step(state, next(batches))
    loss = held_out(state, model, scheme, some(test, 400))['loss']
    self.assertLess(loss, entropy - 0.7)

  @pytest.mark.data
  @pytest.mark.nightly
  def test_new_masks_are_worth_more_than_one(self):
    tokenizer, train, test = corpora()
    epochs, seeds = 40, 3
    sequences = data.ArraySource(some(train, 200))
    model, scheme, tx = make(tokenizer, 5 * epochs, width=64, rate=4e-3)
    keys = jnp.stack([jax.random.key(i) for i in range(seeds)] * 2)
    # Three seeds with a single mask, the same three with new ones: one program.
    state = training.create_state(
      pretraining.make_init(model, scheme, own_masks=True), tx, keys
    )
    masking = {
      **state.model_state[pretraining.MASKING],
      'num_masks': jnp.repeat(jnp.array([1, 0], jnp.int32), seeds),
    }
    state = state.replace(model_state={pretraining.MASKING: masking})
    step = training.make_train_step(
      pretraining.make_pretrain_loss(model, scheme), tx, population=True
    )
    batches = pretraining_data.training_batches([sequences], [40], seed=0)
    for _ in range(5 * epochs):
      state, metrics = step(state, next(batches))
    results = held_out(state, model, scheme, some(test, 200), population=True)
    static, dynamic = np.split(results['loss'], 2)
    trained = np.asarray(metrics['loss'])
    self.assertLess(trained[:seeds].max(), trained[seeds:].min())
    # Measured differences are given in docs/roberta.md; the direction is the
    # claim, .2 nat what is asked for.
    self.assertGreater((static - dynamic).min(), 0.2)


if __name__ == '__main__':
  absltest.main()
