"""A KMS that cannot be reached is not a customer who has refused: what goes on, what ends, and when all ends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, String, event, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from tests.support.clocks import Clocks
from tests.support.postgres import PostgresServer
from tests.support.strict_kms import FaultRule, StrictKms

from pii_vault import EncryptedString, Vault
from pii_vault.errors import (
    ConfigurationError,
    KeyStoreError,
    KmsConfigurationError,
    KmsCorruptError,
    KmsCredentialsError,
    KmsDeniedError,
    KmsError,
    KmsUnavailableError,
    PiiVaultError,
)
from pii_vault.keyring import Terms
from pii_vault.keyring.failures import Failures
from pii_vault.keyring.terms import (
    AGAIN_SECONDS,
    AT_ONCE,
    FAILED_SECONDS,
    FAILED_SECONDS_AT_MOST,
    REFUSED_SECONDS,
    WAIT_SECONDS,
)
from pii_vault.kms import KmsKey

TTL, GRACE = 100.0, 50.0
EARLY = 0.96 * TTL
"""When another keyset is due, whatever chance says."""


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    body: Mapped[str] = mapped_column(EncryptedString())


class App:
    """An application with two tenants whose keys it has just fetched; each has a note."""

    def __init__(
        self, url: str, kms: StrictKms, make_engine: Callable[..., Engine], key_store: str | None = None
    ) -> None:
        self.kms, self.clocks = kms, Clocks()
        self.vault = Vault(
            key_store or url,
            kms=kms.provider(attempts=1),
            platform_key=kms.platform_key(),
            ttl=TTL,
            grace=GRACE,
            clock=self.clocks.as_clock,
        )
        self.vault.create_all()
        self.keys: dict[str, KmsKey] = {}
        self.engine = make_engine(url)
        self.sessions: sessionmaker[Session] = sessionmaker(self.engine)
        self.vault.attach(self.engine, self.sessions, tenant_column="tenant_id")
        Base.metadata.create_all(self.engine)
        for tenant in ("acme", "glob"):
            self.join(tenant)
            self.write(f"of {tenant}", tenant)

    def join(self, tenant: str) -> None:
        key = self.keys[tenant] = self.kms.customer_key()
        self.vault.add_tenant(tenant, key=key.arn, role_arn=key.role_arn, external_id=key.external_id)

    def write(self, body: str, tenant: str = "acme") -> None:
        with self.vault.tenant(tenant), self.sessions.begin() as session:
            session.add(Note(body=body))

    def read(self, tenant: str = "acme") -> list[str]:
        with self.vault.tenant(tenant), self.sessions() as session:
            return list(session.scalars(select(Note.body).where(Note.tenant_id == tenant).order_by(Note.id)))

    def works(self, tenant: str = "acme") -> None:
        """Values are opened and sealed."""
        bodies = self.read(tenant)
        assert bodies[0] == f"of {tenant}"
        self.write(f"{len(bodies)}", tenant)
        assert self.read(tenant) == [*bodies, f"{len(bodies)}"]

    def is_dark(self, error: type[PiiVaultError], tenant: str = "acme") -> None:
        """Nothing is opened, nothing is sealed, and nothing is written."""
        with self.engine.connect() as connection:
            before = connection.scalar(select(func.count()).select_from(Note.__table__))
        with pytest.raises(error):
            self.read(tenant)
        with pytest.raises(error):
            self.write("never", tenant)
        with self.engine.connect() as connection:
            assert connection.scalar(select(func.count()).select_from(Note.__table__)) == before

    def fails(self, tenant: str = "acme", **fault: Any) -> None:
        """The KMS fails at every `Decrypt` with a tenant's key from now on."""
        self.kms.script(FaultRule("Decrypt", key=self.keys[tenant].arn, times=None, **fault))

    def unwraps(self, tenant: str = "acme") -> int:
        return self.kms.count("Decrypt", key=self.keys[tenant].arn)


