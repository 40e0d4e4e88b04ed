from __future__ import annotations

import threading

import pytest

from masksam_deploy.base.threads import Team, usable_cores


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_item_is_done_once_and_before_each_returns(threads: int) -> None:
    done = [0] * 20

    def work(index: int) -> None:
        done[index] += 1

    with Team(threads) as team:
        team.each(work, range(20))
        assert done == [1] * 20


def test_two_threads_work_at_the_same_time() -> None:
    meeting = threading.Barrier(2, timeout=10)

    def meet(_: int) -> None:
        meeting.wait()

    with Team(2) as team:
        team.each(meet, range(2))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_earliest_error_is_raised_whatever_finishes_first(threads: int) -> None:
    later = threading.Event()

    def work(index: int) -> None:
        if index == 1 and threads > 1:
            assert later.wait(10)
        if index == 2:
            later.set()
        if index:
            raise ValueError(f"item {index}")

    with Team(threads) as team, pytest.raises(ValueError, match="item 1"):
        team.each(work, range(4))


def test_no_threads_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 1"):
        Team(0)


def test_threads_end_with_the_team() -> None:
    before = threading.active_count()
    with Team(3) as team:
        team.each(lambda _: None, range(6))
        assert threading.active_count() > before
    assert threading.active_count() == before


def test_this_machine_has_cores() -> None:
    assert usable_cores() >= 1
