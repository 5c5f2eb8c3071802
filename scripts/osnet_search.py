r"""Finds a person in a folder of images.

Examples:
  python scripts/osnet_search.py --weights=osnet_ain_x1_0.pth \
      --model=osnet_ain_x1_0 --image=person.jpg --gallery=cameras

  # Several queries, pictures of what was found, only what is near enough:
  python scripts/osnet_search.py --weights=runs/ain --image='queries/*.jpg' \
      --gallery=cameras --threshold=0.25 --output=found

Prints the nearest images of each query with their distances. --output gets a
picture of each query and what was found, and found.json. Features of the
gallery are computed once for the same weights and files: see --cache. A
threshold for your cameras is in the report of osnet_eval.
"""

import glob
import json
import os

import _command_line
import _osnet_model
import _results
import numpy as np
from absl import flags

from jaxpapers import data
from jaxpapers.data import files, images
from jaxpapers.osnet import features, retrieval, visualize

_osnet_model.define_flags()
_IMAGE = flags.DEFINE_multi_string(
  'image', None, 'A file, or a pattern such as "*.jpg".', required=True
)
_GALLERY = flags.DEFINE_string(
  'gallery', None, 'Folder of images, searched with subfolders.', required=True
)
_TOP = flags.DEFINE_integer('top', 10, 'Images to show.', lower_bound=1)
_THRESHOLD = flags.DEFINE_float(
  'threshold', None, 'Show only images up to this distance.'
)
_NORMALIZE = flags.DEFINE_bool('normalize', False, 'Features of the norm 1.')
_OUTPUT = flags.DEFINE_string('output', '', 'Folder for pictures.')
_JSON = flags.DEFINE_bool('json', False, 'Print a JSON object for each query.')


def main() -> None:
  """Looks for each query."""
  _command_line.use_compilation_cache(flags.FLAGS.compilation_cache)
  queries, gallery = _queries(), _gallery()
  model = _osnet_model.load()
  lines = (lambda text: None) if _JSON.value else print
  qf, lost = _osnet_model.embed(
    model, queries, 'queries', normalize=_NORMALIZE.value, say=lines
  )
  gf, missing = _osnet_model.embed(
    model, gallery, 'gallery', normalize=_NORMALIZE.value, say=lines
  )
  kept = np.setdiff1d(np.arange(len(gf)), list(missing))
  chosen = np.setdiff1d(np.arange(len(qf)), list(lost))
  dist, index = retrieval.nearest(
    qf[chosen], gf[kept], min(_TOP.value, len(kept)), metric=model.metric
  )
  out = []
  for query, near, place in zip(chosen, dist, kept[index], strict=True):
    found = [
      {'rank': rank, 'distance': float(d), 'image': gallery[i]}
      for rank, (d, i) in enumerate(zip(near, place, strict=True), 1)
      if _THRESHOLD.value is None or d <= _THRESHOLD.value
    ]
    out.append({'query': queries[query], 'found': found})
    if _JSON.value:
      print(json.dumps(out[-1], ensure_ascii=False))
    elif found:
      print(f'\n{queries[query]}')
      _results.show(found)
    else:
      least = f'{near[0]:.4g}'
      print(f'\n{queries[query]}: nothing; the nearest is at {least}')
  if _OUTPUT.value:
    _write(model, out)


def _queries():
  found = []
  for pattern in _IMAGE.value:
    pattern = os.path.expanduser(pattern)
    matches = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else []
    found += matches or [pattern]
  missing = [path for path in found if not os.path.isfile(path)]
  if missing:
    raise _command_line.UsageError(f'--image: there is no file {missing[0]}')
  return found


def _gallery():
  folder = files.as_path(_GALLERY.value)
  if not folder.is_dir():
    raise _command_line.UsageError(f'--gallery: there is no folder {folder}')
  names = images.list_images(folder)
  if not names:
    raise _command_line.UsageError(f'--gallery: no image is in {folder}')
  return [str(folder / name) for name in names]


def _write(model, out):
  """A picture for each query, and all of it as JSON."""
  folder = files.as_path(_OUTPUT.value)
  names: set[str] = set()
  for one in out:
    stem = os.path.splitext(os.path.basename(one['query']))[0]
    name, number = stem, 1
    while name in names:
      number += 1
      name = f'{stem}_{number}'
    names.add(name)
    pixels = [
      features.load_pixels(path, model.hw)
      for path in (one['query'], *(row['image'] for row in one['found']))
    ]
    picture = visualize.ranked_list(
      pixels[0], pixels[1:], [None] * (len(pixels) - 1)
    )
    data.write_file(folder / f'{name}.png', visualize.encode_image(picture))
    one['picture'] = f'{name}.png'
  _results.write_json(folder / 'found.json', out)
  if not _JSON.value:
    print(f'\nWrote {len(out)} pictures and found.json to {folder}')


if __name__ == '__main__':
  _command_line.run(main)
