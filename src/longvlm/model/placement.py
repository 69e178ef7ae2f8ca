"""Where a model runs, and in which dtype, unless its user says otherwise."""

from __future__ import annotations

import torch

from longvlm.errors import LongVLMError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for; for None and "auto" CUDA where there is any, else the CPU.

    Raises LongVLMError for a device that torch doesn't know or that isn't there.
    """
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise LongVLMError(f"Unknown device {device!r}; choose cpu, cuda, or cuda:1 and so on.") from error
    num_cuda = torch.cuda.device_count()
    if chosen.type not in ("cpu", "cuda", "mps") or (chosen.type == "mps" and not torch.backends.mps.is_available()):
        raise LongVLMError(f"Models can't run on {str(device)!r} here; choose cpu, or cuda where there is a GPU.")
    if chosen.type == "cuda" and (chosen.index or 0) >= num_cuda:
        raise LongVLMError(f"There is no device {str(device)!r}: torch sees {num_cuda} CUDA devices. Use cpu.")
    return chosen


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype asked for; for None and "auto" bfloat16 where `device` multiplies it fast, else float32.

    Raises LongVLMError for anything but float32, bfloat16 and float16.
    """
    if dtype is None or dtype == "auto":
        return torch.bfloat16 if multiplies_bfloat16_fast(device) else torch.float32
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise LongVLMError(f"Unknown dtype {name!r}; choose {', '.join(_DTYPES)} or auto.")
    return _DTYPES[name]


def multiplies_bfloat16_fast(device: torch.device) -> bool:
    """Whether `device` has instructions for products in bfloat16; others imitate them, slowly."""
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)  # from Ampere on
