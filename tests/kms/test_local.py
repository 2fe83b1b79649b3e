"""The development KMS: one file, AWS's rules, nothing for a database elsewhere."""

import json
import os
import pickle
import stat
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url
from tests.support.processes import forking

from pii_vault.errors import ConfigurationError, KmsConfigurationError, KmsDeniedError
from pii_vault.kms import KmsKey
from pii_vault.kms.local import LocalKms

CONTEXT = {"pii-vault:tenant": "0123"}
DAY = 86_400.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def kms(path: Path) -> LocalKms:
    return LocalKms(path)


# The file.


def test_the_file_is_made_for_its_owner_only(kms: LocalKms, path: Path) -> None:
    kms.create_key()
    for name in (path, path.with_name("keys.json.lock")):
        assert stat.S_IMODE(name.stat().st_mode) == 0o600
    assert {one.name for one in path.parent.iterdir()} == {"keys.json", "keys.json.lock"}


def test_the_mode_does_not_depend_on_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        LocalKms(path).create_key()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o644])
def test_a_file_that_others_can_read_is_refused(kms: LocalKms, path: Path, mode: int) -> None:
    arn = kms.create_key()
    path.chmod(mode)
    for attempt in (lambda: LocalKms(path), lambda: kms.generate(KmsKey(arn), CONTEXT), kms.create_key):
        with pytest.raises(ConfigurationError) as caught:
            attempt()
        assert f"chmod 600 {path}" in str(caught.value)
    path.chmod(0o600)
    LocalKms(path)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="missing"):
        LocalKms(tmp_path / "missing" / "keys.json")


def test_a_file_that_is_gone_is_not_made_anew_behind_the_back(kms: LocalKms, path: Path) -> None:
    arn = kms.create_key()
    path.unlink()
    for attempt in (lambda: kms.generate(KmsKey(arn), CONTEXT), kms.create_key):
        with pytest.raises(ConfigurationError, match="is gone"):
            attempt()
    assert not path.exists()


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b"{}", b'{"format": 2, "keys": {}}', b'{"format": 1, "keys": {"CANARY": 1}}']
)
def test_another_file_is_refused_and_not_quoted(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError) as caught:
        LocalKms(path)
    assert "CANARY" not in "".join(traceback.format_exception(caught.value))
    assert path.read_bytes() == content


def test_a_failed_write_leaves_the_old_file(kms: LocalKms, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arn = kms.create_key()
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(ConfigurationError, match="No space left"):
            kms.disable_key(arn)
    assert path.read_bytes() == before
    assert {one.name for one in path.parent.iterdir()} == {"keys.json", "keys.json.lock"}
    assert kms.describe(KmsKey(arn)).state == "Enabled"


def test_no_key_material_stands_in_a_representation(kms: LocalKms, path: Path) -> None:
    kms.create_key()
    materials = [secret for key in json.loads(path.read_text())["keys"].values() for _, secret in key["materials"]]
    kms.describe(KmsKey(next(iter(kms._file.read().keys))))
    shown = repr(kms) + repr(vars(kms)) + repr(kms._file.read())
    assert len(materials) == 1
    assert materials[0] not in shown
    assert repr(bytes.fromhex(materials[0])) not in shown


def test_it_is_not_pickled(kms: LocalKms) -> None:
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(kms)


def test_a_file_from_before_rotation_periods_and_the_platform_key_is_read(kms: LocalKms, path: Path) -> None:
    key = KmsKey(kms.create_key())
    generated = kms.generate(key, CONTEXT)
    document = json.loads(path.read_text())
    del document["platform_key"]
    for entry in document["keys"].values():
        del entry["rotation_days"]
    path.write_text(json.dumps(document))
    older = LocalKms(path)
    assert older.unwrap(key, generated.wrapped.blob, CONTEXT) == generated.plaintext
    assert older.rotation_period(key) is None
    assert older.platform_key() == kms.platform_key() != key.arn


def test_what_is_new_in_the_file_stands_beside_what_older_code_reads(kms: LocalKms, path: Path) -> None:
    kms.set_rotation_period(kms.platform_key(), 90)
    document = json.loads(path.read_text())
    assert document["format"] == 1
    (entry,) = document["keys"].values()
    assert set(entry) - {"rotation_days", "rotations"} == {"state", "created_at", "deletion_at", "materials"}
    assert set(document) - {"platform_key"} == {"format", "warning", "keys"}


@pytest.mark.parametrize("name", ["platform_key", "rotation_days"])
def test_a_field_of_another_kind_is_refused_and_not_quoted(kms: LocalKms, path: Path, name: str) -> None:
    arn = kms.create_key()
    document = json.loads(path.read_text())
    place = document if name == "platform_key" else document["keys"][arn]
    place[name] = ["CANARY"]
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigurationError, match="not a key file") as caught:
        LocalKms(path)
    assert "CANARY" not in "".join(traceback.format_exception(caught.value))