@pytest.fixture
def app(
    sqlite_url: str,
    strict_kms: StrictKms,
    make_engine: Callable[..., Engine],
) -> Iterator[App]:
    app = App(sqlite_url, strict_kms, make_engine)
    yield app
    app.vault.close()


# Nobody can be asked.

OUTAGES: dict[str, tuple[dict[str, Any], type[KmsError]]] = {
    "the key's service is out": ({"error": "KeyUnavailableException"}, KmsUnavailableError),
    "the KMS is out": ({"error": "KMSInternalException"}, KmsUnavailableError),
    "we ask too often": ({"error": "ThrottlingException"}, KmsUnavailableError),
    "the connection drops": ({"drop": True}, KmsUnavailableError),
    "no answer comes": ({"black_hole": True}, KmsUnavailableError),
    "our own credentials have ended": ({"error": "ExpiredTokenException"}, KmsCredentialsError),
}


@pytest.mark.parametrize(("fault", "error"), OUTAGES.values(), ids=OUTAGES)
def test_an_outage_is_sat_out_until_the_bound_and_not_a_moment_longer(
    app: App, fault: dict[str, Any], error: type[KmsError], caplog: pytest.LogCaptureFixture
) -> None:
    app.fails(**fault)
    asked = app.unwraps()
    app.clocks.pass_(EARLY)
    app.works()
    assert app.unwraps() > asked
    app.clocks.pass_(TTL + GRACE - EARLY - 0.001)
    app.works()
    app.works("glob")
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING and "acme" in record.message]
    assert "the keys of tenant 'acme' are used for" in record.message
    app.clocks.pass_(0.001)
    app.is_dark(error)
    app.works("glob")
    app.kms.clear_script()
    app.clocks.pass_(FAILED_SECONDS_AT_MOST)
    app.works()


@pytest.mark.parametrize("ahead", ["monotonic", "wall"])
def test_the_clock_that_says_first_that_the_bound_is_reached_is_right(app: App, ahead: str) -> None:
    app.fails(error="KMSInternalException")
    setattr(app.clocks, ahead, getattr(app.clocks, ahead) + TTL + GRACE - 0.001)
    app.works()
    setattr(app.clocks, ahead, getattr(app.clocks, ahead) + 0.001)
    app.is_dark(KmsUnavailableError)


@pytest.mark.parametrize("ahead", ["monotonic", "wall"])
def test_the_bound_holds_for_a_scope_that_stays_open_and_for_rows_that_stream(app: App, ahead: str) -> None:
    app.write("second")
    app.fails(error="KMSInternalException")
    with app.vault.tenant("acme"), app.sessions() as session:
        setattr(app.clocks, ahead, getattr(app.clocks, ahead) + TTL + GRACE - 0.1)
        stream = iter(session.scalars(select(Note.body).where(Note.tenant_id == "acme").execution_options(yield_per=1)))
        assert next(stream) == "of acme"
        app.clocks.pass_(0.1)
        with pytest.raises(KmsUnavailableError):
            next(stream)
        session.rollback()
        with pytest.raises(KmsUnavailableError):
            session.scalars(select(Note.body)).all()
        session.rollback()
        session.add(Note(body="never"))
        with pytest.raises(KmsUnavailableError):
            session.flush()


def test_a_key_store_that_is_down_is_sat_out_likewise(
    sqlite_url: str,
    strict_kms: StrictKms,
    make_engine: Callable[..., Engine],
    crashable_postgres: PostgresServer,
) -> None:
    app = App(sqlite_url, strict_kms, make_engine, crashable_postgres.url(crashable_postgres.create_database()))
    asked = app.unwraps()
    crashable_postgres.kill()
    app.clocks.pass_(TTL)
    assert app.read() == ["of acme"]
    # The KMS is not asked about records that cannot be read.
    assert app.unwraps() == asked
    app.clocks.pass_(GRACE)
    app.is_dark(KeyStoreError)
    crashable_postgres.start()
    app.works()
    app.vault.close()


