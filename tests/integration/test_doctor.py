"""The doctor and the KMS: every line red for its own reason, and green otherwise."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from tests.support.strict_kms import RUNTIME_ACTIONS, VENDOR, FaultRule, StrictKms

from pii_vault import LocalKms, Vault
from pii_vault.context import Identity, kms_context
from pii_vault.doctor.contexts import Contexts
from pii_vault.doctor.findings import Finding, Group, Verdict
from pii_vault.doctor.patience import Patience
from pii_vault.doctor.probes import probe_key
from pii_vault.errors import ConfigurationError, TenantNotFoundError
from pii_vault.keystore import schema
from pii_vault.kms import KmsKey

ACCOUNT = "111122223333"
WORKS = ("role", "kms-describe", "kms-generate", "kms-decrypt", "kms-reencrypt")
CONTEXTS = ("other-tenant", "other-application", "no-context", "additional-entry", "missing-entry")
ROLE = ("role-without-external-id", "role-wrong-external-id")
NEVER = ("encrypt", "create-grant", "enable-key", "cancel-key-deletion", "get-key-policy")
DENIED = (*CONTEXTS, *ROLE, *NEVER)

Statement = dict[str, Any]


def conditions(context: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The conditions that a tenant's key policy should have."""
    equal = {f"kms:EncryptionContext:{name}": context[name] for name in ("pii-vault:app", "pii-vault:tenant")}
    return {
        "StringEquals": equal,
        "ForAllValues:StringEquals": {"kms:EncryptionContextKeys": list(context)},
        "Null": {"kms:EncryptionContextKeys": "false"},
    }


@dataclass
class Customer:
    """A tenant whose KMS key lies in its own account, with a role that we assume there."""

    kms: StrictKms
    vault: Vault
    key: KmsKey

    @property
    def identity(self) -> Identity:
        return self.vault._parts.store.load("acme").tenant.identity

    @property
    def context(self) -> Mapping[str, str]:
        return kms_context(self.identity, "kek", 1)

    def use(self, *actions: str, **condition: Any) -> Statement:
        """A statement that lets the role use the key."""
        names = [f"kms:{action}" for action in actions] or list(RUNTIME_ACTIONS)
        given = {**conditions(self.context), **condition}
        return self.statement(*names, Condition={name: each for name, each in given.items() if each is not None})

    def statement(self, *actions: str, **more: Any) -> Statement:
        principal = {"AWS": self.key.role_arn or VENDOR}
        return {"Effect": "Allow", "Principal": principal, "Action": list(actions), "Resource": "*", **more}

    def put(self, *statements: Statement, look: bool = True) -> None:
        """Put a key policy."""
        looking = [self.statement("kms:DescribeKey")] if look else []
        self.kms.put_key_policy(self.key.arn, {"Statement": [*statements, *looking]})

    def trust(self, condition: dict[str, Any] | None, *trusts: str) -> None:
        """Put the role's trust policy."""
        allow = {"Effect": "Allow", "Principal": {"AWS": list(trusts or (VENDOR,))}, "Action": "sts:AssumeRole"}
        if condition is not None:
            allow["Condition"] = condition
        assert self.key.role_arn is not None
        self.kms.register_role(self.key.role_arn, trust_policy={"Statement": [allow]})

    def findings(self, **options: Any) -> dict[str, Finding]:
        found = self.vault.doctor("acme", **options)
        assert len({each.check for each in found}) == len(found)
        return {each.check: each for each in found}

    def bad(self, **options: Any) -> dict[str, Finding]:
        """What the command would exit with 1 for."""
        return {name: each for name, each in self.findings(**options).items() if each.verdict.is_bad}


@pytest.fixture
def customer(strict_kms: StrictKms, sqlite_url: str) -> Iterator[Customer]:
    vault = Vault(sqlite_url, kms=strict_kms.provider(attempts=1), platform_key=strict_kms.platform_key())
    vault.create_all()
    key = strict_kms.customer_key(account=ACCOUNT)
    vault.add_tenant("acme", key=key.arn, role_arn=key.role_arn, external_id=key.external_id)
    made = Customer(strict_kms, vault, key)
    made.put(made.use())
    yield made
    vault.close()


