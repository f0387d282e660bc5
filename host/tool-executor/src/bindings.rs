//! Generated from `wit/`, in one place.

wasmtime::component::bindgen!({
    path: "../../wit",
    world: "tool",
    imports: { default: trappable },
    exports: { default: async },
    require_store_data_send: true,
});
