-- 0006, tenancy: the doors. All that acts before a tenant is known, and nothing else.
--
-- Owned by belljar_door, which owns no table, cannot log in and is named by the policies of the few tables it reads.
-- Each returns the least that its caller needs.

-- A key's tenant, by the hash of the key. The caller has compared nothing yet: it checks expiry and revocation.
CREATE FUNCTION door_resolve_api_key(key_hash bytea)
    RETURNS TABLE (tenant_id uuid, database text, schema text, suspended boolean, api_key_id uuid, scopes text[],
                   agents uuid[], external_user_id text, expires_at timestamptz, revoked_at timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT t.tenant_id, t.database, t.schema, t.suspended, k.api_key_id, k.scopes,
           k.agents, k.external_user_id, k.expires_at, k.revoked_at
    FROM belljar.api_key k JOIN belljar.tenant t ON t.tenant_id = k.tenant_id
    WHERE k.hash = key_hash;
END;

-- The operator opens a tenant.
CREATE FUNCTION door_operator(id uuid)
    RETURNS TABLE (tenant_id uuid, database text, schema text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT t.tenant_id, t.database, t.schema FROM belljar.tenant t WHERE t.tenant_id = id;
END;

-- The operator's list of tenants, newest first.
CREATE FUNCTION door_tenants(after uuid, rows integer)
    RETURNS TABLE (tenant_id uuid, database text, schema text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT t.tenant_id, t.database, t.schema FROM belljar.tenant t
    WHERE after IS NULL OR t.tenant_id < after
    ORDER BY t.tenant_id DESC LIMIT rows;
END;

-- The oldest queued run of a tenant that is not suspended becomes this worker's.
CREATE FUNCTION door_claim_run(worker uuid, at timestamptz, until timestamptz)
    RETURNS TABLE (tenant_id uuid, database text, schema text, run_id uuid)
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    UPDATE belljar.run r
    SET status = 'running', leased_by = worker, leased_until = until, started_at = at
    FROM (
        SELECT q.tenant_id, q.run_id, t.database, t.schema
        FROM belljar.run q JOIN belljar.tenant t ON t.tenant_id = q.tenant_id
        WHERE q.status = 'queued' AND NOT t.suspended
        ORDER BY q.created_at LIMIT 1 FOR UPDATE OF q SKIP LOCKED
    ) c
    WHERE r.tenant_id = c.tenant_id AND r.run_id = c.run_id
    RETURNING r.tenant_id, c.database, c.schema, r.run_id;
END;

-- A running run whose lease has passed becomes this worker's.
CREATE FUNCTION door_claim_expired_run(worker uuid, at timestamptz, until timestamptz)
    RETURNS TABLE (tenant_id uuid, database text, schema text, run_id uuid)
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    UPDATE belljar.run r
    SET leased_by = worker, leased_until = until
    FROM (
        SELECT q.tenant_id, q.run_id, t.database, t.schema
        FROM belljar.run q JOIN belljar.tenant t ON t.tenant_id = q.tenant_id
        WHERE q.status = 'running' AND q.leased_until < at
        ORDER BY q.leased_until LIMIT 1 FOR UPDATE OF q SKIP LOCKED
    ) c
    WHERE r.tenant_id = c.tenant_id AND r.run_id = c.run_id
    RETURNING r.tenant_id, c.database, c.schema, r.run_id;
END;

-- A version whose admission has stopped becomes this process's.
CREATE FUNCTION door_claim_version(at timestamptz, until timestamptz)
    RETURNS TABLE (tenant_id uuid, database text, schema text, tool_id uuid, hash bytea)
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    UPDATE belljar.tool_version v
    SET claimed_until = until
    FROM (
        SELECT q.tenant_id, q.tool_id, q.hash, t.database, t.schema
        FROM belljar.tool_version q JOIN belljar.tenant t ON t.tenant_id = q.tenant_id
        WHERE q.status = 'compiling' AND q.claimed_until < at
        ORDER BY q.claimed_until LIMIT 1 FOR UPDATE OF q SKIP LOCKED
    ) c
    WHERE v.tenant_id = c.tenant_id AND v.tool_id = c.tool_id AND v.hash = c.hash
    RETURNING v.tenant_id, c.database, c.schema, v.tool_id, v.hash;
END;

-- FOR UPDATE asks for UPDATE on some column of the locked table; the doors have that. Ownership moves while belljar_door
-- may create in the schema, and no longer.
GRANT CREATE ON SCHEMA belljar TO belljar_door;
DO $$
DECLARE
    door regprocedure;
BEGIN
    FOR door IN
        SELECT oid FROM pg_proc WHERE pronamespace = 'belljar'::regnamespace AND proname LIKE 'door\_%'
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', door);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO belljar_app', door);
        EXECUTE format('ALTER FUNCTION %s OWNER TO belljar_door', door);
    END LOOP;
END
$$;
REVOKE CREATE ON SCHEMA belljar FROM belljar_door;
