"""The kinds of devices there are: one line each, and the only place that lists them.

Others are named by where their class is::

    MODULE[:CLASS]         a module that can be imported: from where ``vibevmm`` imports itself, and
                           from PYTHONPATH; never from the current directory
    path/FILE.py[:CLASS]   a file, which may import what lies beside it

The class may be left out where there is only one.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from types import ModuleType
from typing import TypeGuard

from devices.runtime.device import AnyDevice, Device
from protocol.errors import BadInput

KINDS = {
    "blk": "devices.blk:Blk",
    "blk-mapped": "devices.blk:MappedBlk",
    "console": "devices.console:Console",
    "net": "devices.net:Net",
    "null": "devices.null:Null",
    "rng": "devices.rng:Rng",
}

EXTERNAL = {"vhost-user": "devices.vhost_user:VhostUser"}
"""The same of those whose work is done by a program that is none of ours."""

_FILE = ".py"


def is_ours(kind: str) -> bool:
    """Whether ``kind`` is in the table, by its word or by the module that its class is in: code
    that may run in any process of ours."""
    modules = {where.partition(":")[0] for where in table().values()}
    return kind in table() or kind.partition(":")[0] in modules


def find(kind: str, option: str = "--device", *, is_bare: bool = False) -> type[AnyDevice]:
    """The class of ``kind``: a word of the table, or where a class is; a module without a dot only
    where it ``is_bare``. BadInput, with what may have been meant, if there is none.

    Imports the one module that is asked for: a device process holds no other device's code.
    """
    if kind not in table() and (":" in kind or "." in kind or (is_bare and _is_module(kind))):
        return _load(kind, option)
    if kind not in table():
        # Imported here: only the launcher comes this way, before anything is sealed.
        from difflib import get_close_matches

        near = get_close_matches(kind, table(), 1)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(table())}"
        raise BadInput(option, f"{kind!r} is not a kind of device; {meant}")
    return _load(table()[kind], option)


def whole(kind: str) -> str:
    """``kind`` as it is called from every directory: a file gets its full path."""
    where, name = _place(kind)
    if not where.endswith(_FILE):
        return kind
    return f"{_module(where)}:{name}" if name else _module(where)


def label(kind: str, device: type[AnyDevice]) -> str:
    """What devices of ``kind`` are called, before their number."""
    return kind if kind in table() else re.sub("[^a-z0-9]", "", device.__name__.lower())[:24]


def table() -> dict[str, str]:
    """All of them, by their words: as it is now, for tests put kinds of theirs into the first."""
    return {**KINDS, **EXTERNAL}


def _place(kind: str) -> tuple[str, str]:
    # Module or file, and the class in it, if it is said.
    where, colon, name = kind.rpartition(":")
    if name.endswith(_FILE):  # there is a colon in its path
        return kind, ""
    return (where, name) if colon else (name, "")


def _is_module(word: str) -> bool:
    return word.isidentifier() and importlib.util.find_spec(word) is not None


def _module(where: str) -> str:
    # As sys.modules calls it: a file by its full path.
    return os.path.abspath(where) if where.endswith(_FILE) else where


def _import(where: str) -> ModuleType:
    if not where.endswith(_FILE):
        return importlib.import_module(where)
    # Named by its path, it is in no other module's way. Compiled here and now: of a file that was
    # changed twice within a second the importer may keep the first.
    path = _module(where)
    if path in sys.modules:
        return sys.modules[path]
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec")
    module = ModuleType(path)
    module.__file__ = path
    if (folder := os.path.dirname(path)) not in sys.path:
        sys.path.append(folder)
    sys.modules[path] = module  # dataclasses look here for it
    exec(code, vars(module))
    return module


def _load(path: str, option: str) -> type[AnyDevice]:
    module_name, name = _place(path)
    try:
        module = _import(module_name)
    except (Exception, SystemExit) as error:  # a module that people write can fail in any way
        why = f"{type(error).__name__}: {error}"
        raise BadInput(option, f"{module_name!r} cannot be imported: {why}") from error
    if name:
        found = getattr(module, name, None)
        if not _is_device(found):
            raise BadInput(option, f"{module_name!r} has no device class {name!r}")
        return found
    classes = [
        value
        for value in vars(module).values()
        if _is_device(value) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        names = ", ".join(each.__name__ for each in classes) or "none"
        raise BadInput(option, f"{module_name!r} has not one device class but {names}; add :CLASS")
    return classes[0]


def _is_device(value: object) -> TypeGuard[type[AnyDevice]]:
    # Not what has no identity: Device itself, or a base of a family.
    return isinstance(value, type) and issubclass(value, Device) and hasattr(value, "device_id")
