"""Draw docs/demo.svg: play the demo and keep the picture of its screen. Run it again when the screen changes."""

import io
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from pii_vault.demo import run

BACKGROUND, TEXT, GREY, WHITE = (16, 20, 26), (205, 212, 220), (125, 135, 148), (255, 255, 255)
RED, GREEN, YELLOW, BLUE = (255, 110, 103), (90, 210, 130), (240, 200, 90), (110, 165, 255)
MAGENTA, CYAN = (205, 140, 255), (80, 205, 215)
COLOURS = (RED, GREEN, YELLOW, BLUE, MAGENTA, CYAN)
THEME = TerminalTheme(BACKGROUND, TEXT, [BACKGROUND, *COLOURS, TEXT], [GREY, *COLOURS, WHITE])

if __name__ == "__main__":
    console = Console(
        record=True, width=100, file=io.StringIO(), force_terminal=True, color_system="truecolor", highlight=False
    )
    if not run(console=console):
        raise SystemExit("a claim of the demo did not hold")
    svg = console.export_svg(title="pii-vault demo", theme=THEME, unique_id="pii-vault-demo")
    # No fonts from elsewhere: the picture shows the same without a network.
    start, end = svg.index("@font-face"), svg.index(".pii-vault-demo-matrix")
    svg = (svg[:start] + svg[end:]).replace("Fira Code, monospace", "ui-monospace, Menlo, DejaVu Sans Mono, monospace")
    Path(__file__).with_name("demo.svg").write_text(svg + "\n", encoding="utf-8")
