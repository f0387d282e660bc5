-- 0009, tenancy: what was asked with an `Idempotency-Key`, and the rate that a key's caller may ask at. The release before
-- this one works on it: both tables are new, and the door that it uses stays.

-- One request, and what it came to. The client's key is kept as its SHA-256: it may be anything. `holder` is the API key
-- that asked; nil for the operator. Of what follows, one holds:
--   `status`, `location`, `body`: the answer, sealed, since it may hold a fresh API key.
--   `run_id`: the run that was started. Until `waits_until` the first request waits for its end.
--   `call_id`: the tool call that was made.
--   `running_until`: it is being done by `running_by`, which renews. Past it, whoever asks again does it.
CREATE TABLE idempotency (
    tenant_id        uuid NOT NULL REFERENCES tenant ON DELETE CASCADE,
    holder           uuid NOT NULL,
    key              bytea NOT NULL,
    fingerprint      bytea NOT NULL,
    run_id           uuid,
    waits_until      timestamptz,
    call_id          uuid,
    running_by       uuid,
    running_until    timestamptz,
    status           smallint,
    location         text,
    body             bytea,
    data_key_version integer,
    created_at       timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, holder, key),
    FOREIGN KEY (tenant_id, data_key_version) REFERENCES data_key (tenant_id, version)
);
CREATE INDEX idempotency_age ON idempotency (created_at);
CALL wall('idempotency');
GRANT SELECT, INSERT, UPDATE, DELETE ON idempotency TO belljar_app;
-- The sweep sees what nobody can be answered from any more.
CREATE POLICY door ON idempotency FOR ALL TO belljar_door USING (created_at < now() - interval '24 hours');
GRANT SELECT, DELETE ON idempotency TO belljar_door;

-- Not a tenant table: what the operator asked that is of no tenant that exists. Sealed under a key that is derived from
-- the master key.
CREATE TABLE operator_idempotency (
    key         bytea PRIMARY KEY,
    fingerprint bytea NOT NULL,
    answer      bytea,
    created_at  timestamptz NOT NULL
);
GRANT SELECT, INSERT, UPDATE, DELETE ON operator_idempotency TO belljar_app;

-- Forgets requests of more than 24 hours ago, so many at most. Answers how many.
CREATE FUNCTION door_sweep_idempotency(rows integer)
    RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    WITH swept AS (
        DELETE FROM belljar.idempotency i
        USING (
            SELECT o.tenant_id, o.holder, o.key FROM belljar.idempotency o
            WHERE o.created_at < now() - interval '24 hours'
            ORDER BY o.created_at LIMIT rows
        ) old
        WHERE i.tenant_id = old.tenant_id AND i.holder = old.holder AND i.key = old.key
        RETURNING 1
    )
    SELECT count(*) FROM swept;
END;

-- A key's tenant, as `door_resolve_api_key`, and how many requests a minute the plan and its overrides allow.
CREATE FUNCTION door_resolve_caller(key_hash bytea)
    RETURNS TABLE (tenant_id uuid, database text, schema text, suspended boolean, api_key_id uuid, scopes text[],
                   agents uuid[], external_user_id text, expires_at timestamptz, revoked_at timestamptz,
                   requests_per_minute integer)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT t.tenant_id, t.database, t.schema, t.suspended, k.api_key_id, k.scopes,
           k.agents, k.external_user_id, k.expires_at, k.revoked_at,
           coalesce((t.overrides ->> 'requests_per_minute')::integer, p.requests_per_minute)
    FROM belljar.api_key k
    JOIN belljar.tenant t ON t.tenant_id = k.tenant_id
    JOIN belljar.plan p ON p.name = t.plan
    WHERE k.hash = key_hash;
END;
GRANT SELECT ON plan TO belljar_door;

GRANT CREATE ON SCHEMA belljar TO belljar_door;
DO $$
DECLARE
    door regprocedure;
BEGIN
    FOREACH door IN ARRAY ARRAY['door_sweep_idempotency(integer)', 'door_resolve_caller(bytea)']::regprocedure[]
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', door);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO belljar_app', door);
        EXECUTE format('ALTER FUNCTION %s OWNER TO belljar_door', door);
    END LOOP;
END
$$;
REVOKE CREATE ON SCHEMA belljar FROM belljar_door;
