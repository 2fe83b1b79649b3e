"""What can be measured while it runs, told to OpenTelemetry's API: metrics, and events on the span that is current.

Without OpenTelemetry, or without an SDK set up by the application, nothing is told to anybody, and it costs next to
nothing. Which exporter gets the numbers is the application's choice. A tenant is named by its uid in hexadecimal, as in
the customer's CloudTrail; names, values and keys are never told. docs/telemetry.md lists what there is.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from weakref import WeakSet

from ._version import __version__
from .errors import KmsError

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation

Attributes: TypeAlias = dict[str, str | float]

TENANT: Final = "pii_vault.tenant"
OPERATION: Final = "pii_vault.kms.operation"
OUTCOME: Final = "pii_vault.outcome"
TABLE: Final = "pii_vault.table"
CONTEXT: Final = "pii_vault.context"
REASON: Final = "pii_vault.reason"
ERROR: Final = "error.type"
REGION: Final = "pii_vault.kms.region"


class Lookup(StrEnum):
    """How a scope came by its keyset."""

    HIT = "hit"
    FETCH = "fetch"
    WAIT = "wait"
    REMEMBERED_FAILURE = "remembered_failure"


class Reason(StrEnum):
    """Why keysets left memory before their time."""

    REFUSED = "refused"
    INVALID = "invalid"
    ASKED = "asked"
    ELSEWHERE = "elsewhere"
    RESTORED = "restored"
    FULL = "full"


class Holder(ABC):
    """Who holds keysets; what is said of it is asked for when somebody collects."""

    @abstractmethod
    def held(self) -> tuple[int, float]:
        """Return how many keysets are held, and how many seconds ago the oldest one was asked for."""


class Telemetry:
    """What is told to nobody."""

    def looked_up(self, how: Lookup) -> None:
        """Count a scope that wanted a keyset."""

    def evicted(self, reason: Reason, count: int = 1) -> None:
        """Count keysets that left memory before their time."""

    def went_on(self, tenant: str, left: float) -> None:
        """Tell that a keyset is used beyond its time to live."""

    def watch(self, holder: Holder) -> None:
        """Ask a keyring, whenever somebody collects, what it holds."""

    @contextmanager
    def resealing(self, table: str, tenant: str) -> Iterator[None]:
        """Be a span while a tenant's rows of a table are sealed anew."""
        yield

    def resealed(self, table: str, rows: int) -> None:
        """Count rows that were sealed anew."""

    def tried_again(self) -> None:
        """Count what a database could not do just now, and was asked for once more."""

    def fell_back(self, context: str) -> None:
        """Count a value that was read from the plaintext column which a sealed one adopts."""

    def opened_by_replica(self, region: str) -> None:
        """Count a key that a replica of a multi-Region KMS key has unwrapped."""

    @contextmanager
    def fetching(self, *, ahead: bool) -> Iterator[None]:
        """Measure a fetch of a keyset."""
        yield

    @contextmanager
    def calling(self, operation: str, tenant: str | None) -> Iterator[None]:
        """Measure a call to a KMS, with what is tried again."""
        yield


