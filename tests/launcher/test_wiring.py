"""What processes are handed."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher import plan
from launcher.config import read
from launcher.wiring import Wiring
from tests.support.daemons import Puppet


@pytest.mark.parametrize(
    ("hypervisor", "relays"),
    [
        pytest.param("software", {"relay0"}, id="software"),
        pytest.param("kvm", set(), id="kvm", marks=pytest.mark.kvm),
    ],
)
def test_who_is_in_no_jail_of_ours_has_no_doorbell_that_a_vcpu_s_thread_rings(
    tmp_path: Path, binary: str, hypervisor: str, relays: set[str]
) -> None:
    if hypervisor == "software":
        pytest.importorskip("unicorn", reason="the Unicorn engine is not installed")
    external = f"vhost-user,type=blk,socket={tmp_path / 'socket'}"
    options = ["--device", external, "--device", "rng", "--hypervisor", hypervisor]
    with Puppet(tmp_path / "socket"):
        made = plan.make(read(["--binary", binary, "--entry", "0x10000", *options]))
        wiring = Wiring(made, "m", str(tmp_path))
        given = {
            device.name: wiring.for_device(device, wiring.first(device))[1]
            for device in made.devices
        }
        _, vmm = wiring.for_vmm({device.name: 0 for device in made.devices})
        wiring.close()
        made.close()

    assert {name for name in given["blk0"] if name.startswith("relay")} == relays
    assert not any("relay" in name for name in (*given["rng0"], *vmm))


@pytest.mark.parametrize(
    ("disk", "processors"), [("queues=1", None), ("queues=4", "425000 100000")], ids=["1", "4"]
)
def test_a_queue_with_a_thread_of_its_own_has_a_processor_more(
    tmp_path: Path, binary: str, disk: str, processors: str | None
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    options = ["--disk", f"{image},{disk}", "--console", "pty", "--hypervisor", "software"]
    made = plan.make(read(["--binary", binary, "--entry", "0x10000", *options]))
    wiring = Wiring(made, "m", str(tmp_path))
    found = {name: wiring.limits(name).get("cpu.max") for name in ("blk0", "console0")}
    wiring.close()
    made.close()

    assert found == {"blk0": processors, "console0": None}
