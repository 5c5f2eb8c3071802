"""Tests of pictures of designs."""

import io
import os
import pathlib
import tempfile
import unittest.mock

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.structopt import (
  boundary_marks,
  domain,
  families,
  figures,
  problems,
  render,
)


def _read(path):
  import PIL.Image

  with PIL.Image.open(path) as image:
    return np.asarray(image)


def _folder(test):
  # Not absltest's create_tempdir, which needs its own main function.
  folder = tempfile.TemporaryDirectory()
  test.addCleanup(folder.cleanup)
  return pathlib.Path(folder.name)


def _ramp(problem):
  """A field without symmetry."""
  size = problem.nelx * problem.nely
  return np.linspace(0, 1, size).reshape(problem.nely, problem.nelx)


class ImageTest(parameterized.TestCase):
  def test_grey_levels(self):
    image = render.to_image(np.array([[0.0, 1.0, 0.5], [-1.0, 2.0, 0.25]]))
    self.assertEqual(image.dtype, np.uint8)
    self.assertEqual(image.tolist(), [[255, 0, 128], [255, 0, 191]])

  @parameterized.parameters(
    ('mbb_beam_96x32_0.5', 'left'),
    ('multistory_building_32x64_0.5', 'right'),
    ('roof_64x64_0.2', 'both'),
    ('dam_64x64_0.2', 'none'),
    ('cantilever_beam_full_96x32_0.4', 'none'),
  )
  def test_mirror(self, name, walls):
    problem = problems.get_problem(name)
    x = _ramp(problem)
    plain, image = render.to_image(x), render.to_image(x, problem)
    flipped = plain[:, ::-1]
    expected = {
      'left': [flipped, plain],
      'right': [plain, flipped],
      'both': [flipped, plain, flipped, plain],
      'none': [plain],
    }[walls]
    np.testing.assert_array_equal(image, np.concatenate(expected, 1))

  def test_scale(self):
    x = np.array([[0.0, 1.0], [1.0, 1.0]])
    image = render.to_image(x, scale=3)
    self.assertEqual(image.shape, (6, 6))
    np.testing.assert_array_equal(image[:3, :3], 255)
    self.assertEqual(np.count_nonzero(image), 9)

  def test_bad_input(self):
    problem = families.mbb_beam(6, 4)
    with self.assertRaisesRegex(ValueError, 'x has shape \\(6, 4\\)'):
      render.to_image(np.ones((6, 4)), problem)
    with self.assertRaisesRegex(ValueError, 'x has shape \\(3,\\)'):
      render.to_image(np.ones(3))
    with self.assertRaisesRegex(ValueError, 'NaN'):
      render.to_image(np.full((2, 2), np.nan))
    with self.assertRaisesRegex(ValueError, 'scale'):
      render.to_image(np.ones((2, 2)), scale=0)


class FilesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = _folder(self)

  def test_png_round_trip(self):
    path = self.folder / 'new' / 'design.png'
    for image in (
      np.arange(12, dtype=np.uint8).reshape(3, 4),
      np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    ):
      render.save_png(path, image)
      np.testing.assert_array_equal(_read(path), image)
    self.assertEqual(os.listdir(path.parent), ['design.png'])

  def test_gif(self):
    import PIL.Image

    images = [np.full((5, 7), level, np.uint8) for level in (0, 120, 255)]
    render.save_gif(self.folder / 'a.gif', images, milliseconds=50, hold=900)
    with PIL.Image.open(self.folder / 'a.gif') as movie:
      self.assertEqual(movie.n_frames, 3)
      self.assertEqual(movie.size, (7, 5))
      levels, durations = [], []
      for frame in range(3):
        movie.seek(frame)
        levels.append(int(np.asarray(movie.convert('L'))[2, 3]))
        durations.append(movie.info['duration'])
    self.assertEqual(levels, [0, 120, 255])
    self.assertEqual(durations, [50, 50, 900])

  def test_gif_of_one_image(self):
    render.save_gif(self.folder / 'a.gif', [np.zeros((3, 3), np.uint8)])
    self.assertEqual(_read(self.folder / 'a.gif').shape, (3, 3))

  def test_interrupted_write_leaves_the_old_file(self):
    path = self.folder / 'design.png'
    render.write_bytes(path, b'old')
    with unittest.mock.patch(
      'etils.epath.gpath.PosixGPath.replace', side_effect=KeyboardInterrupt
    ):
      with self.assertRaises(KeyboardInterrupt):
        render.write_bytes(path, b'new')
    self.assertEqual(path.read_bytes(), b'old')
    self.assertEqual(os.listdir(self.folder), ['design.png'])

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, 'expected uint8'):
      render.save_png(self.folder / 'a.png', np.ones((3, 3)))
    with self.assertRaisesRegex(ValueError, 'expected uint8'):
      render.save_png(self.folder / 'a.png', np.ones((3, 3, 2), np.uint8))
    with self.assertRaisesRegex(ValueError, 'images is empty'):
      render.save_gif(self.folder / 'a.gif', [])
    with self.assertRaisesRegex(ValueError, 'images must all have one shape'):
      render.save_gif(
        self.folder / 'a.gif', [np.zeros((2, s), np.uint8) for s in (2, 3)]
      )
    self.assertEqual(os.listdir(self.folder), [])

  def test_missing_library_names_the_extra(self):
    with unittest.mock.patch.dict('sys.modules', {'PIL': None}):
      with self.assertRaisesRegex(ImportError, 'jaxpapers\\[structopt\\]'):
        render.save_png(self.folder / 'a.png', np.zeros((2, 2), np.uint8))
    with unittest.mock.patch.dict('sys.modules', {'matplotlib.figure': None}):
      problem = families.mbb_beam(6, 4)
      with self.assertRaisesRegex(ImportError, 'jaxpapers\\[structopt\\]'):
        figures.strip([np.ones((4, 6))], problem)


