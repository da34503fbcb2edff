"""``vibevmm completion bash|zsh|fish``: a script for the shell, made from the options' table."""

from __future__ import annotations

from collections.abc import Sequence

from devices.kinds import KINDS
from launcher.options import RUN_OPTIONS, Option
from protocol.errors import BadInput

COMMANDS = ("run", "doctor", "completion")


def text(argv: Sequence[str]) -> str:
    """The script for the shell that ``argv`` names."""
    if len(argv) != 1 or argv[0] not in SHELLS:
        raise BadInput("completion", f"which shell? One of {', '.join(SHELLS)}")
    return SHELLS[argv[0]]()


def words(option: Option) -> str:
    """What may stand as the value of ``option``: words, or empty for files or anything."""
    if option.name in ("--device", "--help-device"):
        return " ".join(KINDS)
    return "" if option.completes == "files" else option.completes


def bash() -> str:
    """For ``source <(vibevmm completion bash)``."""
    cases = "\n".join(
        f'        {option.name}) COMPREPLY=($(compgen {_bash_value(option)} -- "$word")); return;;'
        for option in RUN_OPTIONS
        if option.completes or words(option)
    )
    names = " ".join(option.name for option in RUN_OPTIONS)
    return f"""\
_vibevmm() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}
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


def _bash_value(option: Option) -> str:
    return f'-W "{words(option)}"' if words(option) else "-f"


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}
