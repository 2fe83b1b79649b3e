"""A tenant's life in commands: registered, changed, rotated, ended, with every output searched for secrets."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text, update
from tests.support.operator import PASSWORD, Operator
from tests.support.strict_kms import StrictKms

from pii_vault import Vault
from pii_vault.config import load
from pii_vault.errors import TenantSuspendedError
from pii_vault.keystore.schema import keys

CHECKS = [
    *("kms-key-exists", "kms-key-enabled", "kms-key-usage", "kms-key-owner", "kms-unwrap", "kms-wrong-context"),
    *("record-stored", "version-follows", "key-commitment", "activation-proof", "key-is-new", "canary", "kms-role"),
]

APPLICATION = """
from sqlalchemy import String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pii_vault import EncryptedString


class Base(DeclarativeBase):
    pass


class Patient(Base):
    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str] = mapped_column(EncryptedString())
    phone: Mapped[str | None] = mapped_column(EncryptedString())


class nothing:
    here = 3
"""


def test_a_tenants_life_in_commands(ops: Operator) -> None:
    key = ops.kms.new_key()
    said = ops.run("tenant", "add", "acme", *key, "--rotation-days", "90").out
    assert re.fullmatch(r"tenant acme is registered, keyset [0-9a-f]{8}\n", said)
    assert ops.run("tenant", "add", "acme", *key).out == said

    acme = ops.json("tenant show", "acme")
    assert (acme["kms_key_arn"], acme["rotation_days"], acme["follows_kms"]) == (key[1], 90, False)
    assert (acme["key_version"], acme["key_versions"], acme["suspended"], acme["kek_generation"]) == (1, 1, False, 1)
    assert acme["role_arn"] == (key[3] if len(key) > 2 else None)
    (listed,) = ops.json("tenant list")
    assert listed.items() <= acme.items()

    found = ops.json("key validate", "acme")
    assert [(each["check"], each["passed"]) for each in found] == [(check, True) for check in CHECKS]
    assert ops.run("key", "rotate", "acme").out == (
        "tenant acme seals with data key version 2; earlier versions still open\n"
    )
    rotated = ops.json("key rotate", "acme", "--compromised")
    found = {name: rotated[name] for name in ("tenant", "version", "previous_version", "reason", "made")}
    expected = {"tenant": "acme", "version": 3, "previous_version": 2, "reason": "compromised", "made": True}
    assert found == expected
    assert [(each["version"], each["state"], each["reason"]) for each in ops.json("key list", "acme")] == [
        (1, "deactivated", "initial"),
        (2, "deactivated", "forced"),
        (3, "active", "compromised"),
    ]

    ended = ops.json("key deactivate", "acme", "--reason", "INC-7")
    assert (ended["version"], ended["state"], ended["tenant"]) == (3, "deactivated", "acme")
    assert "no active data key" in ops.fails("key", "deactivate", "acme")
    assert "no active data key" in ops.fails("key", "validate", "acme")
    stopped = ops.json("tenant show", "acme")
    assert (stopped["key_version"], stopped["due_at"], stopped["uses"]) == (None, None, None)
    assert "none of 3 is active: nothing is sealed" in ops.run("tenant", "show", "acme").out
    assert ops.json("key compromise", "acme", "2", "--yes")["state"] == "compromised"
    assert "is compromised and cannot become compromised" in ops.fails("key", "compromise", "acme", "2", "--yes")
    assert ops.json("key rotate", "acme")["previous_version"] is None
    assert ops.json("tenant show", "acme")["key_version"] == 4

    events = [(each["actor"], each["event"], each["reason"]) for each in ops.json("audit log", "acme")]
    assert {actor for actor, _, _ in events} == {"ops@example.com"}
    assert [each[1:] for each in events] == [
        ("tenant.added", None),
        *(("key.created", "initial"), ("key.activated", "initial")),
        *(("key.created", "forced"), ("key.activated", "forced")),
        *(("key.created", "compromised"), ("key.activated", "compromised")),
        ("key.deactivated", "INC-7"),
        ("key.compromised", None),
        *(("key.created", "forced"), ("key.activated", "forced")),
    ]
    assert ops.json("audit verify") == [{"tenant": "acme", "entries": 11, "first_bad": None, "problems": []}]


def test_a_tenant_without_a_key_lies_under_the_platforms(ops: Operator) -> None:
    said = ops.run("tenant", "add", "acme", "--follow-kms").out
    assert said.endswith(", under the platform's KMS key\n")
    assert ops.json("tenant add", "glob")["kms_key_arn"] == ops.kms.platform_key
    acme = ops.json("tenant show", "acme")
    assert (acme["kms_key_arn"], acme["follows_kms"]) == (ops.kms.platform_key, True)


def test_a_kms_key_is_one_customers_unless_it_is_said_to_be_shared(local: Operator) -> None:
    key = local.kms.new_key()
    local.run("tenant", "add", "acme", *key)
    assert "--shared-key" in local.fails("tenant", "add", "acme two", *key)
    assert [each["name"] for each in local.json("tenant list")] == ["acme"]
    local.run("tenant", "add", "acme two", *key, "--shared-key")
    assert {each["kms_key_arn"] for each in local.json("tenant list")} == {key[1]}


def test_a_changed_period_moves_the_day_on_which_the_key_is_due(ops: Operator) -> None:
    key = ops.kms.new_key()
    ops.run("tenant", "add", "acme", *key)

    def days() -> int:
        (found,) = ops.json("key list", "acme")
        return round((_time(found["due_at"]) - _time(found["activated_at"])) / timedelta(days=1))

    assert days() == 365
    assert ops.json("tenant set", "acme", "--rotation-days", "30")["rotation_days"] == 30
    assert days() == 30
    ops.kms.set_rotation_period(key[1], 120)
    said = ops.run("tenant", "set", "acme", "--follow-kms").out
    assert re.fullmatch(r"tenant acme is rotated as often as its KMS key, next on \d{4}-\d\d-\d\d\n", said)
    assert (days(), ops.json("tenant show", "acme")["rotation_days"]) == (120, 30)
    assert ops.run("tenant", "set", "acme", "--no-follow-kms").out.startswith("tenant acme is rotated every 30 days,")
    assert days() == 30
    assert ops.run("tenant", "set", "acme", "--rotation-days", "default").out.startswith(
        "tenant acme is rotated by default, next on "
    )
    assert days() == 365
    ops.run("key", "deactivate", "acme")
    said = ops.run("tenant", "set", "acme", "--rotation-days", "7").out
    assert said == "tenant acme is rotated every 7 days, but has no active data key now\n"


def test_how_long_keys_are_held_is_agreed_and_they_are_forgotten_on_request(ops: Operator) -> None:
    ops.run("tenant", "add", "acme", *ops.kms.new_key())
    held = ops.json("tenant show", "acme")
    assert (held["ttl_seconds"], held["grace_seconds"]) == (None, None)
    for options, said, terms in (
        (["--ttl", "60", "--grace", "30"], "for 60 s, in an outage 30 s more", (60, 30)),
        (["--ttl", "60"], "for 60 s", (60, 0)),
        (["--ttl", "0"], "for one scope: its KMS is asked in each", (0, 0)),
        (["--ttl", "default"], "as long as the vault's ttl says", (None, None)),
    ):
        assert ops.run("tenant", "set", "acme", *options).out == f"tenant acme: keys are held {said}\n"
        held = ops.json("tenant show", "acme")
        assert (held["ttl_seconds"], held["grace_seconds"]) == terms
        assert re.search(rf"^keys held +{re.escape(said)}$", ops.run("tenant", "show", "acme").out, re.MULTILINE)
    both = ops.run("tenant", "set", "acme", "--ttl", "60", "--rotation-days", "30").out
    assert re.fullmatch(
        r"tenant acme: keys are held for 60 s; tenant acme is rotated every 30 days, next on .+\n", both
    )
    assert "--grace belongs to --ttl" in ops.fails("tenant", "set", "acme", "--grace", "5", code=2)
    assert "--ttl is a number of seconds" in ops.fails("tenant", "set", "acme", "--ttl", "-1", code=2)
    assert "both together at most 43200 s" in ops.fails("tenant", "set", "acme", "--ttl", "43200", "--grace", "1")
    assert ops.json("key evict", "acme") == {"tenant": "acme", "within_seconds": 5}
    assert "no tenant 'nobody' is registered" in ops.fails("key", "evict", "nobody")
    assert ops.json("audit verify", "acme")[0]["problems"] == []


def test_a_suspended_tenant_is_dark_until_it_is_resumed(local: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    local.run("tenant", "add", "acme", *local.kms.new_key())
    for name, value in local.settings.items():
        monkeypatch.setenv(name, value)
    vault = load(ttl=0).make_vault()
    assert local.run("tenant", "suspend", "acme", "--reason", "INC-8").out == "tenant acme is suspended\n"
    with pytest.raises(TenantSuspendedError):
        open_scope(vault)
    assert local.run("tenant", "suspend", "acme").out == "tenant acme was suspended already\n"
    assert local.rows("tenant", "list")[0][1] == "suspended"
    assert "is suspended (resume it first)" in local.fails("key", "rotate", "acme")
    assert local.json("tenant resume", "acme")["suspended"] is False
    open_scope(vault)
    assert local.run("tenant", "resume", "acme").out == "tenant acme was not suspended\n"
    vault.close()


def test_rotations_of_the_kms_key_are_shown_and_set(ops: Operator) -> None:
    key = ops.kms.new_key()
    ops.run("tenant", "add", "acme", *key)
    ops.kms.rotate(key[1])
    ops.run("key", "rotate", "acme")
    shown = ops.json("kms history", "acme")
    ours = ["wrapped", "data_key_made", "data_key_made"]
    is_seen = shown["rotations_unseen_because"] is None
    found = [each["what"] for each in shown["events"]]
    assert found == ([*ours[:2], "kms_key_rotated", ours[2]] if is_seen else ours)
    done = ops.run("kms", "history", "acme")
    assert ("are not to be seen" in done.err) is not is_seen
    assert "Our own data key, version 2: somebody asked for it." in done.out
    ops.kms.set_rotation_period(key[1], 120)
    found = ops.json("kms rotation", "acme")
    assert (found["rotation_days"], found["changed"], found["last_at"] is None) == (120, False, not is_seen)
    assert re.search(r"^rotates +every 120 days$", ops.run("kms", "rotation", "acme").out, re.MULTILINE)
    assert "every 90 to 2560 days, not every 89" in ops.fails("kms", "rotation", "acme", "--every", "89")
    assert "belong to --every" in ops.fails("kms", "rotation", "acme", "--role-arn", "arn:aws:iam::1:role/x", code=2)


def test_the_development_kms_is_told_how_often_a_key_rotates(local: Operator) -> None:
    key = local.kms.new_key()
    local.run("tenant", "add", "acme", *key)
    assert local.json("kms rotation", "acme", "--every", "90")["rotation_days"] == 90
    assert "has no role to assume" in local.fails(
        "kms", "rotation", "acme", "--every", "90", "--role-arn", "arn:aws:iam::111122223333:role/x"
    )


def test_whoever_may_says_how_often_the_kms_key_rotates(aws: Operator, strict_kms: StrictKms) -> None:
    own = aws.kms.new_key()
    aws.run("tenant", "add", "glob", *own)
    lent = "arn:aws:iam::111122223333:role/lent"
    strict_kms.register_role(lent, external_id="lent-id")
    role = ("--role-arn", lent, "--external-id", "lent-id")
    assert "AccessDeniedException" in aws.fails("kms", "rotation", "glob", "--every", "400", *role)
    strict_kms.allow(own[1], lent, actions=["kms:EnableKeyRotation"])
    found = aws.json("kms rotation", "glob", "--every", "400", *role)
    assert (found["rotation_days"], found["changed"]) == (400, True)
    assert found["next_at"] is not None


def test_replicas_are_named_and_taken_back(aws: Operator, strict_kms: StrictKms) -> None:
    own = strict_kms.customer_key(multi_region=True)
    for region in ("eu-central-1", "us-east-1"):
        strict_kms.replicate(own.arn, region)
    key = ["--key", own.arn, "--role-arn", str(own.role_arn), "--external-id", str(own.external_id)]
    aws.run("tenant", "add", "acme", *key, "--replica-regions", "us-east-1")
    assert aws.json("tenant show", "acme")["replica_regions"] == ["us-east-1"]
    said = aws.run("tenant", "set", "acme", "--replica-regions", "eu-central-1, us-east-1", "--reason", "INC-3").out
    where = "eu-central-1, then us-east-1"
    assert said == f"tenant acme: keys are unwrapped in {where} while the KMS key's region is unavailable\n"
    assert aws.json("tenant show", "acme")["replica_regions"] == ["eu-central-1", "us-east-1"]
    assert re.search(rf"^replicas +keys are unwrapped in {where}", aws.run("tenant", "show", "acme").out, re.MULTILINE)
    assert "named twice" in aws.fails("tenant", "set", "acme", "--replica-regions", "eu-west-1")
    assert aws.run("tenant", "set", "acme", "--replica-regions", "none").out.startswith("tenant acme: none:")
    assert aws.json("tenant show", "acme")["replica_regions"] == []
    assert "belongs to --to" in aws.fails("rewrap", "acme", "--replica-regions", "us-east-1", code=2)
    assert "belong to --key" in aws.fails("tenant", "add", "x", "--replica-regions", "us-east-1", code=2)


def test_pii_encryption_is_a_feature_that_a_tenant_has_or_has_not(local: Operator) -> None:
    said = local.run("tenant", "add", "acme", *local.kms.new_key(), "--pii-encryption", "off").out
    assert re.fullmatch(r"tenant acme is registered, keyset [0-9a-f]{8}; PII encryption is off for it\n", said)
    found = local.json("tenant show", "acme")
    assert (found["pii_encryption"], found["suspended"], found["key_version"]) == (False, False, 1)
    shown = local.run("tenant", "show", "acme").out
    assert re.search(r"^PII encryption +off: neither seals nor opens$", shown, re.MULTILINE)
    assert local.rows("tenant", "list")[0][1] == "off"
    refusal = "PII encryption is not on for tenant 'acme' (pii-vault tenant set acme --pii-encryption on)"
    assert refusal in local.fails("key", "rotate", "acme")
    local.run("tenant", "suspend", "acme")
    assert local.rows("tenant", "list")[0][1] == "suspended"
    assert "is suspended (resume it first)" in local.fails("key", "rotate", "acme")
    local.run("tenant", "resume", "acme")
    assert refusal in local.fails("key", "rotate", "acme")
    said = local.run("tenant", "set", "acme", "--pii-encryption", "on", "--reason", "order 7").out
    assert said == "tenant acme: PII encryption is on\n"
    assert local.rows("tenant", "list")[0][1] == "in use"
    assert local.json("tenant list")[0]["pii_encryption"] is True
    assert [row[3:] for row in local.rows("audit", "log", "acme")][-1][:1] == ["tenant.changed"]
    assert "order 7" in local.run("audit", "log", "acme").out
    local.run("key", "rotate", "acme")
    assert local.json("audit verify", "acme")[0]["problems"] == []
    assert "'maybe' is not one of" in local.fails("tenant", "set", "acme", "--pii-encryption", "maybe", code=2)
    assert "belongs to --pii-encryption" in local.fails("tenant", "set", "acme", "--reason", "x", "--ttl", "1", code=2)


def open_scope(vault: Vault) -> None:
    with vault.tenant("acme"):
        pass


def test_validate_names_the_checks_that_do_not_pass(ops: Operator) -> None:
    key = ops.kms.new_key()
    ops.run("tenant", "add", "acme", *key)
    ops.kms.disable(key[1])
    table = ops.rows("key", "validate", "acme", code=1)
    results = {check: result for check, result, _ in table}
    assert list(results) == CHECKS
    assert {check for check, result in results.items() if result == "FAILED"} >= {"kms-key-enabled", "kms-unwrap"}
    assert results["key-commitment"] == results["canary"] == "not made"
    assert results["record-stored"] == results["version-follows"] == "ok"
    assert {each["check"]: each["passed"] for each in ops.json("key validate", "acme", code=1)} == {
        check: {"ok": True, "FAILED": False, "not made": None}[result] for check, result in results.items()
    }
    ops.kms.enable(key[1])
    assert {row[1] for row in ops.rows("key", "validate", "acme")} == {"ok"}


def test_validate_finds_a_key_record_that_was_changed(local: Operator) -> None:
    local.run("tenant", "add", "acme")
    local.alter(update(keys).values(commitment=bytes(32)))
    failed = {check for check, result, _ in local.rows("key", "validate", "acme", code=1) if result == "FAILED"}
    assert failed == {"key-commitment", "activation-proof"}


def test_ending_a_key_works_after_the_customer_has_shut_its_kms_key(ops: Operator, tmp_path: Path) -> None:
    key = ops.kms.new_key()
    ops.run("tenant", "add", "acme", *key)
    ops.kms.disable(key[1])
    assert "DisabledException" in ops.fails("key", "rotate", "acme")
    ops.run("tenant", "suspend", "acme")
    ops.run("tenant", "resume", "acme")
    ops.run("key", "deactivate", "acme")
    ops.run("key", "compromise", "acme", "1", "--yes")
    events = [each["event"] for each in ops.json("audit log", "acme", "--after", "3")]
    assert events == ["kms.refused", "tenant.suspended", "tenant.resumed", "key.deactivated", "key.compromised"]


@pytest.fixture
def application(ops: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The application's models as a module in the working folder, with two sealed rows; its name."""
    name = f"application_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(APPLICATION, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for variable, value in ops.settings.items():
        monkeypatch.setenv(variable, value)
    models = __import__(name)
    ops.run("tenant", "add", "acme", *ops.kms.new_key())
    vault = load().make_vault()
    engine = create_engine(ops.settings["PII_VAULT_DATABASE_URL"])
    vault.attach(engine)
    models.Base.metadata.create_all(engine)
    with vault.tenant("acme"), engine.begin() as connection:
        rows = [{"tenant_id": "acme", "email": f"{each}@example.com", "phone": None} for each in "ab"]
        connection.execute(models.Patient.__table__.insert(), [*rows, {**rows[0], "phone": "555-1234"}])
    vault.close()
    engine.dispose()
    ops.secrets.add("555-1234")
    yield f"{name}:Base"
    del sys.modules[name]


