//! What calls leave in the store: decided against what is stored now, written in few statements.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use bytes::Bytes;
use domain::{CallId, Timestamp};
use tenancy::{DbError, TenantTx};
use tool_api::{Change, Operation, Seen};

use super::{ENTRIES_MAX, VALUE_BYTES_MAX, is_key, is_namespace, lock_usage};

/// Digits of the largest number that an increment can come to.
const NUMBER_DIGITS_MAX: usize = 20;

/// What became of a call's changes: all of them, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    Applied,
    /// The call saw something else of this key than what is stored.
    Conflict {
        namespace: String,
        key: String,
    },
    /// They would bring what the tenant stores to `bytes`.
    Quota {
        bytes: i64,
        max: i64,
    },
    TooManyEntries,
    /// An increment of something that is no decimal number, or of one that would become too large.
    NotANumber {
        namespace: String,
        key: String,
    },
    /// A name or a value that no entry has. An executor refuses it before.
    BadEntry {
        namespace: String,
        key: String,
    },
}

impl Applied {
    /// The outcome's code; `None` when the changes were applied.
    pub fn code(&self) -> Option<&'static str> {
        match self {
            Applied::Applied => None,
            Applied::Conflict { .. } => Some("kv.conflict"),
            Applied::Quota { .. } | Applied::TooManyEntries => Some("kv.quota"),
            Applied::NotANumber { .. } => Some("kv.not_a_number"),
            Applied::BadEntry { .. } => Some("kv.bad_entry"),
        }
    }
}

/// The outcome's words.
impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Applied::Applied => f.write_str("what the call wrote is stored"),
            Applied::Conflict { namespace, key } => write!(
                f,
                "another call changed `{key}` of `{namespace}` after this one had read it; nothing that this call wrote is \
                 stored: call again"
            ),
            Applied::Quota { bytes, max } => write!(
                f,
                "what the call wrote would bring the tenant to {bytes} bytes, and its plan stores {max}; nothing of it is \
                 stored: delete entries first"
            ),
            Applied::TooManyEntries => write!(
                f,
                "a tenant has at most {ENTRIES_MAX} entries; nothing that this call wrote is stored: delete entries first"
            ),
            Applied::NotANumber { namespace, key } => write!(
                f,
                "`{key}` of `{namespace}` is not a decimal number that can be incremented by so much; nothing that this call \
                 wrote is stored"
            ),
            Applied::BadEntry { namespace, key } => {
                write!(f, "`{key}` of `{namespace}` cannot be stored; nothing that this call wrote is stored")
            }
        }
    }
}

/// What a tenant's entries come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) bytes: i64,
    pub(crate) entries: i64,
}

/// How much there may be.
#[derive(Debug, Clone, Copy)]
struct Room {
    /// Of components, which count against the same number.
    other_bytes: i64,
    storage_bytes_max: i64,
}

/// Namespace and key.
type Place<'c> = (&'c str, &'c str);

/// What a key holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Absent,
    /// As it is in the database. `number`: short enough for one.
    Stored {
        bytes: i64,
        hash: [u8; 32],
        number: Option<Vec<u8>>,
    },
    New(Bytes),
}

impl Content {
    fn seen(&self) -> Seen {
        match self {
            Content::Absent => Seen::Absent,
            Content::Stored { hash, .. } => Seen::Value(*hash),
            Content::New(value) => Seen::of(Some(value)),
        }
    }

    fn value_bytes(&self) -> Option<i64> {
        match self {
            Content::Absent => None,
            Content::Stored { bytes, .. } => Some(*bytes),
            Content::New(value) => Some(length(value)),
        }
    }

    /// With the names: what the entry counts against the plan.
    fn bytes(&self, (namespace, key): Place<'_>) -> i64 {
        self.value_bytes().map_or(0, |bytes| bytes + length(namespace.as_bytes()) + length(key.as_bytes()))
    }

    /// An absent one is 0.
    fn number(&self) -> Option<u64> {
        let digits = match self {
            Content::Absent => return Some(0),
            Content::Stored { number, .. } => number.as_deref()?,
            Content::New(value) => value,
        };
        let plain = (1..=NUMBER_DIGITS_MAX).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
        if plain { std::str::from_utf8(digits).ok()?.parse().ok() } else { None }
    }
}

fn length(bytes: &[u8]) -> i64 {
    i64::try_from(bytes.len()).unwrap_or(i64::MAX)
}

