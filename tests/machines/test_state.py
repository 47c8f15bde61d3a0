"""Who takes and who leaves a bank, without a database."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.machines.state import (
    BARRED_SECONDS,
    LINK_DOWN_SECONDS,
    UNFIT_SECONDS,
    Lease,
    Look,
    Machine,
    Place,
    Said,
    Standing,
    may_claim,
    newest_at,
    should_leave,
)

pytestmark = pytest.mark.req("FEP-22", "FEP-25")

BANK = "bank:pingan"


def machine(number: str, *, fit: bool = False, alive: bool = True, since: float = 0.0) -> Machine:
    said = Said(frozenset({BANK} if fit else ()), {"erp-1": since} if since else {})
    return Machine(number, f"{number}-1", "1.0", alive, not alive, said)


def place(*, held: bool, instance: str = "FEP-02-1") -> Place:
    return Place(BANK, instance[:6], instance, 3, held)


def standing(*, has_key: bool, since: float = 0.0) -> Standing:
    found = Standing()
    found.note(since, has_key=has_key, holds=False, link_is_up=True)
    return found


@pytest.mark.parametrize(
    ("held", "fit", "others", "before", "may"),
    [
        (False, True, [], "", True),
        (True, True, [], "", False),
        # Its own last process is dead: what that held is free at once.
        (True, True, [], "FEP-02-1", True),
        (True, True, [], "FEP-01-1", False),
        # Without the key only where nobody has it.
        (False, False, [], "", True),
        (False, False, [machine("FEP-03", fit=True)], "", False),
        (False, False, [machine("FEP-03", fit=True, alive=False)], "", True),
    ],
)
def test_a_place_is_taken_only_when_it_is_free(
    held: bool,
    fit: bool,
    others: list[Machine],
    before: str,
    may: bool,
) -> None:
    assert may_claim(place(held=held), others, fit=fit, before=before) is may


def test_a_holder_without_its_key_leaves_to_who_has_it_and_not_for_a_moment_only() -> None:
    one = standing(has_key=True)
    one.note(10.0, has_key=False, holds=True, link_is_up=True)
    other = [machine("FEP-02", fit=True)]
    assert not should_leave(BANK, other, one, 10.0 + UNFIT_SECONDS - 0.1)
    assert should_leave(BANK, other, one, 10.0 + UNFIT_SECONDS)
    assert not should_leave(BANK, [machine("FEP-02")], one, 10.0 + UNFIT_SECONDS)


def test_a_holder_that_does_not_reach_its_bank_stands_back_for_a_while() -> None:
    one = standing(has_key=True)
    one.note(0.0, has_key=True, holds=True, link_is_up=False)
    one.note(LINK_DOWN_SECONDS - 1, has_key=True, holds=True, link_is_up=False)
    assert one.is_fit(LINK_DOWN_SECONDS - 1)
    one.note(LINK_DOWN_SECONDS, has_key=True, holds=True, link_is_up=False)
    assert one.is_unfit(LINK_DOWN_SECONDS)
    assert not one.is_fit(LINK_DOWN_SECONDS + BARRED_SECONDS - 1)
    assert one.is_fit(LINK_DOWN_SECONDS + BARRED_SECONDS)


@given(
    asked=st.floats(0, 1e6),
    took=st.floats(0, 100),
    lease_s=st.floats(2, 300),
    later=st.floats(0, 1000),
)
def test_a_lease_is_never_good_longer_than_the_database_says(
    asked: float, took: float, lease_s: float, later: float
) -> None:
    """The database counts from its answer, the machine from its question."""
    lease = Lease(BANK, 1, asked + lease_s, lease_s * 0.1)
    now = asked + took + later
    if lease.is_valid(now):
        assert not lease.has_run_out(now)
        assert now < asked + took + lease_s


def test_the_holder_is_a_machine_that_lives() -> None:
    alive, dead = machine("FEP-02"), machine("FEP-02", alive=False)
    assert Look((alive,), {BANK: place(held=True)}).holder(BANK) is alive
    assert Look((alive,), {BANK: place(held=False)}).holder(BANK) is None
    assert Look((dead,), {BANK: place(held=True)}).holder(BANK) is None
    assert Look((alive,), {BANK: place(held=True, instance="FEP-02-2")}).holder(BANK) is None


def test_a_client_is_asked_where_its_newest_connection_is() -> None:
    others = [machine("FEP-02", since=20.0), machine("FEP-03", since=30.0)]
    assert newest_at("erp-1", 25.0, others) is others[1]
    assert newest_at("erp-1", 35.0, others) is None
    assert newest_at("erp-1", None, [machine("FEP-02", since=20.0, alive=False)]) is None


def test_what_a_machine_says_of_itself_is_read_back() -> None:
    said = Said(frozenset({BANK}), {"erp-1": 5.0}, {"pingan": {"queued": 2}})
    assert Said.of(said.value() | {"newer": 1}) == said
