//! Tool versions given to an agent's revision: which functions, with what grants and limits.

mod approval;
mod error;
mod needs;

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use domain::{
    AgentId, FunctionName, Grants, Limits, LimitsRequest, ToolId, ToolName, message::FunctionSpec, names::model_name,
};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::Value;
use sqlx::types::Json;
use tenancy::{DbError, TenantTx, plans::Plan};
use tool_api::{ArtifactHash, Function, inspection::FUNCTIONS_MAX};
use uuid::Uuid;

pub use approval::{APPROVAL_SECONDS_DEFAULT, APPROVAL_SECONDS_MAX, ApprovalRule, When};
pub use error::{BindingError, BindingReason};
pub use needs::needs_approval;

use crate::{
    agents::{AgentError, AgentSpec},
    requires::{Missing, Requires},
    secrets::{self, NamingRight},
    tools::{self, ToolError, ToolVersion, VersionRef, VersionStatus},
};

/// A binding as it is written.
#[derive(Debug, Clone, PartialEq, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BindingSpec {
    pub tool: ToolName,
    /// `latest` becomes the newest ready version when the revision is published.
    pub version: VersionRef,
    /// All when absent.
    #[serde(default)]
    pub functions: Option<Vec<FunctionName>>,
    #[serde(default)]
    pub grants: GrantsSpec,
    /// What is absent is the plan's default.
    #[serde(default)]
    pub limits: LimitsRequest,
    /// Which functions wait for a person's word before they are called.
    #[serde(default)]
    pub approval: ApprovalRule,
    /// A call that nobody allowed in this time is not made.
    #[serde(default)]
    pub approval_expires_seconds: Option<u32>,
    /// Keep what the host gives to each call, so that it can be run again.
    #[serde(default)]
    pub record: bool,
}

/// What a tool may touch: grants, or `as_requested`: what the version's `requires` asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum GrantsSpec {
    Given(Grants),
    AsRequested,
}

impl Default for GrantsSpec {
    fn default() -> Self {
        GrantsSpec::Given(Grants::default())
    }
}

/// A binding as a revision holds it.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Binding {
    /// Not shown: `tool` says it, and the shape is the one that is written.
    #[serde(skip)]
    pub tool_id: ToolId,
    pub tool: ToolName,
    pub version: ArtifactHash,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub functions: Option<Vec<FunctionName>>,
    pub grants: Grants,
    pub limits: Limits,
    #[serde(skip_serializing_if = "ApprovalRule::is_never")]
    pub approval: ApprovalRule,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval_expires_seconds: Option<u32>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub record: bool,
    /// What the version asks for and `grants` do not give. Calls that need it will be denied.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<Missing>,
}

/// A function that a run may call, with all that the executor must know.
#[derive(Debug, Clone)]
pub struct BoundFunction {
    pub spec: FunctionSpec,
    pub tool_id: ToolId,
    pub artifact: ArtifactHash,
    pub grants: Arc<Grants>,
    pub limits: Limits,
    /// How long a call waits for a person's word. `None`: it does not.
    pub approval: Option<Duration>,
    pub record: bool,
}

