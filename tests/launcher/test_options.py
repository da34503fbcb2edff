"""Command lines taken apart by the table of options."""

from __future__ import annotations

import pytest

from launcher.options import RUN_OPTIONS, help_text, split
from protocol.errors import BadInput


def parts(*argv: str) -> list[tuple[str, str]]:
    return [(option.name, value) for option, value in split(argv)]


def test_values_follow_or_are_joined() -> None:
    assert parts("--mem", "1G", "--cpus=2") == [("--mem", "1G"), ("--cpus", "2")]


def test_value_may_contain_an_equals_sign() -> None:
    assert parts("--cmdline=console=ttyS0 quiet") == [("--cmdline", "console=ttyS0 quiet")]


def test_word_with_a_dash_is_a_value_unless_it_is_an_option() -> None:
    assert parts("--mem", "-1M") == [("--mem", "-1M")]
    with pytest.raises(BadInput, match="--mem: needs a value"):
        parts("--mem", "--cpus", "2")


def test_optional_value_is_left_out_before_the_next_option() -> None:
    assert parts("--stats", "--cpus", "2") == [("--stats", ""), ("--cpus", "2")]
    assert parts("--stats", "s.json") == [("--stats", "s.json")]


def test_repeated_options_keep_their_order() -> None:
    assert parts("--disk", "b", "--device", "rng", "--disk", "a") == [
        ("--disk", "b"),
        ("--device", "rng"),
        ("--disk", "a"),
    ]


def test_help_names_every_option_and_fits_a_terminal() -> None:
    text = help_text()

    assert all(option.name in text for option in RUN_OPTIONS)
    assert max(map(len, text.splitlines())) <= 92
