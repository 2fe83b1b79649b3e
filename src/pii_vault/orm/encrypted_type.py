"""The column type that seals what is bound and opens what is read, and how a column comes to have one of its own.

A type holds static configuration only, all of it in SQLAlchemy's cache key: no vault, no tenant, no key. Compiled
statements, and the processors in them, are shared between tenants; the tenant is read from the scope for every value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, TypeVar

from sqlalchemy import CheckConstraint, Column, Dialect, Index, LargeBinary, Table, TypeDecorator, event
from sqlalchemy.dialects.mysql import LONGBLOB
from sqlalchemy.schema import ColumnCollectionConstraint
from sqlalchemy.sql.elements import ClauseElement, _truncated_label
from sqlalchemy.types import TypeEngine

from .. import encoding
from ..blind_index import INDEX, BlindIndex, Slot, Token, declared, slots_of
from ..context import context_id
from ..encoding import Encoding
from ..errors import ConfigurationError, EncodingError
from .attachment import required
from .comparator import SealedComparator
from .processors import (
    fallback_processor,
    indexed_open_processor,
    indexed_seal_processor,
    open_processor,
    seal_processor,
)
from .tokens import TokenOf, no_such_token

T = TypeVar("T")

_CONTEXTS = "pii_vault.contexts"


class EncryptedType(TypeDecorator[T]):
    """A column whose values are sealed with the active data key of the tenant in scope.

    Stored as bytes, 38 more than the encoded value and 16 more for each token; None stays NULL. ``IS NULL``,
    ``count()`` and reading the bare column are possible in SQL, and with an index equality; anything else is refused
    when the statement is compiled.

    Args:
        context: What the values are bound to; by default ``table.column``. Give it the old name when a table or
            column is renamed, and the old values stay readable.
        index: True, or a `BlindIndex`: values are found by equality. docs/leakage.md says what that tells a reader of
            the database.
        tokens: By what else values are found, by name: ``{"last4": LastChars(4)}``.

    Attributes:
        has_index: Whether values are found by equality.
    """

    impl = LargeBinary
    # SQLAlchemy asks each class for itself: a subclass of a user's decides for its own configuration.
    cache_ok = True
    comparator_factory: Any = SealedComparator

    adopts: str | None = None
    """The plaintext column of the same table whose values it takes over."""

    falls_back: bool = False
    """Whether a read may take the plaintext where no value was sealed yet."""

    home: tuple[Table, str] | None = None
    """The table that the column belongs to, and the column's name there."""

    _cache_key: Any = None
    """Made once for a column's own type: each statement that names the column asks for it."""

    def __init__(
        self,
        *,
        context: str | None = None,
        index: bool | BlindIndex = False,
        tokens: Mapping[str, Token] | None = None,
    ) -> None:
        super().__init__()
        self.context = context
        self._context_is_given = context is not None
        self._declared = declared(index, tokens)
        self.has_index = any(label == INDEX for label, _ in self._declared)
        self._slots: tuple[Slot | None, ...] | None = None

    @property
    def _static_cache_key(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        if self._cache_key is not None:
            return self._cache_key
        # SQLAlchemy takes the arguments of the constructor, but not keyword-only ones.
        key: Any = super()._static_cache_key
        more = (("context", self.context), ("tokens", self._declared), ("adopts", self.adopts, self.falls_back))
        found = (*key, *more) if isinstance(key, tuple) else key
        if self.home is not None:  # else its context is not known yet
            self._cache_key = found
        return found

    @property
    def slots(self) -> tuple[Slot | None, ...]:
        """The places of its tokens, by number; None where there is none.

        Raises:
            ConfigurationError: they cannot be declared so.
        """
        if self._slots is None:
            self._slots = slots_of(self.encoding(), self.context or "", self._declared) if self._declared else ()
        return self._slots

    def slot(self, label: str = INDEX) -> Slot:
        """Return the slot of a token, by default of the index.

        Raises:
            ConfigurationError: the column declares no such token.
        """
        for each in self.slots:
            if each is not None and each.label == label:
                return each
        known = [label for label, _ in self._declared if label != INDEX]
        raise no_such_token(self.context or type(self).__name__, label, known)

    def encoding(self) -> Encoding[Any]:
        """Return how this type's values become bytes."""
        raise ConfigurationError(f"{type(self).__name__} has no encoding; use one of its subclasses")

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Store bytes; on MySQL and MariaDB in a LONGBLOB, since a BLOB there ends at 64 KiB."""
        return dialect.type_descriptor(LONGBLOB() if dialect.name in {"mysql", "mariadb"} else LargeBinary())

    def bind_processor(self, dialect: Dialect) -> Any:
        """Return the function that seals a value."""
        attachment, context = required(dialect), self._required_context()
        if self.slots:
            return indexed_seal_processor(attachment, context, self.encoding(), self.slots)
        return seal_processor(attachment, context, self.encoding())

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        """Return the function that opens a value."""
        attachment, context = required(dialect), self._required_context()
        make = indexed_open_processor if self.slots else open_processor
        opened = make(attachment, context, self.encoding())
        return fallback_processor(attachment, context, self.column_name(), opened) if self.falls_back else opened

    def literal_processor(self, dialect: Dialect) -> Any:
        """Render no value into SQL text; an error raised here would be wrapped together with the plaintext."""
        return lambda _value: "pii_vault_refuses_to_render_a_sealed_value()"

    def coerce_compared_value(self, op: Any, value: Any) -> TypeEngine[Any]:
        """Bind what is compared with the column as the column's own type, never as plaintext."""
        return self

    def compare_values(self, x: Any, y: Any) -> bool:
        """Compare by what is stored: True is not 1, 1.10 not 1.1, and one instant has many offsets."""
        if x is None or y is None:
            return x is y
        encode = self.encoding().encode
        try:
            return encode(x) == encode(y)
        except EncodingError:
            return False  # so it is written, and refused with the column's name

    def with_variant(self, *_args: Any, **_kw: Any) -> Any:
        """Refuse it: the column would be encrypted on one database and not on another."""
        raise ConfigurationError(f"{type(self).__name__} has no variants: it is the same on every database")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.arguments().items())})"

    def arguments(self) -> dict[str, Any]:
        """Return what to give to the constructor for a type like this one, without what is the default anyway."""
        config = {name: value for name, value in self._configuration().items() if value is not None}
        if self._context_is_given:
            config["context"] = self.context
        labelled = dict(self._declared)
        index = labelled.pop(INDEX, None)
        if index is not None:
            config["index"] = True if index == BlindIndex() else index
        if labelled:
            config["tokens"] = {
                label: each.part if each == BlindIndex(part=each.part) else each for label, each in labelled.items()
            }
        return config

    def adopting(self, plaintext: str, *, falls_back: bool = False) -> Self:
        """Return a type like this one for a column that takes over the values of a plaintext column of its table.

        Whoever writes one of the two columns writes both, in one statement. The sealed column is read only when
        `pii-vault adopt` has come to the stage *switched*. docs/adoption.md tells the whole way.

        Args:
            plaintext: The plaintext column's name in the database. Unless `context` was given, values are sealed for
                ``table.plaintext``: the context that the column would have in its place.
            falls_back: Whether the column may be read before, taking the plaintext where no value was sealed yet. That
                has to be allowed too, for a time: `pii-vault adopt fallback`. For text only.

        Raises:
            ConfigurationError: `falls_back` for values that are not text.
        """
        if falls_back and self.encoding().codecs != (encoding.TEXT,):
            raise ConfigurationError(
                f"{type(self).__name__} cannot fall back to a plaintext column: only text can",
                hint="leave out falls_back, and read the plaintext column until the switch",
            )
        own = self.copy()
        own.adopts, own.falls_back, own._cache_key = plaintext, falls_back, None
        return own

    def column_name(self) -> str:
        """Return what the column is called in messages: with its table, or by its context where it has none."""
        return str(self.context) if self.home is None else f"{self.home[0].name}.{self.home[1]}"

    def within(self, context: str) -> Self:
        """Return a type like this one outside of any table, for values of a context, unless it has been given one."""
        return self.bound_to(self.context if self._context_is_given else context)

    def bound_to(self, context: str | None) -> Self:
        """Return a type like this one outside of any table, given this context, or none."""
        own = self.copy()
        own.context, own._context_is_given = context, context is not None
        own.home, own._slots, own._cache_key = None, None, None
        return own

    def _configuration(self) -> dict[str, Any]:
        """Return the constructor arguments of a subclass; None stands for a default."""
        return {}

    def _required_context(self) -> str:
        if self.context is None:
            raise ConfigurationError(
                f"{type(self).__name__} is used outside a column", hint="give it context='table.column'"
            )
        return self.context

    def _set_parent(self, parent: Any, outer: bool = False, **kw: Any) -> None:
        super()._set_parent(parent, outer=outer, **kw)
        if isinstance(parent, Column):
            event.listen(parent, "after_parent_attach", _bind_to_table)


