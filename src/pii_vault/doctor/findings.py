"""What the doctor says: one finding a line, each with a verdict, and with what to change where something is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ..errors import KmsCredentialsError, KmsUnavailableError, PiiVaultError


class Group(StrEnum):
    """What a finding is about."""

    WORKS = "must_work"
    DENIED = "must_be_denied"
    OURS = "our_side"


class Verdict(StrEnum):
    """What a finding comes to. The words are promised (docs/json.md)."""

    PASSED = "passed"
    FAILED = "failed"

    NOT_MADE = "not_made"
    """It could not be asked: the KMS did not answer, say, or something failed that it builds on."""

    ASK_AGAIN = "ask_again"
    """It failed, but what was changed just now may not have reached every part of AWS yet."""

    WARNING = "warning"
    """It is not as it is advised, and nothing is broken by it."""

    INFO = "info"

    NOT_CHECKED = "not_checked"
    """It was not looked at, because it does not apply or nobody has said where to look."""

    @property
    def is_bad(self) -> bool:
        """Whether nothing is proven: then the command exits with 1."""
        return self in (Verdict.FAILED, Verdict.NOT_MADE, Verdict.ASK_AGAIN)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found.

    Attributes:
        group: What it is about.
        check: Its name: docs/doctor.md lists them.
        verdict: What it comes to.
        finding: One sentence.
        change: One sentence: what to change, in which policy or setting; None where there is nothing to.
        settles: For how many seconds after a change at AWS the answer may still be the one from before; 0 if nothing
            there can be the reason.
    """

    group: Group
    check: str
    verdict: Verdict
    finding: str
    change: str | None = None
    settles: float = 0.0


def failure(group: Group, check: str, error: PiiVaultError, change: str | None = None, settles: float = 0.0) -> Finding:
    """Return the finding for an error: that the check failed, or that it could not be made."""
    # Neither says anything about what was to be proven.
    unknown = isinstance(error, KmsUnavailableError | KmsCredentialsError)
    verdict = Verdict.NOT_MADE if unknown else Verdict.FAILED
    return Finding(group, check, verdict, str(error.args[0]), (None if unknown else change) or error.hint, settles)