class OpenTelemetry(Telemetry):
    """What is told to OpenTelemetry.

    Args:
        meter: Who makes the instruments; the one of the process by default.
    """

    def __init__(self, meter: Meter | None = None) -> None:
        from opentelemetry import metrics, trace

        meter = meter or metrics.get_meter("pii_vault", __version__)
        self._span: Final = trace.get_current_span
        self._tracer: Final = trace.get_tracer("pii_vault", __version__)
        self._rows: Final = meter.create_counter(
            "pii_vault.reencryption.rows", "{row}", "Rows that were sealed anew, by table."
        )
        self._retries: Final = meter.create_counter(
            "pii_vault.reencryption.retries", "{attempt}", "What a database could not do at once, and was asked again."
        )
        self._lookups: Final = meter.create_counter(
            "pii_vault.keyring.lookups", "{lookup}", "Scopes that wanted a tenant's keys, by how they came by them."
        )
        self._evictions: Final = meter.create_counter(
            "pii_vault.keyring.evictions", "{keyset}", "Keysets that left memory before their time, by reason."
        )
        self._fetches: Final = meter.create_histogram(
            "pii_vault.keyring.fetch.duration", "s", "Fetches of keysets, from the key store and the KMS."
        )
        self._overdue: Final = meter.create_counter(
            "pii_vault.keyring.overdue", "{keyset}", "Keysets used beyond their time to live, within the grace."
        )
        self._calls: Final = meter.create_histogram(
            "pii_vault.kms.duration", "s", "Calls to a KMS, by operation and tenant, with what was tried again."
        )
        self._fallbacks: Final = meter.create_counter(
            "pii_vault.adoption.fallbacks", "{value}", "Values read from the plaintext column, by the column's context."
        )
        self._replicas: Final = meter.create_counter(
            "pii_vault.kms.replicas",
            "{key}",
            "Keys unwrapped by a replica, since the KMS key's region was unavailable.",
        )
        self._holders: Final[WeakSet[Holder]] = WeakSet()
        meter.create_observable_gauge(
            "pii_vault.keyring.keysets", [self._count], "{keyset}", "Keysets that this process holds."
        )
        meter.create_observable_gauge(
            "pii_vault.keyring.oldest", [self._oldest], "s", "The age of the oldest of them, since the KMS was asked."
        )

    def looked_up(self, how: Lookup) -> None:
        """Count it."""
        self._lookups.add(1, {OUTCOME: how})

    def evicted(self, reason: Reason, count: int = 1) -> None:
        """Count them, and say so on the span."""
        if count:
            self._evictions.add(count, {REASON: reason})
            self._event("pii_vault.evicted", {REASON: reason, "pii_vault.keysets": count})

    def went_on(self, tenant: str, left: float) -> None:
        """Count it, and say so on the span."""
        self._overdue.add(1)
        self._event("pii_vault.overdue", {TENANT: tenant, "pii_vault.seconds_left": left})

    def watch(self, holder: Holder) -> None:
        """Ask it for what the gauges show."""
        self._holders.add(holder)

    @contextmanager
    def resealing(self, table: str, tenant: str) -> Iterator[None]:
        """Begin a span, and end it."""
        with self._tracer.start_as_current_span("pii_vault.reencryption", attributes={TABLE: table, TENANT: tenant}):
            yield

    def resealed(self, table: str, rows: int) -> None:
        """Count them."""
        self._rows.add(rows, {TABLE: table})

    def tried_again(self) -> None:
        """Count it."""
        self._retries.add(1)

    def fell_back(self, context: str) -> None:
        """Count it."""
        self._fallbacks.add(1, {CONTEXT: context})

    def opened_by_replica(self, region: str) -> None:
        """Count it, and say so on the span."""
        self._replicas.add(1, {REGION: region})
        self._event("pii_vault.replica", {REGION: region})

    @contextmanager
    def fetching(self, *, ahead: bool) -> Iterator[None]:
        """Record how long it took, and say so on the span."""
        with self._timed(self._fetches.record, "pii_vault.fetched", {"pii_vault.ahead": str(ahead).lower()}):
            yield

    @contextmanager
    def calling(self, operation: str, tenant: str | None) -> Iterator[None]:
        """Record how long it took, and say so on the span."""
        attributes: Attributes = {OPERATION: operation}
        if tenant is not None:
            attributes[TENANT] = tenant
        with self._timed(self._calls.record, "pii_vault.kms", attributes):
            yield

    @contextmanager
    def _timed(self, record: Callable[..., None], event: str, attributes: Attributes) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        except Exception as error:
            attributes = attributes | {ERROR: error.code if isinstance(error, KmsError) else type(error).__name__}
            raise
        finally:
            seconds = time.perf_counter() - began
            record(seconds, attributes)
            self._event(event, attributes | {"pii_vault.seconds": seconds})

    def _event(self, name: str, attributes: Attributes) -> None:
        span = self._span()
        if span.is_recording():
            span.add_event(name, attributes)

    def _count(self, _options: CallbackOptions) -> Iterable[Observation]:
        return self._observed(sum(count for count, _ in self._held()))

    def _oldest(self, _options: CallbackOptions) -> Iterable[Observation]:
        return self._observed(max((age for count, age in self._held() if count), default=0.0))

    def _held(self) -> list[tuple[int, float]]:
        return [holder.held() for holder in list(self._holders)]

    def _observed(self, value: float) -> list[Any]:
        from opentelemetry.metrics import Observation

        return [Observation(value)]


_lock: Final = threading.Lock()
_found: list[Telemetry] = []


def telemetry() -> Telemetry:
    """Return this process's telemetry: OpenTelemetry's if its API is installed. Instruments are made once."""
    with _lock:
        if not _found:
            try:
                _found.append(OpenTelemetry())
            except ModuleNotFoundError:
                _found.append(Telemetry())
        return _found[0]