def test_a_customer_that_did_everything_right_passes_every_line(customer: Customer) -> None:
    with customer.kms.counting() as calls:
        found = customer.findings()
    asked = [each for each in found.values() if each.group is not Group.OURS]
    assert {each.check: each.verdict for each in asked if each.verdict is not Verdict.PASSED} == {
        "not-tried": Verdict.INFO
    }
    assert [each.check for each in asked if each.group is Group.WORKS][: len(WORKS)] == list(WORKS)
    assert [each.check for each in asked if each.group is Group.DENIED] == [*DENIED, "not-tried", "kms-wrong-context"]
    assert all(each.change is None for each in asked)
    # Nothing was changed, and no key left the KMS but the one that is unwrapped to be compared.
    answered = [call.operation for call in calls.matching(outcome="ok")]
    assert sorted(answered) == ["AssumeRole", "Decrypt", *["DescribeKey"] * 4]
    assert {call.operation for call in calls.calls}.isdisjoint({"PutKeyPolicy", "DisableKey", "ScheduleKeyDeletion"})
    assert all(
        call.parameters["DryRun"]
        for call in calls.calls
        if call.operation in {"GenerateDataKey", "ReEncrypt", "Encrypt", "CreateGrant"}
    )


# What is too wide: exactly that line turns red, and says which statement to change.

Widen = Callable[[Customer], None]


def two_statements(customer: Customer, *actions: str, **condition: Any) -> None:
    """A good statement for all actions, and beside it one that is too wide for some."""
    customer.put(customer.use(), customer.use(*actions, **condition))


def equals(customer: Customer, *names: str, **more: Any) -> dict[str, Any]:
    return {"StringEquals": {f"kms:EncryptionContext:{name}": customer.context[name] for name in names}, **more}


APP, TENANT = "pii-vault:app", "pii-vault:tenant"
ANY_APP = {"StringLike": {f"kms:EncryptionContext:{APP}": "*"}}
ANY_TENANT = {"StringLike": {f"kms:EncryptionContext:{TENANT}": "*"}}


def if_exists(customer: Customer, name: str) -> dict[str, Any]:
    return {"StringEqualsIfExists": {f"kms:EncryptionContext:{name}": customer.context[name]}}


CONTEXT_ACTIONS = ("GenerateDataKey", "Decrypt", "ReEncryptFrom", "ReEncryptTo")
TOO_WIDE: dict[str, Callable[[Customer], dict[str, Any]]] = {
    "other-tenant": lambda c: equals(c, APP, **ANY_TENANT),
    "other-application": lambda c: equals(c, TENANT, **ANY_APP),
    "no-context": lambda c: {
        "StringEquals": None,
        "ForAllValues:StringEquals": None,
        "Null": {"kms:EncryptionContextKeys": "true"},
    },
    "additional-entry": lambda c: {"ForAllValues:StringEquals": None},
    "missing-entry": lambda c: equals(c, APP, **if_exists(c, TENANT)),
}
SAYS = {
    "other-tenant": f'"kms:EncryptionContext:{TENANT}"',
    "other-application": f'"kms:EncryptionContext:{APP}"',
    "no-context": '{"Null": {"kms:EncryptionContextKeys": "false"}}',
    "additional-entry": '{"ForAllValues:StringEquals": {"kms:EncryptionContextKeys": ["pii-vault:format"',
    "missing-entry": "not StringEqualsIfExists",
}


@pytest.mark.parametrize("action", CONTEXT_ACTIONS)
@pytest.mark.parametrize("check", CONTEXTS)
def test_a_condition_that_is_missing_turns_its_own_line_red(customer: Customer, check: str, action: str) -> None:
    two_statements(customer, action, **TOO_WIDE[check](customer))
    bad = customer.bad()
    assert list(bad) == [check]
    assert bad[check].verdict is Verdict.FAILED
    assert bad[check].finding.endswith(f"is not refused: kms:{action}")
    assert f"the statement of the key policy that lets {customer.key.role_arn} use the key" in str(bad[check].change)
    assert SAYS[check] in str(bad[check].change)


