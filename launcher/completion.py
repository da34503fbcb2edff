"""``vibevmm completion bash|zsh|fish``: a script for the shell, made from the options' tables.

The script asks ``vibevmm completion targets VERB`` for the machines, devices or streams that there
are when the key is pressed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from devices import kinds
from launcher import rundir
from launcher.attack.table import ATTACKS
from launcher.options import RUN_OPTIONS, Option
from launcher.verbs import ATTACK, DEVICE_RUN, EXPERIMENT, VERBS, Verb
from protocol.errors import BadInput, VibeError

COMMANDS = ("run", *VERBS, "device", "experiment", "attack", "doctor", "completion")

_ATTACKS = " ".join(ATTACKS)

# Seconds that a machine may take to say what it has (arbitrary: somebody waits for it).
_DEADLINE = 0.5


_HELP = """\
usage: vibevmm completion bash|zsh|fish

Prints a completion script: source <(vibevmm completion bash), or keep it in a file for later."""


def text(argv: Sequence[str]) -> str:
    """The script for the shell that ``argv`` names, or the targets of the verb that it does."""
    if "--help" in argv or "-h" in argv:
        return _HELP
    if len(argv) == 2 and argv[0] == "targets" and argv[1] in VERBS:
        return "\n".join(targets(VERBS[argv[1]]))
    if len(argv) != 1 or argv[0] not in SHELLS:
        raise BadInput("completion", f"which shell? One of {', '.join(SHELLS)}")
    return SHELLS[argv[0]]()


def targets(verb: Verb) -> list[str]:
    """What may stand behind ``verb`` now."""
    names, what = rundir.running(), verb.target.strip("[]")
    if what == "VM":
        return names
    from launcher.client import Client
    from protocol.control import Describe

    found: list[str] = []
    for name in names:
        # Nobody wants to read of one that does not answer.
        with contextlib.suppress(VibeError), Client(name, _DEADLINE) as machine:
            told = machine.ask(Describe(), _DEADLINE)
            devices = (process.name for process in told.processes if process.kind != "vmm")
            parts = told.streams if what == "VM/STREAM" else devices
            found += [f"{name}/{part}" for part in parts]
    if verb.name == "inject":
        from protocol.faults import FAULTS, NONE

        found += [*FAULTS, NONE]
    return found


def words(option: Option) -> str:
    """What may stand as the value of ``option``: words, or empty for files or anything."""
    if option.name in ("--device", "--help-device"):
        return " ".join(kinds.table())
    return "" if option.completes == "files" else option.completes


def bash() -> str:
    """For ``source <(vibevmm completion bash)``."""
    cases = "\n".join(
        f'        {option.name}) COMPREPLY=($(compgen {_bash_value(option)} -- "$word")); return;;'
        for option in RUN_OPTIONS
        if option.completes or words(option)
    )
    names = _names(RUN_OPTIONS)
    verbs = "\n".join(
        f'        {verb.name}) options="{_names(verb.options)} --help";;' for verb in VERBS.values()
    )
    return f"""\
_vibevmm() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} options=
    case ${{COMP_WORDS[1]}} in
{verbs}
        experiment)
            COMPREPLY=($(compgen -W "{_names(EXPERIMENT.options)} --help" -f -- "$word"))
            return;;
        attack)
            COMPREPLY=($(compgen -W "{_names(ATTACK.options)} --help {_ATTACKS}" -- "$word"))
            return;;
        device)
            case $COMP_CWORD-$before in
                2-*) COMPREPLY=($(compgen -W run -- "$word"));;
                *--attach)
                    options=$("${{COMP_WORDS[0]}}" completion targets kill 2>/dev/null)
                    COMPREPLY=($(compgen -W "$options" -- "$word"));;
                *) COMPREPLY=($(compgen -W "{_names(DEVICE_RUN.options)} --help" -f -- "$word"));;
            esac
            return;;
    esac
    if [[ $options && $COMP_CWORD -gt 1 ]]; then
        [[ $word == -* ]] ||
            options=$("${{COMP_WORDS[0]}}" completion targets "${{COMP_WORDS[1]}}" 2>/dev/null)
        COMPREPLY=($(compgen -W "$options" -- "$word"))
        return
    fi
    case $before in
{cases}
        doctor) COMPREPLY=($(compgen -W "--json" -- "$word")); return;;
        completion) COMPREPLY=($(compgen -W "{" ".join(SHELLS)}" -- "$word")); return;;
    esac
    if [[ $word != -* && $COMP_CWORD == 1 ]]; then
        COMPREPLY=($(compgen -W "{" ".join(COMMANDS)}" -- "$word"))
    else
        COMPREPLY=($(compgen -W "{names} --help --version" -- "$word"))
    fi
}}
complete -o filenames -F _vibevmm vibevmm run.sh"""


def zsh() -> str:
    """For ``source <(vibevmm completion zsh)``: zsh runs the functions of bash."""
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash()}"


def fish() -> str:
    """For ``vibevmm completion fish | source``."""
    lines = [
        "complete -c vibevmm -f",
        f"complete -c vibevmm -n __fish_use_subcommand -a '{' '.join(COMMANDS)}'",
        "complete -c vibevmm -n '__fish_seen_subcommand_from doctor' -l json",
        f"complete -c vibevmm -n '__fish_seen_subcommand_from completion' -a '{' '.join(SHELLS)}'",
    ]
    for verb in VERBS.values():
        seen = f"complete -c vibevmm -n '__fish_seen_subcommand_from {verb.name}'"
        lines.append(f"{seen} -a '(vibevmm completion targets {verb.name} 2>/dev/null)'")
        for option in verb.options:
            lines.append(
                f"{seen} -l {option.key}{' -r' if option.value else ''} -d '{option.help}'"
            )
    seen = "complete -c vibevmm -n '__fish_seen_subcommand_from experiment'"
    lines.append(f"{seen} -F")
    for option in EXPERIMENT.options:
        lines.append(f"{seen} -l {option.key}{' -rF' if option.value else ''} -d '{option.help}'")
    seen = "complete -c vibevmm -n '__fish_seen_subcommand_from attack'"
    lines.append(f"{seen} -a '{_ATTACKS}'")
    for option in ATTACK.options:
        lines.append(f"{seen} -l {option.key}{' -r' if option.value else ''} -d '{option.help}'")
    seen = "complete -c vibevmm -n '__fish_seen_subcommand_from device'"
    lines.append(f"{seen} -a run")
    for option in DEVICE_RUN.options:
        given = "-r -a '(vibevmm completion targets kill 2>/dev/null)' " if option.value else ""
        lines.append(f"{seen} -l {option.key} {given}-d '{option.help}'")
    for option in RUN_OPTIONS:
        value = ""
        if option.value is not None and not option.optional:
            value = " -r"
        if option.completes == "files":
            value += " -F"
        elif words(option):
            value += f" -a '{words(option)}'"
        text = option.help.replace("'", "\\'")
        lines.append(f"complete -c vibevmm -l {option.key}{value} -d '{text}'")
    return "\n".join(lines)


def _names(options: Sequence[Option]) -> str:
    return " ".join(option.name for option in options)


def _bash_value(option: Option) -> str:
    return f'-W "{words(option)}"' if words(option) else "-f"


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}
