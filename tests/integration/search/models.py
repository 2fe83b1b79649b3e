"""One application's models twice: columns with blind indexes, and the plaintext twin that says what is found."""

from __future__ import annotations

import datetime as dt
import enum
import unicodedata
import uuid
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Date,
    DateTime,
    Double,
    Enum,
    ForeignKey,
    LargeBinary,
    Row,
    String,
    Time,
    TypeDecorator,
    Uuid,
    func,
    inspect,
    select,
)
from sqlalchemy.dialects.mysql import DATETIME, TIME
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    column_property,
    foreign,
    mapped_column,
    relationship,
    remote,
    synonym,
)
from sqlalchemy.orm.state import InstanceState

from pii_vault import (
    After,
    BlindIndex,
    EncryptedBoolean,
    EncryptedBytes,
    EncryptedDate,
    EncryptedDateTime,
    EncryptedEnum,
    EncryptedFloat,
    EncryptedInteger,
    EncryptedNumeric,
    EncryptedString,
    EncryptedTime,
    EncryptedUUID,
    LastChars,
    Prefix,
)


class Shade(enum.Enum):
    dark = 1
    light = 2
    pale = 3


def folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip().casefold()


MOMENT = DateTime().with_variant(DATETIME(fsp=6), "mariadb")
HOUR = Time().with_variant(TIME(fsp=6), "mariadb")


class Folded(TypeDecorator[str]):
    """What the twin keeps of a text that is found by its normalised form: that form."""

    impl = String(60)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else folded(value)


class Money(TypeDecorator[Decimal]):
    """SQLite has no decimals."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else float(value)

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else Decimal(str(value))


class Instant(TypeDecorator[dt.datetime]):
    """SQLite has no time zones."""

    impl = MOMENT
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value.astimezone(dt.UTC).replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value.replace(tzinfo=dt.UTC)


EMAIL = BlindIndex(name="email")
NICK = BlindIndex(normalise=("nfkc", "strip", "casefold"), name="nick")
FEW = BlindIndex(low_entropy=True)


def define(*, sealed: bool) -> SimpleNamespace:
    """Define the classes, with indexed columns or plain ones; the twins' tables have the prefix ``plain_``."""
    prefix = "" if sealed else "plain_"

    def either(encrypted: Any, plain: Any) -> Any:
        return encrypted if sealed else plain

    class Base(DeclarativeBase):
        type_annotation_map = {str: String(60)}  # MariaDB wants to know

    class Customer(Base):
        __tablename__ = f"{prefix}customers"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "customer"}
        id: Mapped[int] = mapped_column(primary_key=True)
        tenant_id: Mapped[str]
        kind: Mapped[str]
        name: Mapped[str | None]
        email: Mapped[str | None] = mapped_column(either(EncryptedString(index=EMAIL), String(60)))
        sponsor: Mapped[str | None] = mapped_column(either(EncryptedString(index=EMAIL), String(60)))
        nick: Mapped[str | None] = mapped_column(either(EncryptedString(index=NICK), Folded()))
        alias: Mapped[str | None] = mapped_column(either(EncryptedString(index=NICK), Folded()))
        code: Mapped[str | None] = mapped_column(
            either(EncryptedString(index=BlindIndex(unique=True)), String(60)), unique=None if sealed else True
        )
        contact: Mapped[str | None] = mapped_column(
            either(
                EncryptedString(
                    index=True,
                    tokens={
                        "domain": BlindIndex(part=After("@"), normalise=("casefold",)),
                        "last4": LastChars(4),
                        "prefix3": Prefix(3),
                        "weak": BlindIndex(part=LastChars(4), bits=1),
                    },
                ),
                String(60),
            )
        )
        age: Mapped[int | None] = mapped_column(either(EncryptedInteger(index=True), BigInteger()))
        score: Mapped[float | None] = mapped_column(either(EncryptedFloat(index=True), Double()))
        price: Mapped[Decimal | None] = mapped_column(either(EncryptedNumeric(index=True), Money()))
        born: Mapped[dt.date | None] = mapped_column(either(EncryptedDate(index=True), Date()))
        wakes: Mapped[dt.time | None] = mapped_column(either(EncryptedTime(index=True), HOUR))
        seen: Mapped[dt.datetime | None] = mapped_column(
            either(EncryptedDateTime(timezone=True, index=True), Instant())
        )
        made: Mapped[dt.datetime | None] = mapped_column(either(EncryptedDateTime(index=True), MOMENT))
        device: Mapped[uuid.UUID | None] = mapped_column(either(EncryptedUUID(index=True), Uuid()))
        photo: Mapped[bytes | None] = mapped_column(either(EncryptedBytes(index=True), LargeBinary()))
        vip: Mapped[bool | None] = mapped_column(either(EncryptedBoolean(index=FEW), Boolean()))
        shade: Mapped[Shade | None] = mapped_column(
            either(EncryptedEnum(Shade, index=FEW), Enum(Shade, native_enum=False))
        )
        weak: Mapped[str | None] = mapped_column(either(EncryptedString(index=BlindIndex(bits=1)), String(60)))
        note: Mapped[str | None] = mapped_column(either(EncryptedString(), String(60)))

        mail: Mapped[str | None] = synonym("email")

        @hybrid_property
        def address(self) -> str | None:
            return self.email

    class Person(Customer):
        __mapper_args__ = {"polymorphic_identity": "person"}

    class Company(Customer):
        __tablename__ = f"{prefix}companies"
        __mapper_args__ = {"polymorphic_identity": "company"}
        id: Mapped[int] = mapped_column(ForeignKey(Customer.id), primary_key=True)
        vat: Mapped[str | None] = mapped_column(either(EncryptedString(index=EMAIL), String(60)))

    class Order(Base):
        __tablename__ = f"{prefix}orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        tenant_id: Mapped[str]
        item: Mapped[str]
        email: Mapped[str | None] = mapped_column(either(EncryptedString(index=EMAIL), String(60)))
        nick: Mapped[str | None] = mapped_column(either(EncryptedString(index=NICK), Folded()))
        total: Mapped[Decimal | None] = mapped_column(either(EncryptedNumeric(index=True), Money()))
        customer: Mapped[Any] = relationship(
            Customer, primaryjoin=lambda: foreign(Order.email) == Customer.email, back_populates="orders"
        )
        customer_email: AssociationProxy[str | None] = association_proxy("customer", "email")

    Customer.orders = relationship(
        Order,
        primaryjoin=lambda: Customer.email == foreign(Order.email),
        back_populates="customer",
        order_by=Order.id,
    )
    Customer.by_nick = relationship(
        Order, primaryjoin=lambda: Customer.nick == foreign(Order.nick), viewonly=True, order_by=Order.id
    )
    Customer.sponsored = relationship(
        Customer,
        primaryjoin=lambda: Customer.email == foreign(remote(Customer.sponsor)),
        viewonly=True,
        order_by=Customer.id,
    )
    Customer.orders_count = column_property(
        select(func.count(Order.id)).where(Order.email == Customer.email).correlate_except(Order).scalar_subquery(),
        deferred=True,
    )
    Base.registry.configure()
    return SimpleNamespace(
        metadata=Base.metadata,
        Base=Base,
        Customer=Customer,
        Person=Person,
        Company=Company,
        Order=Order,
        sealed=sealed,
        prefix=prefix,
    )


