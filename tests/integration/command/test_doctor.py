"""`doctor` in commands: groups, words, JSON, exit codes, and the application that is named to it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select
from tests.support.operator import Operator, StrictKeys, operator
from tests.support.strict_kms import FaultRule, StrictKms

from pii_vault.context import Identity, kms_context
from pii_vault.keystore import KeyStore, schema

APPLICATION = """
import os

from sqlalchemy import String, create_engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from pii_vault import EncryptedString
from pii_vault.config import load


class Base(DeclarativeBase):
    pass


class Patient(Base):
    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str | None] = mapped_column(EncryptedString())


url = os.environ["PII_VAULT_DATABASE_URL"]
vault = load().make_vault()
engine = create_engine(url, hide_parameters=True)
careless = create_engine(url)
aio = create_async_engine(url.replace("sqlite:", "sqlite+aiosqlite:"), hide_parameters=True)
Session = sessionmaker(engine)
AsyncSession = async_sessionmaker(aio)
vault.attach(engine, Session, aio, AsyncSession, tenant_column="tenant_id")
Base.metadata.create_all(engine)
"""


def application_of(ops: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the name of the application's module; `acme` is registered."""
    name = f"doctored_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(APPLICATION, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for variable, value in ops.settings.items():
        monkeypatch.setenv(variable, value)
    ops.run("tenant", "add", "acme", *ops.kms.new_key())
    yield name
    module = sys.modules.pop(name, None)
    if module is not None:
        module.engine.dispose()
        module.careless.dispose()
        module.vault.close()


@pytest.fixture
def app(ops: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The application on either database and KMS."""
    yield from application_of(ops, tmp_path, monkeypatch)


@pytest.fixture
def local_app(local: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The same on SQLite and a local KMS."""
    yield from application_of(local, tmp_path, monkeypatch)


@pytest.fixture
def aws(local_url: str, strict_kms: StrictKms) -> Iterator[Operator]:
    """An operator on SQLite and AWS over HTTP, with `acme` registered."""
    with operator(local_url, StrictKeys(strict_kms)) as made:
        made.run("tenant", "add", "acme", *made.kms.new_key())
        yield made


def narrow(ops: Operator, kms: StrictKms) -> str:
    """Give the key of `acme` the policy that it should have; return its ARN."""
    identity: Identity = KeyStore(ops.engine).load("acme").tenant.identity
    with ops.engine.connect() as connection:
        arn, role = connection.execute(select(schema.keks.c.kms_key_arn, schema.keks.c.role_arn)).one()
    context = kms_context(identity, "kek", 1)
    bound = {name: context[name] for name in ("pii-vault:app", "pii-vault:tenant")}
    kms.put_key_policy(arn, {"Statement": []})
    kms.allow(arn, role, context=bound, context_keys=context)
    return str(arn)


def is_local(ops: Operator) -> bool:
    return ops.settings.get("PII_VAULT_KMS", "").startswith("local:")


def named(app: str, engine: str = "engine", session: str = "Session") -> tuple[str, ...]:
    return ("--metadata", f"{app}:Base", "--engine", f"{app}:{engine}", "--session", f"{app}:{session}")


def test_a_tenant_in_order_exits_with_0(ops: Operator, app: str, request: pytest.FixtureRequest) -> None:
    if not is_local(ops):
        narrow(ops, request.getfixturevalue("strict_kms"))
    found = ops.json("doctor", "acme", *named(app))
    assert {each["verdict"] for each in found} <= {"passed", "info", "not_checked"}
    assert [each["group"] for each in found] == sorted(
        (each["group"] for each in found), key=["must_work", "must_be_denied", "our_side"].index
    )
    rows = ops.rows("doctor", "acme", *named(app))
    assert rows == [
        [each["group"], each["check"], each["verdict"], each["finding"], each["change"] or ""] for each in found
    ]


def test_a_policy_that_is_too_wide_exits_with_1(aws: Operator) -> None:
    found = {each["check"]: each for each in aws.json("doctor", "acme", code=1)}
    assert [name for name, each in found.items() if each["verdict"] == "failed"] == [
        *("other-tenant", "other-application", "no-context", "additional-entry", "missing-entry")
    ]
    assert "kms:EncryptionContext:pii-vault:tenant" in found["other-tenant"]["change"]


def test_a_kms_that_does_not_answer_exits_with_1(aws: Operator, strict_kms: StrictKms) -> None:
    narrow(aws, strict_kms)
    strict_kms.script(FaultRule("CreateGrant", error="ThrottlingException", times=None))
    found = {each["check"]: each["verdict"] for each in aws.json("doctor", "acme", code=1)}
    assert found["create-grant"] == "not_made"
    assert "failed" not in found.values()


def test_a_policy_that_comes_to_be_is_waited_for(aws: Operator, strict_kms: StrictKms) -> None:
    narrow(aws, strict_kms)
    strict_kms.script(FaultRule("GenerateDataKey", error="AccessDeniedException", times=1))
    assert aws.run("doctor", "acme", "--wait", "30").out.count("failed") == 0
    strict_kms.script(FaultRule("GenerateDataKey", error="AccessDeniedException", times=1))
    assert aws.run("doctor", "acme", code=1).out.count("failed") == 1


def test_what_is_careless_in_the_application_exits_with_1(local: Operator, local_app: str) -> None:
    found = {each["check"]: each for each in local.json("doctor", "acme", *named(local_app, "careless"), code=1)}
    assert {name for name, each in found.items() if each["verdict"] == "failed"} == {"engine", "hide-parameters"}


def test_asynchronous_engines_and_sessions_can_be_named(local: Operator, local_app: str) -> None:
    found = local.json("doctor", "acme", *named(local_app, "aio", "AsyncSession"))
    assert {each["verdict"] for each in found} <= {"passed", "info", "not_checked"}


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--engine", "engine", "is not of the form module:name"),
        ("--engine", "nowhere:engine", "cannot be imported"),
        ("--engine", "{app}:Base", "is no engine"),
        ("--engine", "{app}:missing", "is no engine"),
        ("--session", "{app}:engine", "is neither a Session class nor a sessionmaker"),
        ("--metadata", "{app}:engine", "is neither a declarative base nor a MetaData"),
    ],
)
def test_what_is_named_wrongly_is_one_line(local: Operator, local_app: str, option: str, value: str, says: str) -> None:
    assert says in local.fails("doctor", "acme", option, value.format(app=local_app))


def test_a_terminal_shows_groups_words_and_signs(local: Operator, local_app: str) -> None:
    shown = local.terminal("doctor", "acme", COLUMNS="160")
    assert shown.code == 0
    heads = ("What must work", "What must be denied", "Our side")
    places = [shown.text.index(head) for head in heads]
    assert places == sorted(places)
    for word in ("✓ passed", "· info", "- not checked"):
        assert word in shown.text


def test_a_terminal_shows_what_to_change(local: Operator, local_app: str) -> None:
    shown = local.terminal("doctor", "acme", *named(local_app, "careless"), COLUMNS="80")
    assert shown.code == 1
    assert "✗ FAILED" in shown.text
    changes = shown.text.partition("Our side")[2].partition("To change:\n")[2].splitlines()
    assert "hide-parameters: create_engine(…, hide_parameters=True)" in changes


def test_nobody_of_that_name_is_one_line(local: Operator) -> None:
    assert "nobody" in local.fails("doctor", "nobody")
