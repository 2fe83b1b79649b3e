"""Make the next thing in another thread while the present one is used."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def one_ahead(things: Iterator[T]) -> Iterator[T]:
    """Yield what an iterator yields, each made while the one before is used; errors come in their turn.

    The iterator runs in one other thread, in the context of now: the tenant in scope is there, too. When nobody goes
    on asking, what is just being made is waited for.
    """
    context = copy_context()

    def more() -> list[T]:
        return context.run(lambda: list(islice(things, 1)))

    with ThreadPoolExecutor(1, "pii-vault-ahead") as other:
        following = other.submit(more)
        while made := following.result():
            following = other.submit(more)
            yield made[0]
