//! The structural check: one pass over the bytes before any compiler sees them. It bounds what nested components unfold
//! to, names what this host cannot link, and says what to do about everything else that is not a tool.

mod types;

use tool_api::Rejection;
use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentInstance, ComponentOuterAliasKind, ComponentTypeRef, Encoding,
    Instance, Parser, Payload,
};

use crate::{capabilities::PACKAGES, typed::is_plain};

/// Instances that one call makes, with nesting multiplied out. A Python component has 14; a "billion laughs" of 600
/// bytes has 10^8 and would take the compiler's memory first.
const INSTANCES_MAX: u64 = 256;
/// Components inside components.
const DEPTH_MAX: usize = 16;
/// Core modules and nested components. Python components have dozens.
const PARTS_MAX: u64 = 256;
/// Functions of all modules together.
const FUNCTIONS_MAX: u64 = 100_000;
/// Bytes of one function: compile time grows faster than a function does.
const BODY_BYTES_MAX: usize = 512 << 10;
/// Local variables of one function.
const LOCALS_MAX: u64 = 10_000;
/// Types of all modules and components together.
const TYPES_MAX: u64 = 50_000;
/// Imports and exports of all modules together: dynamically linked guests have thousands.
const NAMES_MAX: u64 = 100_000;
/// Imports of the component itself.
const IMPORTS_MAX: u32 = 256;
/// Unknown imports that a refusal names.
const NAMED_MAX: usize = 10;

/// The toolbox interface, without its version.
const TOOLBOX: &str = "belljar:tool/toolbox";
/// Published versions of the contract that are called.
const SERIES: &[&str] = &["0.1", "1.0"];

/// Refuses what cannot become a tool.
pub(crate) fn check(bytes: &[u8]) -> Result<(), Rejection> {
    recognise(bytes)?;
    let mut check = Check::default();
    for payload in Parser::new(0).parse_all(bytes) {
        check.payload(payload.map_err(broken)?, bytes)?;
    }
    check.finish()
}

/// `belljar:tool@0.1.0` for the export of a toolbox that this host can call.
pub(crate) fn contract_of(export: &str) -> Option<String> {
    let (interface, version) = export.split_once('@')?;
    (interface == TOOLBOX && SERIES.iter().any(|series| fits(series, version)))
        .then(|| format!("belljar:tool@{version}"))
}

/// A component with nothing to call. `exports` are the names at its root.
pub(crate) fn no_toolbox<'a>(exports: impl IntoIterator<Item = &'a str>) -> Rejection {
    let mut what = "the component exports nothing that can be called";
    for export in exports {
        let interface = export.split_once('@').map_or(export, |(interface, _)| interface);
        match interface {
            "wasi:http/incoming-handler" => {
                what = "the component is a web server (`wasi:http/incoming-handler`), which nobody calls here";
                break;
            }
            "wasi:cli/run" => what = "the component is a command (`wasi:cli/run`): it has a `main` and no functions",
            TOOLBOX => {
                what = "the component is built against a version of `belljar:tool` that this host does not have";
                break;
            }
            _ => {}
        }
    }
    Rejection::new(
        "component.no_toolbox",
        format!(
            "{what}; write the tool with the guest SDK (`belljar tool new NAME`), which exports `{TOOLBOX}@1.0`, or export \
             typed functions of your own from a WIT world (`export add: func(a: u32, b: u32) -> u32`)"
        ),
    )
}

fn recognise(bytes: &[u8]) -> Result<(), Rejection> {
    if Parser::is_component(bytes) {
        return Ok(());
    }
    if Parser::is_core_wasm(bytes) {
        return Err(Rejection::new(
            "component.core_module",
            "this is a core WebAssembly module, not a component; build it with `cargo build --target wasm32-wasip2`, or \
             turn it into a component with `wasm-tools component new`",
        ));
    }
    let words = match bytes {
        [] => "the upload is empty; send the bytes of a WebAssembly component",
        [0x7f, b'E', b'L', b'F', ..] => "this is native or precompiled code; upload the WebAssembly component itself",
        [b'(', ..] => "this is WebAssembly text; turn it into a binary with `wasm-tools parse`",
        _ => "this is not WebAssembly; upload the `.wasm` file that `cargo build --target wasm32-wasip2` makes",
    };
    Err(Rejection::new("component.not_wasm", words))
}

fn broken(error: wasmparser::BinaryReaderError) -> Rejection {
    Rejection::new("component.not_wasm", format!("the component is damaged: {error}; build and upload it again"))
}

