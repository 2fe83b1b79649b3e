"""Benchmarks, run small: what they count is what is promised, however much there is."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_a_rotation_costs_the_same_whatever_there_is_and_touches_no_row() -> None:
    sizes = ["--rows", "300", "--versions", "5", "--tenants", "6"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "rotation.py"), "--json", *sizes],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["kms_calls"] == {"Decrypt": 2, "DescribeKey": 1, "GenerateDataKey": 1}
    assert figures["kms_calls_1_version"] == figures["kms_calls_5_versions"] == 4
    assert figures["kms_calls_5_versions_scope"] == 1
    assert figures["statements_1_row"] == figures["statements_300_rows"] == figures["statements_5_versions"]
    assert figures["rows_touched"] == 0
    assert figures["rewrap_kms_calls"] == {"DescribeKey": 1, "ReEncrypt": 12}


def test_coroutines_that_wait_for_one_tenant_s_keys_cost_one_call_and_one_thread() -> None:
    sizes = ["--coroutines", "50", "--latency", "0.6"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "event_loop.py"), "--json", *sizes],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(done.stdout)
    assert (figures["kms_calls"], figures["threads"]) == (1, 1)
    assert figures.keys() >= {"longest_stall_ms", "longest_stall_idle_ms"}


def test_the_keyring_holds_what_it_is_given_room_for() -> None:
    sizes = ["--tenants", "12", "--versions", "3", "--threads", "2"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "keyring.py"), "--json", *sizes],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(done.stdout)
    assert {count: each["held"] for count, each in figures["tenants"].items()} == {"1": 1, "10": 10, "12": 12}
    assert figures["kept_at_most"] == 10_000
    assert (set(figures["versions"]), set(figures["threads"])) == ({"1", "3"}, {"1", "2"})
    assert figures.keys() >= {"hit_ratio", "miss_ratio", "bytes_each", "versions_miss_ratio", "threads_hit_ratio"}


def test_a_search_by_token_uses_the_index_and_finds_what_the_twin_finds() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "search.py"), "--json", "--rows", "1000", "--rounds", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(done.stdout)
    assert figures["rows"] == 1_000
    assert (figures["value_bytes"], figures["value_plain_bytes"]) == (24 + 38 + 16, 24)
    plans = [figures[f"lookup_{kind}plan"] for kind in ("", "prepared_", "generic_")]
    assert all("ix_sealed_customers_email_blind" in each for each in plans)
    assert figures["index_bytes"] < figures["index_plain_bytes"]
    compared = ("lookup", "lookup_orm", "join", "join_opened", "join_all", "unique_insert", "batch_insert")
    assert figures.keys() >= {f"{each}_ratio" for each in (*compared, "table_bytes", "index_bytes", "total_bytes")}


def test_encrypted_columns_are_measured_beside_plain_ones_on_both_databases() -> None:
    sizes = ["--rows", "40", "--rounds", "1", "--gets", "10"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "orm.py"), "--json", "--async", *sizes],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(done.stdout)
    measured = {"orm_load", "core_load", "orm_insert", "core_insert", "session_get"}
    for each in (figures, figures["async"]):
        databases = {"postgresql": each["postgresql"], "sqlite": each["sqlite"]}
        assert {name: set(ratios) for name, ratios in databases.items()} == dict.fromkeys(databases, measured)
        assert "hand-written TypeDecorator" in each["peers"]
        assert all(set(found) == set(databases) for found in each["peers"].values())
    assert figures["kms_calls_per_tenant"] == 1.0


def test_one_value_is_measured_beside_a_bare_call() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "per_value.py"), "--json", "--rounds", "1", "--values", "5"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(done.stdout)
    assert {size: found["pii_vault"]["more_bytes"] for size, found in figures["sizes"].items()} == {
        "24": 38,
        "200": 38,
        "4096": 38,
    }
    assert {"seal_ratio", "open_ratio"} <= figures["sizes"]["24"]["hand-written TypeDecorator"].keys()


def test_a_benchmark_that_failed_is_named_in_the_results() -> None:
    spec = importlib.util.spec_from_file_location("bench_report", ROOT / "benchmarks" / "report.py")
    assert spec is not None
    assert spec.loader is not None
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    machine = {"date": "today", "processor": "fast", "cores": 2, "system": "Linux", "python": "3.11", "load_before": 0}
    results = {"machine": {**machine, "versions": {"tink": "1"}, "quick": True}, "orm": {"failed": "no server"}}
    page = report.written(results, [])
    assert "    no server" in page
    assert "tink 1" in page
    assert "Compare nothing" in page


def test_calls_of_the_kms_grow_with_tenants_and_not_with_values() -> None:
    sizes = ["--tenants", "2", "--versions", "2", "--values", "2", "--system", "pii_vault"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "kms_calls.py"), "--json", *sizes],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    ours = json.loads(done.stdout)["systems"]["pii_vault"]
    assert ours["counted"]["open"] == {"Decrypt": 2}
    assert (ours["seal"]["calls_per_value"], ours["open"]["calls_per_value"]) == (0, 0)
    assert ours["open"]["calls_per_million"] == 2


def test_an_encrypted_value_takes_the_bytes_that_it_is_said_to_take() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "space.py"), "--json", "--rows", "2000", "--no-peers"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(done.stdout)
    for table in ("postgresql_table", "sqlite_table"):
        more = figures[table]["pii_vault"] - figures[table]["plain"]
        assert 3 * 38 <= more <= 3 * 38 + 20
    assert figures["postgresql_index"]["pii_vault"] < figures["postgresql_index"]["plain"]