def test_a_version_that_is_new_is_not_called_lost_because_nobody_can_be_asked(
    app: App, strict_kms: StrictKms, make_engine: Callable[..., Engine]
) -> None:
    other = Vault(app.engine.url, kms=strict_kms.provider(), platform_key=strict_kms.platform_key())
    engine = make_engine(app.engine.url)
    other.attach(engine, tenant_column="tenant_id")
    other.rotate("acme")
    with other.tenant("acme"), Session(engine) as session, session.begin():
        session.add(Note(tenant_id="acme", body="of the newer key"))
    app.fails(error="ThrottlingException")
    app.clocks.pass_(1)
    for _ in range(2):
        with pytest.raises(KmsUnavailableError, match=r"nobody can be asked for it|Throttling"):
            app.read()
    app.kms.clear_script()
    app.clocks.pass_(FAILED_SECONDS)
    assert app.read() == ["of acme", "of the newer key"]
    other.close()


# Somebody has refused, or something is wrong.

REFUSALS: dict[str, Callable[[StrictKms, str], None]] = {
    "is disabled": StrictKms.disable,
    "has a policy that denies all": StrictKms.deny_all,
    "is to be deleted": StrictKms.schedule_deletion,
    "is gone": StrictKms.delete_now,
}


@pytest.mark.parametrize("refuse", REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_ends_all_at_once_although_the_bound_is_not_reached(
    app: App, refuse: Callable[[StrictKms, str], None]
) -> None:
    refuse(app.kms, app.keys["acme"].arn)
    app.works()  # nobody has asked yet
    app.clocks.pass_(EARLY)
    with app.vault.tenant("glob"), app.sessions() as session:
        assert session.scalars(select(Note.body).where(Note.tenant_id == "glob")).all() == ["of glob"]
    app.is_dark(KmsDeniedError)
    # An outage afterwards brings nothing back.
    app.fails(error="KMSInternalException")
    app.clocks.pass_(REFUSED_SECONDS)
    app.is_dark(KmsUnavailableError)
    app.works("glob")


def test_nothing_is_used_beyond_the_time_to_live_before_somebody_was_asked_rows_that_stream_neither(app: App) -> None:
    app.write("second")
    app.write("third")
    query = select(Note.body).where(Note.tenant_id == "acme").order_by(Note.id).execution_options(yield_per=1)
    with app.vault.tenant("acme"), app.sessions() as session:
        stream = iter(session.scalars(query))
        assert next(stream) == "of acme"
        app.clocks.pass_(TTL - 0.001)
        assert next(stream) == "second"
        app.kms.disable(app.keys["acme"].arn)
        app.clocks.pass_(0.001)
        with pytest.raises(KmsDeniedError):
            next(stream)


def test_beyond_the_time_to_live_all_wait_for_the_one_who_asks(app: App) -> None:
    arn = app.keys["acme"].arn
    app.kms.disable(arn)
    app.kms.script(FaultRule("Decrypt", key=arn, latency=0.4))
    app.clocks.pass_(TTL)
    asked = app.unwraps()
    with ThreadPoolExecutor(8) as pool:
        outcomes = [pool.submit(app.read) for _ in range(8)]
        assert [type(each.exception()) for each in outcomes] == [KmsDeniedError] * 8
    assert app.unwraps() == asked + 1


def test_in_an_outage_rows_that_stream_go_on_and_somebody_asks_again(app: App) -> None:
    for number in range(4):
        app.write(f"{number}")
    query = select(Note.body).where(Note.tenant_id == "acme").order_by(Note.id).execution_options(yield_per=1)
    app.fails(error="KMSInternalException")
    with app.vault.tenant("acme"), app.sessions() as session:
        stream = iter(session.scalars(query))
        assert next(stream) == "of acme"
        app.clocks.pass_(TTL)
        asked = app.unwraps()
        assert next(stream) == "0"
        assert app.unwraps() == asked + 1
        app.kms.clear_script()
        app.kms.disable(app.keys["acme"].arn)
        app.clocks.pass_(FAILED_SECONDS + WAIT_SECONDS - 0.001)
        assert next(stream) == "1"
        app.clocks.pass_(0.001)
        with pytest.raises(KmsDeniedError):
            next(stream)


def test_a_refusal_reaches_a_scope_that_is_open(app: App) -> None:
    with app.vault.tenant("acme"), app.sessions() as session:
        app.kms.disable(app.keys["acme"].arn)
        app.clocks.pass_(EARLY)
        with pytest.raises(KmsDeniedError):
            session.scalars(select(Note.body)).all()
        session.rollback()
        session.add(Note(body="never"))
        with pytest.raises(KmsDeniedError):
            session.flush()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("InvalidCiphertextException", KmsCorruptError),
        ("IncorrectKeyException", KmsCorruptError),
        ("InvalidKeyUsageException", KmsConfigurationError),
        ("ValidationException", KmsConfigurationError),
        ("SomethingNewException", KmsUnavailableError),  # who knows what it means
    ],
)
def test_what_is_no_outage_is_not_sat_out(app: App, code: str, error: type[KmsError]) -> None:
    app.fails(error=code)
    app.clocks.pass_(EARLY)
    asked = app.unwraps()
    with pytest.raises(error, match=code):
        app.read()
    assert app.unwraps() == asked + 1
    app.is_dark(error)


