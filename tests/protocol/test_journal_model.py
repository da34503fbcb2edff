"""The journal's protocol on a model: a crash in every state, and wrong orders of stores."""

from __future__ import annotations

import pytest

from tests.support.journal_model import Model, Protocol, Violation

RIGHT = Protocol()


@pytest.mark.parametrize(
    ("model", "states"),
    [
        (Model(size=2, requests=3), 91_747),
        pytest.param(Model(size=2, requests=4), 375_486, marks=pytest.mark.slow),
        pytest.param(Model(size=4, requests=3, choices=1), 607_353, marks=pytest.mark.slow),
    ],
)
def test_no_state_loses_or_repeats_a_request_or_forgets_a_position(
    model: Model, states: int
) -> None:
    # The number says that the model has not quietly become a smaller one.
    assert model.explore() == states


def without(steps: tuple[str, ...], step: str) -> tuple[str, ...]:
    assert step in steps
    return tuple(one for one in steps if one != step)


def moved(steps: tuple[str, ...], step: str, before: str) -> tuple[str, ...]:
    rest = without(steps, step)
    where = rest.index(before)
    return (*rest[:where], step, *rest[where:])


def last(steps: tuple[str, ...], step: str) -> tuple[str, ...]:
    return (*without(steps, step), step)


split_links = ("element*", "next*", "batch_head*", *RIGHT.push[2:])

WRONG = {
    **{f"begin without {step}": Protocol(begin=without(RIGHT.begin, step)) for step in RIGHT.begin},
    **{
        f"recover without {step}": Protocol(recover=without(RIGHT.recover, step))
        for step in RIGHT.recover
    },
    **{f"pop without {step}": Protocol(pop=without(RIGHT.pop, step)) for step in RIGHT.pop},
    **{f"push without {step}": Protocol(push=without(RIGHT.push, step)) for step in RIGHT.push},
    "links without next": Protocol(push=without(split_links, "next*")),
    "links without batch_head": Protocol(push=without(split_links, "batch_head*")),
    "begin: version first": Protocol(begin=moved(RIGHT.begin, "version", "used_idx")),
    "recover: journal_idx first": Protocol(recover=RIGHT.recover[::-1]),
    "pop: inflight first": Protocol(pop=RIGHT.pop[::-1]),
    "pop: a cursor, stored first": Protocol(pop=("cursor", *RIGHT.pop), stored_cursor=True),
    "pop: a cursor, stored last": Protocol(pop=(*RIGHT.pop, "cursor"), stored_cursor=True),
    "push: elements after used_idx": Protocol(push=last(RIGHT.push, "element*")),
    "push: links after used_idx": Protocol(push=last(RIGHT.push, "link*")),
    "push: position after used_idx": Protocol(push=last(RIGHT.push, "position")),
    "push: position_idx after used_idx": Protocol(push=last(RIGHT.push, "position_idx")),
    "push: clear before used_idx": Protocol(push=moved(RIGHT.push, "clear*", "used_idx")),
    "push: journal_idx before clear": Protocol(push=moved(RIGHT.push, "journal_idx", "clear*")),
    "push: journal_idx before used_idx": Protocol(
        push=moved(RIGHT.push, "journal_idx", "used_idx")
    ),
    "push: the slot that counts": Protocol(write_current_slot=True),
    "resubmitted in order of heads": Protocol(resubmit_by_counter=False),
}


def find(protocol: Protocol) -> None:
    for requests in (2, 3, 4):
        Model(protocol, requests=requests).explore()


@pytest.mark.parametrize("protocol", WRONG.values(), ids=WRONG)
def test_another_order_of_stores_breaks_a_promise(protocol: Protocol) -> None:
    with pytest.raises(Violation):
        find(protocol)
