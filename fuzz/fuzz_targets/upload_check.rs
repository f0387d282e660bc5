//! Bytes that somebody uploads: the structural check ends, and says what is wrong.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| tool_executor::fuzzing::upload_check(bytes));
