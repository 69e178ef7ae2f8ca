"""The order of the packages: who may import whom, and where the heavy libraries may appear."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import PATIENCE_SECONDS

import longvlm

PACKAGE = Path(__file__).parents[1] / "src" / "longvlm"
FILES = sorted(PACKAGE.rglob("*.py"))

# Lowest first; a package (or module) imports from itself and from the layers below it.
LAYERS = [
    {"errors"},
    {"whole_files", "differences"},
    {"types"},
    {"clock", "heap", "intervals", "pace", "parent_process", "text_table", "working_ahead"},
    {"video_index"},
    {"index_builder"},
    {"stages"},
    {"model"},
    {"pipeline"},
    {"index"},
    {"world"},
    {"training"},
    {"evaluation", "study"},
    {"report"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
LAYER_OF = {package: layer for layer, packages in enumerate(LAYERS) for package in packages}

# Optional libraries, and the packages that may import them.
OPTIONAL = {
    "peft": {"training"},
    "tensorboard": {"training"},
    "openai": {"evaluation"},
    "bitsandbytes": {"model"},
    "matplotlib": {"evaluation", "report", "study", "world"},
}
NEVER = {"decord", "torchvision", "torchcodec", "cv2", "skvideo"}


def package_of(file: Path) -> str:
    place = file.relative_to(PACKAGE)
    if place.name == "__main__.py":  # what `python -m` of a package runs is a command
        return "__main__"
    return place.parts[0] if len(place.parts) > 1 else place.stem


def stage_of(module: str) -> str:
    """`video`, for longvlm.stages.video and for the files it is split into (longvlm.stages.video_access)."""
    return module.split(".")[2].split("_")[0]


def imported_modules(file: Path) -> Iterator[str]:
    """Every module that a file imports anywhere: inside functions and for type checking, too."""
    package = ["longvlm", *file.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            if module == "longvlm":  # its public names live elsewhere
                yield from (longvlm._HOME.get(alias.name, f"longvlm.{alias.name}") for alias in node.names)
                continue
            # `from longvlm.stages import video` imports a module, not a name of one.
            named = [f"{module}.{alias.name}" for alias in node.names]
            files = [PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py") for name in named]
            yield from [name for name, path in zip(named, files, strict=True) if path.is_file()] or [module]


# The package's own __init__ names the public classes of all packages, lazily: `test_importing_is_light` sees to it.
@pytest.mark.parametrize(
    "file", [file for file in FILES if file != PACKAGE / "__init__.py"], ids=lambda file: str(file.relative_to(PACKAGE))
)
def test_imports_go_downwards(file: Path) -> None:
    package = package_of(file)
    assert package in LAYER_OF, f"{package} has no layer yet: give it one in LAYERS"
    for module in imported_modules(file):
        if not module.startswith("longvlm."):
            continue
        other = module.split(".")[1]
        if other.startswith("__"):
            continue
        assert other == package or LAYER_OF[other] < LAYER_OF[package], (
            f"{package} imports {module}, which is not below it"
        )
        if package == other == "stages" and file.stem != "__init__":
            own = f"longvlm.stages.{file.stem}"
            assert stage_of(module) == stage_of(own), f"stage {file.stem} imports another stage, {module}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_optional_libraries_stay_where_they_are_needed(file: Path) -> None:
    for module in imported_modules(file):
        library = module.split(".")[0]
        assert library not in NEVER, f"{file.name} imports {library}"
        if library in OPTIONAL:
            assert package_of(file) in OPTIONAL[library], f"{package_of(file)} imports {library}"


@pytest.mark.parametrize("module", ["longvlm", "longvlm.cli"])
def test_importing_is_light(module: str, tmp_path: Path) -> None:
    """`longvlm --help` must not wait for torch. Run where no folder of data passes for the library datasets."""
    heavy = ["torch", "transformers", "av", "numpy", "PIL", *OPTIONAL]
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS, cwd=tmp_path
    )
    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_imported() -> None:
    for name in longvlm.__all__:
        assert getattr(longvlm, name) is not None
    assert set(longvlm.__all__) <= set(dir(longvlm))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = longvlm.nothing


def test_the_checks_see_what_they_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports inside functions, relative ones and modules imported by name all count."""
    text = "from . import merging\ndef f():\n    import ray.data\n    from longvlm.stages import tokens\n"
    text += "    from longvlm import LongVLM, training\n"
    stages = tmp_path / "longvlm" / "stages"
    stages.mkdir(parents=True)
    for name in ("merging.py", "tokens.py"):
        (stages / name).touch()
    (stages / "video.py").write_text(text)
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "longvlm")
    expected = {"longvlm.stages.merging", "ray.data", "longvlm.stages.tokens", "longvlm.pipeline", "longvlm.training"}
    assert set(imported_modules(stages / "video.py")) == expected
