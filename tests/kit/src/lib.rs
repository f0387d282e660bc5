//! What the tests of the crates share: a database as the application role, tenants, fakes of the executor.
//!
//! May use: domain, private-postgres, tenancy, tool-api. So these tests never link the engine.
//! Start at: `TestDb::start`.
#![expect(clippy::unwrap_used, reason = "test code: a failed step ends the test")]

mod bomb;
mod db;
mod executor;

pub use bomb::compile_bomb;
pub use db::{TestDb, master_key};
pub use executor::{FakeExecutor, FakeInspector, function};
