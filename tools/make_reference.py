"""Write what of ``docs/reference/`` is made of the code: the configuration, the failures and the schedulers' states.

Usage: ``python tools/make_reference.py [--check]``; with ``--check`` nothing is written, and the exit status is 1 where
a page is not current.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from omegaconf import OmegaConf
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hpo_cluster.cli.config.groups import GROUPS, Option, conf_dir, lineage, option_keys, options  # noqa: E402
from hpo_cluster.cli.config.schema import NESTED, OPERATIONAL, CampaignSettings  # noqa: E402
from hpo_cluster.driver.failures import KINDS_OF_REASONS, Failures  # noqa: E402
from hpo_cluster.driver.run_settings import Operation  # noqa: E402
from hpo_cluster.launchers import LAUNCHERS, oar, slurm  # noqa: E402
from hpo_cluster.objectives import OBJECTIVES  # noqa: E402
from hpo_cluster.optimizers.registry import OPTIMIZERS  # noqa: E402
from hpo_cluster.space import parameter_names  # noqa: E402
from hpo_cluster.trial import DRIVER_KINDS  # noqa: E402

REFERENCE = ROOT / "docs" / "reference"

FAILURES = """\
# Failures and scheduler states

<!-- Made by tools/make_reference.py of the tables in the code. Do not edit. -->

What became of an attempt is read from its own files first, from its scheduler second, from the end of its log last.
The kind decides what becomes of the trial: `retry` makes another attempt, `retries` of them at most; `requeue` makes
another however often; the others are the state that the trial ends in. `failures.KIND=…` changes a policy.
"""

INTRODUCTION = """\
# Configuration

<!-- Made by tools/make_reference.py of the typed configuration and the comments in conf/. Do not edit. -->

A command line is a list of overrides in Hydra's grammar, and Hydra applies them: `GROUP=OPTION` chooses a file of
`conf/GROUP/`, `KEY=VALUE` changes one value, `~space.NAME` removes a parameter, `+space.NAME={...}` adds one, and
`KEY=${OTHER_KEY}` or `KEY=${oc.env:VARIABLE}` takes a value from elsewhere. Everything is checked before anything is
created, and all faults are named at once. `hpo-cluster run ... --cfg job` prints what overrides amount to, `--info`
which files they come from.

