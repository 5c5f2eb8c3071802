"""Tests of reading recordings, on files made here."""

import pathlib
import tempfile
import warnings

import nibabel
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.kcore import io
from tests.helpers import data, goldens


def _save(path, array, *, tr=2.0, unit='sec', endian='<', slope=None):
  header = nibabel.Nifti1Header(endianness=endian)
  header.set_data_dtype(array.dtype)
  affine = np.diag([3.0, 3.0, 4.0, 1.0])
  image = nibabel.Nifti1Image(array, affine, header)
  if array.ndim == 4:
    image.header.set_xyzt_units('mm', unit)
    image.header.set_zooms((3.0, 3.0, 4.0, tr))
  if slope is not None:
    image.header.set_slope_inter(*slope)
  nibabel.save(image, path)
  return path


class LoadBoldTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    series = 100 * goldens.normal('kcore/io', (3, 4, 2, 7))
    self.array = series.round().astype(np.int16)

  @parameterized.product(
    ending=('nii', 'nii.gz'), endian=('<', '>'), dtype=('i2', 'f4', 'f8')
  )
  def test_reads(self, ending, endian, dtype):
    array = self.array.astype(endian + dtype)
    path = _save(self.folder / f'bold.{ending}', array, endian=endian)
    self.assertEqual(nibabel.load(path).header.endianness, endian)
    bold = io.load_bold(path)
    np.testing.assert_array_equal(bold.series, self.array.reshape(24, 7))
    np.testing.assert_array_equal(bold.coords, np.argwhere(np.ones((3, 4, 2))))
    np.testing.assert_array_equal(bold.affine, np.diag([3, 3, 4, 1]))
    self.assertEqual((bold.tr, bold.series.dtype), (2.0, np.float64))

  def test_slope_and_intercept(self):
    # Values that int16 holds only by way of the slope.
    stored = nibabel.Nifti1Image(self.array, np.eye(4))
    stored.header.set_zooms((1, 1, 1, 2.0))
    path = self.folder / 'scaled.nii'
    nibabel.save(stored, path)
    raw = bytearray(path.read_bytes())
    # scl_slope and scl_inter, bytes 112 to 119 of the header.
    raw[112:120] = np.array([0.25, 10.0], '<f4').tobytes()
    path.write_bytes(raw)
    bold = io.load_bold(path)
    np.testing.assert_array_equal(
      bold.series, self.array.reshape(24, 7) * 0.25 + 10
    )

  @parameterized.parameters(
    (2.0, 'sec', 2.0, False),
    (2000.0, 'msec', 2.0, False),
    (2e6, 'usec', 2.0, False),
    (2000.0, 'sec', 2.0, True),
    (2.0, 'unknown', 2.0, False),
    (1500.0, 'unknown', 1.5, True),
  )
  def test_units_of_time(self, tr, unit, seconds, warned):
    path = _save(self.folder / 'bold.nii', self.array, tr=tr, unit=unit)
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter('always')
      self.assertAlmostEqual(io.load_bold(path).tr, seconds, places=6)
    self.assertEqual(bool(caught), warned)

  @parameterized.parameters(
    (2.4, 'sec', 2.4), (0.72, 'sec', 0.72), (720.0, 'msec', 0.72)
  )
  def test_time_without_the_noise_of_float32(self, tr, unit, seconds):
    path = _save(self.folder / 'bold.nii', self.array, tr=tr, unit=unit)
    self.assertEqual(io.load_bold(path).tr, seconds)

  def test_time_given_or_missing(self):
    path = _save(self.folder / 'bold.nii', self.array, tr=0.0)
    with self.assertRaisesRegex(ValueError, 'tr: the header'):
      io.load_bold(path)
    self.assertEqual(io.load_bold(path, tr=1.25).tr, 1.25)
    with self.assertRaisesRegex(ValueError, 'tr is -1'):
      io.load_bold(path, tr=-1)

  def test_mask(self):
    path = _save(self.folder / 'bold.nii', self.array)
    mask = np.zeros((3, 4, 2), np.uint8)
    mask[1, 2, 0] = mask[0, 3, 1] = 1
    file = _save(self.folder / 'mask.nii.gz', mask)
    for given in (mask, file, str(file)):
      bold = io.load_bold(path, given)
      self.assertEqual(bold.coords.tolist(), [[0, 3, 1], [1, 2, 0]])
      np.testing.assert_array_equal(bold.series[1], self.array[1, 2, 0])
    with self.assertRaisesRegex(ValueError, r'mask has shape \(3, 4\)'):
      io.load_bold(path, mask[..., 0])
    with self.assertRaisesRegex(ValueError, 'no voxel above 0'):
      io.load_bold(path, 0 * mask)

  def test_unusable_voxels_are_counted(self):
    array = self.array.astype(np.float32)
    array[0, 0, 0] = 5.0
    array[1, 1, 1, 3] = np.nan
    array[2, 0, 0, 2] = np.inf
    path = _save(self.folder / 'bold.nii', array)
    with self.assertWarnsRegex(UserWarning, 'dropped 3 of 24 voxels'):
      bold = io.load_bold(path)
    self.assertEqual(bold.series.shape, (21, 7))
    self.assertNotIn([1, 1, 1], bold.coords.tolist())
    self.assertTrue(np.isfinite(bold.series).all())
    nothing = _save(self.folder / 'flat.nii', np.ones((2, 2, 1, 4), np.int16))
    with self.assertRaisesRegex(ValueError, 'all 4 voxels'):
      io.load_bold(nothing)

  def test_refuses(self):
    with self.assertRaisesRegex(FileNotFoundError, 'there is no file'):
      io.load_bold(self.folder / 'none.nii')
    with self.assertRaisesRegex(ValueError, r'shape \(3, 4, 2\)'):
      io.load_bold(_save(self.folder / 'volume.nii', self.array[..., 0]))
    with self.assertRaisesRegex(ValueError, 'one scan'):
      io.load_bold(_save(self.folder / 'one.nii', self.array[..., :1]))
    broken = self.folder / 'broken.nii'
    broken.write_bytes(b'not an image')
    with self.assertRaisesRegex(ValueError, 'no image that nibabel reads'):
      io.load_bold(broken)
    cut = self.folder / 'cut.nii.gz'
    whole = _save(self.folder / 'whole.nii.gz', self.array).read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    with self.assertRaisesRegex(ValueError, 'cut.nii.gz'):
      io.load_bold(cut)

  def test_atlas(self):
    atlas = np.arange(24, dtype=np.int16).reshape(3, 4, 2)
    path = _save(self.folder / 'atlas.nii', atlas)
    labels = io.read_labels(path, [[0, 0, 1], [2, 3, 1]])
    self.assertEqual(labels.tolist(), [1, 23])
    with self.assertRaisesRegex(ValueError, 'coords go up to'):
      io.read_labels(path, [[3, 0, 0]])

  def test_real_files(self):
    folder = data.require('kcore', 'nifti_small')
    bold = io.load_bold(folder / 'nitime_fmri1.nii.gz')
    self.assertEqual(bold.series.shape[1], 40)
    image = nibabel.load(folder / 'nibabel_functional.nii')
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      scaled = io.load_bold(folder / 'nibabel_functional.nii', tr=3.0)
    expected = image.get_fdata()[tuple(scaled.coords.T)]
    np.testing.assert_allclose(scaled.series, expected)


class BidsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.array = np.zeros((2, 2, 2, 3), np.int16)

  def _run(self, name, events='onset\tduration\ttrial_type\n0\t1\tword\n'):
    subject = name.split('_')[0]
    func = self.folder / subject / 'func'
    func.mkdir(parents=True, exist_ok=True)
    _save(func / f'{name}_bold.nii.gz', self.array)
    if events is not None:
      (func / f'{name}_events.tsv').write_text(events)
    return func

  def test_finds_runs(self):
    self._run('sub-02_task-w_run-1')
    func = self._run('sub-01_task-w_run-2')
    _save(func / 'sub-01_task-w_run-2_desc-brain_mask.nii.gz', self.array)
    runs = io.find_bids_runs(self.folder)
    names = ['sub-01_task-w_run-2', 'sub-02_task-w_run-1']
    self.assertEqual([run.name for run in runs], names)
    self.assertIsNotNone(runs[0].mask)
    self.assertIsNone(runs[1].mask)

  def test_derivatives_use_plain_events(self):
    func = self._run('sub-01_task-w')
    (func / 'sub-01_task-w_bold.nii.gz').unlink()
    _save(func / 'sub-01_task-w_space-T1w_desc-preproc_bold.nii', self.array)
    run = io.find_bids_runs(self.folder)[0]
    self.assertEqual(run.events.name, 'sub-01_task-w_events.tsv')

  def test_events(self):
    func = self._run(
      'sub-01_task-w',
      'onset\tduration\ttrial_type\n1.5\t2\tword\n4\tn/a\tblank\n',
    )
    events = io.read_events(func / 'sub-01_task-w_events.tsv')
    self.assertEqual(events.onset.tolist(), [1.5, 4.0])
    self.assertEqual(events.duration.tolist(), [2.0, 0.0])
    self.assertEqual(events.trial_type, ('word', 'blank'))

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, 'holds no sub-'):
      io.find_bids_runs(self.folder)
    func = self._run('sub-01_task-w', None)
    with self.assertRaisesRegex(ValueError, 'has no sub-01_task-w_events.tsv'):
      io.find_bids_runs(self.folder)
    file = func / 'events.tsv'
    file.write_text('onset\ttrial_type\n1\tword\n')
    with self.assertRaisesRegex(ValueError, "no column 'duration'"):
      io.read_events(file)
    file.write_text('onset\tduration\nsoon\t1\n')
    with self.assertRaisesRegex(ValueError, 'soon'):
      io.read_events(file)


if __name__ == '__main__':
  absltest.main()
