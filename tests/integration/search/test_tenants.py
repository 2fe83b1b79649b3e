"""Compiled statements are shared between tenants, and what is looked for is each tenant's own."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update
from tests.integration.search.models import SEALED
from tests.support.world import World


def test_tenants_in_turn_share_compiled_statements_and_find_their_own_rows(search_world: World) -> None:
    Customer = SEALED.Customer
    with search_world.session("glob") as session:
        session.add(Customer(id=200, email="ada@x.org", nick="ada", code="A", age=36, contact="ada@x.org"))

    def ask(tenant: str, email: str, nicks: list[str]) -> list[Any]:
        with search_world.session(tenant) as session:
            return [
                session.scalars(select(Customer.id).where(Customer.email == email)).all(),
                session.scalars(select(Customer.id).where(Customer.nick.in_(nicks)).order_by(Customer.id)).all(),
                session.scalars(select(Customer.id).where(Customer.contact.token("domain") == "x.org")).all(),
                session.execute(update(Customer).where(Customer.code == "A").values(name="a")).rowcount,  # type: ignore[attr-defined]
            ]

    cache: Any = search_world.engine._compiled_cache
    assert ask("acme", "ada@x.org", ["ADA"]) == [[1], [1, 2], [1, 2], 1]
    size = len(cache)
    for _ in range(5):
        assert ask("glob", "ada@x.org", ["Ada", "x"]) == [[200], [200], [200], 1]
        assert ask("acme", "ada@x.org", ["ada", "bob", "x"])[:2] == [[1], [1, 2, 3]]
        assert ask("glob", "bob@x.org", [])[:2] == [[], []]
        assert ask("acme", "bob@x.org", [])[:2] == [[2], []]
    assert len(cache) == size


def test_tokens_differ_by_tenant_index_and_form_and_are_equal_for_equal_values(search_world: World) -> None:
    Customer = SEALED.Customer
    columns = (Customer.email, Customer.sponsor, Customer.code, Customer.contact, Customer.nick, Customer.alias)
    query = select(*(column.blind_index for column in columns)).where(Customer.id.in_([300, 301]))
    tokens = {}
    for number, tenant in ((300, "acme"), (301, "glob")):
        with search_world.session(tenant) as session:
            session.add(Customer(id=number, **{column.key: "same" for column in columns}))
            session.flush()
            ((email, sponsor, code, contact, nick, alias),) = session.execute(
                query.where(Customer.tenant_id == tenant)
            ).all()
        assert email == sponsor
        assert nick == alias
        assert len({email, code, contact, nick}) == 4
        tokens[tenant] = {email, code, contact, nick}
    assert not tokens["acme"] & tokens["glob"]
