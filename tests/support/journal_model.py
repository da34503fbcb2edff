"""A model of driver, device, ring and journal, of which every state that can be reached is seen.

It is written from docs/journal.md and shares nothing with the engine. A state is what memory holds,
what the driver knows, what the device knows, and the stores that the device has begun and not yet
made. From each state go: one more store; a step of the driver, which runs beside the device and
does not know of its death; and a crash, so that there is one behind every store, those of a
recovery included, any number of times. Numbers are small: indices are modulo 16.

Requests are numbered as they are offered. A device's position is the set of those it has completed,
as a bit mask; so a position that is one batch off shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

MODULO = 16
BEGINNING = 1 << 15  # a position without any request


class Violation(Exception):
    """A promise was broken; the text says which."""


@dataclass(frozen=True)
class Protocol:
    """The order of stores: what stands in docs/journal.md, or, to be found out, something else.
    A step ``x*`` is done for every chain of the batch before the next step begins."""

    begin: tuple[str, ...] = ("used_idx", "position", "position_idx", "version")
    recover: tuple[str, ...] = ("clear*", "journal_idx")
    pop: tuple[str, ...] = ("counter", "inflight")
    push: tuple[str, ...] = (
        "element*",
        "link*",
        "position",
        "position_idx",
        "used_idx",
        "clear*",
        "journal_idx",
    )
    write_current_slot: bool = False
    resubmit_by_counter: bool = True
    stored_cursor: bool = False


class Memory(NamedTuple):
    """Guest memory, and behind it the journal; all of it outlives the device."""

    avail: tuple[int, ...]
    avail_idx: int
    requests: tuple[int, ...]  # the number of the request whose head this descriptor is
    used: tuple[tuple[int, int], ...]  # head, and which request was carried out
    used_idx: int

    version: int
    inflight: tuple[int, ...]
    counter: tuple[int, ...]
    next: tuple[int, ...]
    batch_head: int
    journal_idx: int
    slots: tuple[int, int]
    slot_idx: tuple[int, int]
    cursor: int  # of the protocol that stores one


class Device(NamedTuple):
    """What dies with it."""

    used_idx: int
    counter: int
    slot: int
    position: int
    flight: tuple[tuple[int, int], ...]  # head and request, popped and not completed
    leftovers: tuple[int, ...]  # heads to be resubmitted
    cursor: int


class Driver(NamedTuple):
    """What outlives the device; ``done`` is a mask of requests."""

    offered: int
    seen: int
    done: int
    free: tuple[int, ...]


Store = tuple[str, int | None, object]  # a field of Memory, an index into it, the value


class State(NamedTuple):
    memory: Memory
    driver: Driver
    device: Device | None
    stores: tuple[Store, ...]


def stored(memory: Memory, store: Store) -> Memory:
    field, index, value = store
    if index is not None:
        old = getattr(memory, field)
        value = (*old[:index], value, *old[index + 1 :])
    return memory._replace(**{field: value})


@dataclass(frozen=True)
class Model:
    """A queue of ``size``, over which ``requests`` go, completed in batches of up to ``batch``.
    The driver takes one of its first ``choices`` free descriptors."""

    protocol: Protocol = Protocol()
    size: int = 2
    requests: int = 3
    batch: int = 2
    choices: int = 2
    start: int = MODULO - 1

    def explore(self) -> int:
        """Look at every state; returns how many there are. Violation if one breaks a promise."""
        begin = self._first()
        found, waiting = {begin}, [begin]
        while waiting:
            state = waiting.pop()
            ends = True
            for following, crash in self._steps(state):
                ends &= crash
                if following not in found:
                    found.add(following)
                    waiting.append(following)
            if ends and state.driver.done != (1 << self.requests) - 1:
                raise Violation(f"lost: the driver waits for ever in {state}")
        return len(found)

    def _first(self) -> State:
        zeros = (0,) * self.size
        start = self.start
        memory = Memory(
            avail=zeros,
            avail_idx=start,
            requests=zeros,
            used=((0, 0),) * self.size,
            used_idx=start,
            version=0,
            inflight=zeros,
            counter=zeros,
            next=zeros,
            batch_head=0,
            journal_idx=0,
            slots=(0, 0),
            slot_idx=(0, 0),
            cursor=start,
        )
        return State(memory, Driver(0, start, 0, tuple(range(self.size))), None, ())

    def _steps(self, state: State) -> Iterator[tuple[State, bool]]:
        """Every state that can follow, and whether it takes a crash."""
        for driver, memory in self._driver(state.driver, state.memory):
            yield state._replace(driver=driver, memory=memory), False
        if state.device is None:
            device, stores = self._attach(state.memory, state.driver)
            yield state._replace(device=device, stores=stores), False
            return
        yield state._replace(device=None, stores=()), True
        if state.stores:
            memory = stored(state.memory, state.stores[0])
            yield state._replace(memory=memory, stores=state.stores[1:]), False
            return
        for device, stores in self._device(state.device, state.memory, state.driver):
            yield state._replace(device=device, stores=stores), False

    # The driver offers and collects; both in one piece, for the device's death does not cut them.

    def _driver(self, driver: Driver, memory: Memory) -> Iterator[tuple[Driver, Memory]]:
        if driver.offered < self.requests:
            for head in driver.free[: self.choices]:
                offered = memory
                for store in (
                    ("requests", head, driver.offered),
                    ("avail", memory.avail_idx % self.size, head),
                    ("avail_idx", None, (memory.avail_idx + 1) % MODULO),
                ):
                    offered = stored(offered, store)
                free = tuple(one for one in driver.free if one != head)
                yield driver._replace(offered=driver.offered + 1, free=free), offered
        if driver.seen != memory.used_idx:
            head, request = memory.used[driver.seen % self.size]
            if head in driver.free or driver.done & 1 << request:
                raise Violation(f"completed twice: head {head}, request {request}")
            if request != memory.requests[head]:
                raise Violation(f"head {head} came back with the answer to {request}")
            free = tuple(sorted((*driver.free, head)))
            done = driver.done | 1 << request
            seen = (driver.seen + 1) % MODULO
            yield driver._replace(seen=seen, done=done, free=free), memory

    def _published(self, memory: Memory, driver: Driver) -> int:
        """The mask of all requests that the driver has been told of, collected or not."""
        mask, index = driver.done, driver.seen
        while index != memory.used_idx:
            mask |= 1 << memory.used[index % self.size][1]
            index = (index + 1) % MODULO
        return mask

    # The device.

    def _device(
        self, device: Device, memory: Memory, driver: Driver
    ) -> Iterator[tuple[Device, tuple[Store, ...]]]:
        if device.leftovers:
            head, *rest = device.leftovers
            flight = (*device.flight, (head, memory.requests[head]))
            yield device._replace(flight=flight, leftovers=tuple(rest)), ()
        elif device.cursor != memory.avail_idx:
            yield self._pop(device, memory, driver)
        for count in range(1, self.batch + 1):
            for batch in permutations(device.flight, count):
                yield self._push(device, memory, batch)

    def _pop(
        self, device: Device, memory: Memory, driver: Driver
    ) -> tuple[Device, tuple[Store, ...]]:
        head = memory.avail[device.cursor % self.size]
        if head in dict(device.flight):
            raise Violation(f"head {head} is popped while it is in flight")
        request = memory.requests[head]
        begun = self._published(memory, driver) | sum(1 << one for _, one in device.flight)
        if begun != (1 << request) - 1:
            raise Violation(f"request {request} is popped when those begun are {begun:b}")
        cursor = (device.cursor + 1) % MODULO
        known: dict[str, Store] = {
            "counter": ("counter", head, device.counter),
            "inflight": ("inflight", head, 1),
            "cursor": ("cursor", None, cursor),
        }
        flight = (*device.flight, (head, request))
        popped = device._replace(flight=flight, counter=device.counter + 1, cursor=cursor)
        return popped, tuple(known[step] for step in self.protocol.pop)

    def _push(
        self, device: Device, memory: Memory, batch: Sequence[tuple[int, int]]
    ) -> tuple[Device, tuple[Store, ...]]:
        idx = (device.used_idx + len(batch)) % MODULO
        slot = device.slot if self.protocol.write_current_slot else 1 - device.slot
        position = device.position
        for _, request in batch:
            position |= 1 << request
        known: dict[str, list[Store]] = {
            "position": [("slots", slot, position)],
            "position_idx": [("slot_idx", slot, idx)],
            "used_idx": [("used_idx", None, idx)],
            "journal_idx": [("journal_idx", None, idx)],
            "element*": [],
            "next*": [],
            "batch_head*": [],
            "link*": [],
            "clear*": [],
        }
        last = memory.batch_head
        for offset, (head, request) in enumerate(batch):
            where = (device.used_idx + offset) % MODULO % self.size
            known["element*"].append(("used", where, (head, request)))
            links: list[Store] = [("next", head, last), ("batch_head", None, head)]
            known["link*"] += links
            known["next*"].append(links[0])
            known["batch_head*"].append(links[1])
            known["clear*"].append(("inflight", head, 0))
            last = head
        after = device._replace(
            used_idx=idx,
            slot=slot,
            position=position,
            flight=tuple(one for one in device.flight if one not in batch),
        )
        return after, tuple(store for step in self.protocol.push for store in known[step])

    def _attach(self, memory: Memory, driver: Driver) -> tuple[Device, tuple[Store, ...]]:
        idx = memory.used_idx
        if memory.version == 0:
            fresh: dict[str, Store] = {
                "used_idx": ("journal_idx", None, idx),
                "position": ("slots", 0, BEGINNING),
                "position_idx": ("slot_idx", 0, idx),
                "version": ("version", None, 1),
            }
            device = Device(idx, 0, 0, BEGINNING, (), (), idx)
            self._judge(device, memory, driver)
            return device, tuple(fresh[step] for step in self.protocol.begin)
        published, head = [], memory.batch_head
        ahead = (idx - memory.journal_idx) % MODULO
        if ahead > self.size:
            raise Violation("used.idx is too far ahead of the journal")
        for _ in range(ahead):
            published.append(head)
            head = memory.next[head]
        left = [one for one in range(self.size) if memory.inflight[one] and one not in published]
        if self.protocol.resubmit_by_counter:
            left.sort(key=lambda one: memory.counter[one])
        if idx not in memory.slot_idx:
            raise Violation("no position belongs to used.idx")
        slot = memory.slot_idx.index(idx)
        known: dict[str, list[Store]] = {
            "clear*": [("inflight", one, 0) for one in published],
            "journal_idx": [("journal_idx", None, idx)],
        }
        device = Device(
            used_idx=idx,
            counter=max((memory.counter[one] for one in left), default=-1) + 1,
            slot=slot,
            position=memory.slots[slot],
            flight=(),
            leftovers=tuple(left),
            cursor=memory.cursor if self.protocol.stored_cursor else (idx + len(left)) % MODULO,
        )
        self._judge(device, memory, driver)
        return device, tuple(store for step in self.protocol.recover for store in known[step])

    def _judge(self, device: Device, memory: Memory, driver: Driver) -> None:
        """What a successor believes, against what has really happened."""
        published = self._published(memory, driver)
        if device.position != published | BEGINNING:
            raise Violation(f"position {device.position:b}, published {published:b}")
        again = [memory.requests[head] for head in device.leftovers]
        if len(again) > (memory.avail_idx - memory.used_idx) % MODULO:
            raise Violation("more is in flight than the driver waits for")
        if any(published & 1 << request for request in again):
            raise Violation(f"{again} are resubmitted, {published:b} is published")
        if again != sorted(again):
            raise Violation(f"resubmitted out of order: {again}")
