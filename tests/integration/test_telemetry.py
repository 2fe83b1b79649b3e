"""What OpenTelemetry is told: the numbers of what really happened, over HTTP, and nothing that is secret."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tests.support.clocks import Clocks
from tests.support.strict_kms import FaultRule, StrictKms

from pii_vault import EncryptedString, Vault
from pii_vault.errors import KmsDeniedError, KmsUnavailableError, PiiEncryptionDisabledError, TenantSuspendedError
from pii_vault.keyring import Keyring
from pii_vault.keyring.terms import NOTICE_SECONDS, REFUSED_SECONDS
from pii_vault.kms import KmsKey
from pii_vault.telemetry import Telemetry, telemetry

TTL, GRACE = 100.0, 50.0
EARLY = 0.96 * TTL

READER = InMemoryMetricReader()
SPANS = InMemorySpanExporter()


@pytest.fixture(scope="session", autouse=True)
def _sdk() -> None:
    """OpenTelemetry's own SDK, which a process sets up once, also when it comes to this module a second time."""
    metrics.set_meter_provider(MeterProvider([READER]))
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(SPANS))
    trace.set_tracer_provider(provider)


class Told:
    """What was told since the last look."""

    def __init__(self) -> None:
        self._before = self._totals()

    def __call__(self) -> dict[tuple[str, ...], float]:
        """Counters, and the counts of histograms, by name and attributes, as far as they have grown."""
        now = self._totals()
        grown = {key: value - self._before.get(key, 0) for key, value in now.items()}
        self._before = now
        return {key: value for key, value in grown.items() if value}

    def _totals(self) -> dict[tuple[str, ...], float]:
        found: dict[tuple[str, ...], float] = {}
        for name, point in points():
            attributes = [f"{key.rpartition('.')[2]}={value}" for key, value in sorted(point.attributes.items())]
            if name not in ("keyring.keysets", "keyring.oldest"):
                found[(name, *attributes)] = point.count if hasattr(point, "count") else point.value
        return found


def points() -> Iterator[tuple[str, Any]]:
    data = READER.get_metrics_data()
    for resource in data.resource_metrics if data is not None else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    yield metric.name.removeprefix("pii_vault."), point


def gauge(name: str) -> float:
    return next(point.value for each, point in points() if each == name)


class App:
    def __init__(self, url: str, kms: StrictKms) -> None:
        self.kms, self.clocks = kms, Clocks()
        self.vault = Vault(
            url,
            kms=kms.provider(attempts=1),
            platform_key=kms.platform_key(),
            ttl=TTL,
            grace=GRACE,
            clock=self.clocks.as_clock,
        )
        self.vault.create_all()
        self.key: KmsKey = kms.customer_key()
        self.vault.add_tenant("acme", key=self.key.arn, role_arn=self.key.role_arn, external_id=self.key.external_id)
        self.uid = self.vault._store.load("acme").tenant.identity.tenant_uid.hex()

    def enter(self) -> None:
        with self.vault.tenant("acme"):
            pass


@pytest.fixture
def app(sqlite_url: str, strict_kms: StrictKms) -> Iterator[App]:
    app = App(sqlite_url, strict_kms)
    yield app
    app.vault.close()


@pytest.fixture
def told(app: App) -> Told:
    return Told()


def test_hits_fetches_and_those_who_wait_are_counted(app: App, told: Told) -> None:
    app.kms.script(FaultRule("Decrypt", key=app.key.arn, latency=0.3))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: app.enter(), range(8)))
    found = told()
    assert found.pop(("keyring.lookups", "outcome=wait")) == 7
    assert found == {
        ("keyring.lookups", "outcome=fetch"): 1,
        ("keyring.fetch.duration", "ahead=false"): 1,
        ("kms.duration", "operation=Decrypt", f"tenant={app.uid}"): 1,
    }
    for _ in range(5):
        app.enter()
    assert told() == {("keyring.lookups", "outcome=hit"): 5}


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("UPDATE pii_vault_tenants SET suspended = true", TenantSuspendedError),
        ("UPDATE pii_vault_policies SET pii_encryption = false", PiiEncryptionDisabledError),
    ],
)
def test_a_tenant_that_may_not_seal_and_open_any_more_is_told_as_a_refusal(
    app: App, told: Told, statement: str, error: type[Exception]
) -> None:
    app.enter()
    told()
    with app.vault._engine.begin() as connection:  # behind the vault's back: nobody is asked to forget
        connection.execute(text(statement))
    app.clocks.pass_(EARLY)
    with pytest.raises(error):
        app.enter()
    found = told()
    assert found[("keyring.evictions", "reason=refused")] == 1
    assert ("keyring.evictions", "reason=invalid") not in found


