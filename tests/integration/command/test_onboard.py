"""`pii-vault onboard`: from a customer's account to the first sealed row, in two AWS accounts behind the strict KMS."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, String, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tests.support.command import environment
from tests.support.kms_policy import ALLOW_EVERYTHING
from tests.support.operator import Operator, operator
from tests.support.strict_kms import FaultRule, StrictKms

from pii_vault import EncryptedString, Vault
from pii_vault.errors import OnboardingError
from pii_vault.keystore import Way
from pii_vault.onboarding import onboard as onboard_module
from pii_vault.onboarding.arrangement import Ours
from pii_vault.onboarding.documents import documents

US, CUSTOMER = "999900001111", "444455556666"
ROLES = {name: f"arn:aws:iam::{US}:role/{name}" for name in ("runtime", "rotation", "provisioning")}
ADMIN = f"arn:aws:iam::{CUSTOMER}:user/admin"


class Base(DeclarativeBase): ...


class Patient(Base):
    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str] = mapped_column(EncryptedString())


class Keys:
    """The platform's key, and who we are: our rotation role."""

    def __init__(self, kms: StrictKms) -> None:
        kms.add_identity(ADMIN, ALLOW_EVERYTHING)
        for arn in ROLES.values():
            kms.add_identity(arn)
        kms.register_role(ROLES["provisioning"], trusts=[ROLES["rotation"]])
        self.platform_key = kms.create_key(US)
        for arn in ROLES.values():
            kms.allow(self.platform_key, arn)
        self.settings = {
            "PII_VAULT_PLATFORM_KEY": self.platform_key,
            **{f"PII_VAULT_{name.upper()}_ROLE": arn for name, arn in ROLES.items()},
            **kms.environment(ROLES["rotation"]),
        }


