"""The launcher's children, and who hears of their deaths."""

from __future__ import annotations

from launcher.family import Family
from launcher.logs import Logs
from launcher.loop import Loop
from launcher.output import Output
from launcher.spawn import Child, start
from protocol.log import Level


def test_a_death_is_told_once_though_who_hears_of_it_comes_across_it_again() -> None:
    heard: list[str] = []

    def died(child: Child) -> None:
        heard.append(child.name)
        family.look(child)  # as who sends it something, and finds that nobody is there, does

    loop = Loop()
    family = Family(loop, Logs(Output(2, loop), Level.NONE), died)
    child = start("late", "devices.runtime.zygote")
    try:
        family.adopt(child)
        family.listen(child)
        child.kill()
        while not heard:
            family.look(child)
    finally:
        family.close()

    assert heard == ["late"]
