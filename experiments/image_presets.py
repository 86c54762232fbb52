"""The presets of `experiments.image`: rows of flags, each with its paper.

`TRAINED` were run to their end; on what hardware and with what result stands in the README, and their curves in
`tests/reference`. `PUBLISHED` are the settings of papers for hardware that trains them, with the published figure
beside each: FID on 50,000 samples, by the paper itself.
"""

from typing import Any

Rows = dict[str, dict[str, Any]]

# DCGAN in the game of R3GAN (arXiv:2501.05441), relativistic pairs with R1 and R2 that fall: it keeps nearly all of the
# 1,000 modes of stacked MNIST where other losses lose some.
PAIRS: dict[str, Any] = {
    "width": 32,
    "disc_batch_norm": False,
    "loss": "relativistic",
    "r1": (0.3, 0.03),
    "r2": (0.3, 0.03),
    "beta1": 0.0,
    "beta2": (0.9, 0.99),
    "ema": (0.0, 2e4),
}

TRAINED: Rows = {
    # The default, what no flag at all trains: 8x8 digits inside the installation, the settings of dcgan_mnist.
    "dcgan_digits": {"steps": 4000},
    # Dense, binary cross-entropy (arXiv:1406.2661), Adam 2e-4, β1 0.5. Without R1 the discriminator learns the
    # 1,797 digits by heart: the distance rose from 13 at 1,000 steps to 53 at 3,000.
    "mlp_digits": {"model": "mlp", "r1": (0.3,), "steps": 3000},
    "mlp_mnist": {"model": "mlp", "dataset": "mnist", "steps": 6000},
    # Dense, least squares (arXiv:1611.04076).
    "lsgan_mnist": {"model": "mlp", "loss": "least_squares", "dataset": "mnist", "steps": 6000},
    # arXiv:1511.06434, section 4: Adam 2e-4, β1 0.5, batch norm in both, N(0, 0.02²).
    "dcgan_mnist": {"dataset": "mnist", "steps": 3000, "batch_size": 128, "width": 32},
    "dcgan_fashion": {"dataset": "fashion_mnist", "steps": 3000, "batch_size": 128, "width": 32},
    # Conditional (arXiv:1411.1784, projection arXiv:1802.05637).
    "cdcgan_mnist": {"dataset": "mnist", "conditional": True, "steps": 3000, "batch_size": 128, "width": 32},
    "cdcgan_fashion": {"dataset": "fashion_mnist", "conditional": True, "steps": 3000, "batch_size": 128, "width": 32},
    # With DiffAugment (arXiv:2006.10738), for the 9,000 images that it was trained on.
    "cdcgan_cifar10": {
        "dataset": "cifar10",
        "conditional": True,
        "augment": "diffaugment",
        "mirror": True,
        "steps": 5000,
        "batch_size": 128,
        "width": 32,
    },
    # arXiv:1701.07875, algorithm 1: RMSProp 5e-5, weights in [-0.01, 0.01], 5 critic moves.
    "wgan_mnist": {
        "dataset": "mnist",
        "loss": "wasserstein",
        "optimizer": "rmsprop",
        "learning_rate": (5e-5,),
        "clip_weights": 0.01,
        "disc_steps": 5,
        "steps": 3000,
        "width": 32,
    },
    # arXiv:1704.00028, algorithm 1: λ 10, 5 critic moves, Adam 1e-4, β1 0, β2 0.9, no batch norm in the critic.
    "wgan_gp_mnist": {
        "dataset": "mnist",
        "loss": "wasserstein",
        "wgan_gp": (10.0,),
        "disc_batch_norm": False,
        "learning_rate": (1e-4,),
        "beta1": 0.0,
        "beta2": (0.9,),
        "disc_steps": 5,
        "steps": 3000,
        "width": 32,
    },
    # The published DCGAN shape, 64x64 faces, batch 128 there. Point --dataset at a folder of aligned faces.
    "dcgan_celeba64": {"dataset": "celeb_a", "size": "64", "mirror": True, "steps": 20_000, "batch_size": 128},
}

