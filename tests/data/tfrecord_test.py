"""TFRecord files: framing, checksums, Examples, damage."""

import pathlib
import struct
import tempfile

import numpy as np
from absl.testing import absltest

from jaxpapers.data import crc32c, files, tfrecord


def slow_crc(data):
  """Bit by bit, as the definition says."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
  return crc ^ 0xFFFFFFFF


class Crc32cTest(absltest.TestCase):
  def test_known_values(self):
    # From RFC 3720, B.4, and the usual check value.
    for data, expected in (
      (b'', 0),
      (b'123456789', 0xE3069283),
      (bytes(32), 0x8A9136AA),
      (b'\xff' * 32, 0x62A8AB43),
      (bytes(range(32)), 0x46DD794E),
    ):
      self.assertEqual(crc32c.crc32c(data), expected)

  def test_equals_the_definition(self):
    rng = np.random.default_rng(0)
    for length in (3, 63, 64, 65, 255, 256, 257, 512, 1000, 4097):
      data = rng.bytes(length)
      self.assertEqual(crc32c.crc32c(data), slow_crc(data), length)


class TFRecordTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
      self.enter_context(tempfile.TemporaryDirectory())
    )

  def write(self, name, payloads):
    path = self.folder / name
    tfrecord.write_tfrecord(path, payloads)
    return path

  def test_known_bytes(self):
    # As TensorFlow writes the record b'': the length and its masked CRC.
    content = self.write('a', [b'']).read_bytes()
    self.assertEqual(content[:8], bytes(8))
    self.assertEqual(content[8:12].hex(), '29039807')
    self.assertEqual(content[12:].hex(), 'd8ea82a2')

  def test_round_trip(self):
    payloads = [bytes([k]) * (k * 37) for k in range(7)]
    paths = [self.write('a', payloads[:3]), self.write('b', payloads[3:])]
    source = tfrecord.TFRecordSource(paths)
    self.assertLen(source, 7)
    for k in (6, 0, 3):
      self.assertEqual(source[k], payloads[k])
    self.assertEqual(source.name(4), f'{paths[1]}, record 1')
    self.assertEqual([p.name for p in self.folder.iterdir()].count('a'), 1)

  def test_damage(self):
    payloads = [b'x' * 100, b'y' * 100]
    path = self.write('a', payloads)
    content = bytearray(path.read_bytes())
    content[130] ^= 1  # In the second payload.
    path.write_bytes(content)
    source = tfrecord.TFRecordSource([path])
    self.assertEqual(source[0], payloads[0])
    with self.assertRaisesRegex(files.CorruptFileError, 'record 1: its checks'):
      source[1]
    self.assertLen(tfrecord.TFRecordSource([path], verify=False)[1], 100)
    for damaged, words in (
      (content[:-1], 'cut short within record 1'),
      (content[:120], 'no record begins at byte 116.*after 1 sound'),
      (b'\x1f\x8b' + bytes(20), 'gzip'),
      (b'these are no records', 'Is it a TFRecord file'),
    ):
      path.write_bytes(damaged)
      with self.assertRaisesRegex(files.CorruptFileError, words):
        tfrecord.TFRecordSource([path])
    with self.assertRaisesRegex(FileNotFoundError, 'missing'):
      tfrecord.TFRecordSource([self.folder / 'missing'])
    with self.assertRaisesRegex(ValueError, 'paths is empty'):
      tfrecord.TFRecordSource([])


class ExampleTest(absltest.TestCase):
  def test_round_trip(self):
    features = {
      'image/encoded': [b'\x00\xff' * 300],
      'image/class/label': [1000],
      'negative': [-1, 2**40],
      'box': [0.5, -2.0],
      'text': ['n01440764', 'tench'],
      'none': [],
    }
    found = tfrecord.parse_example(tfrecord.encode_example(features))
    self.assertSameElements(found, features)
    self.assertEqual(found['image/encoded'], features['image/encoded'])
    self.assertEqual(found['image/class/label'].tolist(), [1000])
    self.assertEqual(found['negative'].tolist(), [-1, 2**40])
    self.assertEqual(found['box'].tolist(), [0.5, -2.0])
    self.assertEqual(found['text'], [b'n01440764', b'tench'])

  def test_unpacked_numbers(self):
    # Protocol buffers allow one field for each number; old writers do that.
    varints = b'\x08\x05\x08\x07'
    floats = b''.join(b'\x0d' + struct.pack('<f', x) for x in (1.0, 2.0))
    for number, content, expected in (
      (3, varints, [5, 7]),
      (2, floats, [1, 2]),
    ):
      feature = bytes([number << 3 | 2, len(content)]) + content
      entry = b'\x0a\x01a\x12' + bytes([len(feature)]) + feature
      features = b'\x0a' + bytes([len(entry)]) + entry
      payload = b'\x0a' + bytes([len(features)]) + features
      self.assertEqual(tfrecord.parse_example(payload)['a'].tolist(), expected)

  def test_bad_input(self):
    good = tfrecord.encode_example({'a': [b'text of some length']})
    for payload in (
      good[:-1],
      b'\x0a\xff',
      b'\x0b\x01',
      b'\x0a\x02\xff\xff',
      b'\x08\x05',  # Numbers where messages should be.
      b'\x0a\x02\x08\x05',
      b'\x0a\x04\x0a\x02\x08\x05',
    ):
      with self.assertRaisesRegex(files.CorruptFileError, 'tf.train.Example'):
        tfrecord.parse_example(payload)
    with self.assertRaisesRegex(TypeError, "features\\['a'\\]"):
      tfrecord.encode_example({'a': [1, 'x']})


if __name__ == '__main__':
  absltest.main()