def test_a_key_is_destroyed_when_nothing_that_it_sealed_is_left_and_a_day_has_passed(
    ops: Operator, application: str
) -> None:
    destroy = ("key", "destroy", "acme", "1", "--metadata", application)
    assert "is active and cannot become destroyed (rotate the tenant first)" in ops.fails(*destroy, "--yes")
    ops.run("key", "rotate", "acme")
    assert "was taken out of use at" in ops.fails(*destroy, "--yes")
    ended_two_days_ago(ops)
    told = ops.fails(*destroy, "--yes")
    assert "still holds 4 values: 3 in patients.email, 1 in patients.phone" in told
    assert "still holds 4 values" in ops.fails(*destroy, "--dry-run")

    ops.alter(text("DELETE FROM patients"))
    planned = ops.json("key destroy", *destroy[2:], "--dry-run")
    arn = ops.json("tenant show", "acme")["kms_key_arn"]
    assert (planned["dry_run"], planned["state"], planned["backup_kms_keys"]) == (True, "deactivated", [arn])
    assert f"Backups of it from before have the data key, and open with KMS key {arn} until" in planned["promise"]
    assert ops.run(*destroy, "--dry-run").out == (
        "data key version 1 of tenant acme has sealed nothing that is left, and can be destroyed\n"
        f"{planned['promise']}\n"
    )
    assert "give --yes" in ops.fails(*destroy, code=2)
    assert ops.json("key list", "acme")[0]["state"] == "deactivated"
    assert ops.json("key destroy", *destroy[2:], "--dry-run")["destroyed_at"] is None

    said = ops.process(*destroy, "--yes", "--reason", "INC-9").out
    assert said.startswith("data key version 1 of tenant acme is destroyed in the live key store, ")
    assert said.endswith(f"\n{planned['promise']}\n")
    first, second = ops.json("key list", "acme")
    assert (first["state"], second["state"]) == ("destroyed", "active")
    assert first["destroyed_at"] is not None
    assert "is destroyed and cannot become destroyed" in ops.fails(*destroy, "--yes")
    (entry,) = [each for each in ops.json("audit log", "acme") if each["event"] == "key.destroyed"]
    assert entry["reason"] == "INC-9"