class MarksTest(absltest.TestCase):
  def test_copies(self):
    bridge = families.causeway_bridge(8, 4)
    frame = boundary_marks.Frame(bridge, mirror=True)
    self.assertEqual((frame.left, frame.right), (-8, 24))
    self.assertLen(frame.copies, 4)
    self.assertEqual(frame.planes, [])
    alone = boundary_marks.Frame(bridge, mirror=False)
    self.assertEqual((alone.left, alone.right), (0, 8))
    self.assertEqual(alone.planes, [0, 8])

  def test_copies_lie_where_the_image_has_them(self):
    problem = families.roof(5, 3)
    x = _ramp(problem)
    image = render.mirrored(x, problem)
    frame = boundary_marks.Frame(problem, mirror=True)
    for shift, sign in frame.copies:
      for element in range(problem.nelx):
        centre = shift + sign * (element + 0.5)
        np.testing.assert_array_equal(
          image[:, int(centre - frame.left - 0.5)], x[:, element]
        )

  def test_single_load_is_a_weight_above_its_node(self):
    problem = families.mbb_beam(12, 6)
    frame = boundary_marks.Frame(problem, mirror=True)
    arrows = boundary_marks.arrows(problem, frame)
    self.assertLen(arrows, 2)  # one for each copy, at the same place
    for arrow in arrows:
      np.testing.assert_allclose(arrow.tip, (0, 0))
      self.assertEqual(arrow.tail[0], 0)
      self.assertLess(arrow.tail[1], 0)

  def test_load_that_points_out_starts_at_its_node(self):
    problem = families.drawbridge(12, 6)
    arrows = boundary_marks.arrows(
      problem, boundary_marks.Frame(problem, mirror=True)
    )
    for arrow in arrows:
      self.assertEqual(arrow.tail[1], 6)
      self.assertGreater(arrow.tip[1], 6)

  def test_horizontal_loads_keep_their_direction(self):
    problem = families.dam(48, 48)
    arrows = boundary_marks.arrows(
      problem, boundary_marks.Frame(problem, mirror=True)
    )
    lengths = [arrow.tip[0] - arrow.tail[0] for arrow in arrows]
    self.assertGreater(min(lengths), 0)
    depths = [arrow.tip[1] for arrow in arrows]
    # The water presses hardest at the bottom.
    self.assertGreater(
      lengths[np.argmax(depths)], 1.5 * lengths[np.argmin(depths)]
    )

  def test_dense_loads_are_thinned_out(self):
    problem = problems.get_problem('staircase_64x64_0.3')
    self.assertGreater(np.count_nonzero(problem.forces), 300)
    arrows = boundary_marks.arrows(
      problem, boundary_marks.Frame(problem, mirror=True)
    )
    self.assertBetween(len(arrows), 20, 80)

  def test_load_cases_differ_in_colour(self):
    problem = families.multipoint_circle(32, 32, num_points=3)
    arrows = boundary_marks.arrows(
      problem, boundary_marks.Frame(problem, mirror=True)
    )
    self.assertLen({arrow.colour for arrow in arrows}, 3)


