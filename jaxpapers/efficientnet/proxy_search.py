"""Accuracies of architectures by training them: many at once, or alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers import training
from jaxpapers.efficientnet.population import MaskedPopulation
from jaxpapers.efficientnet.proxy import (
  Batches,
  Images,
  ProxyTrainer,
  Recipe,
  evaluation_batches,
  normalize,
  smoothed_cross_entropy,
)
from jaxpapers.efficientnet.search_network import SearchNetwork
from jaxpapers.efficientnet.search_space import SearchSpace


class PopulationTrainer:
  """Trains architectures side by side; compiled once for a whole search.

  Calling it maps tokens `[n, blocks, 6]` to accuracies `[n]`; as `evaluate` of
  `run_search` it goes with `batch_size=members`.
  """

  def __init__(
    self,
    space: SearchSpace,
    members: int,
    train: Images,
    test: Images,
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    mesh: jax.sharding.Mesh | None = None,
  ):
    """Prepares the data and the step.

    Args:
      space: The space; its `resolution` is that of the training.
      members: Architectures at once.
      train: Training images.
      test: Images whose accuracy is wanted.
      recipe: How to train.
      seed: Of parameters and batches, the same for all architectures.
      mesh: Where; members lie on the axis 'population' if it has one.

    Raises:
      ValueError: If the classes do not fit, or `members` is below 1.
    """
    _check_classes(space, train)
    if members < 1:
      raise ValueError(f'members is {members}; expected 1 or more.')
    self.members, self.space = members, space
    self._recipe, self._seed, self._mesh = recipe or Recipe(), seed, mesh
    self._population = MaskedPopulation(space, members)
    self._train = train.at(space.resolution)
    self._test = test.at(space.resolution)
    self._tx = self._recipe.optimizer(len(train))
    self._step = training.make_train_step(
      self._loss, self._tx, mesh=mesh, population=True
    )
    self._eval_step = training.make_eval_step(
      self._measure, mesh=mesh, population=True
    )
    self._make_state = self._state_maker()

  @property
  def num_steps(self) -> int:
    """Steps of a training."""
    steps = self._recipe.steps_per_epoch(len(self._train))
    return self._recipe.epochs * steps

  def __call__(self, tokens: Any) -> np.ndarray:
    """Trains up to `members` architectures, and measures them.

    Args:
      tokens: Integers `[n, blocks, 6]`.

    Returns:
      Accuracies `[n]`, NaN where training diverged.
    """
    tokens = np.asarray(tokens)
    count = len(tokens)
    # The program is made for as many: empty places repeat the first.
    filled = np.concatenate([tokens] + [tokens[:1]] * (self.members - count))
    filled = self._population.check(filled)
    state = self._make_state(jax.random.key(self._seed), filled)
    try:
      result = training.fit(
        state,
        self._step,
        Batches(self._train, self._recipe, self._seed),
        num_steps=self.num_steps,
        mesh=self._mesh,
        console=False,
        log_every=self.num_steps,
      )
    except training.NonFiniteLossError:  # That of every member.
      return np.full(count, np.nan)
    if not result.finished:
      raise InterruptedError(result.message)
    batches = evaluation_batches(self._test, self._recipe.batch_size)
    means = training.evaluate(
      result.state, self._eval_step, batches, mesh=self._mesh
    )
    sound = jax.vmap(_all_finite)(result.state.params)
    accuracy = np.where(np.asarray(sound), means['accuracy'], np.nan)
    return accuracy[:count]

  def _state_maker(self):
    """Function from key and tokens to the state, made where the mesh has it."""
    make = jax.vmap(self._member, in_axes=(None, 0))
    if self._mesh is None:
      return jax.jit(make)
    tokens = jax.ShapeDtypeStruct((self.members, *self.space.shape), jnp.int32)
    shapes = jax.eval_shape(make, jax.random.key(0), tokens)
    shardings = training.shard_rules(shapes, (), self._mesh, population=True)
    return jax.jit(make, out_shardings=shardings)

  def _member(self, key, tokens) -> training.TrainState:
    size = self.space.resolution
    x = jnp.zeros((1, size, size, self.space.channels))
    variables = self._population.module.init(key, x, tokens)
    params = variables['params']
    # The architecture is part of the state: each member has its own.
    model_state = {'batch_stats': variables['batch_stats'], 'tokens': tokens}
    return training.TrainState(
      jnp.int32(0), params, model_state, self._tx.init(params), key
    )

  def _loss(self, params, model_state, batch, rng):
    logits, new = self._population.module.apply(
      {'params': params, 'batch_stats': model_state['batch_stats']},
      normalize(batch['image']),
      model_state['tokens'],
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': rng},
    )
    loss = smoothed_cross_entropy(
      logits, batch['label'], self._recipe.label_smoothing
    ).mean()
    return loss, ({**new, 'tokens': model_state['tokens']}, {})

  def _measure(self, params, model_state, batch):
    logits = self._population.module.apply(
      {'params': params, 'batch_stats': model_state['batch_stats']},
      normalize(batch['image']),
      model_state['tokens'],
    )
    right = (logits.argmax(-1) == batch['label']) * batch['weight']
    count = batch['weight'].sum()
    return {'accuracy': right.sum() / count, 'count': count}


def _all_finite(tree):
  return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


class StandaloneTrainer:
  """Trains one architecture alone, compiled anew for each.

  For the winners of a search, or spaces whose networks are too different in
  size for a population.
  """

  def __init__(
    self,
    space: SearchSpace,
    train: Images,
    test: Images,
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    mesh: jax.sharding.Mesh | None = None,
  ):
    """Keeps the data; arguments are those of `PopulationTrainer`."""
    _check_classes(space, train)
    self._space, self._seed, self._mesh = space, seed, mesh
    self._train, self._test, self._recipe = train, test, recipe

  def __call__(self, tokens: Any, seed: int | None = None) -> float:
    """Accuracy of one architecture.

    Args:
      tokens: Integers `[blocks, 6]`.
      seed: Instead of that of the trainer.

    Returns:
      The accuracy; NaN if the training diverged.
    """
    network = TokensConfig(self._space, self._space.check(tokens))
    trainer = ProxyTrainer(
      network, self._train, self._test, self._recipe, self._mesh
    )
    return trainer(self._seed if seed is None else seed)


class TokensConfig:
  """An architecture in the form that `proxy` and `scaling` know networks."""

  def __init__(self, space: SearchSpace, tokens: Any):
    """Keeps both."""
    self._space, self._tokens = space, tokens
    self.num_classes, self.resolution = space.num_classes, space.resolution

  def build(self) -> SearchNetwork:
    """The network."""
    return SearchNetwork(self._space, tuple(np.ravel(self._tokens).tolist()))


def _check_classes(space: SearchSpace, data: Images) -> None:
  if space.num_classes != data.num_classes:
    raise ValueError(
      f'the space has {space.num_classes} classes, the images have'
      f' {data.num_classes}.'
    )
