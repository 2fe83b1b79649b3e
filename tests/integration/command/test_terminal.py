"""`pii-vault` before a person: questions, tables that fit, and what a locked database says."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
from sqlalchemy import create_engine
from tests.support.command import environment
from tests.support.operator import Operator

from pii_vault.cli.table import FIXED, SPARE, TEXT, fitted

ARN = "arn:aws:kms:eu-west-1:111122223333:key/0b1f7e52-3c1d-4a0e-9d8e-2f6a7c5b4d31"
MULTI_REGION = "arn:aws:kms:eu-west-1:111122223333:key/mrk-0b1f7e523c1d4a0e9d8e2f6a7c5b4d31"

COMPROMISE = ("key", "compromise", "acme", "1")
QUESTION = "Type acme to go on: "


def state(ops: Operator) -> str:
    return str(ops.json("key list", "acme")[0]["state"])


@pytest.fixture
def acme(local: Operator) -> Operator:
    local.run("tenant", "add", "acme")
    return local


@pytest.mark.parametrize(
    ("answer", "code"),
    [("acme\n", 0), ("\n", 1), ("y\n", 1), ("yes\n", 1), ("ACME\n", 1), (" acme\n", 1), ("\x04", 1), ("\x03", 130)],
)
def test_only_the_tenants_name_goes_on(acme: Operator, answer: str, code: int) -> None:
    shown = acme.terminal(*COMPROMISE, question=QUESTION, answer=answer)
    assert shown.code == code
    assert "What data key version 1 of tenant acme sealed cannot be read until it is re-encrypted.\n" in shown.text
    assert ("nothing was changed" in shown.text) == (code == 1)
    assert "Traceback" not in shown.text
    assert state(acme) == ("compromised" if code == 0 else "active")


def test_a_name_with_blanks_and_letters_of_any_language_can_be_typed(local: Operator) -> None:
    local.run("tenant", "add", "Çelik & Söhne ")
    shown = local.terminal("key", "compromise", "Çelik & Söhne ", "1", question="to go on: ", answer="Çelik & Söhne \n")
    assert shown.code == 0
    assert local.json("key list", "Çelik & Söhne ")[0]["state"] == "compromised"


def test_yes_is_the_answer_where_it_is_given(acme: Operator) -> None:
    shown = acme.terminal(*COMPROMISE, "--yes")
    assert (shown.code, QUESTION in shown.text) == (0, False)
    assert state(acme) == "compromised"


@pytest.mark.parametrize("stdin", ["", "acme\n"])
def test_without_a_terminal_and_without_yes_nothing_is_asked_and_nothing_done(acme: Operator, stdin: str) -> None:
    told = acme.fails(*COMPROMISE, stdin=stdin, code=2)
    assert told == "this cannot be undone, and there is no terminal to ask on: give --yes if it is meant"
    assert state(acme) == "active"


def test_a_locked_sqlite_file_is_one_line(acme: Operator) -> None:
    url = acme.settings["PII_VAULT_DATABASE_URL"]
    engine = create_engine(url)
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN EXCLUSIVE")
        for arguments in (["tenant", "list"], ["key", "rotate", "acme"], ["rotate", "--due"]):
            done = subprocess.run(
                [sys.executable, "-m", "pii_vault", *arguments],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
                env=environment(**{**acme.settings, "PII_VAULT_DATABASE_URL": f"{url}?timeout=0.1"}),
            )
            acme.outputs += [done.stdout, done.stderr]
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), arguments
            assert done.stderr.startswith("pii-vault: the key store failed with SQLITE_BUSY (somebody else is writing")
        connection.rollback()
    engine.dispose()
    assert state(acme) == "active"


@pytest.mark.parametrize(
    ("columns", "screens"),
    [(80, ["tenant list", "key list acme", "key validate acme", "audit log acme"]), (140, ["tenant list"])],
)
def test_tables_fit_the_terminal(acme: Operator, columns: int, screens: list[str]) -> None:
    acme.run("tenant", "add", "a customer with a long name", *acme.kms.new_key(), "--rotation-days", "90")
    acme.run("key", "rotate", "acme", "--actor", "somebody.with.a.long.address@example.com")
    acme.run("key", "rotate", "acme", "--compromised")
    for words in screens:
        # Without LINES too, Rich takes a terminal that calls itself dumb for one of 80 columns.
        shown = acme.terminal(*words.split(), COLUMNS=str(columns), LINES="50", NO_COLOR="1", TERM="dumb")
        assert shown.code == 0, words
        if words == "tenant list":  # one line a row, and nothing cut off
            for row, line in zip(acme.rows("tenant", "list"), shown.text.splitlines()[1:], strict=True):
                assert re.fullmatch(rf"{row[0]} +{row[1]} .*key/{row[4][-36:-28]}.* {row[6]} +{row[7]} *", line), line
        for line in shown.text.splitlines():
            assert len(line) <= columns, (words, line)


TABLE = {"tenant": FIXED, "keyset": SPARE, "KMS key": FIXED, "finding": TEXT}
ROW = ["acme", "0bec9b87", ARN, f"the KMS knows {ARN} and says that it is enabled"]


def shown_in(width: int) -> Any:
    found = fitted(TABLE, [ROW], width)
    return found and (found[0], found[1][0])


def test_a_table_shortens_kms_keys_before_it_leaves_out_columns_and_nothing_that_has_room() -> None:
    names, spared = list(TABLE), ["tenant", "KMS key", "finding"]
    short, shortest = "…:key/0b1f7e52-3c1d-4a0e-9d8e-2f6a7c5b4d31", "…:key/0b1f7e52…"
    assert shown_in(200) == (names, ROW)
    shorter = ROW[3].replace(ARN, short)
    assert shown_in(120) == (names, ["acme", "0bec9b87", short, shorter])
    assert shown_in(100) == (spared, ["acme", short, shorter])
    assert shown_in(80)[0] == names
    assert shown_in(80)[1][2] == shortest
    assert shown_in(52)[0] == spared
    assert shown_in(30) is None


def test_what_is_shortened_is_kms_keys_and_long_hexadecimal_numbers_and_nothing_else() -> None:
    def shortest(cell: str) -> str:
        found = fitted({"a": FIXED}, [[cell]], 40)
        assert found is not None
        return found[1][0][0]

    assert shortest(MULTI_REGION) == "…:key/mrk-0b1f7e52…"
    assert shortest("0b1f7e523c1d4a0e9d8e2f6a7c5b4d310b1f7e523c1d4a0e9d8e2f6a7c5b4d31") == "0b1f7e52…"
    assert fitted({"a": FIXED}, [["arn:aws:iam::111122223333:role/pii-vault-0b1f7e52"]], 40) is None
    assert shortest("2147483648") == "2147483648"
