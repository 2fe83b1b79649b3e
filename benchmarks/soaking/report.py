"""What a run has shown: as figures, as a table, and as promises that were broken."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.soaking.aftermath import Aftermath
from benchmarks.soaking.checker import FaultFindings, Findings
from benchmarks.soaking.journal import Outcome
from benchmarks.soaking.kms_process import Requests
from benchmarks.soaking.plan import ATTEMPTS, CONNECT_TIMEOUT, READ_TIMEOUT, Plan
from rich.console import Console
from rich.table import Table

_PROMISES: Final = {
    "plaintext_after_bound": "values were sealed or opened after the bound",
    "plaintext_after_refusal": "values were sealed or opened by a process that had heard the KMS refuse",
    "plaintext_after_evict": "values were sealed or opened by a process that had evicted the tenant, without new keys",
    "plaintext_writes": "stored values are not sealed",
    "wrong_values": "values that were opened are not what was written there",
    "unreadable_values": "values do not open any more",
}


@dataclass
class Run:
    """What is known of a run when it is over.

    Attributes:
        plan: The options.
        findings: What the time stamps say.
        aftermath: What the database says.
        requests: What the KMS was asked while the workers worked, and with what outcome.
        seconds: How long they did.
        surprises: Errors that nobody expects, by class.
        lost: Processes that ended by themselves.
        interrupted: Whether somebody ended it early.
    """

    plan: Plan
    findings: Findings
    aftermath: Aftermath
    requests: Requests
    seconds: float
    surprises: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    interrupted: bool = False


def figures(run: Run) -> dict[str, Any]:
    """Return the figures, as they are printed in JSON."""
    plan, findings, aftermath = run.plan, run.findings, run.aftermath
    judged = {name: each for name, each in findings.faults.items() if each.max_time_to_dark is not None}
    return {
        "operations": findings.operations,
        "plaintext_after_bound": findings.after_bound,
        "plaintext_after_refusal": findings.after_refusal,
        "plaintext_after_evict": findings.after_evict,
        "wrong_values": findings.wrong_values + aftermath.wrong_values,
        "plaintext_writes": aftermath.plaintext_writes,
        "unreadable_values": aftermath.unreadable,
        "bound_s": plan.bound,
        "max_time_to_dark_s": {name: round(each.max_time_to_dark or 0.0, 3) for name, each in judged.items()},
        "episodes": {name: _episodes(each) for name, each in findings.faults.items()},
        "undecided": findings.undecided,
        "attempts": findings.attempts,
        "operations_per_s": round(findings.operations / max(run.seconds, 0.001), 1),
        "values_opened": findings.opened,
        "values_sealed": findings.sealed,
        "rows": aftermath.rows,
        "evictions": findings.evictions,
        "kms_requests": run.requests.total(),
        "kms_requests_per_s": round(run.requests.total() / max(run.seconds, 0.001), 1),
        "kms_requests_by_outcome": {" ".join(each): count for each, count in sorted(run.requests.items())},
        "errors": _errors(findings),
        "unexpected_errors": run.surprises,
        "processes_lost": run.lost,
        "interrupted": run.interrupted,
        "not_judged": _not_judged(findings),
        "broken": broken(run),
        "setup": {
            "seconds": round(run.seconds, 1),
            "processes": plan.processes,
            "threads": plan.threads,
            "tenants": plan.tenants,
            "ttl_s": plan.ttl,
            "grace_s": plan.grace,
            "seed": plan.seed,
            "database": "sqlite" if plan.sqlite else "postgresql",
            "kms_attempts": ATTEMPTS,
            "kms_connect_timeout_s": CONNECT_TIMEOUT,
            "kms_read_timeout_s": READ_TIMEOUT,
        },
    }


def broken(run: Run) -> list[str]:
    """Return what is wrong: broken promises, and whatever keeps the run from proving anything."""
    findings, aftermath = run.findings, run.aftermath
    counts = {
        "plaintext_after_bound": findings.after_bound,
        "plaintext_after_refusal": findings.after_refusal,
        "plaintext_after_evict": findings.after_evict,
        "plaintext_writes": aftermath.plaintext_writes,
        "wrong_values": findings.wrong_values + aftermath.wrong_values,
        "unreadable_values": aftermath.unreadable,
    }
    found = [f"{count} {_PROMISES[name]}" for name, count in counts.items() if count]
    found += [f"{count} unexpected errors: {name}" for name, count in run.surprises.items()]
    found += [f"a process was lost: {name}" for name in run.lost]
    if not run.interrupted:
        found += [f"no episode of {name!r} can be judged: let it run for longer" for name in _not_judged(findings)]
    return found


def _not_judged(findings: Findings) -> list[str]:
    return [name for name, each in findings.faults.items() if each.judges and not each.judged]


def _episodes(fault: FaultFindings) -> dict[str, int]:
    if not fault.judges:
        return {"all": fault.episodes}
    return {"all": fault.episodes, "judged": fault.judged, "attempts_after_bound": fault.tried_after_bound}


def _errors(findings: Findings) -> dict[str, int]:
    names = {Outcome.DENIED: "KmsDeniedError", Outcome.UNAVAILABLE: "KmsUnavailableError"}
    return {name: findings.outcomes[outcome] for outcome, name in names.items()}


def show(run: Run, console: Console) -> None:
    """Print the figures as tables."""
    found = figures(run)
    setup = found["setup"]
    console.print(
        f"{setup['processes']} processes x {setup['threads']} threads, {setup['tenants']} tenants, "
        f"{setup['seconds']} s, {setup['database']}"
    )
    table = Table()
    table.add_column("what", no_wrap=True)
    table.add_column("figure", justify="right")
    for name, value in found.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            table.add_row(name, f"{value:,}", style="red" if name in _PROMISES and value else None)
    for name, value in {**found["errors"], **found["unexpected_errors"]}.items():
        table.add_row(name, f"{value:,}")
    console.print(table, _faults(run))
    for each in found["broken"]:
        console.print(each, style="red")
    if run.interrupted:
        missing = ", ".join(found["not_judged"]) or "nothing"
        console.print(f"Interrupted: what there was is judged; what cannot be judged: {missing}.", style="yellow")
    elif not found["broken"]:
        console.print("Every promise was kept.", style="green")


def _faults(run: Run) -> Table:
    table = Table(title=f"dark within {run.plan.bound:g} s, the bound")
    table.add_column("KMS key", no_wrap=True)
    for name in ("episodes", "judged", "attempts after the bound", "dark after at most"):
        table.add_column(name, justify="right")
    for name, each in run.findings.faults.items():
        dark = "" if each.max_time_to_dark is None else f"{each.max_time_to_dark:.3f} s"
        judged = (f"{each.judged:,}", f"{each.tried_after_bound:,}") if each.judges else ("", "")
        table.add_row(name, f"{each.episodes:,}", *judged, dark)
    return table
