"""What docs/ claims about statements, calls and sizes is what happens."""

import ast
import re
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from tests.support.kms_http import Counter
from tests.support.strict_kms import StrictKms

import pii_vault
import pii_vault.keyring
from pii_vault import EncryptedString, LocalKms, Vault
from pii_vault.errors import UnsupportedOperationError
from pii_vault.kms import KmsKey

DOCS = Path(__file__).resolve().parents[2] / "docs"


def python_blocks(page: str, heading: str) -> list[str]:
    section = (DOCS / page).read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def python_block(page: str, heading: str) -> str:
    return python_blocks(page, heading)[0]


class Base(DeclarativeBase):
    pass


_names: dict[str, Any] = {
    **vars(sqlalchemy),
    **vars(pii_vault),
    "Base": Base,
    "Mapped": Mapped,
    "mapped_column": mapped_column,
    "date": date,
    "__name__": __name__,
}
exec(python_block("sqlalchemy.md", "Declare"), _names)
Patient = _names["Patient"]


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    kms = LocalKms(tmp_path / "kms.json")
    made = Vault(f"sqlite:///{tmp_path / 'keys.sqlite3'}", kms=kms)
    made.create_all()
    made.add_tenant("acme", key=kms.create_key())
    yield made
    made.close()


@pytest.fixture
def sessions(vault: Vault, tmp_path: Path) -> Iterator[Any]:
    engine = create_engine(f"sqlite:///{tmp_path / 'app.sqlite3'}")
    made = sessionmaker(engine)
    vault.attach(engine, made, tenant_column="tenant_id")
    Base.metadata.create_all(engine)
    with vault.tenant("acme"), made.begin() as session:
        session.add_all(Patient(ward="B2", email=email, born=date(1815, 12, 10)) for email in ("a@b.c", "d@e.f", None))
    yield made
    engine.dispose()


@pytest.mark.parametrize("line", python_block("sqlalchemy.md", "What works").splitlines())
def test_what_the_page_calls_working_works(line: str, vault: Vault, sessions: Any) -> None:
    with vault.tenant("acme"), sessions() as session:
        result = session.execute(eval(line, dict(_names)))
        if result.returns_rows if hasattr(result, "returns_rows") else True:
            assert result.all()
        else:
            assert result.rowcount > 0


@pytest.mark.parametrize("line", python_block("sqlalchemy.md", "What is refused").splitlines())
def test_what_the_page_calls_refused_is_refused(line: str, vault: Vault, sessions: Any) -> None:
    with (
        vault.tenant("acme"),
        sessions() as session,
        pytest.raises(UnsupportedOperationError, match="encrypted column"),
    ):
        session.execute(eval(line, dict(_names)))


def test_every_column_type_is_named() -> None:
    page = (DOCS / "sqlalchemy.md").read_text(encoding="utf-8")
    listed = re.search(r"There is a type for each kind of value: (.*?);", page, re.DOTALL)
    assert listed
    named = {name.removeprefix("Encrypted") for name in re.findall(r"`(\w+)`", listed[1])}
    types = {name.removeprefix("Encrypted") for name in vars(pii_vault) if name.startswith("Encrypted")}
    assert named == types - {"Type"}


