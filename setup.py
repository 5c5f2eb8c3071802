import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent

INSTALL_REQUIRES = [
  'absl-py>=2.1',  # flags and logging of the scripts
  'chex>=0.1.90',  # shape checks at public entry points
  'etils[epath]>=1.7',  # one path type for local folders and gs://
  'flax>=0.12',
  'jax>=0.10',
  'jax-md>=0.2',  # imported only where it is used: it takes seconds
  'ml_collections>=1.0',  # the config files of the training scripts
  'numpy>=2.0',
  'optax>=0.2.5',
  'tqdm>=4.66',  # progress bars
]

# One extra per paper, under the name of its room. An empty list says that the
# room needs nothing beyond the core, or is not written yet.
PAPER_EXTRAS = {
  'adapters': [
    'grain>=0.2.10',  # input pipeline
    'matplotlib>=3.8',  # curves, heat maps
    'optuna>=4.0',  # sweeps that several machines work on
    'orbax-checkpoint>=0.11',
    'safetensors>=0.5',  # files of tasks, pre-trained weights
    'tensorboardX>=2.6',
    'tokenizers>=0.20',
  ],
  'efficientnet': [
    'grain>=0.2.10',  # input pipeline
    'h5py>=3.10',  # weights of Keras
    'matplotlib>=3.8',  # curves, Pareto fronts
    'optuna>=4.0',  # searches that several machines work on
    'orbax-checkpoint>=0.11',
    'pillow>=10',  # JPEG
    'safetensors>=0.5',  # pre-trained weights
    'tensorboardX>=2.6',
  ],
  'kcore': [
    'jax-md>=0.2',  # spatial clusters, layout of networks
    'matplotlib>=3.8',
    'nibabel>=5.2',  # NIfTI files
    'scipy>=1.14',  # distributions of the tests
  ],
  'layca': [
    'grain>=0.2.10',  # input pipeline
    'matplotlib>=3.8',  # curves
    'orbax-checkpoint>=0.11',
    'pillow>=10',  # images of Tiny-ImageNet
    'tensorboardX>=2.6',
  ],
  'osnet': [
    'grain>=0.2.10',  # input pipeline
    'h5py>=3.10',  # CUHK03
    'matplotlib>=3.8',  # studies
    'orbax-checkpoint>=0.11',
    'pillow>=10',  # images, ranked lists
    'scipy>=1.14',  # protocols and annotations in MATLAB files
    'tensorboardX>=2.6',
  ],
  'product_keys': [
    'grain>=0.2.10',  # input pipeline
    'matplotlib>=3.8',  # usage, curves
    'orbax-checkpoint>=0.11',
    'tensorboardX>=2.6',
    'tokenizers>=0.20',  # text for language models
  ],
  'recsys': [
    'grain>=0.2.10',  # input pipeline of the neural methods
    'matplotlib>=3.8',
    'optuna>=4.0',  # tuning
    'orbax-checkpoint>=0.11',
    'pyarrow>=17',  # interactions in Parquet files
    'scipy>=1.14',  # sparse matrices, tests
    'tensorboardX>=2.6',
  ],
  'roberta': [
    'grain>=0.2.10',  # input pipeline
    'matplotlib>=3.8',  # curves
    'orbax-checkpoint>=0.11',
    'pyarrow>=17',  # corpora in Parquet files
    'safetensors>=0.5',  # pre-trained weights
    'tensorboardX>=2.6',
    'tokenizers>=0.20',  # byte-pair encoding
  ],
  'structopt': [
    'matplotlib>=3.8',  # captions, figures of the analysis
    'pillow>=10',  # PNG and GIF
    'scikit-image>=0.22',  # anti-aliased loads of hoop, staircase and ramp
    'scipy>=1.14',  # reference L-BFGS-B, host sparse solver
  ],
}