# Several processes.


def test_a_change_by_another_process_is_seen_at_the_next_call(kms: LocalKms, path: Path) -> None:
    key = KmsKey(kms.create_key())
    generated = kms.generate(key, CONTEXT)
    other = LocalKms(path)
    for _ in range(20):
        other.disable_key(key.arn)
        with pytest.raises(KmsDeniedError):
            kms.unwrap(key, generated.wrapped.blob, CONTEXT)
        other.enable_key(key.arn)
        assert kms.unwrap(key, generated.wrapped.blob, CONTEXT) == generated.plaintext


def _create(path: Path, count: int) -> list[str]:
    kms = LocalKms(path)
    return [kms.create_key() for _ in range(count)]


def test_processes_that_write_together_lose_nothing(path: Path) -> None:
    with forking().Pool(4) as pool:
        made = [arn for arns in pool.starmap(_create, [(path, 15)] * 4) for arn in arns]
    kms = LocalKms(path)
    assert len(set(made)) == 60
    assert {kms.describe(KmsKey(arn)).state for arn in made} == {"Enabled"}


def _platform_key(path: Path) -> str:
    return LocalKms(path).platform_key()


def test_processes_that_ask_together_get_one_platform_key(path: Path) -> None:
    with forking().Pool(2) as pool:
        made = pool.map(_platform_key, [path] * 8, chunksize=1)
    assert set(made) == {LocalKms(path).platform_key()}
    assert list(json.loads(path.read_text())["keys"]) == made[:1]


def test_threads_that_ask_together_get_one_platform_key(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: LocalKms(path).platform_key(), range(24)))
    assert len(made) == 1
    assert len(json.loads(path.read_text())["keys"]) == 1


def test_threads_that_write_together_lose_nothing(kms: LocalKms) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: kms.create_key(), range(40)))
    assert len({kms.describe(KmsKey(arn)).arn for arn in made}) == 40


# Key states, where the contract suite does not reach.


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def test_a_scheduled_deletion_takes_effect_and_destroys_the_material(path: Path) -> None:
    clock = Clock()
    kms = LocalKms(path, clock=clock)
    arn, other = kms.create_key(), kms.create_key()
    kms.schedule_key_deletion(arn, pending_days=7)
    clock.now += 7 * DAY - 1
    assert kms.describe(KmsKey(arn)).state == "PendingDeletion"
    clock.now += 1
    with pytest.raises(KmsConfigurationError) as caught:
        kms.cancel_key_deletion(arn)
    assert caught.value.code == "NotFoundException"
    with pytest.raises(KmsConfigurationError):
        kms.describe(KmsKey(arn))
    kms.disable_key(other)
    assert arn not in path.read_text()


def test_a_platform_key_that_was_deleted_is_not_replaced(path: Path) -> None:
    clock = Clock()
    kms = LocalKms(path, clock=clock)
    arn, other = kms.platform_key(), kms.create_key()
    kms.schedule_key_deletion(arn, pending_days=7)
    clock.now += 7 * DAY
    kms.disable_key(other)
    assert arn not in json.loads(path.read_text())["keys"]
    assert kms.platform_key() == arn
    with pytest.raises(KmsConfigurationError) as caught:
        kms.generate(KmsKey(arn), CONTEXT)
    assert caught.value.code == "NotFoundException"


@pytest.mark.parametrize("days", [-1, 0, 89, 2561])
def test_a_rotation_period_is_90_to_2560_days(kms: LocalKms, days: int) -> None:
    key = KmsKey(kms.create_key())
    with pytest.raises(KmsConfigurationError, match=key.arn):
        kms.set_rotation_period(key.arn, days)
    assert kms.rotation_period(key) is None


@pytest.mark.parametrize("days", [6, 31])
def test_a_waiting_period_is_7_to_30_days(kms: LocalKms, days: int) -> None:
    with pytest.raises(KmsConfigurationError):
        kms.schedule_key_deletion(kms.create_key(), pending_days=days)


