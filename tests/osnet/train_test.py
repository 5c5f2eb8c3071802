import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest

from jaxpapers import training
from jaxpapers.osnet import augment, losses, optimizers, train
from jaxpapers.osnet.config import OSNetConfig
from jaxpapers.osnet.network import OSNet

TINY = OSNetConfig(
  channels=(4, 8, 8),
  blocks_per_stage=(1, 1),
  streams=(1,),
  gate_reduction=1,
  feature_dim=8,
)
SHAPE = (8, 32, 16, 3)
RNG = np.random.default_rng(0)
BATCH = {
  'image': RNG.integers(0, 256, SHAPE, np.uint8),
  'label': np.array([0, 0, 1, 1, 2, 2, 3, 3], np.int32),
}
PLAIN = train.Augmentation(flip=False)


def make_job(augmentation, objective, fixed=0, tx=None):
  model = OSNet(TINY, 5)
  return training.Job(
    train.make_init(model, SHAPE, augmentation, objective.mutual),
    train.make_loss_fn(
      model, augmentation, objective, fixed_microbatches=fixed
    ),
    tx or optax.sgd(0.1),
    jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), BATCH),
  )


def changed(old, new):
  """Names of children whose leaves have changed."""
  return {
    name
    for name in old
    if any(
      (a != b).any()
      for a, b in zip(jax.tree.leaves(old[name]), jax.tree.leaves(new[name]))
    )
  }


class LossTest(absltest.TestCase):
  @pytest.mark.slow
  def test_parts_and_frozen_base(self):
    objective = train.Objective(triplet=0.5, circle=0.1)
    job = make_job(
      PLAIN, objective, 2, optimizers.freeze_base(optax.sgd(0.1), until_step=2)
    )
    step, state = job.step(), job.state(jax.random.key(0))
    before = jax.device_get(state)

    # The first step by hand: kept statistics, all but the classifier frozen.
    @jax.jit
    def by_hand(variables, labels):
      images = augment.normalize(BATCH['image'])
      out = OSNet(TINY, 5).apply(variables, images)
      return {
        'cross_entropy': losses.cross_entropy_label_smoothing(
          out.logits, labels
        ),
        'triplet': losses.batch_hard_triplet(out.features, labels),
        'circle': losses.circle(out.features, labels),
      }

    expected = by_hand(train.state_variables(state), BATCH['label'])
    state, metrics = step(state, BATCH)
    for name, value in expected.items():
      np.testing.assert_allclose(metrics[name], value, rtol=2e-5)
    total = (
      expected['cross_entropy']
      + 0.5 * expected['triplet']
      + 0.1 * expected['circle']
    )
    np.testing.assert_allclose(metrics['loss'], total, rtol=2e-5)

    state, _ = step(state, BATCH)
    after = jax.device_get(state)
    self.assertEqual(changed(before.params, after.params), {'classifier'})
    stats = 'batch_stats'
    old, new = before.model_state[stats], after.model_state[stats]
    self.assertEmpty(changed(old, new))
    state, _ = step(state, BATCH)
    later = jax.device_get(state)
    self.assertEqual(changed(after.params, later.params), set(later.params))
    new = later.model_state[stats]
    self.assertEqual(changed(old, new), set(new))
    self.assertEqual(step._cache_size(), 1)

  @pytest.mark.slow
  def test_two_networks_learn_from_each_other(self):
    objective = train.Objective(mutual=True)
    job = make_job(PLAIN, objective)
    state = job.state(jax.random.key(0))
    params = jax.device_get(state.params)
    kernels = params['classifier']['kernel']
    self.assertEqual(kernels.shape, (2, 8, 5))
    self.assertTrue((kernels[0] != kernels[1]).any())

    @jax.jit
    def logits_of(params, statistics):
      out, _ = OSNet(TINY, 5).apply(
        {'params': params, 'batch_stats': statistics},
        augment.normalize(BATCH['image']),
        True,
        mutable=['batch_stats'],
      )
      return out.logits

    logits = [
      logits_of(
        train.network(params, i),
        train.network(state.model_state['batch_stats'], i),
      )
      for i in range(2)
    ]
    ce = [
      losses.cross_entropy_label_smoothing(x, BATCH['label']) for x in logits
    ]
    mutual = [
      losses.mutual_learning(logits[1], logits[0]),
      losses.mutual_learning(logits[0], logits[1]),
    ]
    one = train.state_variables(state, mutual=True)
    self.assertEqual(one['params']['classifier']['kernel'].shape, (8, 5))
    _, metrics = job.step()(state, BATCH)
    np.testing.assert_allclose(metrics['loss'], sum(ce + mutual), rtol=2e-5)
    np.testing.assert_allclose(metrics['mutual'], sum(mutual) / 2, rtol=2e-5)

  def test_bad_objectives(self):
    with self.assertRaisesRegex(ValueError, "task is 'faces'"):
      train.Objective('faces')
    with self.assertRaisesRegex(ValueError, 'mutual is True'):
      train.Objective('attributes', mutual=True)


