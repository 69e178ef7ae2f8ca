"""Which sample stands where in a run: a plan made before the start, so that a resumed run finds its place in it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import cycle, islice

# Within so many batches samples are sorted by length: enough to fit well, few enough to stay well mixed.
BATCHES_PER_GROUP = 50


def plan_samples(
    lengths: Sequence[int],
    weights: Sequence[float],
    *,
    epochs: float,
    batch_size: int,
    group_lengths: bool,
    seed: int,
) -> list[int]:
    """Positions of samples in the order of training, over all epochs.

    A sample of weight w occurs w times an epoch; of a fraction, other samples in each epoch. With `group_lengths`,
    every `batch_size` samples that follow one another are of like length, and such batches come in random order; what
    does not fill a batch of its epoch comes at the end of all, epoch after epoch. The last batch is filled up with the
    first samples, so that it is the same on any number of processes.
    """
    order: list[int] = []
    rests: list[int] = []
    for epoch in range(math.ceil(epochs)):
        rng = random.Random(f"order {seed} {epoch}")
        positions = _draw_epoch(weights, rng, epoch)
        positions = positions[: round(len(positions) * min(1.0, epochs - epoch))]
        if group_lengths:
            positions, rest = _group(positions, lengths, batch_size, rng)
            rests += rng.sample(rest, len(rest))
        order += positions
    for first in range(0, len(rests), batch_size):
        order += sorted(rests[first : first + batch_size], key=lambda position: lengths[position])
    return order + list(islice(cycle(order), -len(order) % batch_size))


def _draw_epoch(weights: Sequence[float], rng: random.Random, epoch: int) -> list[int]:
    """Every position as often as its weight says, shuffled. Places are dealt out evenly, epoch after epoch."""
    positions = []
    offsets = random.Random(f"weights {len(weights)}")
    for position, weight in enumerate(weights):
        start = offsets.random() + epoch * weight
        positions += [position] * (int(start + weight) - int(start))
    rng.shuffle(positions)
    return positions


def _group(
    positions: list[int], lengths: Sequence[int], batch_size: int, rng: random.Random
) -> tuple[list[int], list[int]]:
    """Whole batches, one after another, and the rest, which would shift the batches of a next epoch."""
    size = batch_size * BATCHES_PER_GROUP
    batches: list[list[int]] = []
    for first in range(0, len(positions), size):
        group = sorted(positions[first : first + size], key=lambda position: lengths[position])
        batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    whole = [batch for batch in batches if len(batch) == batch_size]
    rng.shuffle(whole)
    rest = [position for batch in batches if len(batch) < batch_size for position in batch]
    return [position for batch in whole for position in batch], rest
