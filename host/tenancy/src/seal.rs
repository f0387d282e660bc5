//! Secrets at rest: envelope encryption with XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha).
//!
//! A value is sealed by its tenant's data key; the data key by a key-encryption key, which is derived from the master
//! key or given beside it, and never in the database. Both seals are bound to what they are of, so that a ciphertext
//! moved to another row does not open.

use std::{collections::BTreeMap, sync::Arc};

use chacha20poly1305::{
    XChaCha20Poly1305, XNonce,
    aead::{Aead, KeyInit, Payload},
};
use domain::{Kind, Problem, TenantId, Timestamp};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::{DbError, TenantTx};

const NONCE_BYTES: usize = 24;
const INSTALLATION_KEY: &str = "belljar operator's answers 1";

/// The secret from which every other secret of the installation is derived, and the key-encryption keys given beside it.
/// Kept outside of the database.
#[derive(Clone)]
pub struct MasterKey {
    bytes: Zeroizing<[u8; 32]>,
    /// Data keys are sealed under this one. `None`: under the one that is derived.
    current: Option<Arc<Kek>>,
    previous: Arc<[Kek]>,
}

/// A key-encryption key that was given by the operator. It seals data keys and nothing else.
pub struct Kek(Zeroizing<[u8; 32]>);

impl Kek {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// 16 hex digits by which rows name it. They say nothing of the key.
    pub fn id(&self) -> String {
        hex::encode(&hmac(&self.0[..], b"id")[..8])
    }
}

impl MasterKey {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self { bytes: Zeroizing::new(bytes), current: None, previous: Arc::new([]) }
    }

    /// The same with key-encryption keys: data keys are sealed under `current` from now on, and open under all of them.
    /// The derived one always opens what it sealed.
    #[must_use]
    pub fn with_keks(self, current: Option<Kek>, previous: Vec<Kek>) -> Self {
        Self { current: current.map(Arc::new), previous: previous.into(), ..self }
    }

    /// A key for one purpose: HMAC-SHA256 of its name (RFC 5869, expand with one block).
    pub fn derive(&self, purpose: &str) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(hmac(&self.bytes[..], purpose.as_bytes()))
    }

    /// The id of the key-encryption key that seals; `None`: it is the derived one.
    pub(crate) fn current_kek(&self) -> Option<String> {
        self.current.as_ref().map(|kek| kek.id())
    }

    /// The key-encryption key of this id; of none, the derived one.
    fn kek(&self, id: Option<&str>) -> Result<Zeroizing<[u8; 32]>, SealError> {
        let Some(id) = id else { return Ok(self.derive("belljar key-encryption key 1")) };
        let mut given = self.current.as_deref().into_iter().chain(self.previous.iter());
        let found = given.find(|kek| kek.id() == id).ok_or_else(|| SealError::UnknownKek(id.to_owned()))?;
        Ok(found.0.clone())
    }

    pub(crate) fn open_data_key(
        &self,
        tenant: TenantId,
        version: i32,
        kek: Option<&str>,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        decrypt(&self.kek(kek)?[..], &key_context(tenant, version), sealed)
    }

    pub(crate) fn seal_data_key(&self, tenant: TenantId, version: i32, key: &[u8]) -> Result<Vec<u8>, SealError> {
        encrypt(&self.kek(self.current_kek().as_deref())?[..], &key_context(tenant, version), key)
    }
}

pub(crate) fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of every length (RFC 2104)")]
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("a key of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

/// A sealed value, and which of the tenant's data keys opens it.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// Nonce (24 bytes), then ciphertext and tag.
    pub bytes: Vec<u8>,
    pub data_key_version: i32,
}

#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The master key is another one than the value was sealed under, or the row was tampered with.
    #[error("a stored secret does not open; check that the master key is the one it was stored under")]
    DoesNotOpen,
    #[error(
        "a stored secret is sealed under the key-encryption key `{0}`, which this process does not have; add that key to \
         `previous_key_encryption_keys`"
    )]
    UnknownKek(String),
    #[error("no randomness from the operating system")]
    NoRandomness,
    #[error(transparent)]
    Db(#[from] DbError),
}

impl Problem for SealError {
    fn kind(&self) -> Kind {
        match self {
            SealError::Db(error) => error.kind(),
            _ => Kind::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            SealError::Db(error) => error.code(),
            _ => "internal",
        }
    }
}

impl From<sqlx::Error> for SealError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

/// Seals `plain` for this tenant. `context` says what it is of, for example `provider_key/main`; the same context opens it.
pub async fn seal(
    tx: &mut TenantTx,
    master: &MasterKey,
    context: &str,
    plain: &[u8],
    now: Timestamp,
) -> Result<Sealed, SealError> {
    let (version, key) = match newest_data_key(tx, master).await? {
        Some(found) => found,
        None => new_data_key(tx, master, now).await?,
    };
    let bytes = encrypt(&key, &value_context(tx, context, version), plain)?;
    Ok(Sealed { bytes, data_key_version: version })
}

pub async fn open(
    tx: &mut TenantTx,
    master: &MasterKey,
    context: &str,
    sealed: &Sealed,
) -> Result<Zeroizing<Vec<u8>>, SealError> {
    open_all(tx, master, &[(context, sealed)]).await?.pop().ok_or(SealError::DoesNotOpen)
}

