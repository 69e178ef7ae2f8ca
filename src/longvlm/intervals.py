"""95 % intervals of means and shares of what comes in clusters: answers about one video go right or wrong together."""

from __future__ import annotations

import numpy as np

RESAMPLES = 2000


def interval_of_share(shares: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of values from 0 to 1 (n,), right answers or parts of them, by whole clusters.

    Where all clusters have the same mean, as one alone has, no draw differs from another; then Wilson's interval for
    as many clusters, which is the widest that such values can have.
    """
    names, member = np.unique(clusters, return_inverse=True)
    share, num_clusters = float(np.mean(shares)), len(names)
    if np.ptp(np.bincount(member, weights=shares) / np.bincount(member)) > 1e-9:
        return clustered_interval(shares, clusters)
    weight = 1.96**2 / num_clusters
    centre, spread = share + weight / 2, np.sqrt(weight * (share * (1 - share) + weight / 4))
    low, high = (float(bound / (1 + weight)) for bound in (centre - spread, centre + spread))
    return (low if share else 0.0), (high if share < 1 else 1.0)


def clustered_interval(values: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of `values` (n,): a percentile bootstrap that draws whole clusters; NaN where there is
    but one, which tells nothing of others.
    """
    if len(np.unique(clusters)) == 1:
        return float("nan"), float("nan")
    _, member = np.unique(clusters, return_inverse=True)
    totals, sizes = np.bincount(member, weights=values), np.bincount(member)
    drawn = np.random.RandomState(0).randint(0, len(sizes), (RESAMPLES, len(sizes)))
    means = totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
