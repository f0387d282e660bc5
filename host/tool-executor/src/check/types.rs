//! Types of a component, with a bound on how deep they are written inside one another. The parser's own reader calls
//! itself for each level, and a stack that overflows takes the host with it.

use std::ops::Range;

use tool_api::Rejection;
use wasmparser::{
    BinaryReader, ComponentAlias, ComponentExternName, ComponentImport, ComponentType, ComponentTypeRef, CoreType,
    TypeBounds,
};

use super::{broken, too_complex};

/// Types of components and instances inside one another. Toolchains write three.
const NESTING_MAX: usize = 16;
/// First bytes of the two kinds of type that hold others.
const COMPONENT: u8 = 0x41;
const INSTANCE: u8 = 0x42;

/// Reads the section of types at `range`. Tells of each type whether it is that of an instance with nothing but types.
pub(super) fn read(bytes: &[u8], range: Range<usize>, mut tell: impl FnMut(bool)) -> Result<(), Rejection> {
    let offset = range.start;
    let section = bytes.get(range).unwrap_or_default();
    let mut reader = BinaryReader::new(section, offset);
    for _ in 0..reader.read_var_u32().map_err(broken)? {
        tell(ty(&mut reader, 0)?);
    }
    Ok(())
}

fn ty(reader: &mut BinaryReader<'_>, depth: usize) -> Result<bool, Rejection> {
    let mut inside = reader.clone();
    let kind = inside.read_u8().map_err(broken)?;
    if !matches!(kind, COMPONENT | INSTANCE) {
        reader.read::<ComponentType<'_>>().map_err(broken)?;
        return Ok(false);
    }
    if depth == NESTING_MAX {
        return Err(too_complex(format_args!("types are nested more than {NESTING_MAX} deep")));
    }
    *reader = inside;
    let mut only_types = kind == INSTANCE;
    for _ in 0..reader.read_var_u32().map_err(broken)? {
        only_types &= declaration(reader, depth + 1)?;
    }
    Ok(only_types)
}

/// Whether one declaration of a component's or an instance's type declares no more than a type.
fn declaration(reader: &mut BinaryReader<'_>, depth: usize) -> Result<bool, Rejection> {
    let offset = reader.original_position();
    match reader.read_u8().map_err(broken)? {
        0x00 => reader.read::<CoreType<'_>>().map_err(broken).map(|_| true),
        0x01 => ty(reader, depth).map(|_| true),
        0x02 => reader.read::<ComponentAlias<'_>>().map_err(broken).map(|_| true),
        0x03 => reader.read::<ComponentImport<'_>>().map_err(broken).map(|_| false),
        0x04 => {
            reader.read::<ComponentExternName<'_>>().map_err(broken)?;
            let exported = reader.read::<ComponentTypeRef>().map_err(broken)?;
            Ok(matches!(exported, ComponentTypeRef::Type(TypeBounds::Eq(_))))
        }
        kind => {
            let words = format!("the component is damaged: {kind:#04x} at {offset:#x} declares nothing that is known");
            Err(Rejection::new("component.not_wasm", words))
        }
    }
}
