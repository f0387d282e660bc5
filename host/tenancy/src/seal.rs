//! Secrets at rest: envelope encryption with XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha).
//!
//! A value is sealed by its tenant's data key; the data key by the key-encryption key, which is derived from the master
//! key and never in the database. Both seals are bound to what they are of, so that a ciphertext moved to another row
//! does not open.

use chacha20poly1305::{
    XChaCha20Poly1305, XNonce,
    aead::{Aead, KeyInit, Payload},
};
use domain::{Kind, Problem, Timestamp};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::{DbError, TenantTx};

const NONCE_BYTES: usize = 24;

/// The secret from which every other secret of the installation is derived. Kept outside of the database.
#[derive(Clone)]
pub struct MasterKey(Zeroizing<[u8; 32]>);

impl MasterKey {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// A key for one purpose: HMAC-SHA256 of its name (RFC 5869, expand with one block).
    pub fn derive(&self, purpose: &str) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(hmac(&self.0[..], purpose.as_bytes()))
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
    let row = sqlx::query_scalar!(
        "SELECT sealed FROM data_key WHERE tenant_id = $1 AND version = $2",
        tx.tenant().uuid(),
        sealed.data_key_version,
    )
    .fetch_optional(tx.conn())
    .await?
    .ok_or(SealError::DoesNotOpen)?;
    let key = decrypt(&kek(master)[..], &key_context(tx, sealed.data_key_version), &row)?;
    decrypt(&key, &value_context(tx, context, sealed.data_key_version), &sealed.bytes)
}

async fn newest_data_key(
    tx: &mut TenantTx,
    master: &MasterKey,
) -> Result<Option<(i32, Zeroizing<Vec<u8>>)>, SealError> {
    let row = sqlx::query!(
        "SELECT version, sealed FROM data_key WHERE tenant_id = $1 ORDER BY version DESC LIMIT 1",
        tx.tenant().uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    let Some(row) = row else { return Ok(None) };
    let key = decrypt(&kek(master)[..], &key_context(tx, row.version), &row.sealed)?;
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
    let sealed = encrypt(&kek(master)[..], &key_context(tx, FIRST), &key)?;
    sqlx::query!(
        r#"
        INSERT INTO data_key (tenant_id, version, sealed, created_at) VALUES ($1, $2, $3, $4)
        ON CONFLICT (tenant_id, version) DO NOTHING
        "#,
        tx.tenant().uuid(),
        FIRST,
        sealed,
        now.offset(),
    )
    .execute(tx.conn())
    .await?;
    newest_data_key(tx, master).await?.ok_or(SealError::DoesNotOpen)
}

fn kek(master: &MasterKey) -> Zeroizing<[u8; 32]> {
    master.derive("belljar key-encryption key 1")
}

fn key_context(tx: &TenantTx, version: i32) -> String {
    format!("data_key\n{}\n{version}", tx.tenant())
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
