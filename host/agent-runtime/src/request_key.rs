//! A model provider's key that a request brought: sealed with the run, opened by whoever drives it, and erased by the
//! database in the commit that ends the run.

use agent_config::provider_keys::ProviderKeyError;
use domain::{ExposeSecret, RunId, SecretString, Timestamp};
use tenancy::{
    TenantTx,
    seal::{self, MasterKey, SealError, Sealed},
};

use crate::runs::RunError;

/// What binds a sealed key to its run.
fn context(run: RunId) -> String {
    format!("run/{run}/provider_key")
}

pub(crate) async fn store(
    tx: &mut TenantTx,
    master: &MasterKey,
    run: RunId,
    key: &SecretString,
    now: Timestamp,
) -> Result<(), RunError> {
    let sealed = seal::seal(tx, master, &context(run), key.expose_secret().as_bytes(), now).await.map_err(failed)?;
    sqlx::query!(
        "UPDATE run SET provider_key = $3, provider_key_version = $4 WHERE tenant_id = $1 AND run_id = $2",
        tx.tenant().uuid(),
        run.uuid(),
        sealed.bytes,
        sealed.data_key_version,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

pub(crate) async fn open(tx: &mut TenantTx, master: &MasterKey, run: RunId) -> Result<Option<SecretString>, RunError> {
    let row = sqlx::query!(
        r#"
        SELECT provider_key AS "bytes!", provider_key_version AS "version!" FROM run
        WHERE tenant_id = $1 AND run_id = $2 AND provider_key IS NOT NULL
        "#,
        tx.tenant().uuid(),
        run.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    let Some(row) = row else { return Ok(None) };
    let sealed = Sealed { bytes: row.bytes, data_key_version: row.version };
    let plain = seal::open(tx, master, &context(run), &sealed).await.map_err(failed)?;
    let text = std::str::from_utf8(&plain).map_err(|_| failed(SealError::DoesNotOpen))?;
    Ok(Some(SecretString::from(text)))
}

fn failed(error: SealError) -> RunError {
    ProviderKeyError::from(error).into()
}
