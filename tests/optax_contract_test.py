"""The contract that every optax transform of this project is held to.

A transform joins by one line in `REGISTRY`; it is then run through every check
of `tests.helpers.optax_contract`. Optax's own transforms are run as controls.
For each check there is also a transform that breaks just that rule, and a test
that the check notices: a check that lets everything pass is found out.
"""

import functools
import json
from collections.abc import Callable

import jax
import optax
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import efficientnet, layca, osnet, product_keys
from jaxpapers.recsys import tf1_optimizers
from jaxpapers.training import optimizers
from tests.helpers import broken_transforms, devices, optax_contract


def on_kernels(alias, **options):
  """An optimizer of Layca that trains what is no kernel by plain descent."""
  return lambda learning_rate: alias(
    learning_rate, others=optax.sgd(learning_rate), **options
  )


def masked_layca(**options):
  """Layca by itself, on what optax.masked shows it."""

  def is_kernel(tree):
    return jax.tree_util.tree_map_with_path(
      lambda path, _: layca.is_kernel(path), tree
    )

  return lambda learning_rate: optax.masked(
    layca.layca(learning_rate, **options), is_kernel
  )


# name -> factory(learning_rate) -> optax.GradientTransformation.
# Transforms of jaxpapers first, then controls from optax.
REGISTRY: dict[str, Callable[..., optax.GradientTransformation]] = {
  'layca_masked': masked_layca(),
  'layca_current_norm': masked_layca(target_norm='current'),
  'layca_running_norm': masked_layca(
    normalize=('ema', 0.9), layer_axes=layca.per_neuron()
  ),
  'layca_hyperball': masked_layca(project=False),
  'layca_sgd': on_kernels(layca.layca_sgd, momentum=0.9),
  'layca_sgd_keras': on_kernels(
    layca.layca_sgd, momentum=0.9, nesterov=True, lr_in_momentum=True
  ),
  'layca_adam_keras': on_kernels(layca.layca_adam, keras_eps=True),
  'layca_amom_sgd': on_kernels(layca.layca_amom_sgd, nesterov=True),
  'layca_adagrad_keras': on_kernels(layca.layca_adagrad, keras_eps=True),
  'layca_normalized_sgd': layca.normalized_sgd,
  'layca_tracked': lambda learning_rate: optax.chain(
    optax.sgd(learning_rate), layca.track_layer_rotation()
  ),
  'efficientnet_rmsprop_tf': efficientnet.rmsprop_tf,
  'efficientnet_optimizer': lambda learning_rate: (
    efficientnet.efficientnet_optimizer(
      256,
      1,
      base_learning_rate=learning_rate,
      schedule='constant',
      warmup_epochs=0,
    )
  ),
  'osnet_finetune': lambda learning_rate: osnet.osnet_finetune(
    2, 2, learning_rate, fixed_epochs=0
  )[0],
  'osnet_from_scratch': lambda learning_rate: osnet.osnet_from_scratch(
    2, 2, learning_rate
  )[0],
  # Of the trees here, the scale alone has to wait.
  'osnet_freeze_base': lambda learning_rate: optax.chain(
    osnet.freeze_base(
      osnet.scale_by_amsgrad_torch(),
      ('dense', 'stack', 'kernel'),
      until_step=1,
    ),
    optax.scale_by_learning_rate(learning_rate),
  ),
  'fairseq_adam': optimizers.fairseq_adam,
  'fairseq_adam_no_bias_ln': functools.partial(
    optimizers.fairseq_adam, decay_mask='no_bias_ln', clip_norm=0.5
  ),
  'fairseq_adam_schedule': lambda learning_rate: optimizers.fairseq_adam(
    lambda count: learning_rate / (1 + count)
  ),
  'bert_adam': optimizers.bert_adam,
  'scale_by_fairseq_adam': lambda learning_rate: optax.chain(
    optimizers.scale_by_fairseq_adam(),
    optax.scale_by_learning_rate(learning_rate),
  ),
  'product_keys_lazy_adam': product_keys.lazy_adam,
  'product_keys_lazy_adam_corrected': functools.partial(
    product_keys.lazy_adam, eps_mode='optax', skip_correction=True
  ),
  'product_keys_xlm_adam': functools.partial(
    product_keys.xlm_adam, weight_decay=0.1
  ),
  'product_keys_clip_by_row_norm': lambda learning_rate: optax.chain(
    product_keys.clip_by_row_norm(0.5), optax.sgd(learning_rate)
  ),
  'product_keys_memory_optimizer': lambda learning_rate: (
    product_keys.memory_optimizer(
      optax.sgd(learning_rate),
      learning_rate,
      is_value=lambda path: path[-1] == 'kernel',
    )
  ),
  'recsys_rmsprop_tf1': functools.partial(
    tf1_optimizers.rmsprop_tf1, momentum=0.9, clip_per_tensor=5.0, lazy=True
  ),
  'optax_sgd_momentum': functools.partial(optax.sgd, momentum=0.875),
  'optax_adam': optax.adam,
  'optax_clip_then_sgd': lambda learning_rate: optax.chain(
    optax.clip_by_global_norm(0.5), optax.sgd(learning_rate)
  ),
}


