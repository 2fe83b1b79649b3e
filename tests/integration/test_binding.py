"""A sealed value opens in its own tenant's own column, unchanged, and nowhere else."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, LargeBinary, MetaData, String, Table, event, insert, select, text, update
from sqlalchemy.orm import Session
from tests.support.shared_world import emptied, shared_world
from tests.support.world import World

from pii_vault import (
    EncryptedArray,
    EncryptedBoolean,
    EncryptedBytes,
    EncryptedDate,
    EncryptedDateTime,
    EncryptedFloat,
    EncryptedInteger,
    EncryptedJSON,
    EncryptedNumeric,
    EncryptedString,
    EncryptedTime,
    EncryptedType,
    EncryptedUUID,
    Vault,
)
from pii_vault.encoding import REGISTRY
from pii_vault.errors import (
    CodecMismatchError,
    ConfigurationError,
    ForeignValueError,
    FormatError,
    KeyNotFoundError,
    NotEncryptedError,
    OpenError,
    ScopeError,
)

Build = Callable[..., World]

metadata = MetaData()
people = Table(
    "people",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant_id", String(40)),
    Column("email", EncryptedString()),
    Column("phone", EncryptedString()),
    Column("photo", EncryptedBytes()),
    Column("amount", EncryptedInteger()),
)
members = Table(
    "members",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant_id", String(40)),
    people.c.email._copy(),
)
# The table as the database sees it.
stored = Table(
    "people",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("tenant_id", String(40)),
    *(Column(name, LargeBinary) for name in ("email", "phone", "photo", "amount")),
)

Processor = Callable[[Any], Any]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def everybody_s_world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with shared_world(request, tmp_path_factory, metadata) as made:
        yield made


@pytest.fixture
def world(everybody_s_world: World) -> Iterator[World]:
    with emptied(everybody_s_world, metadata) as made:
        yield made


def processors(world: World, column: Column[Any]) -> tuple[Processor, Processor]:
    """What SQLAlchemy seals and opens a column's values with."""
    dialect = world.engine.dialect
    seal: Any = column.type.bind_processor(dialect)
    open_: Any = column.type.result_processor(dialect, None)
    return seal, open_


def put(world: World, row: int, **values: Any) -> None:
    """Write past the vault, as somebody with the database's password can."""
    with world.engine.begin() as connection:
        connection.execute(update(stored).where(stored.c.id == row).values(**values))


def raw(world: World, row: int, column: str = "email") -> bytes:
    with world.engine.connect() as connection:
        return bytes(connection.scalar(select(stored.c[column]).where(stored.c.id == row)))  # type: ignore[arg-type]


def read(world: World, row: int, column: Column[Any] = people.c.email, tenant: str = "acme") -> Any:
    with world.session(tenant) as session:
        return session.scalar(select(column).where(column.table.c.id == row))


def write(world: World, tenant: str = "acme", **row: Any) -> None:
    with world.session(tenant) as session:
        session.execute(insert(people), {"tenant_id": tenant, **row})