def _bind_to_table(column: Column[Any], table: Any) -> None:
    """Give a column, once its table is known, a type of its own that knows its context.

    One type object may serve many columns (type_annotation_map, Annotated), so the shared one stays as it is.
    """
    if not isinstance(table, Table):
        return
    if not isinstance(column.type, EncryptedType):
        raise ConfigurationError(
            f"{table.name}.{column.name} has an encrypted type inside a {type(column.type).__name__}, "
            "where statements on it would go unchecked",
            hint="use the encrypted type itself, or a subclass of it",
        )
    own: EncryptedType[Any] = column.type.copy()
    if not own._context_is_given:
        own.context = context_id(table.name, own.adopts or column.name)
    own.home, own._slots, own._cache_key = (table, column.name), None, None
    column.type = own
    _refuse_impossible(column, table)
    _register_context(own._required_context(), column, table)
    for slot in own.slots:
        if slot is not None and slot.create:
            _create_index(column, table, slot)


def _create_index(column: Column[Any], table: Table, slot: Slot) -> None:
    """Give the table an index for a column's tokens, as ``Column(index=True)`` does for its values."""
    # A copy of the table makes it anew with the column, as that flag says; a name that is too long is cut.
    name = _truncated_label(index_name(table.name, column.name, slot))
    Index(name, TokenOf(column, slot.label), unique=slot.unique, _column_flag=True)


