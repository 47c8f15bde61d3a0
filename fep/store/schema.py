"""The tables, and the steps that bring an older file to the present shape.

SQL both SQLite and PostgreSQL take; money in fen, times as RFC 3339 text in UTC (they sort).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import sqlalchemy as sa

from fep.domain.errors import FepError
from fep.store.dialect import Dialect, Sqlite

metadata: Final = sa.MetaData()

task: Final = sa.Table(
    "task",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("task_id", sa.Text, nullable=False, unique=True),
    sa.Column("client", sa.Text, nullable=False),
    sa.Column("bank", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("submitted_at", sa.Text, nullable=False),
    sa.Column("expires_at", sa.Text, nullable=False),
    sa.Column("offers", sa.Integer, nullable=False, server_default="0"),
    sa.Column("body", sa.LargeBinary),
    sa.Column("body_digest", sa.Text),
    sa.Column("client_ref", sa.Text),
    sa.Column("sent_at", sa.Text),
    sa.Column("sent_digest", sa.Text),
    sa.Column("bank_ref", sa.Text, nullable=False, server_default=""),
    sa.Column("inquiries", sa.Integer, nullable=False, server_default="0"),
    sa.Column("inquire_at", sa.Text),
    sa.Column("result", sa.LargeBinary),
    sa.Column("bank_code", sa.Text, nullable=False, server_default=""),
    sa.Column("bank_message", sa.Text, nullable=False, server_default=""),
    sa.Column("updated_at", sa.Text, nullable=False),
    sa.Column("delivery", sa.Integer, nullable=False, server_default="0"),
    sa.Column("archived", sa.Text),
    sa.Column("sent_to", sa.Text),
    sa.Index("task_open", "bank", "state", "seq"),
    # Partial: a task that is only queued dirties no page of them.
    sa.Index(
        "task_client_ref",
        "client_ref",
        sqlite_where=sa.text("client_ref IS NOT NULL"),
        postgresql_where=sa.text("client_ref IS NOT NULL"),
    ),
    sa.Index(
        "task_owed",
        "seq",
        sqlite_where=sa.text("delivery = 1"),
        postgresql_where=sa.text("delivery = 1"),
    ),
)
"""``delivery``: 0 no result yet, 1 result owed to the client, 2 acknowledged by it.

``archived`` is the year of the archive that has the rest of a task: its body, result, events and
messages. The row stays, so that its id is known for ever and its reference is found. ``sent_to``
says to which system a payment went (``BankConfig.system``), NULL where that was not noted."""

payment: Final = sa.Table(
    "payment",
    metadata,
    sa.Column("task_seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("bank", sa.Text, nullable=False),
    sa.Column("payer", sa.Text, nullable=False),
    sa.Column("payee", sa.Text, nullable=False),
    sa.Column("amount_fen", sa.BigInteger, nullable=False),
    sa.Column("sent_at", sa.Text, nullable=False),
    sa.Column("waited_s", sa.Float, nullable=False, server_default="0"),
    sa.Column("watched_s", sa.Float),
    sa.Index("payment_payer", "payer", "sent_at"),
    sa.Index(
        "payment_watched",
        "bank",
        "payer",
        "task_seq",
        sqlite_where=sa.text("watched_s IS NOT NULL"),
        postgresql_where=sa.text("watched_s IS NOT NULL"),
    ),
)
"""What may have left, as the evidence engine searches it; a row is written with ``sending``.

``waited_s``: for how long the payment was unknown while a daemon lived. ``watched_s``: for how long
its success was watched, below 0 before the first look, NULL when it is not."""

payment_row: Final = sa.Table(
    "payment_row",
    metadata,
    sa.Column("task_seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("place", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("payer", sa.Text, nullable=False),
    sa.Column("payee", sa.Text, nullable=False),
    sa.Column("amount_fen", sa.BigInteger, nullable=False),
    sa.Column("sent_at", sa.Text, nullable=False),
    sa.Column("client_ref", sa.Text, nullable=False),
    sa.Column("bank_ref", sa.Text, nullable=False, server_default=""),
    sa.Index("payment_row_payer", "payer", "sent_at"),
)
"""The rows of a batch as they are searched; its own row of ``payment`` has no payee and the sum.

``bank_ref`` is the bank's reference of the row, once it was told."""

