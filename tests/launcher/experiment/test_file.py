"""Experiments as files: what is right is read, and what is wrong is said by the name of its key."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from launcher.experiment import file
from launcher.experiment.file import Experiment, Load
from protocol.errors import BadInput
from protocol.specs import LEVELS


def read(folder: Path, text: str) -> Experiment:
    path = folder / "x.toml"
    path.write_text(text)
    return file.read(str(path))


@pytest.mark.parametrize(
    ("text", "where", "why"),
    [
        ("repititions = 3", "x.toml", "unknown key 'repititions'; did you mean 'repetitions'?"),
        ("isolation = ['jial']", "x.toml: isolation", "there is no 'jial'; did you mean 'jail'?"),
        ("isolation = 'jail'", "x.toml: isolation", "'jail' is no list of texts"),
        ("isolation = ['jail', 'jail']", "x.toml: isolation", "'jail' is given twice"),
        ("grouping = ['alone']", "x.toml: grouping", "there is no 'alone'"),
        ("devices = ['blq']", "x.toml: devices", "'blq' is not a kind of device"),
        ("devices = ['console']", "x.toml: devices", "'console' cannot be loaded"),
        ("devices = ['blk,speed=9']", "x.toml: devices", "blk has no key 'speed'"),
        *(
            (
                f"devices = ['rng', 'blk,readonly=off,{key}=none']",
                "x.toml: devices",
                f"'blk,readonly=off,{key}=none': {key} is for the experiment to say",
            )
            for key in ("id", "isolation", "path", "process")
        ),
        ("loads = ['reed-1']", "x.toml: loads", "there is no 'reed-1'; did you mean 'read-1'?"),
        ("faults = ['kil']", "x.toml: faults", "there is no 'kil'; did you mean 'kill'?"),
        ("faults = ['kill']\nunder = 'x'", "x.toml: under", "there is no 'x'"),
        ("surface = true\nunder = 'x'", "x.toml: under", "there is no 'x'"),
        (
            "grouping = ['own', 'shared']\nfaults = ['swap']",
            "x.toml: faults",
            "'swap': one of several in a process (grouping 'shared') has none",
        ),
        ("attacks = ['levitate']", "x.toml: attacks", "there is no 'levitate'"),
        ("hypervisor = 'xen'", "x.toml: hypervisor", "there is no 'xen'"),
        ("repetitions = 0", "x.toml: repetitions", "0 is no number from 1 to"),
        ("repetitions = true", "x.toml: repetitions", "True is no number"),
        ("strikes = 1.5", "x.toml: strikes", "1.5 is no number"),
        ("seconds = -1", "x.toml: seconds", "-1 is not more than 0"),
        ("seconds = nan", "x.toml: seconds", "nan is no number of seconds"),
        ("surface = 1", "x.toml: surface", "1 is neither true nor false"),
        (
            "[load.big]\ndeepth = 1",
            "x.toml: load.big",
            "unknown key 'deepth'; did you mean 'depth'",
        ),
        ("[load.big]\ndepth = 65", "x.toml: load.big: depth", "65 is no number from 1 to 64"),
        ("[load.big]\nsize = 1000", "x.toml: load.big: size", "no multiple of 512"),
        ("[load.big]\noperation = 'trim'", "x.toml: load.big: operation", "there is no 'trim'"),
        ("[load.'a b']\ndepth = 1", "x.toml: load", "'a b' is no name for a load"),
        ("load = 3", "x.toml: load", "tables are expected"),
        ("devices = []\nsurface = true", "x.toml: devices", "a matrix of nothing"),
        ("isolation = []\nsurface = true", "x.toml: isolation", "a matrix of nothing"),
        ("", "x.toml", "a matrix of nothing"),
        ("devices = ['rng']\nloads = ['write-1']", "x.toml: loads", "'rng' only reads"),
        ("loads = [", "x.toml", "Invalid value"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, where: str, why: str) -> None:
    with pytest.raises(BadInput) as caught:
        read(tmp_path, text)

    assert caught.value.where == f"{tmp_path}/{where}"
    assert why in caught.value.why


@pytest.mark.parametrize(
    ("path", "why"),
    [("none.toml", "No such file"), (".", "Is a directory"), ("/dev/null", "regular file")],
)
def test_file_that_is_none(tmp_path: Path, path: str, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        file.read(str(tmp_path / path))


def test_what_is_said_is_meant(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
devices = ["rng", "blk,block_size=4096"]
isolation = ["jail"]
loads = ["read-1", "big"]
hang-after = 2
[load.big]
size = 65536
""",
    )

    assert found.devices == ("rng", "blk,block_size=4096")
    assert found.hang_after == 2.0
    assert found.load_of("big") == Load("read", 32, 65536)
    assert found.load_of("read-1") == Load("read", 1, 4096)


def test_default_has_every_level_and_what_is_measured() -> None:
    found = file.read(None)

    assert found.isolation == LEVELS
    assert found.loads == ("read-1", "read-32")
    assert found.faults == ("kill", "hang", "swap")
    assert found.surface


def test_default_file_shows_every_key() -> None:
    for key in file._KEYS:
        assert f"\n{key} = " in file.default() or f"[{key}." in file.default()


def test_it_is_kept_as_it_was(tmp_path: Path) -> None:
    found = read(tmp_path, "loads = ['big']\nhang-after = 1\n[load.big]\ndepth = 2")

    assert file.from_plain(found.as_plain(), "again") == found


def test_page_tells_of_every_key_with_its_default() -> None:
    page = (Path(file.__file__).parents[2] / "docs" / "experiments.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", page, re.MULTILINE)
    told = {key: default for key, default in rows if key in file._KEYS}

    assert set(told) == set(file._KEYS) - {"load"}
    assert {key: default for key, default in told.items() if "`" in default} == {
        key: f"`{json.dumps(value)}`"
        for key, value in Experiment().as_plain().items()
        if key in ("devices", "grouping", "surface", "under", "hypervisor")
    }
    numbers = ("repetitions", "seconds", "strikes", "hang-after")
    assert [float(told[key]) for key in numbers] == [
        Experiment().as_plain()[key] for key in numbers
    ]
