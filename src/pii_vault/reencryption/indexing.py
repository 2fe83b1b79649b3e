"""Complete the indexes of columns, say how far they are, and replace the key that they are made with.

All of it for the tenant in scope, in all tables whose columns declare tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import Engine, MetaData

from ..blind_index import Slot, SlotRecord
from ..errors import BlindIndexError, ConfigurationError
from ..keystore import Snapshot
from ..lifecycle import index_key
from ..lifecycle.index_key import IndexKeys
from ..lifecycle.parts import Parts
from ..orm.readiness import Lacking
from ..orm.search import Searched
from ..scope import Scope
from ..sealing import Keyset
from .coverage import counted
from .resealing import Resealing
from .running import Progress, reseal
from .targets import Problem, Target, Wanted, searched_tables


class State(StrEnum):
    """How far an index, or a further token, is."""

    READY = "ready"
    BUILDING = "building"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class IndexStatus:
    """How far one slot of a column is for one tenant.

    Attributes:
        tenant: Whose values.
        column: ``table.column``.
        context: The column's context id.
        token: The token's name; empty for the index.
        slot: Its place in the sealed value.
        form: How a value becomes its token.
        state: Ready: it is searched. Building: it is not, until no value lacks its token. Changed: it holds tokens that
            were made in another way, and what is declared now needs a slot of its own.
        missing: How many values lack their token.
        total: How many values there are.
    """

    tenant: str
    column: str
    context: str
    token: str
    slot: int
    form: str
    state: State
    missing: int
    total: int


@dataclass(frozen=True, slots=True)
class Built:
    """What completing a tenant's indexes came to.

    Attributes:
        statuses: How far each slot is.
        problems: Values that could not be sealed anew.
    """

    statuses: tuple[IndexStatus, ...]
    problems: tuple[Problem, ...]

    @property
    def complete(self) -> bool:
        """Whether everything is ready."""
        return all(each.state is State.READY for each in self.statuses)


class Step(StrEnum):
    """Where the replacement of an index key stands."""

    PREPARED = "prepared"
    ACTIVATED = "activated"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class IndexRotation:
    """What a step of replacing an index key came to.

    Attributes:
        tenant: Whose key it is.
        step: Prepared: the next key is stored, so that every process comes to hold it. Activated: it makes all tokens,
            and rows get them. Finished: its predecessor is destroyed.
        generation: The generation that makes tokens.
        other: The generation that will, or that did; None when one key lives.
        left: How many rows have tokens of the other generation.
        problems: Values that could not be sealed anew.
        next_at: From when on there is something to do, UTC; None when it is finished, or problems are to be mended.
    """

    tenant: str
    step: Step
    generation: int
    other: int | None
    left: int
    problems: tuple[Problem, ...]
    next_at: datetime | None


def status(engine: Engine, scope: Scope, metadata: MetaData) -> list[IndexStatus]:
    """Say how far each slot is: counted in the tables, and as the key store knows it."""
    keyset = scope.renew()
    return [
        _status(engine, scope, keyset, target, *each) for target in searched_tables(metadata) for each in _slots(target)
    ]


def build(engine: Engine, scope: Scope, metadata: MetaData, progress: Progress) -> Built:
    """Give every value its tokens, and say that the slots are ready where none is missing.

    Args:
        engine: On the application's database, attached to the scope's vault.
        scope: The tenant's scope, entered.
        metadata: The application's tables.
        progress: Told a table, how many of its rows are done, and of how many.

    Raises:
        ConfigurationError: no column declares tokens, or a table cannot be read or written.
        KeyStateError: the tenant has no index key.
    """
    targets = searched_tables(metadata)
    keyset = scope.renew()
    if not keyset.index_generations:
        raise index_key.lacking(scope.tenant)
    sealable = [target for target in targets if _can_be_sealed(keyset, target)]
    problems = reseal(engine, scope, sealable, Wanted(keyset.index_generations), progress)
    found = []
    for target in targets:
        for name, slot in _slots(target):
            keyset = scope.renew()
            each = _status(engine, scope, keyset, target, name, slot)
            if each.state is State.BUILDING and not each.missing:
                ready = SlotRecord(each.context, slot.number, slot.index, slot.form.text, datetime.now(UTC), False)
                scope.keyring.found_ready(keyset, ready)
                each = _status(engine, scope, scope.renew(), target, name, slot)
            found.append(each)
    return Built(tuple(found), tuple(problems))


def rotate(
    parts: Parts, engine: Engine, scope: Scope, metadata: MetaData, reason: str, progress: Progress
) -> IndexRotation:
    """Do the next step of replacing a tenant's index key, as far as the time allows. Called again, it goes on.

    Args:
        parts: What keys are made and stored with.
        engine: On the application's database, attached to the scope's vault.
        scope: The tenant's scope, entered.
        metadata: The application's tables, all of them that declare tokens.
        reason: Why, for the audit log.
        progress: Told a table, how many of its rows are done, and of how many.

    Raises:
        ConfigurationError: the metadata lacks what is searched, or a table cannot be read or written.
        KeyStateError: the tenant has no index key, or has used up all generations.
        KmsError: the KMS refuses or does not answer.
    """
    tenant, targets = scope.tenant, searched_tables(metadata)
    snapshot = parts.store.load(tenant)
    _check_complete(snapshot, targets)
    keys = IndexKeys.of(snapshot)
    if keys.previous is None:
        for each in _jobs(engine, scope, targets, keys.active.version):
            each.declare()  # what cannot be sealed or read is found out before anything begins
            each.count()
        pending = keys.pending or index_key.prepare(parts, tenant, reason)
        known = index_key.known_at(parts, snapshot, pending)
        if parts.now() < known:
            return IndexRotation(tenant, Step.PREPARED, keys.active.version, pending.version, 0, (), known)
        index_key.activate(parts, tenant, reason)
        keys = IndexKeys.of(parts.store.load(tenant))
    previous, active = keys.previous, keys.active
    assert previous is not None
    scope.renew()
    problems = tuple(reseal(engine, scope, targets, Wanted(frozenset((active.version,))), progress))
    # Counted once more: somebody may have written with the other key meanwhile.
    left = sum(each.count() for each in _jobs(engine, scope, targets, active.version))
    drained = index_key.drained_at(previous)
    if left or parts.now() < drained:
        next_at = None if problems else max(drained, parts.now())
        return IndexRotation(tenant, Step.ACTIVATED, active.version, previous.version, left, problems, next_at)
    index_key.retire(parts, tenant, reason)
    return IndexRotation(tenant, Step.FINISHED, active.version, None, 0, (), None)


def _can_be_sealed(keyset: Keyset, target: Target) -> bool:
    """Say whether a table's values may be sealed as they are declared now; else its statuses say what changed."""
    try:
        for kind in target.kinds.values():
            keyset.check_slots(str(kind.context), kind.slots)
    except BlindIndexError:
        return False
    return True


