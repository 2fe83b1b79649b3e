"""A tenant about whom there is something to report: several data keys, a re-wrap, a compromised key, plaintext."""

from __future__ import annotations

from sqlalchemy import LargeBinary, String, column, insert, table
from tests.support.application import Application

PATIENTS = table("patients", column("tenant_id", String), column("email", LargeBinary), column("phone", LargeBinary))

PLAINTEXT = "never-sealed@acme.example"


def live(app: Application) -> None:
    """Rotate, re-wrap, compromise; another customer's plaintext lies in the same table."""
    ops = app.ops
    ops.run("tenant", "set", "acme", "--ttl", "300", "--grace", "60", "--rotation-days", "90")
    ops.run("key", "rotate", "acme")
    app.write("acme", 12)
    ops.kms.rotate(app.kms_key)
    ops.run("rewrap", "acme", "--reason", "newer material")
    ops.run("key", "rotate", "acme")
    app.write("acme", 8)
    write_raw(app, "glob", b"somebody-else@glob.example")


def go_wrong(app: Application) -> None:
    """Find that a key is compromised, and that somebody writes past the vault."""
    app.ops.run("key", "compromise", "acme", "2", "--yes", "--reason", "laptop lost")
    app.ops.secrets.add(PLAINTEXT)
    write_raw(app, "acme", PLAINTEXT.encode())


def write_raw(app: Application, tenant: str, email: bytes) -> None:
    """Write an address past the vault."""
    with app.engine.begin() as connection:
        connection.execute(insert(PATIENTS).values(tenant_id=tenant, email=email))