/// Applies what the calls of a step have written, in their order, each wholly or not at all. Writers of one tenant take
/// turns until their transactions end. Calls that wrote nothing cost nothing. `storage_bytes_max` is the plan's.
pub async fn apply(
    tx: &mut TenantTx,
    storage_bytes_max: i64,
    calls: &[(CallId, Vec<Change>)],
    now: Timestamp,
) -> Result<Vec<(CallId, Applied)>, DbError> {
    let changes: Vec<&[Change]> = calls.iter().map(|(_, changes)| changes.as_slice()).collect();
    let (applied, _) = commit(tx, storage_bytes_max, &changes, now).await?;
    Ok(calls.iter().map(|(id, _)| *id).zip(applied).collect())
}

/// What became of each call's changes, and which of the keys they name had an entry before.
pub(super) async fn commit<'c>(
    tx: &mut TenantTx,
    storage_bytes_max: i64,
    calls: &[&'c [Change]],
    now: Timestamp,
) -> Result<(Vec<Applied>, BTreeSet<Place<'c>>), DbError> {
    if calls.iter().all(|changes| changes.is_empty()) {
        return Ok((vec![Applied::Applied; calls.len()], BTreeSet::new()));
    }
    let before = lock_usage(tx).await?;
    let (present, other_bytes) = load(tx, calls).await?;
    let existed = present.keys().copied().collect();
    let mut store = Store { present, written: BTreeMap::new(), sums: before };
    let room = Room { other_bytes, storage_bytes_max };
    let applied = calls.iter().map(|changes| store.apply(changes, room)).collect();
    write(tx, store, before, now).await?;
    Ok((applied, existed))
}

/// A tenant's store as far as some calls touch it.
struct Store<'c> {
    present: BTreeMap<Place<'c>, Content>,
    /// Over `present`: what the calls have come to so far.
    written: BTreeMap<Place<'c>, Content>,
    sums: Sums,
}

impl<'c> Store<'c> {
    fn content(&self, place: Place<'c>) -> &Content {
        self.written.get(&place).or_else(|| self.present.get(&place)).unwrap_or(&Content::Absent)
    }

    /// Applies the changes of one call, or says why none of them is.
    fn apply(&mut self, changes: &'c [Change], room: Room) -> Applied {
        match self.decide(changes, room) {
            Ok((written, sums)) => {
                self.written.extend(written);
                self.sums = sums;
                Applied::Applied
            }
            Err(refused) => refused,
        }
    }

    fn decide(&self, changes: &'c [Change], room: Room) -> Result<(BTreeMap<Place<'c>, Content>, Sums), Applied> {
        let mut written = BTreeMap::new();
        let mut sums = self.sums;
        for change in changes {
            let place = (change.namespace.as_str(), change.key.as_str());
            let named = || (change.namespace.clone(), change.key.clone());
            let large = matches!(&change.operation, Operation::Set(value) if value.len() > VALUE_BYTES_MAX);
            if !is_namespace(place.0) || !is_key(place.1) || large {
                let (namespace, key) = named();
                return Err(Applied::BadEntry { namespace, key });
            }
            if change.seen.is_some_and(|seen| seen != self.content(place).seen()) {
                let (namespace, key) = named();
                return Err(Applied::Conflict { namespace, key });
            }
            let old = written.get(&place).unwrap_or_else(|| self.content(place));
            let new = match &change.operation {
                Operation::Set(value) => Content::New(value.clone()),
                Operation::Delete => Content::Absent,
                Operation::Add(delta) => match old.number().and_then(|number| number.checked_add(*delta)) {
                    Some(sum) => Content::New(sum.to_string().into()),
                    None => {
                        let (namespace, key) = named();
                        return Err(Applied::NotANumber { namespace, key });
                    }
                },
            };
            sums.bytes += new.bytes(place) - old.bytes(place);
            sums.entries += i64::from(new != Content::Absent) - i64::from(*old != Content::Absent);
            written.insert(place, new);
        }
        // What makes the store smaller is welcome, also where a plan became smaller than what is stored.
        let bytes = sums.bytes.saturating_add(room.other_bytes);
        if sums.bytes > self.sums.bytes && bytes > room.storage_bytes_max {
            return Err(Applied::Quota { bytes, max: room.storage_bytes_max });
        }
        if sums.entries > self.sums.entries && sums.entries > ENTRIES_MAX {
            return Err(Applied::TooManyEntries);
        }
        Ok((written, sums))
    }
}

