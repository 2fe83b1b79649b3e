"""Ask a customer's KMS: what must work works, and what must be denied is denied by policy, not by luck.

Nothing is changed. What must work is asked by dry runs in the tenant's exact encryption context; what must be denied is
asked in the same way in contexts that differ from it in one thing each, for every action that works in the right one. A
refusal counts only where the same request with the right context is allowed: whoever is refused everything proves
nothing. That is also why what must be denied is asked last, when what must work has settled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from ..errors import ConfigurationError, KmsDeniedError, KmsError, PiiVaultError
from ..kms import KmsKey, KmsLifecycle, KmsProber, Ruling, Trial
from ..lifecycle.validation import check_kms_key
from ..primitives import random_uid
from .contexts import Contexts, WrongContext
from .findings import Finding, Group, Verdict, failure
from .patience import KEY_SECONDS, ROLE_SECONDS, Patience, Probe

_WORKS, _DENIED = Group.WORKS, Group.DENIED

_NEEDED: Final = {
    "kms-generate": ("GenerateDataKey",),
    "kms-decrypt": ("Decrypt",),
    "kms-reencrypt": ("ReEncryptFrom", "ReEncryptTo"),
}
"""The actions that must work in the tenant's context, by the finding that says so."""

_NEVER: Final = {
    "encrypt": "Encrypt",
    "create-grant": "CreateGrant",
    "enable-key": "EnableKey",
    "cancel-key-deletion": "CancelKeyDeletion",
    "get-key-policy": "GetKeyPolicy",
}
"""The actions that we must not have at all, by the finding that says so."""

_CHANGES_STATE: Final = ("EnableKey", "CancelKeyDeletion")
"""Those that do nothing only as long as the key is enabled."""

_DRY: Final = ("Encrypt", "CreateGrant")
"""Those that would be done by an endpoint without dry runs."""

_BY_POLICY: Final = ("", "AccessDenied", "AccessDeniedException")
"""The codes of refusals that a policy, a grant or a trust policy is the reason for."""

_IGNORED: Final = "the endpoint takes a dry run for a real call, so this is not AWS KMS"
_USE_AWS: Final = "use AWS KMS, or an endpoint that knows DryRun"


def probe_key(
    kms: KmsLifecycle,
    key: KmsKey,
    contexts: Contexts,
    *,
    blob: bytes | None = None,
    is_ours: bool = False,
    patience: Patience | None = None,
) -> list[Finding]:
    """Prove what a KMS key allows us and what it denies us; the tenant need not be registered yet.

    Args:
        kms: Who is asked, with the identity that uses the key.
        key: The key, with the role and the ExternalId.
        contexts: The encryption contexts.
        blob: The tenant's key-encryption key as it is stored, wrapped; None makes one and throws it away.
        is_ours: Whether it is the platform's own key: what is too wide there is no breach of a customer's trust.
        patience: For how long it is asked again; by default not at all.

    Returns:
        What was found, in the order of docs/doctor.md.
    """
    return Probing(kms, key, contexts, blob, is_ours=is_ours).findings(patience or Patience())


_Ask = Callable[[], Ruling]


