r"""Lets the coupling of a network fall until its activity collapses.

Examples:
  # The network of an analysis, with the parameters of the documentation:
  python scripts/kcore_collapse.py --network=kcore_output/network.npz

  # A steep sigmoid, where theory (pruning of k-cores) is exact, and a soft one:
  python scripts/kcore_collapse.py --network=edges.txt --slope=inf
  python scripts/kcore_collapse.py --network=edges.txt --slope=20

The model: dx_i/dt = I - x_i / R + J/2 sum_j A_ij (1 + tanh(n (x_j - alpha))).
A node is active where x_i >= alpha. As J falls, nodes fall silent core by core;
for a steep sigmoid the last one, the k_max-core, at J_c = (alpha/R - I)/k_max.
Three sweeps are made: J falls from a fully active network, rises again from the
last state before the collapse, and rises after it.

Into --save_dir go collapse.json and collapse.png.
"""

import _command_line
import _kcore_data
from absl import flags
from etils import epath

_NETWORK = flags.DEFINE_string(
  'network',
  None,
  'network.npz of kcore_analyze or its folder, an .npy adjacency matrix, or a'
  ' text file with two columns of node numbers from 0.',
)
_SAVE_DIR = flags.DEFINE_string(
  'save_dir', 'kcore_collapse', 'Output folder, local or gs://.'
)
_BACKGROUND = flags.DEFINE_float('background', 0.1, 'I, background activity.')
_RESISTANCE = flags.DEFINE_float(
  'resistance', 1.0, 'R, inverse of the rate of inactivation.'
)
_SLOPE = flags.DEFINE_float('slope', 60.0, 'n, slope of the sigmoid; inf too.')
_ALPHA = flags.DEFINE_float('alpha', 1.0, 'Threshold of activation.')
_COUPLINGS = flags.DEFINE_integer(
  'num_couplings', 60, 'Most couplings in a sweep.', lower_bound=2
)


def main() -> int:
  """Makes the sweeps; returns the exit code."""
  network = _kcore_data.read_network(_NETWORK.value)
  import numpy as np

  from jaxpapers.kcore import figures, pipeline, report
  from jaxpapers.kcore.coreness import coreness
  from jaxpapers.kcore.edges import Edges

  edges, nodes = network['edges'], network['num_nodes']
  values = np.asarray(coreness(Edges(edges, nodes)))
  options = pipeline.Options(
    max_couplings=_COUPLINGS.value,
    I=_BACKGROUND.value,
    R=_RESISTANCE.value,
    n=_SLOPE.value,
    alpha=_ALPHA.value,
  )
  try:
    sweep = pipeline.sweep_couplings(edges, values, options)
  except ValueError as error:
    raise _command_line.UsageError(str(error)) from error
  folder = epath.Path(_SAVE_DIR.value)
  numbers = {
    'nodes': nodes,
    'links': len(edges),
    'k_max': int(values.max()),
    **{name: getattr(options, name) for name in ('I', 'R', 'n', 'alpha')},
    **sweep._asdict(),
  }
  if np.isinf(options.n):
    numbers['n'] = 'inf'
  report.put(folder / 'collapse.json', report.to_json(numbers))
  figure = figures.collapse(sweep, nodes)
  report.put(folder / 'collapse.png', figures.to_png(figure))
  print(
    '     J     K_J  falling  k-core  rising from last core  after collapse'
  )
  for row in zip(
    sweep.J,
    sweep.K,
    sweep.down,
    sweep.core_sizes,
    sweep.turned,
    sweep.up,
    strict=True,
  ):
    print('{:8.5f} {:6.1f} {:8d} {:7d} {:22d} {:15d}'.format(*row))
  equal = int(np.sum(sweep.down == sweep.core_sizes))
  print(
    f'J_c = {sweep.critical:.6g} for a steep sigmoid (k_max {values.max()});'
    f' active nodes equal the k-core at {equal} of {len(sweep.J)} couplings'
  )
  return 0


if __name__ == '__main__':
  _command_line.run(main)
