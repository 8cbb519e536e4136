"""`completion`: prints a script with which a shell completes verbs, flags, keys of the config and their values.

It holds all names, so that nothing is started at a TAB; write it again after an update. In bash:
`tljax completion bash > ~/.local/share/bash-completion/completions/tljax`; in zsh: `tljax completion zsh > _tljax`, in
a folder of `$fpath`; in fish: `tljax completion fish > ~/.config/fish/completions/tljax.fish`.
"""

import contextlib
import dataclasses
import importlib
import io
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tljax import streams
from tljax.config import files, flag_types, ranges
from tljax.config.schema import Experiment
from tljax.config.tuning import TuningConfig, argument_kinds
from tljax.data.registry import TASKS
from tljax.models.registry import BACKBONES
from tljax.program import VERBS
from tljax.weights.catalog import CATALOG

Flags = Mapping[str, Sequence[str]]  # `--json`, or with `=` what takes a value -> its values where they are known

_BASH = """\
_tljax() {
    local line="${COMP_LINE:0:COMP_POINT}" flags="" values="" known=""
    local word="${line##*[[:space:]]}"
    local config="@keys" config_values="@config_values"
    if ((COMP_CWORD == 1)); then
        flags="@verbs --help --version"
    else
        case "${COMP_WORDS[1]}" in
@cases
        esac
    fi
    [[ $word == *=* ]] && known="$values" || known="$flags"
    COMPREPLY=($(compgen -W "$known" -- "$word"))
    # Of --config=na, readline replaces what stands behind its last word break.
    [[ $word == *=* && $COMP_WORDBREAKS == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${word%%=*}="}")
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
}
complete -o default -F _tljax tljax
"""
_ZSH = """\
#compdef tljax
_tljax() {
    local flags="" values=""
    local config="@keys" config_values="@config_values"
    if ((CURRENT == 2)); then
        compadd -- @verbs --help --version
        return
    fi
    case "$words[2]" in
@cases
    esac
    if [[ $PREFIX == *=* ]]; then
        compadd -- ${=values} || { compset -P '*='; _files }
    elif [[ $PREFIX == -* ]]; then
        compadd -S '' -- ${(M)${=flags}:#*=}
        compadd -- ${${=flags}:#*=}
    else
        compadd -- ${${=flags}:#-*}
        _files
    fi
}
if [[ $funcstack[1] == _tljax ]]; then _tljax "$@"; else compdef _tljax tljax; fi
"""


def main(arguments: list[str]) -> None:
    """Runs the verb with its arguments."""
    parser = flag_types.Parser("completion", description=__doc__)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    shell = parser.parse_args(arguments).shell
    verbs, config = {verb: _verb_flags(verb) for verb in VERBS}, dict(_config_flags())
    script = _fish(verbs, config) if shell == "fish" else _filled(_BASH if shell == "bash" else _ZSH, verbs, config)
    with streams.results() as stdout:
        stdout.write(script)


def _verb_flags(verb: str) -> Flags:
    """Returns what a verb takes, as its help says; `--config=` stands for all keys of the config."""
    module, text = importlib.import_module(f"tljax.cli.{verb}"), io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        module.main(["--help"])
    flags = {"--config=": ()} if vars(module).keys() & {"parse_experiment", "parse_overrides"} else {}
    for name, value in re.findall(r"^  (?:-\w, )?(--[\w-]+)(?: (\S+))?", text.getvalue(), re.MULTILINE):
        flags[f"{name}=" if value else name] = value[1:-1].split(",") if value.startswith("{") else ()
    names = {"configs": files.shipped(), "models": (), "completion": ("bash", "zsh", "fish")}
    return flags | dict.fromkeys(names.get(verb, ()), ())


def _config_flags() -> Iterator[tuple[str, Sequence[str]]]:
    """Yields `--config=` with the configs that have a name, and the keys of a config with their known values."""
    yield "--config=", list(files.shipped())
    named = {"backbone.name": BACKBONES, "backbone.weights": CATALOG, "task.dataset": TASKS}
    kinds = dict(_kinds(Experiment))
    for strategy in _values(kinds["tuning.strategy"]):
        kinds |= {f"tuning.{name}": kind for name, kind in argument_kinds("tuning.strategy", strategy).items()}
    for key, kind in kinds.items():
        yield f"--config.{key}=", list(named.get(key, ())) or _values(kind)


def _kinds(section: type, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the keys of a section of the config, and their annotations."""
    for name, kind in typing.get_type_hints(section, include_extras=True).items():
        if dataclasses.is_dataclass(kind):
            yield from _kinds(kind, f"{path}{name}.")
        elif section is not TuningConfig or name in ("strategy", "group_rates"):
            yield path + name, kind


def _values(kind: Any) -> list[str]:
    """Returns the values that an annotation allows, where it names them."""
    if kind is bool:
        return ["true", "false"]
    constraints = [metadata for metadata in getattr(kind, "__metadata__", ()) if isinstance(metadata, ranges.OneOf)]
    return [str(value) for constraint in constraints for value in constraint.values if value != ""]


def _filled(template: str, verbs: Mapping[str, Flags], config: Flags) -> str:
    cases = []
    for verb, flags in verbs.items():
        own, more = dict(flags), ("", "")
        if "--config=" in own:
            del own["--config="]
            more = "$config ", "$config_values "
        cases.append(f'{verb}) flags="{more[0]}{" ".join(own)}" values="{more[1]}{_pairs(own)}" ;;')
    texts = {"@config_values": _pairs(config), "@keys": " ".join(config), "@verbs": " ".join(verbs)}
    texts["@cases"] = "\n".join(f"            {case}" for case in cases)
    return re.sub("|".join(texts), lambda match: texts[match[0]], template)


def _pairs(flags: Flags) -> str:
    return " ".join(f"{flag}{value}" for flag, values in flags.items() for value in values)


def _fish(verbs: Mapping[str, Flags], config: Flags) -> str:
    lines = [f'complete -c tljax -n __fish_use_subcommand -f -a {verb} -d "{text}"' for verb, text in VERBS.items()]
    takers = [verb for verb, flags in verbs.items() if "--config=" in flags]
    for condition, flags in ((" ".join(takers), config), *verbs.items()):
        for flag, values in flags.items():
            if flag == "--config=" and flags is not config:
                continue
            option = f"-l {flag.strip('-=')}" if flag.startswith("--") else f"-f -a {flag}"
            argument = f" -x -a '{' '.join(values)}'" if values and flag != "--config=" else ""
            argument = argument or (f" -r -a '{' '.join(values)}'" if flag.endswith("=") else "")
            lines.append(f"complete -c tljax -n '__fish_seen_subcommand_from {condition}' {option}{argument}")
    return "\n".join(lines) + "\n"
