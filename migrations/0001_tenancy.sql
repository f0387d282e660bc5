-- 0001, tenancy: roles, plans, tenants, API keys, data keys.
--
-- Runs as the owner (not a superuser; CREATEROLE, or both roles exist and the owner is a member of belljar_door), with
-- search_path set to the schema of the shared placement, `belljar`.
--
-- Rules for every tenant table, checked by a test that reads the catalog: `tenant_id` comes first in the primary key and
-- in every unique constraint, is in every foreign key, and row level security is enabled, forced and has a policy.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'belljar_app') THEN
        CREATE ROLE belljar_app LOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'belljar_door') THEN
        CREATE ROLE belljar_door NOLOGIN;
    END IF;
    IF NOT pg_has_role(current_user, 'belljar_door', 'MEMBER') THEN
        EXECUTE format('GRANT belljar_door TO %I', current_user);
    END IF;
END
$$;

GRANT USAGE ON SCHEMA belljar TO belljar_app, belljar_door;

-- The tenant of this transaction; NULL, and so no rows, outside of a TenantTx. After COMMIT the setting is ''.
CREATE FUNCTION current_tenant() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN nullif(current_setting('belljar.tenant', true), '')::uuid;
GRANT EXECUTE ON FUNCTION current_tenant() TO belljar_app;

-- Gives a table its wall.
CREATE PROCEDURE wall(name text)
    LANGUAGE plpgsql
AS $$
BEGIN
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
    EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
    EXECUTE format(
        'CREATE POLICY tenant ON %I TO belljar_app USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant())',
        name
    );
END
$$;
REVOKE EXECUTE ON PROCEDURE wall(text) FROM PUBLIC;

-- Not a tenant table: what the operator offers.
CREATE TABLE plan (
    name                  text PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9-]{0,29}$'),
    requests_per_minute   integer NOT NULL CHECK (requests_per_minute > 0),
    concurrent_runs       integer NOT NULL CHECK (concurrent_runs > 0),
    concurrent_tool_calls integer NOT NULL CHECK (concurrent_tool_calls > 0),
    tokens_per_month      bigint CHECK (tokens_per_month > 0),
    weight                integer NOT NULL CHECK (weight > 0),
    tool_limits           jsonb NOT NULL,
    upload_bytes          bigint NOT NULL CHECK (upload_bytes > 0),
    storage_bytes         bigint NOT NULL CHECK (storage_bytes > 0),
    monthly_fee           numeric NOT NULL CHECK (monthly_fee >= 0),
    currency              text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    updated_at            timestamptz NOT NULL
);
GRANT SELECT, INSERT, UPDATE ON plan TO belljar_app;

-- `database` and `schema` are the tenant's placement.
CREATE TABLE tenant (
    tenant_id  uuid PRIMARY KEY,
    name       text NOT NULL,
    plan       text NOT NULL REFERENCES plan (name),
    overrides  jsonb NOT NULL DEFAULT '{}',
    suspended  boolean NOT NULL DEFAULT false,
    settings   jsonb NOT NULL DEFAULT '{}',
    metadata   jsonb NOT NULL DEFAULT '{}',
    database   text NOT NULL,
    schema     text NOT NULL,
    created_at timestamptz NOT NULL
);
CALL wall('tenant');
GRANT SELECT, INSERT, UPDATE, DELETE ON tenant TO belljar_app;
CREATE POLICY door ON tenant FOR SELECT TO belljar_door USING (true);
GRANT SELECT ON tenant TO belljar_door;

-- `hash` is of a 256-bit random value: its index is not unique, so that it is no oracle.
CREATE TABLE api_key (
    tenant_id        uuid NOT NULL REFERENCES tenant ON DELETE CASCADE,
    api_key_id       uuid NOT NULL,
    name             text NOT NULL,
    hash             bytea NOT NULL,
    hint             text NOT NULL,
    scopes           text[] NOT NULL,
    agents           uuid[],
    external_user_id text,
    expires_at       timestamptz,
    revoked_at       timestamptz,
    created_at       timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, api_key_id)
);
CREATE INDEX api_key_hash ON api_key (hash);
CALL wall('api_key');
GRANT SELECT, INSERT, UPDATE ON api_key TO belljar_app;
CREATE POLICY door ON api_key FOR SELECT TO belljar_door USING (true);
GRANT SELECT ON api_key TO belljar_door;

-- Keys that seal a tenant's secrets, themselves sealed by the key-encryption key, which is not in this database.
CREATE TABLE data_key (
    tenant_id  uuid NOT NULL REFERENCES tenant ON DELETE CASCADE,
    version    integer NOT NULL,
    sealed     bytea NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, version)
);
CALL wall('data_key');
GRANT SELECT, INSERT ON data_key TO belljar_app;

INSERT INTO plan (name, requests_per_minute, concurrent_runs, concurrent_tool_calls, tokens_per_month, weight,
                  tool_limits, upload_bytes, storage_bytes, monthly_fee, currency, updated_at)
VALUES
    ('free', 120, 4, 8, 1000000, 1,
     '{"fuel": 10000000000, "memory_bytes": 134217728, "deadline_ms": 30000, "output_bytes": 1048576, "log_bytes": 262144, "host_calls": 1000000}',
     33554432, 1073741824, 0, 'USD', now()),
    ('pro', 1200, 32, 32, NULL, 8,
     '{"fuel": 100000000000, "memory_bytes": 268435456, "deadline_ms": 120000, "output_bytes": 4194304, "log_bytes": 1048576, "host_calls": 1000000}',
     67108864, 107374182400, 99, 'USD', now());
