"""The table of published weights fits the configs."""

from absl.testing import absltest

from jaxpapers.efficientnet import pretrained_names, zoo


class ZooTest(absltest.TestCase):
  def test_every_entry_has_a_config(self):
    for entry in zoo.ENTRIES:
      config = entry.config()
      self.assertEqual(config.resolution, entry.resolution)
      self.assertEqual(config.num_classes, 1000)
      self.assertIn(entry.library, pretrained_names.FORMATS)
      self.assertBetween(entry.crop, 0.87, 1.0)
      self.assertIn(entry.normalize, ('imagenet', 'advprop'))
      torch = entry.library == 'torchvision' or (
        entry.library == 'timm' and not entry.name.startswith('tf_')
      )
      self.assertEqual(config.padding, 'symmetric' if torch else 'SAME')

  def test_crops_are_those_of_the_original(self):
    for entry in zoo.find('efficientnet-*', 'tf'):
      exact = entry.resolution / (entry.resolution + 32)
      self.assertAlmostEqual(entry.crop, exact, delta=1e-3)

  def test_find(self):
    names = [entry.name for entry in zoo.find('tf_efficientnet_b8.*')]
    self.assertLen(names, 2)
    self.assertEmpty(zoo.find('resnet50'))
    self.assertLen(zoo.find(library='torchvision'), 9)
    entry = zoo.find('tf_efficientnet_l2.*_475')[0]
    self.assertEqual(entry.config(num_classes=5).num_classes, 5)


if __name__ == '__main__':
  absltest.main()
