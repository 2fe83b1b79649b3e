"""What a run came to, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

OURS = "pii_vault"
OPERATIONS = ("orm_load", "core_load", "orm_insert", "core_insert", "session_get")
TARGETS = {
    "postgresql": {"orm_load": 1.30, "core_load": 4.0, "orm_insert": 1.20, "session_get": 1.08},
    "sqlite": {"orm_load": 1.18, "core_load": 2.8, "orm_insert": 1.20, "session_get": 1.08},
}
"""What the library promises itself."""

TITLES = {"postgresql": "PostgreSQL", "sqlite": "SQLite, in memory"}


def written(results: dict[str, Any], plots: Sequence[str]) -> str:
    """Return the whole page."""
    parts = ["# Results", *_machine(results["machine"])]
    sections: dict[str, tuple[str, Callable[[dict[str, Any]], Iterable[str]]]] = {
        "orm": ("Rows with three encrypted columns", _orm),
        "per_value": ("One value", _per_value),
        "hot_path": ("One value of each type, beside a bare AES-GCM call", _flat),
        "kms_calls": ("KMS calls and dollars", _kms_calls),
        "keyring": ("A scope, as tenants, key versions and threads grow", _keyring),
        "space": ("Bytes", _space),
        "search": ("Search", _flat),
        "reencrypt": ("Re-encryption", _flat),
        "rotation": ("Rotation and re-wrap", _flat),
        "scaling": ("Growth, reckoned", _flat),
    }
    shown = {"orm": "orm_load.svg", "kms_calls": "kms_dollars.svg", "keyring": "growth.svg"}
    for name, (title, section) in sections.items():
        figures = results.get(name)
        if figures is None:
            continue
        parts += ["", f"## {title}", ""]
        if "failed" in figures:
            parts += ["It failed:", "", *(f"    {line}" for line in figures["failed"].splitlines())]
            continue
        if shown.get(name) in plots:
            parts += [f"![{title}]({shown[name]})", ""]
        parts += section(figures)
        for peer, reason in figures.get("left_out", {}).items():
            parts += ["", f"Left out: {peer} ({reason})."]
    return "\n".join(parts) + "\n"


def _machine(machine: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    warning = ["", "**A quick run: it shows that everything runs. Compare nothing.**"] if machine["quick"] else []
    return [
        *warning,
        "",
        f"Measured on {machine['date']}: {machine['processor']}, {machine['cores']} cores, {machine['system']}, "
        f"Python {machine['python']}; load before: {machine['load_before']}.",
        "",
        f"{versions}.",
        "",
        "What is compared took turns within one run. Times are this machine's; compare the ratios.",
    ]


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return a table whose first column is text, and the others numbers."""
    aligned = ["---", *(["---:"] * (len(head) - 1))]
    return [_line(head), _line(aligned), *(_line(row) for row in rows)]


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _orm(figures: dict[str, Any]) -> Iterable[str]:
    for title, found in (("", figures), (", asynchronous", figures.get("async"))):
        if found is None:
            continue
        for database in (name for name in TITLES if name in found):
            yield from ("", f"{TITLES[database]}{title}, {figures['rows']:,} rows: ratios to plain columns", "")
            ours = found[database]
            rows = [[f"**{OURS}**", *(ours[each] for each in OPERATIONS)]]
            rows += [[name, *(one[database][each] for each in OPERATIONS)] for name, one in found["peers"].items()]
            if not title:
                rows.append(["to be at most", *(TARGETS[database].get(each, "") for each in OPERATIONS)])
            spread = found["quartiles"][database]
            rows.append([f"{OURS}, quartiles", *(" to ".join(map(str, spread[each])) for each in OPERATIONS)])
            rows.append(["plain, µs a row", *(found["plain_us_per_row"][database][each] for each in OPERATIONS)])
            yield from table(["", *OPERATIONS], rows)
    yield from ("", f"KMS calls per tenant over the whole run: {figures['kms_calls_per_tenant']}.")


def _per_value(figures: dict[str, Any]) -> Iterable[str]:
    sizes = figures["sizes"]
    head = ["ratio to a bare call"]
    for size in sizes:
        head += [f"{int(size):,} B seal", "open", "bytes more"]
    names = next(iter(sizes.values()))
    rows = [
        [
            name,
            *(each[name][key] for each in sizes.values() for key in ("seal_ratio", "open_ratio", "more_bytes")),
        ]
        for name in names
    ]
    yield from table(head, rows)


def _kms_calls(figures: dict[str, Any]) -> Iterable[str]:
    yield f"{figures['tenants']} tenants with {figures['versions']} key versions each; a million values."
    yield ""
    head = ["", "set up", "calls to seal", "dollars", "calls to open, cold", "dollars"]
    rows = [
        [
            name,
            each["set_up_calls"],
            *(
                f"{each[way][key]:,}"
                for way in ("seal", "open")
                for key in ("calls_per_million", "dollars_per_million")
            ),
        ]
        for name, each in figures["systems"].items()
    ]
    yield from table(head, rows)


def _keyring(figures: dict[str, Any]) -> Iterable[str]:
    for what in ("tenants", "versions", "threads"):
        found = figures[what]
        keys = list(next(iter(found.values())))
        yield from ("", *table([what, *keys], [[size, *(each[key] for key in keys)] for size, each in found.items()]))
    yield from ("", f"A keyset takes {figures['bytes_each']:,} bytes.")


def _space(figures: dict[str, Any]) -> Iterable[str]:
    columns = ("postgresql_table", "sqlite_table", "loaded")
    head = ["", "PostgreSQL, bytes a row", "SQLite, bytes a row", "memory of 10,000 loaded rows"]
    yield from table(
        head, [[name, *(f"{figures[each][name]:,}" for each in columns)] for name in figures["sqlite_table"]]
    )
    index = figures["postgresql_index"]
    yield from ("", f"Index: {index[OURS]} bytes a row of tokens, {index['plain']} of plaintext.")


def _flat(figures: dict[str, Any]) -> Iterable[str]:
    skipped = {"options", "seconds", "left_out", "python", "sqlalchemy", "cryptography", "postgresql"}
    yield from table(["", ""], [[f"`{name}`", each] for name, each in figures.items() if name not in skipped])
