"""Which published weights load, and how they want their images."""

import fnmatch
from typing import Any, NamedTuple

from jaxpapers.efficientnet.config import (
  COEFFICIENTS,
  ModelConfig,
  config_for,
)


class Entry(NamedTuple):
  """A published set of weights.

  Attributes:
    name: What `config_for` takes.
    library: Whose names the file has, as in `load_pretrained`.
    file: Name of the file as it is published; '*' stands for a hash.
    resolution: Pixels at which it is evaluated.
    crop: Side of the central crop over the shorter side of the image.
    normalize: As in `preprocess.normalize`: 'imagenet', or 'advprop' for -1 to
      1.
    resize: As in `preprocess_eval`, what its authors evaluate with.
    num_classes: Of its classifier.
  """

  name: str
  library: str
  file: str
  resolution: int
  crop: float
  normalize: str = 'imagenet'
  resize: str = 'pil_bicubic'
  num_classes: int = 1000

  def config(self, **overrides: Any) -> ModelConfig:
    """The network's config, for this resolution and number of classes."""
    fields = {'resolution': self.resolution, 'num_classes': self.num_classes}
    return config_for(self.name, **fields | overrides)


# Of the original evaluation: size / (size + 32).
_CROPS = {
  'b0': 0.875,
  'b1': 0.882,
  'b2': 0.890,
  'b3': 0.904,
  'b4': 0.922,
  'b5': 0.934,
  'b6': 0.942,
  'b7': 0.949,
  'b8': 0.954,
}
# timm's tags of weights from TensorFlow -> for which networks.
_TAGS = {
  'in1k': 'b0 b1 b2 b3 b4 b5',
  'aa_in1k': 'b0 b1 b2 b3 b4 b5 b6 b7',
  'ra_in1k': 'b5 b7 b8',
  'ap_in1k': 'b0 b1 b2 b3 b4 b5 b6 b7 b8',
  'ns_jft_in1k': 'b0 b1 b2 b3 b4 b5 b6 b7',
}
# Trained in torch: name, resolution and crop of the test, normalisation.
_TIMM = (
  ('efficientnet_b0.ra_in1k', 224, 0.875, 'imagenet'),
  ('efficientnet_b0.ra4_e3600_r224_in1k', 256, 1.0, 'advprop'),
  ('efficientnet_b1.ft_in1k', 256, 1.0, 'imagenet'),
  ('efficientnet_b1.ra4_e3600_r240_in1k', 288, 1.0, 'advprop'),
  ('efficientnet_b2.ra_in1k', 288, 1.0, 'imagenet'),
  ('efficientnet_b3.ra2_in1k', 320, 1.0, 'imagenet'),
  ('efficientnet_b4.ra2_in1k', 384, 1.0, 'imagenet'),
  ('efficientnet_es.ra_in1k', 224, 0.875, 'imagenet'),
  ('efficientnet_em.ra2_in1k', 240, 0.882, 'imagenet'),
  ('efficientnet_el.ra_in1k', 300, 0.904, 'imagenet'),
  ('efficientnet_lite0.ra_in1k', 224, 0.875, 'imagenet'),
  ('tf_efficientnet_es.in1k', 224, 0.875, 'advprop'),
  ('tf_efficientnet_em.in1k', 240, 0.882, 'advprop'),
  ('tf_efficientnet_el.in1k', 300, 0.904, 'advprop'),
  ('tf_efficientnet_lite0.in1k', 224, 0.875, 'advprop'),
  ('tf_efficientnet_lite1.in1k', 240, 0.882, 'advprop'),
  ('tf_efficientnet_lite2.in1k', 260, 0.890, 'advprop'),
  ('tf_efficientnet_lite3.in1k', 300, 0.904, 'advprop'),
  ('tf_efficientnet_lite4.in1k', 380, 0.920, 'advprop'),
  ('tf_efficientnet_l2.ns_jft_in1k', 800, 0.96, 'imagenet'),
  ('tf_efficientnet_l2.ns_jft_in1k_475', 475, 0.936, 'imagenet'),
)
# Network, file, crop, the side to which images are resized.
_TORCHVISION = (
  ('b0', 'efficientnet_b0_rwightman-*.pth', 224, 256),
  ('b1', 'efficientnet_b1_rwightman-*.pth', 240, 256),
  ('b1', 'efficientnet_b1-*.pth', 240, 255),
  ('b2', 'efficientnet_b2_rwightman-*.pth', 288, 288),
  ('b3', 'efficientnet_b3_rwightman-*.pth', 300, 320),
  ('b4', 'efficientnet_b4_rwightman-*.pth', 380, 384),
  ('b5', 'efficientnet_b5_lukemelas-*.pth', 456, 456),
  ('b6', 'efficientnet_b6_lukemelas-*.pth', 528, 528),
  ('b7', 'efficientnet_b7_lukemelas-*.pth', 600, 600),
)


def _entries():
  for tag, variants in _TAGS.items():
    for variant in variants.split():
      yield Entry(
        f'tf_efficientnet_{variant}.{tag}',
        'timm',
        'model.safetensors',
        COEFFICIENTS[variant][2],
        _CROPS[variant],
        'advprop' if tag == 'ap_in1k' else 'imagenet',
      )
  for name, resolution, crop, normalize in _TIMM:
    yield Entry(name, 'timm', 'model.safetensors', resolution, crop, normalize)
  for variant, file, resolution, side in _TORCHVISION:
    name = f'torchvision_efficientnet_{variant}'
    yield Entry(name, 'torchvision', file, resolution, resolution / side)
  for variant, crop in _CROPS.items():
    name, resolution = f'efficientnet-{variant}', COEFFICIENTS[variant][2]
    plain = (name, 'lukemelas', f'{name}-*.pth', resolution, crop)
    if variant != 'b8':
      yield Entry(*plain)
    adversarial = f'adv-{name}-*.pth'
    yield Entry(name, 'lukemelas', adversarial, resolution, crop, 'advprop')
  for variant, crop in _CROPS.items():
    name, resolution = f'efficientnet-{variant}', COEFFICIENTS[variant][2]
    if variant != 'b8':
      file = f'{name.replace("-", "")}.h5'
      yield Entry(name, 'keras', file, resolution, crop)
      yield Entry(
        name, 'tf', 'model.ckpt.index', resolution, crop, resize='tf1_bicubic'
      )


ENTRIES = tuple(_entries())


def find(pattern: str = '*', library: str | None = None) -> list[Entry]:
  """Entries of the table.

  Args:
    pattern: Of their names, such as '*b0*'.
    library: Only of this library.

  Returns:
    What fits, in the order of the table.

  Example:
    >>> [entry.resolution for entry in find('tf_efficientnet_b3.*')]
    [300, 300, 300, 300]
  """
  return [
    entry
    for entry in ENTRIES
    if fnmatch.fnmatchcase(entry.name, pattern)
    and library in (None, entry.library)
  ]
