"""Draw docs/report.png: make the report of an ordinary tenant's year, and keep what a browser shows of it first.

Run it again when the page changes: `.venv/bin/python docs/report_png.py`. It needs chromium.
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.browser import Browser  # noqa: E402
from tests.support.sample_report import go_wrong, year_of  # noqa: E402

from pii_vault.report.page import page  # noqa: E402

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name, Browser() as browser:
        folder = Path(name)
        with year_of(folder) as year:
            go_wrong(year)
            (folder / "report.html").write_text(page(year.report()), encoding="utf-8")
        browser.open(folder / "report.html", width=1000, height=1960)
        ROOT.joinpath("docs", "report.png").write_bytes(browser.screenshot(scale=0.7))