# Residual networks, spectrally normalised: arXiv:1802.05957, appendix B.4. In Chainer, in float32.
SNGAN = {"model": "resnet", "variant": "sngan", "loss": "hinge", "beta1": 0.0, "beta2": (0.9,)}
# Its self-attention, spectral normalisation in both and two time scales: arXiv:1805.08318, section 4 and 5. β2 is the
# paper's, to which the figures belong; the authors' code leaves TensorFlow's default of .999.
SAGAN = SNGAN | {"variant": "sagan", "learning_rate": (4e-4,), "gen_learning_rate": (1e-4,)}
# arXiv:1809.11096: hinge, Adam with β1 0. ε of batch norm is 1e-4 in the paper's networks, as in the weights that its
# authors published, and 1e-5 in that for CIFAR-10, which their PyTorch code alone has. An average that keeps .9999 a
# step has a half-life of 6,931 steps.
BIGGAN = {"model": "biggan", "conditional": True, "loss": "hinge", "beta1": 0.0}
# arXiv:2006.06676, appendix: β1 0, β2 .99, ε 1e-8; R1 lazily every 16 steps.
STYLEGAN2 = {
    "model": "stylegan2",
    "beta1": 0.0,
    "beta2": (0.99,),
    "penalty_every": 16,
}
# arXiv:2501.05441, section 4 and appendix: relativistic pairs, R1 and R2 in every step, everything along half a cosine.
R3GAN = {
    "model": "r3gan",
    "loss": "relativistic",
    "beta1": 0.0,
    "beta2": (0.9, 0.99),
    "learning_rate": (2e-4, 5e-5),
    "mirror": True,
    "augment": "r3gan",
    "anneal_images": 2e7,
}
# The best checkpoint by FID, of fewer samples than the published one's 50,000 and more than it has features.
LARGE: dict[str, Any] = {
    "sample_every": 2000,
    "eval_every": 10_000,
    "checkpoint_every": 2000,
    "metrics": ("fid",),
    "features": "auto",
    "eval_samples": 10_000,
}
# Families whose authors trained in float16, in part, where jaxgan has bfloat16; the others' did in float32.
HALF: dict[str, Any] = LARGE | {"dtype": "bfloat16"}


def _r3gan(gamma: float, **row: Any) -> dict[str, Any]:
    return R3GAN | HALF | {"r1": (gamma, gamma / 10), "r2": (gamma, gamma / 10)} | row


# Families at a width for a laptop; see `PUBLISHED` for the papers' own.
TRAINED |= {
    # One discriminator move to one of the generator, where the paper has five.
    "sngan_mnist": SNGAN | {"dataset": "mnist", "size": "32", "width": 16, "steps": 1400},
    "biggan_digits": BIGGAN | {"width": 16, "steps": 2000},
    # 1,797 images are soon known by heart: with γ .001, .03, .3 and 3 (the authors' rule says .0004) the distance after
    # 5,000 steps was 78, 65, 36 and 7.6.
    "stylegan2_digits": STYLEGAN2
    | {"width": 32, "r1": (3.0,), "learning_rate": (2.5e-3,), "batch_size": 32, "steps": 8000},
    # So short a run takes five times the paper's first rate: with that the distance was 33.
    "r3gan_digits": R3GAN
    | {
        "width": 48,
        "learning_rate": (1e-3, 1e-4),
        "r1": (1.0, 0.1),
        "r2": (1.0, 0.1),
        "mirror": False,
        "augment": "",
        "anneal_images": 1e5,
        "ema": (0.0, 1e4),
        "steps": 2000,
    },
    # Classes, at the size of USPS' digits: what `experiments.transfer` starts from.
    "rpgan_mnist": PAIRS
    | {
        "dataset": "mnist",
        "size": "16",
        "conditional": True,
        "learning_rate": (1e-3, 1e-4),
        "anneal_images": 1e6,
        "steps": 16_000,
        "eval_every": 2000,
    },
    # Three digits in three channels.
    "dcgan_stacked_mnist": PAIRS
    | {
        "dataset": "stacked_mnist",
        "learning_rate": (2e-4, 5e-5),
        "anneal_images": 1.6e6,
        "metrics": ("modes",),
        "eval_samples": 26_000,
        "eval_every": 2000,
        "steps": 28_000,
    },
}

