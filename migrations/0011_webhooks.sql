-- 0011, agent-config: webhooks, and what is told to them.

-- `sealed` is the key that signs. After a rotation the key before it signs too, until `previous_until`.
CREATE TABLE webhook (
    tenant_id                 uuid NOT NULL REFERENCES tenant ON DELETE CASCADE,
    webhook_id                uuid NOT NULL,
    url                       text NOT NULL,
    events                    text[] NOT NULL,
    enabled                   boolean NOT NULL DEFAULT true,
    disabled_reason           text,
    failing_since             timestamptz,
    sealed                    bytea NOT NULL,
    data_key_version          integer NOT NULL,
    previous_sealed           bytea,
    previous_data_key_version integer,
    previous_until            timestamptz,
    created_at                timestamptz NOT NULL,
    updated_at                timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, webhook_id),
    FOREIGN KEY (tenant_id, data_key_version) REFERENCES data_key (tenant_id, version),
    FOREIGN KEY (tenant_id, previous_data_key_version) REFERENCES data_key (tenant_id, version),
    CHECK ((previous_sealed IS NULL) = (previous_data_key_version IS NULL)),
    CHECK ((previous_sealed IS NULL) = (previous_until IS NULL))
);
CALL wall('webhook');
GRANT SELECT, INSERT, UPDATE, DELETE ON webhook TO belljar_app;
CREATE POLICY door ON webhook FOR SELECT TO belljar_door USING (enabled);
GRANT SELECT (tenant_id, webhook_id, enabled, failing_since) ON webhook TO belljar_door;

-- One notice for one webhook, written in the transaction that makes it true. Whoever sends it counts the attempt and
-- moves `next_attempt_at` on first: so no other process sends it meanwhile, and one that dies leaves it due again.
-- What a run said goes when the run goes.
CREATE TABLE delivery (
    tenant_id       uuid NOT NULL,
    webhook_id      uuid NOT NULL,
    notice_id       uuid NOT NULL,
    event           text NOT NULL,
    data            jsonb NOT NULL,
    run_id          uuid,
    status          text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'delivered', 'failed')),
    attempts        integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz,
    attempted_at    timestamptz,
    response_status integer,
    error           text,
    duration_ms     integer,
    created_at      timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, webhook_id, notice_id),
    FOREIGN KEY (tenant_id, webhook_id) REFERENCES webhook (tenant_id, webhook_id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, run_id) REFERENCES run (tenant_id, run_id) ON DELETE CASCADE,
    CHECK ((status = 'pending') = (next_attempt_at IS NOT NULL))
);
CREATE INDEX delivery_pending ON delivery (tenant_id, webhook_id, next_attempt_at) WHERE status = 'pending';
CREATE INDEX delivery_by_run ON delivery (tenant_id, run_id) WHERE run_id IS NOT NULL;
CALL wall('delivery');
GRANT SELECT, INSERT, UPDATE, DELETE ON delivery TO belljar_app;
CREATE POLICY door ON delivery FOR SELECT TO belljar_door USING (status = 'pending');
GRANT SELECT (tenant_id, webhook_id, status, next_attempt_at) ON delivery TO belljar_door;

-- Webhooks to which something is due, at most `each` of one tenant: first those that are not failing, of them the longest
-- waiting first. It steps from webhook to webhook, so that a tenant's backlog costs one look, whatever its length.
CREATE FUNCTION door_due_webhooks(at timestamptz, each bigint, rows integer)
    RETURNS TABLE (tenant_id uuid, database text, schema text, webhook_id uuid, failing boolean)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    WITH RECURSIVE w AS (
        (SELECT d.tenant_id, d.webhook_id FROM belljar.delivery d
         WHERE d.status = 'pending' ORDER BY d.tenant_id, d.webhook_id LIMIT 1)
        UNION ALL
        SELECT n.tenant_id, n.webhook_id FROM w CROSS JOIN LATERAL (
            SELECT d.tenant_id, d.webhook_id FROM belljar.delivery d
            WHERE d.status = 'pending' AND (d.tenant_id, d.webhook_id) > (w.tenant_id, w.webhook_id)
            ORDER BY d.tenant_id, d.webhook_id LIMIT 1
        ) n
    ), due AS (
        SELECT w.tenant_id, w.webhook_id, f.next_attempt_at, h.failing_since IS NOT NULL AS failing,
               row_number() OVER (
                   PARTITION BY w.tenant_id ORDER BY h.failing_since IS NOT NULL, f.next_attempt_at
               ) AS place
        FROM w
        JOIN belljar.webhook h ON h.tenant_id = w.tenant_id AND h.webhook_id = w.webhook_id AND h.enabled
        CROSS JOIN LATERAL (
            SELECT d.next_attempt_at FROM belljar.delivery d
            WHERE d.tenant_id = w.tenant_id AND d.webhook_id = w.webhook_id AND d.status = 'pending'
              AND d.next_attempt_at <= at
            ORDER BY d.next_attempt_at LIMIT 1
        ) f
    )
    SELECT due.tenant_id, t.database, t.schema, due.webhook_id, due.failing
    FROM due JOIN belljar.tenant t ON t.tenant_id = due.tenant_id
    WHERE due.place <= each AND NOT t.suspended
    ORDER BY due.failing, due.next_attempt_at LIMIT rows;
END;

GRANT CREATE ON SCHEMA belljar TO belljar_door;
REVOKE EXECUTE ON FUNCTION door_due_webhooks(timestamptz, bigint, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION door_due_webhooks(timestamptz, bigint, integer) TO belljar_app;
ALTER FUNCTION door_due_webhooks(timestamptz, bigint, integer) OWNER TO belljar_door;
REVOKE CREATE ON SCHEMA belljar FROM belljar_door;
