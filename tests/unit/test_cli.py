"""The command as a person or a script meets it: its output, its exit code, its errors."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from tests.support.command import (
    Outcome,
    commands,
    environment,
    pii_vault_command,
    pii_vault_here,
    pii_vault_on_terminal,
)

from pii_vault import LocalKms, __version__
from pii_vault.envelope import SUITE_ROW, Header
from pii_vault.keystore import schema

SECRET = "hunter2-SECRET"

SEALED = Header(0xFA, 0x6C5108A2, 258, 1).pack() + bytes(12) + b"abcd" + bytes(16)
WITH_TOKEN = Header(SUITE_ROW, 1, 65535, 200, 3, 2).pack() + bytes(32) + bytes(12) + bytes(16)

ARGUMENTS = {
    "onboard": ["acme", "--account", "111122223333", "--region", "eu-west-1"],
    "tenant add": ["acme"],
    "tenant show": ["acme"],
    "tenant set": ["acme", "--rotation-days", "90"],
    "tenant suspend": ["acme"],
    "tenant resume": ["acme"],
    "tenant erase": ["acme", "--yes"],
    "key list": ["acme"],
    "key validate": ["acme"],
    "key rotate": ["acme"],
    "key evict": ["acme"],
    "key deactivate": ["acme"],
    "key compromise": ["acme", "1", "--yes"],
    "key destroy": ["acme", "1", "--yes", "--metadata", "pii_vault.keystore.schema:metadata"],
    "doctor": ["acme"],
    "index status": ["acme", "--metadata", "pii_vault.keystore.schema:metadata"],
    "index build": ["acme", "--metadata", "pii_vault.keystore.schema:metadata"],
    "index rotate": ["acme", "--metadata", "pii_vault.keystore.schema:metadata"],
    "index drop": ["acme", "patients.email", "0"],
    "rotate": ["--due"],
    "rewrap": ["acme"],
    "reencrypt": ["acme", "--metadata", "pii_vault.keystore.schema:metadata"],
    "report": ["acme"],
    "coverage": ["--metadata", "pii_vault.keystore.schema:metadata"],
    "adopt status": ["--metadata", "pii_vault.keystore.schema:metadata"],
    "adopt next": ["people.email", "--metadata", "pii_vault.keystore.schema:metadata", "--tenant", "acme"],
    "adopt rollback": ["people.email", "--metadata", "pii_vault.keystore.schema:metadata", "--tenant", "acme"],
    "adopt fallback": ["people.email", "--metadata", "pii_vault.keystore.schema:metadata", "--tenant", "acme", "--end"],
    "audit log": ["acme"],
    "kms cost": ["--processes", "2"],
    "kms history": ["acme"],
    "kms rotation": ["acme"],
    "audit verify": ["acme"],
    "audit anchor": ["acme"],
}
"""What a command cannot do without."""

ON_THE_KEY_STORE = sorted(
    name
    for name, command in commands().items()
    if name != "demo" and any("--database-url" in param.opts for param in command.params)
)


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'keys.sqlite3'}"


@pytest.fixture
def kms(tmp_path: Path) -> LocalKms:
    return LocalKms(tmp_path / "kms.json")


@pytest.fixture
def settings(database: str, tmp_path: Path) -> dict[str, str]:
    """This test's database and KMS as variables."""
    return {"PII_VAULT_DATABASE_URL": database, "PII_VAULT_KMS": f"local:{tmp_path / 'kms.json'}"}


@pytest.fixture
def command(settings: dict[str, str]) -> Callable[..., Outcome]:
    """The command in this process, with this test's settings in its environment."""

    def run(*arguments: str, **more: str) -> Outcome:
        return pii_vault_here(*arguments, **settings | more)

    return run


def test_a_tenants_first_day_in_commands(settings: dict[str, str], kms: LocalKms) -> None:
    def process(*arguments: str) -> Outcome:
        return pii_vault_command(*arguments, **settings)

    key = kms.create_key()
    assert process("db", "upgrade") == Outcome(0, f"the key store is at revision {schema.REVISION}\n", "")
    assert process("db", "upgrade").code == 0
    added = process("tenant", "add", "acme", "--key", key)
    assert (added.code, added.err) == (0, "")
    assert added.out.startswith("tenant acme is registered, keyset ")
    assert process("tenant", "add", "acme", "--key", key) == added
    rotated = Outcome(0, "tenant acme seals with data key version 2; earlier versions still open\n", "")
    assert process("key", "rotate", "acme") == rotated
    fields = process("tenant", "list").out.rstrip("\n").split("\t")
    assert [*fields[:2], *fields[3:5]] == ["acme", "in use", "2", key]


