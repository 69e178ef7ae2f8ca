"""Hierarchical token merging: a segment's thousands of patches become a few tokens, with a record of which.

Bipartite soft matching as in Token Merging (ToMe, arXiv 2210.09461), level by level within each segment as in
LongVLM (arXiv 2404.03384). The levels only decide which token a patch goes to; features follow from that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import normalize

from longvlm.errors import LongVLMError
from longvlm.types import Compression, MergedSegments, MergeOrder

# Similarities held at once: 8 MiB in float32, one of the paper's segments, as a processor's cache holds, or 64 MiB.
# Larger batches take several turns.
_MAX_SIMILARITIES_CPU, _MAX_SIMILARITIES = 2**21, 2**24
_BLOCK_SIMILARITIES = 128  # of a row, whose best is found first


def merge_segments(patches: torch.Tensor, settings: Compression) -> MergedSegments:
    """`merge_tokens` of patches (S, N, D) as the compression's settings say."""
    return merge_tokens(
        patches,
        tokens_per_segment=settings.tokens_per_segment,
        schedule=settings.merge_schedule,
        heads=settings.merge_heads,
        order=settings.merge_order,
        frames_per_segment=settings.frames_per_segment,
        frame_code=settings.frame_code,
    )


def merge_tokens(
    patches: torch.Tensor,
    *,
    tokens_per_segment: int,
    schedule: Sequence[int] | None = None,
    heads: int = 16,
    order: MergeOrder = "merge",
    frames_per_segment: int | None = None,
    frame_code: float = 0.0,
) -> MergedSegments:
    """Merge each segment's N patches into M = `tokens_per_segment` tokens.

    patches: (S, N, D), any device and float dtype, a segment's frames one after the other. `schedule` lists
    how many tokens each level removes (clamped to half of what is left: that is part of the algorithm); None
    halves down to M, with a smaller last step. `heads` splits D for the similarity. `order="merge"` leaves a
    segment's tokens as the last level left them; `"temporal"` sorts them by the mean position, among the
    segment's frames, of their patches and needs `frames_per_segment`: positions, not seconds, so where the frame
    rate varies within a segment, two tokens of several frames may stand otherwise than by their mean times.
    M = N returns the patches as they are.

    Each feature is the plain average of the patches assigned to it, which is what size-weighted averages at
    every level come to. Gradients reach the patches; the matching itself has none. With a `frame_code`, which
    also needs `frames_per_segment`, that many times the `frame_codes` are added to the patches first: averages of
    features alone say what a token shows, but not when, and patches of distant frames then merge less readily.

    Raises LongVLMError where M, the schedule, `heads` or `frames_per_segment` do not fit the patches.
    """
    num_patches = patches.shape[1]
    if order not in ("merge", "temporal"):
        raise LongVLMError(f"Unknown merge order {order!r}; choose 'merge' or 'temporal'.")
    reductions = plan_reductions(num_patches, tokens_per_segment, schedule)
    # Half precision would tie near-equal similarities and lose patches in large sums.
    precise = patches.to(torch.promote_types(patches.dtype, torch.float32))
    needs_frames = order == "temporal" or frame_code != 0
    if needs_frames and (not frames_per_segment or num_patches % frames_per_segment):
        raise LongVLMError(
            f"order='temporal' and frame codes need to know each patch's frame: frames_per_segment is "
            f"{frames_per_segment}, but must divide the segment's {num_patches} patches."
        )
    if frame_code and frames_per_segment:
        codes = frame_codes(frames_per_segment, patches.shape[2]).to(precise)
        precise = precise + frame_code * codes.repeat_interleave(num_patches // frames_per_segment, dim=0)
    assignment = _assign_patches(precise.detach(), reductions, heads)
    if order == "temporal" and frames_per_segment:
        assignment = _sort_by_time(assignment, tokens_per_segment, frames_per_segment)
    features, sizes = _average_assigned(precise, assignment, tokens_per_segment)
    return MergedSegments(features=features.to(patches.dtype), sizes=sizes, assignment=assignment)


def frame_codes(num_frames: int, width: int) -> torch.Tensor:
    """A code for each of a segment's frames, (K, D) float32: cosine waves over time, each along its own direction.

    Averages of codes keep what a token's patches have in common: their mean time, how long they last, and whether
    they come and go. The waves have no mean over the segment, so a token that lasts throughout has no code.
    """
    waves = torch.arange(1, min(num_frames, width))
    times = (torch.arange(num_frames) + 0.5) / num_frames
    places = (torch.arange(width) + 0.5) / width
    over_time = math.sqrt(2) * torch.cos(math.pi * times[:, None] * waves)
    directions = math.sqrt(2 / width) * torch.cos(math.pi * places * waves[:, None])
    return over_time @ directions


def plan_reductions(num_patches: int, tokens_per_segment: int, schedule: Sequence[int] | None = None) -> list[int]:
    """Tokens that each level removes from `num_patches` to `tokens_per_segment`; none if the two are equal.

    Raises LongVLMError where that is impossible or where `schedule`, clamped, ends at another number.
    """
    if not 1 <= tokens_per_segment <= num_patches:
        raise LongVLMError(
            f"tokens_per_segment is {tokens_per_segment}, but a segment has {num_patches} patches; "
            f"choose 1 to {num_patches} ({num_patches} turns merging off)."
        )
    tokens, reductions = num_patches, []
    if schedule is None:
        while tokens > tokens_per_segment:
            reductions.append(min(tokens // 2, tokens - tokens_per_segment))
            tokens -= reductions[-1]
        return reductions
    for wanted in schedule:
        if wanted < 1:
            raise LongVLMError(f"The merge schedule contains {wanted}; each level must remove at least 1 token.")
        if tokens == 1:
            break
        reductions.append(min(wanted, tokens // 2))
        tokens -= reductions[-1]
    if tokens != tokens_per_segment:
        raise LongVLMError(
            f"The merge schedule {list(schedule)} takes {num_patches} patches to {tokens} tokens, but "
            f"tokens_per_segment is {tokens_per_segment}; set it to {tokens}, or change the schedule."
        )
    return reductions


@torch.no_grad()
def _assign_patches(patches: torch.Tensor, reductions: list[int], heads: int) -> torch.Tensor:
    """The output token of every patch, (S, N) int64."""
    num_segments, num_patches, width = patches.shape
    if not reductions:
        return torch.arange(num_patches, device=patches.device).repeat(num_segments, 1)
    if width % heads:
        raise LongVLMError(
            f"Features of width {width} can't be split into {heads} heads; set merge_heads to a divisor."
        )
    # Averaging over heads and merging are both linear, so they commute: every level can run on head averages, D/heads
    # wide. Their sums do for their means, since normalising removes the sizes.
    sums = patches.unflatten(2, (heads, -1)).mean(2)
    assignment = torch.arange(num_patches, device=patches.device).repeat(num_segments, 1)
    memory = _take_memory(sums)
    with torch.autocast(patches.device.type, enabled=False):
        for removed in reductions:
            destination = _match_once(sums, removed, memory)
            remaining = sums.new_zeros(num_segments, sums.shape[1] - removed, sums.shape[2])
            sums = remaining.scatter_add_(1, destination[..., None].expand_as(sums), sums)
            assignment = destination.gather(1, assignment)
    return assignment


def _take_memory(tokens: torch.Tensor) -> torch.Tensor:
    """Room for the similarities of as many segments (S, N, C) as are matched at once, at least one; for all levels:
    the system clears new memory, which takes longer than the product that fills it.
    """
    num_segments, num_tokens, _ = tokens.shape
    pairs = max(1, num_tokens // 2) * ((num_tokens + 1) // 2)
    most = _MAX_SIMILARITIES_CPU if tokens.device.type == "cpu" else _MAX_SIMILARITIES
    return tokens.new_empty(max(pairs, min(most, num_segments * pairs)))


def _match_once(sums: torch.Tensor, removed: int, memory: torch.Tensor) -> torch.Tensor:
    """One level of matching: sums (S, T, C) -> each token's place among the T − removed next ones, (S, T).

    The next order is: unmerged even tokens by falling similarity, then all odd ones. Among equals the first
    wins, so that a segment's result does not depend on the batch it is in. The similarities are written to `memory`,
    of as many segments at once as it holds.
    """
    num_segments, num_tokens, _ = sums.shape
    metric = normalize(sums, dim=-1)
    even, odd = metric[:, ::2], metric[:, 1::2]
    pairs = even.shape[1] * odd.shape[1]
    segments_at_once = len(memory) // pairs
    best = []
    for some_even, some_odd in zip(even.split(segments_at_once), odd.split(segments_at_once), strict=True):
        similarity = memory[: len(some_even) * pairs].view(-1, even.shape[1], odd.shape[1])
        best.append(_find_best(torch.bmm(some_even, some_odd.transpose(1, 2), out=similarity)))
    best_similarity, best_odd = map(torch.cat, zip(*best, strict=True))
    ranked = best_similarity.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(num_tokens, device=sums.device)
    rank = torch.empty_like(ranked).scatter_(1, ranked, places[: ranked.shape[1]].expand_as(ranked))

    num_unmerged = ranked.shape[1] - removed
    destination = torch.empty(num_segments, num_tokens, dtype=torch.int64, device=sums.device)
    destination[:, ::2] = torch.where(rank < removed, num_unmerged + best_odd, rank - removed)
    destination[:, 1::2] = places[num_unmerged : num_tokens - removed]
    return destination


def _find_best(similarity: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest of each row (S, E, O) and its place, the first among equals: as `max(dim=-1)`, but several times
    faster, since a processor finds a maximum faster than its place, which only the best block is then searched for.
    """
    if similarity.shape[2] % _BLOCK_SIMILARITIES:
        best, place = similarity.max(dim=-1)
        return best, place
    blocks = similarity.view(-1, _BLOCK_SIMILARITIES)
    blocks_per_row = similarity.shape[2] // _BLOCK_SIMILARITIES
    best, block = blocks.amax(dim=1).view(-1, blocks_per_row).max(dim=1)
    best_blocks = torch.arange(len(block), device=block.device) * blocks_per_row + block
    place = block * _BLOCK_SIMILARITIES + blocks.index_select(0, best_blocks).argmax(dim=1)
    return best.view(similarity.shape[:2]), place.view(similarity.shape[:2])


def _sort_by_time(assignment: torch.Tensor, num_tokens: int, num_frames: int) -> torch.Tensor:
    """Renumber the tokens (S, N) by the mean frame position of their patches; equals keep their order."""
    num_patches = assignment.shape[1]
    frame = torch.arange(num_patches, device=assignment.device) // (num_patches // num_frames)
    frame_sums = _count(assignment, num_tokens, weights=frame)
    mean_frame = frame_sums / _count(assignment, num_tokens)
    place = mean_frame.argsort(dim=-1, stable=True).argsort(dim=-1)
    return place.gather(1, assignment)


def _average_assigned(
    patches: torch.Tensor, assignment: torch.Tensor, num_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of each token's patches, (S, M, D), and their number, (S, M)."""
    num_segments, _, width = patches.shape
    sizes = _count(assignment, num_tokens)
    first_token = torch.arange(num_segments, device=patches.device)[:, None] * num_tokens
    sums = patches.new_zeros(num_segments * num_tokens, width)
    sums = sums.index_add(0, (first_token + assignment).flatten(), patches.flatten(0, 1))
    return sums.unflatten(0, (num_segments, num_tokens)) / sizes[..., None], sizes


def _count(assignment: torch.Tensor, num_tokens: int, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Patches of each token, (S, M) int64, or the sum of their integer `weights` (N,)."""
    values = torch.ones_like(assignment) if weights is None else weights.expand_as(assignment)
    return assignment.new_zeros(len(assignment), num_tokens).scatter_add_(1, assignment, values)