task_event: Final = sa.Table(
    "task_event",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("task_seq", sa.BigInteger, nullable=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("cause", sa.Text, nullable=False),
    sa.Column("configuration", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False, server_default=""),
    sa.Column("detail", sa.Text, nullable=False, server_default=""),
    sa.Index("task_event_task", "task_seq"),
)
"""The causal chain of each task: what happened, why, under which configuration, which bytes.

``task_seq`` 0 is the store itself: what was archived, that it was put back, who released it then,
and what people did (``fep/store/audit.py``)."""

event_link: Final = sa.Table(
    "event_link",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("first_event", sa.BigInteger, nullable=False),
    sa.Column("last_event", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("at", sa.Text, nullable=False),
)
"""The hash chain over ``task_event``: one link a commit; ``fep/store/chain.py`` says of what."""

message: Final = sa.Table(
    "message",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("task_seq", sa.BigInteger, nullable=True),
    sa.Column("bank", sa.Text, nullable=False),
    sa.Column("direction", sa.Text, nullable=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("correlation", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("bytes", sa.LargeBinary, nullable=False),
    sa.Index("message_task", "task_seq"),
)
"""Exact bytes of everything that moves money, and every answer that matched nothing."""

resolution: Final = sa.Table(
    "resolution",
    metadata,
    sa.Column("task_seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("evidence", sa.Text, nullable=False),
    sa.Column("proposed_by", sa.Text, nullable=False),
    sa.Column("proposed_at", sa.Text, nullable=False),
)
"""A person's proposal to close an unknown; another person confirms it."""

lane: Final = sa.Table(
    "lane",
    metadata,
    sa.Column("bank", sa.Text, primary_key=True),
    sa.Column("drained", sa.Integer, nullable=False),
)

alarm: Final = sa.Table(
    "alarm",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("cause", sa.Text, nullable=False),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("raised_at", sa.Text, nullable=False),
    sa.Column("last_at", sa.Text, nullable=False),
    sa.Column("acknowledged_at", sa.Text),
    sa.Column("acknowledged_by", sa.Text),
    sa.Column("cleared_at", sa.Text),
    sa.Index("alarm_state", "state"),
)

alarm_notice: Final = sa.Table(
    "alarm_notice",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("channel", sa.Text, nullable=False),
    sa.Column("alarm_id", sa.Text, nullable=False),
    sa.Column("what", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("cause", sa.Text, nullable=False),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("raised_at", sa.Text, nullable=False),
    sa.Column("noted_at", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("ended_at", sa.Text),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),
    sa.Index("alarm_notice_state", "state", "noted_at"),
    sa.Index("alarm_notice_alarm", "alarm_id", "channel"),
)
"""What a channel is to tell of an alarm, or has told: the alarm as it stood when it was noted.

It is ``waiting`` until the receiver has it, then ``sent``; ``given_up`` says ``reason``."""

pin_bar: Final = sa.Table(
    "pin_bar",
    metadata,
    sa.Column("slot", sa.Text, primary_key=True),
    sa.Column("credential", sa.Text, nullable=False),
    sa.Column("tries_before", sa.Integer),
    sa.Column("at", sa.Text, nullable=False),
)
"""A PIN the card refused is not sent again until its credential file is another one.

``tries_before`` is set while an attempt has no recorded answer: the tries left before it."""

pool_round: Final = sa.Table(
    "pool_round",
    metadata,
    sa.Column("round_id", sa.Text, primary_key=True),
    sa.Column("pool", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False, unique=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("started_at", sa.Text, nullable=False),
    sa.Column("finished_at", sa.Text),
    sa.Column("plan_only", sa.Integer, nullable=False, server_default="0"),
    sa.Column("note", sa.Text, nullable=False, server_default=""),
)

pool_item: Final = sa.Table(
    "pool_item",
    metadata,
    sa.Column("round_id", sa.Text, primary_key=True),
    sa.Column("account", sa.Text, primary_key=True),
    sa.Column("place", sa.Integer, nullable=False),
    sa.Column("bank", sa.Text, nullable=False),
    sa.Column("balance_task", sa.Text, nullable=False),
    sa.Column("sweep_task", sa.Text, nullable=False),
    sa.Column("balance_fen", sa.BigInteger),
    sa.Column("threshold_fen", sa.BigInteger, nullable=False),
    sa.Column("amount_fen", sa.BigInteger),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),
    sa.Column("rule", sa.Text, nullable=False, server_default=""),
    sa.Column("working", sa.Text, nullable=False, server_default=""),
    sa.Column("state", sa.Text, nullable=False),
    sa.Index("pool_item_balance", "balance_task"),
    sa.Index("pool_item_sweep", "sweep_task"),
)

restored: Final = sa.Table(
    "restored",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("taken_at", sa.Text, nullable=False),
    sa.Column("link", sa.Text, nullable=False),
    sa.Column("restored_at", sa.Text),
    sa.Column("released_at", sa.Text),
    sa.Column("released_by", sa.Text, nullable=False, server_default=""),
    sa.Column("evidence", sa.Text, nullable=False, server_default=""),
)
"""Written into each backup: this file does not know what was sent after ``taken_at``.

While a row is not released, no payment leaves."""

console_user: Final = sa.Table(
    "console_user",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("password", sa.Text, nullable=False),
    sa.Column("totp", sa.Text, nullable=False, server_default=""),
    sa.Column("totp_step", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("disabled", sa.Integer, nullable=False, server_default="0"),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("changed_at", sa.Text, nullable=False),
)
"""Who may use the console. ``password`` is an argon2id hash; ``totp`` the shared secret of one-time
codes, empty where there is none, and ``totp_step`` the last one used, which never counts again."""

console_session: Final = sa.Table(
    "console_session",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("seen_at", sa.Text, nullable=False),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Index("console_session_name", "name"),
)
"""Who is logged in. ``digest`` is of the browser's cookie: who reads the store can't use it."""

configuration: Final = sa.Table(
    "configuration",
    metadata,
    sa.Column("machine", sa.Text, primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("how", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("before", sa.BigInteger),
    sa.Column("confirm_until", sa.Text),
    sa.Column("ended_by", sa.Text, nullable=False, server_default=""),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),
    sa.Column("text", sa.LargeBinary, nullable=False),
)
"""Every configuration that was in force on a machine; ``fep/daemon/versions.py`` says of what."""

shared: Final = sa.MetaData()
"""What only a store of several machines has."""

machine: Final = sa.Table(
    "machine",
    shared,
    sa.Column("number", sa.Text, primary_key=True),
    sa.Column("instance", sa.Text, nullable=False),
    sa.Column("enterprise", sa.Text, nullable=False),
    sa.Column("release", sa.Text, nullable=False),
    sa.Column("said", sa.Text, nullable=False),
    sa.Column("until_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("has_left", sa.Boolean, nullable=False),
)
"""The front-end machines; one lives while ``until_at`` is to come, by the database's clock."""

place: Final = sa.Table(
    "place",
    shared,
    sa.Column("what", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("instance", sa.Text, nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("until_at", sa.DateTime(timezone=True), nullable=False),
)
"""What one machine at a time serves: a bank, pooling."""

letter: Final = sa.Table(
    "letter",
    shared,
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("addressee", sa.Text, nullable=False),
    sa.Column("sender", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    sa.Index("letter_addressee", "addressee", "seq"),
)
"""From one machine's process to another's, until it has been read."""

Step = Callable[[sa.Connection], None]


def _add_payment_rows(connection: sa.Connection) -> None:
    """Let batches of payments be searched row by row."""
    connection.exec_driver_sql(
        "CREATE TABLE payment_row (task_seq BIGINT NOT NULL, place BIGINT NOT NULL,"
        " payer TEXT NOT NULL, payee TEXT NOT NULL, amount_fen BIGINT NOT NULL,"
        " sent_at TEXT NOT NULL, client_ref TEXT NOT NULL, bank_ref TEXT DEFAULT '' NOT NULL,"
        " PRIMARY KEY (task_seq, place))"
    )
    connection.exec_driver_sql("CREATE INDEX payment_row_payer ON payment_row (payer, sent_at)")


def _add_console(connection: sa.Connection) -> None:
    connection.exec_driver_sql(
        "CREATE TABLE console_user (name TEXT NOT NULL PRIMARY KEY, role TEXT NOT NULL,"
        " password TEXT NOT NULL, totp TEXT DEFAULT '' NOT NULL,"
        " totp_step BIGINT DEFAULT '0' NOT NULL, disabled INTEGER DEFAULT '0' NOT NULL,"
        " created_at TEXT NOT NULL, changed_at TEXT NOT NULL)"
    )
    connection.exec_driver_sql(
        "CREATE TABLE console_session (digest TEXT NOT NULL PRIMARY KEY, name TEXT NOT NULL,"
        " created_at TEXT NOT NULL, seen_at TEXT NOT NULL, origin TEXT NOT NULL)"
    )
    connection.exec_driver_sql("CREATE INDEX console_session_name ON console_session (name)")


def _add_configurations(connection: sa.Connection) -> None:
    of_bytes = "BYTEA" if connection.dialect.name == "postgresql" else "BLOB"
    connection.exec_driver_sql(
        "CREATE TABLE configuration (machine TEXT NOT NULL, number BIGINT NOT NULL,"
        " digest TEXT NOT NULL, at TEXT NOT NULL, who TEXT NOT NULL, how TEXT NOT NULL,"
        " note TEXT NOT NULL, state TEXT NOT NULL, before BIGINT, confirm_until TEXT,"
        " ended_by TEXT DEFAULT '' NOT NULL, reason TEXT DEFAULT '' NOT NULL,"
        f" text {of_bytes} NOT NULL, PRIMARY KEY (machine, number))"
    )


def _add_alarm_notices(connection: sa.Connection) -> None:
    """Let what channels are to tell of alarms outlive the process."""
    connection.exec_driver_sql(
        "CREATE TABLE alarm_notice (id TEXT NOT NULL PRIMARY KEY, channel TEXT NOT NULL,"
        " alarm_id TEXT NOT NULL, what TEXT NOT NULL, kind TEXT NOT NULL, subject TEXT NOT NULL,"
        " cause TEXT NOT NULL, count INTEGER NOT NULL, raised_at TEXT NOT NULL,"
        " noted_at TEXT NOT NULL, state TEXT NOT NULL, ended_at TEXT,"
        " reason TEXT DEFAULT '' NOT NULL)"
    )
    connection.exec_driver_sql("CREATE INDEX alarm_notice_state ON alarm_notice (state, noted_at)")
    connection.exec_driver_sql(
        "CREATE INDEX alarm_notice_alarm ON alarm_notice (alarm_id, channel)"
    )


def _add_sent_to(connection: sa.Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE task ADD COLUMN sent_to TEXT")


STEPS: Final[tuple[Step, ...]] = (
    _add_payment_rows,
    _add_console,
    _add_configurations,
    _add_alarm_notices,
    _add_sent_to,
)
"""The first brings a file of version 1 to version 2, and so on; ``metadata`` is what the last one
leaves. A released version's step is never changed: ``tests/store/versions`` has a file of each.
Each step is written in the words of both databases."""
VERSION: Final = len(STEPS) + 1


class NewerStoreError(FepError):
    """The store was written by a newer release; this one must not touch it."""

    code = "STORE_NEWER"


def migrate(
    connection: sa.Connection, steps: Sequence[Step] = STEPS, dialect: Dialect | None = None
) -> None:
    """Make the tables, or bring an older store's to the present version, in one transaction.

    Args:
        connection: to the store, outside of a transaction.
        steps: from each version to the next.
        dialect: None: the store is an SQLite file.

    Raises:
        NewerStoreError: a newer release wrote the store; nothing was touched.
        sqlalchemy.exc.DBAPIError: it is no database, or can't be written; nothing changed.
    """
    database = dialect or Sqlite("sqlite://")
    present = len(steps) + 1
    if _is_current(database.version(connection), present):
        return
    database.begin_migration(connection)
    try:
        # Looked at again: another machine may have made them since.
        version = database.version(connection)
        if not _is_current(version, present):
            if version == 0:
                metadata.create_all(connection)
            if version == 0 and database.is_shared:
                shared.create_all(connection)
            if version and database.is_shared:
                _check_alone(connection)
            for step in steps[version - 1 :] if version else ():
                step(connection)
            database.set_version(connection, present)
        connection.exec_driver_sql("COMMIT")
    except (sa.exc.DBAPIError, NewerStoreError):
        # A full disk has rolled it back already.
        with suppress(sa.exc.DBAPIError):
            connection.exec_driver_sql("ROLLBACK")
        raise


def _is_current(version: int, present: int) -> bool:
    if version > present:
        msg = f"the store has version {version}, this release knows {present}; run a newer release"
        raise NewerStoreError(msg)
    return version == present


def _check_alone(connection: sa.Connection) -> None:
    """Refuse to change tables under a machine that knows only the older ones."""
    if numbers := ", ".join(alive(connection)):
        msg = (
            f"the tables are to be updated, and an older release runs on: {numbers}; stop it first"
        )
        raise NewerStoreError(msg)


def alive(connection: sa.Connection) -> list[str]:
    """Return the numbers of the machines that live on a shared store at this moment."""
    living = machine.c.until_at > sa.func.clock_timestamp()
    return sorted(connection.execute(sa.select(machine.c.number).where(living)).scalars())


def version_of(connection: sa.Connection) -> int:
    """Return the version of a file's tables, 0 of one that has none yet."""
    return Sqlite("sqlite://").version(connection)
