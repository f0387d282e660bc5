//! What a component with plain typed exports offers: its functions, their names, their shapes.

use std::collections::{HashMap, HashSet};

use domain::FunctionName;
use sha2::{Digest, Sha256};
use tool_api::{Rejection, inspection::FUNCTIONS_MAX};
use wasmtime::{
    Engine,
    component::{
        Component, ComponentExportIndex,
        types::{ComponentFunc, ComponentItem},
    },
};

use super::shape::{NoShape, Resources, Shape, Shaping};

/// Longest name of a function, in bytes.
const NAME_BYTES_MAX: usize = 32;
/// Hex digits of a hash in a name.
const HASH_DIGITS: usize = 8;

/// A function that a component exports.
pub(crate) struct Export {
    pub(crate) name: FunctionName,
    /// As the component exports it: `add`, or `acme:math/ops@1.0.0#add`.
    pub(crate) full_name: String,
    pub(crate) index: ComponentExportIndex,
    pub(crate) parameters: Vec<(String, Shape)>,
    pub(crate) result: Option<Shape>,
}

/// The functions of a component, and the bytes that their shapes take, about. Those of interfaces that hosts define are
/// none of a tool's; see `is_plain`.
pub(crate) fn read(engine: &Engine, component: &Component) -> Result<(Vec<Export>, usize), Rejection> {
    let found = find(engine, component)?;
    let names = names(found.iter().map(|found| (found.interface.as_deref(), found.function.as_str())))?;
    let resources = resources(engine, component);
    let mut shaping = Shaping::new(&resources);
    let mut exports = Vec::with_capacity(found.len());
    for (found, name) in found.into_iter().zip(names) {
        shaping.next_function();
        let full_name = full_name(found.interface.as_deref(), &found.function);
        let (parameters, result) = signature(&mut shaping, &found.ty).map_err(|(place, error)| {
            let words = format!("the {place} of the function `{}`: {error}", shown(&full_name));
            Rejection::new("component.untranslatable_type", words)
        })?;
        exports.push(Export { name, full_name, index: found.index, parameters, result });
    }
    Ok((exports, shaping.bytes()))
}

/// Whether functions of an exported interface are a tool's own. `wasi:cli/run` and the like are called by hosts of other
/// kinds, and a toolbox of an unknown version must not be taken for two strange functions.
pub(crate) fn is_plain(interface: &str) -> bool {
    !interface.starts_with("wasi:") && !interface.starts_with("belljar:")
}

struct Found {
    interface: Option<String>,
    function: String,
    index: ComponentExportIndex,
    ty: ComponentFunc,
}

