-- 0007, agent-config: a tenant can be erased while its agents use its tools.
--
-- Postgres checks `binding_version` before it has followed tenant, agent and revision down to the binding: erasing failed
-- on rows that were about to go. With a reference of its own a binding goes first.
ALTER TABLE binding ADD FOREIGN KEY (tenant_id) REFERENCES tenant ON DELETE CASCADE;