def test_a_replica_that_opens_is_counted_by_region(strict_kms: StrictKms) -> None:
    made, told = strict_kms.customer_key(multi_region=True), Told()
    for region in ("eu-central-1", "us-east-1"):
        strict_kms.replicate(made.arn, region)
    key = KmsKey(made.arn, made.role_arn, made.external_id, ("eu-central-1", "us-east-1"))
    provider, context = strict_kms.provider(attempts=1), {"pii-vault:tenant": "0123"}
    blob = provider.generate(key, context).wrapped.blob
    provider.unwrap(key, blob, context)
    assert told() == {}
    strict_kms.script(FaultRule("Decrypt", key=key.arn, error="KMSInternalException", times=None))
    for _ in range(2):
        provider.unwrap(key, blob, context)
    assert told() == {("kms.replicas", "region=eu-central-1"): 2}


def test_a_refresh_an_outage_and_a_refusal_are_told_apart(app: App, told: Told) -> None:
    app.enter()
    told()
    call = ("kms.duration", "operation=Decrypt", f"tenant={app.uid}")
    failed = ("kms.duration", "type=KMSInternalException", *call[1:])
    app.clocks.pass_(EARLY)
    app.enter()
    assert told() == {
        ("keyring.lookups", "outcome=hit"): 1,
        ("keyring.fetch.duration", "ahead=true"): 1,
        call: 1,
    }
    app.kms.script(FaultRule("Decrypt", key=app.key.arn, error="KMSInternalException"))
    app.clocks.pass_(EARLY)
    app.enter()
    assert told() == {
        ("keyring.lookups", "outcome=hit"): 1,
        ("keyring.fetch.duration", "type=KMSInternalException", "ahead=true"): 1,
        ("keyring.overdue",): 1,
        failed: 1,
    }
    app.kms.disable(app.key.arn)
    app.clocks.pass_(2)
    with pytest.raises(KmsDeniedError):
        app.enter()
    assert told() == {
        ("keyring.lookups", "outcome=hit"): 1,
        ("keyring.fetch.duration", "type=DisabledException", "ahead=true"): 1,
        ("keyring.evictions", "reason=refused"): 1,
        ("kms.duration", "type=DisabledException", *call[1:]): 1,
    }
    with pytest.raises(KmsDeniedError):
        app.enter()
    assert told() == {("keyring.lookups", "outcome=remembered_failure"): 1}


def test_evictions_are_counted_by_reason(app: App, told: Told, sqlite_url: str) -> None:
    def reasons() -> dict[str, float]:
        return {key[1].partition("=")[2]: value for key, value in told().items() if key[0] == "keyring.evictions"}

    app.enter()
    app.vault.evict("acme")
    assert reasons() == {"asked": 1}
    app.enter()
    operator = Vault(sqlite_url, kms=app.kms.provider(), platform_key=app.kms.platform_key())
    operator.evict("acme")
    operator.close()
    app.clocks.pass_(NOTICE_SECONDS)
    app.enter()
    assert reasons() == {"elsewhere": 1}
    app.kms.script(FaultRule("Decrypt", key=app.key.arn, error="InvalidCiphertextException"))
    app.clocks.pass_(EARLY)
    with pytest.raises(Exception, match="InvalidCiphertext"):
        app.enter()
    assert reasons() == {"invalid": 1}
    app.clocks.pass_(REFUSED_SECONDS)
    own = Keyring(app.vault._store, app.kms.provider(), size=1, telemetry=telemetry())
    key = app.kms.customer_key()
    app.vault.add_tenant("glob", key=key.arn, role_arn=key.role_arn, external_id=key.external_id)
    reasons()
    own.get("acme")
    own.get("glob")
    assert reasons() == {"full": 1}


def test_how_many_keysets_are_held_and_how_old_the_oldest_is(app: App) -> None:
    before = gauge("keyring.keysets")
    app.enter()
    assert gauge("keyring.keysets") == before + 1
    app.clocks.pass_(70)
    assert gauge("keyring.oldest") >= 70
    app.clocks.pass_(TTL + GRACE)
    assert gauge("keyring.keysets") == before


def test_what_the_lifecycle_asks_of_the_kms_is_measured_too(app: App, told: Told) -> None:
    app.vault.rotate("acme")
    operations = {key[1]: value for key, value in told().items() if key[0] == "kms.duration"}
    assert operations.keys() >= {"operation=GenerateDataKey", "operation=Decrypt", "operation=DescribeKey"}


def test_the_span_that_is_current_hears_of_it(app: App) -> None:
    SPANS.clear()
    with trace.get_tracer("application").start_as_current_span("request"):
        app.enter()
        app.vault.evict("acme")
    (span,) = SPANS.get_finished_spans()
    events = [(each.name, dict(each.attributes or {})) for each in span.events]
    assert [name for name, _ in events] == ["pii_vault.kms", "pii_vault.fetched", "pii_vault.evicted"]
    assert events[0][1]["pii_vault.tenant"] == app.uid
    assert events[2][1] == {"pii_vault.reason": "asked", "pii_vault.keysets": 1}