class Probing:
    """All questions about one KMS key. The arguments are those of `probe_key`."""

    def __init__(
        self, kms: KmsLifecycle, key: KmsKey, contexts: Contexts, blob: bytes | None, *, is_ours: bool = False
    ) -> None:
        self._kms: Final = kms
        self._key: Final = key
        self._contexts: Final = contexts.for_platform() if is_ours else contexts
        self._blob = blob
        self._is_ours: Final = is_ours
        make = getattr(kms, "prober", None)
        self._prober: Final[KmsProber | None] = make() if make is not None else None
        self._has_role = key.role_arn is None or self._prober is None
        """Whether the role could be assumed, as far as anybody has asked."""
        self._working: Final[set[str]] = set()
        """What must work and did, when it was last asked."""
        self._generating_settles = 0.0
        """As long as no key could be generated: for how long it makes sense to ask again."""

    @property
    def clock_offset(self) -> float | None:
        """By how many seconds the KMS's clock was ahead of ours, if it has said so."""
        return self._prober.clock_offset if self._prober is not None else None

    def findings(self, patience: Patience) -> list[Finding]:
        """Ask everything."""
        works = patience.settle([Probe(check, partial(self._works, check, ask)) for check, ask in self._needed()])
        if self._prober is None:
            return [*works, _no_policies()]
        return [*works, *patience.settle(self._denials(self._prober)), *self._not_asked()]

    # What must work.

    def _needed(self) -> list[tuple[str, Callable[[], str]]]:
        role: list[tuple[str, Callable[[], str]]] = []
        if self._key.role_arn is not None and self._prober is not None:
            role = [("role", partial(self._assumes, self._prober))]
        return [
            *role,
            ("kms-describe", self._describes),
            ("kms-generate", self._generates),
            ("kms-decrypt", self._decrypts),
            ("kms-reencrypt", self._reencrypts),
        ]

    def _works(self, check: str, ask: Callable[[], str]) -> Finding:
        if check != "role" and not self._has_role:
            return Finding(_WORKS, check, Verdict.NOT_MADE, "the role could not be assumed", settles=ROLE_SECONDS)
        self._working.discard(check)
        found = self._asked(check, ask)
        if found.verdict is Verdict.PASSED:
            self._working.add(check)
        if check == "kms-generate":
            self._generating_settles = found.settles
        return found

    def _asked(self, check: str, ask: Callable[[], str]) -> Finding:
        try:
            return Finding(_WORKS, check, Verdict.PASSED, ask())
        except _NotMadeError as reason:
            return Finding(_WORKS, check, Verdict.NOT_MADE, str(reason), settles=self._generating_settles)
        except KmsError as error:
            # A key that was just made may not be found at first. A state is its owner's to change, not time's.
            may_settle = error.retryable or error.code in (*_BY_POLICY, "NotFoundException")
            change = self._grant(check, error) if isinstance(error, KmsDeniedError) else None
            return failure(_WORKS, check, error, change, KEY_SECONDS if may_settle else 0.0)
        except PiiVaultError as error:
            return failure(_WORKS, check, error)

    def _assumes(self, prober: KmsProber) -> str:
        self._has_role = False
        if prober.probe_role(self._key) is Ruling.DENIED:
            raise KmsDeniedError(f"role {self._key.role_arn} cannot be assumed", code="AccessDenied")
        self._has_role = True
        return "the role is assumed" + (" with its ExternalId" if self._key.external_id else "")

    def _describes(self) -> str:
        described = check_kms_key(self._kms.describe, self._contexts.tenant, self._key)
        return f"{described.arn} is enabled, symmetric and for encryption"

    def _generates(self) -> str:
        if self._prober is not None:
            ruling = self._prober.probe(self._key, Trial("GenerateDataKey", self._contexts.own))
            if ruling is Ruling.DONE:
                raise ConfigurationError(_IGNORED, hint=_USE_AWS)
            if ruling is Ruling.DENIED:
                raise KmsDeniedError("kms:GenerateDataKey is denied in the tenant's encryption context")
        if self._blob is None:
            # Thrown away but for the wrapping, which the next questions need.
            self._blob = self._kms.generate(self._key, self._contexts.own).wrapped.blob
        elif self._prober is None:
            self._kms.generate(self._key, self._contexts.own)
        return "a key is generated in the tenant's encryption context"

    def _decrypts(self) -> str:
        self._kms.check_unwrap(self._key, self._wrapped(), self._contexts.own)
        return "the key-encryption key is unwrapped in the tenant's encryption context"

    def _reencrypts(self) -> str:
        self._kms.check_rewrap(self._key, self._key, self._wrapped(), self._contexts.own)
        return "the key-encryption key can be put under newer material of the KMS key"

    def _wrapped(self) -> bytes:
        if self._blob is None:
            raise _NotMadeError("not asked: no key could be generated to ask with")
        return self._blob

    def _grant(self, check: str, error: KmsError) -> str | None:
        """Return what has to be allowed where, for a needed action that is denied."""
        if error.code not in _BY_POLICY:
            return None
        if check == "role" or error.code == "AccessDenied":
            condition = f' if StringEquals sts:ExternalId is "{self._key.external_id}"' if self._key.external_id else ""
            return f"the trust policy of {self._key.role_arn} allows sts:AssumeRole to our own role{condition}"
        if check == "kms-describe":
            return (
                f"a statement of the key policy without any condition allows kms:DescribeKey to {self._who}: that call "
                "carries no encryption context"
            )
        actions = " and ".join(f"kms:{action}" for action in _NEEDED[check])
        uid = self._contexts.own["pii-vault:tenant"]
        return (
            f"the statement of the key policy that lets {self._who} use the key allows {actions}, and its conditions "
            f'take this tenant\'s context: kms:EncryptionContext:pii-vault:tenant is "{uid}"'
        )

    # What must be denied.

    def _denials(self, prober: KmsProber) -> list[Probe]:
        probes = [Probe(each.check, partial(self._refuses, prober, each)) for each in self._contexts.wrong]
        if self._key.role_arn is not None:
            probes += [
                Probe("role-without-external-id", partial(self._wants_external_id, prober)),
                Probe("role-wrong-external-id", partial(self._compares_external_id, prober)),
            ]
        return probes + [Probe(check, partial(self._never, prober, check)) for check in _NEVER]

    def _refuses(self, prober: KmsProber, wrong: WrongContext) -> Finding:
        """Try one kind of wrong context with every action that works with the right one."""
        if not (actions := self._proven()):
            return self._unproven(wrong.check)
        asks: list[tuple[str, _Ask]] = []
        for action in actions:
            for context in wrong.contexts:
                trial = Trial(action, context, self._blob or b"", self._contexts.own)
                asks.append((f"kms:{action}", partial(prober.probe, self._key, trial)))
        change = (
            f"the statement of the key policy that lets {self._who} use the key gets the condition {wrong.condition}"
        )
        return self._judged(wrong.check, wrong.what, asks, change)

    def _proven(self) -> list[str]:
        """Return the actions that work in the right context, and so can be denied in a wrong one.

        Each has been asked by a dry run that was taken for one: whatever is tried after it is not done by mistake.
        """
        return [action for check, needs in _NEEDED.items() if check in self._working for action in needs]

    def _wants_external_id(self, prober: KmsProber) -> Finding:
        check, role = "role-without-external-id", self._key.role_arn
        change = f"the trust policy of {role} gets the condition {_external_id(self._key.external_id)}"
        if self._key.external_id is None:
            finding = f"{role} is assumed without an ExternalId, so whoever assumes roles for us can be sent to it"
            return Finding(_DENIED, check, self._too_wide, finding, f"agree on an ExternalId, and {change}")
        return self._judged_role(prober, check, "AssumeRole without the ExternalId", None, change)

    def _compares_external_id(self, prober: KmsProber) -> Finding:
        check = "role-wrong-external-id"
        if self._key.external_id is None:
            return Finding(_DENIED, check, Verdict.NOT_CHECKED, "no ExternalId was agreed for the role")
        wanted = _external_id(self._key.external_id)
        change = f"the trust policy of {self._key.role_arn} compares with one value, not with a pattern: {wanted}"
        return self._judged_role(prober, check, "AssumeRole with a wrong ExternalId", random_uid().hex(), change)

    def _judged_role(self, prober: KmsProber, check: str, what: str, external_id: str | None, change: str) -> Finding:
        if not self._has_role:
            return self._unproven(check)
        ask = partial(prober.probe_role, KmsKey(self._key.arn, self._key.role_arn, external_id))
        return self._judged(check, what, [("sts:AssumeRole", ask)], change, settles=ROLE_SECONDS)

    def _never(self, prober: KmsProber, check: str) -> Finding:
        """Try an action that we must not have, where trying it changes nothing."""
        action = _NEVER[check]
        if action in _DRY and not self._proven():
            return self._unproven(check)
        if not self._has_role:
            return self._unproven(check)
        if action in _CHANGES_STATE and (reason := self._not_enabled()):
            return Finding(_DENIED, check, Verdict.NOT_MADE, reason)
        ask = partial(prober.probe, self._key, Trial(action, self._contexts.own))
        change = f"no statement of the key policy, and none of its own policies, allows kms:{action} to {self._who}"
        return self._judged(check, f"kms:{action}", [(f"kms:{action}", ask)], change)

    def _not_enabled(self) -> str | None:
        """Say why a request that does nothing to an enabled key is not sent now."""
        try:
            state = self._kms.describe(self._key).state
        except KmsError:
            return "not tried: the KMS does not say whether the key is enabled"
        return None if state == "Enabled" else f"not tried: the key is {state}, and this would change it"

    def _judged(
        self, check: str, what: str, asks: Sequence[tuple[str, _Ask]], change: str, settles: float = KEY_SECONDS
    ) -> Finding:
        """Ask, and say whether all of it was refused."""
        wide: dict[str, None] = {}
        unknown: PiiVaultError | None = None
        for action, ask in asks:
            try:
                ruling = ask()
            except PiiVaultError as error:
                unknown = error
                continue
            if ruling is not Ruling.DENIED:
                wide[action] = None
        if wide:
            finding = f"{what} is not refused" + ("" if what in wide else f": {', '.join(wide)}")
            return Finding(_DENIED, check, self._too_wide, finding, change, settles)
        if unknown is not None:
            return Finding(_DENIED, check, Verdict.NOT_MADE, str(unknown.args[0]), unknown.hint, settles)
        return Finding(_DENIED, check, Verdict.PASSED, f"{what} is refused")

    def _unproven(self, check: str) -> Finding:
        finding = "not asked: what must work does not, so that a refusal would prove nothing"
        return Finding(_DENIED, check, Verdict.NOT_MADE, finding)

    def _not_asked(self) -> list[Finding]:
        others = (
            "kms:PutKeyPolicy, kms:DisableKey and kms:ScheduleKeyDeletion cannot be tried without harm, so nobody has: "
            "no statement should allow them to us"
        )
        found = [Finding(_DENIED, "not-tried", Verdict.INFO, others)]
        if self._is_ours:
            serves = "the platform's own KMS key serves every tenant that has none, so it cannot refuse another's uid"
            found.append(Finding(_DENIED, "other-tenant", Verdict.NOT_CHECKED, serves))
        return found

    @property
    def _too_wide(self) -> Verdict:
        return Verdict.WARNING if self._is_ours else Verdict.FAILED

    @property
    def _who(self) -> str:
        return self._key.role_arn or "our own role"


class _NotMadeError(Exception):
    """A question needs what an earlier one did not get."""


def _external_id(external_id: str | None) -> str:
    return json.dumps({"StringEquals": {"sts:ExternalId": external_id or "…"}}, ensure_ascii=False)


def _no_policies() -> Finding:
    finding = "this KMS has no policies, so there is nothing that it could deny; with AWS KMS there is"
    return Finding(_DENIED, "policies", Verdict.NOT_CHECKED, finding)
