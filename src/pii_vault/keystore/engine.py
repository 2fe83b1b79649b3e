"""The key store's own engine."""

from __future__ import annotations

from sqlalchemy import URL, Engine, StaticPool, create_engine, make_url

from ..errors import ConfigurationError


def open_engine(database: str | URL) -> Engine:
    """Make an engine for the key store from a URL.

    Raises:
        ConfigurationError: the URL names an asynchronous driver.
    """
    url = make_url(database)
    if url.get_dialect().is_async:
        raise ConfigurationError(
            f"the key store needs a synchronous driver, {url.drivername} is asynchronous",
            hint="give the vault a URL such as postgresql+psycopg://; the application's engine may be asynchronous",
        )
    if url.get_backend_name() != "sqlite":
        # Looked at before it is used: one from before the database was restarted is no failure of the key store.
        return create_engine(url, pool_size=2, max_overflow=8, pool_pre_ping=True)
    if url.database in (None, "", ":memory:"):
        # Every connection to such a database would be an empty database of its own.
        return create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False})
    return create_engine(url)
