"""`index`: how far blind indexes are, completing them, and replacing the key that they are made with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import typer

from . import options, output
from .app import index
from .application import metadata_of
from .by_tenant import each_tenant, say_problems, say_who_was_left_out
from .index_reports import IndexDropped, IndexesBuilt, IndexesFound, IndexRotated
from .output import FAILED
from .progress import rows_done
from .table import FIXED, SPARE
from .words import instant


@index.command("status")
def index_status(
    metadata: options.Metadata,
    name: options.TenantOrAll = None,
    every: options.Every = False,
    application_url: options.ApplicationUrl = None,
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    json: options.Json = False,
) -> None:
    """Say how far each index and token is, and change nothing.

    Values are counted in the application's tables. Exits with 1 while some lack their token, or a declaration has
    changed, and when a tenant's keys cannot be had.
    """
    options.check_one_or_all(name, every)
    tables = metadata_of(metadata)
    vault = options.vault(
        database_url=database_url,
        database_schema=database_schema,
        kms=kms,
        endpoint_url=endpoint_url,
        platform_key=platform_key,
    )
    engine = options.application_engine(database_url, application_url)

    def look(tenant: str) -> IndexesFound:
        with output.waiting(f"counting values of {tenant}"):
            return IndexesFound.of(tenant, vault.index_status(tenant, metadata=tables, engine=engine))

    found = each_tenant(vault, name, look, IndexesFound.not_looked_at)
    if json:
        output.show_json("index status", found)
    else:
        _show(found)
        for each in found:
            lacking = [slot for slot in each.slots if slot.missing]
            if lacking:
                columns = ", ".join(dict.fromkeys(slot.column for slot in lacking))
                output.say(
                    f"tenant {each.tenant!r}: values of {columns} lack a token and are not found by it (seal them "
                    f"anew: pii-vault index build {each.tenant})"
                )
    _exit(found)


@index.command("build")
def index_build(
    metadata: options.Metadata,
    name: options.TenantOrAll = None,
    every: options.Every = False,
    application_url: options.ApplicationUrl = None,
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    json: options.Json = False,
) -> None:
    """Give every value the tokens that its column declares.

    While the application goes on: rows are sealed anew in batches, each only if nobody has changed it meanwhile. Run
    again, it goes on where it stopped. Deploy the application that declares the tokens before. Exits with 1 when
    something is not complete, and names the values.
    """
    options.check_one_or_all(name, every)
    tables = metadata_of(metadata)
    vault = options.vault(
        database_url=database_url,
        database_schema=database_schema,
        kms=kms,
        endpoint_url=endpoint_url,
        platform_key=platform_key,
    )
    engine = options.application_engine(database_url, application_url)

    def build(tenant: str) -> IndexesBuilt:
        with rows_done(tenant, lines=json) as progress:
            done = vault.build_index(tenant, metadata=tables, engine=engine, progress=progress)
        return IndexesBuilt.of(tenant, done)

    found = each_tenant(vault, name, build, IndexesBuilt.not_looked_at)
    if json:
        output.show_json("index build", found)
    else:
        _show(found)
        for each in found:
            say_problems(each.tenant, each.problems)
            building = [slot.column for slot in each.slots if slot.state == "building"]
            if building and not each.problems:
                columns = ", ".join(dict.fromkeys(building))
                output.say(
                    f"tenant {each.tenant!r}: {columns} is not complete: values were written without tokens meanwhile, "
                    "or the key store could not be written (let every process declare the tokens, and run the same "
                    "command again)"
                )
    _exit(found)


@index.command("rotate")
def index_rotate(
    name: options.Tenant,
    metadata: options.Metadata,
    application_url: options.ApplicationUrl = None,
    reason: options.Why = "",
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    actor: options.Actor = None,
    json: options.Json = False,
) -> None:
    """Do the next step of replacing a tenant's index key.

    It takes three: the next key is stored; once every process holds it, it makes all tokens, and rows get new ones; a
    day later its predecessor is destroyed. Each says from when on to run the same command again. Values are found all
    the time. Once it is finished, the same command would begin anew. Exits with 1 when a value could not be sealed
    anew, and names it.
    """
    tables = metadata_of(metadata)
    vault = options.vault(
        database_url=database_url,
        database_schema=database_schema,
        kms=kms,
        endpoint_url=endpoint_url,
        platform_key=platform_key,
        actor=actor,
    )
    engine = options.application_engine(database_url, application_url)
    with rows_done(name, lines=json) as progress:
        done = vault.rotate_index(name, metadata=tables, engine=engine, reason=reason, progress=progress)
    found = IndexRotated.of(done)
    if json:
        output.show_json("index rotate", found)
    else:
        for sentence in _sentences(found):
            output.show_text(sentence)
        say_problems(name, found.problems)
    if found.problems:
        raise typer.Exit(FAILED)


@index.command("drop")
def index_drop(
    name: options.Tenant,
    context: Annotated[
        str, typer.Argument(metavar="CONTEXT", help="The column's context id: `index status` shows it.")
    ],
    slot: Annotated[int, typer.Argument(metavar="SLOT", min=0, max=14, show_default=False, help="The slot: likewise.")],
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    json: options.Json = False,
) -> None:
    """Let a slot be searched no longer: nobody needs to write it.

    For an index or a token that the application declares no longer: until then, processes that do not know it are
    refused to write. Stored tokens stay. A search that still finds no value without a token takes it back. No KMS is
    asked.
    """
    store = options.key_store(database_url, database_schema)
    dropped = store.unset_ready(name, context, slot)
    if json:
        output.show_json("index drop", IndexDropped(name, context, slot, dropped))
    elif dropped:
        output.show_text(
            f"slot {slot} of {context!r} is searched no longer for tenant {name}: values may be written without its "
            "token"
        )
    else:
        searched = [f"slot {each.number} of {each.context!r}" for each in store.load(name).slots if each.ready_at]
        output.show_text(
            f"slot {slot} of {context!r} was not searched for tenant {name}; "
            + (f"searched are {', '.join(searched)}" if searched else "no slot is")
        )


def _show(found: Sequence[IndexesFound | IndexesBuilt]) -> None:
    output.show_rows(
        {
            "tenant": FIXED,
            "column": FIXED,
            "slot": FIXED,
            "token": FIXED,
            "state": FIXED,
            "have / total": FIXED,
            "context": SPARE,
            "form": SPARE,
        },
        [
            (
                each.tenant,
                slot.column,
                str(slot.slot),
                slot.token or "index",
                slot.state,
                f"{slot.total - slot.missing:,} / {slot.total:,}",
                slot.context,
                slot.form,
            )
            for each in found
            for slot in each.slots
        ],
        empty="there is no tenant" if not found else "",
    )
    for each in found:
        say_who_was_left_out(each.tenant, suspended=each.suspended, failure=each.failure)
        for slot in each.slots:
            if slot.state == "changed":
                output.say(
                    f"tenant {each.tenant!r}: slot {slot.slot} of {slot.column} holds tokens that were made in another "
                    "way, and nothing is found by them (give what is declared now a slot of its own: "
                    "BlindIndex(slot=…))"
                )


def _exit(found: Sequence[IndexesFound | IndexesBuilt]) -> None:
    if not all(each.complete or each.suspended for each in found):
        raise typer.Exit(FAILED)


def _sentences(done: IndexRotated) -> list[str]:
    """Return what a step did, what holds meanwhile, and when the next one is."""
    tenant, new, old = done.tenant, done.generation, done.other_generation
    if done.step == "prepared":
        return [
            f"index key {old} of tenant {tenant} is stored, and index key {new} still makes all tokens: no row has "
            "changed",
            _MEANWHILE,
            f"go on from {instant(done.next_at)} on, when every process holds the new key: run the same command again",
        ]
    if done.step == "finished":
        return [
            f"index key {new} of tenant {tenant} makes all tokens, its predecessor is destroyed, and nothing is left "
            "to do: the same command would begin with another key",
            "a backup from before holds tokens that nothing is found by any longer: after restoring one, run "
            f"`pii-vault index build {tenant}` before anything is searched",
        ]
    rows = f"{done.rows_left:,} rows still have" if done.rows_left != 1 else "1 row still has"
    found = [
        f"index key {new} of tenant {tenant} makes all tokens; {rows if done.rows_left else 'no row has'} tokens of "
        f"index key {old}",
        _MEANWHILE,
    ]
    if done.next_at is not None:
        found.append(
            f"go on from {instant(done.next_at)} on, when nobody writes tokens of index key {old} any longer: run the "
            f"same command again, which then destroys index key {old}"
        )
    return found


_MEANWHILE: Final = (
    "meanwhile values are found, and unique ones stay unique; columns are not compared with each other and not "
    "grouped: that raises BlindIndexError until the replacement is finished"
)
