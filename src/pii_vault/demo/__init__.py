"""The demo: a small application that shows on one screen what pii_vault does, and checks each claim it makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def run(
    *,
    database_url: str | None = None,
    kms: str = "local",
    endpoint_url: str | None = None,
    keys: Sequence[str] = (),
    console: Console | None = None,
) -> bool:
    """Play the demo.

    Args:
        database_url: A PostgreSQL database, or None for a SQLite file in a temporary folder.
        kms: ``local`` or ``aws``.
        endpoint_url: Another endpoint for AWS KMS.
        keys: Three ARNs of AWS KMS keys, the last one the platform's; none with `endpoint_url`, where it makes three.
        console: Where to print; standard output when None.

    Returns:
        Whether every claim held.
    """
    from .screen import Screen
    from .stage import stage
    from .story import Story

    screen = Screen(console)
    with stage(database_url, kms, endpoint_url, keys) as set_up:
        Story(set_up, screen).tell()
    return screen.failures == 0
