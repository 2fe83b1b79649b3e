"""The numbers of docs/scaling.md are those of the model, and the model agrees with what is counted."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def scaling() -> Any:
    spec = importlib.util.spec_from_file_location("scaling_benchmark", ROOT / "benchmarks" / "scaling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_the_table_is_what_the_model_says(scaling: Any) -> None:
    assert scaling.page() in PAGE


def test_the_text_says_the_same_as_the_model(scaling: Any) -> None:
    *_, large, long = (scaling.reckoned(each) for each in scaling.EXAMPLES)
    text = " ".join(PAGE.split())
    for said in (
        f"at most {large['kms_requests_per_s_of_one_customer']:.1f} requests a second each",
        f"{large['kms_requests_per_s']:,} a second at ten thousand tenants",
        f"{large['cold_start_requests']:,} requests can come within seconds",
        f"up to {large['wave_after_cold_start_per_s']:,} requests a second",
        f"until {large['settled_per_s']:,} are left",
        f"3,600 seconds make it {long['wave_after_cold_start_per_s']:,}",
        f"{large['sts_requests_per_s']:,} requests a second with a role",
        f"{large['key_store_statements_per_s']:,} statements a second",
        f"are {large['reencrypt_processor_hours']:g} hours of one processor",
        f"they take {large['reencrypt_days_held_down']:g} days",
        f"{large['reencrypt_rows_per_s_to_keep_up']:,} rows a second are enough",
        f"{scaling.STS_QUOTA} that AWS answers",
        f"keeps {scaling.KEPT_TENANTS:,} keysets",
    ):
        assert said in text, said


def test_the_model_agrees_with_vaults_that_are_counted(scaling: Any) -> None:
    found = scaling.checked(tenants=5, processes=2, periods=6)
    assert found["kms_requests"] == pytest.approx(found["kms_requests_reckoned"], rel=0.15)
    assert found["statements_of_a_fetch"] == found["statements_of_a_fetch_reckoned"]
    assert found["notices"] == found["notices_reckoned"]
    assert found["keyset_bytes"] == pytest.approx(found["keyset_bytes_reckoned"], rel=0.35)


def test_after_a_start_renewals_come_in_a_wave_that_flattens(scaling: Any) -> None:
    size = scaling.Size(tenants=500, processes=1, ttl=100.0)
    one = scaling.played(size, 4_000)
    assert one.most_a_second > 2 * one.settled_a_second
    assert one.settled_a_second == pytest.approx(size.requests().rate, rel=0.1)
