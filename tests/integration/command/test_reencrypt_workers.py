"""`reencrypt` with a pace and with workers: what it takes, what it says meanwhile, and how it is stopped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from tests.support.application import ROWS, Application, stopped_at_row, wait_until
from tests.support.command import pii_vault_command

from pii_vault.reencryption import pacing

TWO = ("--workers", "2")


def versions(app: Application) -> dict[int, int]:
    with app.engine.connect() as connection:
        rows = connection.execute(text("SELECT email, phone FROM patients")).all()
    found = [int.from_bytes(bytes(sealed)[5:7], "big") for row in rows for sealed in row]
    return {each: found.count(each) for each in set(found)}


def begun(app: Application, rows: int = 0) -> tuple[str, ...]:
    """Write rows, rotate, and return the command that moves them."""
    app.write("acme", rows)
    app.ops.run("key", "rotate", "acme")
    return "reencrypt", "acme", *app.named("Old")


# The pace.


def test_rows_a_second(local_app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    again, slept = begun(local_app), list[float]()

    class Time:
        def monotonic(self) -> float:
            return 1000 + sum(slept)

        def sleep(self, seconds: float) -> None:
            slept.append(seconds)

    monkeypatch.setattr(pacing, "time", Time())
    assert local_app.ops.run(*again, "--rate", "4").err == ""
    assert sum(slept) == pytest.approx(ROWS / 4)
    assert versions(local_app) == {2: 2 * ROWS}


def test_what_is_no_pace_and_what_cannot_be_waited_for_is_refused(local_app: Application) -> None:
    again, ops = begun(local_app), local_app.ops
    for wrong in (("--rate", "0"), ("--rate", "x"), ("--max-lag", "-1"), ("--workers", "0"), ("--workers", "65")):
        ops.fails(*again, *wrong, code=2)
    for wrong in (("--rate", "inf"), ("--max-lag", "inf")):
        assert "a rate is above 0, and a lag is not below 0" in ops.fails(*again, *wrong)
    assert ops.fails(*again, "--max-lag", "5") == (
        "how far replicas are behind cannot be seen on sqlite (leave the limit out, and set a rate)"
    )
    assert versions(local_app) == {1: 2 * ROWS}


# Workers.


def test_two_workers_move_everything_and_say_nothing(app: Application) -> None:
    again = begun(app, 200)
    done = app.ops.process(*again, *TWO, "--batch", "10")
    assert (done.err, done.out.split("\t")[:3]) == ("", ["acme", "2", "0"])
    assert versions(app) == {2: 2 * (ROWS + 200)}


REFUSING = """
import multiprocessing
if multiprocessing.parent_process() is not None:  # a worker: the customer has said no since the parts were cut
    from pii_vault import LocalKms
    LocalKms({file!r}).disable_key({key!r})
