"""Working ahead: a generator in a thread, a few items ahead."""

import threading
import time

import pytest
from waiting import wait_until

from longvlm.working_ahead import WorkingAhead


def test_items_come_in_their_order_and_then_no_more():
    ahead = WorkingAhead((number for number in range(100)), room=3, name="numbers")
    assert list(ahead) == list(range(100))
    assert list(ahead) == []
    ahead.close()


def test_it_is_as_far_ahead_as_there_is_room():
    made = []

    def items():
        for number in range(100):
            made.append(number)
            yield number

    ahead = WorkingAhead(items(), room=3, name="numbers")
    assert next(ahead) == 0
    wait_until(lambda: made == [0, 1, 2, 3, 4])  # one taken, three in the queue, one in hand
    time.sleep(0.3)
    assert made == [0, 1, 2, 3, 4]
    ahead.close()


def test_what_the_generator_raises_is_raised_where_its_items_are_taken():
    def items():
        yield 1
        raise ValueError("no more")

    ahead = WorkingAhead(items(), room=3, name="numbers")
    assert next(ahead) == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="no more"):
            next(ahead)


def test_closing_it_closes_the_generator_in_its_own_thread():
    closed_in = []

    def items():
        try:
            while True:
                yield 0
        finally:
            closed_in.append(threading.current_thread().name)

    ahead = WorkingAhead(items(), room=2, name="endless")
    next(ahead)
    ahead.close()
    wait_until(lambda: closed_in == ["endless"])
    wait_until(lambda: "endless" not in {thread.name for thread in threading.enumerate()})


def test_it_tells_whether_the_next_item_or_the_end_is_there():
    may_go_on, told = threading.Event(), []

    def items():
        yield 1
        may_go_on.wait()
        yield 2

    ahead = WorkingAhead(items(), room=2, name="slow", on_made=lambda: told.append(True))
    wait_until(lambda: ahead.is_ready)
    assert next(ahead) == 1 and not ahead.is_ready
    may_go_on.set()
    assert next(ahead) == 2
    wait_until(lambda: ahead.is_ready)
    assert next(ahead, None) is None and ahead.is_ready
    wait_until(lambda: len(told) == 3)  # two items and the end
    ahead.close()
