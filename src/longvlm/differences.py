"""How what was kept differs from what is asked for now."""

from __future__ import annotations

from typing import Any


def first_difference(found: Any, wanted: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first key, with dots, at which two nested mappings differ, and both values; None where they are equal."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        deeper = (first_difference(found.get(k), wanted.get(k), f"{key}.{k}".lstrip(".")) for k in {**wanted, **found})
        return next((difference for difference in deeper if difference is not None), None)
    return None if found == wanted else (key, found, wanted)
