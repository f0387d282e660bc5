//! Tools and their versions.

mod error;

use std::{collections::HashMap, fmt, str::FromStr};

use domain::{
    FunctionName, Ids, Timestamp, ToolId, ToolName,
    names::model_name,
    page::{Page, PageRequest},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::types::Json;
use tenancy::{DbError, TenantTx};
use time::OffsetDateTime;
use tool_api::{ArtifactHash, Function, Rejection, artifact::BadHash};
use uuid::Uuid;

pub use error::ToolError;

use crate::artifacts;

/// Bytes of a version's label: it is shown beside the hash.
pub const LABEL_BYTES_MAX: usize = 64;
/// Agents that an error names: enough to begin with.
const AGENTS_NAMED_MAX: i64 = 10;

#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Tool {
    pub id: ToolId,
    pub name: ToolName,
    pub created_at: Timestamp,
    /// The newest version that is ready.
    pub latest: Option<ToolVersion>,
}

/// A component that was uploaded, named by the hash of its bytes.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct ToolVersion {
    pub version: ArtifactHash,
    pub tool: ToolName,
    #[serde(skip)]
    pub tool_id: ToolId,
    /// Counts the versions of the tool.
    pub number: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    pub status: VersionStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejection: Option<Rejection>,
    pub functions: Vec<ShownFunction>,
    /// Grants that the tool asks for, without values, each with a reason.
    pub requires: Value,
    /// The contract it was built against: `belljar:tool@1.0.0`; `wit` for plain typed exports.
    pub contract: Option<String>,
    pub size_bytes: u64,
    pub created_at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VersionStatus {
    Compiling,
    Ready,
    Rejected,
}

/// A function with the name that a model sees.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct ShownFunction {
    pub name: FunctionName,
    /// `tool__function`.
    pub model_name: String,
    pub description: String,
    /// JSON Schema of the arguments.
    pub input_schema: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Value>,
}

/// How a path or a binding names a version: `latest`, the newest that is ready, or `sha256:...`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum VersionRef {
    Latest,
    Hash(ArtifactHash),
}

impl VersionStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            VersionStatus::Compiling => "compiling",
            VersionStatus::Ready => "ready",
            VersionStatus::Rejected => "rejected",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Compiling, Self::Ready, Self::Rejected].into_iter().find(|status| status.as_str() == text)
    }
}

impl fmt::Display for VersionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VersionRef::Latest => f.write_str("latest"),
            VersionRef::Hash(hash) => hash.fmt(f),
        }
    }
}

impl FromStr for VersionRef {
    type Err = BadHash;

    fn from_str(text: &str) -> Result<Self, BadHash> {
        if text == "latest" { Ok(VersionRef::Latest) } else { text.parse().map(VersionRef::Hash) }
    }
}

impl TryFrom<String> for VersionRef {
    type Error = BadHash;

    fn try_from(text: String) -> Result<Self, BadHash> {
        text.parse()
    }
}

impl From<VersionRef> for String {
    fn from(version: VersionRef) -> String {
        version.to_string()
    }
}

/// Tools, newest first.
pub async fn list(tx: &mut TenantTx, page: PageRequest) -> Result<Page<Tool>, ToolError> {
    let rows = sqlx::query!(
        r#"
        SELECT tool_id, name, created_at FROM tool
        WHERE tenant_id = $1 AND ($2::uuid IS NULL OR tool_id < $2)
        ORDER BY tool_id DESC
        LIMIT $3
        "#,
        tx.tenant().uuid(),
        page.after,
        page.rows(),
    )
    .fetch_all(tx.conn())
    .await?;
    let ids: Vec<Uuid> = rows.iter().map(|row| row.tool_id).collect();
    let mut latest = newest_ready(tx, &ids).await?;
    let tools = rows
        .into_iter()
        .map(|row| {
            Ok(Tool {
                id: row.tool_id.into(),
                name: row.name.parse().map_err(crate::unreadable)?,
                created_at: row.created_at.into(),
                latest: latest.remove(&row.tool_id),
            })
        })
        .collect::<Result<_, ToolError>>()?;
    Ok(Page::cut(tools, page, |tool: &Tool| tool.id.uuid()))
}

pub async fn get(tx: &mut TenantTx, name: &ToolName) -> Result<Tool, ToolError> {
    let (id, created_at) = find(tx, name).await?.ok_or_else(|| ToolError::NotFound(name.clone()))?;
    let latest = newest_ready(tx, &[id.uuid()]).await?.remove(&id.uuid());
    Ok(Tool { id, name: name.clone(), created_at, latest })
}

