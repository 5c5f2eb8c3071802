"""What is fine-tuned on, and how: columns, labels, metrics, recipes.

The recipes are those of the configs that fairseq published; where the paper
says something else, `PAPER_GLUE` has it (Liu et al. 2019, table 10).
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a model is fine-tuned: fairseq's Adam, linear warmup and decay.

  Attributes:
    learning_rate: Peak.
    batch_size: Examples of a step.
    num_updates: Duration; None where `num_epochs` says it.
    num_epochs: Duration in passes, where `num_updates` is None.
    warmup_updates: None where `warmup_ratio` says it.
    warmup_ratio: Part of the updates.
    weight_decay: Of all parameters, biases and norms too.
    decay: Whether the rate falls to 0; False keeps it after the warmup.
  """

  learning_rate: float
  batch_size: int
  num_updates: int | None = None
  num_epochs: int | None = None
  warmup_updates: int | None = None
  warmup_ratio: float = 0.06
  weight_decay: float = 0.1
  decay: bool = True

  def updates(self, num_examples: int) -> int:
    """Number of updates on a training set of this size."""
    if self.num_updates is not None:
      return self.num_updates
    per_epoch = -(-num_examples // self.batch_size)
    return self.num_epochs * per_epoch

  def warmup(self, num_updates: int) -> int:
    """Number of updates of the warmup.

    In another duration than the recipe's it keeps its part of it.
    """
    if self.warmup_updates is None:
      return int(self.warmup_ratio * num_updates)
    if self.num_updates in (None, num_updates):
      return min(self.warmup_updates, num_updates)
    return self.warmup_updates * num_updates // self.num_updates


@dataclasses.dataclass(frozen=True)
class GlueTask:
  """One of GLUE's tasks: files, columns, labels, metrics and recipe.

  Attributes:
    name: GLUE's name of it, and that of its folder.
    text_columns: Split -> columns of the texts, counted from 0; '' is every
      other split.
    label_column: Split -> column of the label; '' is every other split.
    labels: Texts of the labels, in the order of the class numbers; () for a
      regression.
    label_range: Of a regression: lowest and highest score.
    metrics: What GLUE reports, see `metrics.compute`.
    main_metric: By which a checkpoint is chosen.
    splits: Split -> file.
    submission: Split -> file that GLUE's server expects.
    header: Splits whose file begins with the names of the columns.
    recipe: fairseq's.
    num_columns: Rows with fewer columns are no examples; 0: they are errors.
    unlabelled: Label of examples on which the annotators did not agree.
  """

  name: str
  text_columns: Mapping[str, tuple[int, ...]]
  label_column: Mapping[str, int]
  labels: tuple[str, ...]
  metrics: tuple[str, ...]
  main_metric: str
  recipe: Recipe
  label_range: tuple[float, float] = (0.0, 5.0)
  splits: Mapping[str, str] = dataclasses.field(
    default_factory=lambda: {
      'train': 'train.tsv',
      'dev': 'dev.tsv',
      'test': 'test.tsv',
    }
  )
  submission: Mapping[str, str] = dataclasses.field(default_factory=dict)
  header: tuple[str, ...] = ('train', 'dev', 'test')
  num_columns: int = 0
  unlabelled: str | None = None

  @property
  def regression(self) -> bool:
    """Whether a number is predicted instead of a class."""
    return not self.labels

  @property
  def num_outputs(self) -> int:
    """Width of the head."""
    return len(self.labels) or 1

  @property
  def dev_splits(self) -> tuple[str, ...]:
    """Splits with labels to measure on; the first is the main one."""
    return tuple(s for s in self.splits if s.startswith('dev'))

  @property
  def test_splits(self) -> tuple[str, ...]:
    """Splits without labels, for the server."""
    return tuple(s for s in self.splits if s in self.submission)


def _recipe(learning_rate, batch_size, num_updates, warmup_updates) -> Recipe:
  return Recipe(
    learning_rate,
    batch_size,
    num_updates=num_updates,
    warmup_updates=warmup_updates,
  )


_PAIR = {'': (1, 2)}
_ENTAILMENT = ('entailment', 'not_entailment')
_BINARY = ('0', '1')

GLUE_TASKS: Mapping[str, GlueTask] = MappingProxyType(
  {
    task.name: task
    for task in (
      GlueTask(
        'CoLA',
        text_columns={'': (3,), 'test': (1,)},
        label_column={'': 1},
        labels=_BINARY,
        metrics=('matthews', 'accuracy'),
        main_metric='matthews',
        recipe=_recipe(1e-5, 16, 5336, 320),
        submission={'test': 'CoLA.tsv'},
        header=('test',),
      ),
      GlueTask(
        'SST-2',
        text_columns={'': (0,), 'test': (1,)},
        label_column={'': 1},
        labels=_BINARY,
        metrics=('accuracy',),
        main_metric='accuracy',
        recipe=_recipe(1e-5, 32, 20935, 1256),
        submission={'test': 'SST-2.tsv'},
      ),
      GlueTask(
        'MRPC',
        text_columns={'': (3, 4)},
        label_column={'': 0},
        labels=_BINARY,
        metrics=('accuracy', 'f1', 'accuracy_and_f1'),
        main_metric='accuracy',
        recipe=_recipe(1e-5, 16, 2296, 137),
        submission={'test': 'MRPC.tsv'},
      ),
      GlueTask(
        'STS-B',
        text_columns={'': (7, 8)},
        label_column={'': 9},
        labels=(),
        metrics=('pearson', 'spearman', 'pearson_and_spearman'),
        main_metric='pearson_and_spearman',
        recipe=_recipe(2e-5, 16, 3598, 214),
        submission={'test': 'STS-B.tsv'},
      ),
      GlueTask(
        'QQP',
        text_columns={'': (3, 4), 'test': (1, 2)},
        label_column={'': 5},
        labels=_BINARY,
        metrics=('accuracy', 'f1', 'accuracy_and_f1'),
        main_metric='accuracy',
        # A quarter of the updates is warmup in fairseq's config, 6 % elsewhere.
        recipe=_recipe(1e-5, 32, 113272, 28318),
        submission={'test': 'QQP.tsv'},
        num_columns=6,
      ),
      GlueTask(
        'MNLI',
        text_columns={'': (8, 9)},
        label_column={'': 15, 'train': 11},
        # The order of the model that fairseq released, roberta.large.mnli.
        labels=('contradiction', 'neutral', 'entailment'),
        metrics=('accuracy',),
        main_metric='accuracy',
        recipe=_recipe(1e-5, 32, 123873, 7432),
        splits={
          'train': 'train.tsv',
          'dev_matched': 'dev_matched.tsv',
          'dev_mismatched': 'dev_mismatched.tsv',
          'test_matched': 'test_matched.tsv',
          'test_mismatched': 'test_mismatched.tsv',
        },
        submission={
          'test_matched': 'MNLI-m.tsv',
          'test_mismatched': 'MNLI-mm.tsv',
        },
        header=(
          'train',
          'dev_matched',
          'dev_mismatched',
          'test_matched',
          'test_mismatched',
        ),
        unlabelled='-',
      ),
      GlueTask(
        'QNLI',
        text_columns=_PAIR,
        label_column={'': 3},
        labels=_ENTAILMENT,
        metrics=('accuracy',),
        main_metric='accuracy',
        recipe=_recipe(1e-5, 32, 33112, 1986),
        submission={'test': 'QNLI.tsv'},
      ),
      GlueTask(
        'RTE',
        text_columns=_PAIR,
        label_column={'': 3},
        labels=_ENTAILMENT,
        metrics=('accuracy',),
        main_metric='accuracy',
        recipe=_recipe(2e-5, 16, 2036, 122),
        submission={'test': 'RTE.tsv'},
      ),
      GlueTask(
        'WNLI',
        text_columns=_PAIR,
        label_column={'': 3},
        labels=_BINARY,
        metrics=('accuracy',),
        main_metric='accuracy',
        # fairseq has none: the paper solves WNLI as WSC. This is table 10's.
        recipe=Recipe(1e-5, 16, num_epochs=10),
        submission={'test': 'WNLI.tsv'},
      ),
    )
  }
)

# Table 10: the paper searched over these, and reports the median of five seeds.
PAPER_GLUE = tuple(
  Recipe(rate, size, num_epochs=10)
  for rate in (1e-5, 2e-5, 3e-5)
  for size in (16, 32)
)

# Table 10; span extraction, v1.1 and v2.0.
SQUAD_RECIPE = Recipe(1.5e-5, 48, num_epochs=2, weight_decay=0.01)

CHOICE_RECIPES: Mapping[str, Recipe] = MappingProxyType(
  {
    # Table 10, and what fairseq's README says instead.
    'race': Recipe(1e-5, 16, num_epochs=4),
    'race_fairseq': Recipe(
      1e-5,
      16,
      num_epochs=5,
      warmup_updates=0,
      weight_decay=0.01,
      decay=False,
    ),
    'csqa': Recipe(
      1e-5, 16, num_updates=3000, warmup_updates=150, weight_decay=0.01
    ),
    # 4 GPUs of 16 sentences each.
    'wsc': Recipe(
      2e-5, 64, num_updates=2000, warmup_updates=250, weight_decay=0.01
    ),
    'winogrande': Recipe(
      1e-5, 32, num_updates=23750, warmup_updates=2375, weight_decay=0.01
    ),
  }
)


def glue_task(name: str) -> GlueTask:
  """The task of a name, however it is spelled: 'SST-2', 'sst2', 'stsb'.

  Args:
    name: Name of a task.

  Returns:
    Its entry of `GLUE_TASKS`.

  Raises:
    ValueError: If there is none.

  Example:
    >>> glue_task('stsb').name
    'STS-B'
  """
  key = name.lower().replace('-', '').replace('_', '')
  for task in GLUE_TASKS.values():
    if task.name.lower().replace('-', '') == key:
      return task
  raise ValueError(
    f'task is {name!r}; expected one of {", ".join(GLUE_TASKS)}.'
  )
