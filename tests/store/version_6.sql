-- A store as version 6 made it: its tables, and one row of each kind that must outlive an update.
CREATE TABLE task (
    seq INTEGER NOT NULL,
    task_id TEXT NOT NULL,
    client TEXT NOT NULL,
    bank TEXT NOT NULL,
    kind TEXT NOT NULL,
    priority INTEGER NOT NULL,
    state TEXT NOT NULL,
    submitted_at TEXT NOT NULL,
    expires_at TEXT NOT NULL,
    offers INTEGER DEFAULT '0' NOT NULL,
    body BLOB,
    body_digest TEXT,
    client_ref TEXT,
    sent_at TEXT,
    sent_digest TEXT,
    bank_ref TEXT DEFAULT '' NOT NULL,
    inquiries INTEGER DEFAULT '0' NOT NULL,
    inquire_at TEXT,
    result BLOB,
    bank_code TEXT DEFAULT '' NOT NULL,
    bank_message TEXT DEFAULT '' NOT NULL,
    updated_at TEXT NOT NULL,
    delivery INTEGER DEFAULT '0' NOT NULL,
    archived TEXT,
    sent_to TEXT,
    PRIMARY KEY (seq),
    UNIQUE (task_id)
);
CREATE INDEX task_open ON task (bank, state, seq);
CREATE INDEX task_owed ON task (seq) WHERE delivery = 1;
CREATE INDEX task_client_ref ON task (client_ref) WHERE client_ref IS NOT NULL;
CREATE TABLE task_event (
    seq INTEGER NOT NULL,
    task_seq BIGINT NOT NULL,
    at TEXT NOT NULL,
    event TEXT NOT NULL,
    state TEXT NOT NULL,
    cause TEXT NOT NULL,
    configuration TEXT NOT NULL,
    digest TEXT DEFAULT '' NOT NULL,
    detail TEXT DEFAULT '' NOT NULL,
    PRIMARY KEY (seq)
);
CREATE INDEX task_event_task ON task_event (task_seq);
CREATE TABLE event_link (
    seq INTEGER NOT NULL,
    first_event BIGINT NOT NULL,
    last_event BIGINT NOT NULL,
    digest TEXT NOT NULL,
    at TEXT NOT NULL,
    PRIMARY KEY (seq)
);
CREATE TABLE message (
    seq INTEGER NOT NULL,
    task_seq BIGINT,
    bank TEXT NOT NULL,
    direction TEXT NOT NULL,
    at TEXT NOT NULL,
    correlation TEXT NOT NULL,
    digest TEXT NOT NULL,
    bytes BLOB NOT NULL,
    PRIMARY KEY (seq)
);
CREATE INDEX message_task ON message (task_seq);
CREATE TABLE resolution (
    task_seq BIGINT NOT NULL,
    outcome TEXT NOT NULL,
    evidence TEXT NOT NULL,
    proposed_by TEXT NOT NULL,
    proposed_at TEXT NOT NULL,
    PRIMARY KEY (task_seq)
);
CREATE TABLE restored (
    seq INTEGER NOT NULL,
    taken_at TEXT NOT NULL,
    link TEXT NOT NULL,
    restored_at TEXT,
    released_at TEXT,
    released_by TEXT DEFAULT '' NOT NULL,
    evidence TEXT DEFAULT '' NOT NULL,
    PRIMARY KEY (seq)
);
CREATE TABLE lane (
    bank TEXT NOT NULL,
    drained INTEGER NOT NULL,
    PRIMARY KEY (bank)
);
CREATE TABLE alarm (
    id TEXT NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    state TEXT NOT NULL,
    cause TEXT NOT NULL,
    count INTEGER NOT NULL,
    raised_at TEXT NOT NULL,
    last_at TEXT NOT NULL,
    acknowledged_at TEXT,
    acknowledged_by TEXT,
    cleared_at TEXT,
    PRIMARY KEY (id)
);
CREATE INDEX alarm_state ON alarm (state);
CREATE TABLE pin_bar (
    slot TEXT NOT NULL,
    credential TEXT NOT NULL,
    tries_before INTEGER,
    at TEXT NOT NULL,
    PRIMARY KEY (slot)
);
CREATE TABLE pool_round (
    round_id TEXT NOT NULL,
    pool TEXT NOT NULL,
    "key" TEXT NOT NULL,
    state TEXT NOT NULL,
    started_at TEXT NOT NULL,
    finished_at TEXT,
    plan_only INTEGER DEFAULT '0' NOT NULL,
    note TEXT DEFAULT '' NOT NULL,
    PRIMARY KEY (round_id),
    UNIQUE ("key")
);
CREATE TABLE pool_item (
    round_id TEXT NOT NULL,
    account TEXT NOT NULL,
    place INTEGER NOT NULL,
    bank TEXT NOT NULL,
    balance_task TEXT NOT NULL,
    sweep_task TEXT NOT NULL,
    balance_fen BIGINT,
    threshold_fen BIGINT NOT NULL,
    amount_fen BIGINT,
    reason TEXT DEFAULT '' NOT NULL,
    rule TEXT DEFAULT '' NOT NULL,
    working TEXT DEFAULT '' NOT NULL,
    state TEXT NOT NULL,
    PRIMARY KEY (round_id, account)
);
CREATE INDEX pool_item_sweep ON pool_item (sweep_task);
CREATE INDEX pool_item_balance ON pool_item (balance_task);
CREATE TABLE payment (
    task_seq BIGINT NOT NULL,
    bank TEXT NOT NULL,
    payer TEXT NOT NULL,
    payee TEXT NOT NULL,
    amount_fen BIGINT NOT NULL,
    sent_at TEXT NOT NULL,
    waited_s FLOAT DEFAULT '0' NOT NULL,
    watched_s FLOAT,
    PRIMARY KEY (task_seq)
);
CREATE INDEX payment_payer ON payment (payer, sent_at);
CREATE INDEX payment_watched ON payment (bank, payer, task_seq) WHERE watched_s IS NOT NULL;
CREATE TABLE payment_row (
    task_seq BIGINT NOT NULL,
    place BIGINT NOT NULL,
    payer TEXT NOT NULL,
    payee TEXT NOT NULL,
    amount_fen BIGINT NOT NULL,
    sent_at TEXT NOT NULL,
    client_ref TEXT NOT NULL,
    bank_ref TEXT DEFAULT '' NOT NULL,
    PRIMARY KEY (task_seq, place)
);
CREATE INDEX payment_row_payer ON payment_row (payer, sent_at);
CREATE TABLE console_user (
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    password TEXT NOT NULL,
    totp TEXT DEFAULT '' NOT NULL,
    totp_step BIGINT DEFAULT '0' NOT NULL,
    disabled INTEGER DEFAULT '0' NOT NULL,
    created_at TEXT NOT NULL,
    changed_at TEXT NOT NULL,
    PRIMARY KEY (name)
);
CREATE TABLE console_session (
    digest TEXT NOT NULL,
    name TEXT NOT NULL,
    created_at TEXT NOT NULL,
    seen_at TEXT NOT NULL,
    origin TEXT NOT NULL,
    PRIMARY KEY (digest)
);
CREATE INDEX console_session_name ON console_session (name);
CREATE TABLE configuration (
    machine TEXT NOT NULL,
    number BIGINT NOT NULL,
    digest TEXT NOT NULL,
    at TEXT NOT NULL,
    who TEXT NOT NULL,
    how TEXT NOT NULL,
    note TEXT NOT NULL,
    state TEXT NOT NULL,
    before BIGINT,
    confirm_until TEXT,
    ended_by TEXT DEFAULT '' NOT NULL,
    reason TEXT DEFAULT '' NOT NULL,
    text BLOB NOT NULL,
    PRIMARY KEY (machine, number)
);
CREATE TABLE alarm_notice (
    id TEXT NOT NULL,
    channel TEXT NOT NULL,
    alarm_id TEXT NOT NULL,
    what TEXT NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    cause TEXT NOT NULL,
    count INTEGER NOT NULL,
    raised_at TEXT NOT NULL,
    noted_at TEXT NOT NULL,
    state TEXT NOT NULL,
    ended_at TEXT,
    reason TEXT DEFAULT '' NOT NULL,
    PRIMARY KEY (id)
);
CREATE INDEX alarm_notice_state ON alarm_notice (state, noted_at);
CREATE INDEX alarm_notice_alarm ON alarm_notice (alarm_id, channel);
PRAGMA user_version = 6;
INSERT INTO task (seq, task_id, client, bank, kind, priority, state, submitted_at, expires_at, offers, body, body_digest, client_ref, sent_at, inquire_at, updated_at, delivery) VALUES
    (1, 'T1', 'erp-1', 'pingan', 'transfer', 5, 'unknown', '2026-01-05T01:00:00.000+00:00', '2026-01-06T01:00:00.000+00:00', 1, '{"kind":"transfer","params":{"amount":"12.50","currency":"CNY","payee":{"account":"99000000000102","name":"云阶示例贸易有限公司"},"payer":{"account":"99000000000101"}}}', 'd1', 'F0000000000000000001', '2026-01-05T01:00:01.000+00:00', '2026-01-05T01:01:01.000+00:00', '2026-01-05T01:00:02.000+00:00', 0),
    (2, 'T2', 'erp-1', 'pingan', 'balance', 5, 'queued', '2026-01-05T01:00:00.000+00:00', '2026-01-06T01:00:00.000+00:00', 0, NULL, NULL, NULL, NULL, NULL, '2026-01-05T01:00:00.000+00:00', 0),
    (3, 'T3', 'erp-2', 'pingan', 'balance', 9, 'rejected', '2026-01-05T01:00:00.000+00:00', '2026-01-06T01:00:00.000+00:00', 1, NULL, NULL, NULL, NULL, NULL, '2026-01-05T01:00:03.000+00:00', 1);
INSERT INTO task_event (seq, task_seq, at, event, state, cause, configuration) VALUES (1, 1, '2026-01-05T01:00:00.000+00:00', 'submitted', 'queued', 'task.submit of client erp-1', 'c1');
INSERT INTO event_link (seq, first_event, last_event, digest, at) VALUES (1, 1, 1, '16ac96215ad70f388236297c36f1820220e08e48c00e35da8a91197003a0c33c', '2026-01-05T01:00:00.000+00:00');
INSERT INTO message (seq, task_seq, bank, direction, at, correlation, digest, bytes) VALUES (1, 1, '', 'sent', '2026-01-05T01:00:01.000+00:00', 'c-1', 'd2', x'0102');
INSERT INTO resolution (task_seq, outcome, evidence, proposed_by, proposed_at) VALUES (1, 'succeeded', 'statement of 5 January, line 7', 'li', '2026-01-05T02:00:00.000+00:00');
INSERT INTO lane (bank, drained) VALUES ('pingan', 1);
INSERT INTO payment (task_seq, bank, payer, payee, amount_fen, sent_at, waited_s) VALUES (1, 'pingan', '99000000000101', '99000000000102', 1250, '2026-01-05T01:00:01.000+00:00', 7.5);
