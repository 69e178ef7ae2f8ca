"""The rows of the table: what is measured, against what, and what is asked of it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from benchmarks import comparators
from benchmarks.checkpoints import CLIP_LARGE, LLAMA_7B, make_checkpoint
from benchmarks.measuring import ratio, run_alone, take_turns
from benchmarks.videos import make_long_video
from longvlm.model.prompting import build_prompt, user_message
from longvlm.pipeline import LongVLM
from longvlm.stages.merging import merge_tokens
from longvlm.stages.video import open_video
from longvlm.types import Frames, Sampling, SamplingMode, Timings
from longvlm.video_index import VideoIndex
from longvlm.world.scene import make_scene
from longvlm.world.video import write_video

NUM_FRAMES = 100
_MATRIX_SIDE = 2048
_ROOM_FOR_7B = 17 * 2**30  # 13.6 GB of weights, and what they are read through


@dataclass(frozen=True)
class Row:
    """One line of the table.

    `reached` and `asked` are in `unit`: "×" (how many times faster, or less) or "% of peak", at least; "s" or "% off",
    at most. `asked` is None where the row only reports. `measured`: seconds, or bytes, of every run by name.
    """

    what: str
    against: str
    reached: float
    asked: float | None
    unit: str
    measured: dict[str, list[float]] = field(default_factory=dict)

    @property
    def holds(self) -> bool | None:
        if self.asked is None:
            return None
        return self.reached <= self.asked if self.is_limit else self.reached >= self.asked

    @property
    def is_limit(self) -> bool:
        """Whether less is better."""
        return self.unit in ("s", "% off")


@dataclass(frozen=True)
class Bench:
    """What all rows share: where videos and checkpoints lie, and how often a comparison is repeated."""

    folder: Path
    repeats: int
    device: str

    def video(self, minutes: float) -> Path:
        return make_long_video(self.folder, minutes)

    def encode_alone(self, kind: str, video: Path) -> dict[str, float]:
        """Seconds and bytes of `benchmarks.encode_once`."""
        chosen = "--checkpoint", str(make_checkpoint(self.folder)), "--device", self.device
        return run_alone("benchmarks.encode_once", kind, str(video), str(NUM_FRAMES), *chosen)

    @cached_property
    def model(self) -> LongVLM:
        return LongVLM.from_pretrained(make_checkpoint(self.folder), device=self.device)

    @cached_property
    def large_shape(self) -> str:
        """Of the language model that questions are put to: 7B where bfloat16 is fast and there is room, else 1B."""
        return "7B" if self.model.dtype == torch.bfloat16 and _free_bytes(self.device) > _ROOM_FOR_7B else "1B"

    @property
    def large_checkpoint(self) -> Path:
        if self.large_shape == "1B":
            return make_checkpoint(self.folder)
        return make_checkpoint(self.folder, text=LLAMA_7B, name="clip-large-llama-7b")

    @cached_property
    def large_model(self) -> LongVLM:
        return LongVLM.from_pretrained(self.large_checkpoint, device=self.device)

    @cached_property
    def index(self) -> VideoIndex:
        """Of the half hour, 305 tokens."""
        path = self.folder / "30-minutes.longvlm"
        if not path.is_file():
            self.model.encode(self.video(30), num_frames=NUM_FRAMES).save(path)
        return VideoIndex.load(path)


def encode_rows(bench: Bench) -> Iterator[Row]:
    model, video = bench.model, bench.video(30)
    reference_tower = comparators.plain_tower(model, torch.float32).to(model.device)
    fast_tower = comparators.plain_tower(model, model.dtype).to(model.device)
    seconds = take_turns(
        {
            "exact": lambda: model.encode(video, num_frames=NUM_FRAMES),
            "keyframe": lambda: model.encode(video, num_frames=NUM_FRAMES, sampling="keyframe"),
            "reference path": lambda: comparators.reference_path(reference_tower, video, NUM_FRAMES),
            "plain path": lambda: comparators.plain_path(fast_tower, video, NUM_FRAMES),
        },
        bench.repeats,
        warm_up=False,
    )
    half_hour = f"encode 30 minutes, {NUM_FRAMES} frames"
    for what, name, against, asked in (
        (f"{half_hour}, exact", "exact", "reference path", 5.0),
        (f"{half_hour}, keyframe mode", "keyframe", "reference path", 8.0),
        (f"{half_hour}, exact", "exact", "plain path", 1.4),
    ):
        measured = {key: seconds[key] for key in (name, against)}
        yield Row(what, f"{against}, {dtype_name(model)}" if against == "plain path" else against,
                  ratio(seconds[against], seconds[name]), asked, "×", measured)  # fmt: skip


def encoder_rows(bench: Bench) -> Iterator[Row]:
    model = bench.model
    pixels = torch.randint(0, 256, (10, 3, CLIP_LARGE["image_size"], CLIP_LARGE["image_size"]), dtype=torch.uint8)
    segment = Frames(pixels, tuple(map(float, range(10))), num_distinct=10)
    sides = torch.randn(2, _MATRIX_SIDE, _MATRIX_SIDE, device=model.device, dtype=model.dtype)

    def encode() -> None:
        for _ in range(NUM_FRAMES // 10):
            model.encoder(segment).patches.sum().item()

    def multiply() -> None:
        for _ in range(50):
            product = sides[0] @ sides[1]
        product.sum().item()

    seconds = take_turns({"encoder": encode, "matrix product": multiply}, bench.repeats)
    peak = [50 * 2 * _MATRIX_SIDE**3 / second for second in seconds["matrix product"]]
    speed = [count_tower_operations() * NUM_FRAMES / second for second in seconds["encoder"]]
    yield Row(
        f"encoder alone, CLIP-L, {NUM_FRAMES} frames, {dtype_name(model)}",
        f"matrix product {_MATRIX_SIDE}³, {dtype_name(model)}",
        100 * ratio(speed, peak),
        75.0,
        "% of peak",
        seconds,
    )


def count_tower_operations() -> float:
    """Of one frame through CLIP-L: two for each multiplication of its matrix products; the last layer, of which the
    [CLS] alone is read, has keys and values of all positions and little else.
    """
    width, inner, layers = (CLIP_LARGE[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    patches = (CLIP_LARGE["image_size"] // CLIP_LARGE["patch_size"]) ** 2
    tokens = patches + 1
    layer = tokens * (4 * width * width + 2 * width * inner) + 2 * tokens * tokens * width
    last = 2 * tokens * width * width
    return 2 * ((layers - 1) * layer + last + patches * 3 * CLIP_LARGE["patch_size"] ** 2 * width)


def merging_rows(bench: Bench) -> Iterator[Row]:
    dtype, device = bench.model.dtype, bench.model.device
    patches = torch.randn(NUM_FRAMES, 256, 1024, device=device, dtype=dtype)
    for frame in range(1, NUM_FRAMES):
        patches[frame] = 0.8 * patches[frame - 1] + 0.6 * patches[frame]
    segments = patches.view(-1, 2560, 1024)
    seconds = take_turns(
        {
            "merging": lambda: merge_tokens(segments, tokens_per_segment=30).features.sum().item(),
            "straightforward": lambda: comparators.merge(patches).sum().item(),
        },
        bench.repeats,
    )
    faster = ratio(seconds["straightforward"], seconds["merging"])
    yield Row(
        "merging, 100 × 256 × 1024 → 300",
        f"straightforward torch, {dtype_name(bench.model)}",
        faster,
        8.0,
        "×",
        seconds,
    )


def decoding_rows(bench: Bench) -> Iterator[Row]:
    video = bench.video(30)

    def decode(mode: SamplingMode) -> None:
        with open_video(video) as reader:
            sampling = Sampling(num_frames=NUM_FRAMES, mode=mode)
            for _ in reader.segments(sampling, frames_per_segment=10, image_size=224, fit="squash"):
                pass

    seconds = take_turns(
        {
            "exact": lambda: decode("exact"),
            "keyframe": lambda: decode("keyframe"),
            "decord": lambda: comparators.decode_with_decord(video, NUM_FRAMES),
        },
        bench.repeats,
        warm_up=False,
    )
    for name, what, asked in (("exact", f"{NUM_FRAMES} exact frames", 1.8), ("keyframe", "keyframe mode", 10.0)):
        measured = {key: seconds[key] for key in (name, "decord")}
        yield Row(f"decode 30 minutes, {what}, fitted to 224²", "decord `get_batch`, not fitted",
                  ratio(seconds["decord"], seconds[name]), asked, "×", measured)  # fmt: skip


def memory_rows(bench: Bench) -> Iterator[Row]:
    bytes_held: dict[str, list[float]] = {"longvlm": [], "reference": []}
    for _ in range(bench.repeats):
        for kind, held in bytes_held.items():
            held.append(bench.encode_alone(kind, bench.video(120))["bytes"])
    ours, theirs = bytes_held.values()
    yield Row(
        f"peak memory, encode 2 hours at {NUM_FRAMES} frames",
        "reference path",
        ratio(theirs, ours),
        3.0,
        "×",
        {"longvlm (bytes)": ours, "reference path (bytes)": theirs},
    )


def question_rows(bench: Bench) -> Iterator[Row]:
    """Time to the first token of a first and a second question about a video that is encoded already."""
    checkpoint = str(bench.large_checkpoint)
    seconds = run_alone(
        "benchmarks.ask_twice", checkpoint, str(bench.video(30)), str(NUM_FRAMES), str(bench.repeats),
        "--device", bench.device,
    )  # fmt: skip
    yield Row(
        f"second question on the same video, time to first token, {bench.large_shape}-shaped, "
        f"{dtype_name(bench.model)}",
        "first question, already encoded",
        ratio(seconds["first"], seconds["second"]),
        4.0,
        "×",
        seconds,
    )


def prefill_rows(bench: Bench) -> Iterator[Row]:
    model = bench.model
    prompt = build_prompt(
        model.processor, model.config, [user_message("What happens?", with_video=True)], bench.index, Timings()
    )
    compressed = len(prompt.token_ids)
    whole = compressed - 305 + NUM_FRAMES * 256
    language_model = model.language_model.model.language_model
    text = model.config.text_config

    def mebibytes(tokens: int) -> float:
        width = text.num_key_value_heads * text.head_dim
        return 2 * text.num_hidden_layers * width * tokens * model.dtype.itemsize / 2**20

    @torch.inference_mode()
    def prefill(tokens: int) -> None:
        embeddings = torch.randn(1, tokens, text.hidden_size, device=model.device, dtype=model.dtype)
        language_model(inputs_embeds=embeddings, use_cache=True).last_hidden_state[0, -1, 0].item()

    few = take_turns({"305 visual tokens": lambda: prefill(compressed)}, bench.repeats)
    all_of_them = take_turns({"25,600 visual tokens": lambda: prefill(whole)}, bench.repeats, warm_up=False)
    yield Row(
        f"prefill, {compressed} tokens, 1B-shaped, {dtype_name(model)}; KV cache {mebibytes(compressed):.0f} MiB",
        f"{whole} tokens; KV cache {mebibytes(whole):.0f} MiB",
        ratio(all_of_them["25,600 visual tokens"], few["305 visual tokens"]),
        None,
        "×",
        few | all_of_them,
    )


def plan_rows(bench: Bench) -> Iterator[Row]:
    """What `longvlm plan` says, against what it then takes."""
    video, checkpoint = bench.video(30), str(make_checkpoint(bench.folder))
    command = ("longvlm", "plan", str(video), "--model", checkpoint, "--num-frames", str(NUM_FRAMES), "--json")
    model, index = bench.model, bench.index
    planned: dict[str, list[float]] = {name: [] for name in ("encoding", "question", "memory (bytes)")}
    taken: dict[str, list[float]] = {name: [] for name in planned}
    for _ in range(bench.repeats):
        plan = run_alone(*command, "--device", bench.device)
        seconds, memory = plan["seconds"], plan["memory_bytes"]
        planned["encoding"].append(seconds["decode"] + seconds["encode"] + seconds["merge"])
        planned["question"].append(seconds["prefill"])
        planned["memory (bytes)"].append(memory["encoding_total"])
        alone = bench.encode_alone("longvlm", video)
        taken["encoding"].append(alone["seconds"])
        taken["memory (bytes)"].append(alone["bytes"])
        model.ask(None, "And without a video?", max_new_tokens=1)  # takes the place of what was kept
        taken["question"].append(model.ask(index, "What happens?", max_new_tokens=1).timings.prefill_seconds)
    for name, what in (
        ("encoding", f"`longvlm plan`: time to encode 30 minutes, {NUM_FRAMES} frames"),
        ("question", "`longvlm plan`: time to the first token, 1B-shaped"),
        ("memory (bytes)", f"`longvlm plan`: peak memory, encode 30 minutes, {NUM_FRAMES} frames"),
    ):
        off = 100 * abs(ratio(planned[name], taken[name]) - 1)
        kind = " (bytes)" if name.endswith("(bytes)") else ""
        measured = {f"planned{kind}": planned[name], f"taken{kind}": taken[name]}
        yield Row(what, "what it takes", off, 25.0, "% off", measured)


def start_rows(bench: Bench) -> Iterator[Row]:
    video = bench.folder / "three-minutes.mp4"
    if not video.is_file():
        write_video(make_scene(1_000_000_000, 180.0), video, width=320, height=240, fps=15)
    program = str(Path(sys.executable).with_name("longvlm"))
    commands = {"--help": [program, "--help"], "ask": [program, "ask", str(video), "What appears first?"]}
    seconds = take_turns(
        {
            name: lambda c=command: subprocess.run(c, check=True, capture_output=True)
            for name, command in commands.items()
        },
        bench.repeats,
    )
    for name, what, asked in (
        ("--help", "`longvlm --help`", 0.3),
        ("ask", "`longvlm ask`, default model, 3-minute video", 7.0),
    ):
        yield Row(what, "—", sorted(seconds[name])[bench.repeats // 2], asked, "s", {name: seconds[name]})


def dtype_name(model: LongVLM) -> str:
    return str(model.dtype).removeprefix("torch.")


def _free_bytes(device: str) -> int:
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    available = re.search(r"MemAvailable:\s*(\d+) kB", meminfo.read_text()) if meminfo.is_file() else None
    return int(available[1]) * 1024 if available else 0


ROWS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "encode": encode_rows,
    "encoder": encoder_rows,
    "merging": merging_rows,
    "decoding": decoding_rows,
    "memory": memory_rows,
    "questions": question_rows,
    "prefill": prefill_rows,
    "plan": plan_rows,
    "start": start_rows,
}
