from pathlib import Path

import pytest

from longvlm.errors import LongVLMError
from longvlm.report.tables import put_table


def test_only_the_table_of_that_name_is_replaced(tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    other = "<!-- table: other -->\nstays\n<!-- end of table -->\n"
    document.write_text(f"# Title\n{other}<!-- table: mine -->\n| old |\n\n<!-- end of table -->\nThe end.\n")
    for table in ("| \\1 new |", "| newer |"):
        put_table(document, "mine", table)
        expected = f"# Title\n{other}<!-- table: mine -->\n{table}\n\n<!-- end of table -->\nThe end.\n"
        assert document.read_text() == expected


def test_a_document_without_a_place_is_refused_and_stays(tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    document.write_text("# Title\n")
    with pytest.raises(LongVLMError, match=r"doc.md has no place for the table; write <!-- table: mine -->"):
        put_table(document, "mine", "| new |")
    assert document.read_text() == "# Title\n"
    with pytest.raises(LongVLMError, match="has no place"):
        put_table(tmp_path / "none.md", "mine", "| new |")