fn find(engine: &Engine, component: &Component) -> Result<Vec<Found>, Rejection> {
    let mut all = Vec::new();
    let mut add = |interface: Option<&str>, function: &str, ty| {
        if all.len() == FUNCTIONS_MAX {
            let words = format!("the component exports more than {FUNCTIONS_MAX} functions; split the tool");
            return Err(Rejection::new("toolbox.too_many_functions", words));
        }
        let instance = interface.and_then(|interface| component.get_export_index(None, interface));
        if let Some(index) = component.get_export_index(instance.as_ref(), function) {
            all.push(Found { interface: interface.map(Into::into), function: function.into(), index, ty });
        }
        Ok(())
    };
    for (name, export) in component.component_type().exports(engine) {
        match export.ty {
            ComponentItem::ComponentFunc(ty) => add(None, name, ty)?,
            ComponentItem::ComponentInstance(instance) if is_plain(name) => {
                for (function, export) in instance.exports(engine) {
                    if let ComponentItem::ComponentFunc(ty) = export.ty {
                        add(Some(name), function, ty)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(all)
}

/// Names that a refusal may need. Resources come from interfaces, imported or exported, or stand alone.
fn resources(engine: &Engine, component: &Component) -> Resources {
    let ty = component.component_type();
    let mut resources = Vec::new();
    for (name, item) in ty.imports(engine).chain(ty.exports(engine)) {
        match item.ty {
            ComponentItem::Resource(resource) => resources.push((resource, shown(name).to_owned())),
            ComponentItem::ComponentInstance(instance) => {
                resources.extend(instance.exports(engine).filter_map(|(name, item)| match item.ty {
                    ComponentItem::Resource(resource) => Some((resource, shown(name).to_owned())),
                    _ => None,
                }));
            }
            _ => {}
        }
    }
    resources
}

/// The shapes of one function's type.
pub(crate) fn signature_of(
    engine: &Engine,
    component: &Component,
    ty: &ComponentFunc,
) -> Result<Signature, (String, NoShape)> {
    signature(&mut Shaping::new(&resources(engine, component)), ty)
}

pub(crate) type Signature = (Vec<(String, Shape)>, Option<Shape>);

/// The shapes of a function's type, or the place of the first type that has none.
fn signature(shaping: &mut Shaping<'_>, ty: &ComponentFunc) -> Result<Signature, (String, NoShape)> {
    let mut parameters = Vec::new();
    for (name, ty) in ty.params() {
        let mut parameter = || Ok((shaping.name(name)?, shaping.shape(&ty)?));
        parameters.push(parameter().map_err(|error| (format!("parameter `{}`", shown(name)), error))?);
    }
    let result = ty.results().next().map(|ty| shaping.shape(&ty)).transpose();
    Ok((parameters, result.map_err(|error| ("result".to_owned(), error))?))
}

fn full_name(interface: Option<&str>, function: &str) -> String {
    interface.map_or_else(|| function.to_owned(), |interface| format!("{interface}#{function}"))
}

/// Names that a model can use, one for each function. `add`, or `ops-add` in `acme:math/ops@1.0.0`; where that is no
/// name, or is not the only one, its beginning and a hash of the full name.
fn names<'a>(functions: impl Iterator<Item = (Option<&'a str>, &'a str)>) -> Result<Vec<FunctionName>, Rejection> {
    let wished: Vec<_> = functions
        .map(|(interface, function)| {
            let short = interface.map(|interface| {
                let interface = interface.split_once('@').map_or(interface, |(interface, _)| interface);
                interface.rsplit_once('/').map_or(interface, |(_, name)| name)
            });
            let wish = short.map_or_else(|| function.to_owned(), |short| format!("{short}-{function}"));
            (full_name(interface, function), wish)
        })
        .collect();
    let mut wishes: HashMap<&str, usize> = HashMap::new();
    for (_, wish) in &wished {
        *wishes.entry(wish).or_default() += 1;
    }
    let mut taken = HashSet::new();
    let mut names = Vec::with_capacity(wished.len());
    for (full_name, wish) in &wished {
        let name = match wish.parse() {
            Ok(name) if wishes.get(wish.as_str()) == Some(&1) => name,
            _ => hashed(wish, full_name)?,
        };
        if !taken.insert(name.clone()) {
            let words = format!("two exported functions come to the name `{name}`; rename `{}`", shown(full_name));
            return Err(Rejection::new("toolbox.duplicate_function", words));
        }
        names.push(name);
    }
    Ok(names)
}

fn hashed(wish: &str, full_name: &str) -> Result<FunctionName, Rejection> {
    let mut prefix = String::new();
    for letter in wish.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }) {
        let starts = !prefix.is_empty() || letter.is_ascii_alphabetic();
        if starts && !(letter == '-' && prefix.ends_with('-')) && prefix.len() < NAME_BYTES_MAX - HASH_DIGITS - 1 {
            prefix.push(letter);
        }
    }
    let prefix = Some(prefix.trim_end_matches('-')).filter(|prefix| !prefix.is_empty()).unwrap_or("function");
    let hash = hex::encode(Sha256::digest(full_name));
    format!("{prefix}-{}", &hash[..HASH_DIGITS])
        .parse()
        .map_err(|error: domain::names::BadName| Rejection::new("toolbox.bad_function", error.to_string()))
}

/// As much of a stranger's name as a message quotes.
fn shown(name: &str) -> &str {
    &name[..name.floor_char_boundary(100)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(functions: &[(Option<&str>, &str)]) -> Vec<String> {
        names(functions.iter().copied()).unwrap().into_iter().map(String::from).collect()
    }

    #[test]
    fn names_are_short_where_they_can_be() {
        let ops = Some("acme:math/ops@1.0.0");
        assert_eq!(named(&[(None, "add"), (ops, "add"), (Some("ops"), "sub")]), ["add", "ops-add", "ops-sub"]);
        assert_eq!(named(&[(Some("acme:math/ops"), "a-B2")]), ["ops-a-B2"]);
    }

    #[test]
    fn a_name_that_does_not_fit_keeps_its_beginning() {
        let long = "summarise-the-quarterly-report-of-sales";
        assert_eq!(named(&[(None, long)]), ["summarise-the-quarterly-dcf50a41"]);
        assert_eq!(
            named(&[(Some("acme:blobs/store@0.1.0"), "[static]blob.open")]),
            ["store-static-blob-open-96f4dc61"]
        );
        assert_eq!(named(&[(None, "[static]--")]), ["static-4cc0628f"]);
    }

    /// Neither takes the short name, so that a function keeps its name when another one comes.
    #[test]
    fn names_that_collide_are_told_apart() {
        let names = named(&[(Some("a:x/ops@1.0.0"), "add"), (Some("b:x/ops@1.0.0"), "add"), (None, "ops")]);
        assert_eq!(names, ["ops-add-69372f77", "ops-add-7df6ddc2", "ops"]);
    }

    /// Eight digits can be found by trial: then the tool is refused.
    #[test]
    fn a_name_that_looks_like_a_hash_cannot_take_its_place() {
        let long = "summarise-the-quarterly-report-of-sales";
        let taken = named(&[(None, long)]).remove(0);
        let rejection = names([(None, taken.as_str()), (None, long)].into_iter()).unwrap_err();
        assert_eq!(rejection.code, "toolbox.duplicate_function");
    }

    #[test]
    fn interfaces_of_hosts_are_no_tools() {
        for (interface, plain) in [
            ("acme:math/ops@1.0.0", true),
            ("ops", true),
            ("wasi:cli/run@0.2.3", false),
            ("wasi:http/incoming-handler@0.2.0", false),
            ("belljar:tool/toolbox@2.0.0", false),
        ] {
            assert_eq!(is_plain(interface), plain, "{interface}");
        }
    }
}
