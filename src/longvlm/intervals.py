"""95 % intervals of means and shares of what comes in clusters: answers about one video go right or wrong together."""

from __future__ import annotations

import numpy as np

RESAMPLES = 2000


def interval_of_share(is_right: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """95 % interval of the share of right answers (n,), by whole clusters.

    Where all answers are alike no draw of them differs; then Wilson's interval for as many clusters.
    """
    share, squared = float(is_right[0]), 1.96**2
    if (is_right != share).any():
        return clustered_interval(is_right, clusters)
    num_clusters = len(np.unique(clusters))
    uncertain = squared / (num_clusters + squared)
    return (1 - uncertain, 1.0) if share else (0.0, uncertain)


def clustered_interval(values: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of `values` (n,): a percentile bootstrap that draws whole clusters."""
    _, member = np.unique(clusters, return_inverse=True)
    totals, sizes = np.bincount(member, weights=values), np.bincount(member)
    drawn = np.random.RandomState(0).randint(0, len(sizes), (RESAMPLES, len(sizes)))
    means = totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
