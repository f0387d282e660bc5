//! Makes HTTP header lists and never gives them back; and one that never stops growing.

use belljar_tool::{tool, toolbox};
use wasip2::http::types::Fields;

/// Makes empty `fields` for ever.
#[tool]
fn run() {
    loop {
        std::mem::forget(Fields::new());
    }
}

/// Appends to one `fields` until it is refused, and says why.
#[tool]
fn append() -> String {
    let (fields, value) = (Fields::new(), vec![b'x'; 4096]);
    loop {
        if let Err(error) = fields.append("x-flood", &value) {
            return format!("{error:?}");
        }
    }
}

toolbox!(run, append);
fn main() {}
