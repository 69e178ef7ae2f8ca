"""Tables in documents that commands keep up to date, between `<!-- table: NAME -->` and `<!-- end of table -->`."""

from __future__ import annotations

import re
from pathlib import Path

from longvlm.errors import LongVLMError
from longvlm.whole_files import write_whole


def require_place(document: Path, name: str) -> None:
    """Raise LongVLMError where the document has no place for a table of this name."""
    _find_place(_read(document), document, name)


def put_table(document: Path, name: str, table: str) -> None:
    """Put a table, in markdown, in the place of the one of this name. Raises LongVLMError where there is no place."""
    text = _read(document)
    start, end = _find_place(text, document, name).span()
    write_whole(document, f"{text[:start]}{table}\n\n{text[end:]}".encode())


def _read(document: Path) -> str:
    return document.read_text(encoding="utf-8") if document.is_file() else ""


def _find_place(text: str, document: Path, name: str) -> re.Match[str]:
    begin, end = f"<!-- table: {name} -->\n", "<!-- end of table -->"
    place = re.search(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", text, re.DOTALL)
    if place is None:
        raise LongVLMError(f"{document} has no place for the table; write {begin.strip()} and, below it, {end} there.")
    return place