SEALED = define(sealed=True)
TWIN = define(sealed=False)

NOON = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)
DEVICE = uuid.UUID(int=7)


def some_rows(m: SimpleNamespace) -> list[Any]:
    """Return objects of the tenant acme, the same for both kinds of models."""
    return [
        m.Person(
            id=1,
            name="ada",
            email="ada@x.org",
            sponsor="bob@x.org",
            nick="Ada",
            alias=" ada ",
            code="A",
            contact="ada@x.org",
            age=36,
            score=0.0,
            price=Decimal("1.1"),
            born=dt.date(1815, 12, 10),
            wakes=dt.time(7, 30),
            seen=NOON,
            made=dt.datetime(2026, 6, 1, 12),
            device=DEVICE,
            photo=b"\x00\xff",
            vip=True,
            shade=Shade.dark,
            weak="a",
            note="n",
        ),
        m.Person(
            id=2,
            name="bob@x.org",
            email="bob@x.org",
            sponsor="bob@x.org",
            nick="ＡＤＡ",
            alias="bob",
            code="B",
            contact="bob@X.ORG",
            age=36,
            score=-0.0,
            price=Decimal("1.5"),
            born=dt.date(1815, 12, 10),
            wakes=dt.time(7, 30, 0, 1),
            seen=NOON.astimezone(dt.timezone(dt.timedelta(hours=2))),
            made=dt.datetime(2026, 6, 1, 12, 0, 0, 1),
            device=uuid.UUID(int=8),
            photo=b"",
            vip=False,
            shade=Shade.light,
            weak="b",
        ),
        m.Company(
            id=3,
            name="firm",
            email="firm@x.org",
            sponsor="ada@x.org",
            nick="bob ",
            alias=None,
            code="C",
            contact="no address",
            vat="ada@x.org",
            age=2**40,
            price=Decimal(100),
            vip=True,
            weak="c",
        ),
        m.Company(id=4, name="shop", email="", sponsor=None, nick="", alias="x", vat="bob@x.org", age=-1, weak="a"),
        m.Customer(id=5, name=None, email="ADA@x.org", sponsor="firm@x.org", nick="straße", alias="STRASSE", age=0),
        m.Customer(id=6, name="none"),
        m.Order(id=1, item="pen", email="ada@x.org", nick="ada", total=Decimal("1.1")),
        m.Order(id=2, item="ink", email="ada@x.org", nick="BOB", total=Decimal(100)),
        m.Order(id=3, item="pen", email="bob@x.org", nick=None, total=None),
        m.Order(id=4, item="cup", email="nobody@x.org", nick="STRASSE", total=Decimal("1.5")),
        m.Order(id=5, item="mug", email=None, nick="strasse", total=Decimal("1.1")),
        m.Order(id=6, item="jar", email="", nick="", total=Decimal(0)),
    ]


def facts(value: Any) -> Any:
    """Turn what a statement returned into something that the sealed models and the twin have in common."""
    if isinstance(value, list):
        return [facts(each) for each in value]
    if isinstance(value, tuple | Row):
        return tuple(facts(each) for each in value)
    state = inspect(value, raiseerr=False)
    if isinstance(state, InstanceState):
        return (type(value).__name__, value.id, value.email)
    return value
