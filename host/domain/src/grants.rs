//! What a tool may touch. Deny by default: an absent grant is a denial.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Values that one call may see through `wasi:config`, in bytes of keys and values: they are held per call.
const CONFIG_BYTES_MAX: usize = 64 * 1024;

/// What one binding (or one direct call) grants. Capabilities join this as they arrive; a request that names one that
/// is not here is refused rather than forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Grants {
    /// Values the tool reads by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, String>,
}

/// Why grants cannot be given.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GrantsError {
    #[error("`config` holds {0} bytes, more than {CONFIG_BYTES_MAX}; give the tool less")]
    ConfigTooLarge(usize),
    #[error("`config` has a key that is empty or longer than 128 bytes; rename it")]
    BadConfigKey,
}

impl Grants {
    pub fn check(&self) -> Result<(), GrantsError> {
        if self.config.keys().any(|key| key.is_empty() || key.len() > 128) {
            return Err(GrantsError::BadConfigKey);
        }
        let bytes = self.config.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > CONFIG_BYTES_MAX {
            return Err(GrantsError::ConfigTooLarge(bytes));
        }
        Ok(())
    }

    /// The grants of one call: `{external_user_id}` in a config value becomes that id. `None` when a value asks for it
    /// and the call has none.
    pub fn for_call(&self, external_user_id: Option<&str>) -> Option<Grants> {
        const PLACE: &str = "{external_user_id}";
        let config = self
            .config
            .iter()
            .map(|(key, value)| match (value.contains(PLACE), external_user_id) {
                (false, _) => Some((key.clone(), value.clone())),
                (true, Some(id)) => Some((key.clone(), value.replace(PLACE, id))),
                (true, None) => None,
            })
            .collect::<Option<_>>()?;
        Some(Grants { config })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_for_a_user_needs_one() {
        let grants = Grants { config: [("path".into(), "u/{external_user_id}".into())].into() };
        assert_eq!(grants.for_call(None), None);
        assert_eq!(grants.for_call(Some("ada")).unwrap().config["path"], "u/ada");
    }
}
