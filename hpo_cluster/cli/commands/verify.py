"""The command that derives a campaign again from its journal, and says what is not as recorded."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hpo_cluster.cli.arguments import Arguments
from hpo_cluster.cli.commands import BAD_END, INTERRUPTED, OK, progress_bar, say
from hpo_cluster.text import counted
from hpo_cluster.trial import trial_label

if TYPE_CHECKING:
    from hpo_cluster.driver.verify import Count, Fault, Verification

#: Largest number of faults of each kind that are described.
SHOWN = 3


def verify(arguments: Arguments) -> int:
    """Verify a campaign, and print what was found; return 1 if something is not as recorded."""
    from hpo_cluster.driver.verify import Verification

    verification = Verification(arguments.folder())
    with contextlib.suppress(KeyboardInterrupt), progress_bar() as progress:
        verification.run(progress)
    if arguments.option("--json"):
        say(json.dumps(verification.document(), indent=2))
    else:
        say("\n".join(verification_lines(verification)))
    if verification.faults:
        return BAD_END
    return OK if verification.finished else INTERRUPTED


def verification_lines(verification: Verification) -> list[str]:
    """Return the outcome of a verification as text."""
    from hpo_cluster.driver.verify import CODE, PARAMETERS, PROPOSALS, RESULTS, SEEDS
    from hpo_cluster.optimizers.libraries import libraries_of

    record, counts = verification.record, verification.counts
    name = verification.layout.dir.resolve().name
    lines = [f"{name}: {verification.optimizer}, {counted(len(record.rows), 'trial')}"]
    sentences = {
        CODE: "{} of the code that its jobs run",
        SEEDS: "{} of trials follow from the campaign's seed",
        PARAMETERS: "{} were given the parameters in the journal",
        RESULTS: "{} are those in the files of the results",
        PROPOSALS: "{} derived again from the journal",
    }
    nouns = {
        CODE: ("copy", "copies"),
        SEEDS: ("seed", "seeds"),
        PARAMETERS: ("trial", "trials"),
        RESULTS: ("value", "values"),
        PROPOSALS: ("proposal", "proposals"),
    }
    for kind, sentence in sentences.items():
        count, faults = counts[kind], [fault for fault in verification.faults if fault.kind == kind]
        if not (count.total or faults):
            continue
        text = sentence.format(_share(count, *nouns[kind]))
        lost = "cannot be derived, since earlier lines were lost (repair)" if kind == PROPOSALS else "without files"
        more = [f"{count.missing} {lost}" if count.missing else ""]
        more += [f"{count.rounded} differ in the last digits of numbers" if count.rounded else ""]
        differ = sum(fault.trial is not None or kind == CODE for fault in faults)
        more += [f"{differ} differ{'s' if differ == 1 else ''}" if differ else ""]
        lines.append("; ".join([f"{'FAULT' if faults else 'ok   '}  {text}", *filter(None, more)]))
        for fault in faults[:SHOWN]:
            lines += _fault_lines(fault)
        if len(faults) > SHOWN:
            others = ", ".join(_where(fault) for fault in faults[SHOWN : SHOWN + 10])
            lines.append(
                f"       and {len(faults) - SHOWN} more: {others}{', ...' if len(faults) > SHOWN + 10 else ''}"
            )
        if faults and kind == PROPOSALS:
            lines += _reason_lines(verification, faults[0])
    if imported := len(record.imported):
        lines.append(f"note   {counted(imported, 'trial')} imported from earlier campaigns: taken as recorded")
    if made := len(record.made_elsewhere) - imported:
        lines.append(f"note   {counted(made, 'trial')} made elsewhere: taken as recorded")
    lines += _version_lines(verification.versions(), libraries_of(verification.optimizer))
    if not verification.finished:
        lines.append("interrupted: what is not listed was not verified; the same command begins again")
    elif verification.faults:
        first = verification.faults[0]
        lines.append(f"not as recorded; the first difference: {_where(first)} {first.message}")
    else:
        lines.append(f"verified: nothing{' else' if counts[PROPOSALS].missing else ''} differs")
    return lines


def _share(count: Count, one: str, several: str) -> str:
    """Return a text such as ``14 proposals``, or ``3 of 14 proposals`` if not all were compared."""
    noun = one if count.total == 1 else several
    return f"{count.total} {noun}" if count.checked == count.total else f"{count.checked} of {count.total} {noun}"


def _where(fault: Fault) -> str:
    return "the campaign:" if fault.trial is None else trial_label(fault.trial)


def _fault_lines(fault: Fault) -> list[str]:
    lines = [f"       {_where(fault)} {fault.message}"]
    if fault.recorded is not None or fault.derived is not None:
        names = _different_names(fault.recorded, fault.derived)
        lines.append(f"         recorded  {_text(fault.recorded, names)}")
        lines.append(f"         now       {_text(fault.derived, names)}")
    return lines


def _different_names(recorded: Any, derived: Any) -> list[str]:
    """Return the fields that differ, if both sides are mappings."""
    if not (isinstance(recorded, Mapping) and isinstance(derived, Mapping)):
        return []
    names = dict.fromkeys([*recorded, *derived])
    return [name for name in names if recorded.get(name) != derived.get(name)]


def _text(side: Any, names: list[str]) -> str:
    if not isinstance(side, Mapping):
        return str(side)
    return " ".join(f"{name}={side[name]}" for name in names if name in side) or "nothing"


def _reason_lines(verification: Verification, fault: Fault) -> list[str]:
    """Return what may explain that proposals differ."""
    if others := verification.reasons(fault):
        return [f"       when {_where(fault)} was proposed, other than now: {'; '.join(others)}"]
    return [
        "       versions and code are the same as then: journal or campaign.yaml was edited, or another processor or",
        "       another number of threads (OMP_NUM_THREADS) rounds differently",
    ]


def _version_lines(versions: Mapping[str, Mapping[str, Any]], libraries: tuple[str, ...]) -> list[str]:
    """Return the packages whose versions have changed, and whether proposals depend on them."""
    lines = []
    for name, found in versions.items():
        now = found["installed"] or "not installed"
        matters = "; proposals may differ with it" if name in libraries else ""
        lines.append(f"note   {name}: {', '.join(found['recorded'])} then, {now} now{matters}")
    return lines
