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
