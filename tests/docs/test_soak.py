"""The soak, run small: it proves something in a few seconds, can be interrupted, and sees what is left in the table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmarks.soaking.aftermath import Aftermath, look_at
from benchmarks.soaking.application import Base, Note, Place, open_application, value_of
from benchmarks.soaking.chaos import FAULTS
from benchmarks.soaking.plan import Plan
from sqlalchemy import text
from tests.support.strict_kms import StrictKms

ROOT = Path(__file__).parent.parent.parent
SMALL = ["--processes", "2", "--threads", "12", "--tenants", str(len(FAULTS)), "--pause", "0.02"]
PLAN = Plan(seconds=1, processes=1, threads=2, tenants=2, ttl=60, grace=0, pause=0, seed=1, sqlite=True)


def started(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--json", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts what runs in the background with SIGINT ignored, and so would the soak that its test starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env={**os.environ, **environment},
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, Any]:
    out, err = process.communicate(timeout=120)
    assert err == ""
    assert out.count("\n") == 1
    return process.returncode, json.loads(out)


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def group_is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_few_seconds_prove_the_bound_for_every_class_of_fault() -> None:
    code, found = ended(started("--seconds", "7", "--ttl", "1", "--grace", "0.5", *SMALL))
    assert (code, found["broken"], found["not_judged"]) == (0, [], [])
    assert found["bound_s"] == 1.5
    judged = {fault.name for fault in FAULTS if fault.cuts}
    assert set(found["max_time_to_dark_s"]) == judged
    assert max(found["max_time_to_dark_s"].values()) <= 1.5
    for name in judged:
        assert found["episodes"][name]["judged"]
        assert found["episodes"][name]["attempts_after_bound"]
    for nothing in ("plaintext_after_bound", "plaintext_after_refusal", "plaintext_after_evict"):
        assert found[nothing] == 0
    assert found["wrong_values"] == found["plaintext_writes"] == found["unreadable_values"] == 0
    assert min(found["values_opened"], found["values_sealed"], found["kms_requests"]) > 0
    assert found["rows"] > 0


def test_an_interrupted_soak_judges_what_there_is_and_leaves_nothing_behind(tmp_path: Path) -> None:
    process = started("--seconds", "600", "--sqlite", *SMALL, TMPDIR=str(tmp_path))
    try:
        wait_until(lambda: any(each.stat().st_size for each in tmp_path.rglob("*.journal")))
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
        code, found = ended(process)
    finally:
        process.kill()
    assert code == 130
    assert (found["interrupted"], found["broken"]) == (True, [])
    assert found["operations"] > 0
    wait_until(lambda: group_is_gone(process.pid))
    assert list(tmp_path.iterdir()) == []


def test_a_value_in_the_table_that_is_plaintext_or_wrong_or_lost_is_found(
    tmp_path: Path, strict_kms: StrictKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in strict_kms.environment().items():
        monkeypatch.setenv(name, value)
    files = (f"sqlite:///{tmp_path}/rows.sqlite3", f"sqlite:///{tmp_path}/keys.sqlite3")
    application = open_application(PLAN, Place(*files, (2, 2), {}, strict_kms.platform_key()))
    application.vault.create_all()
    Base.metadata.create_all(application.engine)
    for tenant in ("acme", "glob"):
        key = strict_kms.customer_key()
        application.vault.add_tenant(tenant, key=key.arn, role_arn=key.role_arn, external_id=key.external_id)
        with application.vault.tenant(tenant), application.sessions.begin() as session:
            session.add_all(Note(number=each, revision=0, body=value_of(tenant, each, 0)) for each in range(3))
    assert look_at(application, ["acme", "glob"]) == Aftermath(rows=6)
    with application.engine.begin() as connection:
        connection.execute(text("UPDATE notes SET revision = 1 WHERE tenant_id = 'acme' AND number = 1"))
        connection.execute(
            text("UPDATE notes SET body = :body WHERE tenant_id = 'glob' AND number = 2"),
            {"body": value_of("glob", 2, 0).encode()},
        )
    found = look_at(application, ["acme", "glob"])
    application.close()
    assert found == Aftermath(rows=6, plaintext_writes=1, wrong_values=1, unreadable=3)
