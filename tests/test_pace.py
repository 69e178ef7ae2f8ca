from longvlm.pace import describe_pace


def test_pace_in_words() -> None:
    assert describe_pace(12, 100, 518.2, "8.1 frames/s") == "12 of 100 videos, 8.1 frames/s, 1:03:20 left"
    assert describe_pace(3, 3, 5.0) == "3 of 3 videos, 0:00:00 left"
    assert describe_pace(0, 3, 5.0) == "0 of 3 videos"