# Other settings of transforms above: the nightly tests run them.
VARIANTS = frozenset(
  {
    'layca_current_norm',
    'layca_hyperball',
    'layca_sgd_keras',
    'layca_adam_keras',
    'layca_amom_sgd',
    'layca_adagrad_keras',
    'fairseq_adam_no_bias_ln',
    'fairseq_adam_schedule',
    'osnet_from_scratch',
    'product_keys_lazy_adam_corrected',
  }
)


def sharding_factories():
  """All transforms that `check_sharding` is run with, broken ones too."""
  faulty = {
    name: factory
    for name, (factory, _) in broken_transforms.BROKEN_SHARDING.items()
  }
  return {**REGISTRY, **faulty}


def single_device_results() -> dict[str, list[float]]:
  """What each transform gives without a mesh, where JAX sees one device."""
  return {
    name: optax_contract.train_for_sharding(factory)
    for name, factory in sharding_factories().items()
  }


def sharding_failures(expected: dict[str, list[float]]) -> dict[str, str]:
  """Runs `check_sharding` for all transforms.

  Args:
    expected: name -> its entry of `single_device_results`.

  Returns:
    Name -> '' or what went wrong.
  """
  failures = {}
  for name, factory in sharding_factories().items():
    try:
      optax_contract.check_sharding(factory, expected[name])
      failures[name] = ''
    except Exception as error:
      failures[name] = f'{type(error).__name__}: {error}'
  return failures


@functools.cache
def sharding_failures_on_8_devices() -> dict[str, str]:
  """`sharding_failures` of a process with 8 devices; started once for all."""
  out = devices.run(
    """
    import json
    from tests import optax_contract_test
    print(json.dumps(optax_contract_test.single_device_results()))
    """,
    device_count=1,
  )
  expected = json.loads(out.splitlines()[-1])
  out = devices.run(
    f"""
    import json
    import jax
    from tests import optax_contract_test
    assert jax.device_count() == 8
    expected = json.loads({json.dumps(expected)!r})
    print(json.dumps(optax_contract_test.sharding_failures(expected)))
    """
  )
  return json.loads(out.splitlines()[-1])


class OptaxContractTest(parameterized.TestCase):
  """Every registered transform against every check."""

  @parameterized.named_parameters(
    (f'{name}_{check}', name, check)
    for name in REGISTRY
    if name not in VARIANTS
    for check in optax_contract.CONTRACT
  )
  def test_keeps(self, name, check):
    optax_contract.CONTRACT[check](REGISTRY[name])

  @parameterized.named_parameters(
    (f'{name}_{check}', name, check)
    for name in sorted(VARIANTS)
    for check in optax_contract.CONTRACT
  )
  @pytest.mark.nightly
  def test_variants_keep(self, name, check):
    optax_contract.CONTRACT[check](REGISTRY[name])

  @parameterized.named_parameters((name, name) for name in REGISTRY)
  def test_keeps_sharding(self, name):
    self.assertEqual(sharding_failures_on_8_devices()[name], '')


class ChecksCanFailTest(parameterized.TestCase):
  """Each check against a transform that breaks the rule it is there for."""

  def test_each_check_has_a_broken_transform(self):
    self.assertSameElements(broken_transforms.BROKEN, optax_contract.CONTRACT)

  @parameterized.named_parameters(
    (check, check) for check in optax_contract.CONTRACT
  )
  def test_notices(self, check):
    factory, message = broken_transforms.BROKEN[check]
    with self.assertRaisesRegex(Exception, f'(?s){message}'):
      optax_contract.CONTRACT[check](factory)

  @parameterized.named_parameters(
    (name, name) for name in broken_transforms.BROKEN_SHARDING
  )
  def test_notices_sharding(self, name):
    _, message = broken_transforms.BROKEN_SHARDING[name]
    self.assertRegex(sharding_failures_on_8_devices()[name], message)


if __name__ == '__main__':
  absltest.main()
