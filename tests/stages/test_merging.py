"""Merging against the reference's outputs, a plain-loop oracle, and its own promises."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from longvlm.errors import LongVLMError
from longvlm.stages.merging import frame_codes, merge_segments, merge_tokens, plan_reductions
from longvlm.types import Compression

DATA = Path(__file__).parents[1] / "data"
GOLDEN_CASES = json.loads((DATA / "merge.json").read_text())
PAPER_SCHEDULE = [1280, 640, 320, 160, 80, 40, 10]


def correlated_patches(num_segments: int, frames: int, patches: int, width: int, seed: int = 0) -> torch.Tensor:
    """Segments (S, K·P, D) whose frames resemble their predecessors, as a video's do."""
    x = torch.randn(num_segments, frames, patches, width, generator=torch.Generator().manual_seed(seed))
    for t in range(1, frames):
        x[:, t] = 0.8 * x[:, t - 1] + 0.6 * x[:, t]
    return x.flatten(1, 2)


def merge_by_loops(
    patches: list[list[float]], reductions: list[int], heads: int
) -> tuple[list[list[float]], list[list[int]]]:
    """One segment merged token by token: the features, and the patches behind each in the final order."""
    tokens = [(list(patch), [number]) for number, patch in enumerate(patches)]

    def metric(feature: list[float]) -> list[float]:
        size = len(feature) // heads
        mean = [sum(feature[h * size + i] for h in range(heads)) / heads for i in range(size)]
        norm = math.sqrt(sum(value * value for value in mean))
        return [value / norm for value in mean]

    for removed in reductions:
        evens, odds = tokens[::2], tokens[1::2]
        proposals = []
        for i, (even, _) in enumerate(evens):
            similarities = [sum(a * b for a, b in zip(metric(even), metric(odd), strict=True)) for odd, _ in odds]
            best = max(range(len(odds)), key=lambda j: similarities[j])
            proposals.append((similarities[best], i, best))
        proposals.sort(key=lambda proposal: -proposal[0])
        for _, i, j in proposals[:removed]:
            (a, members_a), (b, members_b) = evens[i], odds[j]
            n_a, n_b = len(members_a), len(members_b)
            mean = [(n_a * u + n_b * v) / (n_a + n_b) for u, v in zip(a, b, strict=True)]
            odds[j] = (mean, members_b + members_a)
        tokens = [evens[i] for _, i, _ in proposals[removed:]] + odds
    return [feature for feature, _ in tokens], [members for _, members in tokens]


@pytest.mark.parametrize("case", range(len(GOLDEN_CASES)))
def test_golden_outputs_are_reproduced(case: int) -> None:
    spec = GOLDEN_CASES[case]
    shape = (spec["frames"], spec["patches"], spec["dim"])
    x = np.random.RandomState(spec["seed"]).standard_normal(shape).astype(np.float32)
    for t in range(1, spec["frames"]):
        x[t] = 0.8 * x[t - 1] + 0.6 * x[t]
    num_segments = spec["frames"] // spec["frames_per_segment"]
    expected = torch.from_numpy(np.load(DATA / "merge.npz")[f"case{case}"])

    merged = merge_tokens(
        torch.from_numpy(x).reshape(num_segments, -1, spec["dim"]),
        tokens_per_segment=len(expected) // num_segments,
        schedule=spec["reductions"],
    )

    torch.testing.assert_close(merged.features.flatten(0, 1), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("num_patches", "tokens"), [(40, 7), (41, 6), (33, 1), (12, 11), (2, 1)])
def test_equals_the_plain_loops(num_patches: int, tokens: int) -> None:
    patches = correlated_patches(2, 1, num_patches, 16, seed=num_patches).double()
    merged = merge_tokens(patches, tokens_per_segment=tokens, heads=4)
    for segment, features, assignment in zip(patches, merged.features, merged.assignment, strict=True):
        expected, members = merge_by_loops(segment.tolist(), plan_reductions(num_patches, tokens), heads=4)
        torch.testing.assert_close(features, torch.tensor(expected, dtype=torch.float64))
        assert [sorted(m) for m in members] == [
            (assignment == token).nonzero().flatten().tolist() for token in range(tokens)
        ]


