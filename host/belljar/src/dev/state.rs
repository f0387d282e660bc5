//! What `dev` keeps in its data directory beside the database.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use domain::{SecretString, TenantId};
use serde::{Deserialize, Serialize};
use tenancy::seal::MasterKey;

use crate::{config, private_file};

/// `dev.json`: everything that a script needs. One field a line, so that `sed` can read it too.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DevFile {
    pub(crate) base_url: String,
    pub(crate) operator_url: String,
    pub(crate) api_key: String,
    pub(crate) operator_token: String,
    pub(crate) tenant_id: TenantId,
    /// Of the application role.
    pub(crate) database_url: String,
    pub(crate) owner_database_url: String,
    /// Null when the database is not a private one.
    pub(crate) superuser_database_url: Option<String>,
}

impl DevFile {
    /// `None` when there is none, or one that nobody can read: then a new key is made.
    pub(crate) fn read(path: &Path) -> Option<DevFile> {
        serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
    }
}

/// Secrets that are made once.
pub(crate) struct Owned {
    pub(crate) master_key: MasterKey,
    pub(crate) operator_token: SecretString,
}

impl Owned {
    pub(crate) fn load(data_dir: &Path) -> anyhow::Result<Owned> {
        let path = data_dir.join("master.key");
        let master_key = config::parse_key(&private_file::random_once(&path)?).map_err(|reason| {
            anyhow::anyhow!(
                "`{}` {reason}; restore it, or remove the whole data directory to begin anew",
                path.display()
            )
        })?;
        let master_key = MasterKey::new(*master_key);
        let operator_token = private_file::random_once(&data_dir.join("operator.token"))?;
        Ok(Owned { master_key, operator_token })
    }
}

/// The address under which a listener is reached from this machine.
pub(crate) fn reachable(listener: SocketAddr) -> SocketAddr {
    let ip = match listener.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listener.port())
}
