"""Settings: which source counts, which values are refused, and that no secret is shown."""

import re
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Pool, event, make_url, select

from pii_vault import AwsKms, LocalKms
from pii_vault.config import FILE_NAME, FILE_VARIABLE, Settings, load
from pii_vault.errors import ConfigurationError, KmsDeniedError
from pii_vault.keystore import schema

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
SECRET = "hunter2-SECRET"
URL = f"postgresql+psycopg://me:{SECRET}@localhost/app"
PLATFORM_KEY = "arn:aws:kms:eu-west-1:444455556666:key/0b1f7e52-3c1d-4a0e-9d8e-2f6a7c5b4d31"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and no setting in the environment."""
    for name in (FILE_VARIABLE, *(f"PII_VAULT_{name.upper()}" for name in Settings.model_fields)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def refused(**options: Any) -> str:
    """What the error says; it and everything that hangs on it must not hold the secret."""
    with pytest.raises(ConfigurationError) as caught:
        load(**options)
    return without_secret(caught.value)


def without_secret(error: ConfigurationError) -> str:
    assert (error.__cause__, error.__context__) == (None, None)
    assert SECRET not in f"{error} {error!r} {error.args} {error.hint}"
    return str(error)


# Which source counts.


def test_an_option_outdoes_a_variable_a_variable_the_file_and_the_file_a_default(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load().rotation_days == 365
    write(folder / FILE_NAME, 'rotation_days = 30\nttl = 10\nactor = "file"\n')
    assert load().rotation_days == 30
    monkeypatch.setenv("PII_VAULT_ROTATION_DAYS", "60")
    assert load().rotation_days == 60
    assert load(rotation_days=90).rotation_days == 90
    assert load(rotation_days=None, actor="option").model_dump(include={"rotation_days", "ttl", "actor", "kms"}) == {
        "rotation_days": 60,
        "ttl": 10.0,
        "actor": "option",
        "kms": "aws",
    }


def test_a_variable_set_to_nothing_counts_as_not_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / FILE_NAME, "ttl = 10")
    monkeypatch.setenv("PII_VAULT_TTL", "")
    monkeypatch.setenv(FILE_VARIABLE, "")
    assert load().ttl == 10


def test_other_variables_of_ours_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PII_VAULT_TRACEBACK", "1")
    assert load() == Settings()


def test_a_dotenv_file_is_not_read(folder: Path) -> None:
    write(folder / ".env", "PII_VAULT_TTL=10\n")
    assert load().ttl == 300


# Where the file is looked for.


def test_the_variable_names_the_file_and_the_working_folder_does_not_count_then(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / FILE_NAME, 'ttl = 10\nactor = "here"')
    monkeypatch.setenv(FILE_VARIABLE, str(write(folder / "other.toml", "ttl = 20")))
    assert (load().ttl, load().actor) == (20, None)


def test_a_parents_file_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / FILE_NAME, "ttl = 10")
    (folder / "below").mkdir()
    monkeypatch.chdir(folder / "below")
    assert load().ttl == 300


def test_a_named_file_that_is_missing_is_an_error_that_names_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / FILE_NAME, "ttl = 10")
    monkeypatch.setenv(FILE_VARIABLE, "absent.toml")
    message = refused()
    assert "absent.toml" in message
    assert FILE_VARIABLE in message


def test_a_folder_or_a_broken_link_by_the_files_name_is_an_error(folder: Path) -> None:
    (folder / FILE_NAME).mkdir()
    assert FILE_NAME in refused()
    (folder / FILE_NAME).rmdir()
    (folder / FILE_NAME).symlink_to("nowhere")
    assert FILE_NAME in refused()


# What is refused.


@pytest.mark.parametrize(
    ("line", "name", "hint"),
    [
        ("databse_url = 'x'", "databse_url", "did you mean database_url?"),
        ("rotation-days = 9", "rotation-days", "did you mean rotation_days?"),
        ("[pii]\nttl = 9", "pii", "the settings are actor, application_url, database_schema, database_url"),
    ],
)
def test_an_unknown_name_in_the_file_is_an_error_that_names_the_nearest(
    folder: Path, line: str, name: str, hint: str
) -> None:
    write(folder / FILE_NAME, line)
    message = refused()
    assert f"{name} in {FILE_NAME} is not a setting" in message
    assert hint in message


BAD = [
    ("kms", "gcp"),
    ("kms", "local:"),
    ("kms", "aws:eu-west-1"),
    ("endpoint_url", "localhost:4566"),
    ("database_schema", "pg_vault"),
    ("database_schema", "vault.keys"),
    ("database_schema", "v" * 64),
    ("platform_key", "arn:aws:kms:eu-west-1:444455556666:alias/audit"),
    ("platform_key", "0b1f7e52-3c1d-4a0e-9d8e-2f6a7c5b4d31"),
    ("ttl", "-1"),
    ("ttl", "nan"),
    ("ttl", "inf"),
    ("ttl", "5m"),
    ("rotation_days", "0"),
    ("rotation_days", "3651"),
    ("rotation_days", "1.5"),
    ("actor", "x" * 256),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_refused_by_its_name_and_where_it_came_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    way_out = f"{name} is {Settings.model_fields[name].description}"
    write(folder / FILE_NAME, f'{name} = "{value}"')
    assert refused() == f"{name} in {FILE_NAME} cannot be used ({way_out})"
    monkeypatch.setenv(f"PII_VAULT_{name.upper()}", value)
    assert refused() == f"the variable PII_VAULT_{name.upper()} cannot be used ({way_out})"
    option = name.replace("_", "-")
    assert refused(**{name: value}) == f"the option --{option} cannot be used ({way_out})"


@pytest.mark.parametrize("line", ["ttl = true", "rotation_days = true", "kms = 1", "database_url = 1", 'actor = ""'])
def test_a_value_of_the_wrong_type_in_the_file_is_refused(folder: Path, line: str) -> None:
    write(folder / FILE_NAME, line)
    assert f"{line.split(maxsplit=1)[0]} in {FILE_NAME} cannot be used" in refused()


def test_all_that_is_wrong_is_said_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / FILE_NAME, "tll = 9")
    monkeypatch.setenv("PII_VAULT_TTL", "soon")
    message = refused(rotation_days=0)
    assert message.count("cannot be used") == 2
    assert "tll in pii-vault.toml is not a setting" in message


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (f'ttl = 3\ndatabase_url = "{URL}" x\n'.encode(), "is not TOML, at line 2, column "),
        (f'database_url = "{URL}'.encode(), "is not TOML, at "),
        (f'database_url = "{URL}\xe9"'.encode("latin-1"), "is not UTF-8"),
    ],
)
def test_a_file_that_is_not_toml_is_an_error_that_says_where_and_quotes_nothing(
    folder: Path, raw: bytes, said: str
) -> None:
    (folder / FILE_NAME).write_bytes(raw)
    message = refused()
    assert FILE_NAME in message
    assert said in message


# No secret is shown.


def test_neither_repr_nor_str_nor_json_shows_the_database_url() -> None:
    settings = load(database_url=URL)
    assert SECRET not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


@pytest.mark.parametrize("line", [f'database_url = ["{URL}"]', f'database_url = {{ url = "{URL}" }}', f'kms = "{URL}"'])
def test_an_error_about_a_value_does_not_quote_it(folder: Path, line: str) -> None:
    write(folder / FILE_NAME, line)
    assert "cannot be used" in refused()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "cannot be read"),
        (SECRET, "cannot be read"),
        (f"postgresql+psycopg://me:x@y:{SECRET}@localhost/app", "write % as %25 and @ as %40"),
        (f"postgresql+psycopg://me:x@{SECRET}@localhost/app", "an @ too many"),
        (f"postgresql+psycopg://me:x@{SECRET}/y@localhost/app", "an @ too many"),
        (f"{SECRET}://localhost/app", "cannot be read"),
        (f"nosuch://me:{SECRET}@localhost/app", "SQLAlchemy knows no such database"),
        (f"postgresql+asyncpg://me:{SECRET}@localhost/app", "synchronous driver"),
        (f"postgresql+psycopg2://me:{SECRET}@localhost/app", "driver psycopg2 is not installed"),
    ],
)
def test_a_database_url_that_no_engine_can_use_is_explained_and_not_shown(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(database_url=url).make_engine()
    assert said in without_secret(caught.value)


@pytest.mark.parametrize(
    "url",
    ["postgresql+psycopg://me:a%40b/c:d@localhost/app", "sqlite:///me@home.sqlite3", "postgresql+psycopg://me@/a@b"],
)
def test_an_at_sign_in_its_place_is_no_error(url: str) -> None:
    assert load(database_url=url).make_engine().url == make_url(url)


def test_a_missing_driver_says_what_to_install() -> None:
    with pytest.raises(ConfigurationError, match=re.escape("pip install 'pii-vault[postgres]'")):
        load(database_url="postgresql+psycopg2://localhost/app").make_engine()


def test_no_database_url_says_where_to_set_one() -> None:
    with pytest.raises(ConfigurationError, match=f"--database-url, PII_VAULT_DATABASE_URL, or the file {FILE_NAME}"):
        load().make_engine()


# What is made.


def test_the_kms_is_aws_by_default_at_the_endpoint_that_is_set() -> None:
    assert "endpoint_url=None" in repr(load().make_kms())
    kms = load(endpoint_url="http://localhost:4566").make_kms()
    assert isinstance(kms, AwsKms)
    assert "http://localhost:4566" in repr(kms)


def test_a_local_kms_is_made_from_its_path_and_has_no_endpoint(folder: Path) -> None:
    kms = load(kms="local:a:b.json").make_kms()
    assert isinstance(kms, LocalKms)
    assert (folder / "a:b.json").is_file()
    with pytest.raises(ConfigurationError, match="a local KMS has no endpoint_url"):
        load(kms="local:kms.json", endpoint_url="http://localhost:4566").make_kms()
    with pytest.raises(ConfigurationError, match="folder of the key file does not exist"):
        load(kms="local:absent/kms.json").make_kms()


@pytest.fixture
def platform_key(folder: Path) -> str:
    """A key that the local KMS would not choose by itself."""
    return LocalKms(folder / "kms.json").create_key()


def test_a_vault_is_made_as_the_settings_say(folder: Path, platform_key: str) -> None:
    lines = [f'platform_key = "{platform_key}"', 'kms = "local:kms.json"', 'database_url = "sqlite:///keys.sqlite3"']
    write(folder / FILE_NAME, "\n".join([*lines, "rotation_days = 7", 'actor = "operations"', "ttl = 0"]))
    settings = load()
    vault = settings.make_vault()
    vault.create_all()
    kms = LocalKms(folder / "kms.json")
    key_arn = kms.create_key()
    vault.add_tenant("acme", key=key_arn)
    with vault.tenant("acme"):
        kms.disable_key(key_arn)
    with pytest.raises(KmsDeniedError):  # asked again, since the time to live is 0
        vault.tenant("acme").__enter__()
    engine = settings.make_engine()
    with engine.connect() as connection:
        key = connection.execute(select(schema.keys).where(schema.keys.c.state == "active")).first()
        audit_key_arn = connection.scalar(select(schema.audit_keys.c.kms_key_arn))
    engine.dispose()
    vault.close()
    assert key is not None
    assert (key.due_at - key.activated_at, key.created_by) == (timedelta(days=7), "operations")
    assert audit_key_arn == platform_key


def test_a_vault_made_from_settings_closes_the_connections_that_it_opened(folder: Path) -> None:
    counts = {"connect": 0, "close": 0}
    listeners = {name: lambda *_, name=name: counts.update({name: counts[name] + 1}) for name in counts}
    for name, listener in listeners.items():
        event.listen(Pool, name, listener)
    try:
        vault = load(kms="local:kms.json", database_url="sqlite:///keys.sqlite3").make_vault()
        vault.create_all()
        vault.close()
    finally:
        for name, listener in listeners.items():
            event.remove(Pool, name, listener)
    assert counts["connect"] == counts["close"] > 0


def test_a_local_kms_does_not_serve_a_database_elsewhere() -> None:
    with pytest.raises(ConfigurationError, match="another machine"):
        load(kms="local:kms.json", database_url=URL.replace("localhost", "db.internal")).make_vault()


# What the page says.


def test_the_page_lists_every_setting_with_its_variable_and_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.+?) \|", PAGE, re.MULTILINE)
    defaults = {"none": None, "the system's user": None}
    listed = [(name, variable, defaults.get(shown, shown.strip("`"))) for name, variable, shown in rows]
    assert listed == [
        (name, f"PII_VAULT_{name.upper()}", None if field.default is None else f"{field.default}".removesuffix(".0"))
        for name, field in Settings.model_fields.items()
    ]


def test_the_pages_file_is_one_that_is_read(folder: Path) -> None:
    text = PAGE.split("```toml\n", 1)[1].split("```", 1)[0]
    write(folder / FILE_NAME, text)
    settings = load()
    assert {name for name in Settings.model_fields if name in tomllib.loads(text)} == settings.model_fields_set
    assert settings.platform_key == PLATFORM_KEY