/// Deletes a tool with all its versions, unless a revision of an agent uses one.
pub async fn delete(tx: &mut TenantTx, name: &ToolName) -> Result<(), ToolError> {
    artifacts::lock(tx).await?;
    let id = id(tx, name).await?;
    let users = users(tx, id, None).await?;
    if !users.is_empty() {
        return Err(ToolError::InUse(users));
    }
    let deleted = sqlx::query!("DELETE FROM tool WHERE tenant_id = $1 AND tool_id = $2", tx.tenant().uuid(), id.uuid())
        .execute(tx.conn())
        .await;
    match deleted {
        // A revision was published since the look above.
        Err(error) if DbError::violates(&error, "binding_version") => return Err(ToolError::InUse(Vec::new())),
        done => done?,
    };
    Ok(artifacts::sweep(tx).await?)
}

/// The versions of a tool, newest first. `page.after` is a version's number as a UUID.
pub async fn versions(tx: &mut TenantTx, tool: &ToolName, page: PageRequest) -> Result<Page<ToolVersion>, ToolError> {
    let id = id(tx, tool).await?;
    // A place that is no number lies behind them all.
    let before = page.after.map(|after| i32::try_from(after.as_u128()).unwrap_or(0));
    let rows = sqlx::query_as!(
        Row,
        r#"
        SELECT v.tool_id, t.name AS tool, v.hash, v.number, v.label, v.status, v.rejection_code, v.rejection_detail,
               v.functions AS "functions: Json<Vec<Function>>", v.requires, v.contract, v.size_bytes, v.created_at
        FROM tool_version v
        JOIN tool t ON t.tenant_id = v.tenant_id AND t.tool_id = v.tool_id
        WHERE v.tenant_id = $1 AND v.tool_id = $2 AND ($3::integer IS NULL OR v.number < $3)
        ORDER BY v.number DESC
        LIMIT $4
        "#,
        tx.tenant().uuid(),
        id.uuid(),
        before,
        page.rows(),
    )
    .fetch_all(tx.conn())
    .await?;
    let versions = rows.into_iter().map(Row::shown).collect::<Result<_, _>>()?;
    Ok(Page::cut(versions, page, |version: &ToolVersion| Uuid::from_u128(version.number.into())))
}

/// One version, in whatever state; `latest` is ready.
pub async fn version(tx: &mut TenantTx, tool: &ToolName, version: VersionRef) -> Result<ToolVersion, ToolError> {
    let id = id(tx, tool).await?;
    let found = match version {
        VersionRef::Latest => newest_ready(tx, &[id.uuid()]).await?.remove(&id.uuid()),
        VersionRef::Hash(hash) => version_of(tx, id, hash).await?,
    };
    found.ok_or_else(|| ToolError::VersionNotFound { tool: tool.clone(), version })
}

/// A version that can be called.
pub async fn callable(
    tx: &mut TenantTx,
    tool: &ToolName,
    version: VersionRef,
) -> Result<(ToolId, ToolVersion), ToolError> {
    let mut version = self::version(tx, tool, version).await?;
    match (version.status, version.rejection.take()) {
        (VersionStatus::Ready, _) => Ok((version.tool_id, version)),
        (VersionStatus::Rejected, Some(rejection)) => Err(ToolError::Rejected(rejection)),
        (VersionStatus::Compiling | VersionStatus::Rejected, _) => Err(ToolError::NotReady(version.version)),
    }
}

/// Deletes a version, unless a revision of an agent uses it.
pub async fn delete_version(tx: &mut TenantTx, tool: &ToolName, hash: ArtifactHash) -> Result<(), ToolError> {
    artifacts::lock(tx).await?;
    let id = id(tx, tool).await?;
    let users = users(tx, id, Some(hash)).await?;
    if !users.is_empty() {
        return Err(ToolError::VersionInUse(users));
    }
    let deleted = sqlx::query!(
        "DELETE FROM tool_version WHERE tenant_id = $1 AND tool_id = $2 AND hash = $3",
        tx.tenant().uuid(),
        id.uuid(),
        hash.as_bytes(),
    )
    .execute(tx.conn())
    .await;
    match deleted {
        // A revision was published since the look above.
        Err(error) if DbError::violates(&error, "binding_version") => {
            return Err(ToolError::VersionInUse(Vec::new()));
        }
        done => {
            if done?.rows_affected() == 0 {
                return Err(ToolError::VersionNotFound { tool: tool.clone(), version: VersionRef::Hash(hash) });
            }
        }
    }
    Ok(artifacts::sweep(tx).await?)
}

/// The tool of this name, made if there is none.
pub(crate) async fn ensure(
    tx: &mut TenantTx,
    name: &ToolName,
    ids: &dyn Ids,
    now: Timestamp,
) -> Result<ToolId, ToolError> {
    sqlx::query!(
        r#"
        INSERT INTO tool (tenant_id, tool_id, name, created_at) VALUES ($1, $2, $3, $4)
        ON CONFLICT ON CONSTRAINT tool_name DO NOTHING
        "#,
        tx.tenant().uuid(),
        ToolId::new(ids).uuid(),
        name.as_str(),
        now.offset(),
    )
    .execute(tx.conn())
    .await?;
    id(tx, name).await
}

