"""Graphs and matrices that several tests of kcore use."""

import json

import numpy as np

from jaxpapers.kcore import edge_list
from tests.helpers import data, goldens


def load(name):
  """A golden file as a dictionary."""
  path = goldens.path('kcore', name)
  if path.suffix == '.json':
    return json.loads(path.read_text('utf-8'))
  with np.load(path) as file:
    return {key: file[key] for key in file.files}


def unpack(bits, n):
  """Adjacency matrix from the packed bits of its upper triangle."""
  upper = np.triu_indices(n, 1)
  adj = np.zeros((n, n), bool)
  adj[upper] = np.unpackbits(bits)[: len(upper[0])]
  return adj | adj.T


def network_edges(name):
  """Edges and number of nodes of a golden network, thresholds on a grid."""
  n = {'myconnectome608': 608, 'synth_seed0': 610}[name]
  bits = load('percolation.npz')[f'{name}/step0.01/A_packed']
  return edge_list(unpack(bits, n)), n


def myconnectome():
  """Correlation and module of the 608 parcels; skips where they are not."""
  folder = data.require(
    'kcore',
    'myconnectome',
    source='github.com/poldrack/fmri-analysis-vm, ds031_connectome',
  )
  upper = np.load(folder / 'meancorr_utr.npy')
  corr = np.zeros((630, 630))
  corr[np.triu_indices(630, 1)] = upper
  corr += corr.T
  np.fill_diagonal(corr, 1.0)
  lines = (folder / 'parcel_data.txt').read_text('utf-8').splitlines()
  label = [line.split('\t')[8] for line in lines]
  kept = np.array([text.startswith('7Networks_') for text in label])
  module = np.array([int(text[-1]) - 1 for text in np.array(label)[kept]])
  return corr[np.ix_(kept, kept)], module


def random_graph(seed, n=40, p=0.15):
  """Adjacency matrix of an Erdős-Rényi graph."""
  upper = np.random.default_rng(seed).random((n, n)) < p
  adj = np.triu(upper, 1)
  return adj | adj.T
