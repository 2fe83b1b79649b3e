"""What `import pii_vault` brings in, and what it offers."""

import json
import subprocess
import sys

import pytest
from tests.support.command import environment

import pii_vault

OPTIONAL = (
    *("boto3", "botocore", "alembic", "mako", "typer", "click", "rich", "psycopg", "asyncpg", "aiosqlite"),
    *("pydantic", "pydantic_settings", "dotenv"),
)

PUBLIC = [
    "After",
    "AwsKms",
    "BlindIndex",
    "Bucket",
    "EncryptedArray",
    "EncryptedBoolean",
    "EncryptedBytes",
    "EncryptedDate",
    "EncryptedDateTime",
    "EncryptedEnum",
    "EncryptedFloat",
    "EncryptedInteger",
    "EncryptedJSON",
    "EncryptedNumeric",
    "EncryptedString",
    "EncryptedText",
    "EncryptedTime",
    "EncryptedType",
    "EncryptedUUID",
    "LastChars",
    "LocalKms",
    "PiiVaultError",
    "Prefix",
    "Vault",
    "matching",
    "normaliser",
]

_BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
"""


def test_the_public_names_are_these() -> None:
    modules = {name for name in vars(pii_vault) if f"pii_vault.{name}" in sys.modules}
    names = {name for name in vars(pii_vault) if not name.startswith("_")} - modules
    assert sorted(names) == PUBLIC


def test_every_public_name_says_what_it_is() -> None:
    assert [name for name in PUBLIC if not getattr(pii_vault, name).__doc__] == []


def test_the_library_works_without_its_optional_parts() -> None:
    code = (
        _BLOCK.format(blocked=OPTIONAL)
        + """
import tempfile, pathlib
import pii_vault
folder = tempfile.TemporaryDirectory()
kms = pii_vault.LocalKms(pathlib.Path(folder.name) / "kms.json")
vault = pii_vault.Vault("sqlite://", kms=kms)
vault.create_all()
vault.add_tenant("acme", key=kms.create_key())
print(vault.rotate("acme").version)
folder.cleanup()
"""
    )
    assert run(code).strip() == "2"


def test_aws_without_boto3_says_what_to_install() -> None:
    code = (
        _BLOCK.format(blocked=["boto3"])
        + """
import pii_vault
try:
    pii_vault.AwsKms()
except pii_vault.PiiVaultError as error:
    print(error)
"""
    )
    assert "pip install boto3" in run(code)


def test_importing_the_library_brings_in_no_optional_part() -> None:
    assert loaded("pii_vault").isdisjoint(OPTIONAL)


def test_importing_the_library_adds_few_modules_to_those_of_sqlalchemy_and_cryptography() -> None:
    needed = modules("sqlalchemy.orm, cachetools, cryptography.hazmat.primitives.ciphers.aead")
    added = modules("pii_vault") - needed
    assert len([name for name in added if not name.startswith("pii_vault")]) < 80


def test_importing_the_command_brings_in_nothing_that_most_commands_do_without() -> None:
    top = loaded("pii_vault.cli")
    assert top.isdisjoint({"boto3", "botocore", "alembic", "mako", "rich", "psycopg"})


@pytest.mark.parametrize("arguments", [["version"], ["--help"], ["inspect", "00"]])
def test_a_small_command_loads_neither_boto3_nor_alembic(arguments: list[str]) -> None:
    code = f"""
import atexit, json, sys
sys.argv = ["pii-vault", *{arguments!r}]
from pii_vault.cli import main
try:
    main()
except SystemExit:
    pass
print(json.dumps(sorted(set(name.partition(".")[0] for name in sys.modules))))
"""
    top = set(json.loads(run(code).strip().splitlines()[-1]))
    assert top.isdisjoint({"boto3", "botocore", "alembic", "psycopg", "rich"})


def modules(names: str) -> set[str]:
    """Return the modules in memory after some imports."""
    return set(json.loads(run(f"import json, sys, {names}; print(json.dumps(sorted(sys.modules)))")))


def loaded(name: str) -> set[str]:
    """Return the top-level packages in memory after one import."""
    return {each.partition(".")[0] for each in modules(name)}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    return done.stdout