TOOL_EXTRAS = {
  # What training a model of one's own with jaxpapers.training needs.
  'training': [
    'grain>=0.2.10',
    'orbax-checkpoint>=0.11',
    'tensorboardX>=2.6',
  ],
  # Everything that `make test` needs; no torch, no TensorFlow.
  'test': [
    'grain>=0.2.10',
    'h5py>=3.10',
    'hypothesis>=6.100',
    'matplotlib>=3.8',
    'nibabel>=5.2',
    'nlopt>=2.8',  # the MMA that ours is compared with
    'optuna>=4.0',
    'orbax-checkpoint>=0.11',
    'pillow>=10',
    'pyarrow>=17',
    'pytest>=8.0',
    'pytest-timeout>=2.3',  # a test that hangs fails by name
    'pytest-xdist>=3.5',
    'safetensors>=0.5',
    'scikit-fem>=10',  # element stiffness from an independent code
    'scikit-image>=0.22',
    'scipy>=1.14',
    'tensorboardX>=2.6',
    'tokenizers>=0.20',
  ],
  'lint': ['mypy>=1.10', 'pre-commit>=3.5', 'ruff>=0.15'],
  # Peers to measure against. scikit-sparse is built from source against
  # SuiteSparse: `apt-get install libsuitesparse-dev` (or the like) first.
  'bench': [
    'grain>=0.2.10',
    'igraph>=0.11',  # GPL: measured against, never imported by the package
    'networkx>=3.3',
    'nlopt>=2.8',
    'pillow>=10',
    'scikit-image>=0.22',
    'scikit-sparse==0.4.16',
    'scipy>=1.14',
    'timm>=1.0',
    'tokenizers>=0.20',
    'torch>=2.4',
    'torchvision>=0.19',  # timm imports it
    'transformers>=4.46',
  ],
  'docs': ['matplotlib>=3.8', 'pillow>=10'],
  'gcs': ['etils[epath-gcs]>=1.7'],  # gs:// paths need a client library
  'tpu': ['etils[epath-gcs]>=1.7', 'jax[tpu]>=0.10'],
  'cuda': ['jax[cuda13]>=0.10'],  # CUDA 13 wheels; driver >= 580
}

EXTRAS = {
  **PAPER_EXTRAS,
  **TOOL_EXTRAS,
  'all': sorted({dep for deps in PAPER_EXTRAS.values() for dep in deps}),
}


def read_version() -> str:
  """Reads `__version__` without importing the package."""
  text = (HERE / 'jaxpapers' / '__init__.py').read_text(encoding='utf-8')
  match = re.search(r"^__version__ = '([^']+)'$", text, re.MULTILINE)
  if match is None:
    raise RuntimeError('jaxpapers/__init__.py has no __version__ line.')
  return match.group(1)


def packages() -> list[str]:
  """The library's packages, and scripts/ under the name jaxpapers_scripts.

  The command `jaxpapers` runs the scripts, so a wheel has to carry them.
  """
  scripts = ['jaxpapers_scripts']
  for folder in sorted((HERE / 'scripts').rglob('*')):
    if folder.is_dir() and any(folder.glob('*.py')):
      parts = folder.relative_to(HERE / 'scripts').parts
      scripts.append('.'.join(('jaxpapers_scripts', *parts)))
  return find_packages(include=['jaxpapers', 'jaxpapers.*']) + scripts


setup(
  name='jaxpapers',
  version=read_version(),
  description='Nine research papers as one JAX package.',
  long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  license_files=['LICENSE'],
  python_requires='>=3.11',
  packages=packages(),
  package_dir={'jaxpapers_scripts': 'scripts'},
  package_data={
    'jaxpapers.recsys': ['*.json'],
    'jaxpapers.structopt': ['*.json'],
  },
  install_requires=INSTALL_REQUIRES,
  extras_require=EXTRAS,
  entry_points={'console_scripts': ['jaxpapers = jaxpapers.cli:main']},
  classifiers=[
    'Development Status :: 3 - Alpha',
    'Intended Audience :: Science/Research',
    'Programming Language :: Python :: 3',
    'Topic :: Scientific/Engineering :: Artificial Intelligence',
  ],
)
