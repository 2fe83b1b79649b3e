"""What a report's facts mean: what must not be missed, what was not looked at, what nobody can know, and the verdict.

Pure. A check that could not be made is never a check that passed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from ..keys import KeyState, TenantRecord
from ..stages import AdoptionRecord, Stage
from .facts import (
    Answer,
    AuditFacts,
    BoundFacts,
    CheckFacts,
    ColumnFacts,
    Finding,
    KmsKeyFacts,
    RotationFacts,
    Verdict,
    VersionFacts,
)

_STORED: Final = {
    "plaintext": ("never sealed", "they were written past the vault: seal them"),
    "malformed": ("found malformed: they begin as sealed ones and are none", "restore or delete them"),
    "unsupported": ("sealed in an unknown format", "they may need a newer release of pii_vault"),
    "foreign": ("sealed by keys that are not this tenant's", "find out who wrote them"),
    "unknown_version": ("sealed by data keys that the key store does not have", "was an old backup of it restored?"),
    "destroyed": ("sealed by a destroyed data key", "nobody can read them: delete their rows"),
}


@dataclass(frozen=True, slots=True)
class Found:
    """What was gathered, before anybody says what it means.

    Attributes:
        tenant: Who it is about.
        erased: Whether its keys are destroyed.
        now: When it was gathered, UTC.
        kms_key: The KMS key.
        checks: The checks on it; empty when they were not made.
        versions: The data-key versions.
        columns: What is stored; None when it was not counted.
        not_counted: Why it could not be counted; None when it was, or nobody wanted it.
        rotation: When the data key is replaced.
        bound: The bound on revocation, if there is one.
        audit: The audit log.
        adoptions: The last step of each adoption of a plaintext column.
        processes: How many processes the application runs as, if somebody said so.
    """

    tenant: TenantRecord
    erased: bool
    now: datetime
    kms_key: KmsKeyFacts
    checks: tuple[CheckFacts, ...]
    versions: tuple[VersionFacts, ...]
    columns: tuple[ColumnFacts, ...] | None
    not_counted: str | None
    rotation: RotationFacts
    bound: BoundFacts | None
    audit: AuditFacts
    adoptions: tuple[AdoptionRecord, ...]
    processes: int | None


def findings(found: Found) -> tuple[Finding, ...]:
    """Return what a reader must not miss, problems first."""
    noted = [*_of_kms(found), *_of_audit(found), *_of_stored(found), *_of_keys(found), *_of_tenant(found)]
    return tuple(sorted(noted, key=lambda each: not each.problem))


def verdict(noted: tuple[Finding, ...], missed: tuple[str, ...]) -> Verdict:
    """Return what it all comes to."""
    if any(each.problem for each in noted):
        return Verdict.NOT_AS_PROMISED
    return Verdict.NOT_ALL_LOOKED_AT if missed else Verdict.AS_PROMISED


def summary(word: Verdict, noted: tuple[Finding, ...]) -> str:
    """Return the verdict as a sentence."""
    if word is Verdict.AS_PROMISED:
        return "Everything is as promised."
    if word is Verdict.NOT_ALL_LOOKED_AT:
        return "What was looked at is as promised; not everything was looked at."
    count = sum(each.problem for each in noted)
    return f"Not everything is as promised: {count} {'problem' if count == 1 else 'problems'}."


def not_looked_at(found: Found) -> tuple[str, ...]:
    """Return what another report could tell, and this one does not."""
    return tuple(_missed(found))


def not_known(found: Found) -> tuple[str, ...]:
    """Return what no report can tell."""
    said = [
        "How many requests really went to your KMS: your own account's CloudTrail has them, each with its encryption "
        "context.",
        "Copies outside: backups of the database and of the key store, and values that the application had already "
        "opened.",
    ]
    if found.kms_key.rotations is None and not found.erased:
        said.append("When your KMS has rotated the material of its key: ListKeyRotations in your own account tells.")
    if found.bound is not None and not found.bound.agreed:
        said.append(
            "Whether every process of the application has the same time to live: none is agreed for this tenant, so "
            "the settings of whoever made this report are shown."
        )
    if found.columns is not None and any(not each.own_rows for each in found.columns):
        said.append(
            "Whose the values are that no key has sealed, in tables without a column that says whose rows they are."
        )
    return tuple(said)


def _problem(kind: str, text: str, way_out: str = "") -> Finding:
    return Finding(kind, True, text, way_out)


def _note(kind: str, text: str, way_out: str = "") -> Finding:
    return Finding(kind, False, text, way_out)


def _missed(found: Found) -> Iterator[str]:
    if found.erased:
        pass
    elif found.kms_key.answer == Answer.NOT_ASKED:
        yield "The KMS key: its KMS was not asked, so its state is not told and no check was made."
    if found.columns is None and found.not_counted is None:
        yield "What is stored: nobody named the application's tables, so no value was counted."
    if found.audit.verified is None:
        yield f"The audit log: it was not verified. {'; '.join(found.audit.problems)}"
    if not found.erased and found.bound is not None:
        if not found.bound.ttl_seconds:
            yield "KMS requests a day: without a time to live every scope asks, and nobody can reckon how many open."
        elif found.processes is None:
            yield "KMS requests a day: nobody said how many processes the application runs as."


def _of_kms(found: Found) -> Iterator[Finding]:
    key = found.kms_key
    if key.answer == Answer.REFUSED:
        yield _problem("kms", f"The KMS refuses us: {key.failure}", "if you have revoked the key, this is meant")
    elif key.answer == Answer.FAILED:
        yield _problem("kms", f"The KMS could not be asked: {key.failure}", "make the report again later")
    elif key.state not in (None, "Enabled"):
        yield _problem("kms_key", f"The KMS key is {key.state}.", "its owner enables it, or cancels its deletion")
    # What a KMS does not do because it refuses us, or because its key is not enabled, is one finding, and not many.
    told = key.answer == Answer.REFUSED or key.state not in (None, "Enabled")
    for each in found.checks:
        if each.passed is False and not (told and each.check.startswith("kms-")):
            yield _problem("check", f"The check {each.check} failed: {each.finding}")
    if key.ours:
        text = "The keys lie under the provider's own KMS key: this tenant has not brought one."
        yield _note("provider_key", text, "bring a KMS key, and have the tenant re-wrapped under it")
    if key.arn.startswith("arn:local:"):
        yield _problem("development", "The KMS is a key file for development.", "use AWS KMS for real data")


def _of_audit(found: Found) -> Iterator[Finding]:
    if found.audit.verified is False:
        for each in found.audit.problems:
            yield _problem("audit", f"The audit log is not in order: {each}", "find out who changed the database")


def _of_stored(found: Found) -> Iterator[Finding]:
    if found.not_counted is not None:
        yield _problem("not_counted", f"Stored values could not be counted: {found.not_counted}")
    for state, (which, way_out) in _STORED.items():
        counts: Counter[str] = Counter()
        for each in found.columns or ():
            for share in each.shares:
                if share.state == state and share.problem:
                    counts[f"{each.table}.{each.column}"] += share.count
        for name, count in counts.items():
            values = f"{count:,} {'value was' if count == 1 else 'values were'}"
            yield _problem("stored", f"{values} {which}, in {name}.", way_out)
    for step in found.adoptions:
        if step.stage not in (Stage.NONE, Stage.EMPTIED):
            yield _adopted(step)
        if step.falls_back(found.now):
            until = f"{step.fallback_until:%Y-%m-%d %H:%M} UTC"
            text = f"Until {until} reads may take the plaintext of {step.table}.{step.plaintext}."
            yield _note("fallback", text, "it ends by itself; sooner with `pii-vault adopt fallback`")


def _adopted(step: AdoptionRecord) -> Finding:
    text = (
        f"{step.table}.{step.plaintext} may still hold plaintext: its adoption by {step.sealed} is at the stage "
        f"{step.stage}."
    )
    return _problem("adoption", text, "go on with `pii-vault adopt next`, to the stage emptied")


def _of_keys(found: Found) -> Iterator[Finding]:
    for each in found.versions:
        if each.state == KeyState.COMPROMISED:
            yield _compromised(each)
    active = any(each.state == KeyState.ACTIVE for each in found.versions)
    if not active and not found.erased:
        yield _problem("rotation", "No data key is active: nothing can be sealed.", "rotate the tenant")
    if found.rotation.overdue:
        due = f"{found.rotation.next_at:%Y-%m-%d}"
        yield _problem(
            "rotation", f"The data key was to be replaced on {due}.", "let `pii-vault rotate --due` run each day"
        )


def _compromised(each: VersionFacts) -> Finding:
    name = f"Data key {each.version} is compromised"
    if each.values == 0:
        return _note("compromised_key", f"{name}. No counted value is under it.", "destroy it")
    if each.values is None:
        text = f"{name}, and it was not counted what it still seals."
        return _problem("compromised_key", text, "count values: name the application's tables")
    seals = f"{each.values:,} {'value' if each.values == 1 else 'values'}"
    return _problem("compromised_key", f"{name}, and seals {seals} still.", "re-encrypt with the active data key")


def _of_tenant(found: Found) -> Iterator[Finding]:
    if found.erased:
        yield _note("erased", "All keys of this tenant are destroyed: nothing that they sealed opens again.")
    if found.tenant.suspended:
        yield _note("suspended", "The tenant is suspended: nothing is sealed and nothing is opened.")
    elif not found.tenant.policy.pii_encryption:
        yield _note("disabled", "PII encryption is not on for the tenant: nothing is sealed and nothing is opened.")
