"""repro.data.crawl_queue: who is asked when, with the time in the test's hands."""

import itertools

import pytest

from repro.data.crawl_queue import CrawlQueue, Manners, Task


def tasks(*hosts: str) -> list[Task]:
    return [Task(f"http://{host}/{number}", "", host) for number, host in enumerate(hosts)]


def test_no_host_is_asked_for_more_at_once_than_the_manners_say():
    queue = CrawlQueue(Manners(host_pause=0, per_second=1e9), tasks("a", "a", "a", "b"))
    taken = [queue.take(1.0 + step) for step in range(5)]
    assert [task.host if task else None for task in taken] == ["a", "b", "a", None, None]
    assert queue.wait(9.0) is None
    queue.settle(taken[0], connected=True)
    assert queue.take(9.0).host == "a"


def test_hosts_take_turns():
    queue = CrawlQueue(Manners(host_pause=0, per_second=1e9), tasks("a", "a", "b", "b", "c", "c"))
    assert [queue.take(step).host for step in range(6)] == ["a", "b", "c", "a", "b", "c"]


def test_a_host_rests_between_two_requests():
    queue = CrawlQueue(Manners(host_pause=0.5, per_second=1e9), tasks("a", "a"))
    assert queue.take(10.0)
    assert queue.take(10.4) is None
    assert queue.wait(10.4) == pytest.approx(0.1)
    assert queue.take(10.5)


def test_the_rate_over_all_hosts_is_kept():
    queue = CrawlQueue(Manners(per_second=4), tasks(*"abcdefgh"))
    begun = [tenth / 10 for tenth in range(20) if queue.take(tenth / 10)]
    assert 6 <= len(begun) <= 8
    assert all(later - earlier > 0.19 for earlier, later in itertools.pairwise(begun))


def test_not_more_are_under_way_than_there_are_connections():
    queue = CrawlQueue(Manners(connections=2, per_second=1e9), tasks(*"abc"))
    first = queue.take(1.0)
    assert queue.take(2.0)
    assert queue.take(3.0) is None
    queue.settle(first, connected=True)
    assert queue.take(4.0)


def test_pauses_double_until_the_attempts_are_used_up():
    manners = Manners(attempts=3, back_off=2, host_pause=0)
    queue = CrawlQueue(manners, tasks("a"))
    task = queue.take(0.0)
    assert queue.again(task, 0.0, None, connected=True)
    assert (queue.take(1.9), queue.take(2.0)) == (None, task)
    assert queue.again(task, 2.0, None, connected=True)
    assert (queue.take(5.9), queue.take(6.0)) == (None, task)
    assert not queue.again(task, 6.0, None, connected=True)
    assert (queue.waiting, queue.active) == (0, 0)


def test_a_pause_that_a_host_asks_for_holds_for_all_its_addresses():
    queue = CrawlQueue(Manners(host_pause=0), tasks("a", "a"))
    assert queue.again(queue.take(0.0), 0.0, 50.0, connected=True)
    assert queue.take(49.0) is None
    assert queue.take(50.0)


def test_a_host_that_asks_for_an_hour_is_given_up():
    queue = CrawlQueue(Manners(), tasks("a", "a"))
    queue.again(queue.take(0.0), 0.0, 3600.0, connected=True)
    assert queue.is_silent("a")
    assert len(queue.give_up("a")) == 2
    assert (queue.waiting, queue.active, queue.take(1e6)) == (0, 0, None)


def test_faults_in_a_row_make_a_host_silent_and_an_answer_ends_the_row():
    manners = Manners(host_attempts=3, attempts=9, back_off=0, host_pause=0, per_second=1e9)
    queue = CrawlQueue(manners, tasks(*"aaaaa"))
    for now in (1.0, 2.0):
        queue.again(queue.take(now), now, None, connected=True)
    queue.settle(queue.take(3.0), connected=True)
    for now in (4.0, 5.0):
        queue.again(queue.take(now), now, None, connected=True)
    assert not queue.is_silent("a")
    queue.again(queue.take(6.0), 6.0, None, connected=True)
    assert queue.is_silent("a")


def test_a_host_that_cannot_be_connected_to_is_silent_after_three_looks():
    queue = CrawlQueue(Manners(unreachable_pause=30), tasks("a"))
    for now in (0.0, 30.0):
        queue.again(queue.take(now), now, None, connected=False)
        assert not queue.is_silent("a")
        assert queue.take(now + 29) is None
    assert not queue.again(queue.take(60.0), 60.0, None, connected=False)
    assert queue.is_silent("a")


def test_a_redirected_task_waits_for_its_new_host():
    queue = CrawlQueue(Manners(per_host=1, host_pause=0, per_second=1e9), tasks("a", "b"))
    first, second = queue.take(1.0), queue.take(2.0)
    queue.move(first, "http://b/x", "b")
    assert queue.take(3.0) is None
    queue.settle(second, connected=True)
    moved = queue.take(4.0)
    assert (moved.address, moved.url, moved.hops) == ("http://a/0", "http://b/x", 1)
