"""docs/command.md names every command, and says of each whom it asks."""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support.command import commands, pii_vault_here
from tests.support.strict_kms import StrictKms

from pii_vault import EncryptedString
from pii_vault.context import kms_context
from pii_vault.keystore import KeyStore
from pii_vault.kms import KmsKey

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "command.md").read_text("utf-8")


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(EncryptedString(index=True))


class Contact(Base):
    __tablename__ = "contacts"
    id: Mapped[int] = mapped_column(primary_key=True)
    phone: Mapped[str | None]
    phone_sealed: Mapped[str | None] = mapped_column(EncryptedString().adopting("phone", falls_back=True))


def test_the_page_names_every_command_and_no_other() -> None:
    names = re.findall(r"^\| `([a-z ]+?)(?: [A-Z]+)*` \|", PAGE.partition("## Exit codes")[0], re.MULTILINE)
    assert sorted(names) == sorted(commands())


def test_the_page_writes_the_arguments_that_a_command_needs() -> None:
    for name, command in commands().items():
        needed = [each.metavar for each in command.params if each.param_type_name == "argument" and each.required]
        assert f"| `{' '.join([name, *needed])}` |" in PAGE, name


def test_other_commands_of_the_page_exist_too() -> None:
    words = {name.split()[0] for name in commands()}
    named = {each for each in re.findall(r"`([^`]+)`", PAGE) if each.split()[0] in words}
    for each in named:
        name = re.sub(r" (--|[A-Z]).*", "", each)
        assert name in commands(), each
        options = {option for param in commands()[name].params for option in param.opts}
        assert set(re.findall(r"--[a-z-]+", each)) <= options, each


def _narrow(kms: StrictKms, key: KmsKey, url: str) -> None:
    """Let the key's policy take the tenant's context only, as `doctor` wants it."""
    engine = create_engine(url)
    identity = KeyStore(engine).load("acme").tenant.identity
    engine.dispose()
    context = kms_context(identity, "kek", 1)
    kms.put_key_policy(key.arn, {"Statement": []})
    bound = {name: context[name] for name in ("pii-vault:app", "pii-vault:tenant")}
    kms.allow(key.arn, str(key.role_arn), context=bound, context_keys=context)


def test_every_command_asks_whom_the_page_says(
    strict_kms: StrictKms,
    tmp_path: Path,
) -> None:
    asked: dict[str, tuple[set[str], set[str]]] = {}
    own, platform = strict_kms.customer_key(multi_region=True), strict_kms.platform_key()
    url = f"sqlite:///{tmp_path / 'keys.sqlite3'}"
    settings = {"PII_VAULT_DATABASE_URL": url, "PII_VAULT_PLATFORM_KEY": platform, **strict_kms.environment()}

    def run(command: str, *options: str, name: str = "") -> None:
        with strict_kms.counting() as calls:
            done = pii_vault_here(*command.split(), *options, **settings)
        assert (done.code, done.err) == (0, ""), command
        customers, ours = asked.setdefault(name or re.sub(r" (--|acme).*", "", command), (set(), set()))
        for call in calls.calls:
            actions = {"ReEncrypt": {"ReEncryptFrom", "ReEncryptTo"}}.get(call.operation, {call.operation})
            (ours if call.key == platform else customers).update(actions - {"AssumeRole"})

    role = ("--role-arn", str(own.role_arn), "--external-id", str(own.external_id))
    run("db upgrade")
    run("tenant add acme", "--key", own.arn, *role)
    run("tenant set acme --rotation-days 80")
    run("tenant set acme --follow-kms")
    strict_kms.replicate(own.arn, "eu-central-1")
    run("tenant set acme --replica-regions eu-central-1")
    for command in ("tenant suspend acme", "tenant resume acme", "tenant list", "tenant show acme", "key list acme"):
        run(command)
    run("key validate acme")
    run("report acme")
    _narrow(strict_kms, own, url)
    run("doctor acme")
    run("key rotate acme")
    strict_kms.rotate(own.arn)
    run("rotate --due")
    run("rewrap acme --dry-run")
    run("rewrap acme")
    run("rewrap acme --new-kek", name="rewrap --new-kek")
    models = ("--metadata", f"{__name__}:Base")
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO contacts (phone) VALUES ('555-1234')"))
    engine.dispose()
    run("coverage", *models)
    run("index status acme", *models)
    run("index build acme", *models)
    run("index rotate acme", *models)
    run("reencrypt acme", *models)
    run("index drop acme people.email 0")
    adopted = ("contacts.phone", *models, "--tenant", "acme")
    run("adopt next", *adopted)
    run("adopt fallback", *adopted, "--end")
    for _ in ("filled", "verified", "switched", "retired"):
        run("adopt next", *adopted, "--quiet", "0")
    run("adopt rollback", *adopted)
    run("adopt status", *models)
    run("index plan --rows 50000")
    strict_kms.allow(own.arn, str(own.role_arn), actions=["kms:ListKeyRotations", "kms:EnableKeyRotation"])
    run("kms history acme")
    run("kms rotation acme")
    run("kms rotation acme --every 120", *role)
    run("key deactivate acme")
    run("key compromise acme 1 --yes")
    for command in (
        "audit log acme",
        "audit verify",
        "audit anchor",
        "db check",
        "db current",
        "kms cost --processes 2",
    ):
        run(command)
    run("tenant erase acme --yes")
    log = {"Decrypt"}
    said: dict[str, tuple[set[str], set[str]]] = {}
    section = PAGE.partition("## What it asks the KMS")[2].partition("\n## ")[0]
    for cells in re.findall(r"^\| (`.*?) \|(.*?)\|(.*?)\|$", section, re.MULTILINE):
        customers, ours = ({*re.findall(r"`kms:(\w+)`", cell)} for cell in cells[1:])
        for name in re.findall(r"`(.+?)`", cells[0]):
            said[name] = (customers, ours | (log if cells[2].strip() == "log" else set()))
    destroyed = said.pop("key destroy")
    assert destroyed == said["key compromise"]
    assert asked["tenant add"][1] == {"Decrypt", "GenerateDataKey"}
    asked["tenant add"][1].remove("GenerateDataKey")  # the first change of all, as the page says below the table
    silent = (set(), set())
    assert {name: found for name, found in asked.items() if found != silent} == said