def test_the_applications_entry_that_may_be_missing_is_found_as_well(customer: Customer) -> None:
    two_statements(customer, **equals(customer, TENANT, **if_exists(customer, APP)))
    assert list(customer.bad()) == ["missing-entry"]


def test_what_a_line_says_to_change_is_what_makes_it_pass(customer: Customer) -> None:
    wide = {"StringEquals": None, "ForAllValues:StringEquals": None, "Null": None}
    customer.put(customer.use(**wide))
    bad = customer.bad()
    assert list(bad) == list(CONTEXTS)
    merged: dict[str, Any] = {}
    for each in bad.values():
        for condition in _conditions_in(str(each.change)):
            for operator, tests in condition.items():
                merged.setdefault(operator, {}).update(tests)
    customer.put(customer.use(**{**wide, **merged}))
    assert customer.bad() == {}


def _conditions_in(change: str) -> list[dict[str, Any]]:
    found, rest = [], change
    while "{" in rest:
        rest = rest[rest.index("{") :]
        document, end = json.JSONDecoder().raw_decode(rest)
        found.append(document)
        rest = rest[end:]
    return found


@pytest.mark.parametrize(
    ("check", "action"),
    [
        ("encrypt", "Encrypt"),
        ("create-grant", "CreateGrant"),
        ("enable-key", "EnableKey"),
        ("cancel-key-deletion", "CancelKeyDeletion"),
        ("get-key-policy", "GetKeyPolicy"),
    ],
)
def test_an_action_too_many_turns_its_own_line_red(customer: Customer, check: str, action: str) -> None:
    customer.put(customer.use(), customer.statement(f"kms:{action}"))
    bad = customer.bad()
    assert list(bad) == [check]
    assert (bad[check].verdict, bad[check].finding) == (Verdict.FAILED, f"kms:{action} is not refused")
    assert f"no statement of the key policy, and none of its own policies, allows kms:{action}" in str(
        bad[check].change
    )
    assert customer.kms.state(customer.key.arn) == "Enabled"
    assert customer.kms.grants == []


@pytest.mark.parametrize(
    ("check", "condition", "says"),
    [
        (
            "role-without-external-id",
            {"StringEqualsIfExists": {"sts:ExternalId": "random-external-id"}},
            "StringEquals",
        ),
        ("role-wrong-external-id", {"StringLike": {"sts:ExternalId": "*"}}, "not with a pattern"),
    ],
)
def test_a_trust_policy_that_is_too_wide_turns_its_own_line_red(
    customer: Customer, check: str, condition: dict[str, Any], says: str
) -> None:
    customer.trust(condition)
    bad = customer.bad()
    assert list(bad) == [check]
    assert bad[check].verdict is Verdict.FAILED
    assert f"the trust policy of {customer.key.role_arn}" in str(bad[check].change)
    assert says in str(bad[check].change)


def test_a_role_without_an_external_id_fails(customer: Customer) -> None:
    key = replace(customer.key, external_id=None)
    customer.trust(None)
    found = probed(customer, key)
    assert found["role-without-external-id"].verdict is Verdict.FAILED
    assert "agree on an ExternalId" in str(found["role-without-external-id"].change)
    assert found["role-wrong-external-id"].verdict is Verdict.NOT_CHECKED


# What is missing.


@pytest.mark.parametrize(
    ("lacking", "red"),
    [
        ("kms:GenerateDataKey", "kms-generate"),
        ("kms:ReEncryptFrom", "kms-reencrypt"),
        ("kms:ReEncryptTo", "kms-reencrypt"),
    ],
)
def test_a_right_that_is_missing_turns_its_own_line_red(customer: Customer, lacking: str, red: str) -> None:
    customer.put(customer.use(*(each.removeprefix("kms:") for each in RUNTIME_ACTIONS if each != lacking)))
    bad = customer.bad()
    assert list(bad) == [red]
    assert bad[red].verdict is Verdict.FAILED
    assert lacking in str(bad[red].change)
    assert customer.context[TENANT] in str(bad[red].change)