def test_among_equals_the_first_wins_in_long_rows_too() -> None:
    patches = torch.eye(4)[torch.randint(0, 4, (512,), generator=torch.Generator().manual_seed(0))]
    merged = merge_tokens(patches[None], tokens_per_segment=300, heads=1)
    _, members = merge_by_loops(patches.tolist(), [212], heads=1)
    assert [sorted(m) for m in members] == [
        (merged.assignment[0] == token).nonzero().flatten().tolist() for token in range(300)
    ]


def test_assignment_accounts_for_sizes_and_features() -> None:
    patches = correlated_patches(3, 5, 12, 32)
    merged = merge_tokens(patches, tokens_per_segment=8, heads=4)
    for segment, features, sizes, assignment in zip(
        patches, merged.features, merged.sizes, merged.assignment, strict=True
    ):
        assert torch.equal(assignment.bincount(minlength=8), sizes)
        means = torch.stack([segment[assignment == token].mean(0) for token in range(8)])
        torch.testing.assert_close(features, means)


def test_default_schedule_is_the_papers() -> None:
    assert plan_reductions(2560, 30) == PAPER_SCHEDULE
    assert plan_reductions(2560, 30, PAPER_SCHEDULE) == PAPER_SCHEDULE
    assert plan_reductions(7, 7) == []


def test_schedule_steps_are_clamped_to_half_of_what_is_left() -> None:
    assert plan_reductions(2560, 20, [2880, 1440, 720, 360, 180, 90, 40]) == [1280, 640, 320, 160, 80, 40, 20]
    assert plan_reductions(3, 1, [5, 5, 5]) == [1, 1]


def test_merging_off_returns_the_patches_in_their_order() -> None:
    patches = correlated_patches(2, 3, 4, 10)
    for order in ("merge", "temporal"):
        merged = merge_tokens(patches, tokens_per_segment=12, order=order, frames_per_segment=3)
        assert torch.equal(merged.features, patches)
        assert torch.equal(merged.assignment, torch.arange(12).expand(2, 12))
        assert torch.equal(merged.sizes, torch.ones(2, 12, dtype=torch.int64))


def test_temporal_order_sorts_the_same_tokens_by_mean_frame() -> None:
    patches = correlated_patches(4, 6, 9, 32)
    plain = merge_tokens(patches, tokens_per_segment=10)
    sorted_ = merge_tokens(patches, tokens_per_segment=10, order="temporal", frames_per_segment=6)
    frame = torch.arange(54).double() // 9
    for s in range(4):
        mean_frames = torch.stack([frame[plain.assignment[s] == token].mean() for token in range(10)])
        place = mean_frames.argsort(stable=True)
        assert not torch.equal(place, torch.arange(10))
        assert torch.equal(sorted_.features[s], plain.features[s][place])
        assert torch.equal(sorted_.sizes[s], plain.sizes[s][place])
        assert torch.equal(place[sorted_.assignment[s]], plain.assignment[s])


def test_segments_are_merged_by_all_of_a_compressions_settings() -> None:
    shared = {"frames_per_segment": 3, "tokens_per_segment": 5, "frame_code": 0.5}
    settings = Compression(**shared, merge_schedule=(20, 10, 9, 4), merge_heads=2, merge_order="temporal")
    patches = correlated_patches(2, 3, 16, 8)
    merged = merge_segments(patches, settings)
    expected = merge_tokens(patches, **shared, schedule=(20, 10, 9, 4), heads=2, order="temporal")
    assert torch.equal(merged.assignment, expected.assignment)
    assert torch.equal(merged.features, expected.features)
    defaults = {"merge_schedule": None, "merge_heads": 4, "merge_order": "merge", "frame_code": 0.0}
    for name, value in defaults.items():
        other = merge_segments(patches, dataclasses.replace(settings, **{name: value}))
        assert not torch.equal(other.assignment, merged.assignment), name


def test_frame_codes_are_added_before_the_matching() -> None:
    patches = correlated_patches(2, frames=5, patches=8, width=32)
    coded = patches + 0.7 * frame_codes(5, 32).repeat_interleave(8, dim=0)
    wanted = merge_tokens(coded, tokens_per_segment=6, heads=2)
    merged = merge_tokens(patches, tokens_per_segment=6, heads=2, frames_per_segment=5, frame_code=0.7)
    assert torch.equal(merged.assignment, wanted.assignment)
    torch.testing.assert_close(merged.features, wanted.features)