pub(crate) async fn id(tx: &mut TenantTx, name: &ToolName) -> Result<ToolId, ToolError> {
    find(tx, name).await?.map(|(id, _)| id).ok_or_else(|| ToolError::NotFound(name.clone()))
}

async fn find(tx: &mut TenantTx, name: &ToolName) -> Result<Option<(ToolId, Timestamp)>, ToolError> {
    let row = sqlx::query!(
        "SELECT tool_id, created_at FROM tool WHERE tenant_id = $1 AND name = $2",
        tx.tenant().uuid(),
        name.as_str(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.map(|row| (row.tool_id.into(), row.created_at.into())))
}

pub(crate) async fn version_of(
    tx: &mut TenantTx,
    tool: ToolId,
    hash: ArtifactHash,
) -> Result<Option<ToolVersion>, ToolError> {
    let row = sqlx::query_as!(
        Row,
        r#"
        SELECT v.tool_id, t.name AS tool, v.hash, v.number, v.label, v.status, v.rejection_code, v.rejection_detail,
               v.functions AS "functions: Json<Vec<Function>>", v.requires, v.contract, v.size_bytes, v.created_at
        FROM tool_version v
        JOIN tool t ON t.tenant_id = v.tenant_id AND t.tool_id = v.tool_id
        WHERE v.tenant_id = $1 AND v.tool_id = $2 AND v.hash = $3
        "#,
        tx.tenant().uuid(),
        tool.uuid(),
        hash.as_bytes(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.map(Row::shown).transpose()?)
}

/// The newest ready version of each tool that has one.
async fn newest_ready(tx: &mut TenantTx, tools: &[Uuid]) -> Result<HashMap<Uuid, ToolVersion>, ToolError> {
    let rows = sqlx::query_as!(
        Row,
        r#"
        SELECT DISTINCT ON (v.tool_id)
               v.tool_id, t.name AS tool, v.hash, v.number, v.label, v.status, v.rejection_code, v.rejection_detail,
               v.functions AS "functions: Json<Vec<Function>>", v.requires, v.contract, v.size_bytes, v.created_at
        FROM tool_version v
        JOIN tool t ON t.tenant_id = v.tenant_id AND t.tool_id = v.tool_id
        WHERE v.tenant_id = $1 AND v.tool_id = ANY($2) AND v.status = 'ready'
        ORDER BY v.tool_id, v.number DESC
        "#,
        tx.tenant().uuid(),
        tools,
    )
    .fetch_all(tx.conn())
    .await?;
    rows.into_iter().map(|row| Ok((row.tool_id, row.shown()?))).collect()
}

/// The first agents with a revision that uses the version, or any version of the tool.
async fn users(tx: &mut TenantTx, tool: ToolId, hash: Option<ArtifactHash>) -> Result<Vec<String>, ToolError> {
    Ok(sqlx::query_scalar!(
        r#"
        SELECT DISTINCT a.name
        FROM binding b
        JOIN agent a ON a.tenant_id = b.tenant_id AND a.agent_id = b.agent_id
        WHERE b.tenant_id = $1 AND b.tool_id = $2 AND ($3::bytea IS NULL OR b.hash = $3)
        ORDER BY a.name
        LIMIT $4
        "#,
        tx.tenant().uuid(),
        tool.uuid(),
        hash.as_ref().map(|hash| hash.as_bytes().as_slice()),
        AGENTS_NAMED_MAX,
    )
    .fetch_all(tx.conn())
    .await?)
}

/// A version as it is stored.
struct Row {
    tool_id: Uuid,
    tool: String,
    hash: Vec<u8>,
    number: i32,
    label: Option<String>,
    status: String,
    rejection_code: Option<String>,
    rejection_detail: Option<String>,
    functions: Json<Vec<Function>>,
    requires: Value,
    contract: Option<String>,
    size_bytes: i64,
    created_at: OffsetDateTime,
}

impl Row {
    fn shown(self) -> Result<ToolVersion, sqlx::Error> {
        let tool: ToolName = self.tool.parse().map_err(crate::unreadable)?;
        let hash = self.hash.as_slice().try_into().map_err(crate::unreadable)?;
        let functions = self.functions.0.into_iter().map(|function| ShownFunction {
            model_name: model_name(&tool, &function.name),
            name: function.name,
            description: function.description,
            input_schema: function.input_schema,
            output_schema: function.output_schema,
        });
        Ok(ToolVersion {
            version: ArtifactHash::from_bytes(hash),
            tool_id: self.tool_id.into(),
            number: u32::try_from(self.number).map_err(crate::unreadable)?,
            label: self.label,
            status: VersionStatus::parse(&self.status).ok_or_else(|| crate::unreadable("unknown version status"))?,
            rejection: self
                .rejection_code
                .map(|code| Rejection { code, detail: self.rejection_detail.unwrap_or_default() }),
            functions: functions.collect(),
            requires: self.requires,
            contract: self.contract,
            size_bytes: u64::try_from(self.size_bytes).map_err(crate::unreadable)?,
            created_at: self.created_at.into(),
            tool,
        })
    }
}
