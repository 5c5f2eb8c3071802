"""The peer of the benchmark of OSNet: the network in torch, from the paper.

Its modules have torchreid's names, so that our weights load into it and both
compute the same.
"""


def modules(cfg):
  """The parts of the network.

  Args:
    cfg: An `OSNetConfig` of four streams, with batch norms and shared gates.

  Returns:
    `conv(inputs, outputs, kernel, stride, relu)`, with its batch norm; the
    class of blocks, `Block(inputs, outputs)`.
  """
  import torch
  from torch import nn

  def conv(inputs, outputs, kernel=1, stride=1, relu=True):
    parts = {
      'conv': nn.Conv2d(
        inputs, outputs, kernel, stride, kernel // 2, bias=False
      ),
      'bn': nn.BatchNorm2d(outputs),
    }
    if relu:
      parts['relu'] = nn.ReLU(inplace=True)
    return _named(parts)

  def lite(channels):
    return _named(
      {
        'conv1': nn.Conv2d(channels, channels, 1, bias=False),
        'conv2': nn.Conv2d(
          channels, channels, 3, 1, 1, bias=False, groups=channels
        ),
        'bn': nn.BatchNorm2d(channels),
        'relu': nn.ReLU(inplace=True),
      }
    )

  class Gate(nn.Module):
    def __init__(self, channels):
      super().__init__()
      hidden = max(channels // cfg.gate_reduction, 1)
      self.fc1 = nn.Conv2d(channels, hidden, 1)
      self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x):
      g = nn.functional.adaptive_avg_pool2d(x, 1)
      g = self.fc2(torch.relu(self.fc1(g)))
      return x * torch.sigmoid(g)

  class Block(nn.Module):
    def __init__(self, inputs, outputs):
      super().__init__()
      middle = outputs // cfg.reduction
      self.conv1 = conv(inputs, middle)
      self.conv2a = lite(middle)
      for depth, letter in ((2, 'b'), (3, 'c'), (4, 'd')):
        layers = nn.Sequential(*(lite(middle) for _ in range(depth)))
        setattr(self, f'conv2{letter}', layers)
      self.gate = Gate(middle)
      self.conv3 = conv(middle, outputs, relu=False)
      self.downsample = None
      if inputs != outputs:
        self.downsample = conv(inputs, outputs, relu=False)

    def forward(self, x):
      y = self.conv1(x)
      streams = (self.conv2a, self.conv2b, self.conv2c, self.conv2d)
      y = sum(self.gate(stream(y)) for stream in streams)
      y = self.conv3(y)
      if self.downsample is not None:
        x = self.downsample(x)
      return torch.relu(y + x)

  return conv, Block


def network(cfg, num_classes):
  """OSNet of a config with batch norms and shared gates.

  Args:
    cfg: An `OSNetConfig` without instance norms.
    num_classes: Outputs of the classifier.

  Returns:
    A torch module: images [B, 3, H, W] -> features, logits.
  """
  from torch import nn

  conv, Block = modules(cfg)

  class Network(nn.Module):
    def __init__(self):
      super().__init__()
      channels = cfg.channels
      self.conv1 = conv(3, channels[0], 7, 2)
      self.maxpool = nn.MaxPool2d(3, 2, 1)
      last = channels[0]
      stages = list(zip(channels[1:], cfg.blocks_per_stage, strict=True))
      for s, (outputs, count) in enumerate(stages):
        layers = []
        for _ in range(count):
          layers.append(Block(last, outputs))
          last = outputs
        if s + 1 < len(stages):
          layers.append(nn.Sequential(conv(last, last), nn.AvgPool2d(2)))
        setattr(self, f'conv{s + 2}', nn.Sequential(*layers))
      self.conv5 = conv(last, last)
      self.fc = nn.Sequential(
        nn.Linear(last, cfg.feature_dim),
        nn.BatchNorm1d(cfg.feature_dim),
        nn.ReLU(inplace=True),
      )
      self.classifier = nn.Linear(cfg.feature_dim, num_classes)

    def forward(self, x):
      x = self.maxpool(self.conv1(x))
      for s in range(len(cfg.blocks_per_stage)):
        x = getattr(self, f'conv{s + 2}')(x)
      x = self.fc(self.conv5(x).mean((2, 3)))
      return x, self.classifier(x)

  return Network()


def _named(parts):
  import collections

  from torch import nn

  return nn.Sequential(collections.OrderedDict(parts))


def load(module, state):
  """Puts a state dict of NumPy arrays into a module, all of it."""
  import torch

  module.load_state_dict({k: torch.tensor(x) for k, x in state.items()})
  return module


class Calls:
  """What is timed of torch, in one layout of memory.

  Attributes:
    module: The network.
    x: Images.
  """

  def __init__(self, cfg, num_classes, state, x, labels, layout, dtype, device):
    import torch

    memory = {
      'nchw': torch.contiguous_format,
      'channels_last': torch.channels_last,
      'compiled': torch.channels_last,
    }[layout]
    self._torch = torch
    self._half = torch.bfloat16 if dtype == 'bfloat16' else None
    self._device = device
    module = load(network(cfg, num_classes), state).to(device)
    self.module = module.to(memory_format=memory)
    self._run = self.module
    if layout == 'compiled':
      self._run = torch.compile(self.module)
    x = torch.tensor(x).permute(0, 3, 1, 2).to(device)
    self.x = x.contiguous(memory_format=memory)
    self._labels = torch.tensor(labels, dtype=torch.long, device=device)
    self._optimizer = torch.optim.Adam(
      self.module.parameters(), lr=1.5e-3, weight_decay=5e-4, amsgrad=True
    )
    self._loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)

  def _cast(self):
    on = self._half is not None
    return self._torch.autocast(self._device, self._half, enabled=on)

  def _wait(self):
    if self._device == 'cuda':
      self._torch.cuda.synchronize()

  def forward(self):
    """Features of a batch."""
    self.module.eval()
    with self._torch.inference_mode(), self._cast():
      features, _ = self._run(self.x)
    self._wait()
    return features.float().cpu().numpy()

  def step(self):
    """A step of training."""
    self.module.train()
    self._optimizer.zero_grad()
    with self._cast():
      _, logits = self._run(self.x)
      loss = self._loss(logits, self._labels)
    loss.backward()
    self._optimizer.step()
    self._wait()
    return float(loss.detach())

  def forward_call(self):
    """`forward`, with the memory that it took."""
    return _Measured(self.forward, self._device)

  def step_call(self):
    """`step`, likewise."""
    return _Measured(self.step, self._device)


class _Measured:
  """A call.

  Attributes:
    mebibytes: What the last call took of a GPU beyond what was there before;
      None on other devices.
  """

  def __init__(self, call, device):
    self._call = call
    self._on_gpu = device == 'cuda'
    self.mebibytes = None

  def __call__(self):
    import torch

    if not self._on_gpu:
      return self._call()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = self._call()
    self.mebibytes = (torch.cuda.max_memory_allocated() - before) >> 20
    return out
