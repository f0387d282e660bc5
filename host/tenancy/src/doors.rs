//! What is done before a tenant is known. Each door is one SECURITY DEFINER function of a migration and gives the
//! `Tenant` together with the reason.

use domain::{AgentId, ApiKeyId, RunId, TenantId, Timestamp, ToolId, WebhookId, page::PageRequest};
use uuid::Uuid;

use crate::{
    Db, DbError, Placement, Tenant,
    keys::{KeyHasher, Scope},
};

/// Holds that one statement of their sweep takes: a short transaction, whatever has gathered.
const SWEPT_HOLDS: i32 = 1_000;

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
    /// Of the tenant's plan, with its overrides.
    pub requests_per_minute: u32,
    pub configuration: Stamp,
}

/// As of which changes a tenant's agents, provider keys, budgets and settings, its plan and the prices are. Where two are
/// equal, what was read after the first was told is still so, or newer, when the second is. It is told before a request's
/// body has come: what is changed while the body comes may not count yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    tenant: Uuid,
    plan: Uuid,
    prices: Timestamp,
}

/// What there is of a tenant's runs, and what its plan gives to it.
#[derive(Debug, Clone)]
pub struct QueueOf {
    pub tenant: TenantId,
    pub suspended: bool,
    pub weight: u32,
    /// Runs at once.
    pub runs_max: u32,
    pub waiting: u64,
    /// Of those that wait, how many could begin now. None of a tenant that is suspended.
    pub ready: u64,
    pub running: u64,
    /// Of those that are driven, how many by others.
    pub elsewhere: u64,
    /// When the first of those that wait was accepted.
    pub oldest: Option<Timestamp>,
}

/// A run that became a worker's.
#[derive(Debug, Clone)]
pub struct TakenRun {
    pub tenant: Tenant,
    pub run: RunId,
    /// Under which its writes are made.
    pub fence: i64,
}

impl Db {
    /// `None` for a text that is no key, or a key that nobody holds.
    pub async fn resolve_api_key(&self, hasher: &KeyHasher, presented: &str) -> Result<Option<KeyHolder>, DbError> {
        let Some(hash) = hasher.hash(presented) else { return Ok(None) };
        self.key_holders().together(hash, self.key_holder(hash)).await
    }

