"""The examples for schedulers: what each of them runs, in the environment that it gives, rotates what is due."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from pii_vault import LocalKms, Vault

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "scheduling"
PAGE = (Path(__file__).parent.parent.parent / "docs" / "scheduling.md").read_text("utf-8")
SETTINGS = "/etc/pii-vault/pii-vault.toml"
COMMAND = "/usr/local/bin/pii-vault"


class Machine:
    """A key store with one tenant whose key is due and one whose key is not, and settings in a file."""

    def __init__(self, folder: Path, database_url: str) -> None:
        kms = LocalKms(folder / "kms.json")
        self.url = database_url
        self.kms = f"local:{folder / 'kms.json'}"
        self.settings = folder / "pii-vault.toml"
        self.settings.write_text(f'database_url = "{self.url}"\nkms = "{self.kms}"\n', "utf-8")
        # What is installed in /usr/local/bin is a script of the environment.
        self.command = str(Path(sys.executable).with_name("pii-vault"))
        now = [datetime.now(UTC) - timedelta(days=100)]
        self.vault = Vault(database_url, kms=kms, now=lambda: now[0])
        self.vault.create_all()
        self.vault.add_tenant("old", rotation_days=90)
        now[0] = datetime.now(UTC)
        self.vault.add_tenant("young")

    def versions(self) -> dict[str, Any]:
        return {each.name: each.version for each in self.vault._store.summaries()}


@pytest.fixture
def machine(tmp_path: Path, postgres_url: str) -> Iterator[Machine]:
    machine = Machine(tmp_path, postgres_url)
    yield machine
    machine.vault.close()


def run(command: str, environment: dict[str, str], code: int = 0) -> str:
    """Run a command as schedulers do: a bare environment, no terminal, no input."""
    bare = {"PATH": "/usr/bin:/bin", "HOME": "/", "LANG": "C.UTF-8"} | environment
    done = subprocess.run(
        ["/bin/sh", "-c", command], env=bare, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (code, "")
    return done.stdout


def crontab() -> tuple[dict[str, str], list[list[str]]]:
    """The variables and the jobs of the example, as cron(8) reads a file of /etc/cron.d."""
    lines = (EXAMPLES / "pii-vault.crontab").read_text("utf-8").splitlines()
    lines = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    variables = dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))
    return variables, [line.split(None, 6) for line in lines if not re.match(r"\w+=", line)]


def test_what_cron_runs_rotates_what_is_due_and_says_nothing_when_nothing_is(machine: Machine) -> None:
    variables, ((*_, user, command),) = crontab()
    assert user == "pii-vault"
    assert variables["PII_VAULT_CONFIG"] == SETTINGS
    command = command.replace(COMMAND, machine.command)
    environment = {"PII_VAULT_CONFIG": str(machine.settings)}
    assert run(command, environment).startswith("old\trotated\tscheduled\t2\t")
    assert machine.versions() == {"old": 2, "young": 1}
    assert run(command, environment) == ""
    assert machine.versions() == {"old": 2, "young": 1}


@pytest.mark.skipif(shutil.which("crontab") is None, reason="cron is not installed")
def test_cron_takes_the_schedule(tmp_path: Path) -> None:
    variables, jobs = crontab()
    # A user's own table has no column for the user.
    lines = [f"{name}={value}" for name, value in variables.items()]
    lines += [" ".join([*job[:5], job[6]]) for job in jobs]
    (tmp_path / "table").write_text("\n".join(lines) + "\n", "utf-8")
    done = subprocess.run(["crontab", "-n", str(tmp_path / "table")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(EXAMPLES / name, "utf-8")
    return parser


def test_what_systemd_starts_rotates_what_is_due(machine: Machine) -> None:
    service = unit("pii-vault-rotate.service")["Service"]
    assert service["Type"] == "oneshot"
    name, _, value = service["Environment"].partition("=")
    assert value == SETTINGS
    command = service["ExecStart"].replace(COMMAND, machine.command)
    assert "old\trotated" in run(command, {name: str(machine.settings)})
    assert machine.versions() == {"old": 2, "young": 1}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_units(tmp_path: Path, machine: Machine) -> None:
    for name in ("pii-vault-rotate.service", "pii-vault-rotate.timer"):
        text = (EXAMPLES / name).read_text("utf-8").replace(COMMAND, machine.command)
        (tmp_path / name).write_text(text.replace("User=pii-vault", "User=daemon"), "utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "pii-vault-rotate.timer")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"SYSTEMD_LOG_LEVEL": "warning"},
    )
    said = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
    assert (done.returncode, said) == (0, [])


def test_what_kubernetes_runs_rotates_what_is_due_and_speaks_json(machine: Machine) -> None:
    job = yaml.safe_load((EXAMPLES / "pii-vault-rotate.cronjob.yaml").read_text("utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    given = {each["name"]: each.get("value") for each in container["env"]}
    assert set(given) == {"PII_VAULT_DATABASE_URL", "PII_VAULT_PLATFORM_KEY", "PII_VAULT_ACTOR"}
    program, *arguments = container["command"]
    assert program == "pii-vault"
    environment = {
        "PII_VAULT_DATABASE_URL": machine.url,
        "PII_VAULT_PLATFORM_KEY": machine.vault.platform_key,
        "PII_VAULT_ACTOR": given["PII_VAULT_ACTOR"] or "",
        "PII_VAULT_KMS": machine.kms,
    }
    printed = yaml.safe_load(run(" ".join([machine.command, *arguments]), environment))
    assert [(each["tenant"], each["step"]) for each in printed] == [("old", "rotated")]
    assert machine.versions() == {"old": 2, "young": 1}
    entries = machine.vault.audit.entries("old")
    assert entries[-1].actor == "rotation cron job"


def test_the_page_names_every_example() -> None:
    assert {path.name for path in EXAMPLES.iterdir()} == set(re.findall(r"\(\.\./examples/scheduling/(.+?)\)", PAGE))
