//! Pages of a list that is ordered by a text.

use domain::page::PAGE_ROWS_DEFAULT;

/// Which rows: `limit` of them, behind the row `after` in the list's order.
#[derive(Debug, Clone)]
pub struct TextPageRequest {
    pub limit: u32,
    pub after: Option<String>,
}

impl Default for TextPageRequest {
    fn default() -> Self {
        Self { limit: PAGE_ROWS_DEFAULT, after: None }
    }
}

impl TextPageRequest {
    /// The rows to ask the database for: one more than the page, to know whether another follows.
    pub(crate) fn rows(&self) -> i64 {
        i64::from(self.limit) + 1
    }
}

/// Some rows and where the next ones begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextPage<T> {
    pub data: Vec<T>,
    pub next: Option<String>,
}

impl<T> TextPage<T> {
    /// Cuts what `TextPageRequest::rows` fetched to the page. `place` is the row's text in the list's order.
    pub(crate) fn cut(mut rows: Vec<T>, request: &TextPageRequest, place: impl Fn(&T) -> &str) -> Self {
        let limit = request.limit as usize;
        let more = rows.len() > limit;
        rows.truncate(limit);
        Self { next: rows.last().filter(|_| more).map(|row| place(row).to_owned()), data: rows }
    }
}