class AugmentationTest(absltest.TestCase):
  def test_all_of_it(self):
    augmentation = train.Augmentation(
      crop=True,
      patch=augment.RandomPatchPool(16, 4),
      jitter=(0.2, 0.15, 0.0, 0.0),
      erase=True,
    )
    state = augmentation.init(SHAPE)
    step = jax.jit(augmentation)
    images = jnp.asarray(BATCH['image'])
    new, first = step(state, jax.random.key(0), images)
    self.assertEqual(int(new['patch_pool'].count), 8)
    _, again = step(state, jax.random.key(0), images)
    np.testing.assert_array_equal(first, again)
    self.assertEqual((first.shape, first.dtype), (SHAPE, jnp.float32))

  def test_nothing(self):
    state, images = PLAIN({}, jax.random.key(0), BATCH['image'])
    self.assertEqual(state, {})
    expected = augment.normalize(BATCH['image'])
    np.testing.assert_array_equal(images, expected)


class WeightsTest(absltest.TestCase):
  def filled(self, tree, seed):
    """Numbers in the place of shapes; nothing has to be compiled."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
      lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), tree
    )

  def state(self, mutual=False):
    job = make_job(PLAIN, train.Objective(mutual=mutual))
    params, model_state = jax.eval_shape(job.init, jax.random.key(0))
    return training.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=self.filled(params, 0),
      model_state=self.filled(model_state, 1),
      opt_state=(),
      rng=jax.random.key(0),
      ema_params=None,
    )

  def weights(self, classes=5):
    images = jnp.zeros((1, *SHAPE[1:]))
    return self.filled(
      jax.eval_shape(OSNet(TINY, classes).init, jax.random.key(7), images), 2
    )

  def test_of_other_identities(self):
    for mutual in (False, True):
      state, weights = self.state(mutual), self.weights(9)
      new = train.with_variables(
        state, weights, new_classifier=True, mutual=mutual
      )
      found = train.state_variables(new, mutual)
      np.testing.assert_array_equal(
        found['params']['conv5']['conv']['kernel'],
        weights['params']['conv5']['conv']['kernel'],
      )
      np.testing.assert_array_equal(
        new.params['classifier']['kernel'], state.params['classifier']['kernel']
      )
      self.assertEqual(new.params['fc']['linear']['kernel'].ndim, 2 + mutual)

  def test_that_do_not_fit(self):
    with self.assertRaisesRegex(ValueError, 'classifier/bias.*have .9,.'):
      train.with_variables(self.state(), self.weights(9), new_classifier=False)
    weights = self.weights()
    del weights['params']['conv5']
    with self.assertRaisesRegex(ValueError, 'conv5/conv/kernel.*missing'):
      train.with_variables(self.state(), weights, new_classifier=True)


if __name__ == '__main__':
  absltest.main()
