"""LongVLM: ask questions about long videos."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public names are imported on first use: `import longvlm` and `longvlm --help` stay free of torch.
_HOME = {
    "LongVLM": "longvlm.pipeline",
    "VideoIndex": "longvlm.video_index",
    "LongVLMConfig": "longvlm.model.configuration",
    "LongVLMForConditionalGeneration": "longvlm.model.modeling",
    "LongVLMProcessor": "longvlm.model.processing",
    "LongVLMError": "longvlm.errors",
    "Compression": "longvlm.types",
    "Sampling": "longvlm.types",
    "Answer": "longvlm.types",
}

__all__ = [
    "Answer",
    "Compression",
    "LongVLM",
    "LongVLMConfig",
    "LongVLMError",
    "LongVLMForConditionalGeneration",
    "LongVLMProcessor",
    "Sampling",
    "VideoIndex",
    "__version__",
]

if TYPE_CHECKING:
    from longvlm.errors import LongVLMError
    from longvlm.model.configuration import LongVLMConfig
    from longvlm.model.modeling import LongVLMForConditionalGeneration
    from longvlm.model.processing import LongVLMProcessor
    from longvlm.pipeline import LongVLM
    from longvlm.types import Answer, Compression, Sampling
    from longvlm.video_index import VideoIndex


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'longvlm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
