r"""Images per second of EfficientNet's preprocessing on one core; JSON out.

  python benchmarks/efficientnet_pipeline.py --size=224

Synthetic JPEG files of 500 x 375 pixels with the noise of photographs, in
memory: decoding, the random crop, TensorFlow 1's bicubic interpolation, the
flip, AutoAugment or RandAugment. Beside each the same with Pillow's
interpolation; torchvision's AutoAugment, where it is installed.
"""

import io
import json
import os
import platform
import sys

import _side_by_side
import numpy as np
from absl import app, flags

from jaxpapers import data
from jaxpapers.efficientnet import preprocess

_SIZE = flags.DEFINE_integer('size', 224, 'Pixels of the network.')
_IMAGES = flags.DEFINE_integer('images', 16, 'Images in a round.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Rounds of each.')


def _photographs(count):
  """JPEG files of smooth colours and a little noise."""
  from PIL import Image

  rng = np.random.default_rng(0)
  files = []
  for _ in range(count):
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC))
    noisy = smooth + rng.normal(0, 6, smooth.shape)
    stream = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(
      stream, 'JPEG', quality=90
    )
    files.append(stream.getvalue())
  return files


def _calls(files, size):
  def train(augment, method='tf1_bicubic'):
    def call():
      for index, content in enumerate(files):
        preprocess.preprocess_train(
          np.random.default_rng(index),
          data.decode_image(content),
          size,
          augment,
          resize=method,
        )

    return call

  def evaluate():
    for content in files:
      preprocess.preprocess_eval(data.decode_image(content), size)

  def decode():
    for content in files:
      data.decode_image(content)

  calls = {
    'decode': decode,
    'crop_flip': train(None),
    'crop_flip_pil': train(None, 'pil_bicubic'),
    'autoaugment': train('autoaugment'),
    'randaugment': train('randaugment'),
    'evaluation': evaluate,
  }
  try:
    calls['torchvision_autoaugment'] = _torchvision(files, size)
  except (ImportError, RuntimeError) as error:  # Not with this torch.
    print(f'without torchvision: {error}', file=sys.stderr)
  return calls


def _torchvision(files, size):
  from PIL import Image
  from torchvision import transforms

  transform = transforms.Compose(
    [
      transforms.RandomResizedCrop(
        size, interpolation=transforms.InterpolationMode.BICUBIC
      ),
      transforms.RandomHorizontalFlip(),
      transforms.AutoAugment(),
    ]
  )

  def call():
    for content in files:
      np.asarray(transform(Image.open(io.BytesIO(content)).convert('RGB')))

  return call


def main(argv) -> None:
  """Measures, and prints."""
  del argv
  files = _photographs(_IMAGES.value)
  calls = _calls(files, _SIZE.value)
  wall, cpu, _ = _side_by_side.alternate(calls, _REPEATS.value)
  rates = {
    name: float(f'{1e3 * len(files) / min(cpu[name]):.4g}') for name in calls
  }
  result = {
    'size': _SIZE.value,
    'jpeg_bytes': sum(map(len, files)) // len(files),
    'images_per_cpu_second': rates,
    'cores': os.cpu_count(),
    'machine': platform.machine(),
  }
  result |= _side_by_side.summary(
    wall, cpu, 'autoaugment', 'torchvision_autoaugment'
  )
  print(json.dumps(result, indent=2))


if __name__ == '__main__':
  app.run(main)
