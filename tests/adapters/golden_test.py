"""The authors' code and AdapterHub: same numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest

from jaxpapers import adapters
from jaxpapers.adapters import trees
from tests.adapters import golden_models


def cross_entropy(logits, labels):
  picked = jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]
  return -picked.mean()


def relative(value, wanted):
  """Largest difference, in units of the largest entry."""
  return np.abs(value - wanted).max() / np.abs(wanted).max()


class AuthorsCodeTest(absltest.TestCase):
  """Tolerances are three to twenty times what another code in JAX reached."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model, cls.params, cls.spec, cls.golden = golden_models.bert()
    cls.ids, cls.inputs = golden_models.bert_inputs(cls.golden)
    cls.labels = jnp.asarray(cls.golden['labels'])
    cls.trainable, cls.frozen = adapters.partition_params(
      cls.params, 'adapter', head='linear'
    )

  def loss_fn(self, params, model_state, batch, rng):
    del batch, rng
    logits = self.model.apply({'params': params}, self.ids, **self.inputs)
    return cross_entropy(logits, self.labels), (model_state, {})

  def test_what_is_trained_is_what_the_authors_train(self):
    wanted = {
      golden_models.bert_path(p['name'])
      for p in self.spec['parameters']
      if p['trainable']
    }
    self.assertEqual(set(trees.flatten(self.trainable)), wanted)
    self.assertLen(wanted, 28)
    self.assertEqual(adapters.count_params(self.trainable), 2627)
    self.assertEqual(adapters.count_params(self.params), 21059)

  def test_forward(self):
    logits, (hiddens, pooled) = jax.jit(
      functools.partial(self.model.apply, capture_hiddens=True)
    )({'params': self.params}, self.ids, **self.inputs)
    found = {
      'embedding_output': hiddens[0],
      'layer_0': hiddens[1],
      'layer_1': hiddens[2],
      'pooled_output': pooled,
      'logits': logits,
    }
    for name, value in found.items():
      np.testing.assert_allclose(
        value, self.golden[name], rtol=0, atol=1e-5, err_msg=name
      )
    loss = cross_entropy(logits, self.labels)
    np.testing.assert_allclose(loss, self.golden['loss'], rtol=0, atol=1e-5)

  def test_gradients(self):
    gradients = jax.jit(
      jax.grad(
        lambda trainable: self.loss_fn(
          adapters.merge_params(trainable, self.frozen), {}, None, None
        )[0]
      )
    )(self.trainable)
    found = trees.flatten(gradients)
    names = [n for n in self.golden if n.startswith('grad/')]
    self.assertLen(names, 28)
    for name in names:
      wanted = golden_models.bert_layout(
        name[5:], self.golden[name], self.model.config
      )
      value = found[golden_models.bert_path(name[5:])]
      self.assertLessEqual(relative(value, wanted), 2e-5, name)

  def test_ten_steps(self):
    o = self.spec['optimizer']
    schedule = adapters.bert_schedule(
      o['init_lr'], o['num_warmup_steps'], o['num_train_steps']
    )
    tx = adapters.bert_adam(schedule, weight_decay=o['weight_decay'])
    before = jax.tree.map(np.array, self.frozen)
    state = adapters.create_finetune_state(
      self.trainable, tx, jax.random.key(0)
    )
    step = adapters.make_finetune_step(self.loss_fn, tx, self.frozen)
    batch = {'ids': self.ids}
    losses, norms = [], []
    for _ in range(10):
      state, metrics = step(state, batch)
      losses.append(metrics['loss'])
      norms.append(metrics['grad_norm'])
    _, metrics = step(jax.tree.map(jnp.copy, state), batch)
    losses.append(metrics['loss'])
    np.testing.assert_allclose(
      np.array(losses), self.golden['train_losses'], rtol=0, atol=2e-6
    )
    # Of the trained subset: of all variables it would be larger.
    np.testing.assert_allclose(
      norms[0], self.golden['train_grad_global_norm'], rtol=2e-5
    )
    found = trees.flatten(state.params)
    for name in self.golden:
      if name.startswith('after10/'):
        wanted = golden_models.bert_layout(
          name[8:], self.golden[name], self.model.config
        )
        np.testing.assert_allclose(
          found[golden_models.bert_path(name[8:])],
          wanted,
          rtol=0,
          atol=2e-5,
          err_msg=name,
        )
    jax.tree.map(np.testing.assert_array_equal, before, step.frozen)


class AdapterHubTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model, cls.params, _, cls.golden = golden_models.hub()
    cls.ids = jnp.asarray(cls.golden['input_ids'])
    cls.labels = jnp.asarray(cls.golden['labels'])
    cls.layers = cls.model.config.num_layers

  def logits(self, gates=None):
    inputs = {} if gates is None else {'adapter_inputs': {'gate': gates}}
    return self.model.apply({'params': self.params}, self.ids, **inputs)

  def test_forward(self):
    logits, (hiddens, _) = jax.jit(
      functools.partial(self.model.apply, capture_hiddens=True)
    )({'params': self.params}, self.ids)
    np.testing.assert_allclose(logits, self.golden['logits'], rtol=0, atol=2e-6)
    seen = self.golden['attention_mask'] == 1
    for i, hidden in enumerate(hiddens):
      np.testing.assert_allclose(
        np.asarray(hidden)[seen],
        self.golden[f'hidden_{i}'][seen],
        rtol=0,
        atol=2e-6,
      )

  @pytest.mark.slow
  def test_gradients(self):
    def loss(params):
      logits = self.model.apply({'params': params}, self.ids)
      return cross_entropy(logits, self.labels)

    value, gradients = jax.jit(jax.value_and_grad(loss))(self.params)
    np.testing.assert_allclose(value, self.golden['loss'], rtol=2e-6)
    found = trees.flatten(gradients)
    names = [name for name in self.golden if name.startswith('grad/')]
    self.assertLen(names, 28)
    for name in names:
      wanted = golden_models.hub_layout(
        name[5:], self.golden[name], self.model.config
      )
      value = found[golden_models.hub_path(name[5:])]
      self.assertLessEqual(relative(value, wanted), 1e-5, name)

  @pytest.mark.slow
  def test_in_float64(self):
    with jax.enable_x64(True):
      model, params, _, golden = golden_models.hub(jnp.float64)
      table = jax.jit(
        lambda params: adapters.ablate_spans(
          lambda gates: model.apply(
            {'params': params}, self.ids, adapter_inputs={'gate': gates}
          ),
          self.layers,
        )
      )(params)
      logits = model.apply({'params': params}, self.ids)
      self.assertEqual(logits.dtype, np.float64)
      np.testing.assert_allclose(logits, golden['logits'], rtol=0, atol=1e-13)
      upper = np.triu_indices(self.layers)
      np.testing.assert_allclose(
        np.asarray(table)[upper],
        golden['ablation_logits'][upper],
        rtol=0,
        atol=1e-13,
      )

  def test_removal_of_every_span(self):
    table = jax.jit(lambda: adapters.ablate_spans(self.logits, self.layers))()
    one = jax.jit(self.logits)
    spans, gates = adapters.span_gates(self.layers)
    self.assertLen(spans, self.layers * (self.layers + 1) // 2)
    for (i, j), gate in zip(spans, gates):
      wanted = self.golden['ablation_logits'][i, j]
      looped = one(jnp.repeat(jnp.asarray(gate)[:, None], 2, axis=1))
      for found in (table[i, j], looped):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)
    below = np.tril_indices(self.layers, -1)
    self.assertTrue(np.isnan(np.asarray(table)[below]).all())

  @pytest.mark.slow
  def test_removal_in_parts(self):
    table = jax.jit(
      lambda: adapters.ablate_spans(self.logits, self.layers, batch_size=4)
    )()
    upper = np.triu_indices(self.layers)
    np.testing.assert_allclose(
      table[upper], self.golden['ablation_logits'][upper], rtol=0, atol=2e-6
    )

  def test_all_removed_is_the_model_without_adapters(self):
    plain = golden_models.Classifier(self.model.config, None, 3)
    base, _ = adapters.partition_params(
      self.params, lambda path: '_adapter/' not in path
    )
    # One operation at a time: fused programs round differently.
    without = plain.apply({'params': base}, self.ids)
    removed = self.logits(jnp.zeros((self.layers, 2)))
    np.testing.assert_array_equal(removed, without)
    np.testing.assert_allclose(
      without, self.golden['logits_no_adapter'], rtol=0, atol=2e-6
    )


if __name__ == '__main__':
  absltest.main()
