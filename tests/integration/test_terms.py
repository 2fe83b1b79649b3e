"""For how long each tenant's keys are held: its own terms, in every process, written down."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from sqlalchemy import text
from tests.support.clocks import Clocks
from tests.support.world import World

from pii_vault import Vault
from pii_vault.errors import ConfigurationError, KeyRecordError, KmsDeniedError, TenantNotFoundError
from pii_vault.keyring.terms import NOTICE_SECONDS

TTL, GRACE = 100.0, 50.0


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def build(database_url: str, world_on: Callable[..., World], clocks: Clocks) -> Callable[..., World]:
    return partial(world_on, database_url, ttl=TTL, grace=GRACE, clock=clocks.as_clock)


def enter(world: World, tenant: str = "acme") -> None:
    with world.vault.tenant(tenant):
        pass


def held_for(world: World, clocks: Clocks, tenant: str = "acme") -> float:
    """How long the keys that a scope gets now may be used, seconds."""
    with world.vault.tenant(tenant) as scope:
        assert scope.keyset is not None
        return scope.keyset.deadline - clocks.monotonic


@pytest.mark.parametrize(("ttl", "grace", "bound"), [(10, 0, 10), (10, 5, 15), (1000, 200, 1200), (0, 0, 60)])
def test_a_tenant_s_own_terms_stand_for_it_and_for_nobody_else(
    build: Callable[..., World], clocks: Clocks, ttl: int, grace: int, bound: float
) -> None:
    world = build()
    assert held_for(world, clocks) == TTL + GRACE
    world.vault.set_terms("acme", ttl=ttl, grace=grace)
    assert held_for(world, clocks) == bound
    assert held_for(world, clocks, "glob") == TTL + GRACE
    world.vault.set_terms("acme", ttl=None)
    assert held_for(world, clocks) == TTL + GRACE


def test_a_shorter_bound_is_kept(build: Callable[..., World], clocks: Clocks) -> None:
    world = build()
    world.vault.set_terms("acme", ttl=10)
    enter(world)
    world.kms.disable_key(world.keys["acme"])
    clocks.pass_(10 - 0.001)
    with pytest.raises(KmsDeniedError):  # it is due, and the KMS refuses
        enter(world)
    world.kms.enable_key(world.keys["acme"])
    clocks.pass_(5)
    enter(world)


def test_every_scope_of_one_tenant_asks_the_kms_and_those_of_the_others_do_not(
    build: Callable[..., World], clocks: Clocks
) -> None:
    world = build()
    enter(world, "glob")
    world.vault.set_terms("acme", ttl=0)
    enter(world)
    for tenant in ("acme", "glob"):
        world.kms.disable_key(world.keys[tenant])
    enter(world, "glob")
    with pytest.raises(KmsDeniedError):
        enter(world)
    world.kms.enable_key(world.keys["acme"])
    enter(world)  # nothing is remembered either


def test_one_tenant_s_keys_are_held_although_those_of_the_others_are_not(
    database_url: str, world_on: Callable[..., World], clocks: Clocks
) -> None:
    world = world_on(database_url, ttl=0, clock=clocks.as_clock)
    world.vault.set_terms("acme", ttl=10)
    enter(world)
    enter(world)
    for tenant in ("acme", "glob"):
        world.kms.disable_key(world.keys[tenant])
    enter(world)
    with pytest.raises(KmsDeniedError):
        enter(world, "glob")


def test_of_two_vaults_in_one_process_each_keeps_its_own_terms(build: Callable[..., World], clocks: Clocks) -> None:
    lax = build()
    strict = Vault(lax.url, kms=lax.kms, ttl=10, clock=clocks.as_clock)
    for vault in (lax.vault, strict):
        with vault.tenant("acme"):
            pass
    lax.kms.disable_key(lax.keys["acme"])
    clocks.pass_(10)
    enter(lax)
    with pytest.raises(KmsDeniedError), strict.tenant("acme"):
        pass
    strict.close()


def test_another_process_follows_when_it_looks(
    build: Callable[..., World], database_url: str, world_on: Callable[..., World], clocks: Clocks
) -> None:
    world = build()
    assert held_for(world, clocks) == TTL + GRACE
    operator = Vault(database_url, kms=world.kms)
    operator.set_terms("acme", ttl=10)
    operator.close()
    clocks.pass_(NOTICE_SECONDS - 0.001)
    assert held_for(world, clocks) > 10
    clocks.pass_(0.001)
    assert held_for(world, clocks) == 10


def test_terms_are_written_into_the_log_and_a_change_past_it_is_found(build: Callable[..., World]) -> None:
    world = build()
    world.vault.set_terms("acme", ttl=60, grace=30)
    entry = world.vault.audit.entries("acme")[-1]
    assert entry.event == "tenant.changed"
    assert (entry.details["tenant"]["ttl_seconds"], entry.details["tenant"]["grace_seconds"]) == (60, 30)
    assert world.vault.audit.verify("acme").problems == ()
    world.vault.set_terms("acme", ttl=60, grace=30)
    assert world.vault.audit.entries("acme")[-1].seq == entry.seq  # it was so already
    with world.engine.begin() as connection:
        connection.execute(text("UPDATE pii_vault_policies SET ttl_seconds = 43200"))
    assert world.vault.audit.verify("acme").problems == ("the tenant: ttl_seconds is 43200, the log says 60",)
    with world.engine.begin() as connection:
        connection.execute(text("UPDATE pii_vault_policies SET ttl_seconds = NULL, grace_seconds = NULL"))
    assert sorted(world.vault.audit.verify("acme").problems) == [
        "the tenant: grace_seconds is None, the log says 30",
        "the tenant: ttl_seconds is None, the log says 60",
    ]


def test_terms_that_somebody_wrote_past_the_vault_and_that_cannot_be_kept_open_nothing(
    build: Callable[..., World],
) -> None:
    world = build()
    with world.engine.begin() as connection:
        connection.execute(text("UPDATE pii_vault_policies SET ttl_seconds = 43200, grace_seconds = 43200"))
    with pytest.raises(KeyRecordError, match=r"tenant 'acme' has a ttl of 43200 s with a grace of 43200 s.*audit"):
        enter(world)


@pytest.mark.parametrize(("ttl", "grace"), [(-1, 0), (10, -1), (0, 10), (43_200, 1), (43_201, 0), (None, 10)], ids=repr)
def test_terms_that_cannot_be_kept_are_refused(build: Callable[..., World], ttl: int | None, grace: int) -> None:
    world = build()
    with pytest.raises(ConfigurationError, match="ttl"):
        world.vault.set_terms("acme", ttl=ttl, grace=grace)
    with pytest.raises(TenantNotFoundError):
        world.vault.set_terms("nobody", ttl=10)
