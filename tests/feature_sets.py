"""Pairs of feature sets that numerics fail on: offset, ill-conditioned, of low rank, of copies, of tight clusters."""

import numpy as np

KINDS = ("plain", "offset", "conditioned", "low_rank", "copies", "clusters")


def pair(kind, n, m, d, seed=0):
    """Real (n, d) and generated (m, d) features, float32."""
    rng = np.random.default_rng(seed)
    if kind == "plain":  # non-negative, as Inception's are, and near a surface of few dimensions
        directions = rng.normal(size=(12, d)) / 4
        real, fake = (
            np.maximum(rng.normal(size=(k, 12)) @ directions * spread + rng.normal(0, 0.1, (k, d)) + 0.2, 0)
            for k, spread in ((n, 1.0), (m, 0.9))
        )
    elif kind == "offset":
        real, fake = rng.normal(size=(n, d)) + 1e3, 0.99 * rng.normal(size=(m, d)) + 1e3
    elif kind == "conditioned":
        sizes, turn = np.geomspace(1e-6, 1e3, d), np.linalg.qr(rng.normal(size=(d, d)))[0]
        real, fake = rng.normal(size=(n, d)) * sizes @ turn, rng.normal(size=(m, d)) * sizes @ turn * 1.1
    elif kind == "low_rank":
        directions = rng.normal(size=(5, d))
        real, fake = rng.normal(size=(n, 5)) @ directions, rng.normal(0.2, 1, (m, 5)) @ directions
    elif kind == "copies":  # of each other within the real set, and half of the generated ones of those
        real = rng.normal(size=(n // 3, d))[rng.integers(n // 3, size=n)]
        fake = np.concatenate([real[: m // 2], rng.normal(size=(m - m // 2, d))])
    else:
        centres = 100 * rng.normal(size=(10, d))
        real = centres[rng.integers(10, size=n)] + 1e-3 * rng.normal(size=(n, d))
        fake = centres[rng.integers(8, size=m)] + 1e-3 * rng.normal(size=(m, d))
    return real.astype(np.float32), fake.astype(np.float32)
