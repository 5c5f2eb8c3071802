"""Layers against numbers of the original code."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.product_keys import keys as keys_lib
from jaxpapers.product_keys import memory as memory_lib
from jaxpapers.product_keys import variants
from tests.helpers import goldens
from tests.product_keys.notebook import NOTEBOOK, notebook_case, weight

META = goldens.load_json('product_keys', 'pub_meta.json')


def loss_and_grads(module, variables, x, cotangent, **options):
  """Output, changed variables and gradients of sum(output * cotangent)."""

  def loss(variables, x):
    y, changed = module.apply(
      variables, x, mutable=['batch_stats', 'reads'], **options
    )
    return jnp.sum(y * cotangent), (y, changed)

  gradients, (y, changed) = jax.jit(
    jax.grad(loss, argnums=(0, 1), has_aux=True, allow_int=True)
  )(variables, x)
  return y, changed, gradients


# Summation order; the same code in float32 and float64 differs by up to 9e-6.
OUTPUT = {'rtol': 0, 'atol': 2e-5}


class NotebookTest(parameterized.TestCase):
  @parameterized.parameters(*NOTEBOOK)
  def test_layer(self, case):
    golden = goldens.load_npz('product_keys', f'{case}.npz')
    module, variables, x = notebook_case(case)
    y, changed, (gradients, grad_x) = loss_and_grads(
      module,
      variables,
      x,
      weight(case, 'cotangent', golden['output'].shape),
      train=case != 'pub_pk_bn_eval',
    )
    read = changed['reads']['values']
    np.testing.assert_array_equal(
      read['ids'].reshape(golden['indices'].shape), golden['indices']
    )
    np.testing.assert_allclose(
      read['weights'].reshape(golden['weights'].shape),
      golden['weights'],
      **OUTPUT,
    )
    np.testing.assert_allclose(y, golden['output'], **OUTPUT)
    tolerance = {'rtol': 0, 'atol': 1e-4 if 'medium' in case else 5e-5}
    params = gradients['params']
    dense = params['query']['dense_0']
    expected = {
      'grad_input': grad_x,
      'grad_keys': params['keys'],
      'grad_query_weight': dense['kernel'].T,
      'grad_query_bias': dense['bias'],
    }
    if 'grad_bn_weight' in golden:
      norm = params['query']['norm_0']
      expected |= {
        'grad_bn_weight': norm['scale'],
        'grad_bn_bias': norm['bias'],
      }
    table = gradients['memory']['values']
    if 'grad_values' in golden:
      expected['grad_values'] = table
    else:
      expected['grad_values_rowsum'] = table.sum(axis=1)
      expected['grad_values_head'] = table[:16]
    for name, value in expected.items():
      np.testing.assert_allclose(value, golden[name], **tolerance, err_msg=name)
    if 'new_running_mean' in golden:
      stats = changed['batch_stats']['query']['norm_0']
      for name, key in (('mean', 'mean'), ('var', 'var')):
        np.testing.assert_allclose(
          stats[name], golden[f'new_running_{key}'], rtol=0, atol=1e-6
        )

  @parameterized.parameters(True, False)
  def test_scores(self, prune):
    case = 'pub_pk_medium'
    golden = goldens.load_npz('product_keys', f'{case}.npz')
    _, variables, _ = notebook_case(case)
    query = golden['query'].reshape(64, 4, 2, 16)
    scores, ids = memory_lib.product_key_topk(
      query, variables['params']['keys'], 32, prune=prune
    )
    np.testing.assert_allclose(scores, golden['scores'], **OUTPUT)
    np.testing.assert_array_equal(ids, golden['indices'])

  def test_one_slot_gives_no_gradient_to_keys(self):
    module, variables, x = notebook_case('pub_pk_h1_k1')
    _, _, (gradients, _) = loss_and_grads(module, variables, x, 1.0, train=True)
    for leaf in jax.tree.leaves(gradients['params']):
      np.testing.assert_array_equal(leaf, 0)


OPTIONS = {
  'flat': {'n_keys': 40},
  'temperature': {'temperature': 0.5},
  'normalize_query': {'normalize_query': True},
  'sub_min': {'score_subtract': 'min'},
  'sub_mean_norm': {'score_subtract': 'mean', 'score_normalize': True},
  'nosoftmax_l1': {'score': 'none', 'score_normalize': True},
  'modulo': {'modulo': 21},
  'mlp_bn': {'query_sizes': (24,), 'query_norm': 'batch'},
  'multi_mlp': {'query_sizes': (24,), 'query_net': 'per_half'},
  'grouped_mlp': {'query_sizes': (24,), 'query_net': 'per_half'},
  'shared_keys': {'share_keys': True},
  'identity_query': {'query_sizes': None, 'k_dim': 16},
  'shuffle_query': {'shuffle_query': True, 'k_dim': 16},
  'shuffle_indices': {'shuffle_ids': True},
}


def xlm_query(option, w):
  """Parameters and statistics of the query network of a case."""
  pre = 'query_proj.query_mlps'
  if option in ('identity_query', 'shuffle_query'):
    return {}, {}
  if option == 'mlp_bn':
    params, stats = {}, {}
    for i, (linear, norm) in enumerate(((0, 1), (3, 4))):
      params[f'dense_{i}'] = {
        'kernel': w[f'{pre}.0.{linear}.weight'].T,
        'bias': w[f'{pre}.0.{linear}.bias'],
      }
      params[f'norm_{i}'] = {
        'scale': w[f'{pre}.0.{norm}.weight'],
        'bias': w[f'{pre}.0.{norm}.bias'],
      }
      stats[f'norm_{i}'] = {
        'mean': w[f'{pre}.0.{norm}.running_mean'],
        'var': w[f'{pre}.0.{norm}.running_var'],
      }
    return params, stats
  if option == 'multi_mlp':
    params = {}
    for i, layer in enumerate((0, 2)):
      params[f'kernel_{i}'] = np.stack(
        [w[f'{pre}.{g}.{layer}.weight'].T for g in range(4)]
      )
      params[f'bias_{i}'] = np.stack(
        [w[f'{pre}.{g}.{layer}.bias'] for g in range(4)]
      )
    return params, {}
  if option == 'grouped_mlp':
    second = w[f'{pre}.2.layer.weight'].reshape(4, 4, 24)
    return {
      'kernel_0': w[f'{pre}.0.weight'].reshape(4, 24, 16).swapaxes(1, 2),
      'bias_0': w[f'{pre}.0.bias'].reshape(4, 24),
      'kernel_1': second.swapaxes(1, 2),
      'bias_1': w[f'{pre}.2.layer.bias'].reshape(4, 4),
    }, {}
  dense = {'kernel': w[f'{pre}.0.weight'].T, 'bias': w[f'{pre}.0.bias']}
  return {'dense_0': dense}, {}


class OptionsTest(parameterized.TestCase):
  @parameterized.parameters(*OPTIONS)
  def test_xlm(self, option):
    case = f'pub_x_{option}'
    golden = goldens.load_npz('product_keys', f'{case}.npz')
    specs = META['xlm_param_names'][option]
    w = {
      name: weight(case, tag, shape, scale, post)
      for name, (shape, tag, scale, post) in specs.items()
    }
    kind = (
      memory_lib.FlatMemory if option == 'flat' else memory_lib.ProductKeyMemory
    )
    sizes = {'n_keys': 8, 'k_dim': 8, 'heads': 2, 'knn': 3, 'v_dim': 12}
    module = kind(**(sizes | {'query_norm': None} | OPTIONS[option]))
    query, stats = xlm_query(option, w)
    variables = {
      'params': {'keys': w['keys']} | ({'query': query} if query else {}),
      'memory': {'values': w['values.weight']},
    }
    if stats:
      variables['batch_stats'] = {'query': stats}
    if option == 'shuffle_indices':
      variables['constants'] = {'permutations': golden['head_permutations']}
    variables = jax.tree.map(jnp.asarray, variables)
    x = jnp.asarray(weight(case, 'input', (2, 5, 16)))
    y, _, (gradients, grad_x) = loss_and_grads(
      module, variables, x, weight(case, 'cotangent', (2, 5, 12)), train=True
    )
    np.testing.assert_allclose(y, golden['output'], **OUTPUT)
    for value, name in (
      (grad_x, 'grad_input'),
      (gradients['params']['keys'], 'grad_keys'),
      (gradients['memory']['values'], 'grad_values'),
    ):
      np.testing.assert_allclose(
        value, golden[name], rtol=0, atol=5e-5, err_msg=name
      )
    y, changed = module.apply(variables, x, train=False, mutable='reads')
    read = changed['reads']['values']
    np.testing.assert_allclose(y, golden['output_eval'], **OUTPUT)
    np.testing.assert_array_equal(
      read['ids'].reshape(10, 2, 3), golden['indices_eval']
    )
    np.testing.assert_allclose(
      read['weights'].reshape(10, 2, 3), golden['weights_eval'], **OUTPUT
    )

  def test_xlm_keys(self):
    golden = goldens.load_npz('product_keys', 'pub_key_init.npz')
    for seed in (0, 1, 5):
      for name, law, normalized in (
        ('uniform', 'uniform', False),
        ('uniform_norm', 'uniform', True),
        ('gaussian', 'gaussian', False),
      ):
        keys = keys_lib.xlm_keys(8, 4, seed, law, normalized)
        # Normalisation may round once more.
        np.testing.assert_allclose(
          keys, golden[f'{name}_n8_d4_seed{seed}'], rtol=2e-7
        )
    keys = keys_lib.make_keys('xlm', jax.random.key(0), (3, 2, 8, 4), 'float32')
    np.testing.assert_array_equal(keys[2, 1], golden['uniform_n8_d4_seed5'])


def dense_of(w, name):
  return {'kernel': w[f'{name}.weight'].T, 'bias': w[f'{name}.bias']}


class VariantsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('pub_memplus', {}, 1),
    ('pub_memplus_shared2', {}, 2),
    ('pub_memplus_vdim', {'v_dim': 6}, 1),
    ('pub_mem_plain_gated', {'gate': 'sigmoid', 'out_proj': False}, 1),
    ('pub_peer', {}, 1),
  )
  def test_golden(self, case, options, layers):
    golden = goldens.load_npz('product_keys', f'{case}.npz')
    w = {
      name: jnp.asarray(weight(case, name, shape, scale))
      for name, (shape, scale) in META['fb_param_names'][case].items()
    }
    peer = case == 'pub_peer'
    kind = variants.PEER if peer else variants.MemoryPlus
    module = kind(n_keys=8, k_dim=8, heads=2, knn=3, query_norm=None, **options)
    params = []
    for i in range(layers):
      pre = f'layer{i}'
      layer = {
        'keys': w[f'{pre}.keys'].reshape(2, 2, 8, 4),
        'query': {'dense_0': dense_of(w, f'{pre}.query_proj.query_mlps.0')},
      }
      if 'plain' in case:
        layer['gate'] = dense_of(w, f'{pre}.gating')
      elif not peer:
        layer['gate'] = dense_of(w, f'{pre}.swilu_projection')
        layer['out'] = dense_of(w, f'{pre}.value_proj')
      params.append(layer)
    tables = w.get('values.weight')
    if peer:
      tables = (w['values_u.weight'], w['values_v.weight'])
    x = jnp.asarray(weight(case, 'input', (2, 5, 12)))
    cotangent = weight(case, 'cotangent', (2, 5, 12))

    def forward(params, tables, x):
      outputs = []
      for layer in params:
        y, changed = module.apply(
          {'params': layer}, x, train=False, values=tables, mutable='reads'
        )
        read = changed['reads']['down' if peer else 'values']
        outputs.append((y, read['ids'].reshape(10, 2, 3)))
        x = x + y
      return jnp.sum(x * cotangent), (x, outputs)

    gradients, (final, outputs) = jax.grad(
      forward, argnums=(0, 1, 2), has_aux=True
    )(params, tables, x)
    np.testing.assert_allclose(final, golden['final'], **OUTPUT)
    for i, (y, ids) in enumerate(outputs):
      np.testing.assert_allclose(y, golden[f'layer{i}_output'], **OUTPUT)
      np.testing.assert_array_equal(ids, golden[f'layer{i}_indices'])
    expected = {
      'grad_input': gradients[2],
      'grad_keys_layer0': gradients[0][0]['keys'].reshape(32, 4),
    }
    if peer:
      expected['grad_values_u'], expected['grad_values_v'] = gradients[1]
    else:
      expected['grad_values'] = gradients[1]
    for name, value in expected.items():
      np.testing.assert_allclose(
        value, golden[name], rtol=0, atol=5e-5, err_msg=name
      )


if __name__ == '__main__':
  absltest.main()
