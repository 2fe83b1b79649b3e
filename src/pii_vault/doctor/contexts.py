"""The encryption contexts that a KMS key is asked about: the tenant's own, and those that its policy has to refuse."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from .. import primitives
from ..context import KMS_TENANT, Identity, kms_context
from ..keys import KEK_PURPOSE

_APP: Final = "pii-vault:app"
_ADDITIONAL: Final = "pii-vault:doctor"


@dataclass(frozen=True, slots=True)
class WrongContext:
    """A kind of encryption context that has to be refused.

    Attributes:
        check: The name of the finding.
        what: What is wrong with it, in words.
        contexts: One or more of that kind; each has to be refused.
        condition: The condition that refuses it, for the statement of the key policy that allows the use of the key.
    """

    check: str
    what: str
    contexts: tuple[Mapping[str, str], ...]
    condition: str


@dataclass(frozen=True, slots=True)
class Contexts:
    """What a tenant's KMS key is asked with.

    Attributes:
        tenant: The tenant's name, for messages.
        own: The tenant's own encryption context, which has to be allowed.
        wrong: Those that have to be refused.
    """

    tenant: str
    own: Mapping[str, str]
    wrong: tuple[WrongContext, ...]

    @classmethod
    def of(cls, tenant: str, identity: Identity, generation: int = 1) -> Contexts:
        """Return the contexts for a tenant, registered or not yet: its identity is enough.

        Args:
            tenant: The tenant's name.
            identity: Under which its keys are made, or will be.
            generation: The generation of its key-encryption key.
        """
        own = kms_context(identity, KEK_PURPOSE, generation)
        # Made now, at random: they are nobody's, and no policy can name them.
        stranger = kms_context(replace(identity, tenant_uid=primitives.random_uid()), KEK_PURPOSE, generation)
        elsewhere = kms_context(replace(identity, app_uid=primitives.random_uid()), KEK_PURPOSE, generation)
        another = WrongContext(
            "other-tenant", "a request with another tenant's uid", (stranger,), _equals(own, KMS_TENANT)
        )
        return cls(tenant, own, (another, *_of_any_tenant(own, elsewhere, (KMS_TENANT, _APP))))

    def for_platform(self) -> Contexts:
        """Return these for the platform's own key: it serves many tenants, and so cannot tell one from another."""
        elsewhere = {**self.own, _APP: primitives.random_uid().hex()}
        return replace(self, wrong=_of_any_tenant(self.own, elsewhere, (_APP,)))


def _of_any_tenant(
    own: Mapping[str, str], elsewhere: Mapping[str, str], compared: tuple[str, ...]
) -> tuple[WrongContext, ...]:
    """Return the wrong contexts that have nothing to do with another tenant.

    Args:
        own: The right one.
        elsewhere: Another application's.
        compared: The entries that a policy compares.
    """
    without = tuple({name: own[name] for name in own if name != left_out} for left_out in compared)
    closed = json.dumps({"ForAllValues:StringEquals": {"kms:EncryptionContextKeys": list(own)}})
    guard = f'{_equals(own, *compared)} and {{"Null": {{"kms:EncryptionContextKeys": "false"}}}}'
    names = " or ".join(compared)
    return (
        WrongContext("other-application", "a request with another application's uid", (elsewhere,), _equals(own, _APP)),
        WrongContext("no-context", "a request without an encryption context", ({},), guard),
        WrongContext("additional-entry", "a request with an additional entry", ({**own, _ADDITIONAL: "1"},), closed),
        WrongContext(
            "missing-entry",
            f"a request without {names}",
            without,
            f"{_equals(own, *compared)}, not StringEqualsIfExists",
        ),
    )


def _equals(own: Mapping[str, str], *names: str) -> str:
    return json.dumps({"StringEquals": {f"kms:EncryptionContext:{name}": own[name] for name in names}})
