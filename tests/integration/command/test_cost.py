"""`pii-vault kms cost`: where its numbers come from, and what it says about them."""

from __future__ import annotations

from pathlib import Path

from tests.support.command import pii_vault_here
from tests.support.documents import document
from tests.support.operator import Operator

ONLY_PROCESSES = ("kms", "cost", "--processes", "2")
LARGE = ("kms", "cost", "--tenants", "1000", "--processes", "20")


def test_tenants_are_counted_in_the_key_store_without_suspended_ones(ops: Operator) -> None:
    for name in ("acme", "glob", "left"):
        ops.run("tenant", "add", name, *ops.kms.new_key())
    ops.run("tenant", "suspend", "left")
    found = ops.json("kms cost", "--processes", "3")
    assert {(each["tenants"], each["processes"]) for each in found} == {(2, 3)}
    assert {each["tenants"] for each in ops.json("kms cost", "--processes", "3", "--tenants", "70")} == {70}


def test_the_time_to_live_is_the_setting_s_unless_another_is_named(local: Operator) -> None:
    def chosen(*options: str, **settings: str) -> list[float]:
        done = local.run(*LARGE, "--json", *options, **settings)
        return [each["ttl"] for each in document("kms cost", done.out) if each["chosen"]]

    assert chosen() == [300]
    assert chosen(PII_VAULT_TTL="120") == [120]
    assert chosen("--ttl", "900", PII_VAULT_TTL="120") == [900]
    assert chosen("--scopes-per-second", "5", PII_VAULT_TTL="0") == [0]
    assert "a ttl of 50000 s" in local.fails(*LARGE, "--ttl", "50000")
    assert "the option --ttl cannot be used" in local.fails(*LARGE, "--ttl", "-1")
    assert "say --ttl 0" in local.fails(*LARGE, PII_VAULT_TTL="1e-300", code=2)


def test_without_tenants_and_without_a_key_store_it_says_what_is_missing() -> None:
    done = pii_vault_here(*ONLY_PROCESSES)
    assert (done.code, done.out) == (1, "")
    assert "nobody said how many tenants there are" in done.err
    assert all(way in done.err for way in ("--tenants", "--database-url", "PII_VAULT_DATABASE_URL", "pii-vault.toml"))


def test_a_key_store_with_nobody_in_use_gives_no_number(local: Operator) -> None:
    assert "the key store has no tenant that is in use" in local.fails(*ONLY_PROCESSES)
    local.run("tenant", "add", "left")
    local.run("tenant", "suspend", "left")
    assert "the key store has no tenant that is in use" in local.fails(*ONLY_PROCESSES)


def test_a_key_store_that_is_not_needed_is_not_looked_at(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'missing' / 'keys.sqlite3'}"
    assert pii_vault_here(*LARGE, PII_VAULT_DATABASE_URL=url).code == 0
    assert pii_vault_here(*ONLY_PROCESSES, PII_VAULT_DATABASE_URL=url).code == 1


def test_it_prints_one_line_for_each_time_to_live_into_a_pipe() -> None:
    done = pii_vault_here(*LARGE, "--ttl", "120")
    rows = [line.split("\t") for line in done.out.splitlines() if "\t" in line]
    assert [row[0] for row in rows] == ["60 s", "120 s", "300 s", "900 s", "3600 s"]
    assert rows[2] == ["300 s", "197,485,714", "216,000,000", "76", "$592.40", "$647.94", ""]
    assert [row[-1] for row in rows] == ["", "chosen", "", "", ""]


def test_it_says_what_the_estimate_takes_for_granted_and_what_is_not_in_it() -> None:
    shown = pii_vault_here(*LARGE).out
    assert "if every tenant is in use in every process all the time" in shown
    assert "Not in it are the dollar a month that each KMS key costs its owner, our customer" in shown
    assert "10,000 a second, the least of all regions: see --region" in shown
    assert "20,000 a second, in eu-central-1" in pii_vault_here(*LARGE, "--region", "eu-central-1").out


def test_it_warns_where_the_quota_does_not_do() -> None:
    def shown(*options: str) -> str:
        return pii_vault_here(*LARGE, *options).out

    start, always = "start them one by one", "choose a longer time to live, or ask AWS for more"
    assert (start in shown(), always in shown()) == (True, False)
    assert start not in shown("--region", "us-east-1")
    assert always in shown("--ttl", "1")
    assert always in shown("--ttl", "0", "--scopes-per-second", "20000")
    keeps = "A process keeps the keys of 10,000 tenants."
    assert keeps not in shown()
    assert keeps in pii_vault_here("kms", "cost", "--tenants", "10001", "--processes", "1").out


def test_it_fits_a_narrow_terminal(local: Operator) -> None:
    shown = local.terminal(
        *LARGE,
        "--rotation-days",
        "90",
        "--starts-per-day",
        "3",
        "--scopes-per-second",
        "500",
        COLUMNS="80",
        NO_COLOR="1",
        TERM="dumb",
    )
    assert shown.code == 0
    assert [line for line in shown.text.splitlines() if len(line) > 80] == []
    assert "time to live  requests a month  a second  price a month" in shown.text
