"""What `doctor` prints as JSON. The names are promised, as those in `reports` are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..doctor.findings import Finding


@dataclass(frozen=True)
class Examined:
    """What one check of the doctor found.

    Attributes:
        group: What it is about: `must_work`, `must_be_denied` or `our_side`.
        check: The check's name: docs/doctor.md lists them.
        verdict: What it comes to: `passed`, `failed`, `not_made` (it could not be asked), `ask_again` (it failed, but
            AWS may still answer as before a change), `warning`, `info` or `not_checked`.
        finding: What it found, one sentence.
        change: What to change, in which policy or setting, one sentence; null where there is nothing to change.
    """

    group: str
    check: str
    verdict: str
    finding: str
    change: str | None

    @classmethod
    def of(cls, found: Finding) -> Examined:
        """Return the report on a finding."""
        return cls(str(found.group), found.check, str(found.verdict), found.finding, found.change)