def test_a_process_says_what_the_command_in_this_process_says(settings: dict[str, str]) -> None:
    for arguments in (
        ["db", "upgrade"],
        ["tenant", "add", "acme"],
        ["tenant", "list", "--json"],
        ["key"],
        ["nonsense"],
    ):
        assert pii_vault_command(*arguments, **settings) == pii_vault_here(*arguments, **settings), arguments


def test_options_override_the_environment(database: str, kms: LocalKms, tmp_path: Path) -> None:
    elsewhere = {"PII_VAULT_DATABASE_URL": "sqlite:////nowhere/x", "PII_VAULT_KMS": "aws"}
    options = ("--database-url", database)
    assert pii_vault_here("db", "upgrade", *options, **elsewhere).code == 0
    local = ("--kms", f"local:{tmp_path / 'kms.json'}")
    assert pii_vault_here("tenant", "add", "a", "--key", kms.create_key(), *options, *local, **elsewhere).code == 0


def test_lists_current_and_check_speak_json(command: Callable[..., Outcome], kms: LocalKms) -> None:
    assert json.loads(command("db", "current", "--json").out) == {"revision": None}
    assert json.loads(command("db", "check", "--json").out) == {
        "revision": None,
        "expected": schema.REVISION,
        "problems": ["the database has no key store"],
    }
    assert json.loads(command("db", "upgrade", "--json").out) == {"revision": schema.REVISION}
    assert json.loads(command("tenant", "list", "--json").out) == []
    key = kms.create_key()
    command("tenant", "add", "acmé", "--key", key)
    (tenant,) = json.loads(command("tenant", "list", "--json").out)
    found = (tenant["name"], tenant["key_version"], tenant["kms_key_arn"], tenant["suspended"])
    assert found == ("acmé", 1, key, False)
    assert (len(bytes.fromhex(tenant["keyset_id"])), len(bytes.fromhex(tenant["uid"]))) == (4, 16)
    assert json.loads(command("db", "current", "--json").out) == {"revision": schema.REVISION}


def test_json_is_utf8_and_other_output_is_escaped_where_the_locale_has_no_such_letters(
    command: Callable[..., Outcome], settings: dict[str, str]
) -> None:
    command("db", "upgrade")
    command("tenant", "add", "acmé")
    ascii_only = settings | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    assert pii_vault_command("tenant", "list", **ascii_only).out.startswith("acm\\xe9\tin use\t")
    assert json.loads(pii_vault_command("tenant", "list", "--json", **ascii_only).out)[0]["name"] == "acmé"


def test_check_fails_while_something_is_wrong(command: Callable[..., Outcome], database: str) -> None:
    before = command("db", "check")
    assert (before.code, before.out) == (1, "the database has no key store\n")
    command("db", "upgrade")
    assert command("db", "check") == Outcome(0, f"the key store is in order, at revision {schema.REVISION}\n", "")
    engine = create_engine(database)
    with engine.begin() as connection:
        connection.execute(text("DROP TRIGGER pii_vault_keys_delete"))
    engine.dispose()
    after = command("db", "check")
    assert after.code == 1
    assert "pii_vault_keys_delete" in after.out


def test_inspect_shows_the_header_of_a_value_without_any_key() -> None:
    done = pii_vault_command("inspect", SEALED.hex())
    assert (done.code, done.err) == (0, "")
    facts = dict(line.split("  ", 1) for line in done.out.splitlines())
    assert {name: value.strip() for name, value in facts.items()} == {
        "format": "1",
        "suite": "0xfa",
        "algorithm": "AES-256-GCM",
        "bound to": "tenant, column",
        "keyset": "6c5108a2",
        "key version": "258",
        "codec": "text",
        "index generation": "none",
        "tokens": "0",
        "token bytes": "0",
        "plaintext bytes": "4",
        "stored bytes": "42",
    }


def test_inspect_counts_tokens_and_admits_an_unknown_codec() -> None:
    facts = json.loads(pii_vault_here("inspect", WITH_TOKEN.hex(), "--json").out)
    assert facts["bound_to"] == ["tenant", "column", "row"]
    assert (facts["tokens"], facts["token_bytes"], facts["plaintext_bytes"]) == (2, 32, 0)
    assert (facts["codec"], facts["codec_id"], facts["index_generation"]) == (None, 200, 3)
    assert "codec             unknown (200)\n" in pii_vault_here("inspect", WITH_TOKEN.hex()).out


@pytest.mark.parametrize("form", ["\\x{}", "0x{}", "x'{}'", "X'{}'", " {} \n"])
def test_inspect_reads_hex_as_databases_print_it(form: str) -> None:
    done = pii_vault_here("inspect", "--json", "--", form.format(SEALED.hex()))
    assert json.loads(done.out)["stored_bytes"] == len(SEALED)