def test_without_the_right_to_decrypt_nothing_can_be_compared_either(customer: Customer) -> None:
    customer.put(customer.use("GenerateDataKey", "ReEncryptFrom", "ReEncryptTo"))
    bad = customer.bad()
    failed = [name for name, each in bad.items() if each.verdict is Verdict.FAILED]
    assert failed == ["kms-decrypt", "kms-unwrap"]
    assert {each.verdict for name, each in bad.items() if name not in failed} == {Verdict.NOT_MADE}
    assert "kms:Decrypt" in str(bad["kms-decrypt"].change)
    assert not set(bad) & {*CONTEXTS, *NEVER}  # proven with the other actions


def test_without_the_right_to_look_at_the_key_it_is_not_tried_to_be_enabled(customer: Customer) -> None:
    customer.put(customer.use(), customer.statement("kms:EnableKey", "kms:CancelKeyDeletion"), look=False)
    with customer.kms.counting() as calls:
        bad = customer.bad()
    assert {name: each.verdict for name, each in bad.items()} == {
        "kms-describe": Verdict.FAILED,
        "enable-key": Verdict.NOT_MADE,
        "cancel-key-deletion": Verdict.NOT_MADE,
    }
    assert "a statement of the key policy without any condition" in str(bad["kms-describe"].change)
    assert calls.count("EnableKey") + calls.count("CancelKeyDeletion") == 0


def test_a_role_that_cannot_be_assumed_proves_nothing(customer: Customer) -> None:
    customer.trust(None, "arn:aws:iam::222233334444:root")
    found = customer.findings()
    assert found["role"].verdict is Verdict.FAILED
    assert f"the trust policy of {customer.key.role_arn} allows sts:AssumeRole" in str(found["role"].change)
    unknown = {found[name].verdict for name in (*WORKS[1:], *DENIED)}
    assert unknown == {Verdict.NOT_MADE}


def test_a_policy_that_refuses_everything_proves_nothing(customer: Customer) -> None:
    customer.put()
    found = customer.findings()
    assert {found[name].verdict for name in ("kms-generate", "kms-decrypt", "kms-reencrypt")} == {Verdict.FAILED}
    assert {found[name].verdict for name in (*CONTEXTS, "encrypt", "create-grant")} == {Verdict.NOT_MADE}
    assert {found[name].verdict for name in (*ROLE, "enable-key", "get-key-policy")} == {Verdict.PASSED}


def test_a_disabled_key_is_never_enabled_by_looking(customer: Customer) -> None:
    customer.put(customer.use(), customer.statement("kms:EnableKey", "kms:CancelKeyDeletion"))
    customer.kms.disable(customer.key.arn)
    bad = customer.bad()
    assert bad["kms-describe"].verdict is Verdict.FAILED
    assert "its owner enables it" in str(bad["kms-describe"].change)
    assert bad["enable-key"].verdict is Verdict.NOT_MADE
    assert customer.kms.state(customer.key.arn) == "Disabled"


def test_a_deletion_is_never_cancelled_by_looking(customer: Customer) -> None:
    customer.put(customer.use(), customer.statement("kms:EnableKey", "kms:CancelKeyDeletion"))
    customer.kms.schedule_deletion(customer.key.arn)
    assert customer.bad()["cancel-key-deletion"].verdict is Verdict.NOT_MADE
    assert customer.kms.state(customer.key.arn) == "PendingDeletion"


# What is no answer.


@pytest.mark.parametrize(
    "fault",
    [
        FaultRule("GenerateDataKey", error="ThrottlingException", times=None),
        FaultRule("GenerateDataKey", error="KMSInternalException", times=None),
        FaultRule("GenerateDataKey", drop=True, times=None),
        FaultRule("GenerateDataKey", error="ExpiredTokenException", times=None),
    ],
)
def test_no_answer_is_neither_passed_nor_failed(customer: Customer, fault: FaultRule) -> None:
    customer.kms.script(fault)
    found = customer.findings()
    assert found["kms-generate"].verdict is Verdict.NOT_MADE
    assert {found[name].verdict for name in CONTEXTS} == {Verdict.PASSED}  # by the other actions


