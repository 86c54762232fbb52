"""Fréchet distance between Gaussians fitted to two sets of features (arXiv:1706.08500, eq. 6).

FID is this distance in the 2,048 features of Inception's last pooling layer. Published figures take 50,000 samples of
the generator, against the whole training set or 50,000 images of it: the distance falls with the number of samples, so
figures of other numbers do not compare. Everything is float64 on the host.

    real, fake = Accumulator(), Accumulator()
    for batch in batches:                       # (b, d), of any and of differing sizes
        real.add(batch)
    fid = distance(real.moments(), fake.moments())
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
from scipy.linalg import blas, lapack
from threadpoolctl import threadpool_limits

from jaxgan.errors import InputError
from jaxgan.metrics.features import ROWS, blocks, checked, same_width


class Moments(NamedTuple):
    mean: np.ndarray  # (d,) float64
    covariance: np.ndarray  # (d, d) float64, divided by n - 1


class Accumulator:
    """Moments of features that come in batches: independent of their sizes, order and division to about 1e-13.

    The sums are of distances from the first batch's mean, so a common offset costs no digits. A batch costs one
    symmetric product, b d² operations. Several devices or hosts fill one each and `merge` them; between hosts travel
    the count and the moments, from which `of` makes an accumulator again.
    """

    def __init__(self) -> None:
        self.count = 0
        self._shift = self._sum = np.zeros(0)  # (d,)
        self._square = np.zeros((0, 0))  # (d, d), its upper triangle

    @classmethod
    def of(cls, moments: Moments, count: int) -> "Accumulator":
        """What gave these moments of `count` >= 2 samples."""
        if count < 2:
            raise InputError(f"moments of {count} samples: expected at least 2")
        made = cls()
        made.count = count
        made._shift, made._sum = np.array(moments.mean, np.float64), np.zeros(len(moments.mean))
        made._square = np.array(moments.covariance, np.float64, order="F") * (count - 1)
        return made

    def add(self, features: np.ndarray) -> None:
        """A batch (b, d), b >= 0, float32 or float64."""
        x = checked(features, "features", least=0)
        if not len(x):
            return
        if not self.count:
            self._shift = x.mean(0, dtype=np.float64)
            self._sum = np.zeros(x.shape[1])
            self._square = np.zeros((x.shape[1], x.shape[1]), order="F")
        self._expect(x.shape[1])
        for rows in blocks(len(x), ROWS):
            moved = x[rows] - self._shift
            self._sum += moved.sum(0)
            self._square = blas.dsyrk(1.0, moved.T, beta=1.0, c=self._square, overwrite_c=True)
        self.count += len(x)

    def merge(self, other: "Accumulator") -> None:
        """Takes in what another one has seen."""
        if not other.count:
            return
        if not self.count:
            self._shift, self._sum, self._square = other._shift, other._sum.copy(), other._square.copy(order="F")
        else:
            self._expect(len(other._sum))
            gap = other._shift - self._shift
            cross = np.outer(other._sum, gap)
            self._square += other._square + cross + cross.T + other.count * np.outer(gap, gap)
            self._sum = self._sum + other._sum + other.count * gap
        self.count += other.count

    def moments(self) -> Moments:
        if self.count < 2:
            raise InputError(f"moments of {self.count} samples: expected at least 2")
        upper = np.triu(self._square - np.outer(self._sum, self._sum / self.count)) / (self.count - 1)
        return Moments(self._shift + self._sum / self.count, upper + np.triu(upper, 1).T)

    def _expect(self, d: int) -> None:
        if d != len(self._sum):
            raise InputError(f"features of {d} dimensions after those of {len(self._sum)}: expected the same network's")


def moments(features: np.ndarray) -> Moments:
    """Features (n, d), n >= 2."""
    found = Accumulator()
    found.add(checked(features, "features"))
    return found.moments()


def distance(a: Moments, b: Moments) -> float:
    """||μa - μb||² + tr(A + B - 2 (A B)^½), 0 or more but for rounding; of covariances of any rank.

    With A = L Lᵀ and B = K Kᵀ, tr (A B)^½ is the sum of the singular values of Lᵀ K. They are right to 1e-16 of the
    largest; the eigenvalues of A B, whose roots they are, would leave 1e-8 of it, which many dimensions add up. The
    factors are pivoted Cholesky's, which end at the rank, so fewer samples than dimensions cost less, not digits.
    """
    same_width(len(a.mean), len(b.mean))
    for name, given in (("real", a), ("generated", b)):
        if not all(np.isfinite(part).all() for part in given):
            raise InputError(f"moments of {name} features: NaN or infinity, expected finite numbers")
    # Thousands of short products, whose threads wait for each other: of 2,048 dimensions, one takes 2.5 s at any time,
    # two 1.6 s on two idle cores and 30 s on busy ones.
    with threadpool_limits(1, user_api="blas"):
        product = _factor(a.covariance) @ _factor(b.covariance).T
        cross = scipy.linalg.svdvals(product, overwrite_a=True, check_finite=False).sum() if product.size else 0.0
    gap = a.mean - b.mean
    return float(gap @ gap + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def _factor(covariance: np.ndarray) -> np.ndarray:
    """(rank, d), whose product with itself transposed, its own transpose first, is the covariance (d, d)."""
    upper, pivots, rank, _ = lapack.dpstrf(covariance)
    factor = np.empty((rank, len(covariance)))
    factor[:, pivots - 1] = np.triu(upper)[:rank]
    return factor
