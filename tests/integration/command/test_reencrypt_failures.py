"""`reencrypt` in commands where a KMS fails in the middle of a run, and where rows hold what nobody has sealed."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import LargeBinary, bindparam, column, select, table, text, update
from tests.integration.command.test_reencrypt import next_day
from tests.support.application import ROWS, Application, application_of, wait_until
from tests.support.command import pii_vault_process
from tests.support.operator import StrictKeys, operator
from tests.support.strict_kms import FaultRule, StrictKms

from pii_vault.keystore.schema import keks

PATIENTS: Final = table("patients", column("id"), column("email", LargeBinary), column("phone", LargeBinary))
MORE: Final = 180
"""More rows than `ROWS`: 10 batches in all."""

BATCH: Final = ROWS
TTL: Final = 1.0


@pytest.fixture
def aws_app(
    postgres_url: str, strict_kms: StrictKms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Application]:
    """The application on PostgreSQL, whose customers' keys are behind HTTP."""
    with operator(postgres_url, StrictKeys(strict_kms)) as ops:
        yield from application_of(ops, tmp_path, monkeypatch)


def stored(app: Application) -> dict[int, tuple[bytes | None, bytes | None]]:
    with app.engine.connect() as connection:
        rows = connection.execute(select(PATIENTS).order_by(PATIENTS.c.id)).all()
    return {row.id: (row.email and bytes(row.email), row.phone and bytes(row.phone)) for row in rows}


def versions(app: Application) -> dict[int, int]:
    """Say how many values each data-key version has sealed."""
    found = [int.from_bytes(sealed[5:7], "big") for values in stored(app).values() for sealed in values if sealed]
    return {each: found.count(each) for each in set(found)}


def put(app: Application, key: int, email: bytes | None) -> None:
    with app.engine.begin() as connection:
        connection.execute(
            update(PATIENTS).where(PATIENTS.c.id == key).values(email=bindparam("new", email, LargeBinary))
        )


# The KMS fails while a run is in its sixth batch.


def run_with_a_fault(app: Application, key: int, arguments: tuple[str, ...], fault: Callable[[], None]) -> Any:
    """Hold a row until the command waits for it and its keys have ended; then let it go on without a KMS."""
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = :name")
    with app.engine.connect() as holder, app.engine.connect() as other:
        holder.execute(text("SELECT 1 FROM patients WHERE id = :key FOR UPDATE"), {"key": key})
        looking = other.execution_options(isolation_level="AUTOCOMMIT")
        process = pii_vault_process(*arguments, **app.ops.settings, PII_VAULT_TTL=str(TTL))
        wait_until(lambda: looking.scalar(waiting, {"name": app.engine.url.database}) or process.poll() is not None)
        fault()
        time.sleep(TTL)  # what ends its keys is time, and nothing else
        holder.rollback()
        return ended(app, process)


