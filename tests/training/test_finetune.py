import errno
import json
import math
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_run import read_recipe
from tiny_checkpoint import CONTEXT_LENGTH
from transformers import (
    BitsAndBytesConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.models.llama.modeling_llama import LlamaMLP

from longvlm.errors import LongVLMError
from longvlm.model.checkpoints import load_processor
from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.model.trained_part import FILE_NAME, Base, TrainedPart, apply_part
from longvlm.pipeline import LongVLM
from longvlm.training import finetune
from longvlm.training.checkpointing import COMPLETE, complete_checkpoints, config_of_part, naming_what_is_not_written
from longvlm.training.curves import draw_curve
from longvlm.training.finetune import check, train
from longvlm.training.parameters import (
    add_video_marks,
    collect_part,
    describe_parts,
    is_trained,
    parameter_groups,
    prepare_parts,
    video_token_ids,
)
from longvlm.training.recipe import LearningRates, LoraSettings
from longvlm.training.run_folder import CHECKPOINTS, HISTORY_FILE, MODEL
from longvlm.world.scene import make_scene
from longvlm.world.video import write_video

SHORT = ["schedule.max_steps=2", "reports.save_every=2"]
WHOLE = ["learning_rates.new_tokens=null", "learning_rates.language_model=1e-3"]


def run(recipe: Path, output: Path, *changes: str) -> tuple[Path, list[str]]:
    said: list[str] = []
    return train(read_recipe(recipe, f"output={output}", *changes), say=said.append), said


def open_model(folder: Path) -> LongVLM:
    return LongVLM.from_pretrained(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def projector_run(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    output = tmp_path_factory.mktemp("projector") / "run"
    return run(small_recipe, output, "held_out_share=0.2", "reports.evaluate_every=2", "reports.tensorboard=true")


def test_projector_training_saves_the_projector_and_the_new_rows(
    projector_run: tuple[Path, list[str]], small_recipe: Path
) -> None:
    folder, base = projector_run[0], small_recipe.parent / "base"
    assert not list(folder.glob("model*.safetensors"))
    part = TrainedPart.load(folder)
    assert part.base.name == str(base)
    assert {name.rpartition(".")[0] for name in part.weights} == {"model.multi_modal_projector.linear_1"}
    trained, untrained = open_model(folder).language_model, open_model(base).language_model
    changed = {
        name
        for (name, weight), other in zip(trained.named_parameters(), untrained.parameters(), strict=True)
        if not torch.equal(weight, other)
    }
    assert changed == {*part.weights, "model.language_model.embed_tokens.weight"}
    rows = (trained.get_input_embeddings().weight != untrained.get_input_embeddings().weight).any(1).nonzero()
    processor = open_model(base).processor
    marks = processor.tokenizer.convert_tokens_to_ids(["<vid_start>", "<vid_end>"])
    assert rows.flatten().tolist() == sorted(marks)  # the token that stands for visual ones is never embedded


def test_checkpoints_and_the_result_answer_as_they_are(
    projector_run: tuple[Path, list[str]], small_recipe: Path
) -> None:
    video = small_recipe.parent / "features" / "v1.longvlm"
    (checkpoint,) = complete_checkpoints(projector_run[0].parent / CHECKPOINTS)
    answers = {
        open_model(folder).ask(video, "What is in it?", max_new_tokens=8).text
        for folder in (checkpoint, projector_run[0])
    }
    assert len(answers) == 1


def test_what_is_told_before_and_during_the_run(projector_run: tuple[Path, list[str]]) -> None:
    text = "\n".join(projector_run[1])
    assert "7 samples, 2 of them held out; 5 steps of 2 samples each" in text
    assert "projector            1,056    1,056           0.01  float32" in text
    assert "language model      37,344        0         frozen  float32" in text
    assert "step 2/5  loss" in text
    assert text.count("held-out loss") >= 3
    run_folder = projector_run[0].parent
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = sorted((run_folder / "tensorboard").glob("events.*"))
    curves = [EventAccumulator(str(file)).Reload().Scalars("eval/loss") for file in files]
    assert [value.step for curve in curves for value in curve] == [2, 4, 5]  # the last one when all is done
    history = json.loads((run_folder / HISTORY_FILE).read_text())
    assert {"loss", "eval_loss"} <= {key for entry in history for key in entry}


def test_a_finished_run_is_not_run_again(projector_run: tuple[Path, list[str]], small_recipe: Path) -> None:
    output = projector_run[0].parent
    again = ["held_out_share=0.2", "reports.evaluate_every=2", "schedule.batch_size=1", "schedule.accumulation=2"]
    folder, said = run(small_recipe, output, *again)
    assert folder == projector_run[0]
    assert said == [f"{folder} is trained already; for another training choose another output."]
    with pytest.raises(LongVLMError, match=r"another recipe: schedule.epochs is 2.0 there and 3.0 here"):
        run(small_recipe, output, "held_out_share=0.2", "schedule.epochs=3")


def test_a_whole_language_model(small_recipe: Path, tmp_path: Path) -> None:
    base = shutil.copytree(small_recipe.parent / "base", tmp_path / "base")
    sampled = {"temperature": 0.9, "top_p": 0.6}  # but not do_sample, as Vicuna and LLaVA have it
    (base / "generation_config.json").write_text(json.dumps(sampled))
    folder, _ = run(small_recipe, tmp_path / "run", *SHORT, *WHOLE, f"model.base={base}")
    assert (folder / "model.safetensors").is_file()
    written = json.loads((folder / "generation_config.json").read_text())
    assert (sampled | {"do_sample": True}).items() <= written.items()
    assert not (folder / FILE_NAME).exists()
    trained, untrained = (open_model(path).language_model for path in (folder, small_recipe.parent / "base"))
    assert trained.config.text_config.use_cache
    for (name, weight), other in zip(trained.named_parameters(), untrained.parameters(), strict=True):
        assert torch.equal(weight, other) == name.startswith("model.vision_tower"), name
    video = small_recipe.parent / "features" / "v1.longvlm"
    said = open_model(folder).ask(video, "What?", max_new_tokens=8).text
    assert said != open_model(small_recipe.parent / "base").ask(video, "What?", max_new_tokens=8).text


def test_accumulation_and_checkpointed_activations_change_nothing(
    small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = {
        "plain": ["schedule.batch_size=4"],
        "accumulated": ["schedule.batch_size=1", "schedule.accumulation=4"],
        "checkpointed": ["schedule.batch_size=4", "machine.gradient_checkpointing=true"],
    }
    every_step = [*SHORT, *WHOLE, "reports.log_every=1"]
    passes, forward = Counter[str](), LlamaMLP.forward

    def counting(layer: LlamaMLP, hidden: torch.Tensor) -> torch.Tensor:
        passes[name] += 1
        return forward(layer, hidden)

    monkeypatch.setattr(LlamaMLP, "forward", counting)
    folders = []
    for name, changes in ways.items():
        folders.append(run(small_recipe, tmp_path / name, *every_step, *changes)[0])
    assert passes["checkpointed"] == 2 * passes["plain"] > 0
    plain, *others = [load_file(folder / "model.safetensors") for folder in folders]
    for other in others:
        for name, weight in plain.items():
            # Two steps of at most 1e-3, which Adam takes whole even where a gradient is all rounding.
            torch.testing.assert_close(other[name], weight, rtol=1e-3, atol=2e-3)
            assert (other[name] - weight).abs().mean() < 2e-5
    seen, *others_seen = [
        [(entry["loss"], entry["grad_norm"]) for entry in json.loads((folder.parent / HISTORY_FILE).read_text())[:2]]
        for folder in folders
    ]
    for steps in others_seen:  # Adam hides a wrong scale from the weights
        assert [number for step in steps for number in step] == pytest.approx(
            [number for step in seen for number in step], rel=1e-4
        )


def test_bfloat16_keeps_what_learns_in_float32(small_recipe: Path, tmp_path: Path) -> None:
    folder, said = run(small_recipe, tmp_path / "run", *SHORT, "machine.precision=bf16", "learning_rates.lora=1e-3")
    assert any(
        line.startswith("part") and "language model      37,344        0         frozen  bfloat16" in line
        for line in said
    )
    part = TrainedPart.load(folder)
    assert all(weight.dtype == torch.float32 for weight in part.weights.values())
    assert len(part.low_rank) == 2 * 7  # all linear layers of two blocks
    open_model(folder).ask(None, "What?", max_new_tokens=3)


@pytest.mark.gpu
def test_low_rank_weights_learn_on_a_base_in_4_bits(small_recipe: Path, tmp_path: Path) -> None:
    device = ["machine.device=cuda", "machine.precision=bf16", "model.load_in_4bit=true"]
    folder, _ = run(small_recipe, tmp_path / "run", *SHORT, *device, "learning_rates.lora=1e-3")
    part = TrainedPart.load(folder)
    assert len(part.low_rank) == 2 * 7
    grown = [up for _, up in part.low_rank.values()]
    assert all(up.isfinite().all() and up.any() for up in grown), "these are zero before the first step"
    open_model(folder).ask(None, "What?", max_new_tokens=3)


def test_the_encoder_learns_from_videos(small_recipe: Path, tmp_path: Path) -> None:
    for number in range(6):
        path = tmp_path / "videos" / "some" / f"v{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(make_scene(number, 10.0), path, width=64, height=48, fps=2, show_progress=False)
    source = [f"data.0.videos={tmp_path / 'videos'}", "model.num_frames=8"]
    folder, _ = run(small_recipe, tmp_path / "run", *SHORT, *source, "learning_rates.encoder=1e-3")
    names = {name for name in TrainedPart.load(folder).weights if "vision_tower" in name}
    assert names
    trained, base = open_model(folder), open_model(small_recipe.parent / "base")
    assert trained.encoder.fingerprint != base.encoder.fingerprint
    tower = trained.language_model.model.vision_tower
    loaded = dict(tower.named_parameters())
    part = TrainedPart.load(folder)
    assert all(torch.equal(loaded[n.removeprefix("model.vision_tower.")], part.weights[n]) for n in names)

    with pytest.raises(LongVLMError, match="comes with features, from which an encoder can't learn"):
        run(small_recipe, tmp_path / "other", "learning_rates.encoder=1e-3")

    damaged = tmp_path / "damaged"
    shutil.copytree(tmp_path / "videos", damaged)
    cut = damaged / "some" / "v3.mp4"
    cut.write_bytes(cut.read_bytes()[:-2000])
    learned = [*SHORT, f"data.0.videos={damaged}", "model.num_frames=8", "learning_rates.encoder=1e-3"]
    with pytest.raises(LongVLMError, match=r"1 of 6 videos can't be learned from, .*v3\.mp4.* set missing: drop for"):
        run(small_recipe, tmp_path / "refused", *learned)
    _, said = run(small_recipe, tmp_path / "dropped", *learned, "data.0.missing=drop")
    assert any("1 of 7 rows dropped" in line for line in said)

    # A frozen encoder reads the same videos once, and keeps their features.
    run(small_recipe, tmp_path / "frozen", *SHORT, *source)
    assert len(list((tmp_path / "frozen" / "features").glob("*.longvlm"))) == 6
    (tmp_path / "frozen" / "longvlm-recipe.yaml").unlink()
    shutil.rmtree(tmp_path / "frozen" / "checkpoints")
    shutil.rmtree(tmp_path / "frozen" / "model")
    with pytest.raises(LongVLMError, match=r"holds features of the videos in .*/videos, and those in .*/damaged are"):
        run(small_recipe, tmp_path / "frozen", *SHORT, f"data.0.videos={damaged}", "model.num_frames=8")
    cut.unlink()
    shortened = cut.with_suffix(".mkv")
    write_video(make_scene(3, 10.0), shortened, width=64, height=48, fps=10, show_progress=False)
    shortened.write_bytes(shortened.read_bytes()[: shortened.stat().st_size * 2 // 3])
    _, said = run(small_recipe, tmp_path / "cut", *SHORT, f"data.0.videos={damaged}", "model.num_frames=8")
    shortened.unlink()
    assert any(re.match(r"1 of 6 videos have an end that can't be decoded, .*damaged\.json", line) for line in said)
    cut.write_bytes(b"")
    frozen = [*SHORT, f"data.0.videos={damaged}", "model.num_frames=8"]
    with pytest.raises(LongVLMError, match=r"1 of 6 videos can't be encoded, .*v3\.mp4.* set missing: drop for"):
        run(small_recipe, tmp_path / "unread", *frozen)
    _, said = run(small_recipe, tmp_path / "unread", *frozen, "data.0.missing=drop")
    assert any("can't be encoded" in line for line in said) and any("1 of 7 rows dropped" in line for line in said)


def save_llava(folder: Path, small_recipe: Path, spare_rows: int = 0) -> Path:
    """A random LLaVA checkpoint, as others have it: no tokens around a video, but one for an image."""
    base = open_model(small_recipe.parent / "base")
    tokenizer = base.processor.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, image_size=56, patch_size=14),
        text_config=LlamaConfig(**sizes, vocab_size=len(tokenizer) + spare_rows, initializer_range=0.3),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_center_crop": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_a_llava_checkpoint_gets_marks_around_the_video(small_recipe: Path, tmp_path: Path) -> None:
    base = save_llava(tmp_path / "llava", small_recipe)
    settings = "{frames_per_segment: 4, tokens_per_segment: 6, global_layers: 2, merge_order: merge}"
    text_alone = tmp_path / "text.json"
    rows = json.loads((small_recipe.parent / "train.json").read_text())
    text_alone.write_text(json.dumps([row for row in rows if "video" not in row]))
    source = [f"data.0.instructions={text_alone}", "data.0.features=null", f"model.base={base}"]
    folder, _ = run(
        small_recipe, tmp_path / "run", *SHORT, *source, f"model.compression={settings}", "model.num_frames=8"
    )
    model = open_model(folder)
    assert (model.processor.video_start_token, model.processor.video_end_token) == ("<vid_start>", "<vid_end>")
    assert (model.compression.global_layers, model.config.default_num_frames) == (2, 8)
    untrained = open_model(base).language_model.get_input_embeddings().weight
    table = model.language_model.get_input_embeddings().weight
    known = len(untrained)
    assert torch.equal(table[: known - 1], untrained[:-1])  # but the row of <image>, which is the video's token
    assert load_processor(folder, model.config).tokenizer.convert_tokens_to_ids("<vid_end>") < len(table)


def test_new_tokens_without_marks_are_refused_before_the_data_are_read(small_recipe: Path, tmp_path: Path) -> None:
    changes = [f"model.base={save_llava(tmp_path / 'llava', small_recipe)}", "model.video_marks=false"]
    with pytest.raises(LongVLMError, match=r"the base has no tokens around a video; set model.video_marks=true"):
        check(read_recipe(small_recipe, *changes))
    check(read_recipe(small_recipe, *changes, "learning_rates.new_tokens=null"))


def test_marks_in_a_padded_table_start_from_the_mean_of_the_words(
    small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = ["<before>", "<after>"]  # which the tiny tokenizer does not have
    monkeypatch.setattr("longvlm.training.parameters._VIDEO_MARKS", marks)
    opened = open_model(save_llava(tmp_path / "llava", small_recipe, spare_rows=5))
    model, num_words = opened.language_model, len(opened.processor.tokenizer)
    tables = (model.get_input_embeddings().weight, model.lm_head.weight)
    before = [table.detach().clone() for table in tables]
    add_video_marks(model, opened.processor)
    rows = opened.processor.tokenizer.convert_tokens_to_ids(marks)
    assert rows == [num_words, num_words + 1], "in the padding"
    for table, old in zip((model.get_input_embeddings().weight, model.lm_head.weight), before, strict=True):
        assert table.shape == old.shape
        torch.testing.assert_close(table[rows], old[:num_words].mean(0).expand(2, -1))
        others = [row for row in range(len(table)) if row not in rows]
        assert torch.equal(table[others], old[others])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.0.instructions=missing.json"], r"No such file: missing.json"),
        (["data.0.features=missing"], r"There is no folder of features missing"),
        (["data.0.features=null"], r"6 of 7 rows of .*train.json have a video that is not there, first of them v0"),
        (["model.compression.tokens_per_segment=9"], r"has 12 rows of local features .* where 18"),
        (["machine.fsdp=true"], r"start them with torchrun"),
        (["machine.device=tpu"], r"machine.device is 'tpu'; choose cpu or cuda"),
        (["schedule.max_tokens=20"], r"no answer in the first 20; set schedule.max_tokens higher"),
        (["data.0.features=~nobody-here/x"], r"data.0: features is .*no home folder of that user"),
        (["model.base=nowhere/at/all"], r"Unknown model 'nowhere/at/all'"),
        (["learning_rates.lora=1e-3", "lora.targets=[nothing]"], r"lora.targets has 'nothing'; the known .*q_proj"),
        (["learning_rates.lora=1e-3", "lora.targets=[q_proj,k_prj]"], r"lora.targets has 'k_prj'"),
        (["machine.precision=bf16", "model.load_in_4bit=true", "learning_rates.lora=1e-3"], r"4 bits needs a CUDA"),
    ],
)
def test_what_can_not_be_trained_is_named(changes: list[str], message: str, small_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(LongVLMError, match=message):
        run(small_recipe, tmp_path / "run", *changes)


@pytest.mark.parametrize(
    ("package", "change", "message"),
    [
        ("peft", "learning_rates.lora=1e-3", r"LoRA needs peft: pip install 'longvlm\[train\]'"),
        (
            "torch.utils.tensorboard",
            "reports.tensorboard=true",
            r"need tensorboard: .*or set reports.tensorboard=false",
        ),
    ],
)
def test_a_missing_package_is_told_before_anything_is_read_or_written(
    package: str, change: str, message: str, small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(LongVLMError, match=message):
        run(small_recipe, tmp_path / "run", change, "data.0.instructions=missing.json")
    assert not (tmp_path / "run").exists()


def test_half_an_emoji_in_a_row_is_trained_on_as_a_question_mark(small_recipe: Path, tmp_path: Path) -> None:
    rows = json.loads((small_recipe.parent / "train.json").read_text())
    rows[0]["conversations"][0]["value"] += " caf\ud83d"
    (tmp_path / "train.json").write_text(json.dumps(rows))
    folder, _ = run(small_recipe, tmp_path / "run", *SHORT, f"data.0.instructions={tmp_path / 'train.json'}")
    assert folder.is_dir()


def test_the_references_pickles_are_no_features_yet(small_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "v0.pkl").touch()
    for missing in ("refuse", "drop"):
        with pytest.raises(LongVLMError, match=r"holds the reference's pickles, .*`longvlm features import`"):
            run(small_recipe, tmp_path / "run", f"data.0.features={tmp_path}", f"data.0.missing={missing}")


def test_rows_without_their_video_are_dropped_when_asked(small_recipe: Path, tmp_path: Path) -> None:
    features = tmp_path / "features"
    shutil.copytree(small_recipe.parent / "features", features)
    (features / "v2.longvlm").unlink()
    changes = [*SHORT, f"data.0.features={features}", "data.0.missing=drop"]
    _, said = run(small_recipe, tmp_path / "run", *changes)
    assert any("1 of 7 rows dropped, since their video is not there" in line for line in said)

    # Stopped now, it would go on in another order.
    shutil.rmtree(tmp_path / "run" / MODEL)
    shutil.copy(small_recipe.parent / "features" / "v2.longvlm", features)
    with pytest.raises(LongVLMError, match="holds a run on other rows: videos or features have come or gone"):
        run(small_recipe, tmp_path / "run", *changes)
    (features / "v2.longvlm").unlink()
    _, said = run(small_recipe, tmp_path / "run", *changes)
    assert any("going on from" in line for line in said)


def test_too_many_open_files_are_no_mistake_of_the_users() -> None:
    with pytest.raises(OSError, match="Too many"), naming_what_is_not_written(Path("run")):
        raise OSError(errno.EMFILE, "Too many open files")


def test_a_full_disk_is_one_clear_line_and_nothing_is_lost(
    small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = torch.save, []

    def fill_up(value: Any, path: Any, *arguments: Any, **settings: Any) -> None:
        calls.append(path)
        if "checkpoint-4" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save(value, path, *arguments, **settings)

    monkeypatch.setattr(torch, "save", fill_up)
    with pytest.raises(LongVLMError, match=r"Can't write .*checkpoint-4 .*No space left on device.*; make room and"):
        run(small_recipe, tmp_path / "run")
    assert calls
    monkeypatch.undo()
    assert [path.name for path in complete_checkpoints(tmp_path / "run" / CHECKPOINTS)] == ["checkpoint-2"]
    folder, said = run(small_recipe, tmp_path / "run")
    assert any("going on from" in line and "checkpoint-2" in line for line in said)
    assert folder.is_dir()


def test_a_run_that_goes_on_saves_as_often_as_its_recipe_says_now(small_recipe: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(line: str) -> None:
        if line.startswith("step 2/"):
            raise Stopped

    settings = ["schedule.max_steps=5", "reports.log_every=1", "reports.checkpoints_kept=9"]
    with pytest.raises(Stopped):
        train(read_recipe(small_recipe, *settings, f"output={tmp_path / 'run'}", "reports.save_every=1"), stop)
    folder = tmp_path / "run" / CHECKPOINTS
    assert [path.name for path in complete_checkpoints(folder)] == ["checkpoint-1"]
    run(small_recipe, tmp_path / "run", *settings, "reports.save_every=2")
    assert [path.name for path in complete_checkpoints(folder)] == [
        "checkpoint-1",
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-5",
    ]


def test_a_language_model_that_learns_is_not_rounded_before(small_recipe: Path, tmp_path: Path) -> None:
    still = [
        "machine.precision=bf16",
        "learning_rates={projector: 1e-12, language_model: 1e-12}",
        "schedule.max_steps=1",
    ]
    trained = open_model(run(small_recipe, tmp_path / "run", *still)[0]).language_model.state_dict()
    base = open_model(small_recipe.parent / "base").language_model.state_dict()
    rounded = {name for name, tensor in base.items() if not torch.equal(tensor, tensor.bfloat16().float())}
    learning = {name for name in rounded if "vision_tower" not in name and "embed_tokens" not in name}
    assert len(learning) > 10
    for name in learning:
        torch.testing.assert_close(trained[name], base[name], atol=1e-6, rtol=0)


def test_a_new_projector_is_random_and_the_same_each_time(small_recipe: Path, tmp_path: Path) -> None:
    still = ["model.new_projector=true", "learning_rates={projector: 1e-12}", "schedule.max_steps=1"]
    first, second, other = (
        TrainedPart.load(run(small_recipe, tmp_path / name, *still, f"seed={seed}")[0]).weights
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    base = open_model(small_recipe.parent / "base").language_model.state_dict()
    weight, bias = (f"model.multi_modal_projector.linear_1.{name}" for name in ("weight", "bias"))
    assert first.keys() == {weight, bias}
    for name in (weight, bias):
        assert torch.equal(first[name], second[name])
        assert not torch.isclose(first[name], other[name]).any()
        assert not torch.isclose(first[name], base[name]).any()
    bound = first[weight].shape[1] ** -0.5  # torch draws evenly from as far as that on either side
    assert first[weight].abs().max() <= bound and first[weight].std() == pytest.approx(bound / 3**0.5, rel=0.1)


@pytest.mark.parametrize("log_every", [1, 50])
def test_numbers_that_are_lost_take_no_checkpoints_place(log_every: int, small_recipe: Path, tmp_path: Path) -> None:
    short = ["schedule.max_steps=4", "reports.save_every=1", f"reports.log_every={log_every}"]
    with pytest.raises(
        LongVLMError, match=r"At step 3 .*(loss is|no numbers).*; lower learning_rates, .* another output"
    ):
        run(small_recipe, tmp_path / "run", *short, "learning_rates.projector=1e37")
    (checkpoint,) = complete_checkpoints(tmp_path / "run" / CHECKPOINTS)
    assert all(tensor.isfinite().all() for tensor in TrainedPart.load(checkpoint).weights.values())
    assert not (tmp_path / "run" / MODEL).exists()


def test_a_curve() -> None:
    assert draw_curve([3.0, 2.0, 1.0]) == "█▅▁"
    assert draw_curve([1.0, 1.0]) == "▁▁"
    assert draw_curve([]) == ""
    assert len(draw_curve(list(range(1000)))) == 60


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's list of open files")
def test_a_checkpoint_is_on_the_disk_before_it_counts(
    small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed, flush = [], os.fsync

    def watch(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        assert not (path.parent / COMPLETE).exists()
        flushed.append(path.name)
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    run(small_recipe, tmp_path / "run", *SHORT)
    (checkpoint,) = complete_checkpoints(tmp_path / "run" / CHECKPOINTS)
    assert sorted([*flushed, COMPLETE]) == sorted(path.name for path in checkpoint.iterdir())


def test_before_a_first_checkpoint_the_recipe_may_change(small_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(LongVLMError, match=r"set schedule.max_tokens higher"):
        run(small_recipe, tmp_path / "run", *SHORT, "schedule.max_tokens=20")
    folder, _ = run(small_recipe, tmp_path / "run", *SHORT)
    assert (folder / FILE_NAME).is_file()


def test_changed_rows_are_another_training(small_recipe: Path, tmp_path: Path) -> None:
    rows = shutil.copy(small_recipe.parent / "train.json", tmp_path / "rows.json")
    changes = [*SHORT, f"data.0.instructions={rows}"]
    run(small_recipe, tmp_path / "run", *changes)
    (tmp_path / "rows.json").write_text(json.dumps(json.loads((tmp_path / "rows.json").read_text())[1:]))
    with pytest.raises(LongVLMError, match=r"another recipe: data is "):
        run(small_recipe, tmp_path / "run", *changes)


def test_held_out_rows_have_room_before_anything_is_trained(
    small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hold_out_the_longest(given: list[Any], share: float, seed: int) -> tuple[list[Any], list[Any]]:
        text = [sample for sample in given if sample.video is None]
        return text, [sample for sample in given if sample.video is not None]

    monkeypatch.setattr(finetune, "hold_out", hold_out_the_longest)
    with pytest.raises(LongVLMError, match=r"row \d has .* set schedule.max_tokens higher"):
        run(small_recipe, tmp_path / "run", *SHORT, "schedule.max_tokens=20", "held_out_share=0.5")
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_what_is_longer_than_the_language_models_context_is_refused(small_recipe: Path, tmp_path: Path) -> None:
    rows = json.loads((small_recipe.parent / "train.json").read_text())
    rows[0]["conversations"][-1]["value"] = "so " * 2 * CONTEXT_LENGTH
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    changes = [*SHORT, f"data.0.instructions={tmp_path / 'rows.json'}", "schedule.max_tokens=100000"]
    with pytest.raises(
        LongVLMError, match=rf"context holds {CONTEXT_LENGTH}; set schedule.max_tokens={CONTEXT_LENGTH}"
    ):
        run(small_recipe, tmp_path / "run", *changes)
    assert run(small_recipe, tmp_path / "run", *changes[:-1], f"schedule.max_tokens={CONTEXT_LENGTH}")[0].is_dir()


def test_a_row_that_a_worker_complains_of_is_one_line(small_recipe: Path, tmp_path: Path) -> None:
    features = shutil.copytree(small_recipe.parent / "features", tmp_path / "features")
    path = Path(features) / "v3.longvlm"
    content = path.read_bytes()
    path.write_bytes(content[:-200] + bytes(200))  # its header is whole
    with pytest.raises(LongVLMError) as caught:
        run(small_recipe, tmp_path / "run", "machine.workers=1", f"data.0.features={features}")
    assert "v3.longvlm" in str(caught.value)
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)


def test_two_data_sets_are_mixed_by_their_weights(small_recipe: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(make_scene(7, 20.0), videos / "w.mp4", width=64, height=64, fps=5)
    turns = [{"from": "human", "value": "<video>\nWhat moves?"}, {"from": "gpt", "value": "A shape."}]
    (tmp_path / "more.json").write_text(json.dumps([{"id": "w", "video": "w", "conversations": turns}]))
    first = {"instructions": str(small_recipe.parent / "train.json"), "features": str(small_recipe.parent / "features")}
    second = {"instructions": str(tmp_path / "more.json"), "videos": str(videos), "weight": 3}
    _, said = run(small_recipe, tmp_path / "run", "schedule.epochs=1", f"data={json.dumps([first, second])}")
    assert [path.name for path in (tmp_path / "run" / "features").glob("*.longvlm")] == ["w.longvlm"]
    assert "8 samples, 0 of them held out; 5 steps of 2 samples each" in said  # 7 rows once, 1 row three times
    others = [second, {**second, "weight": 1}]
    run(small_recipe, tmp_path / "shared", *SHORT, f"data={json.dumps(others)}")
    features = [path.name for path in (tmp_path / "shared").glob("features*")]
    assert features == ["features"], "what data sets share is encoded once"


def test_a_video_that_is_there_twice_is_named(small_recipe: Path, tmp_path: Path) -> None:
    for name in ("v0.mp4", "v0.mkv"):
        (tmp_path / name).write_text(name)
    with pytest.raises(LongVLMError, match=r"Both .*v0\.mkv and .*v0\.mp4 are the video v0"):
        run(small_recipe, tmp_path / "run", "data.0.features=null", f"data.0.videos={tmp_path}")


def test_a_tied_head_speaks_the_new_rows_as_it_will_when_loaded(small_recipe: Path, tmp_path: Path) -> None:
    base = open_model(small_recipe.parent / "base")
    config = base.config
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    LongVLMForConditionalGeneration(config).save_pretrained(tmp_path / "tied")
    base.processor.save_pretrained(tmp_path / "tied")
    model = open_model(tmp_path / "tied").language_model
    rates = LearningRates(projector=1e-2, new_tokens=1e-2)
    prepare_parts(model, rates, LoraSettings(), video_token_ids(base.processor), seed=0)
    table = model.get_input_embeddings()
    with torch.no_grad():
        table.new_rows.add_(torch.randn_like(table.new_rows))
    token_ids = torch.tensor([[3, int(table.new_ids[1]), 5, int(table.new_ids[2]), 7]])
    in_training = model(input_ids=token_ids).logits

    state = {name: tensor for name, tensor in model.state_dict().items() if is_trained(name, rates)}
    loaded = open_model(tmp_path / "tied").language_model
    apply_part(loaded, collect_part(state, model, Base("", "")), config.text_config.vocab_size)
    torch.testing.assert_close(loaded(input_ids=token_ids).logits, in_training)


def test_low_rank_changes_weigh_when_loaded_as_they_did_in_training(small_recipe: Path) -> None:
    base = open_model(small_recipe.parent / "base")
    model, rates = base.language_model, LearningRates(projector=1e-2, lora=1e-3)
    token_ids = torch.tensor([[3, 5, 7, 4]])
    before = model(input_ids=token_ids).logits
    targets = ("self_attn.q_proj", "layers.1.self_attn.v_proj", "down_proj")
    prepare_parts(model, rates, LoraSettings(rank=4, alpha=12, dropout=0.0, targets=targets), [], seed=0)
    changed = {name.split(".")[-4] for name, _ in model.named_parameters() if "lora_B" in name}
    assert changed == {"q_proj", "v_proj", "down_proj"}
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    in_training = model(input_ids=token_ids).logits
    assert not torch.allclose(in_training, before, atol=0.1)
    state = {name: tensor for name, tensor in model.state_dict().items() if is_trained(name, rates)}
    loaded = open_model(small_recipe.parent / "base").language_model
    apply_part(loaded, collect_part(state, model, Base("", "")), base.config.text_config.vocab_size)
    torch.testing.assert_close(loaded(input_ids=token_ids).logits, in_training, rtol=1e-4, atol=1e-4)


def test_each_part_learns_at_its_own_rate_and_only_matrices_decay(small_recipe: Path) -> None:
    base = open_model(small_recipe.parent / "base")
    model = base.language_model
    rates = LearningRates(projector=1e-3, new_tokens=2e-3, encoder=4e-3, lora=3e-3)
    prepare_parts(model, rates, LoraSettings(rank=2), video_token_ids(base.processor), seed=0)
    groups = parameter_groups(model, rates, weight_decay=0.1)
    assert {(group["part"], group["lr"]) for group in groups} == {
        ("projector", 1e-3),
        ("new_tokens", 2e-3),
        ("encoder", 4e-3),
        ("lora", 3e-3),
    }
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    grouped = [(names[id(parameter)], group) for group in groups for parameter in group["params"]]
    assert sorted(name for name, _ in grouped) == sorted(names.values())  # each in one group
    for name, group in grouped:
        is_matrix = model.get_parameter(name).ndim >= 2 and "norm" not in name
        assert (group["weight_decay"] > 0) == is_matrix, name


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
def test_learning_rates_follow_the_schedule(small_recipe: Path, tmp_path: Path, shape: str) -> None:
    changes = ["schedule.max_steps=6", "schedule.warmup_share=0.34", f"schedule.shape={shape}", "reports.log_every=1"]
    run(small_recipe, tmp_path / "run", *changes, "schedule.batch_size=1", "learning_rates.new_tokens=null")
    history = json.loads((tmp_path / "run" / HISTORY_FILE).read_text())
    rates = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
    warmed = [step - 3 for step in (3, 4, 5)]  # of 6 steps 3 warm up: a third and a bit, rounded up
    shares = {
        "cosine": [0.5 * (1 + math.cos(math.pi * step / 3)) for step in warmed],
        "linear": [1 - step / 3 for step in warmed],
        "constant": [1.0] * 3,
    }[shape]
    assert rates == pytest.approx([0.01 * share for share in (0, 1 / 3, 2 / 3, *shares)], rel=1e-3)


def test_what_was_trained_in_4_bits_is_kept_with_the_config_of_its_whole_base(small_recipe: Path) -> None:
    config = open_model(small_recipe.parent / "base").config
    config.quantization_config = BitsAndBytesConfig(load_in_4bit=True)
    kept = config_of_part(config, "a/tower")
    assert "quantization_config" not in kept.to_dict() and kept.vision_tower == "a/tower"
    assert hasattr(config, "quantization_config")


def test_numbers_in_4_bits_are_counted_though_two_share_a_byte() -> None:
    model = torch.nn.Linear(8, 6)
    packed = torch.nn.Parameter(torch.zeros(24, 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = SimpleNamespace(shape=torch.Size((6, 8)))  # type: ignore[attr-defined] # as bitsandbytes has it
    model.weight = packed
    (row,) = describe_parts(model, LearningRates(lora=1e-4))
    assert (row.part, row.parameters, row.trained) == ("language_model", 48 + 6, 6)
