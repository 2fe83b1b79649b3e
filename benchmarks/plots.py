"""The plots of a run, as SVG that is the same for the same figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot
from matplotlib.axes import Axes

OURS = "pii_vault"
INK, MUTED, COLOURS = "#1f2933", "#9aa5b1", {"postgresql": "#33658a", "sqlite": "#86bbd8"}
STYLE = {
    "svg.hashsalt": "pii_vault",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def draw(results: dict[str, Any], folder: Path) -> list[str]:
    """Draw what has been measured, and return the files' names, the one that matters first."""
    drawn = []
    plots = {"orm_load": ("orm", orm_load), "kms_dollars": ("kms_calls", kms_dollars), "growth": ("keyring", growth)}
    with mpl.rc_context(STYLE):
        for name, (needed, plot) in plots.items():
            figures = results.get(needed, {"failed": ""})
            if "failed" in figures:
                continue
            plot(figures)
            pyplot.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
            pyplot.close()
            drawn.append(f"{name}.svg")
    return drawn


def orm_load(figures: dict[str, Any]) -> None:
    """Loading rows with three encrypted columns through the ORM, beside plain columns."""
    databases = [name for name in COLOURS if name in figures]
    rows = {OURS: {name: figures[name] for name in databases}, **figures["peers"]}
    ratios = {name: {each: one[each]["orm_load"] for each in databases} for name, one in rows.items()}
    order = sorted(ratios, key=lambda name: -max(ratios[name].values()))
    _, axes = pyplot.subplots(figsize=(8, 0.5 * len(order) + 1.2))
    height = 0.8 / len(databases)
    for number, database in enumerate(databases):
        places = [place - number * height + 0.2 for place in range(len(order))]
        values = [ratios[name][database] for name in order]
        bars = axes.barh(places, values, height, color=COLOURS[database], label=_named(database))
        axes.bar_label(bars, [f"{value:.2f}×" if value < 10 else f"{value:.0f}×" for value in values], padding=3)
    _named_rows(axes, order)
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20, 50, 100], ["1× plain", "2", "5", "10", "20", "50", "100"])
    axes.minorticks_off()
    axes.set_xlim(0.9, max(max(one.values()) for one in ratios.values()) * 1.7)
    axes.set_title(
        f"ORM load of {figures['rows']:,} rows with three encrypted columns, against plain columns", loc="left"
    )
    axes.legend(frameon=False, loc="upper right")


def kms_dollars(figures: dict[str, Any]) -> None:
    """What a million values cost in KMS requests."""
    calls = {
        name: [each["seal"]["calls_per_million"], each["open"]["calls_per_million"]]
        for name, each in figures["systems"].items()
    }
    order = sorted(calls, key=lambda name: -sum(calls[name]))
    _, axes = pyplot.subplots(figsize=(8, 0.5 * len(order) + 1.2))
    for number, (way, colour) in enumerate((("seal", "#33658a"), ("open in a cold process", "#86bbd8"))):
        places = [place - number * 0.4 + 0.2 for place in range(len(order))]
        bars = axes.barh(places, [calls[name][number] for name in order], 0.4, color=colour, label=way)
        axes.bar_label(bars, [f"{calls[name][number]:,}" for name in order], padding=3)
    _named_rows(axes, order)
    axes.set_xscale("log")
    axes.set_xlim(1, 5e7)
    title = (
        f"KMS calls for a million values of {figures['tenants']} tenants with {figures['versions']} key versions each"
    )
    axes.set_title(title, loc="left")
    axes.legend(frameon=False, loc="upper right")


def growth(figures: dict[str, Any]) -> None:
    """A hit and a miss of the keyring, as tenants, versions and threads become more."""
    _, panels = pyplot.subplots(1, 3, figsize=(10, 3))
    for axes, what in zip(panels, ("tenants", "versions", "threads"), strict=True):
        found = figures[what]
        sizes = [int(each) for each in found]
        for name, label, colour in (("hit_ns", "a hit", "#33658a"), ("miss_us", "a miss", "#f26419")):
            values = [each[name] for each in found.values() if name in each]
            if values:
                axes.plot(sizes, [each / values[0] for each in values], marker="o", color=colour, label=label)
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{each:,}" for each in sizes])
        axes.minorticks_off()
        axes.set_ylim(0)
        axes.set_xlabel(what)
        axes.axhline(1, color=MUTED, linewidth=0.8, zorder=0)
    panels[0].set_ylabel("times what it takes with one")
    panels[0].legend(frameon=False)


def _named_rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == OURS else "normal")


def _named(database: str) -> str:
    return {"postgresql": "PostgreSQL", "sqlite": "SQLite, in memory"}[database]