@pytest.mark.parametrize("operation", ["Encrypt", "CreateGrant", "EnableKey", "CancelKeyDeletion", "GetKeyPolicy"])
def test_a_refusal_that_did_not_come_is_not_proven(customer: Customer, operation: str) -> None:
    customer.kms.script(FaultRule(operation, error="ThrottlingException", times=None))
    bad = customer.bad()
    (check,) = [name for name in NEVER if name.replace("-", "") == operation.lower()]
    assert {name: each.verdict for name, each in bad.items()} == {check: Verdict.NOT_MADE}


def test_one_action_that_did_not_answer_leaves_a_wrong_context_unproven(customer: Customer) -> None:
    # The first answer is for the right context, the ones after it are for the wrong ones.
    customer.kms.script(FaultRule("GenerateDataKey", error="ThrottlingException", after=1, times=1))
    bad = customer.bad()
    assert {name: each.verdict for name, each in bad.items()} == {"other-tenant": Verdict.NOT_MADE}


def test_a_kms_that_cannot_be_reached_proves_nothing(customer: Customer) -> None:
    customer.kms.script(FaultRule(drop=True, times=None))
    found = customer.findings()
    assert {found[name].verdict for name in (*WORKS, *DENIED)} == {Verdict.NOT_MADE}


def test_an_endpoint_without_dry_runs_is_found_out_before_anything_is_done(customer: Customer) -> None:
    customer.put(customer.use(), customer.statement("kms:CreateGrant", "kms:Encrypt"))
    customer.kms.forget_dry_runs()
    with customer.kms.counting() as calls:
        found = customer.findings()
    assert found["kms-generate"].verdict is Verdict.FAILED
    assert "takes a dry run for a real call" in found["kms-generate"].finding
    assert {found[name].verdict for name in (*CONTEXTS, "encrypt", "create-grant")} == {Verdict.NOT_MADE}
    assert customer.kms.grants == []
    assert calls.count("CreateGrant") + calls.count("Encrypt") == 0
    assert calls.count("GenerateDataKey") == 1


# When AWS has not noticed yet.


class Waiting:
    """Time that passes only by waiting, and what happens meanwhile."""

    def __init__(self, seconds: float, *events: tuple[float, Callable[[], None]]) -> None:
        self.now, self.pauses, self.said = 0.0, list[float](), list[tuple[int, int]]()
        self.events = list(events)
        self.patience = Patience(
            seconds,
            sleep=self.sleep,
            monotonic=lambda: self.now,
            progress=lambda done, total: self.said.append((done, total)),
        )

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)
        while self.events and self.events[0][0] <= self.now:
            self.events.pop(0)[1]()


def probed(customer: Customer, key: KmsKey | None = None, patience: Patience | None = None) -> dict[str, Finding]:
    contexts = Contexts.of("acme", customer.identity)
    found = probe_key(customer.vault._parts.kms, key or customer.key, contexts, patience=patience)
    return {each.check: each for each in found}


def test_a_policy_that_comes_to_be_is_waited_for(customer: Customer) -> None:
    customer.put(look=False)
    waiting = Waiting(60, (9.0, lambda: customer.put(customer.use())))
    found = probed(customer, patience=waiting.patience)
    assert {each.verdict for each in found.values()} == {Verdict.PASSED, Verdict.INFO}
    assert waiting.pauses == [1, 2, 4, 8]
    assert waiting.said[0] == (1, 5)


def test_a_role_that_comes_to_be_is_waited_for(customer: Customer) -> None:
    customer.trust(None, "arn:aws:iam::222233334444:root")
    good = {"StringEquals": {"sts:ExternalId": customer.key.external_id}}
    waiting = Waiting(60, (3.0, lambda: customer.trust(good)))
    found = probed(customer, patience=waiting.patience)
    assert {each.verdict for each in found.values()} == {Verdict.PASSED, Verdict.INFO}


