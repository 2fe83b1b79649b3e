"""Do a batch again when a database could not do it just now: bounded, and with pauses that grow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from ..telemetry import telemetry
from .failures import passes

T = TypeVar("T")

ATTEMPTS: Final = 8
"""With pauses of at most 0.2, 0.4, 0.8 … 10 seconds: a server that starts again has half a minute."""


def with_retries(do: Callable[[], T]) -> T:
    """Do something that is a transaction of its own, again while the database cannot do it just now.

    Raises:
        sqlalchemy.exc.DBAPIError: the last attempt's error, or one that will not pass.
    """
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

    wait = wait_exponential(multiplier=0.2, max=10) + wait_random(0, 0.2)
    return Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait,
        retry=retry_if_exception(passes),
        before_sleep=lambda _: telemetry().tried_again(),
        reraise=True,
    )(do)