@pytest.mark.parametrize("cold", [False, True], ids=["ahead", "cold"])
def test_a_refusal_is_answered_from_memory_for_a_moment(app: App, cold: bool) -> None:
    arn = app.keys["acme"].arn
    app.kms.disable(arn)
    app.clocks.pass_(TTL + GRACE if cold else EARLY)
    asked = app.unwraps()
    for _ in range(5):
        app.is_dark(KmsDeniedError)
    assert app.unwraps() == asked + 1
    app.works("glob")
    app.kms.enable(arn)
    app.clocks.pass_(REFUSED_SECONDS - 0.001)
    app.is_dark(KmsDeniedError)
    assert app.unwraps() == asked + 1
    app.clocks.pass_(0.001)
    app.works()
    assert app.unwraps() == asked + 2


def test_an_outage_is_answered_from_memory_for_a_moment_where_no_keys_are_left(app: App) -> None:
    app.fails(black_hole=True)
    app.clocks.pass_(TTL + GRACE)
    asked = app.unwraps()
    for _ in range(5):
        app.is_dark(KmsUnavailableError)
    assert app.unwraps() == asked + 1
    app.works("glob")
    app.kms.clear_script()
    app.clocks.pass_(FAILED_SECONDS)
    app.works()


def test_who_evicts_a_tenant_lets_the_kms_be_asked_at_once(app: App) -> None:
    app.kms.disable(app.keys["acme"].arn)
    app.clocks.pass_(EARLY)
    app.is_dark(KmsDeniedError)
    app.kms.enable(app.keys["acme"].arn)
    app.vault.evict("acme")
    app.works()


# One asks, the others go on.


def eventually(condition: Callable[[], object]) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + 30
        time.sleep(0.005)


def test_one_caller_fetches_ahead_while_the_others_go_on(app: App) -> None:
    arn = app.keys["acme"].arn
    app.kms.script(FaultRule("Decrypt", key=arn, latency=0.4))
    app.clocks.pass_(EARLY)
    asked = app.unwraps()
    first = threading.Thread(target=app.read)
    first.start()
    eventually(lambda: app.kms.count("Decrypt", key=arn, outcome="open"))
    app.clocks.pass_(AGAIN_SECONDS)  # it is time for another attempt, but the first one is still under way
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: app.read(), range(8))) == [["of acme"]] * 8
    assert first.is_alive()
    first.join()
    assert app.unwraps() == asked + 1


