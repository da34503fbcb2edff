"""How soon a device that died is tried again."""

from __future__ import annotations

from launcher.policy import BackOff


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def back_off(jitter: float = 1.0) -> tuple[BackOff, Clock]:
    clock = Clock()
    return BackOff(clock, lambda: jitter), clock


def test_one_that_served_for_a_while_is_followed_at_once() -> None:
    policy, clock = back_off()
    for _ in range(5):
        clock.now += 1
        assert policy.delay() == 0
        policy.served()


def test_attempts_that_fail_come_later_and_later_and_never_end() -> None:
    policy, clock = back_off()
    clock.now += 1

    delays = [policy.delay() for _ in range(2000)]

    assert delays[:5] == [0, 0.02, 0.04, 0.08, 0.16]
    assert delays == sorted(delays)
    assert delays[-1] == 5.0


def test_one_that_dies_at_once_again_and_again_counts_as_a_failure() -> None:
    policy, clock = back_off()
    clock.now += 1
    delays = []
    for _ in range(4):
        delays.append(policy.delay())
        policy.served()
        clock.now += 0.01

    assert delays == [0, 0.02, 0.04, 0.08]


def test_failures_are_forgotten_by_one_that_serves() -> None:
    policy, clock = back_off()
    for _ in range(10):
        policy.delay()
    policy.served()
    clock.now += 1

    assert policy.delay() == 0


def test_half_of_a_delay_is_chance() -> None:
    policy, _ = back_off(jitter=0.0)
    policy.delay()

    assert policy.delay() == 0.01
