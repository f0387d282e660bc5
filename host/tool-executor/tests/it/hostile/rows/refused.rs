//! Guests that do not become tools: the code of their refusal, and a word of it.

use crate::hostile::case::{Row, refused};

pub(in crate::hostile) fn bad_name() -> Row {
    refused("toolbox.bad_function", "run it__now!")
}

pub(in crate::hostile) fn bad_schema() -> Row {
    refused("toolbox.bad_schema", "input-schema of `run`")
}

pub(in crate::hostile) fn big_memory() -> Row {
    refused("component.too_complex", "memory has a minimum byte size")
}

pub(in crate::hostile) fn big_table() -> Row {
    refused("component.too_complex", "table index 0 has a minimum element size")
}

pub(in crate::hostile) fn bomb() -> Row {
    refused("component.too_complex", "instances")
}

pub(in crate::hostile) fn collected() -> Row {
    refused("component.compile_failed", "gc")
}

pub(in crate::hostile) fn core_module() -> Row {
    refused("component.core_module", "wasm32-wasip2")
}

pub(in crate::hostile) fn deep_types() -> Row {
    refused("component.untranslatable_type", "nested")
}

pub(in crate::hostile) fn describe_spins() -> Row {
    refused("toolbox.describe_failed", "limit.fuel")
}

pub(in crate::hostile) fn describe_wild() -> Row {
    refused("toolbox.describe_failed", "out of bounds")
}

pub(in crate::hostile) fn dup_names() -> Row {
    refused("toolbox.duplicate_function", "rename one")
}

pub(in crate::hostile) fn huge_schema() -> Row {
    refused("toolbox.bad_schema", "bytes")
}

pub(in crate::hostile) fn long_description() -> Row {
    refused("toolbox.bad_function", "4097 bytes")
}

pub(in crate::hostile) fn many_functions() -> Row {
    refused("toolbox.too_many_functions", "129")
}

pub(in crate::hostile) fn memory64() -> Row {
    refused("component.compile_failed", "memory")
}

pub(in crate::hostile) fn no_toolbox() -> Row {
    refused("component.no_toolbox", "guest SDK")
}

pub(in crate::hostile) fn schema_bomb() -> Row {
    refused("toolbox.bad_schema", "unfolds to more than")
}

pub(in crate::hostile) fn shared_memory() -> Row {
    refused("component.compile_failed", "shared")
}

pub(in crate::hostile) fn start_spins() -> Row {
    refused("toolbox.describe_failed", "limit.fuel")
}

pub(in crate::hostile) fn start_traps() -> Row {
    refused("toolbox.describe_failed", "unreachable")
}

pub(in crate::hostile) fn unknown_import() -> Row {
    refused("component.unknown_import", "`acme:unknown/thing@1.0.0`")
}
