"""The plan against what really happens: counts and the weights' memory exactly."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from media import write_video
from tiny_checkpoint import CONTEXT_LENGTH, save_tiny_checkpoint
from transformers import Dinov2Config, Dinov2Model

from longvlm import LongVLM, LongVLMError, Sampling
from longvlm.cli import main
from longvlm.report import plan
from longvlm.report.plan import ANSWER_TOKENS, EXAMPLE_QUESTION, Plan, count_tokens, make_plan
from longvlm.stages.tokens import count_visual_tokens
from longvlm.stages.video import open_video


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> LongVLM:
    return LongVLM.from_pretrained(checkpoint, dtype="float32")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "film.mp4", 100)


@pytest.fixture(scope="module")
def made(model: LongVLM, film: Path) -> Plan:
    with open_video(film) as reader:
        return make_plan(model, reader, Sampling(num_frames=10), program_bytes=1000)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(num_frames=10),
        Sampling(num_frames=200),
        Sampling(num_frames=None, fps=3.0, start_seconds=1.0),
    ],
    ids=["10 frames", "more frames than there are", "by rate"],
)
@pytest.mark.parametrize("timestamps", [False, True])
def test_counts_are_those_of_a_real_run(checkpoint: Path, film: Path, sampling: Sampling, timestamps: bool) -> None:
    model = LongVLM.from_pretrained(checkpoint, timestamps=timestamps)
    with open_video(film) as reader:
        counts = count_tokens(model, reader, sampling)
    index = model.encode(film, num_frames=sampling.num_frames, fps=sampling.fps, start=sampling.start_seconds)
    assert counts.segments == index.num_segments
    assert counts.frames == len(index.frame_times)
    assert counts.visual_tokens == count_visual_tokens(index.num_segments, model.compression)
    assert counts.context_tokens == CONTEXT_LENGTH
    if counts.fits:
        answer = model.ask(index, EXAMPLE_QUESTION, max_new_tokens=1)
        assert counts.prompt_tokens == answer.prompt_tokens
    else:
        with pytest.raises(LongVLMError, match=str(counts.prompt_tokens)):
            model.ask(index, EXAMPLE_QUESTION)


def test_memory_counts_every_weight_once(model: LongVLM, made: Plan) -> None:
    tower = sum(parameter.nbytes for parameter in model.encoder.tower.parameters())
    whole = sum(parameter.nbytes for parameter in model.language_model.parameters())
    memory = made.memory
    assert memory.encoder_weights == tower
    assert memory.encoder_weights + memory.language_model_weights == whole
    # two layers' keys and values, 4 heads of 8
    assert memory.kv_cache == 2 * 2 * 4 * 8 * (made.counts.prompt_tokens + ANSWER_TOKENS) * 4
    assert memory.encoding_total == 1000 + tower + memory.encoding_activations
    assert memory.asking_total >= 1000 + whole + memory.kv_cache


def test_half_precision_halves_the_weights(checkpoint: Path, film: Path, made: Plan) -> None:
    half = LongVLM.from_pretrained(checkpoint, dtype="bfloat16")
    with open_video(film) as reader:
        memory = make_plan(half, reader, Sampling(num_frames=10), program_bytes=0).memory
        in_4bit = make_plan(half, reader, Sampling(num_frames=10), program_bytes=0, load_in_4bit=True).memory
    assert 2 * memory.encoder_weights == made.memory.encoder_weights
    assert 2 * memory.language_model_weights == made.memory.language_model_weights
    assert in_4bit.language_model_weights < memory.language_model_weights


def test_a_file_of_another_dtype_counts_while_it_is_read(checkpoint: Path, film: Path, made: Plan) -> None:
    half = LongVLM.from_pretrained(checkpoint, dtype="bfloat16")
    with open_video(film) as reader:
        memory = make_plan(half, reader, Sampling(num_frames=10), program_bytes=0).memory
    assert made.memory.language_model_file == 0  # of the dtype that is asked for
    assert memory.language_model_file == made.memory.language_model_weights
    large = dataclasses.replace(memory, language_model_file=10**10)
    assert large.asking_total == memory.encoder_weights + memory.language_model_weights + 10**10


def test_a_tower_that_states_no_inner_width_is_planned_too(checkpoint: Path, film: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56, "patch_size": 14}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path)
    numbers = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(numbers))
    model = LongVLM.from_pretrained(checkpoint, vision_tower=str(tmp_path))
    with open_video(film) as reader:
        made = make_plan(model, reader, Sampling(num_frames=10), program_bytes=0)
    assert made.memory.encoder_weights == sum(weight.nbytes for weight in model.encoder.tower.parameters())
    assert made.memory.encoding_activations > 0 and made.seconds.encode > 0


def test_times_are_those_of_all_segments_and_words(model: LongVLM, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_measure_encoder", lambda *_: (2.0, 1.0))
    monkeypatch.setattr(plan, "_measure_language_model", lambda *_: (3.0, 0.5))
    with open_video(film) as reader:
        made = make_plan(model, reader, Sampling(num_frames=10), program_bytes=0)
    seconds, segments = made.seconds, made.counts.segments
    assert segments > 1 and (seconds.encode, seconds.merge) == (2.0 * segments, 1.0 * segments)
    assert (seconds.prefill, seconds.generate) == (3.0, 0.5 * ANSWER_TOKENS)


def test_layers_that_are_not_measured_are_added() -> None:
    assert plan._extend(lambda layers: 0.5 + 0.1 * layers, 40, 10**9) == pytest.approx(4.5)
    assert plan._extend(lambda layers: float(layers), 40, 1) == 40.0


def test_times_are_measured(made: Plan) -> None:
    parts = dataclasses.astuple(made.seconds)
    assert min(parts) > 0 and made.seconds.total == pytest.approx(sum(parts))


def test_measuring_leaves_no_gradients_and_reads_no_weights(checkpoint: Path, film: Path) -> None:
    model = LongVLM.from_pretrained(checkpoint)
    with open_video(film) as reader:
        make_plan(model, reader, Sampling(num_frames=10), program_bytes=0)
    assert "encoder" not in vars(model) and "language_model" not in vars(model)
    assert torch.is_grad_enabled()


def test_the_command_prints_a_table_or_one_object(
    checkpoint: Path, film: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["longvlm", "plan", str(film), "--model", str(checkpoint), *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
        return capsys.readouterr().out

    table = run()
    for name in ("Frames looked at", "Prompt tokens", "Memory for ask", "Time for ask"):
        assert name in table
    told = json.loads(run("--json"))
    assert (told["frames"], told["segments"], told["visual_tokens"]) == (8, 2, 14)
    assert told["fits_context"] is True
    assert told["memory_bytes"]["asking_total"] > told["memory_bytes"]["encoding_total"] > 50e6
    assert told["seconds"]["total"] > 0
