"""The same GAN training steps in PyTorch: the peer that `experiments/benchmark.py` measures against.

    python -m experiments.torch_peer '{"name": "dcgan64", "model": "dcgan", ...}' --mode=compile --steps=20

A worker: it prints a line when it is warm, then the seconds per step for each line "run" that it reads. It needs NumPy
and PyTorch alone, since it may run in an environment without JAX. Networks, losses and the order of a step are those of
`jaxgan/models/` and `jaxgan/adversarial.py`, which `tests/test_torch_peer.py` checks to rounding; initial weights are
PyTorch's own. But running statistics and spectral vectors move in every pass here, in jaxgan in their own player's.
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from experiments import torch_r3gan

Net = Callable[[Tensor], Tensor]
Layout: TypeAlias = torch.memory_format
Parts = tuple[nn.Module, nn.Module, nn.Module]  # the generator's layers, the discriminator's, the latter's last ones


@dataclasses.dataclass(frozen=True)
class Case:
    """What is trained."""

    name: str
    model: str  # mlp, dcgan, resnet, r3gan
    variant: str  # of resnet: sngan, wgan_gp; of r3gan: those in groups of 16 channels
    shape: tuple[int, int, int]  # h, w, c; resnet's is 32x32, dcgan's and r3gan's is halved without a rest
    latent: int
    width: int  # mlp's narrowest layer; the others' `width`
    loss: str  # of LOSSES
    wgan_gp: float  # weight; 0: no penalty
    r1_r2: float  # γ of both; 0: neither
    disc_batch_norm: bool  # dcgan's
    disc_steps: int
    batch_size: int
    learning_rate: float
    beta1: float
    beta2: float
    ema: float  # half-life in images; 0: no average

    @classmethod
    def from_json(cls, text: str) -> "Case":
        fields = json.loads(text)
        return cls(**fields | {"shape": tuple(fields["shape"])})


class Map(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Net):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def to_image(h: int, w: int, c: int, layout: Layout) -> Map:
    """(b, h * w * c), channels last as in jaxgan, -> (b, c, h, w)."""
    # Without `contiguous` the permuted strides would make every layer that follows a channels-last one.
    return Map(lambda x: x.view(-1, h, w, c).permute(0, 3, 1, 2).contiguous(memory_format=layout))


def flatten(x: Tensor) -> Tensor:
    """(b, c, h, w) -> (b, h * w * c), the order of jaxgan's dense layers."""
    return x.permute(0, 2, 3, 1).flatten(1)