def test_the_sizes_are_the_sizes(tmp_path: Path, vault: Vault, sessions: Any) -> None:
    rows = re.findall(r'^\| `("[^`]*")` \| (\d+) \|$', (DOCS / "security.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 3
    for value, size in rows:
        with vault.tenant("acme"), sessions() as session:
            session.add(Patient(email=ast.literal_eval(value)))
            session.flush()
            stored = session.scalar(text("SELECT length(email) FROM patients ORDER BY id DESC LIMIT 1"))
        assert stored == int(size), value


class OwnBase(DeclarativeBase):
    pass


class Note(OwnBase):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str] = mapped_column(EncryptedString())


Call = Callable[[], Any]


def test_the_kms_is_asked_when_the_page_says(
    strict_kms: StrictKms,
    postgres_url: str,
    make_engine: Callable[..., Engine],
) -> None:
    now = [1000.0]
    clock = pii_vault.keyring.Clock(lambda: now[0], lambda: now[0])
    platform = strict_kms.platform_key()

    def make(**options: Any) -> Vault:
        return Vault(postgres_url, kms=strict_kms.provider(), platform_key=platform, clock=clock, **options)

    vault, other, each_time = make(), make(), make(ttl=0)
    vault.create_all()
    engine = make_engine(postgres_url)
    vault.attach(engine)
    OwnBase.metadata.create_all(engine)
    key, another = strict_kms.customer_key(), strict_kms.customer_key()

    def asked(work: Call) -> dict[str, int]:
        with strict_kms.counting() as calls:
            work()
        return _by_operation(calls, without=platform)

    def asked_of_the_platform(work: Call) -> dict[str, int]:
        with strict_kms.counting() as calls:
            work()
        return _by_operation(calls, key=platform)

    def register(name: str = "acme", key: KmsKey = key) -> None:
        vault.add_tenant(name, key=key.arn, role_arn=key.role_arn, external_id=key.external_id)

    def write(body: str) -> None:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.insert(Note.__table__).values(body=body))

    def read() -> list[Any]:
        with engine.connect() as connection:
            return list(connection.scalars(select(Note.__table__.c.body)))

    def scope(of: Vault) -> Call:
        def enter() -> None:
            with of.tenant("acme"):
                pass

        return enter

    # One AssumeRole is the one that must be refused.
    new_tenant = {"AssumeRole": 2, "GenerateDataKey": 3, "Decrypt": 3, "DescribeKey": 1}
    assert asked(register) == new_tenant
    assert asked_of_the_platform(lambda: register("glob", another)) == {"GenerateDataKey": 1}
    assert asked(register) == {}
    assert asked(scope(vault)) == {"Decrypt": 1}
    assert asked(scope(vault)) == {}
    assert asked(scope(each_time)) == {"AssumeRole": 1, "Decrypt": 1}
    assert asked(scope(each_time)) == {"Decrypt": 1}
    with vault.tenant("acme"):
        assert asked(lambda: [write("a"), read(), write("b"), read()]) == {}
        now[0] += 301
        assert asked(lambda: [write("c"), read()]) == {"Decrypt": 1}
    assert asked(scope(other)) == {"AssumeRole": 1, "Decrypt": 1}
    assert asked(lambda: vault.rotate("acme")) == {"GenerateDataKey": 1, "Decrypt": 2, "DescribeKey": 1}
    assert asked(scope(vault)) == {"Decrypt": 1}
    with vault.tenant("acme"):
        write("sealed with version 2")
    reader = make_engine(postgres_url)
    other.attach(reader)
    with other.tenant("acme"), reader.connect() as connection:
        assert asked(lambda: connection.scalars(select(Note.__table__.c.body)).all()) == {"Decrypt": 1}
        assert asked(lambda: connection.scalars(select(Note.__table__.c.body)).all()) == {}
    assert asked(vault.rotate_due) == {}
    assert asked(lambda: vault.validate("acme")) == {"AssumeRole": 1, "Decrypt": 2, "DescribeKey": 1}
    strict_kms.rotate(key.arn)
    assert asked(lambda: vault.rewrap("acme")) == {"DescribeKey": 1, "ReEncrypt": 2}
    renewed = {"DescribeKey": 1, "GenerateDataKey": 1, "Decrypt": 2}
    assert asked(lambda: vault.rewrap("acme", new_kek=True)) == renewed
    assert asked(lambda: vault.set_rotation("glob", follows_kms=True)) == {"GetKeyRotationStatus": 1}
    assert asked(vault.rotate_due) == {"GetKeyRotationStatus": 1, "DescribeKey": 1}
    assert asked(lambda: [vault.suspend("acme"), vault.resume("acme"), vault.deactivate("acme")]) == {}
    assert asked_of_the_platform(lambda: vault.audit.verify("acme")) == {"Decrypt": 1}
    for each in (vault, other, each_time):
        each.close()


def _by_operation(calls: Counter, key: str | None = None, without: str | None = None) -> dict[str, int]:
    found = [call.operation for call in calls.calls if key in (None, call.key) and call.key != without]
    return {name: found.count(name) for name in found}
