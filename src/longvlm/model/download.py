"""Checkpoints from the Hugging Face hub: what is fetched of them, and what is said where that fails."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from longvlm.errors import LongVLMError, one_line

_SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]


def download(hub_id: str) -> Path:
    """Snapshot of a hub repository's top folder: safetensors, or .bin files where it has no others."""
    try:
        folder = Path(_snapshot(hub_id, "model*.safetensors"))
        if not any((folder / name).exists() for name in ("model.safetensors", "model.safetensors.index.json")):
            _snapshot(hub_id, "pytorch_model*.bin")
        return folder
    except HFValidationError as error:
        reason = "no folder has this name, and it is no valid hub id (OWNER/NAME)"
        raise LongVLMError(f"Unknown model {hub_id!r}: {reason}.") from error
    except GatedRepoError as error:
        reason = f"accept its terms on https://huggingface.co/{hub_id} and log in with `hf auth login`"
        raise LongVLMError(f"The model {hub_id!r} is gated: {reason}.") from error
    except LocalEntryNotFoundError as error:
        reason = "no folder has this name, it is not in the local cache, and the Hugging Face hub can't be reached"
        raise LongVLMError(f"Unknown model {hub_id!r}: {reason}; check the name and the network.") from error
    except RepositoryNotFoundError as error:
        reason = "no folder has this name, and the Hugging Face hub has no such model that you may read"
        raise LongVLMError(f"Unknown model {hub_id!r}: {reason}; check the name.") from error
    except HfHubHTTPError as error:
        reason = f"the Hugging Face hub answered with status {error.response.status_code}"
        raise LongVLMError(f"The model {hub_id!r} can't be downloaded: {reason}; try again later.") from error
    except (ImportError, ValueError) as error:  # of a proxy in the environment that can't be used
        reason = one_line(error)
        raise LongVLMError(
            f"The model {hub_id!r} can't be looked up ({reason}); check the variables that name a proxy (HTTPS_PROXY, "
            "ALL_PROXY, …)."
        ) from error
    except (HTTPError, OSError, RuntimeError) as error:  # the network's, the disk's, the hub's own transfer library's
        reason = one_line(error)
        raise LongVLMError(
            f"The download of model {hub_id!r} broke off ({reason}); check the network and the space on the disk, "
            "and try again: it resumes."
        ) from error


def _snapshot(hub_id: str, weights: str) -> str:
    # The hub's * matches / too: sub-folders often hold the same weights again, in other forms.
    return snapshot_download(hub_id, allow_patterns=[*_SMALL_FILES, weights], ignore_patterns="*/*")


def name_of_checkpoint(folder: Path) -> str:
    """The folder's name, or the hub id where it lies in the hub's cache (`models--OWNER--NAME/snapshots/COMMIT`)."""
    repository = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not repository.startswith("models--"):
        return folder.name
    return repository.removeprefix("models--").replace("--", "/", 1)