def _check_complete(snapshot: Snapshot, targets: Sequence[Target]) -> None:
    """Refuse metadata that lacks columns that are searched: their values would not be found any longer.

    Raises:
        ConfigurationError: a column that is searched is in none of the tables.
    """
    known = {kind.context for target in targets for kind in target.kinds.values()}
    lacking = sorted({each.context for each in snapshot.slots if each.ready_at is not None} - known)
    if lacking:
        raise ConfigurationError(
            f"values of {', '.join(map(repr, lacking))} are searched for tenant {snapshot.tenant.name!r}, and the "
            "metadata has no such column with tokens",
            hint=f"name all of the application's models, or end a search that is no longer made: pii-vault index drop "
            f"{snapshot.tenant.name}",
        )


def _jobs(engine: Engine, scope: Scope, targets: Sequence[Target], generation: int) -> list[Resealing]:
    return [Resealing(engine, scope, target, Wanted(frozenset((generation,)))) for target in targets]


def _slots(target: Target) -> list[tuple[str, Slot]]:
    return [(name, slot) for name, kind in target.kinds.items() for slot in kind.slots if slot is not None]


def _status(engine: Engine, scope: Scope, keyset: Keyset, target: Target, name: str, slot: Slot) -> IndexStatus:
    context = str(target.kinds[name].context)
    lacking = Lacking(Searched((target.table, name), context, slot), keyset, scope.tenant, None)
    missing, total = map(int, counted(engine, target.name, lacking.counts()))
    known = keyset.slots.get((context, slot.number))
    if known is not None and not known.holds(slot):
        state = State.CHANGED
    else:
        ready = known is not None and known.ready_at is not None and not missing
        state = State.READY if ready else State.BUILDING
    column = f"{target.name}.{name}"
    return IndexStatus(scope.tenant, column, context, slot.label, slot.number, slot.form.text, state, missing, total)
