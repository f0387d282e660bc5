//! The only door to the database: tenants, their keys, their transactions.
//!
//! No row of a tenant is reached without a `TenantTx`, and no `TenantTx` without a `Tenant`, which only this crate makes.
//!
//! Owns: tenant, plan, api_key, data_key, idempotency, operator_idempotency.
//! May use: domain.
//! Never: knows a business rule; gives out a pool.
//! Start at: `TenantTx`.

mod connections;
mod db;
mod doors;
mod error;
pub mod hints;
pub mod idempotency;
pub mod keys;
mod lookups;
mod migrate;
mod placement;
pub mod plans;
pub mod rotate;
pub mod seal;
mod tenant;
pub mod tenants;

pub use db::{Db, DbSettings, GlobalTx};
pub use doors::{KeyHolder, QueueOf, Stamp, TakenRun};
pub use error::{ConnectError, DbError};
pub use migrate::{APPLICATION_ROLE, Migrated, fingerprint, migrate, pending};
pub use placement::Placement;
pub use tenant::{Room, Tenant, TenantTx};
