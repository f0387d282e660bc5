-- 0008, agent-runtime and agent-config: runs that any process resumes, outward effects, approvals. The release before this
-- one works on it: every new column has a default, and the doors it uses stay.

-- `fence` counts who has taken the run: a write names the one it was made under. `attempts` counts the processes that
-- took it over from one that went silent. `pending` is the reply of the model to the step that is not committed yet.
-- `wake_at`: a run that waits for an approval goes on then, decided or not.
ALTER TABLE run
    ADD COLUMN fence    bigint NOT NULL DEFAULT 0,
    ADD COLUMN attempts integer NOT NULL DEFAULT 1,
    ADD COLUMN pending  jsonb,
    ADD COLUMN wake_at  timestamptz;
CREATE INDEX run_waiting ON run (wake_at) WHERE status = 'waiting_for_approval';
ALTER POLICY door ON run USING (status IN ('queued', 'running', 'waiting_for_approval'));
GRANT UPDATE (fence, attempts) ON run TO belljar_door;

-- A call is about to send: committed before it connects. No row means that nothing has left. `keyed`: the request carries
-- the call's idempotency key. `run_id` is NULL for a direct call.
CREATE TABLE intent (
    tenant_id uuid NOT NULL REFERENCES tenant ON DELETE CASCADE,
    call_id   uuid NOT NULL,
    attempt   integer NOT NULL,
    keyed     boolean NOT NULL,
    run_id    uuid,
    method    text NOT NULL,
    target    text NOT NULL,
    sent_at   timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, call_id, attempt, keyed),
    FOREIGN KEY (tenant_id, run_id) REFERENCES run (tenant_id, run_id) ON DELETE CASCADE
);
CREATE INDEX intent_by_run ON intent (tenant_id, run_id);
CALL wall('intent');
GRANT SELECT, INSERT ON intent TO belljar_app;

-- A call that waits, or waited, for somebody's word. `arguments` are as the model asked; `decided_arguments` as somebody
-- changed them.
CREATE TABLE approval (
    tenant_id         uuid NOT NULL,
    call_id           uuid NOT NULL,
    run_id            uuid NOT NULL,
    tool              text NOT NULL,
    function          text NOT NULL,
    arguments         jsonb NOT NULL,
    requested_at      timestamptz NOT NULL,
    expires_at        timestamptz NOT NULL,
    decision          text CHECK (decision IN ('approve', 'deny')),
    decided_arguments jsonb,
    reason            text,
    decided_by        text,
    api_key_id        uuid,
    decided_at        timestamptz,
    PRIMARY KEY (tenant_id, call_id),
    FOREIGN KEY (tenant_id, run_id) REFERENCES run (tenant_id, run_id) ON DELETE CASCADE,
    CHECK ((decision IS NULL) = (decided_at IS NULL))
);
CREATE INDEX approval_by_run ON approval (tenant_id, run_id);
CALL wall('approval');
GRANT SELECT, INSERT, UPDATE (decision, decided_arguments, reason, decided_by, api_key_id, decided_at) ON approval
    TO belljar_app;

-- Which of a binding's functions wait for an approval, and for how long. NULL: none, and the default.
ALTER TABLE binding
    ADD COLUMN approval                 jsonb,
    ADD COLUMN approval_expires_seconds integer CHECK (approval_expires_seconds > 0);

-- A running run whose lease has passed becomes this worker's, and counts one more attempt.
CREATE FUNCTION door_take_abandoned_run(worker uuid, at timestamptz, until timestamptz)
    RETURNS TABLE (tenant_id uuid, database text, schema text, run_id uuid, fence bigint, attempts integer)
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    UPDATE belljar.run r
    SET leased_by = worker, leased_until = until, fence = r.fence + 1, attempts = r.attempts + 1
    FROM (
        SELECT q.tenant_id, q.run_id, t.database, t.schema
        FROM belljar.run q JOIN belljar.tenant t ON t.tenant_id = q.tenant_id
        WHERE q.status = 'running' AND q.leased_until < at
        ORDER BY q.leased_until LIMIT 1 FOR UPDATE OF q SKIP LOCKED
    ) c
    WHERE r.tenant_id = c.tenant_id AND r.run_id = c.run_id
    RETURNING r.tenant_id, c.database, c.schema, r.run_id, r.fence, r.attempts;
END;

-- Runs whose wait for an approval is over are queued again. How many.
CREATE FUNCTION door_wake_runs(at timestamptz)
    RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    WITH woken AS (
        UPDATE belljar.run r SET status = 'queued'
        WHERE r.status = 'waiting_for_approval' AND r.wake_at <= at
        RETURNING 1
    )
    SELECT count(*) FROM woken;
END;

GRANT CREATE ON SCHEMA belljar TO belljar_door;
DO $$
DECLARE
    door regprocedure;
BEGIN
    FOR door IN
        SELECT oid FROM pg_proc
        WHERE pronamespace = 'belljar'::regnamespace AND proname LIKE 'door\_%' AND proowner <> 'belljar_door'::regrole
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', door);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO belljar_app', door);
        EXECUTE format('ALTER FUNCTION %s OWNER TO belljar_door', door);
    END LOOP;
END
$$;
REVOKE CREATE ON SCHEMA belljar FROM belljar_door;
