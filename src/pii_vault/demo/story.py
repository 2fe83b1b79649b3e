"""What happens in the demo, step by step. Each step does it, looks at the outcome and tells the screen."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import date
from typing import Any, Final

from sqlalchemy import event, select, text
from sqlalchemy.orm import sessionmaker

from ..errors import KmsDeniedError, OpenError, PiiVaultError
from ..vault import Vault
from .model import Base, Patient
from .screen import Screen
from .stage import TENANTS, Stage

TTL: Final = 2.0
"""Short, so that nobody waits long for the dark; 300 seconds is the library's own."""

PEOPLE: Final = {
    "acme": [
        ("Ada Lovelace", "ada@example.com", date(1815, 12, 10)),
        ("Alan Turing", "alan@example.com", date(1912, 6, 23)),
    ],
    "globex": [("Grace Hopper", "grace@example.com", date(1906, 12, 9))],
}
LATER: Final = ("Mary Somerville", "mary@example.com", date(1780, 12, 26))

_SLACK: Final = 1.0
_POLL: Final = 0.05


class Story:
    """The demo's seven steps.

    Args:
        stage: Where it plays.
        screen: Who is told.
    """

    def __init__(self, stage: Stage, screen: Screen) -> None:
        self._stage = stage
        self._screen = screen
        self._vault = Vault(stage.database.engine, kms=stage.keys.kms, platform_key=stage.keys.platform, ttl=TTL)
        self._sessions = sessionmaker(stage.database.engine)
        self._vault.attach(stage.database.engine, self._sessions, tenant_column="tenant_id")

    def tell(self) -> None:
        """Play all steps."""
        self._screen.opening(self._stage.database.name, self._stage.keys.name)
        self._two_customers()
        self._stored_and_returned()
        self._search()
        self._rotation()
        self._other_tenant()
        self._dark_and_light()
        self._proof()
        self._screen.closing()

    def _two_customers(self) -> None:
        self._screen.step("Two customers, each with a KMS key of its own. A KMS key never leaves its KMS.")
        self._vault.create_all()
        Base.metadata.create_all(self._stage.database.engine)
        records = [
            self._vault.add_tenant(name, key=key) for name, key in zip(TENANTS, self._stage.keys.arns, strict=True)
        ]
        self._screen.tenants(
            (record.name, key, f"{record.identity.keyset_id:08x}")
            for record, key in zip(records, self._stage.keys.arns, strict=True)
        )

    def _stored_and_returned(self) -> None:
        self._screen.step("The application writes and reads ordinary SQLAlchemy. The database holds sealed values.")
        for tenant, people in PEOPLE.items():
            self._write(tenant, *people)
        ada = self._read("acme")[0]
        self._screen.side_by_side(self._emails()[0][2], ada)
        stored = self._stage.database.stored_bytes()
        plain = [part.encode() for people in PEOPLE.values() for name, email, _ in people for part in (name, email)]
        self._screen.claim(
            not any(each in stored for each in plain) and len(stored) > 1000,
            f"None of the {len(plain)} names and addresses is in the database: {len(stored):,} bytes searched.",
        )
        self._screen.claim(
            [(each.name, each.email, each.born) for each in self._read("acme")] == PEOPLE["acme"],
            "The application gets back what it wrote.",
        )

    def _search(self) -> None:
        self._screen.step('select(Patient).where(Patient.name == "ADA LOVELACE") compares tokens, and opens no value.')
        asked: list[tuple[str, list[object]]] = []
        engine = self._stage.database.engine

        def listen(_connection: object, _cursor: object, sql: str, parameters: Any, *_more: object) -> None:
            if sql.startswith("SELECT patients.id"):
                asked.append((sql, list(parameters.values() if isinstance(parameters, dict) else parameters)))

        event.listen(engine, "before_cursor_execute", listen)
        found = {tenant: self._found(tenant, "ADA LOVELACE") for tenant in TENANTS}
        event.remove(engine, "before_cursor_execute", listen)
        sql, values = asked[0]
        self._screen.searched(sql[sql.index("WHERE") :])
        self._screen.claim(
            found == {"acme": ["Ada Lovelace"], "globex": []} and "lovelace" not in str(values).lower(),
            "Found in acme's scope in any spelling, not in globex's. The database was not told the name.",
        )

    def _rotation(self) -> None:
        self._screen.step('vault.rotate("acme") makes a new data key. No row is touched; new rows use the new key.')
        before = self._emails()
        version = self._vault.rotate("acme").version
        untouched = self._emails() == before
        self._write("acme", LATER)
        opened = {each.id: each.email for tenant in TENANTS for each in self._read(tenant)}
        headers = self._headers()
        self._screen.versions((*header, opened.get(header[0], "")) for header in headers)
        versions = [int.from_bytes(found, "big") for _, tenant, _, found in headers if tenant == "acme"]
        self._screen.claim(
            untouched and version == 2 and versions == [1, 1, 2] and len(opened) == len(headers),
            "Old rows open with version 1, the new one with version 2. The old rows' bytes are unchanged.",
        )

    def _other_tenant(self) -> None:
        self._screen.step(
            "globex meets a row of acme: through a forgotten WHERE, then through tampering in the database."
        )
        self._screen.attempt("select acme's row in globex's scope", self._refusal(self._read_foreign, OpenError))
        self._screen.attempt(
            "put acme's bytes into globex's own row, under globex's keyset id, and select it",
            self._refusal(self._read_forged, OpenError),
        )
        self._screen.claim_last_refused(2, "Both refused: every value is sealed for its tenant and column.")

    def _dark_and_light(self) -> None:
        globex = self._stage.keys.arns[1]
        self._screen.step("globex disables its KMS key, and enables it again. Nobody at our end can prevent the dark.")
        self._read("globex")
        disabled = time.monotonic()
        self._stage.keys.owner.disable_key(globex)
        try:
            with self._screen.waiting(f"waiting for the keys in memory to expire ({TTL:.0f} s)"):
                error = self._wait_for_dark(disabled + TTL + self._stage.keys.propagation + _SLACK)
            took = time.monotonic() - disabled
            self._screen.attempt("select globex's row", error)
            self._screen.claim(
                error is not None and len(self._read("acme")) == 3,
                f"Dark after {took:.1f} s: keys live in memory for {TTL:.0f} s here, 300 s by default. acme reads on.",
            )
        finally:
            enabled = time.monotonic()
            self._stage.keys.owner.enable_key(globex)
        with self._screen.waiting("waiting for the KMS"):
            people = self._wait_for_light(enabled + TTL + self._stage.keys.propagation + _SLACK)
        self._screen.claim(
            people == [PEOPLE["globex"][0][0]],
            f"Readable again after {time.monotonic() - enabled:.1f} s, without a restart: {', '.join(people)}.",
        )

    def _proof(self) -> None:
        self._screen.step("acme's security officer wants proof. Every change of a key stands in a chained log.")
        log = self._vault.audit.entries("acme")
        self._screen.log(log[-3:])
        in_order = self._vault.audit.verify("acme")
        forged = log[-1].seq
        with self._stage.database.past_triggers("pii_vault_audit") as connection:
            edit = text("UPDATE pii_vault_audit SET entry = replace(entry, :ours, :theirs) WHERE seq = :seq")
            connection.execute(edit, {"ours": '"forced"', "theirs": '"scheduled"', "seq": forged})
        found = self._vault.audit.verify("acme")
        self._screen.claim(
            not in_order.problems and in_order.entries == forged and found.first_bad == forged,
            f"Verified. Then the owner of the database edits one: {found.problems[0]}.",
        )

    def _write(self, tenant: str, *people: tuple[str, str, date]) -> None:
        with self._vault.tenant(tenant), self._sessions.begin() as session:
            session.add_all(Patient(name=name, email=email, born=born) for name, email, born in people)

    def _read(self, tenant: str) -> list[Patient]:
        with self._vault.tenant(tenant), self._sessions() as session:
            mine = select(Patient).where(Patient.tenant_id == tenant).order_by(Patient.id)
            return list(session.scalars(mine))

    def _found(self, tenant: str, name: str) -> list[str]:
        with self._vault.tenant(tenant), self._sessions() as session:
            return [each.name for each in session.scalars(select(Patient).where(Patient.name == name))]

    def _emails(self) -> list[tuple[int, str, bytes]]:
        """Read the stored bytes past the vault."""
        with self._stage.database.engine.connect() as connection:
            rows = connection.execute(text("SELECT id, tenant_id, email FROM patients ORDER BY id"))
            return [(row.id, row.tenant_id, bytes(row.email)) for row in rows]

    def _headers(self) -> list[tuple[int, str, bytes, bytes]]:
        """Let the database cut keyset id and key version out of the stored bytes."""
        query = "SELECT id, tenant_id, substr(email, 2, 4), substr(email, 6, 2) FROM patients ORDER BY id"
        with self._stage.database.engine.connect() as connection:
            return [(row[0], row[1], bytes(row[2]), bytes(row[3])) for row in connection.execute(text(query))]

    def _id_of(self, tenant: str) -> int:
        return next(number for number, name, _ in self._emails() if name == tenant)

    def _read_foreign(self) -> str | None:
        with self._vault.tenant("globex"), self._sessions() as session:
            return session.scalar(select(Patient.email).where(Patient.id == self._id_of("acme")))

    def _read_forged(self) -> str | None:
        """Forge globex's row, read it, and take the forgery back with the transaction."""
        mine, victim = self._id_of("globex"), self._id_of("acme")
        stored = {number: sealed for number, _, sealed in self._emails()}
        forged = stored[victim][:1] + stored[mine][1:5] + stored[victim][5:]
        with self._vault.tenant("globex"), self._sessions() as session:
            session.execute(text("UPDATE patients SET email = :forged WHERE id = :id"), {"forged": forged, "id": mine})
            return session.scalar(select(Patient.email).where(Patient.id == mine))

    def _refusal(self, read: Callable[[], str | None], expected: type[PiiVaultError]) -> PiiVaultError | None:
        try:
            read()
        except expected as error:
            return error
        return None

    def _wait_for_dark(self, deadline: float) -> PiiVaultError | None:
        while time.monotonic() < deadline:
            try:
                self._read("globex")
            except KmsDeniedError as error:
                return error
            time.sleep(_POLL)
        return None

    def _wait_for_light(self, deadline: float) -> list[str]:
        while True:
            try:
                return [each.name for each in self._read("globex")]
            except KmsDeniedError:
                if time.monotonic() > deadline:
                    return []
            time.sleep(_POLL)