def test_a_key_that_was_just_made_is_waited_for(customer: Customer) -> None:
    customer.kms.script(FaultRule(key=customer.key.arn, error="NotFoundException", times=2))
    found = probed(customer, patience=Waiting(60).patience)
    assert {each.verdict for each in found.values()} == {Verdict.PASSED, Verdict.INFO}
    customer.kms.script(FaultRule("DescribeKey", key=customer.key.arn, error="NotFoundException", times=1))
    assert probed(customer)["kms-describe"].verdict is Verdict.FAILED


def test_a_policy_that_is_narrowed_is_waited_for(customer: Customer) -> None:
    customer.put(customer.statement("kms:*"))
    waiting = Waiting(60, (5.0, lambda: customer.put(customer.use())))
    found = probed(customer, patience=waiting.patience)
    assert {each.verdict for each in found.values()} == {Verdict.PASSED, Verdict.INFO}


def test_what_must_be_denied_is_asked_when_what_must_work_works(customer: Customer) -> None:
    """At first everything is refused, and so is what will be allowed by mistake."""
    customer.put()
    wide = customer.use(**{"ForAllValues:StringEquals": None})
    waiting = Waiting(300, (3.0, lambda: customer.put(wide)))
    found = probed(customer, patience=waiting.patience)
    assert [name for name, each in found.items() if each.verdict.is_bad] == ["additional-entry"]


def test_it_is_asked_as_long_as_was_said_and_then_called_open(customer: Customer) -> None:
    customer.put(customer.use(), customer.statement("kms:Encrypt"))
    waiting = Waiting(60)
    found = probed(customer, patience=waiting.patience)
    assert found["encrypt"].verdict is Verdict.ASK_AGAIN
    assert found["encrypt"].verdict.is_bad
    assert "after a change AWS may take 5 min" in str(found["encrypt"].change)
    assert waiting.now == 60
    assert max(waiting.pauses) == 20


def test_after_five_minutes_it_has_failed(customer: Customer) -> None:
    customer.put(customer.use(), customer.statement("kms:Encrypt"))
    assert probed(customer, patience=Waiting(300).patience)["encrypt"].verdict is Verdict.FAILED


def test_nothing_is_waited_for_that_time_does_not_change(customer: Customer) -> None:
    customer.kms.disable(customer.key.arn)
    waiting = Waiting(300)
    assert probed(customer, patience=waiting.patience)["kms-describe"].verdict is Verdict.FAILED
    assert waiting.pauses == []


def test_without_waiting_a_first_answer_counts(customer: Customer) -> None:
    customer.put(customer.use(), customer.statement("kms:Encrypt"))
    waiting = Waiting(0)
    assert probed(customer, patience=waiting.patience)["encrypt"].verdict is Verdict.FAILED
    assert waiting.pauses == []


@pytest.mark.parametrize("seconds", [-1, 301, float("nan")])
def test_nobody_waits_longer_than_makes_sense(customer: Customer, seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="0 to 300 seconds"):
        customer.vault.doctor("acme", wait=seconds)


# Before there is a tenant, and other kinds of keys.


def test_a_key_is_proven_before_its_tenant_is_registered(strict_kms: StrictKms) -> None:
    kms, identity = strict_kms.provider(attempts=1), Identity(bytes(16), bytes(range(16)), 7)
    contexts = Contexts.of("newcomer", identity)
    key = strict_kms.customer_key(account="222233334444")
    wide = {each.check: each for each in probe_key(kms, key, contexts)}
    assert [name for name, each in wide.items() if each.verdict.is_bad] == list(CONTEXTS)
    bound = {name: contexts.own[name] for name in (APP, TENANT)}
    strict_kms.put_key_policy(key.arn, {"Statement": []})
    strict_kms.allow(key.arn, str(key.role_arn), context=bound, context_keys=contexts.own)
    assert [each for each in probe_key(kms, key, contexts) if each.verdict.is_bad] == []