def test_a_scope_that_is_open_goes_on_with_what_another_has_fetched(app: App) -> None:
    with app.vault.tenant("acme") as scope, app.sessions() as session:
        before = scope.keyset
        app.clocks.pass_(EARLY)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(app.read).result() == ["of acme"]
        asked = app.unwraps()
        app.kms.disable(app.keys["acme"].arn)
        app.clocks.pass_(0.3 * TTL)
        assert session.scalars(select(Note.body).where(Note.tenant_id == "acme")).all() == ["of acme"]
        assert app.unwraps() == asked
        assert scope.keyset is not before


@pytest.mark.parametrize("cold", [False, True], ids=["ahead", "cold"])
def test_what_was_asked_for_before_an_eviction_is_not_used_afterwards(app: App, cold: bool) -> None:
    arn, answered, evicted = app.keys["acme"].arn, threading.Event(), threading.Event()
    app.kms.script(FaultRule("Decrypt", key=arn, alter=lambda answer: (answered.set(), evicted.wait(30), answer)[-1]))
    if cold:
        app.vault.evict("acme")
    else:
        app.clocks.pass_(EARLY)
    with ThreadPoolExecutor(2) as pool:
        fetching = [pool.submit(app.read)]
        answered.wait(30)
        if cold:
            fetching.append(pool.submit(app.read))  # waits for the first one
        app.kms.disable(arn)
        app.vault.evict("acme")
        evicted.set()
        for reading in fetching:
            assert isinstance(reading.exception(), KmsDeniedError)
    app.is_dark(KmsDeniedError)


def test_an_outage_is_looked_at_less_and_less_often(app: App) -> None:
    app.fails(error="KMSInternalException")
    app.clocks.pass_(EARLY)
    for pause in (1, 2, 4, 8, 16, 16):
        asked = app.unwraps()
        for _ in range(3):
            app.read()
        assert app.unwraps() == asked + 1
        app.clocks.pass_(pause - 0.001)
        app.read()
        assert app.unwraps() == asked + 1
        app.clocks.pass_(0.001)