Files of your own: `./conf/GROUP/NAME.yaml` of the directory where the command is typed, and `--config-dir DIR`; a file
that begins with `defaults: [OTHER_NAME]` holds what differs from another option of its group.
"""


def pages() -> dict[Path, str]:
    """Every page by its path."""
    made = {"configuration.md": _lines(), "failures.md": _failure_lines()}
    return {REFERENCE / name: "\n".join(lines).rstrip() + "\n" for name, lines in made.items()}


def _failure_lines() -> Iterator[str]:
    yield FAILURES
    learned = {"retry": "nothing", "requeue": "nothing", "failed": "nothing", "diverged": "a low value"}
    learned["learn"] = "once another trial has completed: where not to go; before: nothing"
    policies = Failures()
    rows = []
    for name, field in Failures.model_fields.items():
        finder = "the driver" if name in DRIVER_KINDS else "the job"
        policy = policies.action(name)
        rows.append((f"`{name}`", finder, field.description or "", policy, learned.get(policy, "a low value")))
    yield from _table(("kind", "found by", "means", "policy", "what the optimizer learns"), rows)
    yield "`out_of_memory` first makes another attempt with half the physical batch, as long as there is a half to try."
    yield "`learn`: a program that has worked elsewhere fails because of the configuration, so the trial is infeasible"
    yield "once another one has completed; one that has never worked says nothing about it, and the trial is failed."
    yield "An attempt that left a checkpoint further on than those before it uses up no retry.\n"
    yield "## Why a job ended, and the kind it is taken for\n"
    yield "Where the job published neither a result nor an error.\n"
    yield from _table(("reason", "kind"), [(f"`{reason}`", f"`{kind}`") for reason, kind in KINDS_OF_REASONS.items()])
    for title, module in (("Slurm", slurm), ("OAR", oar)):
        yield f"## States of {title}\n"
        rows2 = [(f"`{word}`", f"{state}", f"{reason or ''}") for word, (state, reason) in module.STATES.items()]
        yield from _table(("state", "is taken for", "ended because"), rows2)
        yield "Any other word is unknown, and unknown is never an end.\n"
    yield "## Exit codes of Slurm jobs that FAILED\n"
    codes = [(f"`{code}`", f"{why}") for code, why in slurm.EXIT_CODES.items()]
    yield from _table(("exit code", "ended because"), codes)
    yield "## Events of OAR jobs in Error\n"
    yield from _table(("event", "ended because"), [(f"`{event}`", f"{why}") for event, why in oar.EVENTS.items()])


def _lines() -> Iterator[str]:
    yield INTRODUCTION
    yield "## Keys of the campaign\n"
    yield "Those marked * may change when a campaign goes on, and `launcher` with everything in it; all others make"
    yield "it what it is (`campaign` and `campaigns_dir` say where it lies).\n"
    yield from _fields((Operation, CampaignSettings), "", marked=(*OPERATIONAL, "code"))
    yield "## failures\n"
    yield "What becomes of a trial, by the kind of its failure: `retry` makes another attempt, `retries` of them at"
    yield "most; `requeue` makes another however often; the others are the state that the trial ends in. An attempt"
    yield "that is made again is never told to the optimizer; of the trials that end, a diverged or infeasible one"
    yield "counts as a low value, and a failed one is not told.\n"
    yield from _fields((Failures,), "failures.", marked=tuple(Failures.model_fields))
    for group, purpose in GROUPS.items():
        yield f"## {group}\n"
        yield f"{purpose[:1].upper()}{purpose[1:]}.\n"
        found = options(group, [conf_dir()])
        yield from _table(("option", "what it is"), [(f"`{name}`", found[name].description) for name in found])
        yield from _keys(group)


def _keys(group: str) -> Iterator[str]:
    if group == "space":
        yield from _parameters()
    elif group == "optimizer":
        for name, entry in OPTIMIZERS.items():
            yield from _titled("optimizer", name, entry.settings)
    elif group == "objective":
        for name, cls in OBJECTIVES.items():
            if name != "function":
                yield from _titled("objective", name, cls)
    elif group == "launcher":
        for name, (settings, _) in LAUNCHERS.items():
            yield from _titled("launcher", name, settings)
    elif group in NESTED:
        annotation = OBJECTIVES["lora"].model_fields[group].annotation
        assert isinstance(annotation, type)
        yield from _fields((annotation,), f"{group}.")


def _titled(group: str, name: str, cls: type[BaseModel]) -> Iterator[str]:
    yield f"### `{group}={name}`\n"
    if any(name != "kind" and name not in NESTED for name in cls.model_fields):
        written = _content(options(group, [conf_dir()])[name])
        yield from _fields((cls,), f"{group}.", written=written)
    else:
        yield "No settings.\n"


def _parameters() -> Iterator[str]:
    yield "A parameter is `{type, low, high, log, step}`, or `{type: categorical, choices, ordered}`; without `type`,"
    yield "choices make a categorical parameter, integers an `int`, anything else a `float`. One value alone"
    yield "(`space.lora_rank=8`) is a fixed parameter. Written on the command line:"
    yield "`'space={lr: {low: 1e-5, high: 1e-1, log: true}, layers: {low: 1, high: 4}}'`. Each may have `when`, the"
    yield "values of other parameters with which it is active, and `prior`, where good values are believed to be;"
    yield "`constraints` and `start` stand beside them: see [Describe a space](../howto/describe_a_space.md).\n"
    rows, constraints = [], []
    for name, option in options("space", [conf_dir()]).items():
        comments, entries = option_keys(option, [conf_dir()]), _content(option)
        constraints += [(f"`{name}`", f"`{text}`") for text in entries.get("constraints", ())]
        for parameter in parameter_names(entries):
            rows.append((f"`{name}`", f"`{parameter}`", _range(entries[parameter]), comments.get(parameter, "")))
    yield from _table(("option", "parameter", "range", "meaning"), rows)
    yield from _table(("option", "constraint"), constraints)


def _content(option: Option) -> dict[str, Any]:
    """Return what a file of a group says, together with those that it builds on."""
    merged = OmegaConf.merge(*(OmegaConf.load(ancestor.path) for ancestor in lineage(option, [conf_dir()])))
    content = OmegaConf.to_container(merged) or {}
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items() if key != "defaults"}


def _range(entry: Any) -> str:
    """Return the entry of a parameter as it is typed."""
    if isinstance(entry, dict):
        return f"`{{{', '.join(f'{key}: {_range(value).strip(chr(96))}' for key, value in entry.items())}}}`"
    if isinstance(entry, list):
        return f"`[{', '.join(_range(value).strip(chr(96)) for value in entry)}]`"
    return f"`{str(entry).lower() if isinstance(entry, bool) else entry}`"


def _fields(
    classes: Sequence[type[BaseModel]], prefix: str, marked: Sequence[str] = (), written: Any = None
) -> Iterator[str]:
    rows = []
    written = written or {}
    for cls, name, field in ((owner, *item) for owner in classes for item in owner.model_fields.items()):
        if name == "kind" or name in NESTED:
            continue
        key = f"`{prefix}{field.alias or name}`" + ("*" if name in marked else "")
        rows.append(
            (key, _type(field), _default(field, written.get(field.alias or name, ...)), _meaning(cls, name, field))
        )
    yield from _table(("key", "type", "default", "meaning"), rows)


def _meaning(cls: type[BaseModel], name: str, field: FieldInfo) -> str:
    if field.description:
        return field.description
    if name == "direction":
        return "whether large values are good or small ones"
    raise SystemExit(f"{cls.__name__}.{name} has no description")


def _default(field: FieldInfo, written: Any) -> str:
    """What the option's file says, else the class."""
    value = field.get_default(call_default_factory=True) if written is ... else written
    if value is PydanticUndefined or value == "???":
        return "must be given"
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, BaseModel | dict) and value:
        return "below"
    return "`" + ("null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)) + "`"


def _type(field: FieldInfo) -> str:
    signs = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
    bounds = [
        f"{sign} {getattr(item, attribute)}"
        for item in field.metadata
        for attribute, sign in signs
        if getattr(item, attribute, None) is not None
    ]
    return " ".join([_type_name(field.annotation), *bounds])


def _type_name(annotation: Any) -> str:
    names = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path", type(None): "null"}
    if annotation in names:
        return names[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(argument) for argument in arguments)
    if origin is Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin in (tuple, list):
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"mapping to {_type_name(arguments[1])}"
    return getattr(annotation, "__name__", str(annotation))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if rows:
        yield f"| {' | '.join(head)} |"
        yield f"|{'|'.join('---' for _ in head)}|"
        for row in rows:
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
        yield ""


def main(argv: Sequence[str]) -> int:
    """Write the pages that are not current, or name them."""
    made = pages()
    stale = [path for path, text in made.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if "--check" in argv:
            print(f"{path.relative_to(ROOT)} is not current; run: python tools/make_reference.py", file=sys.stderr)
        else:
            path.write_text(made[path], encoding="utf-8")
            print(path.relative_to(ROOT))
    return 1 if stale and "--check" in argv else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
