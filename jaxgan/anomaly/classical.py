"""Two classical detectors of outliers in tables, to measure beside networks: scores of rows, higher is more anomalous.

Both take rows that are normal, float (n, d), and others (m, d), and give float64 (m,).
"""

import numpy as np

NEIGHBORS = 5


def nearest(normal: np.ndarray, rows: np.ndarray, k: int = NEIGHBORS) -> np.ndarray:
    """Distance to the k-th nearest normal row (Ramaswamy et al., SIGMOD 2000), or of fewer to the farthest."""
    from sklearn.neighbors import NearestNeighbors  # takes a second to import

    found = NearestNeighbors(n_neighbors=min(k, len(normal))).fit(normal)
    return found.kneighbors(rows)[0][:, -1].astype(np.float64)


def ecod(normal: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """ECOD (arXiv:2201.00382, algorithm 1): how far out in the tails of each column, one by one.

    F(x) is the share of values at most x, and G(x) that of values at least x, each row being counted with the normal
    ones, so that none is 0. The score is the largest of three sums over columns: of -log F, of -log G, and of the one
    to whose side a column is skewed, -log F where its skewness is below 0.
    """
    n = len(normal)
    normal, rows = np.asarray(normal, np.float64), np.asarray(rows, np.float64)
    order = np.sort(normal, 0)
    left, right = np.empty(rows.shape), np.empty(rows.shape)
    for j in range(rows.shape[1]):
        left[:, j] = (1 + np.searchsorted(order[:, j], rows[:, j], side="right")) / (n + 1)
        right[:, j] = (1 + n - np.searchsorted(order[:, j], rows[:, j], side="left")) / (n + 1)
    centered = normal - normal.mean(0)
    centered /= np.maximum(np.abs(centered).max(0), np.finfo(np.float64).tiny)  # cubes of any numbers are finite
    to_left = (centered**3).mean(0) < 0  # the sign of the skewness
    tails = -np.log(left), -np.log(right)
    return np.max([tails[0].sum(1), tails[1].sum(1), np.where(to_left, *tails).sum(1)], 0)
