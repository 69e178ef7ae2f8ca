"""A hash of a video's content that is cheap for files of any size."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from longvlm.stages.video_access import naming_errors_of

_BLOCK_BYTES = 1 << 16
_NUM_BLOCKS = 16


def fingerprint_files(paths: Sequence[Path]) -> str:
    """Hash the sizes of files and 16 blocks of 64 KiB of each, spread from its head to its tail.

    A file of up to 1 MiB is hashed whole. Names don't count. Raises LongVLMError, naming the file, where one
    can't be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        with naming_errors_of(path), path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(size.to_bytes(8, "little"))
            last_offset = max(0, size - _BLOCK_BYTES)
            for block in range(_NUM_BLOCKS):
                file.seek(last_offset * block // (_NUM_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()
