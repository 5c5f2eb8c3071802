r"""Says what is on images, and where: classes and class activation maps.

Examples:
  python scripts/efficientnet_classify.py --model=tf_efficientnet_b0.aa_in1k \
      --weights=model.safetensors --image=dog.jpg --output=/tmp/maps

  # A network of one's own, names of its classes one a line.
  python scripts/efficientnet_classify.py --model=efficientnet-b3 \
      --weights=flowers.safetensors --names=flowers.txt --image='test/*.jpg'

Prints the most probable classes of each image. With --output, writes for each
image a PNG: the image as the network sees it, and the map of each class laid
over it. --names is a text file with a name a line, or JSON: a list of names, or
of pairs of which the last is the name, or such an object by class number.
"""

import glob
import json
import os

import _command_line
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from jaxpapers import data
from jaxpapers.efficientnet import cam, model, preprocess, pretrained
from jaxpapers.efficientnet import config as config_lib

_MODEL = flags.DEFINE_string(
  'model', None, 'Network, such as efficientnet-b0.', required=True
)
_WEIGHTS = flags.DEFINE_string(
  'weights', None, 'Its weights: see efficientnet_convert.', required=True
)
_IMAGE = flags.DEFINE_multi_string(
  'image', None, 'A file, or a pattern such as "*.jpg".', required=True
)
_NAMES = flags.DEFINE_string('names', '', 'Names of the classes.')
_CLASSES = flags.DEFINE_integer(
  'num_classes', None, 'Number of classes; by default that of --names or 1000.'
)
_OUTPUT = flags.DEFINE_string('output', '', 'Folder for the maps.')
_TOP = flags.DEFINE_integer('top', 5, 'Classes to show.', lower_bound=1)
_MAPS = flags.DEFINE_integer('maps', 1, 'Classes to draw.', lower_bound=1)
_RESOLUTION = flags.DEFINE_integer(
  'resolution', None, "Pixels; the network's by default.", lower_bound=1
)
_CROP_PADDING = flags.DEFINE_integer(
  'crop_padding',
  32,
  'Around the central crop; 0 shows all of the shorter side.',
  lower_bound=0,
)
_NORMALIZE = flags.DEFINE_enum(
  'normalize',
  'imagenet',
  ('imagenet', 'advprop', 'lite', 'none'),
  'How the weights want pixels: advprop for the _ap weights.',
)
_RESIZE = flags.DEFINE_enum(
  'resize',
  None,
  ('tf1_bicubic', 'pil_bicubic'),
  'By default as the original, and as torch for its networks.',
)
_JSON = flags.DEFINE_bool('json', False, 'Print a JSON object for each image.')
flags.DEFINE_string(
  'compilation_cache',
  'default',
  'Where JAX keeps compiled programs between runs: a folder, "default" or empty'
  ' for nowhere.',
)


def main() -> int:
  """Classifies each image."""
  _command_line.use_compilation_cache(flags.FLAGS.compilation_cache)
  paths = _paths()
  pictures = _pictures(paths)
  names = _names()
  config = _config(names)
  if names and len(names) != config.num_classes:
    raise _command_line.UsageError(
      f'--names has {len(names)} names for {config.num_classes} classes'
    )
  try:
    variables = pretrained.load_pretrained(
      epath.Path(_WEIGHTS.value).expanduser(), config
    )
  except (OSError, ValueError) as error:
    text = _command_line.one_line(error)
    raise _command_line.UsageError(f'--weights: {text}') from error
  predict = jax.jit(model.EfficientNet(config).apply)
  failed = 0
  for path, picture in zip(paths, pictures, strict=True):
    try:
      image = data.decode_image(path.read_bytes(), path)
      pixels = _prepare(image, config)
    except (OSError, ValueError) as error:
      print(f'{path}: skipped: {_command_line.one_line(error)}')
      failed += 1
      continue
    batch = jnp.asarray(preprocess.normalize(pixels, _NORMALIZE.value))[None]
    scores = np.asarray(jax.nn.softmax(predict(variables, batch))[0])
    best = np.argsort(-scores)[: _TOP.value]
    print(_shown(path, best, scores, names), flush=True)
    if _OUTPUT.value:
      chosen = best[: _MAPS.value]
      maps = cam.class_activation_map(config, variables, batch, chosen[None])
      _draw(picture, pixels, np.asarray(cam.rescale_map(maps))[0])
  return int(failed > 0)


