//! Reports progress, in good measure and without.

use belljar_tool::{progress, tool, toolbox};

/// Three reports of an honest tool.
#[tool]
fn honest() -> String {
    progress::report(None, "looking");
    progress::report(50, "half");
    progress::report(100, "all");
    "done".into()
}

/// So many reports in a row.
#[tool]
fn many(times: u32) -> String {
    for time in 0..times {
        progress::report((time % 256) as u8, &format!("report {time}"));
    }
    "done".into()
}

/// One report with so long a text.
#[tool]
fn long(bytes: usize) -> String {
    progress::report(255, &"ä".repeat(bytes / 2));
    "done".into()
}

/// Reports for ever.
#[tool]
fn endless() -> String {
    loop {
        progress::report(None, "still here");
    }
}

toolbox!(honest, many, long, endless);

fn main() {}
