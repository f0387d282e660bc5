-- 0005, billing-meter: price books and usage events.

-- Not a tenant table: prices are public to all tenants. A version never changes.
CREATE TABLE price_book (
    version    integer PRIMARY KEY CHECK (version > 0),
    currency   text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    body       jsonb NOT NULL,
    created_at timestamptz NOT NULL
);
GRANT SELECT, INSERT ON price_book TO belljar_app;

-- What was used, and what it costs by which price book. Written in the transaction of what it bills; never changes, and
-- outlives the run it names. `dedup` names the cause, so that no cause is billed twice.
CREATE TABLE usage_event (
    tenant_id        uuid NOT NULL REFERENCES tenant ON DELETE CASCADE,
    event_id         uuid NOT NULL,
    dedup            text NOT NULL,
    occurred_at      timestamptz NOT NULL,
    kind             text NOT NULL,
    quantity         numeric NOT NULL CHECK (quantity >= 0),
    unit_price       numeric NOT NULL CHECK (unit_price >= 0),
    amount           numeric NOT NULL CHECK (amount >= 0),
    currency         text NOT NULL,
    price_book       integer NOT NULL REFERENCES price_book (version),
    provider         text,
    model            text,
    tool             text,
    function         text,
    agent_id         uuid,
    run_id           uuid,
    call_id          uuid,
    api_key_id       uuid,
    external_user_id text,
    PRIMARY KEY (tenant_id, event_id),
    CONSTRAINT usage_event_dedup UNIQUE (tenant_id, dedup)
);
CREATE INDEX usage_event_by_time ON usage_event (tenant_id, occurred_at);
CALL wall('usage_event');
GRANT SELECT, INSERT ON usage_event TO belljar_app;