def index_name(table: str, column: str, slot: Slot) -> str:
    """Return the name of the index that a type makes for a slot of its column."""
    return f"ix_{table}_{column}_{slot.label or 'blind'}"


def _refuse_impossible(column: Column[Any], table: Table) -> None:
    name = f"{table.name}.{column.name}"
    if column.primary_key or column.foreign_keys:
        raise ConfigurationError(f"{name} is encrypted and cannot be a primary or foreign key")
    by_database = (column.server_default, column.server_onupdate, column.computed)
    if any(each is not None for each in by_database) or any(map(_is_sql, (column.default, column.onupdate))):
        raise ConfigurationError(
            f"{name} is encrypted: the database cannot make its values", hint="use a value or function of Python's"
        )


def _is_sql(default: Any) -> bool:
    return default is not None and (default.is_clause_element or default.is_sequence)


def _refuse_key(part: Any, table: Any) -> None:
    """Refuse an index or a constraint, other than CHECK, over an encrypted column; over its tokens there may be one."""
    if isinstance(part, CheckConstraint):
        return
    for element in part.expressions if isinstance(part, Index) else part.columns:
        for column in _outside_tokens(element):
            if isinstance(column.type, EncryptedType):
                raise ConfigurationError(
                    f"{table.name}.{column.name} is encrypted and cannot be part of {type(part).__name__}: "
                    "equal values are stored as different bytes, so it would find nothing",
                    hint="declare the column with index=True, or index=BlindIndex(unique=True); an index of your own "
                    "is Index(name, …, Model.column.blind_index, unique=True)",
                )


def _outside_tokens(element: Any) -> list[Column[Any]]:
    """Return the columns of an expression, other than those of which only a token is used."""
    if isinstance(element, TokenOf):
        return []
    if isinstance(element, Column):
        return [element]
    children = element.get_children() if isinstance(element, ClauseElement) else ()
    return [column for child in children for column in _outside_tokens(child)]


event.listen(Index, "after_parent_attach", _refuse_key)
event.listen(ColumnCollectionConstraint, "after_parent_attach", _refuse_key)


def _register_context(context: str, column: Column[Any], table: Table) -> None:
    mine = (table.fullname, column.name)
    owner = table.metadata.info.setdefault(_CONTEXTS, {}).setdefault(context, mine)
    if owner != mine:
        raise ConfigurationError(
            f"{'.'.join(mine)} and {'.'.join(owner)} have the same context {context!r}: their values could be swapped",
            hint="give one of them context=",
        )
