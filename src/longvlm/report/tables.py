"""Tables in documents that commands keep up to date, between `<!-- table: NAME -->` and `<!-- end of table -->`."""

from __future__ import annotations

import re
from pathlib import Path

from longvlm.errors import LongVLMError
from longvlm.whole_files import write_whole


def put_table(document: Path, name: str, table: str) -> None:
    """Put a table, in markdown, in the place of the one of this name. Raises LongVLMError where there is no place."""
    text = document.read_text(encoding="utf-8") if document.is_file() else ""
    begin, end = f"<!-- table: {name} -->\n", "<!-- end of table -->"
    place = re.compile(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", re.DOTALL)
    if not place.search(text):
        raise LongVLMError(f"{document} has no place for the table; write {begin.strip()} and, below it, {end} there.")
    write_whole(document, place.sub(lambda _: f"{table}\n\n", text).encode())
