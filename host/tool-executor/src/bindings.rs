//! Generated from `wit/`, in one place: today's contract, and below it each older one. What they share is generated once.

wasmtime::component::bindgen!({
    path: "../../wit",
    world: "belljar:tool/tool@1.0.0",
    imports: {
        "wasi:keyvalue/store@0.2.0-draft.[method]bucket.get": async | trappable,
        "wasi:keyvalue/store@0.2.0-draft.[method]bucket.exists": async | trappable,
        "wasi:keyvalue/store@0.2.0-draft.[method]bucket.list-keys": async | trappable,
        "wasi:keyvalue/atomics@0.2.0-draft.increment": async | trappable,
        "wasi:keyvalue/batch@0.2.0-draft.get-many": async | trappable,
        default: trappable,
    },
    exports: { default: async },
    with: { "wasi:keyvalue/store.bucket": crate::capabilities::key_value::Bucket },
    require_store_data_send: true,
});

/// `belljar:tool@0.1.0`.
pub(crate) mod v0 {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "belljar:tool/tool@0.1.0",
        imports: { default: trappable },
        exports: { default: async },
        with: {
            "wasi:config/store": crate::bindings::wasi::config::store,
            "wasi:logging/logging": crate::bindings::wasi::logging::logging,
            "wasi:keyvalue/store": crate::bindings::wasi::keyvalue::store,
        },
        require_store_data_send: true,
    });
}