fn too_complex(words: impl std::fmt::Display) -> Rejection {
    Rejection::new("component.too_complex", format!("the component is too complex: {words}; split the tool"))
}

#[derive(Default)]
struct Check {
    /// The parts that are open, outermost first.
    open: Vec<Part>,
    instances: u64,
    parts: u64,
    functions: u64,
    types: u64,
    names: u64,
    unknown: Vec<String>,
    /// Exports of the component itself.
    exports: Vec<String>,
    /// One of them may hold something to call. Whether an interface has functions is known when its types are.
    may_be_called: bool,
}

/// A component or module whose end was not seen yet.
struct Part {
    is_component: bool,
    /// Its index space of components: how many instances each makes; `None` when it comes from outside.
    components: Vec<Option<u64>>,
    /// Its index space of types: whether each is that of an instance with nothing but types.
    types: Vec<bool>,
    /// Instances that one instantiation of this part makes, its own not counted.
    instances: u64,
}

impl Check {
    fn payload(&mut self, payload: Payload<'_>, bytes: &[u8]) -> Result<(), Rejection> {
        match payload {
            Payload::Version { encoding, .. } => self.begin(encoding == Encoding::Component),
            Payload::End(_) => {
                self.end();
                Ok(())
            }
            Payload::InstanceSection(section) => {
                for instance in section {
                    if matches!(instance.map_err(broken)?, Instance::Instantiate { .. }) {
                        self.instantiate(Some(0))?;
                    }
                }
                Ok(())
            }
            Payload::ComponentInstanceSection(section) => {
                for instance in section {
                    if let ComponentInstance::Instantiate { component_index, .. } = instance.map_err(broken)? {
                        let target = self.component(0, component_index);
                        self.instantiate(target)?;
                    }
                }
                Ok(())
            }
            Payload::ComponentAliasSection(section) => {
                for alias in section {
                    match alias.map_err(broken)? {
                        ComponentAlias::InstanceExport { kind: ComponentExternalKind::Component, .. } => {
                            self.define(None);
                        }
                        ComponentAlias::Outer { kind: ComponentOuterAliasKind::Component, count, index } => {
                            let target = self.component(count as usize, index);
                            self.define(target);
                        }
                        ComponentAlias::InstanceExport { kind: ComponentExternalKind::Type, .. }
                        | ComponentAlias::Outer { kind: ComponentOuterAliasKind::Type, .. } => self.define_type(false),
                        _ => {}
                    }
                }
                Ok(())
            }
            Payload::ComponentImportSection(section) => {
                if self.open.len() == 1 && section.count() > IMPORTS_MAX {
                    return Err(too_complex(format_args!("more than {IMPORTS_MAX} imports")));
                }
                for import in section {
                    let import = import.map_err(broken)?;
                    if self.open.len() == 1 && !is_linked(import.name.name) && !self.holds_only_types(import.ty) {
                        self.unknown.push(import.name.name.into());
                    }
                    match import.ty {
                        ComponentTypeRef::Component(_) => self.define(None),
                        ComponentTypeRef::Type(_) => self.define_type(false),
                        _ => {}
                    }
                }
                Ok(())
            }
            Payload::ComponentExportSection(section) => {
                if self.open.len() == 1 {
                    count(&mut self.names, section.count(), NAMES_MAX, "imports and exports")?;
                }
                for export in section {
                    let export = export.map_err(broken)?;
                    if self.open.len() == 1 {
                        let name = export.name.name;
                        self.may_be_called |= contract_of(name).is_some()
                            || export.kind == ComponentExternalKind::Func
                            || (export.kind == ComponentExternalKind::Instance && is_plain(name));
                        self.exports.push(name.into());
                    }
                    // An export adds to the index space that it exports from.
                    match export.kind {
                        ComponentExternalKind::Component => {
                            let target = self.component(0, export.index);
                            self.define(target);
                        }
                        ComponentExternalKind::Type => self.define_type(false),
                        _ => {}
                    }
                }
                Ok(())
            }
            Payload::TypeSection(section) => count(&mut self.types, section.count(), TYPES_MAX, "types"),
            Payload::CoreTypeSection(section) => count(&mut self.types, section.count(), TYPES_MAX, "types"),
            Payload::ComponentTypeSection(section) => {
                count(&mut self.types, section.count(), TYPES_MAX, "types")?;
                types::read(bytes, section.range(), |only_types| self.define_type(only_types))
            }
            Payload::ImportSection(section) => {
                count(&mut self.names, section.count(), NAMES_MAX, "imports and exports")
            }
            Payload::ExportSection(section) => {
                count(&mut self.names, section.count(), NAMES_MAX, "imports and exports")
            }
            Payload::FunctionSection(section) => {
                count(&mut self.functions, section.count(), FUNCTIONS_MAX, "functions")
            }
            Payload::CodeSectionEntry(body) => {
                if body.range().len() > BODY_BYTES_MAX {
                    return Err(too_complex(format_args!("a function has more than {BODY_BYTES_MAX} bytes")));
                }
                let mut locals = 0;
                for local in body.get_locals_reader().map_err(broken)? {
                    count(&mut locals, local.map_err(broken)?.0, LOCALS_MAX, "local variables in one function")?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, is_component: bool) -> Result<(), Rejection> {
        count(&mut self.parts, 1, PARTS_MAX, "modules and components inside it")?;
        if self.open.len() >= DEPTH_MAX {
            return Err(too_complex(format_args!("components are nested more than {DEPTH_MAX} deep")));
        }
        self.open.push(Part { is_component, components: Vec::new(), types: Vec::new(), instances: 0 });
        Ok(())
    }

    fn end(&mut self) {
        let Some(part) = self.open.pop() else { return };
        if self.open.is_empty() {
            self.instances = part.instances;
        } else if part.is_component {
            self.define(Some(part.instances));
        }
    }

    /// The part that is being read instantiates one that makes `inner` instances.
    fn instantiate(&mut self, inner: Option<u64>) -> Result<(), Rejection> {
        let Some(inner) = inner else {
            return Err(too_complex("it instantiates a component that it gets from outside"));
        };
        let Some(part) = self.open.last_mut() else { return Ok(()) };
        part.instances = part.instances.saturating_add(1).saturating_add(inner);
        if part.instances > INSTANCES_MAX {
            return Err(too_complex(format_args!("its nested components make more than {INSTANCES_MAX} instances")));
        }
        Ok(())
    }

    /// Adds a component to the index space of the part that is being read.
    fn define(&mut self, instances: Option<u64>) {
        if let Some(part) = self.open.last_mut() {
            part.components.push(instances);
        }
    }

    /// Adds a type to the index space of the part that is being read.
    fn define_type(&mut self, only_types: bool) {
        if let Some(part) = self.open.last_mut() {
            part.types.push(only_types);
        }
    }

    /// Whether an import of this type needs nothing of a host. An interface that takes its types from another one imports
    /// that one, though it only names it.
    fn holds_only_types(&self, import: ComponentTypeRef) -> bool {
        let ComponentTypeRef::Instance(index) = import else { return false };
        self.open.last().and_then(|part| part.types.get(index as usize)).is_some_and(|only_types| *only_types)
    }

    /// A component of the part `outwards` levels around the one that is being read.
    fn component(&self, outwards: usize, index: u32) -> Option<u64> {
        let part = self.open.iter().rev().nth(outwards)?;
        *part.components.get(index as usize)?
    }

    fn finish(self) -> Result<(), Rejection> {
        if !self.unknown.is_empty() {
            let more = if self.unknown.len() > NAMED_MAX { ", ..." } else { "" };
            let names =
                self.unknown.iter().take(NAMED_MAX).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            return Err(Rejection::new(
                "component.unknown_import",
                format!(
                    "the component imports what this host does not have: {names}{more}; a tool may import `wasi:*@0.2`, \
                     `wasi:config`, `wasi:logging`, `wasi:keyvalue` and `belljar:tool@1.0`"
                ),
            ));
        }
        if self.may_be_called { Ok(()) } else { Err(no_toolbox(self.exports.iter().map(String::as_str))) }
    }
}

fn count(total: &mut u64, more: u32, max: u64, what: &str) -> Result<(), Rejection> {
    *total += u64::from(more);
    if *total > max { Err(too_complex(format_args!("more than {max} {what}"))) } else { Ok(()) }
}

/// Whether an import's package is linked in a version that fits.
fn is_linked(import: &str) -> bool {
    let (interface, version) = import.split_once('@').unwrap_or((import, ""));
    let Some((package, _)) = interface.split_once('/') else { return false };
    PACKAGES.iter().any(|(name, linked)| *name == package && fits(linked, version))
}

/// `linked` is `0.2` for all of its releases, or one exact version.
fn fits(linked: &str, version: &str) -> bool {
    if linked == version {
        return true;
    }
    let is_series = linked.split('.').count() == 2;
    is_series
        && version
            .strip_prefix(linked)
            .and_then(|rest| rest.strip_prefix('.'))
            .is_some_and(|patch| !patch.is_empty() && patch.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests;
