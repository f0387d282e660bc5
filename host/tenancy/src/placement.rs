//! Where a tenant's rows live.

/// A database and a schema in it. Shared schema, schema per tenant and database per tenant are three values of this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    database: String,
    schema: String,
}

/// The database that holds the directory of tenants.
pub(crate) const MAIN_DATABASE: &str = "main";
/// The schema of the directory, and of every tenant that has none of its own.
pub(crate) const SHARED_SCHEMA: &str = "belljar";

impl Placement {
    pub(crate) fn shared() -> Self {
        Self { database: MAIN_DATABASE.into(), schema: SHARED_SCHEMA.into() }
    }

    /// `None` for a schema that could not stand in a statement unquoted.
    pub(crate) fn new(database: String, schema: String) -> Option<Self> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        let fits =
            (1..=63).contains(&schema.len()) && schema.bytes().all(plain) && !schema.as_bytes()[0].is_ascii_digit();
        fits.then_some(Self { database, schema })
    }

    pub fn database(&self) -> &str {
        &self.database
    }

    pub fn schema(&self) -> &str {
        &self.schema
    }
}
