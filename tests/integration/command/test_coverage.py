"""`coverage` in commands: tables, JSON, OpenMetrics, exit codes, and what is said of values that nobody can read."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from sqlalchemy import Engine, LargeBinary, String, column, create_engine, insert, select, table, text
from sqlalchemy.orm import Session
from tests.support.command import pii_vault_process
from tests.support.documents import document
from tests.support.operator import PASSWORD, Operator

from pii_vault.cli.openmetrics import Gauge, exposition
from pii_vault.config import load

APPLICATION = """
from sqlalchemy import String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pii_vault import EncryptedString


class Base(DeclarativeBase):
    pass


class Patient(Base):
    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str | None] = mapped_column(EncryptedString())
    phone: Mapped[str | None] = mapped_column(EncryptedString())


class Visit(Base):
    __tablename__ = "visits"
    id: Mapped[int] = mapped_column(primary_key=True)
    reason: Mapped[str | None] = mapped_column(EncryptedString())
"""

PATIENTS = table("patients", column("tenant_id", String), column("email", LargeBinary))


@dataclass
class Application:
    """The application beside the command: its models and its rows."""

    ops: Operator
    models: ModuleType
    engine: Engine

    @property
    def command(self) -> tuple[str, ...]:
        return "coverage", "--metadata", f"{self.models.__name__}:Base"

    def write(self, tenant: str, count: int) -> None:
        """Add rows as another process than the command; every second one has a phone."""
        vault, engine = load(ttl=0).make_vault(), create_engine(self.engine.url)
        vault.attach(engine)
        rows = [
            {"email": f"p{n}@{tenant}.example", "phone": f"555-{1000 + n}" if n % 2 else None} for n in range(count)
        ]
        self.ops.secrets.add(f"p0@{tenant}.example")
        with vault.tenant(tenant), Session(engine) as session, session.begin():
            session.add_all(self.models.Patient(tenant_id=tenant, **row) for row in rows)
        engine.dispose()
        vault.close()

    def write_raw(self, *values: bytes) -> None:
        """Write addresses past the vault."""
        with self.engine.begin() as connection:
            connection.execute(insert(PATIENTS), [{"tenant_id": "acme", "email": each} for each in values])

    def sealed(self) -> bytes:
        with self.engine.connect() as connection:
            return bytes(connection.scalars(select(PATIENTS.c.email).limit(1)).one())


def application_of(ops: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    name = f"application_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(APPLICATION, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for variable, value in ops.settings.items():
        monkeypatch.setenv(variable, value)
    models = __import__(name)
    engine = create_engine(ops.settings["PII_VAULT_DATABASE_URL"])
    models.Base.metadata.create_all(engine)
    made = Application(ops, models, engine)
    for tenant, count in (("acme", 6), ("glob", 3)):
        ops.run("tenant", "add", tenant, *ops.kms.new_key())
        made.write(tenant, count)
    ops.run("key", "rotate", "acme")
    made.write("acme", 1)
    yield made
    engine.dispose()
    del sys.modules[name]


@pytest.fixture
def app(ops: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    """The application: two tenants, one of them rotated, on either database."""
    yield from application_of(ops, tmp_path, monkeypatch)


@pytest.fixture
def local_app(local: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    """The same on SQLite."""
    yield from application_of(local, tmp_path, monkeypatch)


@pytest.fixture
def postgres_app(postgres: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    """The same on PostgreSQL."""
    yield from application_of(postgres, tmp_path, monkeypatch)


LINES = [
    ["patients.email", "acme", "1", "deactivated", "6", "60.0 %"],
    ["patients.email", "acme", "2", "active", "1", "10.0 %"],
    ["patients.email", "glob", "1", "active", "3", "30.0 %"],
    ["patients.phone", "acme", "1", "deactivated", "3", "75.0 %"],
    ["patients.phone", "glob", "1", "active", "1", "25.0 %"],
    ["patients.phone", "none", "none", "null", "6", ""],
]


def test_a_pipe_gets_a_line_for_each_key_and_a_program_a_document(app: Application) -> None:
    done = app.ops.process(*app.command)
    assert ([line.split("\t") for line in done.out.splitlines()], done.err) == (LINES, "")
    found = document("coverage", app.ops.process(*app.command, "--json").out)
    assert (found["tenant"], found["estimated"], found["complete"]) == (None, False, True)
    assert found["tables"] == [{"table": each, "sampled_share": 1.0} for each in ("patients", "visits")]
    members = ("table", "column", "tenant", "version", "state", "count")
    assert [[each[member] for member in members] for each in found["values"]] == [
        ["patients", "email", "acme", 1, "deactivated", 6],
        ["patients", "email", "acme", 2, "active", 1],
        ["patients", "email", "glob", 1, "active", 3],
        ["patients", "phone", "acme", 1, "deactivated", 3],
        ["patients", "phone", "glob", 1, "active", 1],
        ["patients", "phone", None, None, "null", 6],
    ]
    (acme,) = [each for each in app.ops.json("tenant list") if each["name"] == "acme"]
    assert found["values"][0]["keyset_id"] == acme["keyset_id"]
    assert {each["problem"] for each in found["values"]} == {False}


def test_of_one_tenant_only_its_own_values_are_counted(app: Application) -> None:
    app.write_raw(b"never sealed")
    lines = app.ops.rows(*app.command, "glob")
    assert lines == [
        ["patients.email", "glob", "1", "active", "3", "100.0 %"],
        ["patients.phone", "glob", "1", "active", "1", "100.0 %"],
    ]
    assert document("coverage", app.ops.run(*app.command, "glob", "--json").out)["tenant"] == "glob"


def test_a_customer_who_has_shut_his_key_is_counted_and_no_kms_is_named(app: Application) -> None:
    ops = app.ops
    (acme,) = [each for each in ops.json("tenant list") if each["name"] == "acme"]
    ops.kms.disable(acme["kms_key_arn"])
    ops.run("tenant", "suspend", "glob")
    for name in [each for each in ops.settings if each not in {"PII_VAULT_DATABASE_URL", "PII_VAULT_ACTOR"}]:
        ops.settings[name] = ""
    ops.settings["PII_VAULT_KMS"] = "local:/nowhere/kms.json"
    assert ops.rows(*app.command) == LINES


def test_values_that_nobody_can_read_are_named_and_exit_with_1(local_app: Application) -> None:
    ops, whole = local_app.ops, local_app.sealed()
    ops.run("key", "compromise", "acme", "1", "--yes")
    local_app.write_raw(b"never sealed", b"nor this", whole[:20], b"\xff" + whole[1:])
    local_app.write_raw(whole[:5] + b"\0\x07" + whole[7:], whole[:1] + b"\0\0\0\x2a" + whole[5:])
    done = ops.process(*local_app.command, code=1)
    lines = [line.split("\t")[1:5] for line in done.out.splitlines() if line.startswith("patients.email")]
    assert lines == [
        ["acme", "1", "compromised", "6"],
        ["acme", "2", "active", "1"],
        ["acme", "7", "unknown_version", "1"],
        ["glob", "1", "active", "3"],
        ["none", "1", "unknown_keyset", "1"],
        ["none", "none", "malformed", "1"],
        ["none", "none", "plaintext", "2"],
        ["none", "none", "unsupported", "1"],
    ]
    assert done.err.splitlines() == [
        "pii-vault: values that were never sealed: 2 in patients.email (they were written past the vault: seal them)",
        "pii-vault: values that begin as sealed ones and are none: 1 in patients.email (cut off or overwritten: "
        "restore or delete them)",
        "pii-vault: values of an unknown format: 1 in patients.email (they may need a newer release of pii_vault)",
        "pii-vault: values under data keys that the key store does not have: 1 in patients.email (was an old backup of "
        "it restored?)",
        "pii-vault: values of keysets that no tenant has: 1 in patients.email (is it the right key store? --json shows "
        "the keyset ids)",
        "pii-vault: values under compromised data keys: 6 in patients.email, 3 in patients.phone (re-encrypt them to "
        "read them)",
    ]
    found = ops.json("coverage", *local_app.command[1:], code=1)
    assert found["complete"] is False
    assert [each["state"] for each in found["values"] if each["problem"]] == [
        *("compromised", "unknown_version", "unknown_keyset", "malformed", "plaintext", "unsupported", "compromised")
    ]
    assert "0000002a" in [each["keyset_id"] for each in found["values"]]
    assert samples(ops.run(*local_app.command, "--openmetrics", code=1).out)


@pytest.mark.parametrize(
    "raw",
    [b"never sealed", b"\xfa too short", b"\xff", b"\xfa" + b"\0\0\0\1\0\1\1\0\0" + bytes(40)],
)
def test_any_value_that_cannot_be_read_exits_with_1(local_app: Application, raw: bytes) -> None:
    local_app.write_raw(raw)
    done = local_app.ops.run(*local_app.command, code=1)
    assert len(done.err.splitlines()) == 1


def test_values_under_a_destroyed_key_exit_with_1(local_app: Application) -> None:
    local_app.ops.alter(
        text("UPDATE pii_vault_keys SET state = 'destroyed', encrypted_key = '' WHERE state = 'deactivated'")
    )
    done = local_app.ops.run(*local_app.command, code=1)
    assert done.err == (
        "pii-vault: values under destroyed data keys: 6 in patients.email, 3 in patients.phone (nobody can read them: "
        "a backup of the key store may have the key)\n"
    )


# OpenMetrics.

UNESCAPED = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


def samples(exposed: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Read an exposition, strictly by the grammar of the specification; return the samples of each metric.

    Each metric has its HELP and TYPE before its samples, no series is there twice, and the end is the end.
    """
    assert exposed.endswith("# EOF\n")
    lines = exposed.split("\n")
    assert lines[-2:] == ["# EOF", ""]
    assert "# EOF" not in lines[:-2]
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    name = ""
    described: list[str] = []
    for line in lines[:-2]:
        about = re.fullmatch(r"# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) (\S.*)", line)
        if about:
            if about[2] != name:
                assert about[2] not in found, "a metric is in one piece"
                name, described = about[2], []
                found[name] = {}
            assert not found[name], "what a metric is stands before its samples"
            assert about[1] != "TYPE" or about[3] == "gauge"
            described.append(about[1])
            continue
        assert sorted(described) == ["HELP", "TYPE"]
        sample = re.fullmatch(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\{(.*)\} (\d+(?:\.\d+)?(?:e-?\d+)?)", line)
        assert sample, line
        assert sample[1] == name
        one = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"'
        assert re.fullmatch(rf"{one}(?:,{one})*", sample[2]), line
        labels = tuple(
            (label, re.sub(r'\\[\\"n]', lambda match: UNESCAPED[match[0]], text))
            for label, text in re.findall(one, sample[2])
        )
        assert len({label for label, _ in labels}) == len(labels)
        assert labels not in found[name], "a series is there once"
        found[name][labels] = float(sample[3])
    return found


def test_openmetrics_has_a_gauge_for_each_key(app: Application) -> None:
    done = app.ops.process(*app.command, "--openmetrics")
    assert done.err == ""
    first, second, third = done.out.splitlines()[:3]
    assert first == "# HELP pii_vault_values Stored values, by the data key that sealed them and its state."
    assert second == "# TYPE pii_vault_values gauge"
    assert third == (
        'pii_vault_values{table="patients",column="email",tenant="acme",version="1",state="deactivated"} 6'
    )
    found = samples(done.out)
    assert list(found) == ["pii_vault_values", "pii_vault_values_sampled_ratio"]
    assert [[*dict(labels).values(), value] for labels, value in found["pii_vault_values"].items()] == [
        [*line[0].split("."), *("" if cell == "none" else cell for cell in line[1:3]), line[3], float(line[4])]
        for line in LINES
    ]
    assert found["pii_vault_values_sampled_ratio"] == {(("table", "patients"),): 1.0, (("table", "visits"),): 1.0}


NAME = 'Çelik "&" \\n\\ Söhne\n} 1\x1b[31m'


def test_names_are_escaped_as_the_specification_says_and_move_no_cursor(local_app: Application) -> None:
    ops = local_app.ops
    ops.run("tenant", "add", NAME)
    local_app.write(NAME, 1)
    done = ops.process(*local_app.command, "--openmetrics", PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    assert 'tenant="Çelik \\"&\\" \\\\n\\\\ Söhne\\n} 1\x1b[31m"' in done.out
    labels = [dict(each) for each in samples(done.out)["pii_vault_values"]]
    assert NAME in [each["tenant"] for each in labels]
    shown = ops.terminal(*local_app.command, "--openmetrics")
    assert (shown.code, "\x1b[31m" in shown.raw) == (0, False)
    assert "Söhne\\n} 1\\x1b[31m" in shown.raw
    assert "\x1b[31m" not in ops.process(*local_app.command).out


def test_unknown_keysets_are_one_series_and_an_exposition_of_nothing_is_whole(local_app: Application) -> None:
    whole = local_app.sealed()
    local_app.write_raw(*[whole[:1] + bytes((0, 0, 0, number)) + whole[5:] for number in range(5)])
    found = samples(local_app.ops.run(*local_app.command, "--openmetrics", code=1).out)["pii_vault_values"]
    (unknown,) = [(dict(each), value) for each, value in found.items() if ("state", "unknown_keyset") in each]
    assert unknown == (
        {"table": "patients", "column": "email", "tenant": "", "version": "", "state": "unknown_keyset"},
        5.0,
    )
    with local_app.engine.begin() as connection:
        connection.execute(text("DELETE FROM patients"))
    exposed = local_app.ops.run(*local_app.command, "--openmetrics").out
    assert samples(exposed)["pii_vault_values"] == {}
    assert local_app.ops.run(*local_app.command).out == ""
    assert "nothing is stored" in local_app.ops.terminal(*local_app.command).text


@pytest.mark.parametrize(
    "broken",
    [
        'a{b="c"} 1\n# EOF\n',
        '# HELP a b\n# TYPE a gauge\na{b="c"} 1\n',
        '# HELP a b\n# TYPE a gauge\na{b="c"} 1\n# EOF',
        '# HELP a b\n# TYPE a gauge\na{b="c\\t"} 1\n# EOF\n',
        '# HELP a b\n# TYPE a gauge\na{b="c"d"} 1\n# EOF\n',
        '# HELP a b\n# TYPE a gauge\na{b="c"} 1\na{b="c"} 2\n# EOF\n',
        '# HELP a b\n# TYPE a gauge\na{b="c"} 1,000\n# EOF\n',
        '# HELP a b\n# TYPE a gauge\na{b="c"} 1\n# HELP a b\n# EOF\n',
    ],
)
def test_the_check_of_an_exposition_finds_what_is_none(broken: str) -> None:
    assert samples('# HELP a b\n# TYPE a gauge\na{b="c"} 1\n# EOF\n') == {"a": {(("b", "c"),): 1.0}}
    with pytest.raises(AssertionError):
        samples(broken)


def test_small_shares_are_written_as_numbers() -> None:
    gauge = Gauge("a", "A \\ sentence\nof two lines.", [({"b": ""}, 0.0000012)])
    lines = list(exposition([gauge]))
    assert lines[0] == "# HELP a A \\\\ sentence\\nof two lines."
    assert samples("\n".join(lines) + "\n") == {"a": {(("b", ""),): 0.0000012}}


# A terminal.


def test_a_terminal_shows_a_table_that_fits(local_app: Application) -> None:
    local_app.ops.run("key", "compromise", "acme", "1", "--yes")
    with local_app.engine.begin() as connection:
        for _ in range(8):
            columns = "tenant_id, email, phone"
            connection.execute(text(f"INSERT INTO patients ({columns}) SELECT {columns} FROM patients"))
    shown = local_app.ops.terminal(*local_app.command, COLUMNS="80", NO_COLOR="1", TERM="dumb", LINES="50")
    assert shown.code == 1
    assert re.search(r"^table\.column +tenant +version +state +values +share *$", shown.text, re.MULTILINE)
    assert re.search(r"^patients\.email +acme +1 +compromised +1,536 +60\.0 % *$", shown.text, re.MULTILINE)
    assert "1,536 in patients.email, 768 in patients.phone (re-encrypt them to read them)" in " ".join(
        shown.text.split()
    )
    assert max(map(len, shown.text.splitlines()[:-3])) <= 80


def test_progress_is_shown_on_a_terminal_and_nowhere_else(local_app: Application) -> None:
    shown = local_app.ops.terminal(*local_app.command)
    assert re.search(r"counting values in tables .*2/2", shown.text)
    assert local_app.ops.process(*local_app.command).err == ""


# Estimates.


def test_an_estimate_says_that_it_is_one(postgres_app: Application) -> None:
    app = postgres_app
    assert app.ops.run(*app.command, "--estimate").err == (
        "pii-vault: nothing is estimated: the tables are small, or this database can take no sample\n"
    )
    with app.engine.begin() as connection:
        columns = "tenant_id, email, phone"
        copies = f"INSERT INTO patients ({columns}) SELECT {columns} FROM patients, generate_series(1, :times)"
        connection.execute(text(copies), {"times": 50_000})
    done = app.ops.process(*app.command, "--estimate")
    share = re.fullmatch(
        r"pii-vault: these are estimates: looked at (\d\d\.\d) % of patients \(a key that sealed little may be "
        r"missing\)\n",
        done.err,
    )
    assert share
    assert [line.split("\t")[:4] for line in done.out.splitlines()] == [line[:4] for line in LINES]
    first = float(done.out.split("\t")[4])
    assert abs(first - 300_006) < 0.1 * 500_010
    found = app.ops.json("coverage", *app.command[1:], "--estimate")
    assert found["estimated"] is True
    assert found["tables"][1] == {"table": "visits", "sampled_share": 1.0}
    assert f"{100 * found['tables'][0]['sampled_share']:.3g}" == share[1]
    exposed = samples(app.ops.run(*app.command, "--estimate", "--openmetrics").out)
    ratio = exposed["pii_vault_values_sampled_ratio"][("table", "patients"),]
    assert ratio == found["tables"][0]["sampled_share"]


def test_where_no_sample_can_be_taken_the_command_says_so(local_app: Application) -> None:
    done = local_app.ops.run(*local_app.command, "--estimate")
    assert "nothing is estimated" in done.err
    assert done.out == local_app.ops.run(*local_app.command).out


# What fails.


def test_a_failure_is_one_line_that_names_what_and_the_way_out(local_app: Application, tmp_path: Path) -> None:
    ops, command = local_app.ops, local_app.command
    assert "no tenant 'nobody' is registered" in ops.fails(*command, "nobody")
    assert "is neither a declarative base nor a MetaData" in ops.fails(*command[:2], f"{command[2]}x")
    told = ops.fails("coverage", "--metadata", "pii_vault.keystore.schema:metadata")
    assert "the metadata holds no encrypted column" in told
    for how in (["--json"], ["--openmetrics"], []):
        empty = f"sqlite:///{tmp_path / 'empty.sqlite3'}"
        told = ops.fails(*command, *how, "--application-url", empty)
        assert told.startswith("table 'patients' cannot be read: OperationalError (the metadata and the database have")
        assert PASSWORD not in told


def test_ctrl_c_ends_it_while_the_database_counts(postgres_app: Application) -> None:
    app = postgres_app
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = :name")
    with app.engine.connect() as connection, app.engine.connect() as other:
        connection.execute(text("LOCK TABLE visits IN ACCESS EXCLUSIVE MODE"))
        looking = other.execution_options(isolation_level="AUTOCOMMIT")
        process = pii_vault_process(*app.command, **app.ops.settings)
        while not looking.scalar(waiting, {"name": app.engine.url.database}) and process.poll() is None:
            pass
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        connection.rollback()
    assert (process.returncode, out, err) == (130, "", "")