def ended(app: Application, process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    app.ops.outputs += [out, err]
    assert "Traceback" not in err
    return process.returncode, out, err


FAULTS: Final[dict[str, dict[str, Any]]] = {
    "is out": {"error": "KMSInternalException"},
    "answers with 500": {"status": 500},
    "throttles": {"error": "ThrottlingException"},
    "does not answer": {"drop": True},
    "denies": {"error": "AccessDeniedException"},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_kms_that_fails_in_the_middle_ends_the_run_and_the_next_goes_on(
    fault: dict[str, Any], aws_app: Application, strict_kms: StrictKms
) -> None:
    app, again = aws_app, ("reencrypt", "acme", *aws_app.named("Old"))
    app.write("acme", MORE)
    app.ops.run("key", "rotate", "acme")
    rule = FaultRule("Decrypt", times=None, **fault)
    code, out, err = run_with_a_fault(
        app, 5 * BATCH + 3, (*again, "--batch", str(BATCH)), lambda: strict_kms.script(rule)
    )
    assert (code, out) == (1, "")
    assert re.fullmatch(r"pii-vault: [^\n]+ \([^\n]+\)\n", err), err
    assert "arn:aws:kms:" in err
    assert "tenant 'acme'" in err
    moved = versions(app)
    assert sum(moved.values()) == 2 * (ROWS + MORE)
    assert 2 * 5 * BATCH <= moved[2] <= 2 * 6 * BATCH
    strict_kms.clear_script()
    done = app.ops.process(*again)
    assert done.out.startswith("acme\t2\t0\t")
    assert versions(app) == {2: 2 * (ROWS + MORE)}


def test_a_kms_that_fails_for_one_tenant_is_named_with_it_and_the_others_are_done(
    aws_app: Application, strict_kms: StrictKms
) -> None:
    app, again = aws_app, ("reencrypt", "--all", *aws_app.named("Old"))
    with app.ops.engine.connect() as connection:
        mine = connection.scalar(select(keks.c.kms_key_arn))
    app.ops.run("tenant", "add", "glob", *app.ops.kms.new_key())
    app.write("acme", MORE)
    app.write("glob", 3)
    for name in ("acme", "glob"):
        app.ops.run("key", "rotate", name)
    rule = FaultRule("Decrypt", key=mine, times=None, error="ThrottlingException")
    code, out, err = run_with_a_fault(
        app, 5 * BATCH + 3, (*again, "--batch", str(BATCH)), lambda: strict_kms.script(rule)
    )
    assert (code, [line.split("\t")[:3] for line in out.splitlines()]) == (1, [["glob", "2", "0"]])
    assert re.fullmatch(r"pii-vault: tenant 'acme': [^\n]*ThrottlingException \([^\n]+ try again\)\n", err), err
    strict_kms.clear_script()
    assert len(app.ops.rows(*again)) == 2
    assert versions(app) == {2: 2 * (ROWS + MORE + 3)}


# Rows hold what nobody has sealed.


def cut(sealed: bytes) -> bytes:
    return sealed[:30]


def without_a_suite(sealed: bytes) -> bytes:
    return b"\x07" + sealed[1:]


def of_another_suite(sealed: bytes) -> bytes:
    return b"\xfb" + sealed[1:]


def of_version_0(sealed: bytes) -> bytes:
    return sealed[:5] + b"\0\0" + sealed[7:]


def of_another_codec(sealed: bytes) -> bytes:
    return sealed[:7] + b"\xee" + sealed[8:]


def with_reserved_bits(sealed: bytes) -> bytes:
    return sealed[:9] + bytes((sealed[9] | 0x80,)) + sealed[10:]


def with_tokens_that_are_not_there(sealed: bytes) -> bytes:
    return sealed[:8] + b"\x01\x0f" + sealed[10:]


BROKEN: Final[tuple[Callable[[bytes], bytes], ...]] = (
    cut,
    without_a_suite,
    of_another_suite,
    of_version_0,
    of_another_codec,
    with_reserved_bits,
    with_tokens_that_are_not_there,
)


def test_broken_headers_are_named_by_the_rows_key_and_all_others_move(app: Application) -> None:
    ops, again = app.ops, ("reencrypt", "acme", *app.named("Old"), "--batch", "3")
    before = stored(app)
    broken = {3 + 2 * n: break_it(bytes(before[3 + 2 * n][0] or b"")) for n, break_it in enumerate(BROKEN)}
    for key, sealed in broken.items():
        put(app, key, sealed)
    ops.run("key", "rotate", "acme")
    for _ in range(2):  # and a second time they are named again
        done = ops.process(*again, code=1)
        named = re.findall(r"pii-vault: tenant 'acme': patients\.email of the row (\d+): ", done.err)
        assert sorted(map(int, named)) == sorted(broken)
        assert done.out.startswith(f"acme\t2\t{len(broken)}\t")
    found = stored(app)
    assert {key: found[key][0] for key in broken} == broken
    assert {int.from_bytes((phone or b"")[5:7], "big") for _, phone in found.values()} == {2}
    whole = [email or b"" for key, (email, _) in found.items() if key not in broken]
    assert {int.from_bytes(email[5:7], "big") for email in whole} == {2}


def test_a_key_is_not_destroyed_while_a_broken_value_names_it(app: Application) -> None:
    """Somebody may yet mend it."""
    ops = app.ops
    put(app, 5, cut(bytes(stored(app)[5][0] or b"")))
    put(app, 6, without_a_suite(bytes(stored(app)[6][0] or b"")))
    ops.run("key", "rotate", "acme")
    ops.process("reencrypt", "acme", *app.named("Old"), code=1)
    next_day(ops)
    told = ops.fails("key", "destroy", "acme", "1", "--yes", *app.named("Old"))
    assert "still holds 2 values: 2 in patients.email" in told, told
    with app.engine.begin() as connection:
        connection.execute(text("DELETE FROM patients WHERE id IN (5, 6)"))
    assert ops.run("reencrypt", "acme", *app.named("Old")).out == "acme\t2\t0\tcomplete\n"
    ops.run("key", "destroy", "acme", "1", "--yes", *app.named("Old"))


def test_what_was_never_sealed_is_counted_and_left_alone(app: Application) -> None:
    ops, again = app.ops, ("reencrypt", "acme", *app.named("Old"))
    left = {4: b"plain-leftover@example.com", 9: b"", 12: b"\xfa", 13: bytes(60)}
    for key, value in left.items():
        put(app, key, value)
    put(app, 7, None)
    ops.run("key", "rotate", "acme")
    done = ops.process(*again, "--tenant-column", "tenant_id", code=1)
    assert done.err == (
        "pii-vault: tenant 'acme': 4 values of patients.email in its rows, not sealed for it and left alone (find out "
        "how that came about)\n"
    )
    found = stored(app)
    assert {key: found[key][0] for key in left} == left
    assert found[7][0] is None
    emails = [email or b"" for key, (email, _) in found.items() if key not in {*left, 7}]
    assert {int.from_bytes(each[5:7], "big") for each in emails} == {2}


def test_a_version_that_does_not_exist_yet_is_left_alone_and_counted_by_coverage(app: Application) -> None:
    """Its key is not known: there is nothing to open it with, and nothing older than the newest key in its header."""
    ops, again = app.ops, ("reencrypt", "acme", *app.named("Old"))
    sealed = bytes(stored(app)[5][0] or b"")
    unknown = sealed[:5] + b"\0\x09" + sealed[7:]
    put(app, 5, unknown)
    ops.run("key", "rotate", "acme")
    assert ops.run(*again).out.startswith("acme\t2\t0\t")
    assert stored(app)[5][0] == unknown
    assert versions(app) == {2: 2 * ROWS - 1, 9: 1}
    counted = ops.json("coverage", *app.named("Old"), code=1)["values"]
    assert [(each["state"], each["count"]) for each in counted if each["problem"]] == [("unknown_version", 1)]