def test_the_values_are_counted_in_the_applications_database_if_that_is_another(
    ops: Operator, application: str, tmp_path: Path
) -> None:
    ops.run("key", "rotate", "acme")
    ended_two_days_ago(ops)
    elsewhere = f"sqlite:///{tmp_path / 'app.sqlite3'}"
    destroy = ("key", "destroy", "acme", "1", "--yes", "--metadata", application)
    told = ops.fails(*destroy, "--application-url", elsewhere)
    assert "table 'patients' cannot be read" in told
    assert PASSWORD not in told
    engine = create_engine(elsewhere)
    sys.modules[application.partition(":")[0]].Base.metadata.create_all(engine)
    engine.dispose()
    assert "still holds" in ops.fails(*destroy)
    ops.run(*destroy, "--dry-run", PII_VAULT_APPLICATION_URL=elsewhere)
    ops.run(*destroy, "--application-url", elsewhere)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("{module}", "is not of the form module:name (--metadata app.models:Base)"),
        ("{module}:", "is not of the form module:name"),
        (":Base", "is not of the form module:name"),
        ("{module}:Nothing", "is neither a declarative base nor a MetaData"),
        ("{module}:nothing.here", "is neither a declarative base nor a MetaData"),
        ("no.such.module:Base", "module 'no.such.module' cannot be imported: ModuleNotFoundError"),
        ("broken:Base", "module 'broken' cannot be imported: RuntimeError"),
        ("pii_vault.keystore.schema:metadata", "the metadata holds no encrypted column"),
    ],
)
def test_tables_that_cannot_be_found_are_one_line(
    local: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, reason: str
) -> None:
    local.run("tenant", "add", "acme")
    local.run("key", "rotate", "acme")
    ended_two_days_ago(local)
    module = f"models_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(APPLICATION, "utf-8")
    (tmp_path / "broken.py").write_text(f"raise RuntimeError({PASSWORD!r})\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    destroy = ("key", "destroy", "acme", "1", "--yes", "--metadata", place.format(module=module))
    assert reason in local.fails(*destroy)


def ended_two_days_ago(ops: Operator) -> None:
    """Let the first key have been taken out of use the day before yesterday."""
    ended = datetime.now(UTC) - timedelta(days=2)
    ops.alter(update(keys).where(keys.c.version == 1).values(deactivated_at=ended))


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
