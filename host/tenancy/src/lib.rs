//! The only door to the database: tenants, their keys, their transactions.
//!
//! Owns: tenant, plan, api_key, data_key.
//! May use: domain.
//! Never: knows a business rule; gives out a pool.
//! Start at: `TenantTx`.
