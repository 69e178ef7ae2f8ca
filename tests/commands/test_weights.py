"""`longvlm weights` and the reference's script for deltas: what they write, and one line where they refuse."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from media import write_video
from tiny_checkpoint import save_tiny_checkpoint
from tiny_llava import (
    NUM_WORDS,
    make_words,
    random_llama,
    random_llava,
    read_weights,
    save_checkpoint,
    save_projector,
    save_tower,
    slow_sum,
)
from tiny_part import save_part
from waiting import PATIENCE_SECONDS

from longvlm.cli import main
from longvlm.commands.loading import load_model
from longvlm.commands.options import ModelOptions

SCRIPT = Path(__file__).parents[2] / "scripts" / "apply_delta.py"

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `longvlm weights …`; returns the exit status and stderr. Nothing may be on stdout."""

    def run_main(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["longvlm", "weights", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        assert printed.out == ""
        return int(end.value.code or 0), printed.err

    return run_main


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A folder with base/, delta/ and tower/."""
    base, config = random_llama()
    delta, delta_config = random_llava(base, config)
    tower = save_tower(tmp_path / "tower")
    save_checkpoint(tmp_path / "base", base, config, make_words(), files="bin", num_shards=2)
    tokens = make_words("<a>", "<b>", "<c>")
    save_checkpoint(tmp_path / "delta", delta, delta_config | {"mm_vision_tower": str(tower)}, tokens)
    return tmp_path


def assert_is_the_sum(folders: Path, name: str) -> None:
    """Of base and delta, tensor by tensor."""
    summed, (base, _) = read_weights(folders / name), random_llama()
    wanted = slow_sum(base, read_weights(folders / "delta"))
    assert summed.keys() == wanted.keys()
    for tensor in wanted:
        assert torch.equal(summed[tensor], wanted[tensor]), tensor


def test_from_a_delta_to_a_model(run: Run, folders: Path) -> None:
    from longvlm import LongVLM

    places = ["--base", folders / "base", "--target", folders / "llava", "--delta", folders / "delta"]
    assert run("apply-delta", *places, "--max-shard-size", "50KB")[0] == 0
    assert_is_the_sum(folders, "llava")
    again = ["--base", folders / "base", "--target", folders / "llava", "--delta", folders / "delta again"]
    status, told = run("make-delta", *again)
    assert status == 0 and "delta again: 0.00 GB of weights in 1 file." in told
    assert read_weights(folders / "delta again").keys() == read_weights(folders / "delta").keys()

    save_projector(folders / "mm_projector.bin")
    assert run("import-llava", folders / "llava", "-o", folders / "own")[0] == 0
    assert run("consolidate", folders / "llava", "-o", folders / "one file")[0] == 0
    own = LongVLM.from_pretrained(folders / "own", device="cpu", dtype="float32").language_model
    assert torch.equal(own.lm_head.weight, read_weights(folders / "one file")["lm_head.weight"].float())
    assert not list(folders.glob(".*"))


def test_a_projector_on_the_command_line(run: Run, folders: Path) -> None:
    """Its table is of NUM_WORDS + 3 rows, as the delta's: no new tokens for this base."""
    save_projector(folders / "mm_projector.bin")
    places = ["--base", folders / "base", "--target", folders / "llava", "--delta", folders / "delta"]
    assert run("apply-delta", *places)[0] == 0
    projector = ["--projector", folders / "mm_projector.bin"]
    assert run("consolidate", folders / "llava", "-o", folders / "merged", *projector)[0] == 0
    assert run("import-llava", folders / "llava", "-o", folders / "own", *projector)[0] == 0
    table = torch.load(folders / "mm_projector.bin", weights_only=True)["model.embed_tokens.weight"].half()
    assert torch.equal(read_weights(folders / "merged")["model.embed_tokens.weight"], table)
    assert torch.equal(read_weights(folders / "own")["language_model.model.embed_tokens.weight"], table)
    named = {"model": str(folders / "llava"), "projector": folders / "mm_projector.bin"}
    asked = load_model(ModelOptions(**named, device="cpu", dtype="float32")).language_model
    assert torch.equal(asked.get_input_embeddings().weight, table.float())


def test_a_video_is_encoded_for_a_projector_and_asked_with_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One that brings the video's tokens, and with them the paper's settings, which the base has not."""
    base, config = random_llama()
    weights, llava_config = random_llava(base, config)
    weights |= {name: base[name] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    settings = llava_config | {"vocab_size": NUM_WORDS, "mm_vision_tower": str(save_tower(tmp_path / "tower"))}
    save_checkpoint(tmp_path / "llava", weights, settings, make_words())
    save_projector(tmp_path / "mm_projector.bin")
    film = write_video(tmp_path / "film.mp4", 30)
    model = ["--model", str(tmp_path / "llava"), "--projector", str(tmp_path / "mm_projector.bin")]
    for words in (["encode", film, "-o", tmp_path / "film.longvlm"], ["ask", tmp_path / "film.longvlm", "word1"]):
        more = [*model, *(["--max-new-tokens", "2"] if words[0] == "ask" else [])]
        monkeypatch.setattr(sys, "argv", ["longvlm", *map(str, words), *more])
        with pytest.raises(SystemExit) as end:
            main()
        assert int(end.value.code or 0) == 0, capsys.readouterr().err


def test_other_settings_are_warned_of_in_one_line(run: Run, folders: Path) -> None:
    config = folders / "base" / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    places = ["--base", folders / "base", "--target", folders / "new" / "llava", "--delta", folders / "delta"]
    status, told = run("apply-delta", *places)
    assert status == 0 and told.count("Warning: ") == 1 and "rms_norm_eps=1e-05" in told, told
    assert len(told.splitlines()) == 2
    assert_is_the_sum(folders, "new/llava")


def test_a_part_and_its_moved_base_become_one_checkpoint(run: Run, tmp_path: Path) -> None:
    from longvlm import LongVLM

    base = save_tiny_checkpoint(tmp_path / "base")
    name = "model.multi_modal_projector.linear_1.bias"
    part = save_part(tmp_path / "part", base, weights={name: torch.ones(32)})
    base.rename(tmp_path / "moved")
    status, told = run("consolidate", part, "-o", tmp_path / "one")
    assert status == 2 and len(told.splitlines()) == 1 and "give it with --base" in told, told
    assert run("consolidate", part, "-o", tmp_path / "one", "--base", tmp_path / "moved")[0] == 0
    model = LongVLM.from_pretrained(tmp_path / "one", device="cpu", dtype="float32").language_model
    assert torch.equal(model.get_parameter(name), torch.ones(32))
    status, told = run("import-llava", part, "-o", tmp_path / "own")
    assert status == 2 and "weights consolidate" in told, told


def test_refusals_are_one_line(run: Run, folders: Path) -> None:
    places = ["--base", folders / "base", "--target", folders / "llava", "--delta", folders / "delta"]
    for arguments, words in (
        (["apply-delta", *places[:4], "--delta", folders / "base" / "nowhere"], "no model folder"),
        (["apply-delta", *places[:2], "--target", folders / "delta", *places[4:]], "exists already"),
        (["apply-delta", *places[:4], "--delta", folders / "tower"], "lm_head.weight"),
        (["apply-delta", *places, "--max-shard-size", "big"], "'big'"),
        (
            ["make-delta", *places[:2], "--target", folders / "delta", "--delta", folders / "d", "--dtype", "int8"],
            "int8",
        ),
        (["import-llava", folders / "base", "-o", folders / "own"], "'llama'"),
        (["consolidate", folders / "tower", "-o", folders / "own", "--projector", "x.bin"], "import-llava"),
        (["consolidate", folders / "delta", "-o", folders / "own", "--base", folders / "base"], "leave its base"),
        (["consolidate", folders / "delta", "-o", folders / "own", "--vision-tower", "clip"], "leave the vision tower"),
    ):
        status, told = run(*arguments)
        assert status == 2 and len(told.splitlines()) == 1 and told.startswith("Error: ") and words in told, told
    assert {path.name for path in folders.iterdir()} == {"base", "delta", "tower"}


@pytest.mark.parametrize(
    "flags",
    [("--base", "--target", "--delta"), ("--base-model-path", "--target-model-path", "--delta-path")],
    ids=["short", "long"],
)
def test_the_references_script(folders: Path, flags: tuple[str, str, str]) -> None:
    places = [folders / "base", folders / "sum", folders / "delta"]
    arguments = [str(part) for pair in zip(flags, places, strict=True) for part in pair]
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert_is_the_sum(folders, "sum")


def test_the_references_script_explains_itself() -> None:
    command = [sys.executable, str(SCRIPT), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True)
    assert done.stdout.startswith("usage: apply_delta.py ")
    for words in ("--base-model-path", "--target-model-path", "--delta-path", "longvlm weights apply-delta"):
        assert words in done.stdout
