-- 0018: what a tenant has configured is read when it has changed, not with every turn.

-- tenancy: how often a tenant's row, or what else its runs are driven by, has changed; and how often a plan has.
ALTER TABLE tenant ADD COLUMN changes bigint NOT NULL DEFAULT 0;
ALTER TABLE plan ADD COLUMN changes bigint NOT NULL DEFAULT 0;
CREATE FUNCTION count_change() RETURNS trigger
    LANGUAGE plpgsql
AS $$
BEGIN
    NEW.changes := OLD.changes + 1;
    RETURN NEW;
END
$$;
CREATE TRIGGER counted BEFORE UPDATE ON tenant FOR EACH ROW EXECUTE FUNCTION count_change();
CREATE TRIGGER counted BEFORE UPDATE ON plan FOR EACH ROW EXECUTE FUNCTION count_change();

-- Of rows that runs read and that are not pinned: the count goes up with their transaction.
CREATE FUNCTION count_for_tenant() RETURNS trigger
    LANGUAGE plpgsql
AS $$
BEGIN
    UPDATE belljar.tenant SET changes = changes WHERE tenant_id = coalesce(NEW.tenant_id, OLD.tenant_id);
    RETURN NULL;
END
$$;
-- agent-config, billing-meter: their own.
CREATE TRIGGER counted AFTER INSERT OR UPDATE OR DELETE ON agent FOR EACH ROW EXECUTE FUNCTION count_for_tenant();
CREATE TRIGGER counted AFTER UPDATE OF functions ON tool_version FOR EACH ROW EXECUTE FUNCTION count_for_tenant();
CREATE TRIGGER counted AFTER INSERT OR UPDATE OR DELETE ON provider_key FOR EACH ROW EXECUTE FUNCTION count_for_tenant();
CREATE TRIGGER counted AFTER INSERT OR UPDATE OR DELETE ON budget FOR EACH ROW EXECUTE FUNCTION count_for_tenant();

-- As before, and how often all that has changed. Price books are only added to.
DROP FUNCTION door_resolve_caller(bytea);
CREATE FUNCTION door_resolve_caller(key_hash bytea)
    RETURNS TABLE (tenant_id uuid, database text, schema text, suspended boolean, api_key_id uuid, scopes text[],
                   agents uuid[], external_user_id text, expires_at timestamptz, revoked_at timestamptz,
                   requests_per_minute integer, tenant_changes bigint, plan_changes bigint, price_book integer)
    LANGUAGE plpgsql STABLE ROWS 1 SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT t.tenant_id, t.database, t.schema, t.suspended, k.api_key_id, k.scopes,
           k.agents, k.external_user_id, k.expires_at, k.revoked_at,
           coalesce((t.overrides ->> 'requests_per_minute')::integer, p.requests_per_minute),
           t.changes, p.changes, coalesce((SELECT max(b.version) FROM belljar.price_book b), 0)
    FROM belljar.api_key k
    JOIN belljar.tenant t ON t.tenant_id = k.tenant_id
    JOIN belljar.plan p ON p.name = t.plan
    WHERE k.hash = key_hash;
END
$$;
GRANT SELECT ON price_book TO belljar_door;
REVOKE EXECUTE ON FUNCTION door_resolve_caller(bytea) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION door_resolve_caller(bytea) TO belljar_app;
GRANT CREATE ON SCHEMA belljar TO belljar_door;
ALTER FUNCTION door_resolve_caller(bytea) OWNER TO belljar_door;
REVOKE CREATE ON SCHEMA belljar FROM belljar_door;
