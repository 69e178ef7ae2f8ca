from longvlm.text_table import TextTable


def test_a_table_of_text_is_the_same_on_a_terminal_and_in_a_document() -> None:
    table = TextTable("Scores", ("kind", "n"), [("first", "3"), ("all", "12")])
    assert table.as_markdown() == "| kind | n |\n|---|--:|\n| first | 3 |\n| all | 12 |"
    columns = table.as_rich().columns
    assert [(column.header, list(map(str, column.cells))) for column in columns] == [
        ("kind", ["first", "all"]),
        ("n", ["3", "12"]),
    ]
    assert "a\\|b" in TextTable("", ("a|b",), []).as_markdown()
    assert [column.justify for column in columns] == ["left", "right"]
