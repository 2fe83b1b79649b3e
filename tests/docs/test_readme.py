"""The README says what is so: its example runs as printed, its links lead somewhere, its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.command import environment, pii_vault_command

from pii_vault.envelope import parse

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_the_example_is_the_file_byte_for_byte() -> None:
    assert blocks(README, "python")[0].encode() == (ROOT / "examples" / "quickstart.py").read_bytes()


def test_the_example_has_at_most_20_lines_of_code() -> None:
    assert len([line for line in blocks(README, "python")[0].splitlines() if line]) <= 20


def test_the_example_runs_as_printed_in_an_empty_folder_and_again(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(blocks(README, "python")[0], encoding="utf-8")
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-W", "error", "example.py"],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=environment(),
        )
        assert (done.returncode, done.stderr) == (0, "")
        plain, stored = done.stdout.split()
        assert plain == "ada@example.com"
        assert len(bytes.fromhex(stored)) == 53
        assert (parse(bytes.fromhex(stored)).version, parse(bytes.fromhex(stored)).codec) == (1, 1)


def test_the_output_shown_is_one_that_the_example_gives() -> None:
    plain, stored = next(block for block in blocks(README, "") if block.startswith("ada@")).split()
    assert len(bytes.fromhex(stored)) == len(plain) + 38
    header = parse(bytes.fromhex(stored))
    assert (header.suite, header.version, header.codec, header.tokens) == (0xFA, 1, 1, 0)
    drawn = next(block for block in blocks(README, "") if block.startswith("fa  "))
    shown = re.findall(r"[0-9a-f]{2}|…", drawn.splitlines()[0])
    raw = bytes.fromhex(stored)
    assert shown[:10] == [f"{byte:02x}" for byte in raw[:10]]
    parts = [raw[10:22], raw[22:-16], raw[-16:]]
    assert shown[10:] == [part for each in parts for part in (f"{each[0]:02x}", "…", f"{each[-1]:02x}")]


def test_the_first_40_lines_say_what_it_is_and_how_to_try_it() -> None:
    start = "\n".join(README.splitlines()[:40])
    assert start.startswith("# pii_vault\n\n")
    for part in ("scripts/demo", "scripts/test", "pip install", "```python", "EncryptedString"):
        assert part in start, part
    assert len(README.splitlines()) <= 200
    assert "badge" not in README


def test_the_commands_shown_exist() -> None:
    shown = {match.group(1) for match in re.finditer(r"^pii-vault ((?:db|tenant) \w+|\w+)", README, re.MULTILINE)}
    assert len(shown) >= 5
    for command in shown:
        assert pii_vault_command(*command.split(), "--help").code == 0, command
    for script in ("scripts/demo", "scripts/test"):
        assert (ROOT / script).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), target


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        if page.name != "README.md":
            assert f"]({page.name})" in index, page.name


def test_the_picture_of_the_demo_stands_alone() -> None:
    picture = (ROOT / "docs" / "demo.svg").read_text(encoding="utf-8")
    assert "All&#160;8&#160;claims&#160;were&#160;checked" in picture
    assert set(re.findall(r"https?://[^\s\"<]+", picture)) <= {
        "http://www.w3.org/2000/svg",
        "https://www.textualize.io",
    }