@pytest.mark.parametrize("urlsafe", [False, True])
def test_inspect_reads_base64_also_from_standard_input(urlsafe: bool) -> None:
    encode = base64.urlsafe_b64encode if urlsafe else base64.b64encode
    done = pii_vault_command("inspect", "-", "--json", stdin=encode(SEALED).decode())
    assert json.loads(done.out)["keyset_id"] == "6c5108a2"


@pytest.mark.parametrize("value", [SECRET, "c2VjcmV0", SEALED.hex()[:-20], "", "fa" * 500, "zz"])
def test_inspect_refuses_what_is_no_sealed_value_and_does_not_repeat_it(value: str) -> None:
    done = pii_vault_here("inspect", value)
    assert done.code == 1
    assert_one_line(done)
    assert not value or value not in done.err


def test_the_version_is_the_packages() -> None:
    assert pii_vault_command("version") == Outcome(0, f"pii-vault {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["key", "rotate", "nobody"], "no tenant 'nobody' is registered"),
        (["tenant", "add", "acme", "--key", "arn:aws:kms:eu-west-1:111122223333:key/x"], "not a key of the local KMS"),
        (["tenant", "add", "", "--key", "{key}"], "1 to 255 characters"),
        (["tenant", "add", "acme", "--key", "{other}"], "registered already, with another KMS key"),
        (["tenant", "add", "glob", "--key", "{key}"], "is that of tenant 'acme'"),
        (["tenant", "set", "acme", "--rotation-days", "0"], "1 to 3650 days"),
        (["tenant", "show", "nobody"], "no tenant 'nobody' is registered"),
        (["key", "compromise", "acme", "7", "--yes"], "no data key version 7"),
        (["audit", "verify", "nobody"], "no tenant 'nobody' is registered"),
        (["key", "rotate", "acme", "--kms", "gcp"], "kms is aws or local:PATH"),
        (["key", "rotate", "acme", "--kms", "local"], "kms is aws or local:PATH"),
        (["key", "rotate", "acme", "--endpoint-url", "ftp://x"], "endpoint_url is an http:// or https:// address"),
        (["key", "rotate", "acme", "--endpoint-url", "http://127.0.0.1:1"], "a local KMS has no endpoint_url"),
        (["key", "rotate", "acme", "--platform-key", "alias/x"], "not an alias"),
    ],
)
def test_a_failure_is_one_line_that_says_what_to_do(
    command: Callable[..., Outcome], kms: LocalKms, arguments: list[str], reason: str
) -> None:
    command("db", "upgrade")
    key, other = kms.create_key(), kms.create_key()
    command("tenant", "add", "acme", "--key", key)
    done = command(*(each.format(key=key, other=other) for each in arguments))
    assert done.code == 1
    assert reason in done.err
    assert_one_line(done)


def test_a_refusal_of_the_kms_is_one_line(command: Callable[..., Outcome], kms: LocalKms) -> None:
    command("db", "upgrade")
    key = kms.create_key()
    command("tenant", "add", "acme", "--key", key)
    kms.disable_key(key)
    done = command("key", "rotate", "acme")
    assert done.code == 1
    assert "DisabledException" in done.err
    assert_one_line(done)


@pytest.mark.parametrize("name", ON_THE_KEY_STORE)
def test_a_missing_database_url_is_one_line_that_names_the_option_the_variable_and_the_file(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    done = pii_vault_here(*name.split(), *ARGUMENTS.get(name, []), PII_VAULT_KMS=f"local:{tmp_path / 'kms.json'}")
    assert done.code == 1
    assert_one_line(done)
    assert all(way in done.err for way in ("--database-url", "PII_VAULT_DATABASE_URL", "pii-vault.toml"))


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://user:{SECRET}@127.0.0.1:1/name",
        f"postgresql+asyncpg://user:{SECRET}@127.0.0.1:1/name",
        f"nosuch://user:{SECRET}@127.0.0.1:1/name",
        f"{SECRET}",
        f"postgresql+psycopg://user:{SECRET}@127.0.0.1:notaport/name",
        f"mysql://user:{SECRET}@127.0.0.1:1/name",
        f"sqlite:////nowhere/{SECRET}/file",
    ],
)
def test_no_error_shows_the_database_url(command: Callable[..., Outcome], url: str) -> None:
    refuse_to_show(command("tenant", "list", PII_VAULT_DATABASE_URL=url))


@pytest.mark.parametrize("name", ON_THE_KEY_STORE)
def test_no_command_shows_the_database_url(name: str, tmp_path: Path) -> None:
    url = f"postgresql+psycopg://user:{SECRET}@127.0.0.1:1/name"
    arguments = [*name.split(), *ARGUMENTS.get(name, [])]
    refuse_to_show(pii_vault_here(*arguments, PII_VAULT_DATABASE_URL=url, PII_VAULT_KMS=f"local:{tmp_path / 'k.json'}"))


def refuse_to_show(done: Outcome) -> None:
    assert done.code == 1
    assert SECRET not in done.err + done.out
    assert_one_line(done)


