//! What a tenant's tools have stored: entries of a key, in namespaces.
//!
//! Tools read through `read` and `keys` and write through `apply`, in the transaction of their step; the tenant itself
//! looks and writes through the others.

mod changes;
mod error;

use bytes::Bytes;
use domain::Timestamp;
use serde::Serialize;
use tenancy::{DbError, TenantTx};
use tool_api::{Change, Operation};

pub use changes::{Applied, apply};
pub use error::KeyValueError;

use crate::page::{TextPage, TextPageRequest};

/// Bytes of a key: it is part of an index's entry.
pub const KEY_BYTES_MAX: usize = 512;
/// Bytes of a value: a call holds what it reads and writes in memory.
pub const VALUE_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a namespace, an end user's id included. It is part of an index's entry.
pub const NAMESPACE_BYTES_MAX: usize = 1024;
/// Entries of one tenant: lists and deletions of a whole tenant stay possible.
pub const ENTRIES_MAX: i64 = 1_000_000;

/// An entry, without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Entry {
    pub namespace: String,
    pub key: String,
    /// Of the value.
    pub size_bytes: u64,
    pub updated_at: Timestamp,
}

/// A namespace that has entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Namespace {
    pub namespace: String,
    pub entries: u64,
    /// Of names, keys and values: what counts against the plan's `storage_bytes`.
    pub bytes: u64,
}

/// What an entry holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub value: Bytes,
    pub updated_at: Timestamp,
}

/// Whether a text may be a namespace, with an end user's id filled in (percent-encoded).
fn is_namespace(text: &str) -> bool {
    (1..=NAMESPACE_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'/' | b'-' | b'%'))
}

/// Whether a text may be a key. Postgres stores every character but one.
fn is_key(text: &str) -> bool {
    (1..=KEY_BYTES_MAX).contains(&text.len()) && !text.contains('\0')
}

fn check(namespace: &str, key: &str) -> Result<(), KeyValueError> {
    if !is_namespace(namespace) {
        return Err(KeyValueError::BadNamespace);
    }
    if is_key(key) { Ok(()) } else { Err(KeyValueError::BadKey) }
}

pub async fn get(tx: &mut TenantTx, namespace: &str, key: &str) -> Result<Stored, KeyValueError> {
    check(namespace, key)?;
    stored(tx, namespace, key).await?.ok_or(KeyValueError::NotFound)
}

/// Writes an entry. The answer's second part says whether it is new. `storage_bytes_max` is the plan's.
pub async fn put(
    tx: &mut TenantTx,
    storage_bytes_max: i64,
    namespace: &str,
    key: &str,
    value: Bytes,
    now: Timestamp,
) -> Result<(Entry, bool), KeyValueError> {
    check(namespace, key)?;
    if value.len() > VALUE_BYTES_MAX {
        return Err(KeyValueError::ValueTooLarge(value.len()));
    }
    let entry =
        Entry { namespace: namespace.to_owned(), key: key.to_owned(), size_bytes: value.len() as u64, updated_at: now };
    let existed = write(tx, storage_bytes_max, namespace, key, Operation::Set(value), now).await?;
    Ok((entry, !existed))
}

pub async fn delete(tx: &mut TenantTx, namespace: &str, key: &str, now: Timestamp) -> Result<(), KeyValueError> {
    check(namespace, key)?;
    // Deleting needs no room.
    let existed = write(tx, i64::MAX, namespace, key, Operation::Delete, now).await?;
    if existed { Ok(()) } else { Err(KeyValueError::NotFound) }
}

/// One change outside of a call. Answers whether there was an entry.
async fn write(
    tx: &mut TenantTx,
    storage_bytes_max: i64,
    namespace: &str,
    key: &str,
    operation: Operation,
    now: Timestamp,
) -> Result<bool, KeyValueError> {
    let change = Change { namespace: namespace.to_owned(), key: key.to_owned(), operation, seen: None };
    let (mut applied, existed) = changes::commit(tx, storage_bytes_max, &[std::slice::from_ref(&change)], now).await?;
    match applied.pop() {
        Some(Applied::Quota { bytes, max }) => Err(KeyValueError::Quota { bytes, max }),
        Some(Applied::TooManyEntries) => Err(KeyValueError::TooManyEntries),
        _ => Ok(existed.contains(&(namespace, key))),
    }
}

/// Entries of a namespace whose key begins with `prefix`, by key, in the order of bytes.
pub async fn list(
    tx: &mut TenantTx,
    namespace: &str,
    prefix: &str,
    page: TextPageRequest,
) -> Result<TextPage<Entry>, KeyValueError> {
    check(namespace, if prefix.is_empty() { "any" } else { prefix })?;
    let rows = sqlx::query!(
        r#"
        SELECT key, octet_length(value) AS "size!", updated_at FROM kv_entry
        WHERE tenant_id = $1 AND namespace = $2 AND key >= $3 AND ($4::text IS NULL OR key < $4)
            AND ($5::text IS NULL OR key > $5)
        ORDER BY key
        LIMIT $6
        "#,
        tx.tenant().uuid(),
        namespace,
        prefix,
        behind(prefix),
        page.after.as_deref(),
        page.rows(),
    )
    .fetch_all(tx.conn())
    .await?;
    let entries = rows
        .into_iter()
        .map(|row| Entry {
            namespace: namespace.to_owned(),
            key: row.key,
            size_bytes: row.size.unsigned_abs().into(),
            updated_at: row.updated_at.into(),
        })
        .collect();
    Ok(TextPage::cut(entries, &page, |entry: &Entry| entry.key.as_str()))
}

