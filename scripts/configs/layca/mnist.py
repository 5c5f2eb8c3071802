"""E10: how much the first layer turns, and what its units come to look at.

The four learning rates of the paper's figure.
`mnist.py:5`, `mnist.py:6` and `mnist.py:7` are the slow ones that the paper's
code configures and does not show: rho = 3^-5 for 120 epochs, 3^-6 for 300 and
3^-7 for 1000.

The paper takes 1000 training examples of each class; here it is the first
10,000 of the training set. The curves agree to .003; the test accuracies are
about half a point lower.
"""

from jaxpapers.layca import experiments


def get_config(variant='paper'):
  """The config of one program."""
  config = experiments.base_config('mnist', 'sgd_layca')
  config.train_examples = 10_000
  config.evaluate_every = 10
  # One after the other: on CPUs faster than all at once, since such large
  # batches fill the cores anyway. 0 trains them in one program.
  config.members_at_once = 1
  if variant == 'paper':
    config.learning_rates = (3.0**-2, 3.0**-2.5, 3.0**-3, 3.0**-4)
    config.drops = ((90,), (95,), (95,), ())
  elif variant in ('5', '6', '7'):
    config.learning_rates = (3.0 ** -int(variant),)
    config.drops = ()
    config.epochs = {'5': 120, '6': 300, '7': 1000}[variant]
  else:
    raise ValueError(
      f'variant is {variant!r}; expected mnist.py, mnist.py:5, :6 or :7.'
    )
  config.units = (5, 6, 7, 8, 9)
  return config
