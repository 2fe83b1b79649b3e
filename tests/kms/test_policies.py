"""What the handed-over policies do: our tasks work, all else is denied, and no condition is there for nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.support.arrangements import OURS, arrangement
from tests.support.strict_kms import StrictKms
from tests.support.two_accounts import TwoAccounts, every_document

from pii_vault.errors import KmsDeniedError
from pii_vault.onboarding.arrangement import Arrangement

Document = dict[str, Any]
ROLE, DIRECT = arrangement(), arrangement(direct=True)
VENDOR_ROOT = "arn:aws:iam::999900001111:root"
CUSTOMER_ROOT = "arn:aws:iam::111122223333:root"
GUARD = "Null kms:EncryptionContextKeys"
USES = {"PiiVaultUses", "PiiVaultUnwraps", "PiiVaultRotates"}


@pytest.fixture(scope="module")
def kms() -> Iterator[StrictKms]:
    with StrictKms() as server:
        yield server


@pytest.fixture(scope="module")
def role(kms: StrictKms) -> TwoAccounts:
    return TwoAccounts(kms, ROLE)


@pytest.fixture(scope="module")
def direct() -> Iterator[TwoAccounts]:
    with StrictKms() as server:
        yield TwoAccounts(server, DIRECT)


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[TwoAccounts]:
    """A world as the documents leave it, and again after the test."""
    found: TwoAccounts = request.getfixturevalue(request.param)
    found.install({})
    yield found
    found.install({})


BOTH = pytest.mark.parametrize("world", ["role", "direct"], indirect=True)


@BOTH
def test_our_tasks_work_with_nothing_but_these_grants(world: TwoAccounts) -> None:
    assert world.broken() == []


@BOTH
@pytest.mark.parametrize("wide", [False, True], ids=["as handed over", "with own policies that allow everything"])
def test_everything_else_is_denied(wide: bool, world: TwoAccounts) -> None:
    """Also to roles whose own policies are too wide: the customer's side does not lean on ours, nor on its own."""
    world.install({}, wide=wide)
    leaning = {"runtime assumes another role", "rotation assumes another role"} if wide else set()
    assert set(world.open_doors()) == (leaning if not world.arrangement.direct else set())


@pytest.mark.parametrize("one", [ROLE, DIRECT], ids=["role", "direct"])
def test_a_key_that_exists_gains_what_is_needed_and_no_more(one: Arrangement) -> None:
    with StrictKms() as server:
        world = TwoAccounts(server, one, existing=True)
        assert world.broken() == []
        assert world.open_doors() == []


# No condition, statement or action is there for nothing.


def conditions(document: Document) -> Iterator[tuple[str, Document]]:
    """Each condition of a document, and the document without it."""
    for number, statement in enumerate(document["Statement"]):
        for operator, tests in statement.get("Condition", {}).items():
            for key in tests:
                without = deepcopy(document)
                del without["Statement"][number]["Condition"][operator][key]
                yield f"{statement['Sid']}: {operator} {key}", without


def of(one: Arrangement, change: Callable[[Document], Iterator[tuple[str, Document]]], *names: str) -> list[Any]:
    """Parameters: every change of every document of an arrangement."""
    world = "direct" if one.direct else "role"
    found = every_document(one)
    return [
        pytest.param(world, name, changed, id=f"{world}, {name}, {what}")
        for name in names
        if name in found
        for what, changed in change(found[name])
        if GUARD not in what
    ]


@pytest.mark.parametrize(
    ("world", "name", "changed"),
    [*of(ROLE, conditions, "key", "access trust"), *of(DIRECT, conditions, "key")],
    indirect=["world"],
)
def test_without_any_one_condition_something_is_no_longer_denied(
    name: str, changed: Document, world: TwoAccounts
) -> None:
    world.install({name: changed})
    assert world.leaks()
    assert world.broken() == [] or name == "access trust"


def test_the_guard_holds_where_the_values_are_not_demanded(role: TwoAccounts) -> None:
    """As it stands, the values refuse a request without context too; somebody may take them out one day."""
    policy = deepcopy(role.documents["key"])
    (use,) = (one for one in policy["Statement"] if one["Sid"] == "PiiVaultUses")
    del use["Condition"]["StringEquals"]
    use["Condition"]["Null"] = {"kms:EncryptionContextKeys": "false"}
    role.install({"key": policy})
    assert "generate: another tenant" in role.open_doors()
    assert "generate: nothing" not in role.open_doors()
    del use["Condition"]["Null"]
    role.install({"key": policy})
    assert "generate: nothing" in role.open_doors()
    role.install({})


def wider_principals(document: Document) -> Iterator[tuple[str, Document]]:
    """Each statement that lets us in, and the document with the whole account in its place."""
    for number, statement in enumerate(document["Statement"]):
        if statement["Sid"] in {*USES, "PiiVaultAssumes"}:
            wider = deepcopy(document)
            ours = "999900001111" in str(statement["Principal"])
            wider["Statement"][number]["Principal"] = {"AWS": VENDOR_ROOT if ours else CUSTOMER_ROOT}
            yield statement["Sid"], wider


def wider_resources(document: Document) -> Iterator[tuple[str, Document]]:
    wider = deepcopy(document)
    wider["Statement"][0]["Resource"] = "*"
    yield "every resource", wider


