"""Files that are there whole or not at all."""

import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest

from jaxpapers import data


class WriteFileTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def test_text_and_bytes_in_folders_that_are_made(self):
    path = self.folder / 'new' / 'text.txt'
    data.write_file(path, 'Zürich\n')
    self.assertEqual(path.read_bytes(), 'Zürich\n'.encode())
    data.write_file(str(path), b'\x00\r\n')
    self.assertEqual(path.read_bytes(), b'\x00\r\n')
    self.assertLen(list(path.parent.iterdir()), 1)

  def test_a_failure_leaves_what_was_there(self):
    path = self.folder / 'kept'
    data.write_file(path, 'old')

    def half(self, content):
      with open(self, 'wb') as file:
        file.write(content[:1])
      raise OSError('disk full')

    with (
      mock.patch.object(pathlib.Path, 'write_bytes', half),
      self.assertRaisesRegex(OSError, 'disk full'),
    ):
      data.write_file(path, 'new')
    self.assertEqual(path.read_text(), 'old')
    self.assertEqual([p.name for p in self.folder.iterdir()], ['kept'])


if __name__ == '__main__':
  absltest.main()
