"""What is shipped: the wheel and the source archive carry every asset, and nothing of the developers' own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/longvlm"
ASSETS = [
    path.relative_to(PACKAGE).as_posix()
    for path in sorted(PACKAGE.rglob("*"))
    if path.is_file() and path.suffix not in (".py", ".pyc") and not path.name.startswith(".")
]
BUILD = "import sys, setuptools.build_meta as b; out = sys.argv[1]; b.build_wheel(out); b.build_sdist(out)"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel and a source archive of a copy of the tree, built without the network."""
    pytest.importorskip("setuptools", minversion="77")
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("src", "tests", "scripts", "benchmarks", "docs"):
        if (ROOT / name).is_dir():
            left_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, source / name, ignore=left_out)
    for name in (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "Makefile",
        "constraints.txt",
        "MANIFEST.in",
    ):
        shutil.copy(ROOT / name, source)
    (source / "runs").mkdir()
    (source / "runs" / "train.log").write_text("a run")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(built)], cwd=source, capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    return built


def test_the_wheel_carries_the_package_and_its_assets_alone(built: Path) -> None:
    (wheel,) = built.glob("longvlm-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for asset in ASSETS:
            assert archive.read(f"longvlm/{asset}") == (ROOT / "src" / "longvlm" / asset).read_bytes(), asset
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    assert {name.partition("/")[0] for name in names} == {"longvlm", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    modules = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "longvlm").rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}
    assert "Requires-Python: >=3.10" in metadata


def test_the_source_archive_has_what_a_build_needs_and_no_more(built: Path) -> None:
    (archive_path,) = built.glob("longvlm-*.tar.gz")
    with tarfile.open(archive_path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"src/longvlm/{asset}" for asset in ASSETS} | {"LICENSE", "README.md", "pyproject.toml"} <= names
    assert not {name for name in names if name.startswith(("tests", "runs", "scripts", "benchmarks", "docs"))}


def test_the_requirements_name_files_and_extras_that_there_are() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == ["-c constraints.txt", "-e .[train,eval]"]
    assert (ROOT / "constraints.txt").is_file()
    assert {"train", "eval"} <= set(metadata("longvlm").get_all("Provides-Extra"))