def test_our_own_roles_may_use_a_key_in_the_customers_account(strict_kms: StrictKms) -> None:
    kms, identity = strict_kms.provider(attempts=1), Identity(bytes(16), bytes(range(16)), 7)
    contexts = Contexts.of("newcomer", identity)
    key = KmsKey(strict_kms.create_key("222233334444"))
    bound = {name: contexts.own[name] for name in (APP, TENANT)}
    strict_kms.allow(key.arn, VENDOR, context=bound, context_keys=contexts.own)
    found = {each.check: each.verdict for each in probe_key(kms, key, contexts)}
    assert set(found) == {*WORKS[1:], *CONTEXTS, *NEVER, "not-tried"}
    assert set(found.values()) == {Verdict.PASSED, Verdict.INFO}


def test_a_tenant_under_the_platforms_key_is_warned_and_not_failed(customer: Customer) -> None:
    customer.vault.add_tenant("small")
    found = {each.check: each for each in customer.vault.doctor("small")}
    assert found["other-tenant"].verdict is Verdict.NOT_CHECKED
    assert {found[name].verdict for name in CONTEXTS[1:]} == {Verdict.WARNING}
    assert [each for each in found.values() if each.verdict.is_bad] == []
    assert f"kms:EncryptionContext:{TENANT}" not in str([found[name].change for name in CONTEXTS])
    platform = customer.vault.platform_key
    app = {APP: customer.identity.app_uid.hex()}
    customer.kms.put_key_policy(platform, {"Statement": []})
    customer.kms.allow(platform, VENDOR, context=app, context_keys=customer.context)
    again = {each.check: each for each in customer.vault.doctor("small")}
    assert {again[name].verdict for name in (*CONTEXTS[1:], *NEVER)} == {Verdict.PASSED}


def test_a_local_kms_says_that_it_denies_nothing(tmp_path: Any) -> None:
    kms = LocalKms(tmp_path / "kms.json")
    vault = Vault(f"sqlite:///{tmp_path / 'keys.sqlite3'}", kms=kms)
    vault.create_all()
    key = kms.create_key()
    vault.add_tenant("acme", key=key)
    found = {each.check: each for each in vault.doctor("acme")}
    assert [each for each in found.values() if each.verdict.is_bad] == []
    assert found["policies"].verdict is Verdict.NOT_CHECKED
    assert not set(found) & set(DENIED)
    kms.disable_key(key)
    bad = {each.check for each in vault.doctor("acme") if each.verdict is Verdict.FAILED}
    assert {"kms-describe", "kms-generate", "kms-decrypt", "kms-reencrypt"} <= bad
    vault.close()


def test_nobody_is_examined_who_is_not_there(customer: Customer) -> None:
    with pytest.raises(TenantNotFoundError):
        customer.vault.doctor("nobody")


def test_a_key_record_that_points_elsewhere_is_not_asked_about(customer: Customer) -> None:
    other = customer.kms.create_key("222233334444")
    engine = create_engine(customer.vault._engine.url)
    with engine.begin() as connection:
        for name in connection.scalars(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
            connection.execute(text(f"DROP TRIGGER {name}"))
        connection.execute(schema.keks.update().values(kms_key_arn=other))
    engine.dispose()
    with customer.kms.counting() as calls:
        found = customer.findings()
    assert found["kms-address"].verdict is Verdict.FAILED
    assert found["key-store"].verdict is Verdict.FAILED
    assert calls.count(key=other) == 0


def test_the_kms_clock_is_compared_with_ours(customer: Customer, strict_kms: StrictKms) -> None:
    assert customer.findings()["clock"].verdict is Verdict.PASSED

    def vault_with(offset: float) -> Finding:
        kms = strict_kms.provider(attempts=1)
        kms._clock = lambda: time.time() + offset
        vault = Vault(customer.vault._engine, kms=kms, platform_key=strict_kms.platform_key())
        return {each.check: each for each in vault.doctor("acme")}["clock"]

    slow, fast = vault_with(-45), vault_with(400)
    assert (slow.verdict, fast.verdict) == (Verdict.WARNING, Verdict.FAILED)
    assert "45 s behind the KMS's" in slow.finding
    assert "400 s ahead of the KMS's" in fast.finding
    assert "NTP" in str(slow.change)