def test_no_name_key_or_address_is_told(app: App) -> None:
    SPANS.clear()
    with trace.get_tracer("application").start_as_current_span("request"):
        app.enter()
        app.kms.disable(app.key.arn)
        app.clocks.pass_(EARLY)
        with pytest.raises(KmsDeniedError):
            app.enter()
        app.kms.enable(app.key.arn)
        app.kms.script(FaultRule("Decrypt", key=app.key.arn, times=None, error="KMSInternalException"))
        app.clocks.pass_(REFUSED_SECONDS)
        with pytest.raises(KmsUnavailableError):
            app.enter()
    texts = [repr(span.to_json()) for span in SPANS.get_finished_spans()] + [
        f"{name} {dict(point.attributes)}" for name, point in points()
    ]
    told = "\n".join(texts).lower()
    assert app.uid in told
    assert "acme" not in told
    assert app.key.arn.lower() not in told


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(EncryptedString())


class Ticket(Base):
    __tablename__ = "tickets"
    id: Mapped[int] = mapped_column(primary_key=True)
    holder: Mapped[str] = mapped_column(EncryptedString())


def retries() -> float:
    return sum(point.value for name, point in points() if name == "reencryption.retries")


def let_go(release: Callable[[], None], before: float) -> None:
    """Release a lock once somebody has tried again because of it."""
    limit = time.monotonic() + 60
    while retries() == before and time.monotonic() < limit:
        time.sleep(0.02)
    release()


def test_re_encryption_is_a_span_for_each_table_and_counts_rows_and_what_is_tried_again(
    app: App, postgres_url: str, told: Told
) -> None:
    engine = create_engine(postgres_url, connect_args={"options": "-c lock_timeout=50"})
    Base.metadata.create_all(engine)
    app.vault.attach(engine)
    with app.vault.tenant("acme"), Session(engine) as session, session.begin():
        session.add_all(Person(email=f"{n}@example.com") for n in range(30))
        session.add_all(Ticket(holder=f"holder {n}") for n in range(10))
    app.vault.rotate("acme")
    told()
    SPANS.clear()
    holder = create_engine(postgres_url)
    with holder.connect() as connection:
        connection.execute(text("SELECT id FROM people WHERE id = 5 FOR UPDATE"))
        before = retries()
        letting_go = threading.Thread(target=let_go, args=(connection.rollback, before))
        letting_go.start()
        with trace.get_tracer("application").start_as_current_span("job"):
            assert app.vault.reencrypt("acme", metadata=Base.metadata, engine=engine, batch=8).left == 0
        letting_go.join()
    holder.dispose()
    engine.dispose()
    grown = told()
    assert grown.pop(("reencryption.retries",)) >= 1
    rows = {key: count for key, count in grown.items() if key[0] == "reencryption.rows"}
    assert rows == {("reencryption.rows", "table=people"): 30, ("reencryption.rows", "table=tickets"): 10}
    *spans, job = SPANS.get_finished_spans()
    assert [(each.name, dict(each.attributes or {})) for each in spans] == [
        ("pii_vault.reencryption", {"pii_vault.table": table, "pii_vault.tenant": app.uid})
        for table in ("people", "tickets")
    ]
    assert all(each.parent is not None and each.parent.span_id == job.context.span_id for each in spans)
    assert [(each.status.status_code, each.events) for each in spans] == [(trace.StatusCode.UNSET, ())] * 2
    told_of = "".join(each.to_json() for each in spans)
    assert [hidden for hidden in ("acme", "example.com", "holder 1", app.key.arn) if hidden in told_of] == []


_WITHOUT = """
import sys
sys.modules["opentelemetry"] = None
from pii_vault import Vault, LocalKms
from pii_vault.telemetry import Telemetry, telemetry
vault = Vault(sys.argv[1], kms=LocalKms(sys.argv[2]))
vault.create_all()
vault.add_tenant("acme")
with vault.tenant("acme"):
    print(type(telemetry()) is Telemetry)
"""


def test_without_opentelemetry_nothing_is_told_and_all_works(sqlite_url: str, tmp_path: Any) -> None:
    arguments = [sys.executable, "-c", _WITHOUT, sqlite_url, str(tmp_path / "kms.json")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    silent = Telemetry()
    with silent.fetching(ahead=True), silent.calling("Decrypt", None), silent.resealing("people", "0" * 32):
        silent.resealed("people", 1)
        silent.tried_again()
    silent.fell_back("people.email")


def test_a_value_that_is_read_from_the_plaintext_column_is_counted() -> None:
    told = Told()
    telemetry().fell_back("people.email")
    assert told() == {("adoption.fallbacks", "context=people.email"): 1}


def test_importing_the_package_does_not_import_opentelemetry() -> None:
    code = "import sys, pii_vault; print('opentelemetry' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
