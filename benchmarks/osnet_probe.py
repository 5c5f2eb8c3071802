"""The scale probe of OSNet with our block and with torch's, many seeds.

Which of the lags 2, 4, 6, 8 of a texture one block of four streams can tell,
see `jaxpapers.osnet.scale_probe`. torch's block has the initialisation of its
layers, Adam, the same rates and textures of its own generator. All is float32;
on a GPU without TF32.

  python benchmarks/osnet_probe.py --seeds=10 --steps=500,1000
  python benchmarks/osnet_probe.py --of=torch --seeds=2 --steps=500

Prints a line of JSON for each run, and at the end how many seeds reach 85
percent at lag 6, with the median.
"""

import json
import statistics
import time

import _side_by_side
from absl import app, flags

_OF = flags.DEFINE_list('of', ['ours', 'torch'], 'Whose block: ours, torch.')
_SEEDS = flags.DEFINE_integer('seeds', 10, 'How many.', lower_bound=1)
_FIRST = flags.DEFINE_integer('first', 0, 'The first seed.', lower_bound=0)
_STEPS = flags.DEFINE_list('steps', ['500', '1000'], 'Updates.')
_TEST_IMAGES = flags.DEFINE_integer('test_images', 2000, 'Images of the test.')
_BATCH, _RATE, _SIZE, _STEM, _FEATURES = 64, 4e-3, 24, 16, 64


def _ours(seed, steps):
  import jax

  from jaxpapers.osnet import scale_probe
  from jaxpapers.osnet.config import OSNetConfig

  with jax.default_matmul_precision('highest'):
    result = scale_probe.run_probe(
      OSNetConfig(),
      (seed,),
      steps=steps,
      batch=_BATCH,
      learning_rate=_RATE,
      size=_SIZE,
      test_images=_TEST_IMAGES.value,
    )
  return [float(x) for x in result.accuracy[0]]


def _torch(seed, steps):
  import _osnet_torch
  import torch
  from torch import nn

  from jaxpapers.osnet import scale_probe
  from jaxpapers.osnet.config import OSNetConfig

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  torch.backends.cudnn.allow_tf32 = False
  torch.backends.cuda.matmul.allow_tf32 = False
  torch.manual_seed(seed)
  _, block = _osnet_torch.modules(OSNetConfig())
  net = nn.Sequential(
    nn.Conv2d(1, _STEM, 1),
    block(_STEM, _FEATURES),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(_FEATURES, len(scale_probe.LAGS)),
  ).to(device)

  def textures(number):
    far = max(scale_probe.LAGS)
    signs = torch.randint(0, 2, (number, 4), device=device).float()
    image = torch.zeros(number, _SIZE, _SIZE, device=device)
    for t, lag in enumerate(scale_probe.LAGS):
      noise = torch.randn(number, _SIZE, _SIZE + far, device=device)
      moved = noise[:, :, far - lag : far - lag + _SIZE]
      image += noise[:, :, far:] + (2 * signs[:, t] - 1)[:, None, None] * moved
    return (image / 8**0.5)[:, None], signs

  optimizer = torch.optim.Adam(net.parameters(), lr=_RATE)
  schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
  for _ in range(steps):
    images, signs = textures(_BATCH)
    loss = nn.functional.binary_cross_entropy_with_logits(net(images), signs)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
  net.eval()
  right = []
  with torch.no_grad():
    for _ in range(-(-_TEST_IMAGES.value // _BATCH)):
      images, signs = textures(_BATCH)
      right.append(((net(images) > 0) == (signs > 0.5)).float().mean(0))
  return torch.stack(right).mean(0).tolist()


def main(argv):
  """Runs and prints."""
  del argv
  runs = {'ours': _ours, 'torch': _torch}
  _side_by_side.choose('of', _OF.value, list(runs))
  _side_by_side.use_threads()
  if not _STEPS.value or not all(x.isdecimal() for x in _STEPS.value):
    raise app.UsageError(f'--steps: {_STEPS.value}; expected numbers')
  found = {}
  for steps in map(int, _STEPS.value):
    for seed in range(_FIRST.value, _FIRST.value + _SEEDS.value):
      for name in _OF.value:
        start = time.perf_counter()
        accuracy = runs[name](seed, steps)
        found.setdefault((name, steps), []).append(accuracy[2])
        row = {
          'of': name,
          'steps': steps,
          'seed': seed,
          'accuracy': [round(x, 4) for x in accuracy],
          'seconds': round(time.perf_counter() - start, 1),
        }
        print(json.dumps(row), flush=True)
  for (name, steps), lag6 in found.items():
    row = {
      'of': name,
      'steps': steps,
      'seeds': len(lag6),
      'lag6_median': round(statistics.median(lag6), 4),
      'lag6_least': round(min(lag6), 4),
      'lag6_most': round(max(lag6), 4),
      'seeds_at_85_percent': sum(x >= 0.85 for x in lag6),
    }
    print(json.dumps(row), flush=True)


if __name__ == '__main__':
  app.run(main)
