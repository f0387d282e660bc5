-- 0013, agent-config and agent-runtime: more kinds of provider keys, and a key that one request brings. The release before
-- this one works on it, as long as no key of a new kind is stored: it cannot read one.

ALTER TABLE provider_key DROP CONSTRAINT provider_key_kind_check;
ALTER TABLE provider_key
    ADD CONSTRAINT provider_key_kind_check CHECK (kind IN ('openai', 'openai_compatible', 'anthropic', 'gemini'));

-- The request's own key for the model's provider, sealed. It is there only as long as the run may need it.
ALTER TABLE run
    ADD COLUMN provider_key         bytea,
    ADD COLUMN provider_key_version integer,
    ADD CONSTRAINT run_provider_key_version FOREIGN KEY (tenant_id, provider_key_version)
        REFERENCES data_key (tenant_id, version),
    ADD CONSTRAINT run_provider_key_whole CHECK ((provider_key IS NULL) = (provider_key_version IS NULL)),
    ADD CONSTRAINT run_provider_key_erased
        CHECK (provider_key IS NULL OR status IN ('queued', 'running', 'waiting_for_approval'));

-- Whoever ends a run, in whatever way, erases the key in the same commit.
CREATE FUNCTION erase_provider_key() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.provider_key := NULL;
    NEW.provider_key_version := NULL;
    RETURN NEW;
END
$$;
CREATE TRIGGER run_ends BEFORE UPDATE ON run FOR EACH ROW
    WHEN (OLD.provider_key IS NOT NULL AND NEW.status IN ('completed', 'failed', 'cancelled'))
    EXECUTE FUNCTION erase_provider_key();
