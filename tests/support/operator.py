"""Somebody who runs `pii-vault` against a key store and a KMS, and whose every output is searched for secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Engine, create_engine, make_url, select
from tests.support.audited import owning
from tests.support.canary import Secrets, watched_keys
from tests.support.command import Outcome, Shown, pii_vault_answered, pii_vault_command, pii_vault_here
from tests.support.documents import document
from tests.support.strict_kms import StrictKms

from pii_vault import LocalKms
from pii_vault.keystore.schema import audit_chains, audit_keys, keks, keys

PASSWORD = "hunter2-CANARY"


class KmsKeys(Protocol):
    """What tests do to customers' KMS keys."""

    settings: Mapping[str, str]
    platform_key: str

    def new_key(self) -> list[str]:
        """Make a customer's KMS key; return it as options of `tenant add`, its ARN as the second."""
        ...

    def disable(self, arn: str) -> None: ...
    def enable(self, arn: str) -> None: ...
    def rotate(self, arn: str) -> None: ...
    def set_rotation_period(self, arn: str, days: int | None) -> None: ...
    def let_move(self, old: list[str], new: list[str]) -> None:
        """Let whoever uses the old key re-encrypt to the new one; both as `new_key` returned them."""
        ...


class LocalKeys:
    """Keys in a file."""

    def __init__(self, file: Path) -> None:
        self._kms = LocalKms(file)
        self.settings = {"PII_VAULT_KMS": f"local:{file}"}
        self.platform_key = self._kms.platform_key()
        self.disable, self.enable = self._kms.disable_key, self._kms.enable_key
        self.rotate, self.set_rotation_period = self._kms.rotate_key, self._kms.set_rotation_period

    def new_key(self) -> list[str]:
        return ["--key", self._kms.create_key()]

    def let_move(self, old: list[str], new: list[str]) -> None:
        """Do nothing: a file has no policies."""


class StrictKeys:
    """Keys behind HTTP, each with a role that wants its ExternalId."""

    def __init__(self, kms: StrictKms) -> None:
        self._kms = kms
        self.platform_key = kms.platform_key()
        self.settings = {"PII_VAULT_PLATFORM_KEY": self.platform_key, **kms.environment()}
        self.disable, self.enable, self.rotate = kms.disable, kms.enable, kms.rotate
        self.set_rotation_period = kms.set_rotation_period

    def new_key(self) -> list[str]:
        key = self._kms.customer_key()
        assert key.role_arn is not None
        return ["--key", key.arn, "--role-arn", key.role_arn, "--external-id", str(key.external_id)]

    def let_move(self, old: list[str], new: list[str]) -> None:
        """Allow it in the new key's policy."""
        self._kms.allow(new[1], old[3])


class Operator:
    """Runs commands; the settings are variables, the URL has a password in it."""

    def __init__(self, url: str, kms: KmsKeys, engine: Engine) -> None:
        self.kms = kms
        self.engine = engine
        self.settings = {"PII_VAULT_DATABASE_URL": url, "PII_VAULT_ACTOR": "ops@example.com", **kms.settings}
        self.outputs: list[str] = []
        self.secrets = Secrets(PASSWORD)

    def run(self, *arguments: str, code: int = 0, stdin: str = "", **more: str) -> Outcome:
        """Run a command in this process, note what it prints, and compare its exit code."""
        self.collect()
        with watched_keys(self.secrets):
            done = pii_vault_here(*arguments, stdin=stdin, **{**self.settings, **more})
        return self._noted(done, arguments, code)

    def process(self, *arguments: str, code: int = 0, **more: str) -> Outcome:
        """Run a command as another process."""
        self.collect()
        return self._noted(pii_vault_command(*arguments, **{**self.settings, **more}), arguments, code)

    def terminal(self, *arguments: str, question: str = "", answer: str = "", **more: str) -> Shown:
        """Run a command on a terminal."""
        self.collect()
        shown = pii_vault_answered(*arguments, question=question, answer=answer, **{**self.settings, **more})
        self.outputs.append(shown.raw)
        return shown

    def json(self, command: str, *arguments: str, code: int = 0) -> Any:
        """Run a command with --json and return its document, which is as docs/ describes it."""
        done = self.run(*command.split(), *arguments, "--json", code=code)
        return document(command, done.out)

    def fails(self, *arguments: str, code: int = 1, **more: str) -> str:
        """Run a command that fails; return its one line, without the command's name and the end of the line."""
        done = self.run(*arguments, code=code, **more)
        assert done.out == "", arguments
        assert re.fullmatch(r"pii-vault: [^\n]*\n", done.err), (arguments, done.err)
        return done.err[len("pii-vault: ") : -1]

    def rows(self, *arguments: str, code: int = 0) -> list[list[str]]:
        """Run a command and return the fields of its lines."""
        return [line.split("\t") for line in self.run(*arguments, code=code).out.splitlines()]

    def collect(self) -> None:
        """Note what the key store holds now and no output may show: wrapped keys, keys of MACs, proofs."""
        columns = (
            *(keks.c.wrapped, keys.c.encrypted_key, keys.c.activation_mac),
            *(audit_chains.c.root, audit_chains.c.sealed_key, audit_keys.c.wrapped),
        )
        with self.engine.connect() as connection:
            if not self.engine.dialect.has_table(connection, "pii_vault_keys"):
                return
            for column in columns:
                for value in connection.scalars(select(column)):
                    if value:
                        self.secrets.add(bytes(value))

    def check_outputs(self) -> None:
        """Fail if a command has shown a secret."""
        self.collect()
        assert [output for output in self.outputs if self.secrets.in_text(output)] == []

    def alter(self, *statements: Any) -> None:
        """Change rows as the owner of the database does, past every trigger."""
        with owning(self.engine) as connection:
            for statement in statements:
                connection.execute(statement)

    def _noted(self, done: Outcome, arguments: tuple[str, ...], code: int) -> Outcome:
        self.outputs += [done.out, done.err]
        assert done.code == code, (arguments, done)
        assert "Traceback" not in done.err
        return done


@contextmanager
def operator(url: str, kms: KmsKeys) -> Iterator[Operator]:
    """Give a block an operator on a fresh key store; at its end no output has shown a secret."""
    named = make_url(url)
    if named.get_backend_name() == "postgresql" and named.password is None:
        named = named.set(password=PASSWORD)  # a server that asks for none takes any
    engine = create_engine(url)
    made = Operator(named.render_as_string(hide_password=False), kms, engine)
    made.run("db", "upgrade")
    try:
        yield made
        made.check_outputs()
    finally:
        engine.dispose()
