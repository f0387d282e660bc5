//! Pages of a list.

use serde::Serialize;
use uuid::Uuid;

/// Rows in a page when nobody says.
pub const PAGE_ROWS_DEFAULT: u32 = 20;
/// Rows in a page at most: one answer stays small whatever a client asks for.
pub const PAGE_ROWS_MAX: u32 = 100;

/// Which rows: `limit` of them, behind the row `after` in the list's order.
#[derive(Debug, Clone, Copy)]
pub struct PageRequest {
    pub limit: u32,
    pub after: Option<Uuid>,
}

impl Default for PageRequest {
    fn default() -> Self {
        Self { limit: PAGE_ROWS_DEFAULT, after: None }
    }
}

impl PageRequest {
    /// The rows to ask the database for: one more than the page, to know whether another follows.
    pub fn rows(&self) -> i64 {
        i64::from(self.limit) + 1
    }
}

/// Some rows and where the next ones begin.
#[derive(Debug, Clone, Serialize)]
pub struct Page<T> {
    pub data: Vec<T>,
    pub next: Option<Uuid>,
}

impl<T> Page<T> {
    /// Cuts what `PageRequest::rows` fetched to the page. `id` is the row's place in the list's order.
    pub fn cut(mut rows: Vec<T>, request: PageRequest, id: impl Fn(&T) -> Uuid) -> Self {
        let limit = request.limit as usize;
        let more = rows.len() > limit;
        rows.truncate(limit);
        Self { next: rows.last().filter(|_| more).map(id), data: rows }
    }
}
