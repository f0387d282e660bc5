//! HTTP: authentication, limits, routing, SSE and the OpenAPI document.
//!
//! Owns: no table.
//! May use: domain, tool-api, tenancy, agent-config, conversation-store, billing-meter, agent-runtime.
//! Never: writes SQL; holds a business rule.
//! Start at: `lib::tenant_router`.
