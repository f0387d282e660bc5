//! What is done before a tenant is known. Each door is one SECURITY DEFINER function of migration 0006 and gives the
//! `Tenant` together with the reason.

use domain::{AgentId, ApiKeyId, RunId, TenantId, Timestamp, ToolId, page::PageRequest};
use uuid::Uuid;

use crate::{
    Db, DbError, Placement, Tenant,
    keys::{KeyHasher, Scope},
};

/// Who holds an API key, and what it may do. The caller checks expiry, revocation and suspension.
#[derive(Debug, Clone)]
pub struct KeyHolder {
    pub tenant: Tenant,
    pub suspended: bool,
    pub key_id: ApiKeyId,
    pub scopes: Vec<Scope>,
    /// The agents the key may speak with; `None`: all.
    pub agents: Option<Vec<AgentId>>,
    /// The only end user the key speaks for; `None`: any.
    pub external_user_id: Option<String>,
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

impl Db {
    /// `None` for a text that is no key, or a key that nobody holds.
    pub async fn resolve_api_key(&self, hasher: &KeyHasher, presented: &str) -> Result<Option<KeyHolder>, DbError> {
        let Some(hash) = hasher.hash(presented) else { return Ok(None) };
        let mut tx = self.global().await?;
        let row = sqlx::query!(
            r#"
            SELECT tenant_id AS "tenant_id!", database AS "database!", schema AS "schema!", suspended AS "suspended!",
                   api_key_id AS "api_key_id!", scopes AS "scopes!", agents, external_user_id, expires_at, revoked_at
            FROM door_resolve_api_key($1)
            "#,
            &hash[..],
        )
        .fetch_optional(tx.conn())
        .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(KeyHolder {
            tenant: self.tenant(row.tenant_id, row.database, row.schema)?,
            suspended: row.suspended,
            key_id: row.api_key_id.into(),
            scopes: row.scopes.iter().filter_map(|scope| Scope::parse(scope)).collect(),
            agents: row.agents.map(|agents| agents.into_iter().map(AgentId::from).collect()),
            external_user_id: row.external_user_id,
            expires_at: row.expires_at.map(Timestamp::from),
            revoked_at: row.revoked_at.map(Timestamp::from),
        }))
    }

    /// For the operator only.
    pub async fn operator(&self, id: TenantId) -> Result<Option<Tenant>, DbError> {
        let mut tx = self.global().await?;
        let row = sqlx::query!(
            r#"
            SELECT tenant_id AS "tenant_id!", database AS "database!", schema AS "schema!"
            FROM door_operator($1)
            "#,
            id.uuid(),
        )
        .fetch_optional(tx.conn())
        .await?;
        row.map(|row| self.tenant(row.tenant_id, row.database, row.schema)).transpose()
    }

    /// For the operator only: `page.rows()` tenants at most, newest first.
    pub async fn tenants(&self, page: PageRequest) -> Result<Vec<Tenant>, DbError> {
        let mut tx = self.global().await?;
        let rows = sqlx::query!(
            r#"
            SELECT tenant_id AS "tenant_id!", database AS "database!", schema AS "schema!"
            FROM door_tenants($1, $2)
            "#,
            page.after,
            i32::try_from(page.rows()).unwrap_or(i32::MAX),
        )
        .fetch_all(tx.conn())
        .await?;
        rows.into_iter().map(|row| self.tenant(row.tenant_id, row.database, row.schema)).collect()
    }

    /// The oldest queued run becomes this worker's until `until`.
    pub async fn claim_run(
        &self,
        worker: Uuid,
        at: Timestamp,
        until: Timestamp,
    ) -> Result<Option<(Tenant, RunId)>, DbError> {
        let mut tx = self.global().await?;
        let row = sqlx::query!(
            r#"
            SELECT tenant_id AS "tenant_id!", database AS "database!", schema AS "schema!", run_id AS "run_id!"
            FROM door_claim_run($1, $2, $3)
            "#,
            worker,
            at.offset(),
            until.offset(),
        )
        .fetch_optional(tx.conn())
        .await?;
        tx.commit().await?;
        row.map(|row| Ok((self.tenant(row.tenant_id, row.database, row.schema)?, row.run_id.into()))).transpose()
    }

    /// A run that nobody has renewed becomes this worker's until `until`.
    pub async fn claim_expired_run(
        &self,
        worker: Uuid,
        at: Timestamp,
        until: Timestamp,
    ) -> Result<Option<(Tenant, RunId)>, DbError> {
        let mut tx = self.global().await?;
        let row = sqlx::query!(
            r#"
            SELECT tenant_id AS "tenant_id!", database AS "database!", schema AS "schema!", run_id AS "run_id!"
            FROM door_claim_expired_run($1, $2, $3)
            "#,
            worker,
            at.offset(),
            until.offset(),
        )
        .fetch_optional(tx.conn())
        .await?;
        tx.commit().await?;
        row.map(|row| Ok((self.tenant(row.tenant_id, row.database, row.schema)?, row.run_id.into()))).transpose()
    }

    /// A version whose admission has stopped becomes this process's until `until`: tool and content hash.
    pub async fn claim_version(
        &self,
        at: Timestamp,
        until: Timestamp,
    ) -> Result<Option<(Tenant, ToolId, [u8; 32])>, DbError> {
        let mut tx = self.global().await?;
        let row = sqlx::query!(
            r#"
            SELECT tenant_id AS "tenant_id!", database AS "database!", schema AS "schema!", tool_id AS "tool_id!",
                   hash AS "hash!"
            FROM door_claim_version($1, $2)
            "#,
            at.offset(),
            until.offset(),
        )
        .fetch_optional(tx.conn())
        .await?;
        tx.commit().await?;
        row.map(|row| {
            let hash = row.hash.try_into().map_err(|_| sqlx::Error::Decode("a hash has 32 bytes".into()))?;
            Ok((self.tenant(row.tenant_id, row.database, row.schema)?, row.tool_id.into(), hash))
        })
        .transpose()
    }

    fn tenant(&self, id: Uuid, database: String, schema: String) -> Result<Tenant, DbError> {
        let bad = || sqlx::Error::Decode("a placement's schema is not a plain name".into());
        Ok(Tenant::new(id.into(), Placement::new(database, schema).ok_or_else(bad)?, self.clone()))
    }
}
