"""The exceptions a user of the package can meet: each says what is wrong, what is accepted and what to type next."""

from __future__ import annotations

from collections.abc import Sequence


class HpoClusterError(Exception):
    """Base class of every error that this package raises on purpose."""


class ConfigError(HpoClusterError):
    """Bad input, with *all* the faults found, so that one round of corrections is enough.

    Args:
        faults: one sentence each: what is wrong with the value seen, what is accepted.
        hint: what to type next; one line, may be empty.
    """

    def __init__(self, faults: Sequence[str], hint: str = "") -> None:
        self.faults = tuple(faults)
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        count = len(self.faults)
        lines = ["1 fault:" if count == 1 else f"{count} faults:"]
        lines += [f"  - {fault}" for fault in self.faults]
        return "\n".join([*lines, self.hint] if self.hint else lines)


class IdentityError(HpoClusterError):
    """A campaign with this name exists and was created with other identity settings."""


class LockedError(HpoClusterError):
    """Another driver holds the campaign."""


class LostCampaignError(HpoClusterError):
    """The driver may no longer write: another one has taken its campaign over, or the folder is gone."""


class JournalError(HpoClusterError):
    """The journal holds something that this version of the package cannot read."""


class SubmissionError(HpoClusterError):
    """The scheduler did not accept a job.

    Args:
        message: what the scheduler answered, and what to do.
        retriable: whether the same request may be accepted later; False if the request itself is wrong.
    """

    def __init__(self, message: str, *, retriable: bool = True) -> None:
        super().__init__(message)
        self.retriable = retriable


class AttemptError(HpoClusterError):
    """Raised inside a job to end its attempt with a typed `error.json`.

    Args:
        kind: one of `hpo_cluster.trial.ErrorKind`.
        message: what happened, with the value seen and what to do.
        fields: further fields of `error.json` (JSON), such as the ``physical_batch_size`` that did not fit in memory.
    """

    def __init__(self, kind: str, message: str, **fields: object) -> None:
        super().__init__(message)
        self.kind = kind
        self.fields = fields
