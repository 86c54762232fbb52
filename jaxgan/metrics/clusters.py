"""Whether clusters are classes: which class each cluster is taken for, one to one, and how often that is right.

The accuracy of unsupervised classification (arXiv:1511.06335, eq. 10), and of InfoGAN's categorical code
(arXiv:1606.03657, section 7.2).
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize

from jaxgan.errors import InputError


class Matching(NamedTuple):
    accuracy: float  # share of the samples whose cluster is taken for their class
    classes: np.ndarray  # (k,) what each cluster is taken for; -1: with more clusters than classes, nothing
    table: np.ndarray  # (k, classes) samples of each cluster and class


def matching(clusters: np.ndarray, labels: np.ndarray, k: int, classes: int) -> Matching:
    """The assignment of clusters (n,) in range(k) to labels (n,) in range(classes) that is right most often, n >= 1."""
    for name, found, most in (("clusters", clusters, k), ("labels", labels, classes)):
        if found.shape != (len(clusters),) or not len(found) or found.dtype.kind not in "iu":
            raise InputError(f"{name} of shape {found.shape} and type {found.dtype}: expected integers (n,), n >= 1")
        if found.min() < 0 or found.max() >= most:
            raise InputError(f"{name} from {found.min()} to {found.max()}: expected 0 to {most - 1}")
    table = np.zeros((k, classes), np.int64)
    np.add.at(table, (clusters, labels), 1)
    rows, columns = optimize.linear_sum_assignment(table, maximize=True)
    taken = np.full(k, -1)
    taken[rows] = columns
    return Matching(float(table[rows, columns].sum() / len(labels)), taken, table)