def _config(names):
  classes = _CLASSES.value
  if classes is None:
    classes = len(names) or 1000
  try:
    return config_lib.config_for(
      _MODEL.value,
      num_classes=classes,
      **({'resolution': _RESOLUTION.value} if _RESOLUTION.value else {}),
    )
  except ValueError as error:
    raise _command_line.UsageError(f'--model: {error}') from error


def _paths():
  found = []
  for pattern in _IMAGE.value:
    pattern = os.path.expanduser(pattern)
    matches = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else []
    found += matches or [pattern]
  missing = [path for path in found if not os.path.isfile(path)]
  if missing:
    raise _command_line.UsageError(f'--image: there is no file {missing[0]}')
  return [epath.Path(path) for path in found]


def _pictures(paths) -> list[str]:
  """Names of the pictures, one for each image."""
  found: list[str] = []
  for path in paths:
    name, number = f'{path.stem}_cam.png', 1
    while name in found:  # Images of several folders, or of several types.
      number += 1
      name = f'{path.stem}_{number}_cam.png'
    found.append(name)
  return found


def _names() -> list[str]:
  if not _NAMES.value:
    return []
  try:
    text = epath.Path(_NAMES.value).expanduser().read_text()
    if not text.lstrip().startswith(('[', '{')):
      return [line.strip() for line in text.splitlines() if line.strip()]
    rows = json.loads(text)
    if isinstance(rows, dict):
      rows = [rows[str(number)] for number in range(len(rows))]
    return [row if isinstance(row, str) else str(row[-1]) for row in rows]
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise _command_line.UsageError(f'--names: {error}') from error


def _prepare(image, config) -> np.ndarray:
  method = _RESIZE.value
  if method is None:
    torch = config.padding == 'symmetric'
    method = 'pil_bicubic' if torch else 'tf1_bicubic'
  return preprocess.preprocess_eval(
    image, config.resolution, _CROP_PADDING.value, method
  )


def _shown(path, best, scores, names) -> str:
  rows = [
    {
      'class': int(k),
      'name': names[k] if names else str(k),
      'probability': float(scores[k]),
    }
    for k in best
  ]
  if _JSON.value:
    return json.dumps({'image': str(path), 'top': rows}, ensure_ascii=False)
  lines = [str(path)]
  lines += [f'  {row["probability"]:.4f} {row["name"]}' for row in rows]
  return '\n'.join(lines)


def _draw(name, pixels, maps) -> None:
  """Writes the image and each map over it, side by side."""
  import io

  import PIL.Image

  shown = np.clip(pixels, 0, 255)
  panels = [shown, *(_overlay(shown, m) for m in maps)]
  picture = np.concatenate(panels, axis=1).round().astype(np.uint8)
  content = io.BytesIO()
  PIL.Image.fromarray(picture).save(content, format='png')
  folder = epath.Path(_OUTPUT.value).expanduser()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    data.write_file(folder / name, content.getvalue())
  except OSError as error:
    raise _command_line.UsageError(f'--output: {error}') from error


def _overlay(image, weight):
  """Blue where the class is not seen, over green and yellow to red."""
  stops = np.array([0, 0.25, 0.5, 0.75, 1])
  colours = np.array(
    [[0, 0, 128], [0, 128, 255], [128, 255, 128], [255, 200, 0], [200, 0, 0]]
  )
  heat = np.stack(
    [np.interp(weight, stops, colours[:, c]) for c in range(3)], axis=-1
  )
  return 0.5 * image + 0.5 * heat


if __name__ == '__main__':
  _command_line.run(main)
