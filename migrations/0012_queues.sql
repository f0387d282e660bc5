-- 0012, agent-runtime: a queue for every tenant, and a line for every conversation. The release before this one works on
-- it: it puts nobody in line, and its door passes by who stands there.

-- What the user says in a run that stands in line behind another of its conversation. Until it begins it is no message
-- of the conversation: the run before has not answered yet.
ALTER TABLE run ADD COLUMN said jsonb;

-- One run at a time per conversation; those in line are none yet.
DROP INDEX run_active;
CREATE UNIQUE INDEX run_active ON run (tenant_id, conversation_id)
    WHERE status IN ('running', 'waiting_for_approval') OR (status = 'queued' AND said IS NULL);
-- A tenant's queue, in its order.
DROP INDEX run_queued;
CREATE INDEX run_queued ON run (tenant_id, created_at, run_id) WHERE status = 'queued';

-- The doors of queues look at plans.
GRANT SELECT ON plan TO belljar_door;

-- Every tenant of whom a run waits or is driven, with what its plan gives: how many wait, how many of them could begin
-- now (of those in line in one conversation only the first can), how many are driven, and how many of those by others
-- than this worker. Read from the partial indexes of either status; `(SELECT .. LIMIT 1) IS NULL`, because NOT EXISTS may be
-- planned as one pass over all runs there ever were.
CREATE FUNCTION door_queues(worker uuid)
    RETURNS TABLE (tenant_id uuid, suspended boolean, weight integer, runs_max integer,
                   waiting bigint, ready bigint, running bigint, elsewhere bigint, oldest timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT t.tenant_id, t.suspended,
           coalesce((t.overrides ->> 'weight')::integer, p.weight),
           coalesce((t.overrides ->> 'concurrent_runs')::integer, p.concurrent_runs),
           a.waiting, CASE WHEN t.suspended THEN 0 ELSE a.ready END, a.running, a.elsewhere, a.oldest
    FROM (
        SELECT r.tenant_id,
               count(*) FILTER (WHERE r.status = 'queued') AS waiting,
               count(*) FILTER (WHERE r.status = 'queued' AND (r.said IS NULL OR (
                   SELECT true FROM belljar.run o
                   WHERE o.tenant_id = r.tenant_id AND o.conversation_id = r.conversation_id
                     AND (o.status IN ('running', 'waiting_for_approval') OR (o.status = 'queued' AND o.said IS NULL))
                   LIMIT 1
               ) IS NULL)) AS ready,
               count(*) FILTER (WHERE r.status = 'running') AS running,
               count(*) FILTER (WHERE r.status = 'running' AND r.leased_by IS DISTINCT FROM worker) AS elsewhere,
               min(r.created_at) FILTER (WHERE r.status = 'queued') AS oldest
        FROM (
            SELECT w.tenant_id, w.conversation_id, w.status, w.said, w.leased_by, w.created_at
            FROM belljar.run w WHERE w.status = 'queued'
            UNION ALL
            SELECT d.tenant_id, d.conversation_id, d.status, NULL, d.leased_by, d.created_at
            FROM belljar.run d WHERE d.status = 'running'
        ) r
        GROUP BY r.tenant_id
    ) a
    JOIN belljar.tenant t ON t.tenant_id = a.tenant_id
    JOIN belljar.plan p ON p.name = t.plan;
END;

-- The oldest run of a tenant's queue that can begin becomes this worker's. One in line can when no other of its
-- conversation is before it.
CREATE FUNCTION door_take_run_of(tenant uuid, worker uuid, at timestamptz, until timestamptz)
    RETURNS TABLE (tenant_id uuid, database text, schema text, run_id uuid, fence bigint)
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    UPDATE belljar.run r
    SET status = 'running', leased_by = worker, leased_until = until, fence = r.fence + 1,
        started_at = coalesce(r.started_at, at)
    FROM (
        SELECT q.tenant_id, q.run_id, t.database, t.schema
        FROM belljar.run q JOIN belljar.tenant t ON t.tenant_id = q.tenant_id
        WHERE q.tenant_id = door_take_run_of.tenant AND q.status = 'queued' AND NOT t.suspended
          AND (q.said IS NULL OR (
              SELECT true FROM belljar.run o
              WHERE o.tenant_id = q.tenant_id AND o.conversation_id = q.conversation_id
                AND (o.status IN ('running', 'waiting_for_approval')
                     OR (o.status = 'queued' AND (o.said IS NULL OR (o.created_at, o.run_id) < (q.created_at, q.run_id))))
              LIMIT 1
          ) IS NULL)
        ORDER BY q.created_at, q.run_id LIMIT 1 FOR UPDATE OF q SKIP LOCKED
    ) c
    WHERE r.tenant_id = c.tenant_id AND r.run_id = c.run_id
    RETURNING r.tenant_id, c.database, c.schema, r.run_id, r.fence;
END;

-- The door of the release before this one: it knows of no line.
CREATE OR REPLACE FUNCTION door_claim_run(worker uuid, at timestamptz, until timestamptz)
    RETURNS TABLE (tenant_id uuid, database text, schema text, run_id uuid)
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    UPDATE belljar.run r
    SET status = 'running', leased_by = worker, leased_until = until, started_at = at
    FROM (
        SELECT q.tenant_id, q.run_id, t.database, t.schema
        FROM belljar.run q JOIN belljar.tenant t ON t.tenant_id = q.tenant_id
        WHERE q.status = 'queued' AND q.said IS NULL AND NOT t.suspended
        ORDER BY q.created_at LIMIT 1 FOR UPDATE OF q SKIP LOCKED
    ) c
    WHERE r.tenant_id = c.tenant_id AND r.run_id = c.run_id
    RETURNING r.tenant_id, c.database, c.schema, r.run_id;
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