class Spectral(nn.Module):
    """w (d, ...) -> w / σ(w): one power iteration a training pass; u and v are constants (arXiv:1802.05957, alg. 1)."""

    u: Tensor

    def __init__(self, features: int):
        super().__init__()
        self.register_buffer("u", F.normalize(torch.randn(features), dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            matrix = weight.flatten(1)
            with torch.no_grad():
                v = F.normalize(self.u @ matrix, dim=0)
                now = F.normalize(matrix @ v, dim=0) if self.training else self.u.clone()
                self.u.copy_(now)
            return weight / (now @ (matrix @ v))


def spectral(layer: nn.Conv2d | nn.Linear, wanted: bool) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Spectral(len(layer.weight))) if wanted else layer


def mlp(case: Case, layout: Layout) -> Parts:
    sizes, pixels = (case.latent, case.width, 2 * case.width, 4 * case.width), math.prod(case.shape)
    gen: list[nn.Module] = []
    for c, d in itertools.pairwise(sizes):
        gen += [nn.Linear(c, d, bias=False), nn.BatchNorm1d(d), nn.LeakyReLU(0.2, inplace=True)]
    disc: list[nn.Module] = [Map(flatten)]
    for c, d in itertools.pairwise((pixels, *sizes[:0:-1])):
        disc += [nn.Linear(c, d), nn.LeakyReLU(0.2, inplace=True)]
    gen += [nn.Linear(sizes[-1], pixels), to_image(*case.shape, layout)]
    return nn.Sequential(*gen), nn.Sequential(*disc, nn.Linear(sizes[1], 1)), nn.Flatten(0)


def dcgan(case: Case, layout: Layout) -> Parts:
    halvings, (h, w, colours) = 0, case.shape
    while min(h, w) > 7 or halvings < 2:
        if h % 2 or w % 2:
            raise ValueError(f"{case.shape}: the peer's dcgan halves no {h}x{w}")
        halvings, h, w = halvings + 1, h // 2, w // 2
    widths = [colours, *(case.width * 2**i for i in range(halvings))]
    gen: list[nn.Module] = []
    disc: list[nn.Module] = []
    for i, (c, d) in enumerate(itertools.pairwise(widths)):
        gen = [nn.BatchNorm2d(d), nn.ReLU(inplace=True), nn.ConvTranspose2d(d, c, 4, 2, 1, bias=i == 0), *gen]
        norm = [nn.BatchNorm2d(d)] if case.disc_batch_norm and i > 0 else []
        disc += [nn.Conv2d(c, d, 4, 2, 1, bias=not norm), *norm, nn.LeakyReLU(0.2, inplace=True)]
    start = nn.Linear(case.latent, h * w * widths[-1], bias=False), to_image(h, w, widths[-1], layout)
    head = nn.Sequential(Map(flatten), nn.Linear(h * w * widths[-1], 1), nn.Flatten(0))
    return nn.Sequential(*start, *gen), nn.Sequential(*disc), head


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut that is a 1x1 one where the image (`scale`) or the channels change."""

    def __init__(self, c: int, d: int, scale: str, first: nn.Module, second: nn.Module, normalised: bool = False):
        super().__init__()
        self.up = nn.Upsample(scale_factor=2) if scale == "up" else nn.Identity()
        self.down = nn.AvgPool2d(2) if scale == "down" else nn.Identity()
        self.first, self.second = first, second
        self.conv1 = spectral(nn.Conv2d(c, d, 3, padding=1), normalised)
        self.conv2 = spectral(nn.Conv2d(d, d, 3, padding=1), normalised)
        self.shortcut = spectral(nn.Conv2d(c, d, 1), normalised) if scale or c != d else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.second(self.conv1(self.up(self.first(x)))))
        # The pointwise convolution comes where the image is smallest, as in jaxgan.
        return self.down(y) + self.up(self.shortcut(self.down(x)))


def resnet(case: Case, layout: Layout) -> Parts:
    def active() -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(c, eps=2e-5 if normalised else 1e-5), nn.ReLU(inplace=True))

    normalised, colours = case.variant == "sngan", case.shape[2]
    c, d = case.width * {"sngan": 4, "wgan_gp": 2}[case.variant], 2 * case.width
    up = [Block(c, c, "up", active(), active()) for _ in range(3)]
    down = [
        Block(d if i else colours, d, "down" if i < 2 else "", first, nn.ReLU(inplace=True), normalised)
        for i, first in enumerate((nn.Identity(), nn.ReLU(), nn.ReLU(), nn.ReLU()))  # the first block sees the image
    ]
    gen = nn.Linear(case.latent, 16 * c), to_image(4, 4, c, layout), *up, active(), nn.Conv2d(c, colours, 3, padding=1)
    pool = Map(lambda x: x.sum((2, 3)) if normalised else x.mean((2, 3)))
    head = nn.Sequential(pool, spectral(nn.Linear(d, 1, bias=not normalised), normalised), nn.Flatten(0))
    return nn.Sequential(*gen), nn.Sequential(*down, nn.ReLU(inplace=True)), head


class Network(nn.Module):
    """Layers that compute in bfloat16 if `low`, and what comes after them in float32 all the same."""

    def __init__(self, body: nn.Module, head: nn.Module, low: bool):
        super().__init__()
        self.body, self.head, self.low = body, head, low

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.low):
            x = self.body(x)
        return self.head(x.float())


def networks(case: Case, layout: Layout = torch.contiguous_format, low: bool = False) -> tuple[nn.Module, nn.Module]:
    """Generator, latents (b, z) -> images (b, c, h, w) in [-1, 1], and discriminator, images -> logits (b,)."""
    if case.model == "r3gan":
        size, colours = case.shape[0], case.shape[2]
        disc = torch_r3gan.Discriminator(size, colours, case.width, low)
        return torch_r3gan.Generator(size, colours, case.latent, case.width, layout, low), disc
    gen, disc, head = {"mlp": mlp, "dcgan": dcgan, "resnet": resnet}[case.model](case, layout)
    return Network(gen, nn.Tanh(), low), Network(disc, head, low)


# Of logits, (real, fake) -> (b,): the discriminator's and the generator's, which looks at real ones if it is PAIRED.
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, tuple[Loss, Loss]] = {
    "non_saturating": (lambda real, fake: F.softplus(-real) + F.softplus(fake), lambda _, fake: F.softplus(-fake)),
    "hinge": (lambda real, fake: F.relu(1 - real) + F.relu(1 + fake), lambda _, fake: -fake),
    "wasserstein": (lambda real, fake: fake - real, lambda _, fake: -fake),
    "relativistic": (lambda real, fake: F.softplus(fake - real), lambda real, fake: F.softplus(real - fake)),
}
PAIRED = ("relativistic",)


def disc_loss(disc: Net, real: Tensor, fake: Tensor, case: Case, mix: Tensor, twice: Net | None = None) -> Tensor:
    """mix: (b,) in [0, 1], the share of the real image in each that WGAN-GP looks at (arXiv:1704.00028, algorithm 1).

    twice: the same network for the penalty, where `disc` is compiled and so cannot be differentiated twice.
    """
    if case.model == "dcgan" and case.disc_batch_norm:  # a logit depends on the other images of its batch
        assert not case.r1_r2, "written for networks that judge real and generated images in one pass"
        real_logits, fake_logits = disc(real), disc(fake)
    else:
        both = torch.cat([real, fake]).requires_grad_(case.r1_r2 > 0)
        logits = (twice or disc if case.r1_r2 else disc)(both)
        real_logits, fake_logits = logits.chunk(2)
    total = LOSSES[case.loss][0](real_logits, fake_logits).mean()
    if case.wgan_gp:
        share = mix.view(-1, 1, 1, 1)
        x = (share * real + (1 - share) * fake).requires_grad_()
        (gradient,) = torch.autograd.grad((twice or disc)(x).sum(), x, create_graph=True)
        # The norm's derivative at 0 counts as 0, in PyTorch as in jaxgan.
        norm = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        total = total + case.wgan_gp * (norm - 1).square().mean()
    if case.r1_r2:  # γ/2 of the mean square norm at real images and as much at generated ones (arXiv:1801.04406)
        (gradient,) = torch.autograd.grad(logits.sum(), both, create_graph=True)
        total = total + case.r1_r2 * gradient.square().sum((1, 2, 3)).mean()
    return total


def gen_loss(disc: Net, fake: Tensor, case: Case, real: Tensor | None = None) -> Tensor:
    """real: images, where the loss is PAIRED."""
    logits = disc(fake)
    return LOSSES[case.loss][1](logits if real is None else disc(real), logits).mean()


class Trainer:
    """Networks, optimizers and data on one device. pixels: uint8 (n, h, w, c). "compile" is channels last too."""

    def __init__(self, case: Case, pixels: np.ndarray, device: torch.device | str, dtype: str, mode: str):
        self.case, self.device = case, torch.device(device)
        self.layout = torch.contiguous_format if mode == "eager" else torch.channels_last
        torch.set_float32_matmul_precision("highest")  # no TF32
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        self.gen, self.disc = networks(case, self.layout, dtype == "bfloat16")
        self.generate: Net = self.gen
        self.score: Net = self.disc
        for network in (self.gen, self.disc):
            network.to(self.device, memory_format=self.layout)  # type: ignore[call-overload]
        if mode == "compile":  # a program for each batch size, not one for all
            self.generate, self.score = (torch.compile(network, dynamic=False) for network in (self.gen, self.disc))
        self.pixels = torch.as_tensor(pixels).to(self.device).permute(0, 3, 1, 2).contiguous(memory_format=self.layout)
        self.gen_adam, self.disc_adam = (
            torch.optim.Adam(network.parameters(), case.learning_rate, (case.beta1, case.beta2), fused=True)
            for network in (self.gen, self.disc)
        )
        self.averaged = [p.detach().clone() for p in self.gen.parameters()] if case.ema else []

    def draw(self) -> Tensor:
        rows = torch.randint(len(self.pixels), (self.case.batch_size,), device=self.device)
        return (self.pixels[rows].float() / 127.5 - 1).contiguous(memory_format=self.layout)

    def step(self) -> None:
        case, z = self.case, (self.case.batch_size, self.case.latent)
        for _ in range(case.disc_steps):
            real = self.draw()
            with torch.no_grad():
                fake = self.generate(torch.randn(z, device=self.device))
            mix = torch.rand(z[:1], device=self.device)
            _descend(disc_loss(self.score, real, fake, case, mix, self.disc), self.disc_adam)
        self.disc.requires_grad_(False)
        real_or_none = self.draw() if case.loss in PAIRED else None
        fake = self.generate(torch.randn(z, device=self.device))
        _descend(gen_loss(self.score, fake, case, real_or_none), self.gen_adam)
        self.disc.requires_grad_(True)
        if self.averaged:
            with torch.no_grad():
                torch._foreach_lerp_(self.averaged, list(self.gen.parameters()), 1 - 0.5 ** (z[0] / case.ema))

    def seconds(self, steps: int) -> float:
        """The time of so many steps, to the end of the device's work."""
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    params = optimizer.param_groups[0]["params"]
    # `backward` would compute the gradient with respect to the penalty's images too.
    for p, gradient in zip(params, torch.autograd.grad(loss, params), strict=True):
        p.grad = gradient
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds per training step in PyTorch, for each line 'run' of stdin.")
    parser.add_argument("case", type=Case.from_json, help="a Case as JSON")
    parser.add_argument("--mode", choices=("eager", "channels_last", "compile"), default="eager")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=10, help="steps for each line 'run'")
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    pixels = np.random.default_rng(0).integers(0, 256, (1024, *args.case.shape), np.uint8)
    try:
        trainer = Trainer(args.case, pixels, device, args.dtype, args.mode)
        print(json.dumps({"ready": trainer.seconds(2), "torch": torch.__version__, "device": name}), flush=True)
        for line in sys.stdin:
            if line.strip() == "run":
                print(json.dumps({"seconds": trainer.seconds(args.steps) / args.steps}), flush=True)
    except Exception as error:  # what PyTorch cannot do here is a result too
        reason = f"{type(error).__name__}: {str(error).strip()}"
        print(json.dumps({"failed": reason.splitlines()[0][:200]}), flush=True)


if __name__ == "__main__":
    main()
