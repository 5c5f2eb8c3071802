"""Readers of on-disk formats, and batches of them."""

from jaxpapers.data.arrays import (
  ArraySource,
  Subset,
  pixel_statistics,
  split_indices,
  standardize,
)
from jaxpapers.data.cifar import (
  cifar_class_names,
  load_cifar10,
  load_cifar100,
)
from jaxpapers.data.files import CorruptFileError, write_file
from jaxpapers.data.idx import read_idx, write_idx
from jaxpapers.data.imagenet import (
  open_imagenet,
  open_tiny_imagenet,
  tiny_imagenet_words,
)
from jaxpapers.data.images import (
  ImageSource,
  decode_image,
  find_corrupt,
  open_image_folder,
)
from jaxpapers.data.mnist import load_mnist
from jaxpapers.data.pipeline import batches
from jaxpapers.data.randomness import BatchRandom
from jaxpapers.data.tfrecord import (
  TFRecordSource,
  encode_example,
  parse_example,
  write_tfrecord,
)

__all__ = [
  'ArraySource',
  'BatchRandom',
  'CorruptFileError',
  'ImageSource',
  'Subset',
  'TFRecordSource',
  'batches',
  'cifar_class_names',
  'decode_image',
  'encode_example',
  'find_corrupt',
  'load_cifar10',
  'load_cifar100',
  'load_mnist',
  'open_image_folder',
  'open_imagenet',
  'open_tiny_imagenet',
  'parse_example',
  'pixel_statistics',
  'read_idx',
  'split_indices',
  'standardize',
  'tiny_imagenet_words',
  'write_file',
  'write_idx',
  'write_tfrecord',
]