def crypto_for_administrators(document: Document) -> Iterator[tuple[str, Document]]:
    wider = deepcopy(document)
    assert wider["Statement"][0]["Sid"] == "CustomerAdministers"
    wider["Statement"][0]["Action"] = "kms:*"
    yield "administrators use the key", wider


@pytest.mark.parametrize(
    ("world", "name", "changed"),
    [
        *of(ROLE, wider_principals, "key", "access trust"),
        *of(DIRECT, wider_principals, "key"),
        *of(ROLE, crypto_for_administrators, "key"),
        *of(DIRECT, crypto_for_administrators, "key"),
        *of(ROLE, wider_resources, "runtime", "rotation"),
    ],
    indirect=["world"],
)
def test_a_wider_circle_is_noticed(name: str, changed: Document, world: TwoAccounts) -> None:
    world.install({name: changed})
    assert world.leaks()


def fewer_actions(document: Document) -> Iterator[tuple[str, Document]]:
    """Each action that is allowed to us, and the document without it."""
    for number, statement in enumerate(document["Statement"]):
        if statement["Effect"] == "Deny" or statement["Sid"] == "CustomerAdministers":
            continue
        for action in [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]:
            fewer = deepcopy(document)
            fewer["Statement"][number]["Action"] = [one for one in statement["Action"] if one != action] or ["kms:Sign"]
            yield f"{statement['Sid']}: {action}", fewer


@pytest.mark.parametrize(
    ("world", "name", "changed"),
    [*of(ROLE, fewer_actions, "key", "runtime", "rotation"), *of(DIRECT, fewer_actions, "key")],
    indirect=["world"],
)
def test_every_action_is_needed(name: str, changed: Document, world: TwoAccounts) -> None:
    world.install({name: changed})
    assert world.broken() != []


def test_every_action_of_our_own_direct_policies_is_needed(direct: TwoAccounts) -> None:
    """Their documents name a key, which is there only now."""
    for name in ("runtime", "rotation"):
        for what, changed in fewer_actions(direct.documents[name]):
            direct.install({name: changed})
            assert direct.broken() != [], what
    direct.install({})


@BOTH
def test_what_is_never_allowed_stays_so_beside_a_statement_that_allows_everything(world: TwoAccounts) -> None:
    policy = deepcopy(world.documents["key"])
    deny = policy["Statement"][-1]
    assert (deny["Sid"], deny["Effect"]) == ("PiiVaultNever", "Deny")
    allow = {**deny, "Sid": "Careless", "Effect": "Allow", "Action": "kms:*"}
    policy["Statement"].append(allow)
    world.install({"key": policy}, wide=True)
    probes = set(world.management_probes())
    assert probes.isdisjoint(world.open_doors())
    policy["Statement"].remove(deny)
    world.install({"key": policy}, wide=True)
    # Nobody manages a key from another account, but a grant is made from anywhere.
    assert probes & set(world.open_doors()) == ({"Encrypt", "CreateGrant"} if world.arrangement.direct else probes)


def test_every_probed_action_is_denied_by_name(role: TwoAccounts) -> None:
    denied = role.documents["key"]["Statement"][-1]["Action"]
    assert {f"kms:{name}" for name in role.management_probes()} <= set(denied)
    assert OURS.runtime not in str(role.documents["key"])


def test_a_rewrap_into_another_account_needs_two_grants_more(kms: StrictKms) -> None:
    """As the documentation has it; neither is given by default."""
    old = TwoAccounts(kms, arrangement(keyset_id=7))
    new = TwoAccounts(kms, arrangement(keyset_id=7, account="444455556666"))
    role, provider = old.arrangement.access_role, old.provider(OURS.rotation)
    assert role is not None

    def rewrapped() -> bytes:
        blob: bytes = provider.rewrap(old.key, new.key, old.blob, old.context).blob
        return blob

    policy = deepcopy(new.documents["key"])
    (use,) = (one for one in policy["Statement"] if one["Sid"] == "PiiVaultUses")
    policy["Statement"].append({**use, "Sid": "Rewrap", "Principal": {"AWS": role}, "Action": "kms:ReEncryptTo"})
    own = {"Statement": [{"Effect": "Allow", "Action": "kms:ReEncryptTo", "Resource": new.arn}]}

    def grant(*, there: bool, here: bool) -> None:
        new.install({"key": policy} if there else {})
        for name, arn in (("runtime", OURS.runtime), ("rotation", OURS.rotation)):
            both = [*old.documents[name]["Statement"], *new.documents[name]["Statement"]]
            kms.add_identity(arn, {"Statement": both})
        trust = old.documents["access trust"]
        kms.register_role(role, trust_policy=trust, identity_policy=own if here else None)

    for there, here in ((False, False), (True, False), (False, True)):
        grant(there=there, here=here)
        with pytest.raises(KmsDeniedError):
            rewrapped()
    grant(there=True, here=True)
    blob = rewrapped()
    assert new.provider(OURS.runtime).unwrap(new.key, blob, new.context) == provider.unwrap(
        old.key, old.blob, old.context
    )
    with pytest.raises(ClientError, match="not authorized to perform: kms:Decrypt"):
        old.user_of_the_key().decrypt(KeyId=new.arn, CiphertextBlob=blob, EncryptionContext=old.context)