class FigureTest(parameterized.TestCase):
  def _pixels(self, figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=60)
    buffer.seek(0)
    return _read(buffer)[..., :3].astype(int)

  def _coloured(self, pixels):
    """Number of pixels that are not grey."""
    return np.count_nonzero(np.ptp(pixels, axis=-1) > 40)

  @parameterized.parameters(
    'mbb_beam_96x32_0.5',
    'l_shape_0.4_64x64_0.4',
    'hoop_32x64_0.25',
    'pure_bending_moment_32x64_0.15',
    'two_level_bridge_64x64_0.2',
    'column_32x128_0.3',
  )
  def test_marks_appear(self, name):
    problem = problems.get_problem(name)
    x = 0.5 * np.ones((problem.nely, problem.nelx))
    bare = self._pixels(figures.strip([x], problem, width=4))
    self.assertEqual(self._coloured(bare), 0)
    for mirror in (True, False):
      for marks in ({'loads': True}, {'supports': True}):
        figure = figures.strip([x], problem, width=4, mirror=mirror, **marks)
        self.assertGreater(self._coloured(self._pixels(figure)), 15)

  def test_every_family_can_be_drawn(self):
    categories = {}
    for name in problems.PROBLEMS:
      categories.setdefault(name.rsplit('_', 2)[0], name)
    chosen = [problems.get_problem(name) for name in categories.values()]
    chosen.append(families.multipoint_circle(32, 32))
    figure = figures.strip(
      [np.full((p.nely, p.nelx), 0.3) for p in chosen],
      chosen,
      [p.name for p in chosen],
      columns=6,
      loads=True,
      supports=True,
    )
    self.assertLen(figure.axes, len(chosen))
    self._pixels(figure)

  def test_panels_and_captions_stay_apart(self):
    chosen = [
      problems.get_problem(name)
      for name in (
        'causeway_bridge_top_64x64_0.3',
        'column_32x128_0.3',
        'l_shape_0.4_64x64_0.4',
        'mbb_beam_96x32_0.5',
      )
    ]
    figure = figures.strip(
      [np.ones((p.nely, p.nelx)) for p in chosen],
      chosen,
      [p.name + '\n12.3' for p in chosen],
      columns=2,
      title='four tasks',
      loads=True,
      supports=True,
    )
    figure.canvas.draw()
    boxes = [axes.get_window_extent() for axes in figure.axes]
    boxes += [text.get_window_extent() for text in figure.texts]
    for i, first in enumerate(boxes):
      self.assertGreaterEqual(first.x0, -1)
      self.assertGreaterEqual(first.y0, -1)
      self.assertLessEqual(first.x1, figure.bbox.width + 1)
      self.assertLessEqual(first.y1, figure.bbox.height + 1)
      for second in boxes[i + 1 :]:
        self.assertFalse(first.shrunk(0.99, 0.9).overlaps(second))

  def test_arrows_stay_inside_the_panel(self):
    problem = families.mbb_beam(60, 20)
    figure = figures.strip([np.ones((20, 60))], problem, loads=True)
    (axes,) = figure.axes
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for arrow in boundary_marks.arrows(
      problem, boundary_marks.Frame(problem, True)
    ):
      for x, y in (arrow.tail, arrow.tip):
        self.assertBetween(x, left, right)
        self.assertBetween(y, top, bottom)

  def test_save_figure(self):
    path = _folder(self) / 'strip.png'
    problem = families.mbb_beam(12, 4)
    figure = figures.strip([np.ones((4, 12))] * 2, problem, ['a', 'b'])
    figures.save_figure(path, figure, dpi=50)
    self.assertEqual(_read(path).shape[1], 600)  # 12 inches

  def test_bad_input(self):
    problem = families.mbb_beam(12, 4)
    with self.assertRaisesRegex(ValueError, '2 designs, 2 problems and 1 cap'):
      figures.strip([np.ones((4, 12))] * 2, problem, ['a'])
    with self.assertRaisesRegex(ValueError, 'at least one'):
      figures.strip([], problem)
    with self.assertRaisesRegex(ValueError, 'x has shape'):
      figures.strip([np.ones((12, 4))], problem)
    self.assertIsInstance(problem, domain.Problem)


if __name__ == '__main__':
  absltest.main()
