"""The plan of a round: who is asked, what moves, and under which ids."""

from __future__ import annotations

import datetime as dt

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.domain.account import Account
from fep.domain.ids import TASK_ID_CHARS_MAX, AccountNumber, BankName, parse_task_id
from fep.domain.money import ZERO, Cny
from fep.domain.order import Kind, PaymentOrder, parse_body
from fep.pooling import plan
from fep.pooling.config import Fixed, MemberConfig, PoolConfig
from fep.pooling.plan import ENDED, PURPOSE, Item, ItemState, Round, RoundState
from fep.pooling.rules import Reason

NOW = dt.datetime(2026, 1, 5, 0, 30, 0, 123_456, tzinfo=dt.UTC)
PINGAN, CMB = BankName("pingan"), BankName("cmb")
TARGET = Account(
    AccountNumber("99000000000100"), PINGAN, "江枫样例制造有限公司", "307584007998", "平安银行"
)
MEMBERS = tuple(
    MemberConfig(AccountNumber(f"990000000001{number:02d}"), Cny(10_000)) for number in range(1, 5)
)
POOL = PoolConfig("main", TARGET.number, MEMBERS)
BANKS = {member.account: (PINGAN, CMB)[place % 2] for place, member in enumerate(MEMBERS)}


def begun(
    pool: PoolConfig = POOL,
    keyless: frozenset[BankName] = frozenset(),
    *,
    plan_only: bool = False,
    now: dt.datetime = NOW,
) -> Round:
    return plan.new_round(pool, BANKS, keyless, "key", now, plan_only=plan_only, note="by hand: op")


def item(state: ItemState = ItemState.ASKING) -> Item:
    one = begun().items[0]
    one.state = state
    return one


@pytest.mark.req("POOL-01", "POOL-02", "POOL-03", "POOL-17")
def test_a_round_asks_for_the_balance_of_every_member_in_order() -> None:
    one = begun()
    assert [item.account for item in one.items] == [member.account for member in MEMBERS]
    assert [item.bank for item in one.items] == [PINGAN, CMB, PINGAN, CMB]
    assert {item.state for item in one.items} == {ItemState.ASKING}
    assert [item.threshold for item in one.items] == [Cny(10_000)] * 4
    assert (one.pool, one.key, one.state, one.over) == ("main", "key", RoundState.RUNNING, False)
    assert plan.balance_body(one.items[0]) == {
        "kind": "balance",
        "params": {"account": MEMBERS[0].account},
    }


@pytest.mark.req("POOL-03", "POOL-08")
def test_every_account_has_two_task_ids_of_its_own() -> None:
    one = begun()
    ids = [item.balance_task for item in one.items] + [item.sweep_task for item in one.items]
    assert len(set(ids)) == 8
    assert ids[0] == "main-20260105003000123456-b1"
    assert one.items[0].sweep_task == "main-20260105003000123456-s1"
    # The same round made again has the same ids: no second transfer can come of it.
    assert begun() == one
    later = begun(now=NOW + dt.timedelta(microseconds=1))
    assert not {item.sweep_task for item in later.items} & set(ids)


@pytest.mark.req("POOL-08")
@given(
    name=st.from_regex(r"[0-9A-Za-z][0-9A-Za-z._:-]{0,31}", fullmatch=True),
    now=st.datetimes(timezones=st.just(dt.UTC), min_value=dt.datetime.fromisoformat("1970-01-01")),
)
def test_ids_of_any_pool_are_task_ids(name: str, now: dt.datetime) -> None:
    many = tuple(MemberConfig(AccountNumber(f"{number}"), ZERO) for number in (1, 99_999))
    pool = PoolConfig(name, TARGET.number, many)
    one = plan.new_round(
        pool, {m.account: PINGAN for m in many}, frozenset(), "k", now, plan_only=False, note=""
    )
    for each in one.items:
        assert parse_task_id(each.balance_task) != parse_task_id(each.sweep_task)
    assert len(f"{one.round_id}-s99999") <= TASK_ID_CHARS_MAX


@pytest.mark.req("POOL-12")
def test_a_bank_without_its_key_stays_out_with_the_reason() -> None:
    one = begun(keyless=frozenset({CMB}))
    assert [item.state for item in one.items] == [ItemState.ASKING, ItemState.NOTHING] * 2
    assert [item.reason for item in one.items] == ["", Reason.NO_UKEY.value] * 2
    assert not one.over
    none = begun(keyless=frozenset({CMB, PINGAN}))
    assert none.over


