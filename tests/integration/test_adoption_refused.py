"""What an adoption refuses, each with nothing changed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import Engine, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support.adopting import EMAILS, Base, People, next_refused, nothing_changed
from tests.support.postgres import PostgresServer

from pii_vault import EncryptedDate, EncryptedString
from pii_vault.adoption.adopt import Adoption
from pii_vault.errors import AdoptionError, BackfillError, ConfigurationError, KmsDeniedError, PiiVaultError


@pytest.fixture
def people(local_people: People) -> People:
    local_people.add(*EMAILS)
    return local_people


def test_columns_have_to_be_there_and_may_be_null(people: People) -> None:
    people.sql("ALTER TABLE people RENAME COLUMN email_sealed TO elsewhere")
    next_refused(people, AdoptionError, "people has no column 'email_sealed' yet")
    people.sql("ALTER TABLE people ADD COLUMN email_sealed BLOB NOT NULL DEFAULT x'00'")
    next_refused(people, AdoptionError, r"people\.email_sealed may not be NULL")
    people.sql("ALTER TABLE people DROP COLUMN email_sealed")
    people.sql("ALTER TABLE people RENAME COLUMN elsewhere TO email_sealed")
    people.up("added")


def test_a_column_that_goes_meanwhile_is_said(postgres_people: People) -> None:
    people = postgres_people
    people.add(*EMAILS)
    people.up("filled")
    people.sql("ALTER TABLE people DROP COLUMN email_sealed CASCADE")
    assert people.drift[0] == "the sealed column 'email_sealed' is gone"
    with pytest.raises(AdoptionError):
        people.adoption.next()


def test_a_plaintext_that_may_not_be_null_is_said_before_nobody_needs_to_write_it(postgres_people: People) -> None:
    people = postgres_people
    people.add(*EMAILS)
    people.up("switched")
    people.sql("ALTER TABLE people ALTER COLUMN email SET NOT NULL")
    next_refused(people, AdoptionError, r"people\.email may not be NULL")
    people.sql("ALTER TABLE people ALTER COLUMN email DROP NOT NULL")
    people.up("retired")
    people.sql("ALTER TABLE people ALTER COLUMN email SET NOT NULL")
    assert people.drift == ("the plaintext column 'email' may not be NULL, so nobody can write 'email_sealed' alone",)


@pytest.mark.parametrize("stage", ["added", "filled", "verified", "switched", "retired"])
def test_every_tenants_keys_have_to_be_there(people: People, stage: str) -> None:
    people.up(stage)
    vault, kms = people.world.vault, people.world.kms
    kms.disable_key(people.world.keys["acme"])
    vault.evict("acme")
    next_refused(people, KmsDeniedError, "tenant 'acme'")
    kms.enable_key(people.world.keys["acme"])
    vault.suspend("acme")
    next_refused(people, PiiVaultError, "tenant 'acme' is suspended")
    vault.resume("acme")
    people.sql("UPDATE people SET tenant_id = NULL WHERE id = 2")
    next_refused(people, BackfillError, r"belong to nobody whose keys there are: no tenant: 1 \(id = 2\)")
    people.sql("UPDATE people SET tenant_id = 'nobody' WHERE id = 2")
    next_refused(people, BackfillError, r"tenant 'nobody', who is not registered or is erased: 1 \(id = 2\)")


def test_on_the_way_back_to_both_every_tenants_keys_have_to_be_there(people: People) -> None:
    people.up("emptied")
    people.adoption.rollback()
    people.world.kms.disable_key(people.world.keys["acme"])
    people.world.vault.evict("acme")
    with nothing_changed(people, KmsDeniedError, "tenant 'acme'"):
        people.adoption.rollback()


def test_a_column_that_nobody_knows(people: People) -> None:
    vault, options = people.world.vault, {"engine": people.engine, "tenant_column": "tenant_id"}
    with pytest.raises(AdoptionError, match=r"no column adopts 'people\.phone'"):
        vault.adoption("people.phone", metadata=Base.metadata, **options)
    with pytest.raises(AdoptionError, match=r"no column adopts 'people\.email'"):
        vault.adoption("people.email", metadata=MetaData(), **options)
    with nothing_changed(people, ConfigurationError, "nobody says whose rows those of people are"):
        vault.adoption("people.email", metadata=Base.metadata, engine=people.engine).next()
    people.up("added")
    with nothing_changed(people, ConfigurationError, "cannot be looked into|is needed"):
        vault.adoption("people.email", metadata=Base.metadata, engine=people.engine, tenant_column="x").next()
    nobody = vault.adoption("people.email", metadata=MetaData(), **options)
    with nothing_changed(people, ConfigurationError, "the models know no sealed column 'email_sealed'"):
        nobody.next()


def test_models_that_declare_it_otherwise_than_it_was_begun_are_refused(people: People) -> None:
    class Other(DeclarativeBase):
        pass

    class Renamed(Other):
        __tablename__ = "people"
        id: Mapped[int] = mapped_column(primary_key=True)
        email: Mapped[str | None] = mapped_column(String(60))
        email_enc: Mapped[str | None] = mapped_column(EncryptedString().adopting("email"))

    def adoption() -> Adoption:
        return people.world.vault.adoption("people.email", metadata=Other.metadata, engine=people.engine)

    adoption()
    people.up("switched")
    with pytest.raises(ConfigurationError, match="was begun with 'email_sealed' and 'email' of people"):
        adoption()


def test_two_columns_do_not_adopt_the_same(people: People) -> None:
    class Other(DeclarativeBase):
        pass

    class Twice(Other):
        __tablename__ = "people"
        id: Mapped[int] = mapped_column(primary_key=True)
        email: Mapped[str | None] = mapped_column(String(60))
        one: Mapped[str | None] = mapped_column(EncryptedString(context="one").adopting("email"))
        two: Mapped[str | None] = mapped_column(EncryptedString(context="two").adopting("email"))

    with pytest.raises(ConfigurationError, match=r"two columns adopt people\.email"):
        people.world.vault.adoption("one", metadata=Other.metadata, engine=people.engine)


def test_values_that_do_not_fit_are_named_by_key_and_the_others_are_sealed(people: People) -> None:
    class Other(DeclarativeBase):
        pass

    class Row(Other):
        __tablename__ = "people"
        id: Mapped[int] = mapped_column(primary_key=True)
        email: Mapped[date | None]
        email_sealed: Mapped[date | None] = mapped_column(EncryptedDate().adopting("email"))

    people.sql("UPDATE people SET email = '2026-01-31' WHERE id = 2")
    adoption = people.world.vault.adoption(
        "people.email", metadata=Other.metadata, engine=people.engine, tenant_column="tenant_id"
    )
    adoption.next()
    with pytest.raises(BackfillError, match="row with id = 1: ") as caught:
        adoption.next()
    assert EMAILS[0] not in str(caught.value)
    assert adoption.status().stage == "added"
    assert adoption.status().observed.counts.sealed == 1


def test_rows_that_have_only_the_sealed_value_are_named(people: People) -> None:
    people.sql("UPDATE people SET email = NULL, email_sealed = :s WHERE id = 2", s=people.sealed("x"))
    next_refused(people, AdoptionError, "1 rows of people hold 'email_sealed' and no 'email': id = 2")


def test_a_fallback_is_for_a_time_and_only_where_there_is_something_to_fall_back_to(people: People) -> None:
    soon = datetime.now(UTC) + timedelta(days=1)
    with nothing_changed(people, AdoptionError, "is at the stage none, where nothing is to fall back to"):
        people.adoption.allow_fallback(soon)
    people.up("added")
    for wrong in (soon - timedelta(days=2), soon + timedelta(days=90), soon.replace(tzinfo=None)):
        with nothing_changed(people, ConfigurationError, "within 90 days|time zone"):
            people.adoption.allow_fallback(wrong)
    people.adoption.allow_fallback(soon, reason="agreed")
    people.up("verified")
    assert people.adoption.status().fallback_until == soon
    people.adoption.allow_fallback(None)
    assert people.adoption.status().fallback_until is None
    people.adoption.allow_fallback(soon)
    people.up("switched")
    assert people.adoption.status().fallback_until is None
    with nothing_changed(people, AdoptionError, "is at the stage switched"):
        people.adoption.allow_fallback(soon)
    told = [each.details["adoption"] for each in people.world.vault.audit.entries("acme") if "adoption" in each.details]
    assert [each.get("fallback_until", "")[:10] for each in told] == [str(soon)[:10], "", str(soon)[:10], ""]


def test_a_model_that_does_not_declare_it_never_falls_back(people: People) -> None:
    class Other(DeclarativeBase):
        pass

    class Row(Other):
        __tablename__ = "people"
        id: Mapped[int] = mapped_column(primary_key=True)
        email: Mapped[str | None] = mapped_column(String(60))
        email_sealed: Mapped[str | None] = mapped_column(EncryptedString().adopting("email"))

    people.up("added")
    adoption = people.world.vault.adoption(
        "people.email", metadata=Other.metadata, engine=people.engine, tenant_column="tenant_id"
    )
    with nothing_changed(people, ConfigurationError, "does not declare that 'email_sealed' falls back"):
        adoption.allow_fallback(datetime.now(UTC) + timedelta(days=1))


@pytest.mark.parametrize(
    ("grants", "error", "what"),
    [
        ("", ConfigurationError, "InsufficientPrivilege"),
        ("SELECT, UPDATE", ConfigurationError, r"the guard of people\.email cannot be changed: InsufficientPrivilege"),
    ],
)
def test_rights_that_are_missing_are_one_sentence(
    postgres_people: People,
    make_engine: Callable[..., Engine],
    postgres_server: PostgresServer,
    grants: str,
    error: type[PiiVaultError],
    what: str,
) -> None:
    people = postgres_people
    people.add(*EMAILS)
    role = f"clerk_{people.engine.url.database}"
    people.sql(f"CREATE ROLE {role} LOGIN")
    if grants:
        people.sql(f"GRANT {grants} ON people TO {role}")
    mine = people.world.vault.adoption(
        "people.email",
        metadata=Base.metadata,
        engine=make_engine(people.engine.url.set(username=role)),
        tenant_column="tenant_id",
    )
    with nothing_changed(people, error, what):
        mine.next()
    people.sql(f"DROP OWNED BY {role}")
    people.sql(f"DROP ROLE {role}")
