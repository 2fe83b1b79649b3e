"""Turn the synchronous database URL of a test into the ones for asynchronous drivers."""

from sqlalchemy.engine import make_url

ASYNC_DRIVERS = {"sqlite": ("aiosqlite",), "postgresql": ("psycopg", "asyncpg")}


def async_url(url: str, driver: str | None = None) -> str:
    """Return `url` for an asynchronous driver, by default the first that the database has."""
    parsed = make_url(url)
    backend = parsed.get_backend_name()
    known = ASYNC_DRIVERS[backend]
    chosen = driver or known[0]
    if chosen not in known:
        raise ValueError(f"{backend} has the asynchronous drivers {', '.join(known)}, not {chosen}.")
    return parsed.set(drivername=f"{backend}+{chosen}").render_as_string(hide_password=False)


def async_urls(url: str) -> list[str]:
    """Return `url` once for each asynchronous driver of its database."""
    return [async_url(url, driver) for driver in ASYNC_DRIVERS.get(make_url(url).get_backend_name(), ())]
