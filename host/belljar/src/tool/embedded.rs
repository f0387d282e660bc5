//! The template and the SDK, as they were when this program was built: `tool new` works offline.

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));
