"""Write gauges as OpenMetrics text, which scrapers read and the textfile collector of Prometheus' node exporter too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Gauge:
    """A metric that goes up and down.

    Attributes:
        name: Its name.
        meaning: One sentence.
        samples: Labels and values. A label without a text stands for none.
    """

    name: str
    meaning: str
    samples: Iterable[tuple[Mapping[str, str], float]]


def exposition(gauges: Iterable[Gauge]) -> Iterator[str]:
    """Yield the lines of an exposition, the last one included that says that nothing is cut off."""
    for gauge in gauges:
        yield f"# HELP {gauge.name} {_escaped(gauge.meaning)}"
        yield f"# TYPE {gauge.name} gauge"
        for labels, value in gauge.samples:
            shown = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
            yield f"{gauge.name}{{{shown}}} {value}"
    yield "# EOF"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
