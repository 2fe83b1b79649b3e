"""The price of one value through a column type's own processors, beside a bare AES-GCM call.

Both run in turn in one process, so that the machine's noise meets them alike: compare the ratios, not the times. The
bare call is a cached `AESGCM` object with a fresh IV from the kernel: bytes in, bytes out, no tenant, no header, no
text, no additional data.

    python benchmarks/hot_path.py [--json] [--rounds N] [--values N]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cryptography
import sqlalchemy
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Column, MetaData, Table, create_engine

from pii_vault import EncryptedInteger, EncryptedString, LocalKms, Vault

SIZES = (24, 200, 4096)


def bare(text: bytes) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
    """A cached AESGCM object, and nothing else that could be left out."""
    aes = AESGCM(os.urandom(32))
    encrypt, decrypt, urandom = aes.encrypt, aes.decrypt, os.urandom

    def seal(value: bytes) -> bytes:
        iv = urandom(12)
        return iv + encrypt(iv, value, None)

    def open_(value: bytes) -> bytes:
        return decrypt(value[:12], value[12:], None)

    assert open_(seal(text)) == text
    return seal, open_


def per_value(function: Callable[[Any], Any], values: Iterable[Any]) -> float:
    """Nanoseconds a value."""
    values = list(values)
    start = time.perf_counter_ns()
    for value in values:
        function(value)
    return (time.perf_counter_ns() - start) / len(values)


def ratios(pairs: dict[str, tuple[Callable[[], float], Callable[[], float]]], rounds: int) -> dict[str, float]:
    """Run each pair in turn, round after round; a figure is the median of its rounds' ratios."""
    seen: dict[str, list[float]] = {name: [] for name in pairs}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in pairs}
    for _ in range(rounds):
        for name, (ours, theirs) in pairs.items():
            mine, other = ours(), theirs()
            seen[name].append(mine / other)
            times[name].append((mine, other))
    figures = {f"{name}_ratio": round(statistics.median(each), 3) for name, each in seen.items()}
    for name, each in times.items():
        figures[f"{name}_ns"] = round(statistics.median(mine for mine, _ in each))
        figures[f"{name}_bare_ns"] = round(statistics.median(other for _, other in each))
    return figures


def measure(rounds: int, count: int) -> dict[str, float]:
    """Measure every size and type through one vault with a warm keyset."""
    with tempfile.TemporaryDirectory() as directory:
        kms = LocalKms(Path(directory) / "kms.json")
        vault = Vault(f"sqlite:///{directory}/bench.sqlite3", kms=kms)
        vault.create_all()
        vault.add_tenant("acme", key=kms.create_key())
        engine = create_engine("sqlite://")
        vault.attach(engine)
        table = Table("t", MetaData(), Column("text", EncryptedString()), Column("number", EncryptedInteger()))
        with vault.tenant("acme"):
            figures = _measure(engine.dialect, table, rounds, count)
        engine.dispose()
        vault.close()
        return figures


def _measure(dialect: Any, table: Table, rounds: int, count: int) -> dict[str, float]:
    pairs: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {}

    def add(prefix: str, column: Any, value: Any, encoded: bytes) -> None:
        kind = column.type.dialect_impl(dialect)
        seal, open_ = kind.bind_processor(dialect), kind.result_processor(dialect, None)
        bare_seal, bare_open = bare(encoded)
        sealed = [seal(value) for _ in range(count)]
        assert open_(sealed[0]) == value
        bare_sealed = [bare_seal(encoded) for _ in range(count)]
        pairs[f"{prefix}seal"] = (
            lambda: per_value(seal, [value] * count),
            lambda: per_value(bare_seal, [encoded] * count),
        )
        pairs[f"{prefix}open"] = (lambda: per_value(open_, sealed), lambda: per_value(bare_open, bare_sealed))

    for size in SIZES:
        text = "x" * size
        add("" if size == SIZES[0] else f"text_{size}_", table.c.text, text, text.encode())
    add("integer_", table.c.number, 123_456_789, (123_456_789).to_bytes(8, "big"))
    return ratios(pairs, rounds)


def main() -> None:
    """Print a table, or one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rounds", type=int, default=401)
    parser.add_argument("--values", type=int, default=400)
    arguments = parser.parse_args()
    figures = measure(arguments.rounds, arguments.values)
    versions = {
        "python": platform.python_version(),
        "sqlalchemy": sqlalchemy.__version__,
        "cryptography": cryptography.__version__,
    }
    if arguments.json:
        print(json.dumps({**figures, **versions}))
        return
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"{'':<16}{'ratio':>8}{'ours ns':>10}{'bare ns':>10}")
    for name in (key.removesuffix("_ratio") for key in figures if key.endswith("_ratio")):
        label = name if "_" in name else f"text_{SIZES[0]}_{name}"
        print(f"{label:<16}{figures[f'{name}_ratio']:>8}{figures[f'{name}_ns']:>10}{figures[f'{name}_bare_ns']:>10}")


if __name__ == "__main__":
    main()
