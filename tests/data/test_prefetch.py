"""Work ahead of time: in order, no further ahead than asked, failures where they belong, an end without leftovers."""

import threading
import time
from itertools import count

import pytest

from mvar.data.prefetch import LOOKAHEAD, Prefetched


@pytest.mark.parametrize("num_workers", [0, 1, 4])
@pytest.mark.parametrize("number", [0, 1, 30])
def test_results_come_in_order_of_the_items(num_workers, number):
    def load(i: int) -> int:
        time.sleep(0.002 * (i % 3 == 0))  # later ones are done earlier
        return i * i

    with Prefetched(load, range(number), num_workers) as loaded:
        assert list(loaded) == [i * i for i in range(number)]
        assert next(loaded, "end") == "end"


@pytest.mark.parametrize(("num_workers", "depth", "ahead"), [(0, 9, 1), (2, 0, 2 * LOOKAHEAD), (2, 9, 9)])
def test_items_are_taken_no_further_ahead_than_asked(num_workers, depth, ahead):
    """In the caller's thread, whose random numbers they may hold."""
    taken = []

    def items():
        for i in count():
            taken.append(threading.get_ident())
            yield i

    with Prefetched(abs, items(), num_workers, depth) as loaded:
        assert not taken
        for i in range(5):
            assert next(loaded) == i and len(taken) == i + ahead
    assert set(taken) == {threading.get_ident()} and len(taken) == 4 + ahead


@pytest.mark.parametrize("num_workers", [0, 3])
def test_a_failure_comes_where_its_result_would_have(num_workers):
    def load(i: int) -> int:
        if i == 3:
            raise OSError("item 3")
        return i

    with pytest.raises(OSError, match="item 3"), Prefetched(load, range(9), num_workers) as loaded:
        found = []
        for value in loaded:
            found.append(value)
    assert found == [0, 1, 2]


def test_leaving_early_drops_what_has_not_begun_and_waits_for_what_has():
    begun, ended, gate = [], [], threading.Event()

    def load(i: int) -> int:
        begun.append(i)
        if i:
            gate.wait(10)
            time.sleep(0.05)
        ended.append(i)
        return i

    before = threading.active_count()
    with Prefetched(load, range(100), 2, depth=50) as loaded:
        assert next(loaded) == 0
        while len(begun) < 3:
            time.sleep(0.001)
        threading.Timer(0.1, gate.set).start()
    assert sorted(begun) == sorted(ended) and len(begun) < 10
    time.sleep(0.01)
    assert threading.active_count() <= before + 1  # the timer, perhaps


def test_work_is_done_while_something_else_is():
    done = []
    with Prefetched(lambda i: done.append(i), range(4), 2) as loaded:
        next(loaded)
        deadline = time.monotonic() + 10
        while len(done) < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert sorted(done) == [0, 1, 2, 3]