    async fn key_holder(&self, hash: [u8; 32]) -> Result<Option<KeyHolder>, DbError> {
        // Every request waits for this: one statement by its full name, and no transaction around it.
        let mut lent = self.lend(&Placement::shared()).await?;
        let row = sqlx::query!(
            r#"
            SELECT tenant_id AS "tenant_id!", database AS "database!", schema AS "schema!", suspended AS "suspended!",
                   api_key_id AS "api_key_id!", scopes AS "scopes!", agents, external_user_id, expires_at, revoked_at,
                   requests_per_minute AS "requests_per_minute!", tenant_changed AS "tenant_changed!",
                   plan_changed AS "plan_changed!", priced_since AS "priced_since!"
            FROM belljar.door_resolve_caller($1)
            "#,
            &hash[..],
        )
        .fetch_optional(lent.conn())
        .await?;
        lent.give_back();
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
            requests_per_minute: row.requests_per_minute.unsigned_abs(),
            configuration: Stamp {
                tenant: row.tenant_changed,
                plan: row.plan_changed,
                prices: row.priced_since.into(),
            },
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

    /// Every tenant of whom a run waits or is driven.
    pub async fn queues(&self, worker: Uuid) -> Result<Vec<QueueOf>, DbError> {
        let mut tx = self.global().await?;
        let rows = sqlx::query!(
            r#"
            SELECT tenant_id AS "tenant_id!", suspended AS "suspended!", weight AS "weight!", runs_max AS "runs_max!",
                   waiting AS "waiting!", ready AS "ready!", running AS "running!", elsewhere AS "elsewhere!", oldest
            FROM door_queues($1)
            "#,
            worker,
        )
        .fetch_all(tx.conn())
        .await?;
        let queues = rows.into_iter().map(|row| QueueOf {
            tenant: row.tenant_id.into(),
            suspended: row.suspended,
            weight: row.weight.unsigned_abs(),
            runs_max: row.runs_max.unsigned_abs(),
            waiting: row.waiting.unsigned_abs(),
            ready: row.ready.unsigned_abs(),
            running: row.running.unsigned_abs(),
            elsewhere: row.elsewhere.unsigned_abs(),
            oldest: row.oldest.map(Timestamp::from),
        });
        Ok(queues.collect())
    }

    /// The next run of a tenant's queue becomes this worker's until `until`.
    pub async fn take_run_of(
        &self,
        tenant: TenantId,
        worker: Uuid,
        at: Timestamp,
        until: Timestamp,
    ) -> Result<Option<TakenRun>, DbError> {
        let mut tx = self.global().await?;
        let taken = sqlx::query!(
            r#"
            SELECT tenant_id AS "tenant_id!", database AS "database!", schema AS "schema!", run_id AS "run_id!",
                   fence AS "fence!"
            FROM door_take_run_of($1, $2, $3, $4)
            "#,
            tenant.uuid(),
            worker,
            at.offset(),
            until.offset(),
        )
        .fetch_optional(tx.conn())
        .await;
        let row = match taken {
            // Another run of its conversation began at this moment.
            Err(error) if DbError::violates(&error, "run_active") => return Ok(None),
            taken => taken?,
        };
        tx.commit().await?;
        row.map(|row| {
            let tenant = self.tenant(row.tenant_id, row.database, row.schema)?;
            Ok(TakenRun { tenant, run: row.run_id.into(), fence: row.fence })
        })
        .transpose()
    }

    /// A run that nobody has renewed becomes this worker's until `until`; and which attempt at it this is.
    pub async fn take_abandoned_run(
        &self,
        worker: Uuid,
        at: Timestamp,
        until: Timestamp,
    ) -> Result<Option<(TakenRun, u32)>, DbError> {
        let mut tx = self.global().await?;
        let row = sqlx::query!(
            r#"
            SELECT tenant_id AS "tenant_id!", database AS "database!", schema AS "schema!", run_id AS "run_id!",
                   fence AS "fence!", attempts AS "attempts!"
            FROM door_take_abandoned_run($1, $2, $3)
            "#,
            worker,
            at.offset(),
            until.offset(),
        )
        .fetch_optional(tx.conn())
        .await?;
        tx.commit().await?;
        row.map(|row| {
            let tenant = self.tenant(row.tenant_id, row.database, row.schema)?;
            Ok((TakenRun { tenant, run: row.run_id.into(), fence: row.fence }, row.attempts.cast_unsigned()))
        })
        .transpose()
    }

    /// Runs whose wait for an approval is over are queued again. How many.
    pub async fn wake_runs(&self, at: Timestamp) -> Result<u64, DbError> {
        let mut tx = self.global().await?;
        let woken =
            sqlx::query_scalar!(r#"SELECT door_wake_runs($1) AS "woken!""#, at.offset()).fetch_one(tx.conn()).await?;
        tx.commit().await?;
        Ok(woken.cast_unsigned())
    }

    /// Holds of budgets that nobody has renewed for a day are given back and forgotten.
    pub async fn sweep_holds(&self) -> Result<(), DbError> {
        loop {
            let mut tx = self.global().await?;
            let swept = sqlx::query_scalar!(r#"SELECT door_sweep_holds($1) AS "swept!""#, SWEPT_HOLDS)
                .fetch_one(tx.conn())
                .await?;
            tx.commit().await?;
            if swept < i64::from(SWEPT_HOLDS) {
                return Ok(());
            }
        }
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

    /// Webhooks to which something is due, at most `each` of one tenant; and whether nothing has arrived at them lately,
    /// those last.
    pub async fn due_webhooks(
        &self,
        at: Timestamp,
        each: i64,
        rows: i32,
    ) -> Result<Vec<(Tenant, WebhookId, bool)>, DbError> {
        let mut tx = self.global().await?;
        let rows = sqlx::query!(
            r#"
            SELECT tenant_id AS "tenant_id!", database AS "database!", schema AS "schema!", webhook_id AS "webhook_id!",
                   failing AS "failing!"
            FROM door_due_webhooks($1, $2, $3)
            "#,
            at.offset(),
            each,
            rows,
        )
        .fetch_all(tx.conn())
        .await?;
        rows.into_iter()
            .map(|row| {
                let tenant = self.tenant(row.tenant_id, row.database, row.schema)?;
                Ok((tenant, row.webhook_id.into(), row.failing))
            })
            .collect()
    }

    fn tenant(&self, id: Uuid, database: String, schema: String) -> Result<Tenant, DbError> {
        let bad = || sqlx::Error::Decode("a placement's schema is not a plain name".into());
        Ok(Tenant::new(id.into(), Placement::new(database, schema).ok_or_else(bad)?, self.clone()))
    }
}
