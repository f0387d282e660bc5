//! What can be wrong with a tool or a version.

use domain::{FieldError, Kind, Problem, ToolName};
use tenancy::{DbError, tenants::TenantError};
use tool_api::{ArtifactHash, Rejection};

use super::{LABEL_BYTES_MAX, VersionRef};

#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("no such tool; `GET /v1/tools` lists yours")]
    NotFound(ToolName),
    #[error("the tool has no such version; `GET /v1/tools/{tool}/versions` lists those it has")]
    VersionNotFound { tool: ToolName, version: VersionRef },
    #[error("version `{0}` is still compiling; try again in a few seconds")]
    NotReady(ArtifactHash),
    /// The code is the rejection's own where it is shown; this is the code of the answer.
    #[error("the version was rejected ({}): {}", .0.code, .0.detail)]
    Rejected(Rejection),
    #[error(
        "the component has {bytes} bytes; this plan takes {max} at most: build it smaller (`--release`, `wasm-tools strip`)"
    )]
    TooLarge { bytes: i64, max: i64 },
    #[error(
        "the component would bring what you store to {bytes} bytes; this plan stores {max}: delete versions that no agent \
         uses, or key-value entries"
    )]
    StorageExceeded { bytes: i64, max: i64 },
    #[error("a label has 1 to {LABEL_BYTES_MAX} bytes and no control characters; shorten it")]
    BadLabel,
    #[error(
        "the tool has these bytes already, with another manifest, and a version does not change: delete version `{0}` first, \
         or upload another build"
    )]
    ManifestDiffers(ArtifactHash),
    #[error("`manifest`{} {}", .0.pointer, .0.detail)]
    BadManifest(FieldError),
    #[error("a revision of {} uses it, and keeps it; bind another version there for new runs, or keep it", agents(.0))]
    VersionInUse(Vec<String>),
    #[error("a revision of {} uses a version of it, and keeps it; it cannot be deleted", agents(.0))]
    InUse(Vec<String>),
    #[error(
        "the component could not be inspected now; it is kept and tried again by itself: look at the version later"
    )]
    NotInspected(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("{0} uploads wait for their inspection already; upload again when some of them are done")]
    TooManyWaiting(usize),
    #[error(transparent)]
    Tenant(#[from] TenantError),
    #[error(transparent)]
    Db(#[from] DbError),
}

fn agents(names: &[String]) -> String {
    match names {
        [] => "an agent".into(),
        names => names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
    }
}

impl From<sqlx::Error> for ToolError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

impl Problem for ToolError {
    fn kind(&self) -> Kind {
        match self {
            ToolError::NotFound(_) | ToolError::VersionNotFound { .. } => Kind::NotFound,
            ToolError::NotReady(_)
            | ToolError::ManifestDiffers(_)
            | ToolError::VersionInUse(_)
            | ToolError::InUse(_) => Kind::Conflict,
            ToolError::Rejected(_) | ToolError::BadLabel | ToolError::BadManifest(_) => Kind::Invalid,
            ToolError::TooLarge { .. } | ToolError::StorageExceeded { .. } => Kind::TooLarge,
            ToolError::NotInspected(_) => Kind::Unavailable,
            ToolError::TooManyWaiting(_) => Kind::TooMany,
            ToolError::Tenant(error) => error.kind(),
            ToolError::Db(error) => error.kind(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            ToolError::NotFound(_) => "tool.not_found",
            ToolError::VersionNotFound { .. } => "tool_version.not_found",
            ToolError::NotReady(_) => "tool_version.not_ready",
            ToolError::Rejected(_) => "tool_version.rejected",
            ToolError::TooLarge { .. } => "tool_version.too_large",
            ToolError::StorageExceeded { .. } => "tool.storage_exceeded",
            ToolError::BadLabel => "tool_version.bad_label",
            ToolError::ManifestDiffers(_) => "tool_version.manifest_differs",
            ToolError::BadManifest(_) => "tool_version.bad_manifest",
            ToolError::VersionInUse(_) => "tool_version.in_use",
            ToolError::InUse(_) => "tool.in_use",
            ToolError::NotInspected(_) => "tool_version.not_inspected",
            ToolError::TooManyWaiting(_) => "tool_version.too_many_waiting",
            ToolError::Tenant(error) => error.code(),
            ToolError::Db(error) => error.code(),
        }
    }

    fn fields(&self) -> Vec<FieldError> {
        match self {
            ToolError::BadLabel => vec![FieldError::new("/label", self.to_string())],
            ToolError::BadManifest(mistake) => {
                vec![FieldError::new(format!("/manifest{}", mistake.pointer), mistake.detail.clone())]
            }
            _ => Vec::new(),
        }
    }

    fn retry_after_seconds(&self) -> Option<u64> {
        match self {
            ToolError::NotReady(_) => Some(2),
            ToolError::NotInspected(_) | ToolError::TooManyWaiting(_) => Some(5),
            ToolError::Tenant(error) => error.retry_after_seconds(),
            ToolError::Db(error) => error.retry_after_seconds(),
            _ => None,
        }
    }
}
