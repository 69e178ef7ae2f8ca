"""A table of text that looks the same on a terminal and in a document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class TextTable:
    """Rows of text under names of columns: the first column names the row, the others hold figures."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def as_rich(self) -> Table:
        """For a terminal; a row about "all" stands apart."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(self.title))
        for number, name in enumerate(self.columns):
            table.add_column(name, justify="right" if number else "left")
        for row in self.rows:
            if row[0] == "all":
                table.add_section()
            table.add_row(*map(Text, row))
        return table

    def as_markdown(self) -> str:
        """For a document; the title is left to the text around it."""
        rule = "|---|" + "--:|" * (len(self.columns) - 1)
        return "\n".join([_line(self.columns), rule, *map(_line, self.rows)])


def _line(cells: tuple[str, ...]) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
