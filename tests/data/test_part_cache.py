"""What is kept, and what goes first."""

import pytest

from walrus_hf.data.part_cache import Part, PartCache


class Fetch:
    """As much of a fetch as the cache looks at."""

    def __init__(self, nbytes, failed=False):
        self.nbytes, self.failed, self.cancelled = nbytes, failed, False

    def cancel(self):
        self.cancelled = True


def part(trajectory, *runs, file=0):
    return Part(0, file, trajectory, runs or ((0, 10),))


@pytest.fixture
def cache():
    """Limit 30, with three parts of 10 bytes."""
    cache = PartCache(30)
    for trajectory in range(3):
        cache.put(part(trajectory), Fetch(10))
    return cache


def test_an_idle_part_stays_until_its_room_is_needed(cache):
    cache.release(part(1))
    assert part(1) in cache
    assert cache.nbytes == 30
    dropped = cache.get(part(1))
    assert cache.make_room(10)
    assert part(1) not in cache
    assert dropped.cancelled
    assert cache.nbytes == 20


def test_idle_parts_go_longest_ago_first(cache):
    cache.release(part(2))
    cache.release(part(0))
    assert cache.make_room(10)
    assert list(cache) == [part(0), part(1)]


def test_room_is_not_made_from_parts_in_use_nor_from_idle_ones_that_are_not_enough(cache):
    cache.release(part(1))
    assert not cache.make_room(20)
    assert list(cache) == [part(0), part(1), part(2)]


def test_an_idle_part_that_is_wanted_again_is_in_use(cache):
    cache.release(part(0))
    cache.want(part(0))
    assert not cache.make_room(10)


def test_beyond_the_limit_idle_parts_go_first_then_those_used_longest_ago_never_those_needed(cache):
    cache.release(part(2))
    cache.put(part(3), Fetch(20))
    cache.shrink({part(3): None, part(0): None})
    assert list(cache) == [part(0), part(3)]
    assert cache.nbytes == 30
    cache.put(part(4), Fetch(30))
    cache.shrink({part(0): None, part(3): None, part(4): None})
    assert cache.nbytes == 60  # one batch may need more than the limit


def test_a_part_with_all_the_frames_stands_in_for_a_smaller_one(cache):
    cache.put(part(7, (0, 5), (20, 30)), Fetch(1))
    assert cache.covering(part(7, (22, 30))) == part(7, (0, 5), (20, 30))
    assert cache.covering(part(7, (1, 2), (20, 21))) == part(7, (0, 5), (20, 30))
    for other in (part(7, (4, 6)), part(7, (5, 20)), part(7, (22, 30), file=1), part(8, (22, 30))):
        assert cache.covering(other) == other


def test_a_part_that_failed_stands_in_for_none(cache):
    cache.put(part(7), Fetch(1, failed=True))
    assert cache.covering(part(7, (1, 2))) == part(7, (1, 2))


def test_a_part_that_is_put_again_counts_once(cache):
    cache.release(part(0))
    old = cache.get(part(0))
    cache.put(part(0), Fetch(5))
    assert old.cancelled
    assert cache.nbytes == 25
    assert not cache.make_room(10)  # and is in use again
