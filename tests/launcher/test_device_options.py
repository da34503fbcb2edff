"""Device strings to configurations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from launcher.device_help import describe
from launcher.device_options import Common, configure, from_table, number, parse
from launcher.policy import OnDeath
from protocol.errors import BadInput
from protocol.specs import Isolation


@dataclass(frozen=True)
class Config:
    """Options of a device that there is not."""

    path: str
    """Where it is."""
    readonly: bool = False
    size: int = 4096
    """How large,
    in bytes."""
    mode: Literal["fast", "slow"] = "fast"
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.size == 13:
            raise ValueError("size: 13 brings bad luck")


def read(text: str) -> Any:
    return configure(parse("--device", f"thing,{text}"), Config)[1]


def test_first_key_is_implicit() -> None:
    assert read("/a.img") == Config("/a.img")
    assert read("path=/a.img") == Config("/a.img")


def test_comma_in_a_value_is_doubled() -> None:
    assert read("a,,b,,,readonly=on") == Config("a,b,", True)
    assert read(",,x") == Config(",x")


def test_path_with_an_equals_sign_is_no_key() -> None:
    assert read("/tmp/a=b.img,readonly") == Config("/tmp/a=b.img", True)


@pytest.mark.parametrize(
    ("text", "value"),
    [("on", True), ("off", False), ("true", True), ("FALSE", False), ("yes", True)],
)
def test_switches(text: str, value: bool) -> None:
    assert read(f"a,readonly={text}").readonly is value


@pytest.mark.parametrize(
    ("text", "value"), [("512", 512), ("4K", 4096), ("2m", 2 << 20), ("0x10", 16), ("1G", 1 << 30)]
)
def test_numbers_have_suffixes_or_are_hexadecimal(text: str, value: int) -> None:
    assert read(f"a,size={text}").size == value


def test_optional_value_is_that_of_its_type() -> None:
    assert read("a,limit=1K").limit == 1024


def test_key_may_be_written_with_dashes() -> None:
    request = parse("--device", "thing,a,read-only")

    with pytest.raises(BadInput, match="no key 'read_only'; did you mean 'readonly'"):
        configure(request, Config)


def test_id_names_the_device_and_is_no_key_of_its_own() -> None:
    assert configure(parse("--disk", "a,id=root"), Config) == (Common("root"), Config("a"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,isolation=none", Common(isolation=Isolation("none"))),
        ("a,isolation=bounce+strict", Common(isolation=Isolation("bounce", strict=True))),
        ("a,on-violation=log", Common(on_violation="log")),
        ("a,process=disks", Common(process="disks")),
        ("a,on-death=fail-io", Common(on_death=OnDeath.FAIL_IO)),
    ],
)
def test_keys_that_all_devices_have(text: str, expected: Common) -> None:
    assert configure(parse("--device", f"thing,{text}"), Config) == (expected, Config("a"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "thing needs path="),
        ("a,isolation=vault", "isolation: 'vault' is not one of none, jail, bounce"),
        ("a,isolation=none+strict", r"isolation: 'none\+strict' is not one of"),
        ("a,on-violation=ask", "on-violation: 'ask' is not one of kill, errno, log"),
        ("a,process=a/b", "process 'a/b' is not"),
        ("readonly=on", "thing needs path="),
        ("a,readonly=maybe", "readonly: 'maybe' is neither on nor off"),
        ("a,mode=warp", "mode: 'warp' is not one of fast, slow"),
        ("a,size=big", "size: 'big' ends in 'G'|size: 'big' is not a size"),
        ("a,size=-1", "size: '-1' is negative"),
        ("a,size=0x10000000000000000", "64 bits"),
        ("a,size=18446744073709551616", "64 bits"),
        ("a,size=0x1_0", "size: .0x1_0. is not a number"),
        ("a,size=٣", "size: .٣. is not a size"),
        ("a,size= 3", "size: . 3. is not a size"),
        ("a,size=0b100", "size: .0b100. is not a size"),
        ("a,size=" + "9" * 5000, "a size of 5000 digits"),
        ("a,size=0x" + "f" * 5000, "64 bits"),
        ("a,size=", "size: needs a value"),
        ("a,size", "size: needs a value"),
        ("a,path=b", "path is given twice"),
        ("a,,,", "a comma too many"),
        ("a,id=../x", "id '../x' is not"),
        ("a,id=x,id=y", "id is given twice"),
        ("a,size=13", "13 brings bad luck"),
        ("a,siz=1", "no key 'siz'; did you mean 'size'"),
    ],
)
def test_what_is_wrong_is_said(text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words) as raised:
        read(text)
    assert str(raised.value).startswith("--device: ")


def test_kind_is_the_first_item_or_that_of_the_option() -> None:
    assert parse("--device", "rng").kind == "rng"
    assert parse("--disk", "rng").kind == "blk"
    assert parse("--console", "").kind == "console"
    with pytest.raises(BadInput, match="which kind"):
        parse("--device", "")


def test_table_says_the_same_as_a_string() -> None:
    table = {"kind": "thing", "path": "a,b", "readonly": True, "size": 512, "id": "x"}

    common, config = configure(from_table("--device", table), Config)

    assert (common, config) == (Common("x"), Config("a,b", True, 512))


def test_number_is_of_64_bits() -> None:
    assert number("--entry", "0xffffffffffffffff") == (1 << 64) - 1
    with pytest.raises(BadInput, match="--entry"):
        number("--entry", "0x10000000000000000")


def test_help_has_types_defaults_and_the_documentation() -> None:
    text = describe("thing", Config)

    assert "Options of a device that there is not." in text
    assert "path=TEXT  (required; may stand first without its key)" in text
    assert "How large, in bytes." in text
    assert "size=NUMBER[K|M|G]  (default: 4K)" in text
    assert "mode=fast|slow  (default: fast)" in text
    assert "limit=NUMBER[K|M|G]  (default: none)" in text
    assert "readonly=on|off  (default: off)" in text