/// Opens values with their contexts, in their order, with one statement.
pub async fn open_all(
    tx: &mut TenantTx,
    master: &MasterKey,
    values: &[(&str, &Sealed)],
) -> Result<Vec<Zeroizing<Vec<u8>>>, SealError> {
    let versions: Vec<i32> = values.iter().map(|(_, sealed)| sealed.data_key_version).collect();
    let rows = sqlx::query!(
        "SELECT version, sealed, kek FROM data_key WHERE tenant_id = $1 AND version = ANY($2)",
        tx.tenant().uuid(),
        &versions,
    )
    .fetch_all(tx.conn())
    .await?;
    let mut keys = BTreeMap::new();
    for row in rows {
        keys.insert(row.version, master.open_data_key(tx.tenant(), row.version, row.kek.as_deref(), &row.sealed)?);
    }
    let open = |(context, sealed): &(&str, &Sealed)| {
        let key = keys.get(&sealed.data_key_version).ok_or(SealError::DoesNotOpen)?;
        decrypt(key, &value_context(tx, context, sealed.data_key_version), &sealed.bytes)
    };
    values.iter().map(open).collect()
}

/// Seals what is the operator's and of no tenant, under a key that is derived from the master key.
pub(crate) fn seal_installation(master: &MasterKey, context: &str, plain: &[u8]) -> Result<Vec<u8>, SealError> {
    encrypt(&master.derive(INSTALLATION_KEY)[..], context, plain)
}

pub(crate) fn open_installation(
    master: &MasterKey,
    context: &str,
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, SealError> {
    decrypt(&master.derive(INSTALLATION_KEY)[..], context, sealed)
}

async fn newest_data_key(
    tx: &mut TenantTx,
    master: &MasterKey,
) -> Result<Option<(i32, Zeroizing<Vec<u8>>)>, SealError> {
    let row = sqlx::query!(
        "SELECT version, sealed, kek FROM data_key WHERE tenant_id = $1 ORDER BY version DESC LIMIT 1",
        tx.tenant().uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    let Some(row) = row else { return Ok(None) };
    let key = master.open_data_key(tx.tenant(), row.version, row.kek.as_deref(), &row.sealed)?;
    Ok(Some((row.version, key)))
}

/// The tenant's first data key. Of two transactions that make one at once, the later waits and takes the first's.
async fn new_data_key(
    tx: &mut TenantTx,
    master: &MasterKey,
    now: Timestamp,
) -> Result<(i32, Zeroizing<Vec<u8>>), SealError> {
    const FIRST: i32 = 1;
    let mut key = Zeroizing::new(vec![0; 32]);
    getrandom::fill(&mut key).map_err(|_| SealError::NoRandomness)?;
    let sealed = master.seal_data_key(tx.tenant(), FIRST, &key)?;
    sqlx::query!(
        r#"
        INSERT INTO data_key (tenant_id, version, sealed, kek, created_at) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (tenant_id, version) DO NOTHING
        "#,
        tx.tenant().uuid(),
        FIRST,
        sealed,
        master.current_kek(),
        now.offset(),
    )
    .execute(tx.conn())
    .await?;
    newest_data_key(tx, master).await?.ok_or(SealError::DoesNotOpen)
}

fn key_context(tenant: TenantId, version: i32) -> String {
    format!("data_key\n{tenant}\n{version}")
}

fn value_context(tx: &TenantTx, context: &str, version: i32) -> String {
    format!("value\n{}\n{context}\n{version}", tx.tenant())
}

fn encrypt(key: &[u8], context: &str, plain: &[u8]) -> Result<Vec<u8>, SealError> {
    let cipher = XChaCha20Poly1305::new_from_slice(key).map_err(|_| SealError::DoesNotOpen)?;
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|_| SealError::NoRandomness)?;
    let sealed = cipher
        .encrypt(&XNonce::from(nonce), Payload { msg: plain, aad: context.as_bytes() })
        .map_err(|_| SealError::DoesNotOpen)?;
    Ok([&nonce[..], &sealed].concat())
}

fn decrypt(key: &[u8], context: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let cipher = XChaCha20Poly1305::new_from_slice(key).map_err(|_| SealError::DoesNotOpen)?;
    let (nonce, body) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(SealError::DoesNotOpen)?;
    cipher
        .decrypt(&XNonce::from(*nonce), Payload { msg: body, aad: context.as_bytes() })
        .map(Zeroizing::new)
        .map_err(|_| SealError::DoesNotOpen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_opens_only_where_it_was_made() {
        let sealed = encrypt(&[7; 32], "value\nten_a\nx\n1", b"secret").unwrap();
        assert_eq!(&decrypt(&[7; 32], "value\nten_a\nx\n1", &sealed).unwrap()[..], b"secret");
        assert!(decrypt(&[7; 32], "value\nten_b\nx\n1", &sealed).is_err(), "another tenant");
        assert!(decrypt(&[7; 32], "value\nten_a\ny\n1", &sealed).is_err(), "another name");
        assert!(decrypt(&[8; 32], "value\nten_a\nx\n1", &sealed).is_err(), "another key");
        assert!(decrypt(&[7; 32], "value\nten_a\nx\n1", &sealed[..20]).is_err(), "cut");
    }
}