impl<'de> Deserialize<'de> for GrantsSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = GrantsSpec;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of grants or \"as_requested\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<GrantsSpec, E> {
                match text {
                    "as_requested" => Ok(GrantsSpec::AsRequested),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<GrantsSpec, A::Error> {
                Grants::deserialize(MapAccessDeserializer::new(map)).map(GrantsSpec::Given)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// Takes out the words that ask for nothing: an answer's `missing` is told and not written.
pub(crate) fn take_out_told(binding: &mut Value) {
    let Value::Object(fields) = binding else { return };
    fields.remove("missing");
    if fields.get("approval").is_some_and(Value::is_null) {
        fields.remove("approval");
    }
}

/// The bindings of a spec with their versions pinned, their grants and limits settled. `present` are those of the active
/// revision: secrets that they name for a tool already need no right.
pub(crate) async fn resolve(
    tx: &mut TenantTx,
    plan: &Plan,
    spec: AgentSpec,
    present: &[Binding],
    right: NamingRight,
) -> Result<AgentSpec<Binding>, AgentError> {
    let mut resolved: Vec<Binding> = Vec::with_capacity(spec.tools.len());
    let mut functions = 0;
    for (at, binding) in spec.tools.iter().enumerate() {
        let fail = |reason| BindingError { at, reason };
        if resolved.iter().any(|other| other.tool == binding.tool) {
            return Err(fail(BindingReason::DuplicateTool { tool: binding.tool.clone() }).into());
        }
        let version = match tools::version(tx, &binding.tool, binding.version).await {
            Ok(version) => version,
            Err(ToolError::NotFound(_) | ToolError::VersionNotFound { .. }) => {
                let (tool, version) = (binding.tool.clone(), binding.version);
                return Err(fail(BindingReason::VersionNotFound { tool, version }).into());
            }
            Err(error) => return Err(error.into()),
        };
        let decided = decide(binding, &version, plan.tool_limits).map_err(fail)?;
        functions += version.functions.iter().filter(|has| gives(decided.functions.as_deref(), &has.name)).count();
        resolved.push(decided);
    }
    if functions > FUNCTIONS_MAX {
        return Err(AgentError::TooManyFunctions(functions));
    }
    check_secrets(tx, &resolved, present, right).await?;
    Ok(spec.with_tools(resolved))
}

async fn check_secrets(
    tx: &mut TenantTx,
    bindings: &[Binding],
    present: &[Binding],
    right: NamingRight,
) -> Result<(), AgentError> {
    let named = bindings.iter().flat_map(|binding| binding.grants.secret_names()).collect();
    let fail = |at| move |error| BindingError { at, reason: BindingReason::Secret(error) };
    let stored = secrets::rules(tx, &named).await.map_err(fail(0))?;
    for (at, binding) in bindings.iter().enumerate() {
        let held = present.iter().find(|present| present.tool_id == binding.tool_id);
        let held = held.map(|present| present.grants.http.as_slice()).unwrap_or_default();
        secrets::may_bind(&binding.grants, held, &stored, right).map_err(fail(at))?;
    }
    Ok(())
}

/// What one binding becomes over the version that it names.
fn decide(spec: &BindingSpec, version: &ToolVersion, ceiling: Limits) -> Result<Binding, BindingReason> {
    let tool = &spec.tool;
    if version.status != VersionStatus::Ready {
        let (tool, version, status) = (tool.clone(), spec.version, version.status);
        return Err(BindingReason::VersionNotReady { tool, version, status });
    }
    for (index, function) in spec.functions.iter().flatten().enumerate() {
        if !version.functions.iter().any(|has| has.name == *function) {
            let has = version.functions.iter().map(|function| function.name.to_string()).collect();
            let (tool, function) = (tool.clone(), function.clone());
            return Err(BindingReason::FunctionNotFound { tool, index, function, has });
        }
    }
    for function in spec.approval.functions.keys() {
        let is_given = version.functions.iter().any(|has| has.name == *function);
        if !is_given || !gives(spec.functions.as_deref(), function) {
            return Err(BindingReason::ApprovalOfNothing { function: function.clone() });
        }
    }
    if spec.approval_expires_seconds.is_some_and(|seconds| !(1..=APPROVAL_SECONDS_MAX).contains(&seconds)) {
        return Err(BindingReason::ApprovalExpires);
    }
    let requires = Requires::parse(&version.requires);
    let grants = match (&spec.grants, &requires) {
        (GrantsSpec::Given(grants), _) => grants.clone(),
        (GrantsSpec::AsRequested, Ok(requires)) => requires.grants(),
        (GrantsSpec::AsRequested, Err(mistake)) => {
            let (tool, mistake) = (tool.clone(), mistake.clone());
            return Err(BindingReason::RequiresUnreadable { tool, mistake });
        }
    };
    grants.check().map_err(BindingReason::GrantInvalid)?;
    // `requires` names config keys and holds no values: only the tenant has those.
    let requires = requires.unwrap_or_default();
    let keys: Vec<String> = requires.config.keys().filter(|key| !grants.config.contains_key(*key)).cloned().collect();
    if !keys.is_empty() {
        return Err(BindingReason::GrantMissing { tool: tool.clone(), keys });
    }
    Ok(Binding {
        tool_id: version.tool_id,
        tool: tool.clone(),
        version: version.version,
        functions: spec.functions.clone(),
        missing: requires.lacks(&grants),
        grants,
        limits: spec.limits.resolve(ceiling).map_err(BindingReason::LimitAbovePlan)?,
        approval: spec.approval.clone(),
        approval_expires_seconds: spec.approval_expires_seconds,
        record: spec.record,
    })
}

/// Whether a binding with `functions` gives this one.
fn gives(functions: Option<&[FunctionName]>, name: &FunctionName) -> bool {
    functions.is_none_or(|functions| functions.contains(name))
}

/// Writes the bindings of a new revision.
pub(crate) async fn insert(
    tx: &mut TenantTx,
    agent: AgentId,
    revision: i32,
    bindings: &[Binding],
) -> Result<(), AgentError> {
    for (position, binding) in (0..).zip(bindings) {
        let functions =
            binding.functions.as_ref().map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>());
        let inserted = sqlx::query!(
            r#"
            INSERT INTO binding
                (tenant_id, agent_id, revision, tool_id, hash, position, functions, grants, limits, record, approval,
                 approval_expires_seconds)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
            "#,
            tx.tenant().uuid(),
            agent.uuid(),
            revision,
            binding.tool_id.uuid(),
            binding.version.as_bytes(),
            position,
            functions.as_deref(),
            Json(&binding.grants) as _,
            Json(&binding.limits) as _,
            binding.record,
            (!binding.approval.is_never()).then_some(Json(&binding.approval)) as _,
            binding.approval_expires_seconds.map(u32::cast_signed),
        )
        .execute(tx.conn())
        .await;
        match inserted {
            // The version was deleted since it was looked up.
            Err(error) if DbError::violates(&error, "binding_version") => {
                let (tool, version) = (binding.tool.clone(), VersionRef::Hash(binding.version));
                let at = usize::try_from(position).unwrap_or_default();
                return Err(BindingError { at, reason: BindingReason::VersionNotFound { tool, version } }.into());
            }
            done => done?,
        };
    }
    Ok(())
}

/// The bindings of some revisions, each in its order.
pub(crate) async fn of_revisions(
    tx: &mut TenantTx,
    revisions: &[(Uuid, i32)],
) -> Result<HashMap<(Uuid, i32), Vec<Binding>>, AgentError> {
    let (agents, numbers): (Vec<Uuid>, Vec<i32>) = revisions.iter().copied().unzip();
    let rows = sqlx::query!(
        r#"
        SELECT b.agent_id, b.revision, b.tool_id, t.name AS tool, b.hash, b.functions,
               b.grants AS "grants: Json<Grants>", b.limits AS "limits: Json<Limits>", b.record, v.requires,
               b.approval AS "approval: Json<ApprovalRule>", b.approval_expires_seconds
        FROM binding b
        JOIN tool t ON t.tenant_id = b.tenant_id AND t.tool_id = b.tool_id
        JOIN tool_version v ON v.tenant_id = b.tenant_id AND v.tool_id = b.tool_id AND v.hash = b.hash
        WHERE b.tenant_id = $1 AND (b.agent_id, b.revision) IN (SELECT * FROM UNNEST($2::uuid[], $3::integer[]))
        ORDER BY b.agent_id, b.revision, b.position
        "#,
        tx.tenant().uuid(),
        &agents,
        &numbers,
    )
    .fetch_all(tx.conn())
    .await?;
    let mut bindings: HashMap<_, Vec<_>> = HashMap::new();
    for row in rows {
        bindings.entry((row.agent_id, row.revision)).or_default().push(Binding {
            tool_id: row.tool_id.into(),
            tool: row.tool.parse().map_err(crate::unreadable)?,
            version: hash(&row.hash)?,
            functions: row.functions.map(names).transpose()?,
            missing: Requires::parse(&row.requires).unwrap_or_default().lacks(&row.grants.0),
            grants: row.grants.0,
            limits: row.limits.0,
            approval: row.approval.unwrap_or_default().0,
            approval_expires_seconds: row.approval_expires_seconds.map(i32::cast_unsigned),
            record: row.record,
        });
    }
    Ok(bindings)
}

/// What a run of a revision may call.
pub(crate) async fn functions(
    tx: &mut TenantTx,
    agent: AgentId,
    revision: i32,
) -> Result<Vec<BoundFunction>, AgentError> {
    let rows = sqlx::query!(
        r#"
        SELECT b.tool_id, t.name AS tool, b.hash, b.functions, b.grants AS "grants: Json<Grants>",
               b.limits AS "limits: Json<Limits>", b.record, v.functions AS "has: Json<Vec<Function>>",
               b.approval AS "approval: Json<ApprovalRule>", b.approval_expires_seconds
        FROM binding b
        JOIN tool t ON t.tenant_id = b.tenant_id AND t.tool_id = b.tool_id
        JOIN tool_version v ON v.tenant_id = b.tenant_id AND v.tool_id = b.tool_id AND v.hash = b.hash
        WHERE b.tenant_id = $1 AND b.agent_id = $2 AND b.revision = $3
        ORDER BY b.position
        "#,
        tx.tenant().uuid(),
        agent.uuid(),
        revision,
    )
    .fetch_all(tx.conn())
    .await?;
    let mut bound = Vec::new();
    for row in rows {
        let tool: ToolName = row.tool.parse().map_err(crate::unreadable)?;
        let only = row.functions.map(names).transpose()?;
        let artifact = hash(&row.hash)?;
        let grants = Arc::new(row.grants.0);
        let (approval, expires) = (row.approval.unwrap_or_default().0, row.approval_expires_seconds);
        let wait = |name: &FunctionName| {
            (approval.of(name) == When::Always).then(|| approval::expires(expires.map(i32::cast_unsigned)))
        };
        let given = row.has.0.into_iter().filter(|function| gives(only.as_deref(), &function.name));
        bound.extend(given.map(|function| BoundFunction {
            approval: wait(&function.name),
            spec: FunctionSpec {
                model_name: model_name(&tool, &function.name),
                tool: tool.clone(),
                function: function.name,
                description: function.description,
                input_schema: function.input_schema,
            },
            tool_id: row.tool_id.into(),
            artifact,
            grants: Arc::clone(&grants),
            limits: row.limits.0,
            record: row.record,
        }));
    }
    Ok(bound)
}

fn names(texts: Vec<String>) -> Result<Vec<FunctionName>, sqlx::Error> {
    texts.iter().map(|text| text.parse().map_err(crate::unreadable)).collect()
}

fn hash(bytes: &[u8]) -> Result<ArtifactHash, sqlx::Error> {
    bytes.try_into().map(ArtifactHash::from_bytes).map_err(crate::unreadable)
}

#[cfg(test)]
mod tests;
