"""Nothing that a training did not make itself is overwritten or deleted."""

from pathlib import Path

import pytest
from small_run import read_recipe

from longvlm.errors import LongVLMError
from longvlm.training.run_folder import CHECKPOINTS, MODEL, RECIPE_FILE, claim_output


@pytest.mark.parametrize("name", [CHECKPOINTS, MODEL])
def test_what_others_left_in_the_places_of_a_run_is_refused_and_kept(
    small_recipe: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "recipe.yaml").write_text("seed: 1\n")
    with pytest.raises(LongVLMError, match=rf"{name} is there, but no {RECIPE_FILE} beside it"):
        claim_output(read_recipe(small_recipe, f"output={tmp_path}"), 1)
    assert {path.name for path in tmp_path.iterdir()} == {name, "recipe.yaml"}
    assert (tmp_path / name / "config.json").is_file()


def test_a_recipe_beside_its_own_run_stays_as_it_is(small_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(small_recipe.read_text())
    for _ in range(2):
        claim_output(read_recipe(tmp_path / "recipe.yaml", f"output={tmp_path}"), 1)
    assert (tmp_path / "recipe.yaml").read_text() == small_recipe.read_text()


@pytest.mark.parametrize("content", [b"a: [", b"\xff"])
def test_a_damaged_note_is_named(small_recipe: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / RECIPE_FILE).write_bytes(content)
    with pytest.raises(LongVLMError, match=rf"{RECIPE_FILE} is damaged; remove its folder, or choose another output"):
        claim_output(read_recipe(small_recipe, f"output={tmp_path}"), 1)
