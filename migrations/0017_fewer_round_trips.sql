-- 0017: a turn waits for the database less often.

-- conversation-store: of the last message. Zero, or less than there are, where the release before this one has written.
ALTER TABLE conversation ADD COLUMN last_position integer NOT NULL DEFAULT 0;

-- tenancy: as before, in a language that keeps its plan for the session: a body in SQL is planned anew by every call.
CREATE OR REPLACE FUNCTION door_resolve_caller(key_hash bytea)
    RETURNS TABLE (tenant_id uuid, database text, schema text, suspended boolean, api_key_id uuid, scopes text[],
                   agents uuid[], external_user_id text, expires_at timestamptz, revoked_at timestamptz,
                   requests_per_minute integer)
    LANGUAGE plpgsql STABLE ROWS 1 SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT t.tenant_id, t.database, t.schema, t.suspended, k.api_key_id, k.scopes,
           k.agents, k.external_user_id, k.expires_at, k.revoked_at,
           coalesce((t.overrides ->> 'requests_per_minute')::integer, p.requests_per_minute)
    FROM belljar.api_key k
    JOIN belljar.tenant t ON t.tenant_id = k.tenant_id
    JOIN belljar.plan p ON p.name = t.plan
    WHERE k.hash = key_hash;
END
$$;

-- billing-meter: a book is never deleted, and to look at its row is to lock it, for every event of every tenant.
ALTER TABLE usage_event DROP CONSTRAINT usage_event_price_book_fkey;

-- agent-runtime: a step's commit changes no column that an index looks at. With room in the page it writes to none.
ALTER TABLE run SET (fillfactor = 70);