@contextmanager
def counted(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Count what goes to the KMS and to the key store's tables."""
    counts = {"kms": 0, "key store": 0}
    unwrap = world.kms.unwrap

    def counting(*arguments: Any) -> bytes:
        counts["kms"] += 1
        return unwrap(*arguments)

    def statement(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
        counts["key store"] += "FROM pii_vault_tenants" in sql

    monkeypatch.setattr(world.kms, "unwrap", counting)
    event.listen(world.vault._store._engine, "before_cursor_execute", statement)
    yield counts
    event.remove(world.vault._store._engine, "before_cursor_execute", statement)


def refused_with(open_: Processor, sealed: bytes) -> type[BaseException]:
    try:
        value = open_(sealed)
    except OpenError as error:
        return type(error)
    pytest.fail(f"{len(sealed)} bytes opened as {value!r}")


def test_no_bit_of_a_sealed_value_can_be_flipped(world: World) -> None:
    seal, open_ = processors(world, people.c.email)
    with world.vault.tenant("acme"):
        sealed = seal("ada@example.com")
        assert open_(sealed) == "ada@example.com"
        found = [
            refused_with(open_, sealed[:place] + bytes((sealed[place] ^ 1 << bit,)) + sealed[place + 1 :])
            for place in range(len(sealed))
            for bit in range(8)
        ]
        assert open_(sealed) == "ada@example.com"
    assert {ForeignValueError, KeyNotFoundError, NotEncryptedError, FormatError, OpenError} == set(found)
    assert set(found[10 * 8 :]) == {OpenError}


def test_no_byte_of_a_stored_value_can_be_changed_cut_off_or_added(world: World) -> None:
    with world.session() as session:
        session.execute(insert(people), [{"id": 1, "tenant_id": "acme", "email": "ada"}])
    sealed = raw(world, 1)
    changed = [sealed[:place] + bytes((sealed[place] ^ 0x55,)) + sealed[place + 1 :] for place in range(len(sealed))]
    cut = [sealed[:size] for size in range(len(sealed))]
    longer = [sealed + b"\x00", sealed + sealed, b"\x00" + sealed, sealed + b" "]
    bad = [*changed, *cut, *longer]
    with world.engine.begin() as connection:
        connection.execute(insert(stored), [{"id": 10 + number, "email": each} for number, each in enumerate(bad)])
    with world.session() as session:
        for number in range(len(bad)):
            with pytest.raises(OpenError):
                session.scalar(select(people.c.email).where(people.c.id == 10 + number))
        # One bad value among good ones gives no partial result.
        with pytest.raises(OpenError):
            session.scalars(select(people.c.email)).all()
        assert session.scalar(select(people.c.email).where(people.c.id == 1)) == "ada"


def test_random_bytes_are_refused_and_never_an_unexpected_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seal, open_ = processors(world, people.c.email)
    with world.vault.tenant("acme"):
        sealed = seal("ada@example.com")
        with counted(world, monkeypatch) as counts:
            for number in range(10_000):
                size = 4096 if number % 500 == 0 else secrets.randbelow(120)
                # Half of them begin as a real value does, to get behind the first checks.
                start = sealed[: number % 12] if number % 2 else b""
                refused_with(open_, start + secrets.token_bytes(size))
    assert counts["kms"] <= 100


def test_random_bytes_that_were_sealed_decode_or_are_refused(world: World) -> None:
    """Somebody who holds the keys but not this code's codecs makes no decoder fail in a new way."""
    kinds: list[type[EncryptedType[Any]]] = [
        EncryptedString,
        EncryptedBytes,
        EncryptedInteger,
        EncryptedFloat,
        EncryptedNumeric,
        EncryptedBoolean,
        EncryptedDate,
        EncryptedTime,
        EncryptedDateTime,
        EncryptedUUID,
        EncryptedJSON,
    ]
    types = [*(kind(context="fuzz") for kind in kinds), EncryptedArray(EncryptedString(), context="fuzz")]
    readers: list[Any] = [each.result_processor(world.engine.dialect, None) for each in types]
    samples = [b"[", b"{}", b"1E9", b"-", b"\x00" * 8, b"\xff" * 8, b"\x01\xff\xff\xff\xff", b"[" * 5000, b"1" * 5000]
    with world.vault.tenant("acme") as scope:
        assert scope.keyset is not None
        for codec in REGISTRY:
            for plaintext in [*samples, *(secrets.token_bytes(secrets.randbelow(16)) for _ in range(60))]:
                sealed = scope.keyset.seal("fuzz", codec, plaintext)
                for reader in readers:
                    try:
                        assert reader(sealed) is not None
                    except OpenError:
                        pass


def test_two_rows_of_one_column_can_be_swapped(world: World) -> None:
    """What the column's binding does not defend, and the documentation says: the row is not bound."""
    write(world, id=1, email="ada")
    write(world, id=2, email="bob")
    first, second = raw(world, 1), raw(world, 2)
    put(world, 1, email=second)
    put(world, 2, email=first)
    assert (read(world, 1), read(world, 2)) == ("bob", "ada")


def test_a_value_copied_to_another_tenant_is_refused_whatever_its_header_says(world: World) -> None:
    write(world, "acme", id=1, email="the same text")
    write(world, "glob", id=2, email="the same text")
    acmes, globs = raw(world, 1), raw(world, 2)
    assert acmes[5:10] == globs[5:10]
    put(world, 2, email=acmes)
    with pytest.raises(ForeignValueError):
        read(world, 2, tenant="glob")
    put(world, 2, email=globs[:10] + acmes[10:])
    with pytest.raises(OpenError) as caught:
        read(world, 2, tenant="glob")
    assert type(caught.value) is OpenError
    put(world, 2, email=globs)
    assert read(world, 2, tenant="glob") == "the same text"


def test_a_value_copied_to_another_column_or_table_is_refused(world: World) -> None:
    write(world, id=1, email="ada@example.com", phone="+44 20", photo=b"ada@example.com", amount=5)
    with world.session() as session:
        session.execute(insert(members), {"id": 1, "tenant_id": "acme", "email": "member"})
    with world.engine.begin() as connection:
        connection.execute(text("UPDATE people SET phone = email"))
        connection.execute(text("UPDATE members SET email = (SELECT email FROM people)"))
    for column in (people.c.phone, members.c.email):
        with pytest.raises(OpenError) as caught:
            read(world, 1, column)
        assert type(caught.value) is OpenError
        assert "context=" in str(caught.value)
    put(world, 1, email=raw(world, 1, "photo"))
    with pytest.raises(OpenError):
        read(world, 1)
    assert read(world, 1, people.c.amount) == 5


def test_the_codec_in_the_header_is_not_believed(world: World) -> None:
    write(world, id=1, email="ada", photo=b"ada")
    as_integer = Table("people", MetaData(), Column("id", Integer), Column("email", EncryptedInteger()))
    with pytest.raises(CodecMismatchError):
        read(world, 1, as_integer.c.email)
    sealed = raw(world, 1, "photo")
    _, open_ = processors(world, people.c.photo)
    with world.vault.tenant("acme"):
        for codec in range(256):
            if codec != sealed[7]:
                refused_with(open_, sealed[:7] + bytes((codec,)) + sealed[8:])


def test_a_value_copied_to_another_schema_opens_unless_a_context_says_otherwise(build_world: Build) -> None:
    """The schema is not part of the default context, so that one model can serve many schemas."""
    here = Table("notes", MetaData(), Column("id", Integer), Column("body", EncryptedString()))
    there = Table("notes", MetaData(), Column("id", Integer), Column("body", EncryptedString()), schema="other")
    apart = Table(
        "notes", MetaData(), Column("id", Integer), Column("body", EncryptedString(context="o.n.b")), schema="other"
    )
    world = build_world()
    postgresql = world.engine.dialect.name == "postgresql"

    @event.listens_for(world.engine, "connect")
    def add_schema(connection: Any, _record: Any) -> None:
        if not postgresql:
            connection.execute("ATTACH ':memory:' AS other")

    world.engine.dispose()
    with world.vault.tenant("acme"), world.engine.connect() as connection:
        if postgresql:
            connection.execute(text("CREATE SCHEMA other"))
        here.create(connection)
        there.create(connection)
        connection.execute(insert(here), {"id": 1, "body": "text"})
        connection.execute(text("INSERT INTO other.notes SELECT * FROM notes"))
        assert connection.scalar(select(there.c.body)) == "text"
        with pytest.raises(OpenError):
            connection.scalar(select(apart.c.body))
        connection.rollback()
    with world.vault.tenant("glob"), world.engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    with pytest.raises(ConfigurationError, match="same context"):
        Table("notes", here.metadata, Column("id", Integer), Column("body", EncryptedString()), schema="other")


def test_a_renamed_column_needs_its_old_context(build_world: Build) -> None:
    world = build_world(metadata)
    write(world, id=1, email="ada")
    with world.engine.begin() as connection:
        connection.execute(text("ALTER TABLE people RENAME COLUMN email TO mail"))
    renamed = Table("people", MetaData(), Column("id", Integer), Column("mail", EncryptedString()))
    with pytest.raises(OpenError, match="context="):
        read(world, 1, renamed.c.mail)
    kept = Table("people", MetaData(), Column("id", Integer), Column("mail", EncryptedString(context="people.email")))
    assert read(world, 1, kept.c.mail) == "ada"


LOOK_ALIKES = [
    (("a", "bc"), ("ab", "c")),
    (("a.b", "c"), ("a", "b.c")),
    (("a\\", "b"), ("a", "\\b")),
    (("a\\.b", "c"), ("a.b", "c")),
    (("t", "e\u0301"), ("t", "\u00e9")),
    (("T", "c"), ("t", "c")),
    (("t", "c "), ("t", "c")),
    (("\u4e2d", "\U0001f600"), ("\u4e2d\U0001f600", "\u4e2d")),
]


def test_names_that_look_alike_are_different_columns(world: World) -> None:
    for one, other in LOOK_ALIKES:
        metadata = MetaData()
        columns: dict[str, list[str]] = {}
        for table, column in (one, other):
            columns.setdefault(table, []).append(column)
        for table, names in columns.items():
            Table(table, metadata, *(Column(name, EncryptedString()) for name in names))
        seal, open_ = processors(world, metadata.tables[one[0]].c[one[1]])
        _, open_elsewhere = processors(world, metadata.tables[other[0]].c[other[1]])
        with world.vault.tenant("acme"):
            sealed = seal("text")
            assert open_(sealed) == "text"
            with pytest.raises(OpenError):
                open_elsewhere(sealed)


def test_the_suite_in_the_header_cannot_be_lowered_or_raised(world: World) -> None:
    seal, open_ = processors(world, people.c.email)
    with world.vault.tenant("acme"):
        sealed = seal("ada")
        kinds = {suite: refused_with(open_, bytes((suite,)) + sealed[1:]) for suite in range(256) if suite != 0xFA}
        tokens = [refused_with(open_, sealed[:9] + bytes((flags,)) + sealed[10:]) for flags in range(1, 256)]
        generation = [refused_with(open_, sealed[:8] + bytes((each,)) + sealed[9:]) for each in range(1, 256)]
    assert {kind for suite, kind in kinds.items() if suite >= 0xF8} == {FormatError}
    assert {kind for suite, kind in kinds.items() if suite < 0xF8} == {NotEncryptedError}
    assert set(tokens) == set(generation) == {FormatError}


PLAIN: list[Any] = [b"plain text", "plain text", b"", "", b"\x00", "\u00fa", b"{}", b"\xff\xfe", 7, 7.5]


def test_plaintext_in_an_encrypted_column_is_refused_and_not_returned(world: World) -> None:
    write(world, id=1, email="ada")
    for plain in PLAIN:
        if world.engine.dialect.name == "postgresql" and not isinstance(plain, bytes):
            continue  # its column takes nothing else
        with world.engine.begin() as connection:
            connection.execute(text("UPDATE people SET email = :plain"), {"plain": plain})
        with pytest.raises(FormatError) as caught:
            read(world, 1)
        assert isinstance(caught.value, NotEncryptedError) or plain == b"\xff\xfe"
    with world.session() as session:
        session.execute(update(people).values(email="sealed again"))
    assert read(world, 1) == "sealed again"


def test_what_looks_like_a_sealed_value_is_sealed_like_any_other_text(world: World) -> None:
    write(world, id=1, email="ada", photo=b"portrait")
    email, photo = raw(world, 1), raw(world, 1, "photo")
    write(world, id=2, email=email.decode("latin-1"), photo=photo)
    write(world, id=3, email=photo.hex(), photo=email)
    assert read(world, 2) == email.decode("latin-1")
    assert read(world, 2, people.c.photo) == photo
    assert read(world, 3, people.c.photo) == email
    assert len(raw(world, 2, "photo")) == len(photo) + 38
    assert photo not in raw(world, 2, "photo")
    with world.engine.connect() as connection:
        found = [bytes(each) for each in connection.scalars(select(stored.c.photo))]
    assert len(set(found)) == 3


def test_one_value_is_never_sealed_twice_alike_and_never_stored_in_the_clear(
    build_world: Build, tmp_path: Path
) -> None:
    world = build_world(metadata)
    value = "canary-Hq7ZtLw2Rk9"
    rows = [{"id": number, "tenant_id": "acme", "email": value, "photo": value.encode()} for number in range(1000)]
    with world.session() as session:
        session.execute(insert(people), rows)
        session.execute(update(people).where(people.c.id < 10).values(phone=value))
    with world.engine.connect() as connection:
        sealed = [bytes(each) for each in connection.scalars(select(stored.c.email))]
        everything = connection.execute(text("SELECT * FROM people")).all()
    assert len(set(sealed)) == len({each[10:22] for each in sealed}) == len({each[22:] for each in sealed}) == 1000
    assert not [cell for row in everything for cell in row if value.encode() in _bytes(cell)]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if value.encode() in path.read_bytes()]
    with world.session() as session:
        assert set(session.scalars(select(people.c.email))) == {value}


def _bytes(cell: Any) -> bytes:
    return bytes(cell) if isinstance(cell, bytes | memoryview) else str(cell).encode()


def test_unknown_versions_are_looked_for_once_and_not_in_a_storm(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seal, open_ = processors(world, people.c.email)
    with world.vault.tenant("acme"), counted(world, monkeypatch) as counts:
        sealed = seal("ada")
        assert refused_with(open_, sealed[:5] + b"\x00\x00" + sealed[7:]) is FormatError
        assert counts == {"kms": 0, "key store": 0}
        for _ in range(1000):
            assert refused_with(open_, sealed[:5] + b"\xff\xff" + sealed[7:]) is KeyNotFoundError
        assert counts["kms"] <= 1
        assert counts["key store"] <= 1
        for version in range(2, 2000):
            assert refused_with(open_, sealed[:5] + version.to_bytes(2, "big") + sealed[7:]) is KeyNotFoundError
        assert counts["kms"] <= 100
        assert open_(sealed) == "ada"


def test_a_version_made_by_another_process_is_found(build_world: Build) -> None:
    world = build_world(metadata)
    elsewhere = Vault(world.url, kms=world.kms)
    with world.session() as session:
        assert elsewhere.rotate("acme").version == 2
        row = {"id": 2, "tenant_id": "acme", "email": "new"}
        with elsewhere.tenant("acme"), Session(world.engine) as other, pytest.raises(ScopeError, match="another vault"):
            other.execute(insert(people), row)
        session.execute(insert(people), {"id": 1, "tenant_id": "acme", "email": "old"})
    elsewhere.close()
    again = Vault(world.url, kms=world.kms)
    with again.tenant("acme") as scope:
        assert scope.keyset is not None
        newer = scope.keyset.seal("people.email", 1, b"new")
    again.close()
    put(world, 1, email=newer)
    assert newer[5:7] == b"\x00\x02"
    assert read(world, 1) == "new"