PUBLISHED: Rows = {
    # FID 2.42, conditional (arXiv:2006.06676, abstract): its configuration `cifar`. The authors' code corrects the
    # generator's rate and β2 for a path length that is not there, by 4/5: 2e-3 and .99^.8.
    "stylegan2_cifar10": STYLEGAN2
    | HALF
    | {
        "variant": "cifar",
        "dataset": "cifar10",
        "conditional": True,
        "r1": (0.01,),
        "learning_rate": (2.5e-3,),
        "gen_learning_rate": (2e-3,),
        "gen_beta2": (0.99**0.8,),
        "ema": (500_000.0,),
        "ema_ramp": 0.05,
        "augment": "ada",
        "ada_target": 0.6,
        "steps": 1_562_500,
    },
    # The configuration `paper256`, for a folder of faces.
    "stylegan2_ffhq256": STYLEGAN2
    | HALF
    | {
        "variant": "paper256",
        "dataset": "folder:ffhq256",
        "size": "256",
        "mirror": True,
        "r1": (1.0,),
        "path_length": 2.0,
        "learning_rate": (2.5e-3,),
        "ema": (20_000.0,),
        "augment": "ada",
        "ada_target": 0.6,
        "steps": 390_625,
    },
    # FID 21.7, unconditional CIFAR-10 (arXiv:1802.05957, table 2). Rates fall to 0 in the authors' code, whose
    # generator moves on 128 samples where it has the discriminator's 64 here.
    "sngan_cifar10": SNGAN
    | LARGE
    | {
        "dataset": "cifar10",
        "dequantize": True,
        "disc_steps": 5,
        "steps": 50_000,
        "learning_rate": (2e-4, 0.0),
        "anneal": "linear",
        "anneal_images": 3.2e6,
        "ema": (),
    },
    # FID 18.65, with attention at 64x64; 18.28 for this, at 32x32 (arXiv:1805.08318, tables 1 and 2).
    "sagan_imagenet128": SAGAN
    | LARGE
    | {
        "dataset": "imagenet2012",
        "size": "128",
        "conditional": True,
        "batch_size": 256,
        "steps": 1_000_000,
        "ema": (),
    },
    # FID 14.73 (arXiv:1809.11096, appendix C).
    "biggan_cifar10": BIGGAN
    | LARGE
    | {
        "variant": "cifar",
        "dataset": "cifar10",
        "disc_steps": 4,
        "batch_size": 50,
        "steps": 125_000,
        "ema": (346_600.0,),
    },
    # FID 7.4 (abstract).
    "biggan_imagenet128": BIGGAN
    | LARGE
    | {
        "dataset": "imagenet2012",
        "size": "128",
        "gen_learning_rate": (5e-5,),
        "disc_steps": 2,
        "batch_size": 2048,
        "steps": 165_000,
        "orthogonal": 1e-4,
        "ema": (14_195_000.0,),
    },
    # FID 1.96, conditional CIFAR-10.
    "r3gan_cifar10": _r3gan(
        0.05,
        variant="cifar10",
        dataset="cifar10",
        conditional=True,
        batch_size=512,
        ema=(0.0, 5e6),
        augment_probability=(0.0, 0.55),
        steps=488_000,
    ),
    # 1,000 modes of 1,000, reverse KL .029. The published code has no settings of it; these are CIFAR-10's, but for
    # what would turn digits over.
    "r3gan_stacked_mnist": _r3gan(
        0.05,
        variant="stacked_mnist",
        dataset="stacked_mnist",
        size="32",
        batch_size=512,
        mirror=False,
        augment="",
        ema=(0.0, 5e6),
        metrics=("modes",),
        features="classifier",
        eval_samples=26_000,
        steps=488_000,
    ),
    # FID 1.95. Point --dataset at a folder of the 70,000 faces at 64x64.
    "r3gan_ffhq64": _r3gan(
        2.0,
        variant="ffhq64",
        dataset="folder:ffhq64",
        size="64",
        batch_size=256,
        ema=(0.0, 5e5),
        augment_probability=(0.0, 0.3),
        steps=586_000,
    ),
    # FID 2.75.
    "r3gan_ffhq256": _r3gan(
        150.0,
        variant="ffhq256",
        dataset="folder:ffhq256",
        size="256",
        batch_size=256,
        ema=(0.0, 5e5),
        augment_probability=(0.0, 0.3),
        steps=586_000,
    ),
    # FID 1.27.
    "r3gan_imagenet32": _r3gan(
        0.5,
        variant="imagenet32",
        dataset="imagenet_resized/32x32",
        conditional=True,
        batch_size=4096,
        ema=(0.0, 5e7),
        augment_probability=(0.0, 0.5),
        anneal_images=2e8,
        steps=244_000,
    ),
    # FID 2.09.
    "r3gan_imagenet64": _r3gan(
        1.0,
        variant="imagenet64",
        dataset="imagenet_resized/64x64",
        conditional=True,
        batch_size=4096,
        ema=(0.0, 5e7),
        augment_probability=(0.0, 0.4),
        anneal_images=2e8,
        steps=244_000,
    ),
}

PRESETS: Rows = TRAINED | PUBLISHED

# What flags of presets were in version 0.1: a run that began with them keeps them (`flags.parse`).
EARLIER: Rows = {name: {"dtype": "bfloat16", "eval_samples": 1000, "dequantize": False} for name in PUBLISHED}
