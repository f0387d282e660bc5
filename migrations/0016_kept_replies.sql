-- 0016, agent-runtime: a run that was put back with a reply that it keeps is for whoever can read it.

-- The door of the release before the queues: it knows of no line, and nothing of a reply that was kept.
CREATE OR REPLACE FUNCTION door_claim_run(worker uuid, at timestamptz, until timestamptz)
    RETURNS TABLE (tenant_id uuid, database text, schema text, run_id uuid)
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    UPDATE belljar.run r
    SET status = 'running', leased_by = worker, leased_until = until, started_at = at
    FROM (
        SELECT q.tenant_id, q.run_id, t.database, t.schema
        FROM belljar.run q JOIN belljar.tenant t ON t.tenant_id = q.tenant_id
        WHERE q.status = 'queued' AND q.said IS NULL AND q.pending IS NULL AND NOT t.suspended
        ORDER BY q.created_at LIMIT 1 FOR UPDATE OF q SKIP LOCKED
    ) c
    WHERE r.tenant_id = c.tenant_id AND r.run_id = c.run_id
    RETURNING r.tenant_id, c.database, c.schema, r.run_id;
END;

-- billing-meter: others have taken what was held, as its owner had gone silent. What the owner did under it is void.
ALTER TABLE hold ADD COLUMN lapsed boolean NOT NULL DEFAULT false;
GRANT UPDATE (lapsed) ON hold TO belljar_app;

-- billing-meter: windows by age. Those that are over are forgotten when another of their budget begins.
CREATE INDEX budget_window_age ON budget_window (tenant_id, budget_id, starts_at);

-- Holds of calls whose process has died, so many at most, are given back to their windows and forgotten. A run that goes on
-- settles its own, however late. Answers how many. `(SELECT .. LIMIT 1) IS NULL` as in `door_queues`.
CREATE FUNCTION door_sweep_holds(rows integer)
    RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    WITH dead AS MATERIALIZED (
        SELECT h.tenant_id, h.owner_id, h.budget_id, h.subject, h.starts_at
        FROM belljar.hold h
        WHERE h.until < now() - interval '24 hours' AND (
            SELECT true FROM belljar.run r
            WHERE r.tenant_id = h.tenant_id AND r.run_id = h.owner_id
              AND r.status IN ('queued', 'running', 'waiting_for_approval')
            LIMIT 1
        ) IS NULL
        LIMIT rows FOR UPDATE OF h SKIP LOCKED
    ), gone AS (
        DELETE FROM belljar.hold h USING dead d
        WHERE h.tenant_id = d.tenant_id AND h.owner_id = d.owner_id AND h.budget_id = d.budget_id
          AND h.subject = d.subject AND h.starts_at = d.starts_at
        RETURNING h.tenant_id, h.budget_id, h.subject, h.starts_at, h.amount
    ), locked AS (
        SELECT w.tenant_id, w.budget_id, w.subject, w.starts_at, g.amount
        FROM belljar.budget_window w
        JOIN (
            SELECT o.tenant_id, o.budget_id, o.subject, o.starts_at, sum(o.amount) AS amount FROM gone o
            GROUP BY o.tenant_id, o.budget_id, o.subject, o.starts_at
        ) g ON w.tenant_id = g.tenant_id AND w.budget_id = g.budget_id AND w.subject = g.subject
            AND w.starts_at = g.starts_at
        ORDER BY w.tenant_id, w.budget_id, w.subject, w.starts_at
        FOR UPDATE OF w
    ), freed AS (
        UPDATE belljar.budget_window w SET held = w.held - l.amount FROM locked l
        WHERE w.tenant_id = l.tenant_id AND w.budget_id = l.budget_id AND w.subject = l.subject
          AND w.starts_at = l.starts_at
    )
    SELECT count(*) FROM gone;
END;
-- The door sees the holds that it takes, and what it gives them back to.
CREATE POLICY door ON hold FOR ALL TO belljar_door USING (until < now() - interval '24 hours');
GRANT SELECT, UPDATE (amount), DELETE ON hold TO belljar_door;
CREATE POLICY door ON budget_window FOR ALL TO belljar_door USING (true);
GRANT SELECT (tenant_id, budget_id, subject, starts_at, held), UPDATE (held) ON budget_window TO belljar_door;

GRANT CREATE ON SCHEMA belljar TO belljar_door;
REVOKE EXECUTE ON FUNCTION door_sweep_holds(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION door_sweep_holds(integer) TO belljar_app;
ALTER FUNCTION door_sweep_holds(integer) OWNER TO belljar_door;
REVOKE CREATE ON SCHEMA belljar FROM belljar_door;
