-- 0018: what a tenant has configured is read when it has changed, not with every turn.

-- Every request asks the table that this locks: rather fail, and be run again, than let them wait behind an erasure.
SET LOCAL lock_timeout = '5s';

-- tenancy: another value after each change of a tenant's row, or of what else its runs are driven by; and of a plan. No
-- count: after a restore of the database it would come to the same number once more.
ALTER TABLE tenant ADD COLUMN changed uuid NOT NULL DEFAULT gen_random_uuid();
ALTER TABLE plan ADD COLUMN changed uuid NOT NULL DEFAULT gen_random_uuid();
CREATE FUNCTION mark_changed() RETURNS trigger
    LANGUAGE plpgsql
AS $$
BEGIN
    NEW.changed := gen_random_uuid();
    RETURN NEW;
END
$$;
CREATE TRIGGER marked BEFORE UPDATE ON tenant FOR EACH ROW EXECUTE FUNCTION mark_changed();
CREATE TRIGGER marked BEFORE UPDATE ON plan FOR EACH ROW EXECUTE FUNCTION mark_changed();

-- For rows that runs read and that are not pinned. It locks the tenant's row after its own; an erasure does so the other way
-- round, and one of the two is then told to try again.
CREATE FUNCTION mark_tenant() RETURNS trigger
    LANGUAGE plpgsql
AS $$
BEGIN
    UPDATE belljar.tenant SET changed = changed WHERE tenant_id = coalesce(NEW.tenant_id, OLD.tenant_id);
    RETURN NULL;
END
$$;
-- agent-config, billing-meter: their own.
CREATE TRIGGER marks_tenant AFTER INSERT OR UPDATE OR DELETE ON agent FOR EACH ROW EXECUTE FUNCTION mark_tenant();
CREATE TRIGGER marks_tenant AFTER INSERT OR UPDATE OR DELETE ON provider_key FOR EACH ROW EXECUTE FUNCTION mark_tenant();
CREATE TRIGGER marks_tenant AFTER INSERT OR UPDATE OR DELETE ON budget FOR EACH ROW EXECUTE FUNCTION mark_tenant();

-- As before, and as of which change all that is. Price books are only added to.
DROP FUNCTION door_resolve_caller(bytea);
CREATE FUNCTION door_resolve_caller(key_hash bytea)
    RETURNS TABLE (tenant_id uuid, database text, schema text, suspended boolean, api_key_id uuid, scopes text[],
                   agents uuid[], external_user_id text, expires_at timestamptz, revoked_at timestamptz,
                   requests_per_minute integer, tenant_changed uuid, plan_changed uuid, priced_since timestamptz)
    LANGUAGE plpgsql STABLE ROWS 1 SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT t.tenant_id, t.database, t.schema, t.suspended, k.api_key_id, k.scopes,
           k.agents, k.external_user_id, k.expires_at, k.revoked_at,
           coalesce((t.overrides ->> 'requests_per_minute')::integer, p.requests_per_minute),
           t.changed, p.changed,
           coalesce((SELECT b.created_at FROM belljar.price_book b ORDER BY b.version DESC LIMIT 1), 'epoch')
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
