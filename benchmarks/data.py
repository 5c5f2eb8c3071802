"""Examples per second of the input pipeline, by way of reading; JSON out.

  python benchmarks/data.py

Synthetic data of the shapes of MNIST, CIFAR-10, Tiny-ImageNet and ImageNet, in
memory and as JPEG files in a temporary folder. No peers.
"""

import json
import os
import pathlib
import platform
import tempfile
import time

import numpy as np

from jaxpapers import data


class _OneByOne:
  """Hides `take`: each example is fetched and stacked by itself."""

  def __init__(self, source):
    self._source = source

  def __len__(self):
    return len(self._source)

  def __getitem__(self, index):
    return self._source[index]


def _flip(example, rng):
  image = example['image']
  return {**example, 'image': image[:, ::-1] if rng.random() < 0.5 else image}


def _flip_batch(batch, rng):
  chosen = rng.uniform() < 0.5
  image = batch['image'].copy()
  image[chosen] = image[chosen][:, :, ::-1]
  return {**batch, 'image': image}


def _crop_224(example, rng):
  """Random crop of a decoded image to 224 x 224, by Pillow."""
  from PIL import Image

  image = Image.fromarray(example['image'])
  left, top = (int(rng.integers(side // 4)) for side in image.size)
  box = (left, top, left + image.width * 3 // 4, top + image.height * 3 // 4)
  image = image.resize((224, 224), Image.Resampling.BILINEAR, box)
  return {**example, 'image': np.asarray(image)}


def _rate(source, batch_size, seconds=4.0, **options):
  """Examples a second, and a second of CPU time; best of two."""
  rates = []
  for _ in range(2):
    steps = data.batches(source, batch_size, seed=0, **options)
    for _ in range(2):
      next(steps)  # imports, threads, the order of the epoch
    wall, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds / 2:
      next(steps)
      count += batch_size
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    steps.close()
    rates.append((round(count / wall), round(count / cpu)))
  best = max(rates)
  # What worker processes use is not in this process's time.
  cpu = None if options.get('num_workers') else best[1]
  return {'per_second': best[0], 'per_cpu_second': cpu}


def _write_jpegs(folder, count, size):
  """Smooth random pictures: JPEGs of about the size of photographs."""
  from PIL import Image

  rng = np.random.default_rng(0)
  for k in range(count):
    coarse = rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
    path = folder / f'class{k % 2}' / f'{k}.JPEG'
    path.parent.mkdir(exist_ok=True)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    image.save(path, quality=90)


def main():
  """Measures and prints."""
  rng = np.random.default_rng(0)
  mnist = {
    'image': rng.normal(size=(10000, 784)).astype(np.float32),
    'label': np.zeros(10000, np.int32),
  }
  cifar = {
    'image': rng.integers(0, 256, (50000, 32, 32, 3), np.uint8),
    'label': np.zeros(50000, np.int32),
  }
  results = {
    'mnist_float32_2048': _rate(mnist, 2048, remainder='pad'),
    'mnist_float32_2048_one_by_one': _rate(
      _OneByOne(data.ArraySource(mnist)), 2048, remainder='pad'
    ),
    'cifar_uint8_128': _rate(cifar, 128),
    'cifar_uint8_128_one_by_one': _rate(
      _OneByOne(data.ArraySource(cifar)), 128
    ),
    'cifar_uint8_128_flip_batch': _rate(
      cifar, 128, batch_transform=_flip_batch
    ),
    'cifar_uint8_128_flip_each': _rate(cifar, 128, transform=_flip),
  }
  with tempfile.TemporaryDirectory() as root:
    for name, count, size, transform in (
      ('tiny_imagenet_jpeg_64x64', 2000, (64, 64), _flip),
      ('imagenet_jpeg_500x375_to_224', 300, (500, 375), _crop_224),
    ):
      folder = pathlib.Path(root, name)
      folder.mkdir()
      _write_jpegs(folder, count, size)
      source = data.open_image_folder(folder)
      for way in (
        dict(num_threads=0),
        dict(num_threads=2),
        dict(num_workers=2, num_threads=0),
      ):
        label = '_'.join(f'{key[4:]}{value}' for key, value in way.items())
        results[f'{name}_{label}'] = _rate(
          source, 64, transform=transform, **way
        )
  print(
    json.dumps(
      {
        'machine': f'{platform.machine()}, {os.cpu_count()} processors',
        'load': os.getloadavg()[0],
        'examples': results,
      },
      indent=2,
    )
  )


if __name__ == '__main__':
  main()