def test_an_unexpected_error_shows_its_kind_and_not_its_text(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import pii_vault.keystore.upgrade as module\n"
        f"def current(engine, schema): raise RuntimeError({SECRET!r})\n"
        "module.current = current\n"
    )
    path = f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"
    settings = {"PII_VAULT_DATABASE_URL": "sqlite://", "PYTHONPATH": path}
    done = pii_vault_command("db", "current", **settings)
    assert done.code == 1
    assert done.err == "pii-vault: unexpected RuntimeError (set PII_VAULT_TRACEBACK=1 to see where)\n"
    asked = pii_vault_command("db", "current", PII_VAULT_TRACEBACK="1", **settings)
    assert "Traceback" in asked.err


def test_a_terminal_gets_a_table_with_a_head(command: Callable[..., Outcome], database: str, kms: LocalKms) -> None:
    command("db", "upgrade")
    command("tenant", "add", "acme", "--key", kms.create_key())
    shown = pii_vault_on_terminal("tenant", "list", PII_VAULT_DATABASE_URL=database, COLUMNS="200")
    assert "registered" in shown
    assert "version" in shown
    assert "\x1b[1m" in shown
    assert "\t" not in shown
    assert "\x1b" not in pii_vault_on_terminal(
        "tenant", "list", PII_VAULT_DATABASE_URL=database, NO_COLOR="1", TERM="dumb"
    )


def test_a_table_takes_a_tenants_name_literally(command: Callable[..., Outcome], database: str, kms: LocalKms) -> None:
    command("db", "upgrade")
    command("tenant", "add", "[red]x[/]", "--key", kms.create_key())
    assert "[red]x[/]" in pii_vault_on_terminal("tenant", "list", PII_VAULT_DATABASE_URL=database)


def test_a_name_can_neither_end_a_line_nor_move_a_cursor(command: Callable[..., Outcome], database: str) -> None:
    name, reason = "a\tb\x1b[2J\r\n\x07\u202e", "c\nd\x9b1m"
    shown_name = r"a\tb\x1b[2J\r\n\x07\u202e"
    command("db", "upgrade")
    assert command("tenant", "add", name).out.startswith(f"tenant {shown_name} is registered")
    command("tenant", "suspend", name, "--reason", reason, "--actor", reason)
    outputs = [
        command("tenant", "list").out,
        command("tenant", "show", name).out,
        command("audit", "log", name).out,
        command("audit", "verify").out,
        command("key", "rotate", name).err,
        command("tenant", "show", name + "!").err,
        pii_vault_on_terminal("tenant", "list", PII_VAULT_DATABASE_URL=database, NO_COLOR="1", TERM="dumb"),
        pii_vault_on_terminal("audit", "log", name, PII_VAULT_DATABASE_URL=database, NO_COLOR="1", TERM="dumb"),
    ]
    assert [out for out in outputs if re.search(r"[^ -~\t\r\n]", out.replace("…", ""))] == []
    assert shown_name in outputs[0]
    assert outputs[0].count("\n") == 1
    assert "\\x1b[2J" in outputs[4]
    assert outputs[2].count("\n") == 4
    assert json.loads(command("tenant", "show", name, "--json").out)["name"] == name


def test_an_argument_that_is_no_text_is_one_line(settings: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pii_vault", "tenant", "show", b"\xff"],
        capture_output=True,
        env=environment(**settings),
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr == b"pii-vault: an argument is not text in this system's encoding\n"


@pytest.mark.parametrize("arguments", [["demo"], ["tenant", "list", "--json"]])
def test_a_reader_that_leaves_early_gets_no_complaint(
    command: Callable[..., Outcome], database: str, arguments: list[str]
) -> None:
    command("db", "upgrade")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "pii_vault", *arguments],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=environment(PII_VAULT_DATABASE_URL=database),
        check=False,
        timeout=60,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_ctrl_c_ends_with_130_and_nothing_said(tmp_path: Path) -> None:
    """A command that waits for a database's lock is interrupted."""
    path = tmp_path / "busy.sqlite3"
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN EXCLUSIVE")
        process = subprocess.Popen(
            [sys.executable, "-X", "importtime", "-m", "pii_vault", "db", "upgrade"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(PII_VAULT_DATABASE_URL=f"sqlite:///{path}?timeout=60"),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert process.stderr is not None
        for line in process.stderr:
            if b"pii_vault.keystore.upgrade" in line:
                break
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        connection.rollback()
        out, err = process.communicate(timeout=60)
    engine.dispose()
    said = [line for line in err.splitlines() if not line.startswith(b"import time:")]
    assert (process.returncode, out, said) == (130, b"", [])


def assert_one_line(done: Outcome) -> None:
    assert done.out == ""
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("pii-vault: ")
    assert "Traceback" not in done.err