def test_management_follows_the_key_state_table(kms: LocalKms) -> None:
    arn = kms.create_key()
    with pytest.raises(KmsDeniedError) as caught:
        kms.cancel_key_deletion(arn)
    assert caught.value.code == "KMSInvalidStateException"
    kms.disable_key(arn)
    kms.disable_key(arn)
    for change in (kms.rotate_key, lambda arn: kms.set_rotation_period(arn, 90)):
        with pytest.raises(KmsDeniedError) as caught:
            change(arn)
        assert caught.value.code == "DisabledException"
    with pytest.raises(KmsDeniedError) as caught:
        kms.cancel_key_deletion(arn)
    assert caught.value.code == "KMSInvalidStateException"
    kms.schedule_key_deletion(arn)
    for change in (kms.enable_key, kms.disable_key, kms.schedule_key_deletion, kms.rotate_key):
        with pytest.raises(KmsDeniedError) as caught:
            change(arn)
        assert caught.value.code == "KMSInvalidStateException"
    kms.cancel_key_deletion(arn)
    assert kms.describe(KmsKey(arn)).state == "Disabled"


@pytest.mark.parametrize("change", ["enable_key", "disable_key", "schedule_key_deletion", "rotate_key"])
def test_a_key_that_is_not_there_cannot_be_changed(kms: LocalKms, change: str) -> None:
    with pytest.raises(KmsConfigurationError) as caught:
        getattr(kms, change)("arn:local:kms:local:000000000000:key/00000000-0000-4000-8000-000000000000")
    assert caught.value.code == "NotFoundException"
    with pytest.raises(KmsConfigurationError) as caught:
        getattr(kms, change)("alias/x")
    assert caught.value.code == "InvalidAddress"


def test_a_role_is_refused(kms: LocalKms) -> None:
    arn = kms.create_key()
    for key in (KmsKey(arn, "arn:aws:iam::111122223333:role/x"), KmsKey(arn, None, "external")):
        with pytest.raises(KmsConfigurationError):
            kms.validate_key(key)


def test_a_blob_belongs_to_its_file(kms: LocalKms, tmp_path: Path) -> None:
    """A blob of a key of another file is not told apart from garbage: that key is not known here."""
    other = LocalKms(tmp_path / "other.json")
    blob = other.generate(KmsKey(other.create_key()), CONTEXT).wrapped.blob
    with pytest.raises(Exception, match="InvalidCiphertextException"):
        kms.unwrap(KmsKey(kms.create_key()), blob, CONTEXT)


# Which databases it serves.


@pytest.fixture(autouse=True)
def no_libpq_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///relative.db",
        "sqlite+aiosqlite:////absolute.db",
        "postgresql+psycopg:///app",
        "postgresql+psycopg://user:secret@localhost/app",
        "postgresql+asyncpg://127.0.0.1:5433/app",
        "postgresql://127.8.9.10/app",
        "postgresql://[::1]/app",
        "postgresql:///app?host=/var/run/postgresql",
        "postgresql:///app?host=/tmp/a&host=/tmp/b",
        "postgresql:///app?host=localhost:5432",
        "mysql+pymysql://root@/app?unix_socket=/run/mysqld/mysqld.sock",
        "mysql+pymysql://localhost/app",
    ],
)
def test_a_local_database_is_served(kms: LocalKms, url: str) -> None:
    kms.check_database(make_url(url))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://user:secret@db.example.com/app",
        "postgresql://10.0.0.5/app",
        "postgresql://[2001:db8::1]/app",
        "postgresql://localhost.example.com/app",
        "postgresql://127.0.0.1.example.com/app",
        "postgresql:///app?host=db.example.com",
        "postgresql:///app?host=localhost,db.example.com",
        "postgresql:///app?host=localhost&host=db.example.com:5432",
        "postgresql://localhost/app?hostaddr=10.0.0.5",
        "postgresql://localhost/app?service=production",
        "mysql+pymysql://localhost/app?read_default_file=/etc/production.cnf",
        "mssql+pyodbc:///?odbc_connect=Server%3Ddb",
        "mysql+pymysql://db.example.com/app?unix_socket=/run/mysqld/mysqld.sock",
    ],
)
def test_a_database_elsewhere_is_refused(kms: LocalKms, path: Path, url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        kms.check_database(make_url(url))
    assert "secret" not in str(caught.value)
    LocalKms(path, insecure_allow_remote_database=True).check_database(make_url(url))


def test_the_environment_of_libpq_is_looked_at(kms: LocalKms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db.example.com")
    with pytest.raises(ConfigurationError, match=r"db\.example\.com"):
        kms.check_database(make_url("postgresql:///app"))
    kms.check_database(make_url("postgresql://localhost/app"))
    monkeypatch.setenv("PGHOST", "/var/run/postgresql")
    kms.check_database(make_url("postgresql:///app"))
