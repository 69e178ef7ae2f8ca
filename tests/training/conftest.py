"""The small run that the tests of training share; each of them writes to an output folder of its own."""

from pathlib import Path

import pytest
from small_run import write_small_run


@pytest.fixture(scope="session")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_run(tmp_path_factory.mktemp("small_run"))
