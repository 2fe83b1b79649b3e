"""What others offer for the same purpose, each behind one small adapter, so that all can be measured alike.

A module of this folder names the distribution that it needs and has a function `peers`, which returns what it offers:
a column type, and what that type does to one value. A peer that is not installed is left out, by name.

None of them is misused on purpose: each does what its own documentation shows, with keys that stay in memory where it
can. What they do not have at all (tenants, versions, revocation, search) is not measured here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sqlalchemy import LargeBinary, TypeDecorator
from sqlalchemy.types import TypeEngine

MODULES = (
    "by_hand",
    "sqlalchemy_utils",
    "advanced_alchemy",
    "pydantic_encryption",
    "tink",
    "asherah",
    "aws_encryption_sdk",
)


@dataclass(frozen=True)
class Peer:
    """One way to encrypt a column.

    Attributes:
        name: What tables and plots call it.
        column: Makes the type of an encrypted column for text.
        seal: What the type does to a value that is written.
        open: What the type does to a value that is read.
        slow: It takes so long for a value that it is measured less often.
    """

    name: str
    column: Callable[[], TypeEngine[Any]]
    seal: Callable[[str], Any]
    open: Callable[[Any], str]
    slow: bool = False


@dataclass(frozen=True)
class Found:
    """The peers that are installed, the versions of their distributions, and why the others are left out."""

    peers: list[Peer]
    versions: dict[str, str]
    left_out: dict[str, str]


def found(modules: tuple[str, ...] = MODULES) -> Found:
    """Look which peers are installed."""
    peers: list[Peer] = []
    versions: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name in modules:
        try:
            module = import_module(f"{__name__}.{name}")
            peers += module.peers()
            versions[module.DISTRIBUTION] = version(module.DISTRIBUTION)
        except (ImportError, PackageNotFoundError) as error:
            left_out[name.replace("_", "-")] = f"not installed: {error}"
    return Found(peers, versions, left_out)


class SealedColumn(TypeDecorator[str]):
    """A column for a peer that has functions and no type: as fast as SQLAlchemy lets a type be."""

    impl = LargeBinary
    cache_ok = True

    def __init__(self, seal: Callable[[str], bytes], open_: Callable[[bytes], str]) -> None:
        super().__init__()
        self.seal, self.open_ = seal, open_

    def bind_processor(self, _dialect: Any) -> Any:
        seal = self.seal
        return lambda value: None if value is None else seal(value)

    def result_processor(self, _dialect: Any, _coltype: object) -> Any:
        open_ = self.open_
        return lambda value: None if value is None else open_(value)


def from_functions(name: str, seal: Callable[[str], bytes], open_: Callable[[bytes], str], slow: bool = False) -> Peer:
    return Peer(name, lambda: SealedColumn(seal, open_), seal, open_, slow)


def from_type(name: str, make: Callable[[], Any]) -> Peer:
    """A peer that has a TypeDecorator."""
    one = make()
    return Peer(
        name, make, lambda text: one.process_bind_param(text, None), lambda value: one.process_result_value(value, None)
    )