@pytest.mark.req("POOL-04", "POOL-05", "POOL-06", "DEC-b")
@pytest.mark.parametrize(
    ("available", "under_way", "state", "amount", "reason"),
    [
        (10_000, 0, ItemState.NOTHING, 0, "AT_OR_BELOW_THRESHOLD"),
        (10_001, 0, ItemState.PLANNED, 1, ""),
        (15_000, 0, ItemState.PLANNED, 5_000, ""),
        (15_000, 4_999, ItemState.PLANNED, 1, ""),
        (15_000, 5_000, ItemState.NOTHING, 0, "AT_OR_BELOW_THRESHOLD"),
        (15_000, 99_999, ItemState.NOTHING, 0, "AT_OR_BELOW_THRESHOLD"),
        (-5, 0, ItemState.NOTHING, 0, "AT_OR_BELOW_THRESHOLD"),
    ],
)
def test_judging_takes_off_what_is_under_way(
    available: int, under_way: int, state: ItemState, amount: int, reason: str
) -> None:
    one = item()
    working = plan.judge(one, MEMBERS[0], Cny(available), Cny(under_way))
    assert (one.state, one.amount, one.reason) == (state, Cny(amount), reason)
    assert one.balance == Cny(available)
    assert working.balance == Cny(available - under_way)
    for part in (working.balance, Cny(under_way), working.raw):
        assert str(part) in one.working


def test_the_record_shows_the_threshold_and_rule_that_judged() -> None:
    """They may have been changed between the start of the round and the balance."""
    one = item()
    changed = attrs.evolve(MEMBERS[0], threshold=Cny(3), rule=Fixed(Cny(7)))
    plan.judge(one, changed, Cny(100), ZERO)
    assert (one.threshold, one.rule, one.amount) == (Cny(3), "fixed", Cny(7))


@pytest.mark.req("POOL-06", "POOL-11", "POOL-15")
def test_the_sweep_goes_to_the_target_and_nowhere_else() -> None:
    one = item()
    plan.judge(one, MEMBERS[0], Cny(15_000), ZERO)
    body = plan.sweep_body(one, TARGET)
    assert body["kind"] == Kind.TRANSFER.value
    order = parse_body(Kind.TRANSFER, body["params"])
    assert isinstance(order, PaymentOrder)
    assert (order.payer, order.payee.account) == (MEMBERS[0].account, TARGET.number)
    assert (order.amount, order.purpose) == (Cny(5_000), PURPOSE)
    assert (order.payee.name, order.payee.bank_code, order.payee.bank_name) == (
        TARGET.name,
        TARGET.bank_code,
        TARGET.bank_title,
    )


def test_an_item_without_an_amount_has_no_sweep() -> None:
    with pytest.raises(AssertionError):
        plan.sweep_body(item(), TARGET)


@pytest.mark.parametrize("state", ItemState)
@pytest.mark.parametrize("plan_only", [False, True])
def test_a_round_is_over_when_every_account_is_at_its_end(
    state: ItemState, plan_only: bool
) -> None:
    one = begun(plan_only=plan_only)
    for each in one.items:
        each.state = ItemState.NOTHING
    assert one.over
    one.items[2].state = state
    ends = ENDED | {ItemState.PLANNED} if plan_only else ENDED
    assert one.over == (state in ends)


def test_a_round_is_shown_with_its_totals() -> None:
    one = begun()
    for each, available in zip(one.items, (15_000, 12_000, 100, 11_000), strict=True):
        plan.judge(each, MEMBERS[0], Cny(available), ZERO)
    one.items[0].state = ItemState.SWEPT
    one.items[1].state = ItemState.RETURNED
    value = one.value()
    assert value["states"] == {"swept": 1, "returned": 1, "nothing": 1, "planned": 1}
    assert (value["accounts"], value["planned"], value["swept"]) == (4, "80.00", "50.00")
    assert (value["state"], value["finished_at"], value["plan_only"]) == ("running", None, False)
    assert value["started_at"] == "2026-01-05T00:30:00.123+00:00"
    shown = value["items"][0]
    assert shown["balance_task"] == one.items[0].balance_task
    assert (shown["balance"], shown["amount"], shown["state"]) == ("150.00", "50.00", "swept")
    assert value["items"][2]["reason"] == "AT_OR_BELOW_THRESHOLD"
    assert begun().value()["items"][0]["balance"] is None
