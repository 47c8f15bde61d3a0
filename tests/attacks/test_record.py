"""Attempts on the rules that need two persons, and on the record of what was done."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from fep.store.files import STORE_FILE
from tests.attacks.rig import BANK, LI, ZHAO, Site, payment, until, verified

EVIDENCE = "statement of today, page 3, line 9"


def unknown(site: Site, task_id: str) -> None:
    """Leave a payment whose end is not known: its bank answered nonsense."""
    with site.line.saying(b"<nonsense/>"), site.finance() as raw:
        body = payment(site)
        submit = {"task_id": task_id, "bank": BANK.name, "kind": "transfer", "body": body}
        assert raw.code("task.submit", submit) is None
        until(
            lambda: raw.ask("task.get", {"task_id": task_id})["result"]["state"] == "unknown",
            "an unknown payment",
        )


def test_one_person_closes_a_payment_that_needs_two(attacked: Site) -> None:
    unknown(attacked, "TWO-1")
    task = {"task_id": "TWO-1"}
    rejected, succeeded = task | {"outcome": "rejected"}, task | {"outcome": "succeeded"}
    with attacked.unharmed():
        with attacked.person(LI) as li, attacked.person(LI, claims="zhao") as as_zhao:
            assert li.code("task.confirm", rejected) == "BAD_STATE"
            assert li.code("task.resolve", rejected | {"evidence": EVIDENCE}) is None
            # Again, on another connection, under another's name, and after one more proposal.
            for raw in (li, as_zhao):
                assert raw.code("task.confirm", rejected) == "NOT_PERMITTED"
            assert as_zhao.code("task.resolve", rejected | {"evidence": EVIDENCE}) is None
            assert li.code("task.confirm", rejected) == "NOT_PERMITTED"
        with attacked.finance() as raw:
            assert raw.code("task.confirm", rejected) == "NOT_PERMITTED"
        # In the console one person is one person too.
        olaf = attacked.logged_in("olaf")
        answer = olaf.post("/tasks/TWO-1/resolve", outcome="succeeded", evidence=EVIDENCE)
        assert answer.status_code == 303
        assert olaf.post("/tasks/TWO-1/confirm", outcome="succeeded").status_code == 403
        with attacked.person(ZHAO) as zhao:
            # Who confirms says what: the proposal may have been changed under his eyes.
            assert zhao.code("task.confirm", rejected) == "BAD_STATE"
            assert zhao.ask("task.get", task)["result"]["state"] == "unknown"
            assert zhao.code("task.confirm", succeeded) is None
    assert len(attacked.audited("task.confirm", outcome="refused", name="li")) >= 4
    assert attacked.audited("task.confirm", outcome="refused", name="olaf")
    assert attacked.audited("task.confirm", outcome="done", name="zhao")


def forget(db: sqlite3.Connection) -> None:
    db.execute(
        "DELETE FROM task_event WHERE seq = (SELECT max(seq) FROM task_event WHERE event = 'act')"
    )


def blame(db: sqlite3.Connection) -> None:
    db.execute(
        "UPDATE task_event SET detail = replace(detail, '\"li\"', '\"zhao\"') WHERE event = 'act'"
    )


def repaint(db: sqlite3.Connection) -> None:
    db.execute(
        "UPDATE task_event SET cause = 'nothing happened' WHERE task_seq > 0 AND seq % 7 = 0"
    )


def redate(db: sqlite3.Connection) -> None:
    db.execute("UPDATE task_event SET at = '2020-01-01T00:00:00.000+00:00' WHERE event = 'act'")


def promote(db: sqlite3.Connection) -> None:
    db.execute("UPDATE task SET state = 'succeeded' WHERE state IN ('unknown', 'queued', 'failed')")


@pytest.fixture(scope="module")
def copied(attacked: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound copy of the store, with an act and a payment that is unknown in it."""
    unknown(attacked, "TAMPER-1")
    with attacked.person(LI) as li:
        assert li.code("link.test", {"bank": BANK.name}) is None
    copy = tmp_path_factory.mktemp("store") / "copy.sqlite"
    source = attacked.scene.directory / "state" / STORE_FILE
    with closing(sqlite3.connect(source)) as live, closing(sqlite3.connect(copy)) as to:
        live.backup(to)
    sound = verified(copy)
    assert sound.returncode == 0, sound.stdout + sound.stderr
    return copy


@pytest.mark.parametrize("tamper", [forget, blame, repaint, redate, promote])
def test_the_record_is_changed_in_the_store(
    attacked: Site, copied: Path, tmp_path: Path, tamper: Callable[[sqlite3.Connection], None]
) -> None:
    with attacked.unharmed():
        changed = tmp_path / "changed.sqlite"
        shutil.copyfile(copied, changed)
        with closing(sqlite3.connect(changed)) as db, db:
            before = db.total_changes
            tamper(db)
            assert db.total_changes > before
        found = verified(changed)
        assert found.returncode == 1, found.stdout