/// What is stored under the keys that the calls name, and the bytes of the tenant's components. Values stay where they
/// are, but for those that may be numbers.
async fn load<'c>(
    tx: &mut TenantTx,
    calls: &[&'c [Change]],
) -> Result<(BTreeMap<Place<'c>, Content>, i64), sqlx::Error> {
    let places: BTreeSet<Place<'c>> = calls
        .iter()
        .flat_map(|changes| changes.iter())
        .map(|change| (change.namespace.as_str(), change.key.as_str()))
        .filter(|(namespace, key)| is_namespace(namespace) && is_key(key))
        .collect();
    let (namespaces, keys) = columns(places.iter());
    // A statement of its own behind the lock, so that it sees what the one before us has committed.
    let rows = sqlx::query!(
        r#"
        SELECT k.place AS "place!", e.bytes AS "bytes?", e.hash AS "hash?", e.number AS "number?",
               (SELECT coalesce(sum(octet_length(bytes)), 0) FROM artifact WHERE tenant_id = $1)::bigint AS "other!"
        FROM UNNEST($2::text[], $3::text[]) WITH ORDINALITY AS k (namespace, key, place)
        LEFT JOIN LATERAL (
            SELECT octet_length(value) AS bytes, sha256(value) AS hash,
                   CASE WHEN octet_length(value) <= $4 THEN value END AS number
            FROM kv_entry
            WHERE tenant_id = $1 AND namespace = k.namespace COLLATE "C" AND key = k.key COLLATE "C"
        ) e ON true
        ORDER BY k.place
        "#,
        tx.tenant().uuid(),
        &namespaces,
        &keys,
        NUMBER_DIGITS_MAX as i32,
    )
    .fetch_all(tx.conn())
    .await?;
    let other_bytes = rows.first().map_or(0, |row| row.other);
    let mut present = BTreeMap::new();
    for (place, row) in places.into_iter().zip(rows) {
        if let (Some(bytes), Some(hash)) = (row.bytes, row.hash) {
            let hash = hash.try_into().map_err(|_| crate::unreadable("a hash has 32 bytes"))?;
            present.insert(place, Content::Stored { bytes: bytes.into(), hash, number: row.number });
        }
    }
    Ok((present, other_bytes))
}

async fn write(tx: &mut TenantTx, store: Store<'_>, before: Sums, now: Timestamp) -> Result<(), sqlx::Error> {
    let mut values: Vec<Vec<u8>> = Vec::new();
    let (mut kept, mut gone) = (Vec::new(), Vec::new());
    for (place, content) in &store.written {
        match content {
            Content::New(value) => {
                kept.push(*place);
                values.push(value.to_vec());
            }
            _ => gone.push(*place),
        }
    }
    if kept.is_empty() && gone.is_empty() {
        return Ok(());
    }
    let (kept_namespaces, kept_keys) = columns(kept.iter());
    let (gone_namespaces, gone_keys) = columns(gone.iter());
    sqlx::query!(
        r#"
        WITH gone AS (
            DELETE FROM kv_entry e
            USING UNNEST($2::text[], $3::text[]) AS k (namespace, key)
            WHERE e.tenant_id = $1 AND e.namespace = k.namespace COLLATE "C" AND e.key = k.key COLLATE "C"
        ), kept AS (
            INSERT INTO kv_entry (tenant_id, namespace, key, value, updated_at)
            SELECT $1, k.namespace, k.key, k.value, $7
            FROM UNNEST($4::text[], $5::text[], $6::bytea[]) AS k (namespace, key, value)
            ON CONFLICT (tenant_id, namespace, key)
            DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at
        )
        UPDATE kv_usage SET bytes = bytes + $8, entries = entries + $9 WHERE tenant_id = $1
        "#,
        tx.tenant().uuid(),
        &gone_namespaces,
        &gone_keys,
        &kept_namespaces,
        &kept_keys,
        &values,
        now.offset(),
        store.sums.bytes - before.bytes,
        store.sums.entries - before.entries,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

fn columns<'p>(places: impl Iterator<Item = &'p Place<'p>>) -> (Vec<String>, Vec<String>) {
    places.map(|(namespace, key)| ((*namespace).to_owned(), (*key).to_owned())).unzip()
}

#[cfg(test)]
mod tests;
