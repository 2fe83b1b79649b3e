"""What `index` prints as JSON. The names are promised, as those in `reports` are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..blind_index import Plan
    from ..reencryption.indexing import Built, IndexRotation, IndexStatus
    from ..reencryption.targets import Problem


@dataclass(frozen=True)
class IndexSlot:
    """How far one slot of a column is.

    Attributes:
        column: The column, `table.column`.
        context: The column's context id, which `index drop` takes.
        slot: Its place in the sealed values, from 0.
        token: The token's name; null for the column's index.
        form: How a value becomes its token, as it is declared now.
        state: `ready` when it is searched; `building` until no value lacks its token and that was noticed; `changed`
            when it holds tokens that were made in another way, and what is declared now needs a slot of its own.
        missing: How many values lack their token.
        total: How many values there are.
    """

    column: str
    context: str
    slot: int
    token: str | None
    form: str
    state: str
    missing: int
    total: int

    @classmethod
    def of(cls, found: IndexStatus) -> IndexSlot:
        """Return the document about a slot."""
        return cls(
            column=found.column,
            context=found.context,
            slot=found.slot,
            token=found.token or None,
            form=found.form,
            state=str(found.state),
            missing=found.missing,
            total=found.total,
        )

    @property
    def answers(self) -> bool:
        """Whether a search gets its answer: no value would be missed."""
        return self.state != "changed" and not self.missing


@dataclass(frozen=True)
class RowProblem:
    """A value that could not be sealed anew. It stays as it is.

    Attributes:
        column: The column, `table.column`.
        key: The row's primary key, as text; its parts with commas between.
        problem: What is wrong, one sentence without the value.
    """

    column: str
    key: str
    problem: str

    @classmethod
    def of(cls, found: Problem) -> RowProblem:
        """Return the document about a value."""
        return cls(found.column, found.key, found.why)


@dataclass(frozen=True)
class IndexesFound:
    """How far a tenant's indexes are.

    Attributes:
        tenant: The tenant's name.
        complete: Whether no value lacks a token and no slot has changed; false when nobody could look.
        suspended: Whether the tenant is suspended, so that nobody looked.
        slots: The slots of all columns, in the order of the tables; empty when nobody looked.
        failure: Why nobody could look, one sentence; null otherwise.
    """

    tenant: str
    complete: bool
    suspended: bool
    slots: list[IndexSlot]
    failure: str | None

    @classmethod
    def of(cls, tenant: str, found: list[IndexStatus]) -> IndexesFound:
        """Return the report on a tenant."""
        slots = [IndexSlot.of(each) for each in found]
        return cls(tenant, all(each.answers for each in slots), False, slots, None)

    @classmethod
    def not_looked_at(cls, tenant: str, *, suspended: bool, failure: str | None) -> IndexesFound:
        """Return the report on a tenant about which nothing is known."""
        return cls(tenant, False, suspended, [], failure)


@dataclass(frozen=True)
class IndexesBuilt:
    """What completing a tenant's indexes came to.

    Attributes:
        tenant: The tenant's name.
        complete: Whether all of its slots are searched now; false when it failed.
        suspended: Whether the tenant is suspended, so that nothing was done.
        slots: The slots of all columns, in the order of the tables; empty when it failed.
        problems: Values that could not be sealed anew.
        failure: Why it failed, one sentence; null otherwise.
    """

    tenant: str
    complete: bool
    suspended: bool
    slots: list[IndexSlot]
    problems: list[RowProblem]
    failure: str | None

    @classmethod
    def of(cls, tenant: str, done: Built) -> IndexesBuilt:
        """Return the report on a tenant."""
        slots = [IndexSlot.of(each) for each in done.statuses]
        return cls(tenant, done.complete, False, slots, [RowProblem.of(each) for each in done.problems], None)

    @classmethod
    def not_looked_at(cls, tenant: str, *, suspended: bool, failure: str | None) -> IndexesBuilt:
        """Return the report on a tenant for which nothing was done."""
        return cls(tenant, False, suspended, [], [], failure)


@dataclass(frozen=True)
class IndexRotated:
    """What a step of replacing an index key came to.

    Attributes:
        tenant: The tenant's name.
        step: `prepared` (the next index key is stored and makes no tokens yet), `activated` (it makes all tokens, and
            its predecessor's are still looked for) or `finished` (the predecessor is destroyed).
        generation: The generation of the index key that makes tokens.
        other_generation: The generation that will, or that did; null when it is finished.
        rows_left: How many rows have tokens of that other generation and get new ones; 0 before it is activated.
        next_at: From when on the same command has something to do; null when it is finished, or when problems are to be
            mended first.
        problems: Values that could not be sealed anew.
    """

    tenant: str
    step: str
    generation: int
    other_generation: int | None
    rows_left: int
    next_at: datetime | None
    problems: list[RowProblem]

    @classmethod
    def of(cls, done: IndexRotation) -> IndexRotated:
        """Return the report on a step."""
        return cls(
            tenant=done.tenant,
            step=str(done.step),
            generation=done.generation,
            other_generation=done.other,
            rows_left=done.left,
            next_at=done.next_at,
            problems=[RowProblem.of(each) for each in done.problems],
        )


@dataclass(frozen=True)
class IndexDropped:
    """What became of a slot.

    Attributes:
        tenant: The tenant's name.
        context: The column's context id.
        slot: The slot.
        dropped: Whether it was searched until now.
    """

    tenant: str
    context: str
    slot: int
    dropped: bool


@dataclass(frozen=True)
class TokenPlan:
    """How many bits of a token to keep.

    Attributes:
        rows: How many rows of one tenant it is for.
        distinct: How many values there can be; null for more than there are rows.
        others: How many bits the column's other tokens have together.
        verdict: `shorten` (keep between the minimum and the maximum), `few_rows` (too few rows to share tokens),
            `few_values` (too few values to be hidden) or `others_tell` (the other tokens tell which values are equal).
        minimum: The fewest bits to keep; null unless the verdict is `shorten`.
        maximum: The most bits to keep; null likewise.
        advice: What to do, in words.
    """

    rows: int
    distinct: int | None
    others: int
    verdict: str
    minimum: int | None
    maximum: int | None
    advice: str

    @classmethod
    def of(cls, found: Plan, distinct: int | None, others: int) -> TokenPlan:
        """Return the report on a plan."""
        return cls(
            rows=found.rows,
            distinct=distinct,
            others=others,
            verdict=found.verdict.value,
            minimum=found.minimum,
            maximum=found.maximum,
            advice=found.advice,
        )