/// The first text, in the order of bytes, behind all that begin with `prefix`. UTF-8 keeps the order of code points.
fn behind(prefix: &str) -> Option<String> {
    let mut text = prefix.to_owned();
    loop {
        let next = match text.pop()? {
            '\u{d7ff}' => Some('\u{e000}'),
            last => char::from_u32(u32::from(last) + 1),
        };
        if let Some(next) = next {
            text.push(next);
            return Some(text);
        }
    }
}

/// Namespaces that have entries, by name, in the order of bytes.
pub async fn namespaces(tx: &mut TenantTx, page: TextPageRequest) -> Result<TextPage<Namespace>, KeyValueError> {
    let rows = sqlx::query!(
        r#"
        SELECT namespace, count(*) AS "entries!",
               sum(octet_length(namespace) + octet_length(key) + octet_length(value)) AS "bytes!"
        FROM kv_entry
        WHERE tenant_id = $1 AND ($2::text IS NULL OR namespace > $2)
        GROUP BY namespace
        ORDER BY namespace
        LIMIT $3
        "#,
        tx.tenant().uuid(),
        page.after.as_deref(),
        page.rows(),
    )
    .fetch_all(tx.conn())
    .await?;
    let namespaces = rows
        .into_iter()
        .map(|row| Namespace {
            namespace: row.namespace,
            entries: row.entries.unsigned_abs(),
            bytes: row.bytes.unsigned_abs(),
        })
        .collect();
    Ok(TextPage::cut(namespaces, &page, |namespace: &Namespace| namespace.namespace.as_str()))
}

/// The value of a key, for a call. What cannot be a key has none.
pub async fn read(tx: &mut TenantTx, namespace: &str, key: &str) -> Result<Option<Bytes>, DbError> {
    if check(namespace, key).is_err() {
        return Ok(None);
    }
    Ok(stored(tx, namespace, key).await?.map(|stored| stored.value))
}

/// Keys of a namespace in the order of bytes, for a call: at most `limit`, from the first one behind `after`.
pub async fn keys(tx: &mut TenantTx, namespace: &str, after: Option<&str>, limit: u32) -> Result<Vec<String>, DbError> {
    if check(namespace, after.filter(|after| !after.is_empty()).unwrap_or("any")).is_err() {
        return Ok(Vec::new());
    }
    Ok(sqlx::query_scalar!(
        r#"
        SELECT key FROM kv_entry
        WHERE tenant_id = $1 AND namespace = $2 AND ($3::text IS NULL OR key > $3)
        ORDER BY key
        LIMIT $4
        "#,
        tx.tenant().uuid(),
        namespace,
        after,
        i64::from(limit),
    )
    .fetch_all(tx.conn())
    .await?)
}

async fn stored(tx: &mut TenantTx, namespace: &str, key: &str) -> Result<Option<Stored>, sqlx::Error> {
    let row = sqlx::query!(
        "SELECT value, updated_at FROM kv_entry WHERE tenant_id = $1 AND namespace = $2 AND key = $3",
        tx.tenant().uuid(),
        namespace,
        key,
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.map(|row| Stored { value: row.value.into(), updated_at: row.updated_at.into() }))
}

/// What a tenant's entries come to. Until the transaction ends, nobody else changes them.
pub(crate) async fn lock_usage(tx: &mut TenantTx) -> Result<changes::Sums, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        INSERT INTO kv_usage AS u (tenant_id) VALUES ($1)
        ON CONFLICT (tenant_id) DO UPDATE SET bytes = u.bytes
        RETURNING bytes, entries
        "#,
        tx.tenant().uuid(),
    )
    .fetch_one(tx.conn())
    .await?;
    Ok(changes::Sums { bytes: row.bytes, entries: row.entries })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_name_is_none() {
        for bad in ["", "a b", "notes/{external_user_id}", "ä", "a\0", &"n".repeat(1025)] {
            assert!(!is_namespace(bad), "{bad}");
        }
        for good in ["notes", "notes/..%2Fada%25", &"n".repeat(1024)] {
            assert!(is_namespace(good), "{good}");
        }
        for bad in ["", "a\0b", &"k".repeat(513)] {
            assert!(!is_key(bad), "{bad}");
        }
        for good in ["k", "a/b c ä\n", &"k".repeat(512)] {
            assert!(is_key(good), "{good}");
        }
    }

    #[test]
    fn a_prefix_ends_where_the_next_begins() {
        assert_eq!(behind(""), None);
        assert_eq!(behind("\u{10ffff}"), None);
        for (prefix, next) in [("a", "b"), ("az\u{10ffff}", "a{"), ("a\u{d7ff}", "a\u{e000}"), ("a\u{7f}", "a\u{80}")] {
            assert_eq!(behind(prefix).as_deref(), Some(next));
            assert!(prefix.as_bytes() < next.as_bytes() && format!("{prefix}\u{10ffff}x").as_str() < next);
        }
    }
}