def test_who_waits_for_a_fetch_does_not_wait_for_ever(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pii_vault.keyring.flight.WAIT_SECONDS", 0.05)
    arn = app.keys["acme"].arn
    app.kms.script(FaultRule("Decrypt", key=arn, latency=0.4))
    app.vault.evict("acme")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(app.read)
        eventually(lambda: app.kms.count("Decrypt", key=arn, outcome="open"))
        with pytest.raises(KmsUnavailableError, match=r"tenant 'acme' are still being fetched after 0\.05 s"):
            app.read()
        assert first.result() == ["of acme"]
    app.works()


def test_few_fetch_at_once_and_who_cannot_goes_on_or_is_told_so(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pii_vault.keyring.fetching.WAIT_SECONDS", 0.05)
    monkeypatch.setattr("pii_vault.keyring.places.AT_ONCE", 1)
    app.vault._keyring._reset()
    assert app.read("glob") == ["of glob"]
    app.kms.script(FaultRule("Decrypt", key=app.keys["acme"].arn, latency=0.4))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(app.read)
        eventually(lambda: app.kms.count("Decrypt", key=app.keys["acme"].arn, outcome="open"))
        app.clocks.pass_(EARLY)
        app.works("glob")  # what is due, but fresh, waits for nobody
        app.vault.evict("glob")
        with pytest.raises(KmsUnavailableError, match="tenant 'glob' were not fetched: 1 others"):
            app.read("glob")
        assert first.result() == ["of acme"]
    app.works("glob")


def test_many_cold_tenants_at_once_are_fetched_a_few_at_a_time_and_each_once(app: App) -> None:
    tenants = [f"cold {number}" for number in range(2 * AT_ONCE)]
    for tenant in tenants:
        app.join(tenant)
    before = {tenant: app.unwraps(tenant) for tenant in tenants}
    app.kms.script(FaultRule("Decrypt", times=None, latency=0.3))
    open_at_once: list[int] = []

    def enter(tenant: str) -> None:
        with app.vault.tenant(tenant):
            pass

    with ThreadPoolExecutor(2 * len(tenants)) as pool:
        entering = [pool.submit(enter, tenant) for tenant in tenants * 2]
        while not all(each.done() for each in entering):
            open_at_once.append(app.kms.count("Decrypt", outcome="open"))
            time.sleep(0.02)
        for each in entering:
            each.result()
    assert 1 < max(open_at_once) <= AT_ONCE
    assert {tenant: app.unwraps(tenant) - before[tenant] for tenant in tenants} == dict.fromkeys(tenants, 1)


def test_however_many_customers_kms_do_not_answer_the_others_are_served(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pii_vault.keyring.fetching.WAIT_SECONDS", 0.05)
    monkeypatch.setattr("pii_vault.keyring.places.AT_ONCE", 4)
    monkeypatch.setattr("pii_vault.keyring.places.IN_DOUBT_AT_ONCE", 2)
    app.vault._keyring._reset()
    dark = ["acme", *(f"dark {number}" for number in range(5))]
    for tenant in dark[1:]:
        app.join(tenant)
    for tenant in dark:
        app.fails(tenant, error="KMSInternalException")
        app.is_dark(KmsUnavailableError, tenant)
    app.kms.clear_script()
    for tenant in dark:
        app.fails(tenant, black_hole=True)
    app.clocks.pass_(FAILED_SECONDS)
    asked = sum(map(app.unwraps, dark))
    with ThreadPoolExecutor(len(dark)) as pool:
        reading = [pool.submit(app.read, tenant) for tenant in dark]
        eventually(lambda: sum(app.kms.count("Decrypt", key=app.keys[each].arn, outcome="open") for each in dark) == 2)
        app.vault.evict("glob")
        app.works("glob")
        assert sum(not each.done() for each in reading) == 2
        messages = sorted(str(each.exception()) for each in reading)
    assert sum("2 others are being fetched already" in each for each in messages) == len(dark) - 2
    assert sum(map(app.unwraps, dark)) == asked + 2


def test_without_a_time_to_live_nothing_is_remembered_and_nobody_s_place_is_taken(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pii_vault.keyring.places.AT_ONCE", 1)
    monkeypatch.setattr("pii_vault.keyring.fetching.WAIT_SECONDS", 0.05)
    own = Vault(app.vault._engine.url, kms=app.kms.provider(attempts=1), platform_key=app.kms.platform_key(), ttl=0)
    arn, answered, done = app.keys["acme"].arn, threading.Event(), threading.Event()
    app.kms.script(FaultRule("Decrypt", key=arn, alter=lambda answer: (answered.set(), done.wait(30), answer)[-1]))

    def enter(tenant: str) -> None:
        with own.tenant(tenant):
            pass

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(enter, "acme")
        answered.wait(30)
        enter("glob")
        done.set()
        first.result()
    app.kms.disable(arn)
    with pytest.raises(KmsDeniedError):
        enter("acme")
    app.kms.enable(arn)
    enter("acme")
    own.close()


def test_a_connection_to_the_database_is_not_held_for_longer_than_the_client_waits(
    app: App, make_engine: Callable[..., Engine]
) -> None:
    patience, attempts = 0.4, 2
    kms = app.kms.provider(connect_timeout=patience, read_timeout=patience, attempts=attempts)
    vault = Vault(app.vault._engine.url, kms=kms, platform_key=app.kms.platform_key(), clock=app.clocks.as_clock)
    engine = make_engine(app.engine.url.render_as_string(hide_password=False), pool_size=1, max_overflow=0)
    vault.attach(engine, tenant_column="tenant_id")
    query = select(Note.body).where(Note.tenant_id == "acme")
    with vault.tenant("acme"), Session(engine) as session:
        assert session.scalars(query).all() == ["of acme"]
        app.fails(black_hole=True)
        app.clocks.pass_(300)
        asked, began = app.unwraps(), time.monotonic()
        with pytest.raises(KmsUnavailableError):
            session.scalars(query).all()
        waited = time.monotonic() - began
        session.rollback()
    assert app.unwraps() == asked + attempts
    # As AwsKms promises: attempts, their timeouts, a second of back-off between two. What is over is the machine's.
    assert waited < attempts * 2 * patience + 1 + 2
    with engine.connect() as connection:  # the only one there is
        assert connection.scalar(select(func.count()).select_from(Note.__table__)) == 2
    vault.close()


def test_who_waits_for_keys_that_are_not_to_be_shared_asks_for_itself(app: App) -> None:
    app.vault.set_terms("acme", ttl=0)
    asked, slow = app.unwraps(), [0.4]

    @event.listens_for(app.vault._engine, "before_cursor_execute")
    def read_slowly(*call: Any) -> None:
        # Until the records are read, nobody knows the terms, and all three want what the first one fetches.
        if "pii_vault_policies" in call[2] and slow:
            time.sleep(slow.pop())

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda _: app.read(), range(3))) == [["of acme"]] * 3
    assert app.unwraps() == asked + 3


# The terms.


@pytest.mark.parametrize(("ttl", "grace"), [(-1.0, 0.0), (300.0, -1.0), (0.0, 10.0), (43_200.0, 1.0), (43_201.0, 0.0)])
def test_terms_that_cannot_be_kept_are_refused(ttl: float, grace: float) -> None:
    with pytest.raises(ConfigurationError, match="ttl"):
        Terms(ttl, grace)


def test_keysets_that_were_fetched_together_are_not_fetched_together_again() -> None:
    moments = {Terms(ttl=100).early() for _ in range(1000)}
    assert len(moments) > 900
    assert min(moments) >= 80
    assert max(moments) <= 95
    assert Terms(ttl=0).early() == float("inf")


@pytest.mark.parametrize(
    ("ttl", "outage", "refusal"),
    [(300.0, [1, 2, 4, 8, 16, 16], 5), (3.0, [1, 2, 3, 3, 3, 3], 3), (0.5, [0.5] * 6, 0.5)],
)
def test_a_failure_is_remembered_for_a_moment_and_no_longer_than_the_time_to_live(
    ttl: float, outage: list[float], refusal: float
) -> None:
    clocks = Clocks()
    failures = Failures(10, lambda: clocks.monotonic)

    def fails(error: KmsError, pause: float) -> None:
        failures.add("acme", error, ttl)
        assert failures.pause("acme") == pause
        clocks.pass_(pause - 0.001)
        assert type(failures.answer("acme")) is type(error)
        assert failures.answer("glob") is None
        clocks.pass_(0.001)
        assert failures.answer("acme") is None

    out = KmsUnavailableError("out", code="KMSInternalException", operation="Decrypt")
    for pause in outage:
        fails(out, pause)
        assert failures.is_in_doubt("acme")
    fails(KmsDeniedError("no", code="DisabledException", operation="Decrypt"), refusal)
    assert not failures.is_in_doubt("acme")
    fails(out, outage[0])
    failures.forget("acme")
    assert not failures.is_in_doubt("acme")
    fails(out, outage[0])


def test_failures_of_so_many_tenants_are_remembered_and_no_more() -> None:
    failures = Failures(100, time.monotonic)
    for number in range(10_000):
        failures.add(f"t{number}", KmsUnavailableError("out", code="x", operation="Decrypt"), 300)
    assert sum(failures.answer(f"t{number}") is not None for number in range(10_000)) == 100