"""


def test_a_kms_that_refuses_a_worker_is_said_as_without_workers(postgres_app: Application, tmp_path: Path) -> None:
    app, ops = postgres_app, postgres_app.ops
    again = begun(app)
    models = Path(str(app.models.__file__))
    key = ops.json("tenant show", "acme")["kms_key_arn"]
    models.write_text(models.read_text("utf-8") + REFUSING.format(file=str(tmp_path / "kms.json"), key=key), "utf-8")
    told = ops.process(*again, *TWO, code=1)
    alone = ops.process(*again, code=1)
    assert told == alone
    assert re.fullmatch(r"pii-vault: .*Disabled[^\n]*\n", told.err)
    assert versions(app) == {1: 2 * ROWS}


def test_ctrl_c_lets_workers_finish_what_they_have_begun(postgres_app: Application) -> None:
    """At a rate, lest the other worker is through with everything before Ctrl-C comes."""
    app, again = postgres_app, (*begun(postgres_app, 1000), *TWO, "--batch", "10")
    told = stopped_at_row(app, 200, *again, "--rate", "200", patient=True)
    found = re.fullmatch(
        r"pii-vault: stopped: at least (\d+) of 1,020 rows of tenant 'acme' are done; the same command goes on from "
        r"there\n",
        told,
    )
    assert found, told
    done = versions(app)[2]
    assert 2 * int(found[1]) <= done < 2 * 1020
    assert app.ops.process(*again).err == ""
    assert versions(app) == {2: 2 * 1020}


def test_ctrl_c_once_more_ends_workers(postgres_app: Application) -> None:
    """One of them waits for a row that somebody holds, and would for ever."""
    app, again = postgres_app, (*begun(postgres_app, 1000), *TWO, "--batch", "10")
    told = stopped_at_row(app, 700, *again)
    assert re.fullmatch(r"pii-vault: stopped: at least \d+ of 1,020 rows of tenant 'acme' are done; [^\n]*\n", told)
    mine = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
    with app.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        app.ops.engine.dispose()
        wait_until(lambda: connection.scalar(mine) <= 2)  # those of the test itself
    assert app.ops.process(*again).err == ""
    assert versions(app) == {2: 2 * 1020}


def test_ctrl_c_on_a_terminal_reaches_the_command_and_not_its_workers(postgres_app: Application) -> None:
    app, again = postgres_app, (*begun(postgres_app, 1000), *TWO, "--rate", "200", "--batch", "10")
    shown = app.ops.terminal(*again, question="/s ", answer="\x03", COLUMNS="100")
    assert shown.code == 130
    said = " ".join(shown.text.split())
    assert "the rows that are being written are finished; press Ctrl-C again to leave them as they are" in said
    assert re.search(r"stopped: at least [\d,]+ of 1,020 rows of tenant 'acme' are done", said)
    assert "a worker failed" not in said
    assert "Traceback" not in said
    moved = versions(app)[2] // 2
    part = 1020 // 32
    assert 0 < moved < 1020
    assert moved % part == 0  # what they had begun was finished


# What is said meanwhile.


def progress_lines(err: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in err.splitlines()]


def test_lines_of_json_say_how_far_each_table_is(app: Application) -> None:
    again = begun(app, 200)
    done = pii_vault_command(*again, "--json", "--rate", "100", "--batch", "20", **app.ops.settings)
    lines = progress_lines(done.err)
    members = ("tenant", "table", "rows_done", "rows_total", "rows_per_second", "seconds_left")
    assert {tuple(each) for each in lines} == {members}
    assert {(each["tenant"], each["table"], each["rows_total"]) for each in lines} == {("acme", "patients", 220)}
    counts = [each["rows_done"] for each in lines]
    assert counts[0] == 0
    assert counts[-1] == 220
    assert counts == sorted(set(counts))
    assert 3 <= len(lines) <= 5  # two seconds and a bit
    assert (lines[0]["rows_per_second"], lines[0]["seconds_left"]) == (None, None)
    for each in lines[1:]:
        assert each["rows_per_second"] > 0
        left = (each["rows_total"] - each["rows_done"]) / each["rows_per_second"]
        assert each["seconds_left"] == pytest.approx(left, abs=0.2, rel=0.05)
    assert json.loads(done.out)[0]["rows_left"] == 0


def test_a_row_that_cannot_be_sealed_does_not_keep_the_last_line(local_app: Application) -> None:
    again = begun(local_app)
    local_app.break_row(5)
    with local_app.engine.begin() as connection:
        connection.execute(text("UPDATE patients SET phone = NULL WHERE id = 5"))
    done = pii_vault_command(*again, "--json", **local_app.ops.settings)
    assert done.code == 1
    assert [each["rows_done"] for each in progress_lines(done.err)] == [0, ROWS - 1]


@pytest.mark.parametrize("columns", [80, 120])
def test_a_bar_for_each_table_fits_the_terminal(postgres_app: Application, columns: int) -> None:
    app, again = postgres_app, begun(postgres_app, 1500)
    shown = app.ops.terminal(*again, *TWO, "--batch", "50", "--rate", "2000", COLUMNS=str(columns), LINES="50")
    assert shown.code == 0
    bars = [line for line in re.split(r"[\r\n]+", shown.text) if "━" in line]
    assert all(len(line) <= columns for line in bars)
    full = re.compile(r"patients of acme +[╺╸━]+ +[\d,]+ of 1,520 +([\d,]+/s)? +(\d:\d\d:\d\d|-:--:--) *")
    assert [line for line in bars if not full.fullmatch(line)] == []
    assert any(re.search(r"\d/s +\d:\d\d:\d\d", line) for line in bars)
    assert versions(app) == {2: 2 * 1520}
