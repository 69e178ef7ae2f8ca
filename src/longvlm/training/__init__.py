"""Training: recipes and runs, and the bundled model from nothing.

The original keeps its data in a folder `datasets`. Where that lies on the path of Python, it looks like a package, and
transformers' Trainer takes it for the Hugging Face library of that name; so it gets the one class that is asked for.
"""

import importlib
import importlib.util
from typing import Any

_found = importlib.util.find_spec("datasets")
if _found is not None and _found.origin is None:  # a folder of data
    _folder: Any = importlib.import_module("datasets")
    _folder.Dataset = type("Dataset", (), {})
