from longvlm.differences import first_difference


def test_the_first_difference_is_named_with_both_values() -> None:
    found = {"a": 1, "b": {"c": [1, 2], "d": None}}
    assert first_difference(found, {"a": 1, "b": {"c": [1, 2], "d": None}}) is None
    assert first_difference(found, {"a": 1, "b": {"c": [1, 3], "d": None}}) == ("b.c", [1, 2], [1, 3])
    assert first_difference(found, {"a": 1}) == ("b", {"c": [1, 2], "d": None}, None)