class Customer:
    """An administrator of the customer's account, who does what the documents say, and nothing else."""

    def __init__(self, kms: StrictKms, folder: Path) -> None:
        self.kms, self.folder = kms, folder

    def read(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    def make_roles(self, found: dict[str, Any]) -> None:
        for name in ("access", "provisioning"):
            role, trust = found[f"{name}_role"], self.folder / f"{name}-role-trust.json"
            if role is None:
                assert not trust.exists()
                continue
            permissions = self.folder / f"{name}-role-permissions.json"
            policy = json.loads(permissions.read_text()) if permissions.exists() else None
            self.kms.register_role(role, trust_policy=trust.read_text(), identity_policy=policy)
        self.tell_us()

    def tell_us(self) -> None:
        """Let our own administrator give our roles what their documents say, and nothing else."""
        for name, arn in ROLES.items():
            ours = self.folder / f"our-{name}-policy.json"
            if ours.exists():
                self.kms.add_identity(arn, json.loads(ours.read_text()))

    def make_key(self) -> str:
        client = self.kms.session(ADMIN).client("kms", "eu-west-1", endpoint_url=self.kms.endpoint_url)
        return str(client.create_key(Policy=(self.folder / "key-policy.json").read_text())["KeyMetadata"]["Arn"])


@pytest.fixture
def ops(local_url: str, strict_kms: StrictKms) -> Iterator[Operator]:
    with operator(local_url, Keys(strict_kms)) as made:  # type: ignore[arg-type]
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "for the customer"


@pytest.fixture
def customer(strict_kms: StrictKms, folder: Path) -> Customer:
    return Customer(strict_kms, folder)


PLACE = ("--account", CUSTOMER, "--region", "eu-west-1")


def onboard(ops: Operator, folder: Path, *more: str, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = ops.json("onboard", "acme", "--out", str(folder), "--wait", "0", *more, code=code)
    return found


def seals(url: str, kms: StrictKms, ops: Operator, make_engine: Callable[..., Engine]) -> None:
    """The application, as its runtime role, writes and reads a row."""
    vault = Vault(url, kms=kms.provider(ROLES["runtime"]), platform_key=ops.kms.platform_key)
    engine = make_engine("sqlite://")
    vault.attach(engine, tenant_column="tenant_id")
    Base.metadata.create_all(engine)
    with vault.tenant("acme"), Session(engine) as session:
        session.add(Patient(tenant_id="acme", email="ada@example.com"))
        session.commit()
        assert session.scalars(select(Patient.email)).all() == ["ada@example.com"]
    vault.close()


def test_the_customer_s_own_key_from_its_account_to_the_first_sealed_row(
    ops: Operator, strict_kms: StrictKms, customer: Customer, folder: Path, local_url: str, make_engine: Any
) -> None:
    begun = onboard(ops, folder, *PLACE)
    assert (begun["step"], begun["way"], begun["kms_key_arn"]) == ("handed_over", "shared", None)
    assert len(begun["external_id"]) >= 32
    customer.make_roles(begun)
    arn = customer.make_key()
    done = onboard(ops, folder, "--key", arn)
    assert (done["step"], done["kms_key_arn"], done["tenant_uid"]) == ("registered", arn, begun["tenant_uid"])
    assert {each["verdict"] for each in done["probes"]} <= {"passed", "info", "not_checked"}
    shown = ops.json("tenant show", "acme")
    assert (shown["uid"], shown["keyset_id"], shown["kms_key_arn"]) == (begun["tenant_uid"], begun["keyset_id"], arn)
    assert shown["role_arn"] == begun["access_role"]
    seals(local_url, strict_kms, ops, make_engine)


def test_a_key_that_we_make_in_the_customer_s_account(
    ops: Operator, strict_kms: StrictKms, customer: Customer, folder: Path, local_url: str, make_engine: Any
) -> None:
    begun = onboard(ops, folder, *PLACE, "--create-key", "--kms-rotation-days", "180")
    assert begun["provisioning_role"].startswith(f"arn:aws:iam::{CUSTOMER}:role/pii-vault-")
    customer.make_roles(begun)
    done = onboard(ops, folder)
    arn = done["kms_key_arn"]
    assert (done["step"], arn.split(":")[4]) == ("registered", CUSTOMER)
    client = strict_kms.session(ADMIN).client("kms", "eu-west-1", endpoint_url=strict_kms.endpoint_url)
    assert client.describe_key(KeyId="alias/pii-vault/acme")["KeyMetadata"]["Arn"] == arn
    assert client.get_key_rotation_status(KeyId=arn)["RotationPeriodInDays"] == 180
    strict_kms.remove_role(begun["provisioning_role"])  # as the customer is told
    seals(local_url, strict_kms, ops, make_engine)


def test_our_own_roles_use_the_key_where_that_is_arranged(
    ops: Operator, strict_kms: StrictKms, customer: Customer, folder: Path, local_url: str, make_engine: Any
) -> None:
    begun = onboard(ops, folder, *PLACE, "--direct")
    assert begun["access_role"] is None
    arn = customer.make_key()
    early = onboard(ops, folder, "--key", arn, code=1)  # our own roles have no policy that names the key yet
    assert early["step"] == "made"
    customer.tell_us()
    assert onboard(ops, folder)["step"] == "registered"
    seals(local_url, strict_kms, ops, make_engine)


def test_nothing_is_registered_while_a_policy_is_too_wide(
    ops: Operator, strict_kms: StrictKms, customer: Customer, folder: Path
) -> None:
    begun = onboard(ops, folder, *PLACE)
    customer.make_roles(begun)
    arn = customer.make_key()
    strict_kms.allow(arn, begun["access_role"], actions=["kms:GenerateDataKey", "kms:Decrypt"])
    found = onboard(ops, folder, "--key", arn, code=1)
    assert found["step"] == "made"
    wide = {each["check"] for each in found["probes"] if each["verdict"] == "failed"}
    assert "other-tenant" in wide
    assert all(each["change"] for each in found["probes"] if each["verdict"] == "failed")
    assert ops.json("tenant list") == []
    strict_kms.put_key_policy(arn, customer.read("key-policy.json"))
    assert onboard(ops, folder)["step"] == "registered"


def test_called_before_the_customer_did_anything_it_says_what_is_missing_and_nothing_is_lost(
    ops: Operator, strict_kms: StrictKms, customer: Customer, folder: Path
) -> None:
    begun = onboard(ops, folder, *PLACE)
    assert onboard(ops, folder)["step"] == "handed_over"
    assert onboard(ops, folder)["tenant_uid"] == begun["tenant_uid"]
    assert ops.json("tenant list") == []


def test_a_role_that_is_not_there_yet_is_named(ops: Operator, strict_kms: StrictKms, folder: Path) -> None:
    begun = onboard(ops, folder, *PLACE, "--create-key")
    said = ops.fails("onboard", "acme", "--out", str(folder), "--wait", "0")
    assert begun["provisioning_role"] in said
    assert "documents that were handed over" in said
    assert strict_kms.count("CreateKey") == 0


def test_an_alias_of_another_key_stays_what_it_is(
    ops: Operator, strict_kms: StrictKms, customer: Customer, folder: Path
) -> None:
    customer.make_roles(onboard(ops, folder, *PLACE, "--create-key"))
    client = strict_kms.session(ADMIN).client("kms", "eu-west-1", endpoint_url=strict_kms.endpoint_url)
    other = client.create_key()["KeyMetadata"]["Arn"]
    client.create_alias(AliasName="alias/pii-vault/acme", TargetKeyId=other)
    ops.fails("onboard", "acme", "--out", str(folder), "--wait", "0")
    assert client.describe_key(KeyId="alias/pii-vault/acme")["KeyMetadata"]["Arn"] == other
    assert ops.json("tenant list") == []


def test_a_tag_that_aws_has_not_weighed_yet_is_waited_for(
    ops: Operator, strict_kms: StrictKms, customer: Customer, folder: Path
) -> None:
    customer.make_roles(onboard(ops, folder, *PLACE, "--create-key"))
    strict_kms.script(FaultRule("CreateAlias", error="AccessDeniedException", times=2))
    done = ops.json("onboard", "acme", "--out", str(folder), "--wait", "60")
    assert done["step"] == "registered"
    assert strict_kms.count("CreateAlias") == 3


@pytest.mark.parametrize("call", ["CreateKey", "CreateAlias", "EnableKeyRotation"])
def test_making_the_key_is_taken_up_again_where_it_ended(
    ops: Operator, strict_kms: StrictKms, customer: Customer, folder: Path, call: str
) -> None:
    begun = onboard(ops, folder, *PLACE, "--create-key")
    customer.make_roles(begun)
    strict_kms.script(FaultRule(call, error="AccessDeniedException"))
    assert call in ops.fails("onboard", "acme", "--out", str(folder), "--wait", "0")
    strict_kms.clear_script()
    assert onboard(ops, folder)["step"] == "registered"
    made = strict_kms.count("CreateKey", outcome="ok")
    assert made == 1


def test_of_two_who_make_the_key_at_once_one_says_which_key_is_not_used(
    ops: Operator, strict_kms: StrictKms, customer: Customer, folder: Path
) -> None:
    customer.make_roles(onboard(ops, folder, *PLACE, "--create-key"))
    strict_kms.script(FaultRule("CreateKey", latency=3.5, times=2))
    command = [sys.executable, "-m", "pii_vault", "onboard", "acme", "--out", str(folder), "--json"]
    both = [
        subprocess.Popen(
            command, env=environment(**ops.settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [child.communicate() for child in both]
    assert sorted(child.returncode for child in both) == [0, 1]
    used = json.loads(next(out for out, _ in said if out))["kms_key_arn"]
    refused = next(err for out, err in said if not out)
    assert "is not used" in refused
    assert used not in refused
    assert strict_kms.count("CreateKey", outcome="ok") == 2
    assert onboard(ops, folder)["kms_key_arn"] == used


@pytest.mark.parametrize("call", ["CreateAlias", "EnableKeyRotation", "GenerateDataKey"])
def test_killed_while_it_waits_for_aws_it_goes_on_and_makes_no_second_key(
    ops: Operator, strict_kms: StrictKms, customer: Customer, folder: Path, call: str
) -> None:
    customer.make_roles(onboard(ops, folder, *PLACE, "--create-key"))
    strict_kms.script(FaultRule(call, black_hole=True))
    asked = strict_kms.count(call)
    command = [sys.executable, "-m", "pii_vault", "onboard", "acme", "--out", str(folder)]
    child = subprocess.Popen(command, env=environment(**ops.settings), stderr=subprocess.DEVNULL)
    try:
        while strict_kms.count(call) == asked:
            assert child.poll() is None
            time.sleep(0.02)
    finally:
        child.kill()
        child.wait()
    strict_kms.clear_script()
    assert onboard(ops, folder)["step"] == "registered"
    assert strict_kms.count("CreateKey", outcome="ok") == 1


def test_a_tenant_under_the_platform_s_key_moves_to_its_own_and_keeps_its_values(
    ops: Operator, strict_kms: StrictKms, customer: Customer, folder: Path, local_url: str, make_engine: Any
) -> None:
    ops.run("tenant", "add", "acme")
    before = ops.json("tenant show", "acme")
    begun = onboard(ops, folder, *PLACE)
    assert begun["tenant_uid"] == before["uid"]
    customer.make_roles(begun)
    assert onboard(ops, folder, "--key", customer.make_key())["step"] == "registered"
    after = ops.json("tenant show", "acme")
    assert after["kek_generation"] == before["kek_generation"] + 1
    seals(local_url, strict_kms, ops, make_engine)


def test_what_is_registered_is_not_arranged_anew(
    ops: Operator, strict_kms: StrictKms, customer: Customer, folder: Path
) -> None:
    customer.make_roles(onboard(ops, folder, *PLACE))
    arn = customer.make_key()
    onboard(ops, folder, "--key", arn)
    for other in (("--key", customer.make_key()), PLACE, (*PLACE, "--create-key")):
        said = ops.fails("onboard", "acme", "--out", str(folder), *other)
        assert arn in said
        assert "rewrap" in said
    assert onboard(ops, folder)["kms_key_arn"] == arn


def test_nobody_is_registered_who_was_not_proven(
    ops: Operator, strict_kms: StrictKms, customer: Customer, folder: Path, local_url: str
) -> None:
    customer.make_roles(onboard(ops, folder, *PLACE))
    vault = Vault(local_url, kms=strict_kms.provider(ROLES["rotation"]), platform_key=ops.kms.platform_key)
    onboarding = vault.onboarding("acme")
    onboarding.share_key(customer.make_key())
    with pytest.raises(OnboardingError, match="not proven"):
        onboarding.register()
    assert vault.tenants() == []
    vault.close()


def test_arranged_anew_it_begins_again_with_the_same_identity(ops: Operator, folder: Path) -> None:
    before = onboard(ops, folder, *PLACE)
    after = onboard(ops, folder.with_name("anew"), "--account", US, "--region", "us-east-1", "--create-key")
    assert (after["step"], after["account"], after["way"]) == ("handed_over", US, "created")
    same = ("tenant_uid", "keyset_id", "external_id")
    assert [after[name] for name in same] == [before[name] for name in same]
    assert US in (folder.with_name("anew") / "key-policy.json").read_text()


def test_what_is_proven_once_more_after_registration_stays_registered(
    ops: Operator, strict_kms: StrictKms, customer: Customer, folder: Path, local_url: str
) -> None:
    customer.make_roles(onboard(ops, folder, *PLACE))
    onboard(ops, folder, "--key", customer.make_key())
    vault = Vault(local_url, kms=strict_kms.provider(ROLES["rotation"]), platform_key=ops.kms.platform_key)
    assert not any(each.verdict.is_bad for each in vault.onboarding("acme").prove())
    assert vault.onboarding("acme").record().step == "registered"
    vault.close()


def test_documents_that_somebody_else_hands_over_meanwhile_are_the_same(
    ops: Operator, strict_kms: StrictKms, local_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = Vault(local_url, kms=strict_kms.provider(ROLES["rotation"]), platform_key=ops.kms.platform_key)
    mine, other = vault.onboarding("acme"), vault.onboarding("acme")
    ours = Ours(ROLES["runtime"], ROLES["rotation"])
    mine.begin(way=Way.SHARED, account=CUSTOMER, region="eu-west-1", ours=ours)
    theirs: list[Any] = []

    def between(arranged: Any) -> Any:
        if not theirs:
            theirs.append(None)
            theirs.append(other.documents())
        return documents(arranged)

    monkeypatch.setattr(onboard_module, "documents", between)
    assert mine.documents() == theirs[1]
    assert mine.record().step == "handed_over"
    vault.close()


def test_credentials_that_cannot_be_had_are_named_as_ours(
    ops: Operator, strict_kms: StrictKms, customer: Customer, folder: Path
) -> None:
    customer.make_roles(onboard(ops, folder, *PLACE, "--create-key"))
    said = ops.fails("onboard", "acme", "--out", str(folder), AWS_PROFILE="no-such-profile")
    assert "our own credentials" in said
    assert "unexpected" not in said


def test_two_who_begin_at_once_hand_over_one_identity(ops: Operator, folder: Path) -> None:
    command = [sys.executable, "-m", "pii_vault", "onboard", "acme", *PLACE, "--json"]
    places = [folder / str(number) for number in range(4)]
    children = [
        subprocess.Popen([*command, "--out", str(place)], env=environment(**ops.settings), stdout=subprocess.PIPE)
        for place in places
    ]
    found = [json.loads(child.communicate()[0]) for child in children]
    assert len({(each["tenant_uid"], each["external_id"]) for each in found}) == 1
    assert len({(place / "key-policy.json").read_text() for place in places}) == 1


def test_a_tenant_without_the_feature_is_not_onboarded(ops: Operator, folder: Path) -> None:
    ops.run("tenant", "add", "acme", "--pii-encryption", "off")
    said = ops.fails("onboard", "acme", *PLACE, "--out", str(folder))
    assert "--pii-encryption on" in said
    assert not folder.exists()


def test_a_suspended_tenant_is_not_onboarded(ops: Operator, folder: Path) -> None:
    ops.run("tenant", "add", "acme")
    ops.run("tenant", "suspend", "acme")
    assert "resume it first" in ops.fails("onboard", "acme", *PLACE, "--out", str(folder))
    assert not folder.exists()


def test_what_cannot_be_meant_is_refused_before_anything_is_stored(ops: Operator, folder: Path) -> None:
    for wrong in (
        (),
        ("--account", "123", "--region", "eu-west-1"),
        ("--account", CUSTOMER, "--region", "Frankfurt"),
        ("--key", "alias/my-key"),
        ("--key", f"arn:aws:kms:eu-west-1:{CUSTOMER}:key/{secrets.token_hex(4)}", "--create-key"),
        (*PLACE, "--kms-rotation-days", "30"),
    ):
        done = ops.run(
            "onboard", "acme", *wrong, "--out", str(folder), code=1 if wrong[:1] != ("--key",) and wrong else 2
        )
        assert done.out == ""
    assert not folder.exists()


def test_a_person_is_asked_for_what_is_missing(ops: Operator, tmp_path: Path) -> None:
    shown = ops.terminal(
        "onboard",
        "acme",
        "--out",
        str(tmp_path / "x"),
        question="empty if there is none yet: ",
        answer=f"arn:aws:kms:eu-west-1:{CUSTOMER}:key/0b1f7e52-3c1d-4a0e-9d8e-2f6a7c5b4d31\n",
    )
    assert shown.code == 0, shown
    assert "handed over" in shown.text
    assert (tmp_path / "x" / "key-statements.json").exists()


def test_documents_are_not_written_over_others(ops: Operator, folder: Path) -> None:
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    assert "is there already" in ops.fails("onboard", "acme", *PLACE, "--out", str(folder))
    assert (folder / "README.md").read_text() == "mine"
    begun = onboard(ops, folder.with_name("elsewhere"))
    assert begun["step"] == "handed_over"
