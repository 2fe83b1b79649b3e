"""Everything that is handed over for an arrangement, as named texts: to the customer, and to whoever runs our account.

Pure: nothing is written here. The texts hold no secret; they name accounts, roles and uids.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from ..keystore import Way
from . import policies
from .arrangement import Arrangement
from .cloudformation import cloudformation
from .terraform import terraform


class Recipient(StrEnum):
    """Who applies a document."""

    CUSTOMER = "customer"
    US = "us"


@dataclass(frozen=True, slots=True)
class Document:
    """One text to hand over.

    Attributes:
        name: Its file name; no two of an arrangement are the same.
        text: The whole text, with a line end.
        who: Who applies it.
        what: What it is for, one sentence.
    """

    name: str
    text: str
    who: Recipient
    what: str


def documents(arrangement: Arrangement) -> tuple[Document, ...]:
    """Return everything to hand over, the customer's first; Terraform and CloudFormation say the same as the JSON.

    In a direct arrangement our own roles' policies name the key: they are left out until its ARN is known.
    """
    return (
        Document(
            "README.md", _readme(arrangement), Recipient.CUSTOMER, "What to apply, what it grants, how to end it."
        ),
        *_to_apply(arrangement),
        *_for_the_key(arrangement),
        *_for_roles(arrangement),
        *_for_us(arrangement),
    )


def _to_apply(arrangement: Arrangement) -> Iterator[Document]:
    what = "Makes all of it at once, with {}."
    yield Document("terraform.tf", terraform(arrangement), Recipient.CUSTOMER, what.format("Terraform"))
    template = cloudformation(arrangement)
    if template is not None:
        yield Document("cloudformation.yaml", template, Recipient.CUSTOMER, what.format("CloudFormation"))


def _for_the_key(arrangement: Arrangement) -> Iterator[Document]:
    if _key_exists(arrangement):
        what = "The statements that the policy of your key has to gain."
        yield _json("key-statements.json", policies.key_statements(arrangement), Recipient.CUSTOMER, what)
        return
    by_us = arrangement.way is Way.CREATED
    what = "The policy that we give to the key when we make it." if by_us else "The whole policy of the new key."
    yield _json("key-policy.json", policies.key_policy(arrangement), Recipient.CUSTOMER, what)


def _for_roles(arrangement: Arrangement) -> Iterator[Document]:
    customer = Recipient.CUSTOMER
    if not arrangement.direct:
        what = "Who may assume the role that uses the key; the role needs no other policy."
        yield _json("access-role-trust.json", policies.access_role_trust(arrangement), customer, what)
    if arrangement.way is Way.CREATED:
        what = "Who may assume the role that makes the key."
        yield _json("provisioning-role-trust.json", policies.provisioning_role_trust(arrangement), customer, what)
        what = "What the role that makes the key may do."
        permissions = policies.provisioning_role_permissions(arrangement)
        yield _json("provisioning-role-permissions.json", permissions, customer, what)


def _for_us(arrangement: Arrangement) -> Iterator[Document]:
    if not arrangement.direct or arrangement.key_arn is not None:
        for name, make in (("runtime", policies.runtime_identity), ("rotation", policies.rotation_identity)):
            what = f"What our {name} role needs in our own account, for this customer."
            yield _json(f"our-{name}-policy.json", make(arrangement), Recipient.US, what)
    if arrangement.way is Way.CREATED:
        what = "What our provisioning role needs in our own account, until the key is made."
        yield _json("our-provisioning-policy.json", policies.provisioning_identity(arrangement), Recipient.US, what)


def _json(name: str, value: object, who: Recipient, what: str) -> Document:
    return Document(name, json.dumps(value, indent=2) + "\n", who, what)


def _key_exists(arrangement: Arrangement) -> bool:
    return arrangement.way is Way.SHARED and arrangement.key_arn is not None


# The customer's page.

_GRANTS: Final[Mapping[str, str]] = {
    "CustomerAdministers": "Your account's administrators manage the key. They cannot use it to read: for that they"
    " would have to change this policy, which CloudTrail shows.",
    "PassesLockoutCheck": "AWS makes a key only for somebody who could change its policy again. This lets the"
    " provisioning role pass that check. Until you delete the role, it could change this policy, too.",
    "PiiVaultUses": "The access role makes, opens and re-wraps keys, of this application and of you alone: the"
    " request must carry your id, and nothing beyond five known entries.",
    "PiiVaultUnwraps": "Our runtime role opens keys, of this application and of you alone: the request must carry"
    " your id, and nothing beyond five known entries.",
    "PiiVaultRotates": "Our rotation role makes, opens and re-wraps keys, under the same conditions.",
    "PiiVaultLooks": "We see the key's state and how often it rotates. Nothing is read with it.",
    "PiiVaultNever": "Whatever else is allowed to us by mistake: we do not change the key, its policy, its state or"
    " its deletion, make no grants and do not encrypt directly.",
    "PiiVaultAssumes": "Our runtime and rotation roles may act as the access role, if they bring the ExternalId that"
    " is yours alone.",
    "PiiVaultProvisions": "Our provisioning role may act as the role that makes the key, if it brings the ExternalId.",
    "MakeKey": "The role makes symmetric keys of AWS's own material, tagged with your id, and none else.",
    "TagKey": "It sets that one tag, with that one value.",
    "NameAlias": "It gives out one alias.",
    "NameKey": "It gives it to a key with that tag.",
    "RotateKey": "It turns on the rotation of a key with that tag, and looks at it.",
}


def _readme(arrangement: Arrangement) -> str:
    parts = [
        "# Your KMS key for personal data\n",
        "Personal data that we keep for you is encrypted with keys that only a KMS key in your AWS account opens.\n"
        "This is what we ask for. You can take it back at any time, and the data goes dark.\n",
        f"Account {arrangement.account}, region {arrangement.region}.\n",
        "## What to do\n",
        _steps(arrangement),
        "## What it grants\n",
        _table(arrangement),
        "We ask for nothing else. Each use of the key is in your CloudTrail, with your id.\n",
        "## How to take it back\n",
        _way_back(arrangement),
    ]
    return "\n".join(parts)


def _steps(arrangement: Arrangement) -> str:
    template = cloudformation(arrangement) is not None
    files = "`terraform.tf` or `cloudformation.yaml`" if template else "`terraform.tf`"
    if arrangement.way is Way.CREATED:
        steps = [
            f"Apply {files}: it makes {'the provisioning role' if arrangement.direct else 'two roles'}.",
            "Tell us. We make the key, with the policy in `key-policy.json`, and send you its ARN.",
            "Delete the provisioning role. Its statement `PassesLockoutCheck` in the key's policy is then without"
            " effect; leave it out when you next change the policy, since AWS refuses one that names a role that is"
            " gone.",
        ]
    elif _key_exists(arrangement):
        steps = [
            "Add the statements of `key-statements.json` to the policy of your key; do not replace the policy.",
            "Tell us.",
        ]
        if template:
            steps.insert(0, f"Apply {files}: it makes the access role. Give that role no other policy.")
        else:
            steps[0] += " `terraform.tf` merges the two, if you like."
    else:
        steps = [f"Apply {files}: it makes the key{'' if arrangement.direct else ' and the access role'}."]
        steps.append("Send us the ARN of the key, which is the output.")
    return "".join(f"{number}. {step}\n" for number, step in enumerate(steps, 1))


def _table(arrangement: Arrangement) -> str:
    rows = ["| where | statement | what it grants |", "|---|---|---|"]
    for where, statements in _granted(arrangement):
        rows += [f"| {where} | `{one['Sid']}` | {_GRANTS[one['Sid']]} |" for one in statements]
    return "\n".join(rows) + "\n"


def _granted(arrangement: Arrangement) -> Iterator[tuple[str, Iterable[Mapping[str, Any]]]]:
    if _key_exists(arrangement):
        yield "your key", policies.key_statements(arrangement)
    else:
        yield "the key", policies.key_policy(arrangement)["Statement"]
    if not arrangement.direct:
        yield "access role, trust", policies.access_role_trust(arrangement)["Statement"]
    if arrangement.way is Way.CREATED:
        yield "provisioning role, trust", policies.provisioning_role_trust(arrangement)["Statement"]
        yield "provisioning role", policies.provisioning_role_permissions(arrangement)["Statement"]


def _way_back(arrangement: Arrangement) -> str:
    lines = [
        "Disable the key: every new use fails at once. This can be undone. What is still in our memory is forgotten"
        " within the time that we have agreed with you.",
        "Take our statements out of the key's policy: the same, for us alone.",
        "Schedule the deletion of the key: when the waiting period is over, the data can never be read again, by"
        " anybody, backups included.",
    ]
    if not arrangement.direct:
        lines.insert(
            2,
            "Delete the access role, or its trust: no new session begins. One that is out lives on, usually for 15"
            " minutes and never longer than an hour: disable the key if it has to be at once.",
        )
    return "".join(f"- {line}\n" for line in lines)
