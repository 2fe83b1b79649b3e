"""What `onboard` prints as JSON, and the words that a person reads. The names are promised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from .doctor_reports import Examined
from .words import or_none

if TYPE_CHECKING:
    from ..doctor.findings import Finding
    from ..keystore import OnboardingRecord
    from ..onboarding.arrangement import Arrangement


@dataclass(frozen=True)
class OnboardingFound:
    """How far an onboarding is.

    Attributes:
        tenant: The tenant's name.
        step: `begun`, `handed_over`, `made`, `proven` or `registered`.
        tenant_uid: Its uid, 32 hexadecimal digits: `pii-vault:tenant` in the KMS encryption context.
        keyset_id: 8 hexadecimal digits, as in the headers of its sealed values.
        way: Who makes the KMS key: `shared`, the customer; `created`, we.
        account: The customer's AWS account.
        region: The region of the KMS key.
        kms_key_arn: The KMS key; null while it is not known.
        access_role: The role in the customer's account that we assume to use the key; null when our own roles use it.
        provisioning_role: The role there that we assume once to make the key; null when the customer makes it.
        external_id: The ExternalId that these roles ask for.
        folder: Where the documents are.
        probes: What was tried with the key by this call, as `doctor` says it.
        next_step: What comes next, one sentence.
        begun_at: When it was begun.
    """

    tenant: str
    step: str
    tenant_uid: str
    keyset_id: str
    way: str
    account: str
    region: str
    kms_key_arn: str | None
    access_role: str | None
    provisioning_role: str | None
    external_id: str
    folder: str
    probes: list[Examined]
    next_step: str
    begun_at: datetime

    @classmethod
    def of(
        cls, record: OnboardingRecord, arranged: Arrangement, findings: Sequence[Finding], folder: Path
    ) -> OnboardingFound:
        """Return the report on an onboarding."""
        return cls(
            record.tenant_name,
            str(record.step),
            record.tenant_uid.hex(),
            f"{record.keyset_id:08x}",
            str(record.way),
            record.kms_account,
            record.kms_region,
            record.kms_key_arn,
            arranged.access_role,
            arranged.provisioning_role,
            record.external_id,
            str(folder),
            [Examined.of(each) for each in findings],
            _next_step(record, arranged.provisioning_role, findings, folder),
            record.begun_at,
        )

    def facts(self) -> dict[str, str]:
        """Return what a person is told, by name."""
        return {
            "tenant": self.tenant,
            "onboarding": self.step.replace("_", " "),
            "tenant uid": self.tenant_uid,
            "keyset": self.keyset_id,
            "KMS key": self.kms_key_arn or f"not known yet, in account {self.account}, region {self.region}",
            "role": or_none(self.access_role),
            "ExternalId": self.external_id,
            "proof": self._proof(),
        }

    def _proof(self) -> str:
        if not self.probes:
            return "made" if self.step in ("proven", "registered") else "not made yet"
        asked = [each for each in self.probes if each.verdict not in ("info", "not_checked")]
        return f"{sum(each.verdict == 'passed' for each in asked)} of {len(asked)} probes passed"


def _next_step(record: OnboardingRecord, role: str | None, findings: Sequence[Finding], folder: Path) -> str:
    again = f"`pii-vault onboard {record.tenant_name}`"
    if record.step == "registered":
        first = f"Next: in the application, `with vault.tenant({record.tenant_name!r}):` and the first row."
        return first if role is None else f"{first} The customer deletes {role}, which is of no more use."
    if findings:
        return f"Next: what is marked above is changed, then {again} once more. Nothing was registered."
    applies = f"Next: the customer applies one of the files in {folder}"
    if record.kms_key_arn is None and record.way == "shared":
        return f"{applies} and says the key's ARN; then `pii-vault onboard {record.tenant_name} --key ARN`."
    return f"{applies}; then {again} once more."
