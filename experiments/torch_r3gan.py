"""R3GAN (arXiv:2501.05441) in PyTorch, unconditional, for `torch_peer`: the networks of `jaxgan/models/r3gan.py`."""

import itertools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP = 16  # channels of a group, or the most that divide them
FULL = 32  # pixels; each larger stage has half the channels of the one before
BLOCKS = 2  # of a stage


class Stage(NamedTuple):
    size: int
    channels: int
    gain: float  # of the first two convolutions of a block
    low: bool  # in bfloat16, where that is asked for


def stages(size: int, width: int) -> list[Stage]:
    """From 4x4 pixels, or as many as halving leads to, to the image's."""
    sizes = [size]
    while sizes[0] >= 8:
        if sizes[0] % 2:
            raise ValueError(f"the peer's r3gan halves no image of {sizes[0]} pixels")
        sizes.insert(0, sizes[0] // 2)
    half = min(3 if len(sizes) < 5 else 4, len(sizes) - 1)
    gain = math.sqrt(2 / (1 + 0.2**2)) * (BLOCKS * len(sizes)) ** -0.25
    widths = [width]
    for n in sizes[1:]:
        widths.append(widths[-1] // 2 if n > FULL else widths[-1])
    return [Stage(n, c, gain, i >= len(sizes) - half) for i, (n, c) in enumerate(zip(sizes, widths, strict=True))]


def conv(c: int, d: int, kernel: int = 1, groups: int = 1, gain: float = 1.0, bias: bool = False) -> nn.Conv2d:
    layer = nn.Conv2d(c, d, kernel, padding=kernel // 2, groups=groups, bias=bias)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(c // groups * kernel**2))
    return layer


class Block(nn.Module):
    """x + W3 φ(b2 + W2 φ(b1 + W1 x)), φ leaky ReLU, W2 grouped and 3x3, W3 zero at first."""

    def __init__(self, stage: Stage):
        super().__init__()
        c, d = stage.channels, 2 * stage.channels
        self.first = conv(c, d, gain=stage.gain, bias=True)
        group = next(n for n in range(GROUP, 0, -1) if d % n == 0)
        self.second = conv(d, d, 3, d // group, stage.gain, bias=True)
        self.third = conv(d, c, gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.second(F.leaky_relu(self.first(x), 0.2)), 0.2)
        return x + self.third(y)


class Resample(nn.Module):
    """The filter (1, 3, 3, 1) along both axes, at every second pixel, or of an image with zeros between its pixels."""

    taps: Tensor

    def __init__(self, enlarge: bool):
        super().__init__()
        row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / (4.0 if enlarge else 8.0)
        self.register_buffer("taps", torch.outer(row, row)[None, None])
        self.enlarge = enlarge

    def forward(self, x: Tensor) -> Tensor:
        c = x.shape[1]
        function = F.conv_transpose2d if self.enlarge else F.conv2d
        return function(x, self.taps.to(x.dtype).expand(c, 1, 4, 4), stride=2, padding=1, groups=c)


class Staged(nn.Module):
    """What both networks have: blocks, stage after stage, pointwise convolutions between, and a dense layer.

    low: stages in bfloat16 but for those of the lowest resolutions.
    """

    def __init__(self, plan: list[Stage], joints: list[tuple[int, int]], low: bool):
        super().__init__()
        self.plan, self.low = plan, low
        self.blocks = nn.ModuleList(Block(stage) for stage in plan for _ in range(BLOCKS))
        self.points = nn.ModuleList(conv(c, d) for c, d in joints)

    def blocks_of(self, i: int, x: Tensor) -> Tensor:
        for block in self.blocks[BLOCKS * i : BLOCKS * (i + 1)]:
            x = block(x)
        return x

    def cast(self, stage: Stage, x: Tensor) -> Tensor:
        return x.to(torch.bfloat16 if self.low and stage.low else torch.float32)

    def precision(self, stage: Stage, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.low and stage.low)


class Generator(Staged):
    """z (b, latent) -> images (b, c, h, w), linear: nothing keeps them within [-1, 1]."""

    def __init__(self, size: int, colours: int, latent: int, width: int, layout: torch.memory_format, low: bool):
        plan = stages(size, width)
        changes = [(a.channels, b.channels) for a, b in itertools.pairwise(plan) if a.channels != b.channels]
        super().__init__(plan, [*changes, (plan[-1].channels, colours)], low)
        base = plan[0]
        self.basis = nn.Parameter(torch.randn(base.channels, base.size, base.size))
        self.dense = nn.Linear(latent, base.channels, bias=False)
        nn.init.normal_(self.dense.weight, std=latent**-0.5)
        self.up, self.layout = Resample(enlarge=True), layout

    def forward(self, z: Tensor) -> Tensor:
        x = (self.basis * self.dense(z)[:, :, None, None]).contiguous(memory_format=self.layout)
        points = iter(self.points)
        for i, stage in enumerate(self.plan):
            x = self.cast(stage, x)
            with self.precision(stage, x):
                if x.shape[1] != stage.channels:
                    x = next(points)(x)
                x = self.blocks_of(i, self.up(x) if i else x)
        with self.precision(self.plan[-1], x):
            return next(points)(x).float()


class Discriminator(Staged):
    """images (b, c, h, w) -> logits (b,)."""

    def __init__(self, size: int, colours: int, width: int, low: bool):
        plan = stages(size, width)[::-1]
        changes = [(a.channels, b.channels) for a, b in itertools.pairwise(plan) if a.channels != b.channels]
        super().__init__(plan, [(colours, plan[0].channels), *changes], low)
        base = plan[-1]
        self.basis = nn.Parameter(torch.randn(base.channels, base.size, base.size) / base.size)
        self.dense = nn.Linear(base.channels, 1, bias=False)
        nn.init.normal_(self.dense.weight, std=base.channels**-0.5)
        self.down = Resample(enlarge=False)

    def forward(self, x: Tensor) -> Tensor:
        points = iter(self.points)
        for i, stage in enumerate(self.plan):
            x = self.cast(stage, x)
            with self.precision(stage, x):
                x = self.blocks_of(i, x if i else next(points)(x))
                if i + 1 < len(self.plan):
                    x = self.down(x)
                    if self.plan[i + 1].channels != stage.channels:
                        x = next(points)(x)
        x = (x.float() * self.basis).sum((2, 3))
        return self.dense(x)[:, 0]
