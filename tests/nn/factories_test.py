"""Adapters and feed-forward layers of others, plugged in."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.nn import transformer
from jaxpapers.roberta import model as models

CONFIG = transformer.EncoderConfig(50, 16, 3, 2, 24, max_len=8)
IDS = np.array([[0, 9, 8, 7, 6, 2], [0, 9, 8, 2, 1, 1]])
STACKINGS = (
  {'remat': True},
  {'scan_layers': True, 'remat': True},
)


class Adapter(nn.Module):
  """A bottleneck with a switch, as in Houlsby et al."""

  size: int
  scale: float = 1.0

  @nn.compact
  def __call__(self, x, gate=1.0):
    y = nn.Dense(self.size, name='down')(x)
    y = nn.Dense(x.shape[-1], name='up')(jnp.tanh(y))
    return x + self.scale * gate * y


class Memory(nn.Module):
  """A layer with statistics, reads that it tells, and a shared table."""

  features: int
  momentum: float = 0.5

  @nn.compact
  def __call__(self, x, *, mask, deterministic, values=None):
    mean = self.variable('batch_stats', 'mean', jnp.zeros, (x.shape[-1],))
    seen = mask[..., None]
    if deterministic:
      used = mean.value
    else:
      used = jnp.where(seen, x, 0).sum((0, 1)) / seen.sum()
      if not self.is_initializing():
        mean.value = self.momentum * mean.value + (1 - self.momentum) * used
    self.sow('reads', 'largest', jnp.argmax(x, -1))
    y = nn.Dense(self.features, name='query')(x - used)
    if values is not None:
      y = y @ values
    return self.perturb('out', y)


def adapter(config, layer, place, name):
  del config, layer, place
  return Adapter(4, name=name)


def memory(config, layer, name):
  del layer
  return Memory(config.hidden_size, name=name)


def make(**options):
  """An encoder, and variables that are not the initial ones."""
  changes = options.pop('changes', {})
  encoder = transformer.TransformerEncoder(CONFIG.replace(**changes), **options)
  shapes = jax.eval_shape(encoder.init, jax.random.key(0), IDS)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda p: jnp.asarray(
      0.3 * rng.standard_normal(p.shape) + (p.ndim == 1), p.dtype
    ),
    unscanned(shapes, changes)['params'],
  )
  if changes.get('scan_layers'):
    params = transformer.stack_layers(params)
  rest = {
    name: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), tree)
    for name, tree in shapes.items()
    if name not in ('params', 'reads')
  }
  return encoder, {'params': params, **rest}


def unscanned(shapes, changes):
  """The shapes as they would be layer by layer: the same numbers for both."""
  if not changes.get('scan_layers'):
    return shapes

  def layers(tree):
    return [
      jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), tree)
    ] * CONFIG.num_layers

  params = dict(shapes['params'])
  for i, layer in enumerate(layers(params.pop('layers'))):
    params[f'layers_{i}'] = layer
  return {'params': dict(sorted(params.items()))}


class AdapterTest(parameterized.TestCase):
  @parameterized.parameters(*STACKINGS)
  def test_everywhere(self, **changes):
    encoder, variables = make(adapter=adapter, changes=changes)
    plain, _ = make()
    params = variables['params']
    if changes.get('scan_layers'):
      params = transformer.unstack_layers(params)
    for i in range(3):
      for place in ('attention', 'ffn'):
        self.assertIn('down', params[f'layers_{i}'][f'{place}_adapter'])

    run = jax.jit(functools.partial(encoder.apply, variables, IDS))
    gates = jnp.zeros((3, 2))
    off = run(adapter_inputs={'gate': gates})
    base = jax.jit(plain.apply)({'params': params}, IDS)
    # Without its adapters the model is the one without adapters.
    chex.assert_trees_all_close(off, base, atol=1e-6)
    self.assertGreater(np.abs(run() - base).max(), 0.1)
    # Each gate reaches its own layer and place.
    unrolled, _ = make(adapter=adapter)
    reference = jax.jit(unrolled.apply)
    for layer, place in ((0, 1), (2, 0)):
      one = run(adapter_inputs={'gate': gates.at[layer, place].set(1)})
      name = f'{transformer.PLACES[place]}_adapter'
      manual = {
        k: {
          n: (
            v
            if not n.endswith('adapter')
            or (k == f'layers_{layer}' and n == name)
            else jax.tree.map(jnp.zeros_like, v)
          )
          for n, v in tree.items()
        }
        for k, tree in params.items()
      }
      wanted = reference({'params': manual}, IDS)
      chex.assert_trees_all_close(one, wanted, atol=1e-5)

  def test_gates_of_many_runs(self):
    # All removals in one program: the gates are data.
    encoder, variables = make(adapter=adapter, changes={'scan_layers': True})
    gates = jnp.asarray(np.random.default_rng(0).integers(0, 2, (5, 3, 2)))

    def run(gate):
      return encoder.apply(variables, IDS, adapter_inputs={'gate': gate})

    many = jax.jit(jax.vmap(run))(gates)
    for i in (0, 4):
      chex.assert_trees_all_close(many[i], jax.jit(run)(gates[i]), atol=1e-5)

  def test_gate_of_every_example(self):
    encoder, variables = make(adapter=adapter)
    gate = jnp.stack([jnp.ones((3, 2)), jnp.zeros((3, 2))], -1)[..., None, None]
    mixed = encoder.apply(variables, IDS, adapter_inputs={'gate': gate})
    on = encoder.apply(variables, IDS)
    off = encoder.apply(
      variables, IDS, adapter_inputs={'gate': jnp.zeros((3, 2))}
    )
    chex.assert_trees_all_close(mixed[0], on[0], atol=1e-6)
    chex.assert_trees_all_close(mixed[1], off[1], atol=1e-6)

  def test_after_dropout_before_the_sum(self):
    # The adapter of an identity place doubles what dropout left.
    seen = []

    class Spy(nn.Module):
      @nn.compact
      def __call__(self, x):
        seen.append(x)
        return jnp.zeros_like(x)

    encoder, variables = make(
      adapter=lambda config, layer, place, name: Spy(name=name),
      changes={'dropout_rate': 0.5, 'norm': 'pre', 'num_layers': 1},
    )
    seen.clear()
    _, hiddens = encoder.apply(
      variables,
      IDS,
      deterministic=False,
      capture_hiddens=True,
      rngs={'dropout': jax.random.key(0)},
    )
    self.assertLen(seen, 2)
    for x in seen:
      self.assertBetween(float((x == 0).mean()), 0.35, 0.65)
    # It replaced both blocks' outputs by nothing: only the residual is left.
    chex.assert_trees_all_equal(hiddens[1], hiddens[0])

  def test_small_updates_survive_bfloat16(self):
    # 1e-3 of a number is below bfloat16's resolution; a float32 sum keeps it
    # up to the norm.
    class Nudge(nn.Module):
      @nn.compact
      def __call__(self, x):
        return x.astype(jnp.float32) + 1e-3

    config = CONFIG.replace(dtype=jnp.bfloat16, num_layers=1)
    layer = transformer.EncoderLayer(
      config, adapter=lambda config, layer, place, name: Nudge(name=name)
    )
    x = jnp.ones((1, 2, 16), jnp.bfloat16)
    total = transformer.residual_sum(x, Nudge().apply({}, 0 * x))
    np.testing.assert_allclose(total, 1.001, rtol=1e-6)
    out, _ = layer.init_with_output(jax.random.key(0), x)
    self.assertEqual(out.dtype, jnp.bfloat16)

  def test_some_layers_only(self):
    def some(config, layer, place, name):
      if layer == 1 and place == 'ffn':
        return Adapter(2, name=name)
      return None

    encoder, variables = make(adapter=some)
    adapters = [
      (layer, name)
      for layer, tree in variables['params'].items()
      for name in tree
      if name.endswith('adapter')
    ]
    self.assertEqual(adapters, [('layers_1', 'ffn_adapter')])
    scanned = transformer.TransformerEncoder(
      CONFIG.replace(scan_layers=True), adapter=some
    )
    with self.assertRaisesRegex(ValueError, r'adapter \(ffn\).*for layer 1'):
      jax.eval_shape(scanned.init, jax.random.key(0), IDS)

  def test_sizes_that_differ_cannot_be_scanned(self):
    sizes = (4, 4, 2)
    encoder = transformer.TransformerEncoder(
      CONFIG.replace(scan_layers=True),
      adapter=lambda config, layer, place, name: Adapter(
        sizes[layer or 0], name=name
      ),
    )
    with self.assertRaisesRegex(ValueError, 'scan_layers=False'):
      jax.eval_shape(encoder.init, jax.random.key(0), IDS)

  @parameterized.parameters(((2, 2),), ((3,),))
  def test_wrong_inputs(self, shape):
    encoder, variables = make(adapter=adapter)
    with self.assertRaisesRegex(ValueError, r"adapter_inputs\['gate'\]"):
      encoder.apply(variables, IDS, adapter_inputs={'gate': jnp.ones(shape)})


class FeedForwardTest(parameterized.TestCase):
  @parameterized.parameters(*STACKINGS)
  def test_statistics_and_reads(self, **changes):
    encoder, variables = make(ffn=memory, changes=changes)
    unrolled, separate = make(ffn=memory)
    scan = changes.get('scan_layers')

    def loss(params, encoder, variables):
      out, updates = encoder.apply(
        {**variables, 'params': params},
        IDS,
        deterministic=False,
        mutable=['batch_stats', 'reads'],
        rngs={'dropout': jax.random.key(0)},
      )
      return jnp.sin(out).sum(), updates

    # Without dropout, so that scanned and separate layers draw alike.
    still = {'dropout_rate': 0.0, 'attention_dropout_rate': 0.0}
    encoder, unrolled = (
      module.clone(config=module.config.replace(**still))
      for module in (encoder, unrolled)
    )
    grad = jax.value_and_grad(loss, has_aux=True)
    (value, updates), gradients = jax.jit(
      lambda p: grad(p, encoder, variables)
    )(variables['params'])
    (wanted, expected), slopes = jax.jit(lambda p: grad(p, unrolled, separate))(
      separate['params']
    )
    if scan:
      stats = updates['batch_stats']['layers']['ffn']['mean']
      self.assertEqual(stats.shape, (3, 16))
      updates = transformer.unstack_layers(updates)
      gradients = transformer.unstack_layers(gradients)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    chex.assert_trees_all_close(
      updates['batch_stats'], expected['batch_stats'], atol=1e-5
    )
    chex.assert_trees_all_equal(updates['reads'], expected['reads'])
    chex.assert_trees_all_close(gradients, slopes, atol=1e-4, rtol=1e-4)
    # Statistics that padding has no part in.
    first = updates['batch_stats']['layers_0']['ffn']['mean']
    self.assertGreater(np.abs(first).max(), 0.01)

  def test_masked_statistics(self):
    encoder, variables = make(ffn=memory)
    variables.pop('perturbations')

    def stats(ids):
      return encoder.apply(
        variables,
        ids,
        deterministic=False,
        mutable=['batch_stats'],
        rngs={'dropout': jax.random.key(0)},
      )[1]

    still = CONFIG.replace(dropout_rate=0.0, attention_dropout_rate=0.0)
    encoder = encoder.clone(config=still)
    padded = np.pad(IDS, ((0, 0), (0, 2)), constant_values=1)
    chex.assert_trees_all_close(stats(IDS), stats(padded), atol=1e-5)

  @parameterized.parameters(*STACKINGS)
  def test_shared_table(self, **changes):
    encoder, variables = make(ffn=memory, changes=changes)
    values = jnp.eye(16) + 0.1

    def loss(values):
      out = encoder.apply(variables, IDS, ffn_inputs={'values': values})
      return jnp.sin(out).sum()

    # One table, and the sum of all layers' gradients.
    gradient = jax.jit(jax.grad(loss))(values)
    step = 1e-2
    direction = jnp.asarray(
      np.random.default_rng(0).standard_normal((16, 16)), jnp.float32
    )
    direction /= jnp.linalg.norm(direction)
    slope = (
      loss(values + step * direction) - loss(values - step * direction)
    ) / (2 * step)
    np.testing.assert_allclose(
      (gradient * direction).sum(), slope, rtol=0.02, atol=1e-3
    )

  @parameterized.parameters({}, {'scan_layers': True})
  def test_perturbations(self, **changes):
    encoder, variables = make(ffn=memory, changes=changes)

    def loss(perturbations):
      out = encoder.apply({**variables, 'perturbations': perturbations}, IDS)
      return jnp.sin(out).sum()

    gradients = jax.grad(loss)(variables['perturbations'])
    leaves = jax.tree.leaves(gradients)
    self.assertEqual(sum(leaf.size for leaf in leaves), 3 * IDS.size * 16)
    for leaf in leaves:
      self.assertGreater(np.abs(leaf).max(), 1e-3)

  def test_one_layer_in_place(self):
    def some(config, layer, name):
      return memory(config, layer, name) if layer == 1 else None

    _, variables = make(ffn=some)
    params = variables['params']
    self.assertIn('query', params['layers_1']['ffn'])
    for other in ('layers_0', 'layers_2'):
      self.assertIn('intermediate', params[other]['ffn'])

  @parameterized.parameters({}, {'scan_layers': True})
  def test_after_a_layer(self, **changes):
    encoder, variables = make(after=memory, changes=changes)
    _, hiddens = encoder.apply(variables, IDS, capture_hiddens=True)
    params = variables['params']
    if changes:
      params = transformer.unstack_layers(params)
    layer = dict(params['layers_0'])
    module = Memory(16)
    plain = transformer.EncoderLayer(CONFIG)
    x = plain.apply({'params': layer}, hiddens[0], jnp.asarray(IDS != 1))
    added = module.apply(
      {
        'params': layer['after'],
        'batch_stats': {'mean': jnp.zeros(16)},
      },
      x,
      mask=jnp.asarray(IDS != 1),
      deterministic=True,
    )
    chex.assert_trees_all_close(hiddens[1], x + added, atol=1e-5)


class ModelTest(absltest.TestCase):
  def test_factories_reach_every_model(self):
    for make_model in (
      models.RobertaForMaskedLM,
      models.RobertaForSequenceClassification,
      models.RobertaForQuestionAnswering,
    ):
      model = make_model(CONFIG, ffn=memory, adapter=adapter, after=memory)
      variables = jax.eval_shape(model.init, jax.random.key(0), IDS)
      layer = variables['params']['encoder']['layers_2']
      self.assertIn('query', layer['ffn'])
      self.assertIn('query', layer['after'])
      self.assertIn('down', layer['ffn_adapter'])
      self.assertIn('batch_stats', variables)


if __name__ == '__main__':
  absltest.main()