def test_frame_codes_of_different_frames_are_equally_far_apart_and_cancel_over_a_segment() -> None:
    codes = frame_codes(10, 128)
    torch.testing.assert_close(codes.sum(0), torch.zeros(128), atol=1e-5, rtol=0)
    distances = torch.cdist(codes, codes)[~torch.eye(10, dtype=torch.bool)]
    torch.testing.assert_close(distances, torch.full_like(distances, math.sqrt(20)), atol=1e-4, rtol=0)


def test_frame_codes_keep_what_moves_apart() -> None:
    """The same patch in every frame is one token without codes, and several with them."""
    still = torch.randn(1, 1, 4, 32, generator=torch.Generator().manual_seed(0)).expand(1, 10, 4, 32).flatten(1, 2)
    plain = merge_tokens(still, tokens_per_segment=10, heads=1, frames_per_segment=10)
    coded = merge_tokens(still, tokens_per_segment=10, heads=1, frames_per_segment=10, frame_code=3.0)
    frame = torch.arange(40) // 4

    def longest(assignment: torch.Tensor) -> int:
        return max(int((frame[assignment == m].max() - frame[assignment == m].min()) + 1) for m in range(10))

    assert longest(coded.assignment[0]) < longest(plain.assignment[0])


@pytest.mark.parametrize("kind", ["different", "equal"])
def test_a_segment_does_not_depend_on_its_batch(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = correlated_patches(5, 4, 16, 64)
    if kind == "equal":  # a still picture: every frame ties with every other
        patches = patches[:, :16].repeat(1, 4, 1)
    together = merge_tokens(patches, tokens_per_segment=9)
    alone = [merge_tokens(segment[None], tokens_per_segment=9) for segment in patches]
    assert torch.equal(together.assignment, torch.cat([one.assignment for one in alone]))
    assert torch.equal(together.features, torch.cat([one.features for one in alone]))

    monkeypatch.setattr("longvlm.stages.merging._MAX_SIMILARITIES_CPU", 2 * 32**2)
    in_turns = merge_tokens(patches, tokens_per_segment=9)
    assert torch.equal(together.assignment, in_turns.assignment)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_merged_in_float32(dtype: torch.dtype) -> None:
    patches = correlated_patches(2, 5, 16, 64).to(dtype)
    expected = merge_tokens(patches.float(), tokens_per_segment=7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        merged = merge_tokens(patches, tokens_per_segment=7)
    assert torch.equal(merged.assignment, expected.assignment)
    assert torch.equal(merged.features, expected.features.to(dtype))


def test_gradients_reach_every_patch() -> None:
    patches = correlated_patches(2, 2, 6, 8).double().requires_grad_()
    merged = merge_tokens(patches, tokens_per_segment=4, heads=2)
    weights = torch.randn(merged.features.shape, generator=torch.Generator().manual_seed(1)).double()
    (merged.features * weights).sum().backward()
    share = weights / merged.sizes[..., None]
    expected = torch.stack([share[s][merged.assignment[s]] for s in range(2)])
    torch.testing.assert_close(patches.grad, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens_per_segment": 13}, "tokens_per_segment is 13, but a segment has 12 patches"),
        ({"tokens_per_segment": 0}, "tokens_per_segment is 0"),
        ({"tokens_per_segment": 5, "schedule": [6]}, r"to 6 tokens, but tokens_per_segment is 5"),
        ({"tokens_per_segment": 12, "schedule": [0]}, "contains 0"),
        ({"tokens_per_segment": 6, "heads": 3}, "width 16 can't be split into 3 heads"),
        ({"tokens_per_segment": 6, "order": "temporal"}, "frames_per_segment is None"),
        ({"tokens_per_segment": 6, "order": "temporal", "frames_per_segment": 5}, "frames_per_segment is 5"),
        ({"tokens_per_segment": 6, "order": "time"}, "Unknown merge order 'time'"),
    ],
)
def test_impossible_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(LongVLMError, match=message):
        merge_tokens(torch.randn(1, 12, 16), **settings)
