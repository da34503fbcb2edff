"""What ``--help-device KIND`` prints: the keys of a device, from its Config and its docstrings."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
import types
import typing
from dataclasses import MISSING, Field, fields
from typing import Any, Literal

from launcher.device_options import has_default
from launcher.policy import OnDeath
from protocol.specs import LEVELS, ON_VIOLATION


def describe(kind: str, config: type[Any]) -> str:
    """The keys of ``--device kind`` with types, defaults and what their docstrings say."""
    hints = typing.get_type_hints(config)
    docs = _field_docs(config)
    rows = [("id", "NAME", f"default: {kind}0, {kind}1, …", "name of the process and in the log")]
    for position, field in enumerate(fields(config)):
        default = f"default: {_shown(_default(field))}" if has_default(field) else "required"
        implicit = "; may stand first without its key" if position == 0 else ""
        rows.append((field.name, _word(hints[field.name]), default + implicit, docs[field.name]))
    rows.append(rows.pop(0))
    words = "|".join(choice.value for choice in OnDeath)
    rows.append(("on-death", words, "default: restart", "what the death of its process means"))
    rows += [
        ("isolation", "|".join(LEVELS), "default: --isolation", "what its process can reach"),
        (
            "on-violation",
            "|".join(ON_VIOLATION),
            "default: kill",
            "what a forbidden system call of its process leads to",
        ),
        ("process", "NAME", "default: its own", "put it into one process with others of that name"),
    ]
    lines = [f"--device {kind}[,KEY=VALUE…]", "", *_paragraph(inspect.getdoc(config) or "", "")]
    for key, word, default, doc in rows:
        lines += ["", f"  {key}={word}  ({default})", *_paragraph(doc, "      ")]
    return "\n".join(lines)


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def _word(wanted: Any) -> str:
    origin = typing.get_origin(wanted)
    if origin in (types.UnionType, typing.Union):
        (wanted,) = (kind for kind in typing.get_args(wanted) if kind is not type(None))
        return _word(wanted)
    if origin is Literal:
        return "|".join(typing.get_args(wanted))
    return {bool: "on|off", int: "NUMBER[K|M|G]"}.get(wanted, "TEXT")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None or value == "":
        return "none"
    if isinstance(value, int) and value:
        for suffix, unit in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
            if value % unit == 0:
                return f"{value // unit}{suffix}"
    return str(value)


def _field_docs(config: type[Any]) -> dict[str, str]:
    # A field's documentation is the string that follows it in the class; Python drops it, the
    # source has it.
    docs = {field.name: "" for field in fields(config)}
    try:
        (found,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    except (OSError, SyntaxError):
        return docs
    body = typing.cast(ast.ClassDef, found).body
    for statement, after in itertools.pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            docs[statement.target.id] = inspect.cleandoc(after.value.value)
    return docs


def _paragraph(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()), 88, initial_indent=indent, subsequent_indent=indent
    )
