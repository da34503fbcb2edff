"""The launcher's loop: what it calls, and what it must not."""

from __future__ import annotations

import os

from launcher.loop import Loop


def test_descriptor_whose_number_is_given_again_within_a_round_is_not_taken_for_the_old_one() -> (
    None
):
    loop = Loop()
    first, second, third = os.pipe(), os.pipe(), None
    called: list[str] = []

    def close_second_and_open_a_third() -> None:
        nonlocal third
        os.read(first[0], 1)
        loop.on_readable(second[0], None)
        os.close(second[0])
        third = os.pipe()
        assert third[0] == second[0]  # the lowest that is free
        loop.on_readable(third[0], lambda: called.append("third"))
        loop.after(0, loop.end)

    loop.on_readable(first[0], close_second_and_open_a_third)
    loop.on_readable(second[0], lambda: called.append("second"))
    os.write(first[1], b"x")
    os.write(second[1], b"x")

    loop.run()
    assert called == []

    assert third is not None
    os.write(third[1], b"x")
    loop.after(0.01, loop.end)
    loop.run()
    assert set(called) == {"third"}
    for fd in (*first, second[1], *third):
        os.close(fd)


def test_timer_that_sets_itself_again_at_once_does_not_keep_descriptors_waiting() -> None:
    loop, rounds = Loop(), 0
    ours, theirs = os.pipe()

    def again() -> None:
        nonlocal rounds
        rounds += 1
        if rounds < 1000:
            loop.after(0, again)
        else:
            loop.end()

    loop.on_readable(ours, loop.end)
    os.write(theirs, b"x")
    loop.after(0, again)
    loop.run()

    assert rounds < 1000
    os.close(ours)
    os.close(theirs)
