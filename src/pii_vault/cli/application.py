"""Find the application's tables, engine and sessions, where a command has to look into them."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import MetaData


def metadata_of(place: str) -> MetaData:
    """Import ``module:name`` and return the tables behind it: a declarative base's, or a `MetaData`.

    The working folder is searched too, as Python itself does for ``python -m``.

    Raises:
        ConfigurationError: there is no such module or name, it cannot be imported, or it is something else.
    """
    from sqlalchemy import MetaData

    hint = "--metadata app.models:Base"
    found = _named(place, hint)
    found = getattr(found, "metadata", found)
    if not isinstance(found, MetaData):
        raise ConfigurationError(f"{place!r} is neither a declarative base nor a MetaData", hint=hint)
    return found


def engine_of(place: str) -> Any:
    """Import ``module:name`` and return the engine behind it, an `Engine` or an `AsyncEngine`.

    Raises:
        ConfigurationError: as `metadata_of`.
    """
    from sqlalchemy import Engine

    hint = "--engine app.db:engine"
    found = _named(place, hint)
    if not isinstance(getattr(found, "sync_engine", found), Engine):
        raise ConfigurationError(f"{place!r} is no engine", hint=hint)
    return found


def sessions_of(place: str) -> Any:
    """Import ``module:name`` and return what makes the application's sessions.

    Raises:
        ConfigurationError: as `metadata_of`.
    """
    from ..orm.session import session_attachment

    hint = "--session app.db:Session"
    found = _named(place, hint)
    try:
        session_attachment(found)
    except ConfigurationError:
        raise ConfigurationError(f"{place!r} is neither a Session class nor a sessionmaker", hint=hint) from None
    return found


def _named(place: str, hint: str) -> Any:
    module, colon, name = place.partition(":")
    if not (module and colon and name):
        raise ConfigurationError(f"{place!r} is not of the form module:name", hint=hint)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found: Any = _imported(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _imported(module: str) -> object:
    try:
        return importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - an application's module can raise anything, and may quote it
        failure = type(error).__name__
    raise ConfigurationError(
        f"module {module!r} cannot be imported: {failure}", hint="run the command where the application runs"
    )
