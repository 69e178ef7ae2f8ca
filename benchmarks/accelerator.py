"""What an accelerator does with CLIP-L and a LLaMA: frames and tokens a second, one at a time and eight at once.

Nothing is asked of these rows; they come with `--device cuda`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch

from benchmarks.measuring import take_turns
from benchmarks.rows import Bench, Row, dtype_name
from longvlm.pipeline import LongVLM
from longvlm.types import Frames

_AT_ONCE = (1, 8)
_WITH_GRAPHS = (False, True)
_PROMPT_TOKENS, _NEW_TOKENS = 313, 64


def accelerator_rows(bench: Bench) -> Iterator[Row]:
    model = bench.large_model
    _memory(model)  # from here on
    for videos in _AT_ONCE:
        yield _encoding(model, videos, bench.repeats)
    for prompts in _AT_ONCE:
        for graphs in _WITH_GRAPHS:
            yield _generation(model, prompts, bench.repeats, graphs=graphs)


def _encoding(model: LongVLM, videos: int, repeats: int) -> Row:
    """A segment of each video in one batch."""
    size, count = model.encoder.image_size, videos * model.compression.frames_per_segment
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    segment = Frames(pixels, tuple(map(float, range(count))), num_distinct=count)
    seconds = take_turns({"encoder": lambda: model.encoder(segment).patches.sum().item()}, repeats)
    return Row(
        f"encoder alone, {videos} × {count // videos} frames at once, {dtype_name(model)}{_memory(model)}",
        "—",
        count / statistics.median(seconds["encoder"]),
        None,
        "frames a second",
        seconds,
    )


def _generation(model: LongVLM, prompts: int, repeats: int, *, graphs: bool) -> Row:
    """Tokens after the first. With a static cache, transformers compiles the forward pass, on CUDA into graphs."""
    ids = torch.full((prompts, _PROMPT_TOKENS), 5, device=model.device)
    generate = model.language_model.generate
    cache = {"cache_implementation": "static"} if graphs else {}

    def run(num_tokens: int) -> None:
        generate(input_ids=ids, max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False, **cache)

    seconds = take_turns({"many": lambda: run(_NEW_TOKENS), "one": lambda: run(1)}, repeats)
    generating = [many - statistics.median(seconds["one"]) for many in seconds["many"]]
    how = "compiled, static cache" if graphs else "eager"
    return Row(
        f"generation, {prompts} × {_PROMPT_TOKENS} tokens read, {how}, {dtype_name(model)}{_memory(model)}",
        "—",
        prompts * (_NEW_TOKENS - 1) / statistics.median(generating),
        None,
        "tokens a second",
        {"generating": generating},
    )


def _memory(model: LongVLM) -> str:
    if model.device.type != "cuda":
        return ""
    peak = torch.cuda.max_memory_allocated(model.device) / 2**30
    torch.cuda.reset_peak_memory_stats(model.device)
    return f"; {peak:.1f} GiB"
