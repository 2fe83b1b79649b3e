"""What a compiled hot path would bring: one value, and 20,000 rows, beside the library as it is.

`hot_path.pyx` does what the closures of `pii_vault.orm.processors` do for text, through Python's C API. It is built for
this run, with Cython and a C compiler, into a folder that is thrown away. Before anything is measured, both have to
open what the other one sealed.

    .venv-bench/bin/python benchmarks/compiled/measure.py [--json] [--rounds N] [--rows N]
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, String, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from hot_path import bare, ratios

from pii_vault import EncryptedString, LocalKms, Vault
from pii_vault.orm import encrypted_type, processors
from pii_vault.orm.attachment import required
from pii_vault.scope import current

SOURCE = Path(__file__).with_name("hot_path.pyx")
VALUES, TEXT = 400, "x" * 24


def built(folder: Path) -> Any:
    """Compile the module and import it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("a C compiler is needed: cc or gcc")
    c, library = folder / "hot_path.c", folder / f"compiled_hot_path{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run(
        [sys.executable, "-m", "cython", "-3", str(SOURCE), "--module-name", "compiled_hot_path", "-o", str(c)],
        check=True,
    )
    include = sysconfig.get_paths()["include"]
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", f"-I{include}", str(c), "-o", str(library)], check=True)
    spec = importlib.util.spec_from_file_location("compiled_hot_path", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Base(DeclarativeBase):
    pass


class Plain(Base):
    __tablename__ = "plain"
    id: Mapped[int] = mapped_column(primary_key=True)
    ward: Mapped[str] = mapped_column(String(30))
    visits: Mapped[int]
    note: Mapped[str] = mapped_column(String(30))
    name: Mapped[str] = mapped_column(String(30))
    email: Mapped[str] = mapped_column(String(30))
    phone: Mapped[str] = mapped_column(String(30))


class Sealed(Base):
    __tablename__ = "sealed"
    id: Mapped[int] = mapped_column(primary_key=True)
    ward: Mapped[str] = mapped_column(String(30))
    visits: Mapped[int]
    note: Mapped[str] = mapped_column(String(30))
    name: Mapped[str] = mapped_column(EncryptedString())
    email: Mapped[str] = mapped_column(EncryptedString())
    phone: Mapped[str] = mapped_column(EncryptedString())


@contextmanager
def vault() -> Iterator[Vault]:
    """A vault with one tenant, who is in scope."""
    with tempfile.TemporaryDirectory() as folder:
        kms = LocalKms(Path(folder) / "kms.json")
        made = Vault(f"sqlite:///{folder}/keys.sqlite3", kms=kms)
        made.create_all()
        made.add_tenant("acme", key=kms.create_key())
        with made.tenant("acme"):
            yield made
        made.close()


def compiled_processors(module: Any) -> dict[str, Callable[..., Any]]:
    """Return what takes the place of the library's two makers of processors."""

    def make(name: str, closures: Callable[..., Any], attachment: Any, context: str, how: Any) -> Any:
        carefully = closures(attachment, context, how)
        slot = processors._slot(context, how)
        return getattr(module, name)(current, attachment.default, attachment.keyring.clock.monotonic, slot, carefully)

    return {
        "seal_processor": partial(make, "sealer", processors.seal_processor),
        "open_processor": partial(make, "opener", processors.open_processor),
    }


@contextmanager
def in_place(instead: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Let column types use these makers of processors."""
    before = {name: getattr(encrypted_type, name) for name in instead}
    for name, each in instead.items():
        setattr(encrypted_type, name, each)
    try:
        yield
    finally:
        for name, each in before.items():
            setattr(encrypted_type, name, each)


def one_value(module: Any, made: Vault, rounds: int) -> dict[str, float]:
    """Measure a value of 24 characters beside a bare AES-GCM call."""
    engine = create_engine("sqlite://")
    made.attach(engine)
    kind = Sealed.__table__.c.name.type.dialect_impl(engine.dialect)
    attachment, context, how = required(engine.dialect), kind.context, kind.encoding()
    makers = compiled_processors(module)
    seal, open_ = (make(attachment, context, how) for make in (processors.seal_processor, processors.open_processor))
    fast_seal, fast_open = (makers[name](attachment, context, how) for name in makers)
    assert fast_open(seal(TEXT)) == open_(fast_seal(TEXT)) == TEXT
    bare_seal, bare_open = bare(TEXT.encode())
    sealed, bare_sealed = [seal(TEXT) for _ in range(VALUES)], [bare_seal(TEXT.encode()) for _ in range(VALUES)]

    def each(function: Callable[[Any], Any], values: list[Any]) -> float:
        start = time.perf_counter_ns()
        for value in values:
            function(value)
        return (time.perf_counter_ns() - start) / len(values)

    plain = [TEXT.encode()] * VALUES
    figures = ratios(
        {
            "seal": (partial(each, seal, [TEXT] * VALUES), partial(each, bare_seal, plain)),
            "compiled_seal": (partial(each, fast_seal, [TEXT] * VALUES), partial(each, bare_seal, plain)),
            "open": (partial(each, open_, sealed), partial(each, bare_open, bare_sealed)),
            "compiled_open": (partial(each, fast_open, sealed), partial(each, bare_open, bare_sealed)),
        },
        rounds * 20,
    )
    engine.dispose()
    return figures


def loads(module: Any, made: Vault, rows: int, rounds: int) -> dict[str, float]:
    """Measure loading rows with three encrypted columns beside six plain ones, on SQLite in memory."""
    places: dict[str, tuple[Engine, Any]] = {}
    for name, model, instead in (
        ("plain", Plain, {}),
        ("closures", Sealed, {}),
        ("compiled", Sealed, compiled_processors(module)),
    ):
        engine = create_engine("sqlite://", poolclass=StaticPool)
        if model is Sealed:
            made.attach(engine)
        Base.metadata.create_all(engine)
        with in_place(instead), Session(engine) as session:
            texts = dict.fromkeys(("name", "email", "phone"), TEXT)
            session.add_all([model(ward=f"B{n % 40}", visits=n, note="-", **texts) for n in range(rows)])
            session.commit()
            session.scalars(select(model)).first()  # its processors are made, and stay with the compiled statement
            with engine.connect() as connection:
                connection.execute(select(model.__table__)).first()
        places[name] = (engine, model)
    taken: dict[str, dict[str, list[float]]] = {"orm_load": {}, "core_load": {}}
    for _ in range(rounds):
        for name, (engine, model) in places.items():
            taken["orm_load"].setdefault(name, []).append(_orm_load(engine, model))
            taken["core_load"].setdefault(name, []).append(_core_load(engine, model))
    for engine, _ in places.values():
        engine.dispose()
    return {
        f"{'' if name == 'closures' else 'compiled_'}{operation}_ratio": round(
            statistics.median(a / b for a, b in zip(each[name], each["plain"], strict=True)), 3
        )
        for operation, each in taken.items()
        for name in ("closures", "compiled")
    }


def _orm_load(engine: Engine, model: Any) -> float:
    gc.collect()
    with Session(engine) as session:
        start = time.perf_counter()
        found = session.scalars(select(model)).all()
        taken = time.perf_counter() - start
        assert found[-1].email == TEXT
    return taken


def _core_load(engine: Engine, model: Any) -> float:
    gc.collect()
    with engine.connect() as connection:
        start = time.perf_counter()
        found = connection.execute(select(model.__table__)).all()
        taken = time.perf_counter() - start
        assert found[-1].email == TEXT
    return taken


def main() -> None:
    """Print a table, or one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, default=20_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, vault() as made:
        module = built(Path(folder))
        figures = {**one_value(module, made, given.rounds), **loads(module, made, given.rows, given.rounds)}
    if given.json:
        print(json.dumps(figures))
        return
    print(f"{'ratio to':<14}{'':<12}{'closures':>10}{'compiled':>10}")
    for name, base in (("seal", "a bare call"), ("open", "a bare call"), ("orm_load", "plain"), ("core_load", "plain")):
        print(f"{base:<14}{name:<12}{figures[f'{name}_ratio']:>10}{figures[f'compiled_{name}_ratio']:>10}")


if __name__ == "__main__":
    main()
