"""The presets of `experiments.image`: rows of flags, each with its paper.

What a row reproduces, on what hardware and with what result, stands in the README's table.
"""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
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
