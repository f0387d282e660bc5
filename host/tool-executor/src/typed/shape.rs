//! WIT types whose values cross JSON, bounded before anything is made of them: types are a graph, and what they unfold to
//! may be far larger than the component that has them.

use indexmap::{IndexMap, IndexSet};
use wasmtime::component::{Type, types};

/// Types inside types of one function. People's own have five; every walk over a value is as deep as its type.
const DEPTH_MAX: usize = 32;
/// What the types of one function unfold to: bytes of names, and `PART_BYTES` for each type. About a schema's size.
const FUNCTION_BYTES_MAX: usize = tool_api::schema::SCHEMA_BYTES_MAX;
/// The same of all functions of a tool together: they are held as long as its code is.
const TOOL_BYTES_MAX: usize = 512 << 10;
const PART_BYTES: usize = 16;

/// A type of parameters and results. Names of fields and cases are as in WIT, and in its order. A long list of values may
/// name a case each: cases are found without reading them all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    Bool,
    S8,
    U8,
    S16,
    U16,
    S32,
    U32,
    S64,
    U64,
    F32,
    F64,
    Char,
    String,
    /// `list<u8>`.
    Bytes,
    List(Box<Shape>),
    FixedList(Box<Shape>, u32),
    Record(Vec<(String, Shape)>),
    Tuple(Vec<Shape>),
    Variant(IndexMap<String, Option<Shape>>),
    Enum(IndexSet<String>),
    Flags(IndexSet<String>),
    Option(Box<Shape>),
    Result(Box<[Option<Shape>; 2]>),
}

/// Why a type has no shape.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoShape {
    #[error("the type `{0}` cannot cross JSON; use plain values")]
    Untranslatable(String),
    #[error("its types are nested more than {DEPTH_MAX} deep; flatten them")]
    TooDeep,
    #[error("its types unfold to more than {FUNCTION_BYTES_MAX} bytes; describe less")]
    FunctionTooLarge,
    #[error("the types of all functions unfold to more than {TOOL_BYTES_MAX} bytes; split the tool")]
    ToolTooLarge,
}

/// Names of the resources that a component mentions: types do not know theirs.
pub(crate) type Resources = Vec<(types::ResourceType, String)>;

/// Makes shapes of types, within the bounds of one tool.
pub(crate) struct Shaping<'r> {
    resources: &'r Resources,
    function_bytes_left: usize,
    tool_bytes_left: usize,
}

impl<'r> Shaping<'r> {
    pub(crate) fn new(resources: &'r Resources) -> Shaping<'r> {
        Shaping { resources, function_bytes_left: FUNCTION_BYTES_MAX, tool_bytes_left: TOOL_BYTES_MAX }
    }

    /// What follows belongs to another function.
    pub(crate) fn next_function(&mut self) {
        self.function_bytes_left = FUNCTION_BYTES_MAX;
    }

    /// Bytes that all shapes so far take, about.
    pub(crate) fn bytes(&self) -> usize {
        (TOOL_BYTES_MAX - self.tool_bytes_left) * size_of::<Shape>() / PART_BYTES
    }

    pub(crate) fn shape(&mut self, ty: &Type) -> Result<Shape, NoShape> {
        self.at(ty, 0)
    }

    fn at(&mut self, ty: &Type, depth: usize) -> Result<Shape, NoShape> {
        if depth >= DEPTH_MAX {
            return Err(NoShape::TooDeep);
        }
        self.pay(PART_BYTES)?;
        let depth = depth + 1;
        Ok(match ty {
            Type::Bool => Shape::Bool,
            Type::S8 => Shape::S8,
            Type::U8 => Shape::U8,
            Type::S16 => Shape::S16,
            Type::U16 => Shape::U16,
            Type::S32 => Shape::S32,
            Type::U32 => Shape::U32,
            Type::S64 => Shape::S64,
            Type::U64 => Shape::U64,
            Type::Float32 => Shape::F32,
            Type::Float64 => Shape::F64,
            Type::Char => Shape::Char,
            Type::String => Shape::String,
            Type::List(list) => match list.ty() {
                Type::U8 => Shape::Bytes,
                element => Shape::List(Box::new(self.at(&element, depth)?)),
            },
            Type::FixedLengthList(list) => Shape::FixedList(Box::new(self.at(&list.ty(), depth)?), list.len()),
            Type::Record(record) => Shape::Record(
                record
                    .fields()
                    .map(|field| Ok((self.name(field.name)?, self.at(&field.ty, depth)?)))
                    .collect::<Result<_, NoShape>>()?,
            ),
            Type::Tuple(tuple) => Shape::Tuple(tuple.types().map(|ty| self.at(&ty, depth)).collect::<Result<_, _>>()?),
            Type::Variant(variant) => Shape::Variant(
                variant
                    .cases()
                    .map(|case| Ok((self.name(case.name)?, self.payload(case.ty, depth)?)))
                    .collect::<Result<_, NoShape>>()?,
            ),
            Type::Enum(names) => Shape::Enum(names.names().map(|name| self.name(name)).collect::<Result<_, _>>()?),
            Type::Flags(names) => Shape::Flags(names.names().map(|name| self.name(name)).collect::<Result<_, _>>()?),
            Type::Option(option) => Shape::Option(Box::new(self.at(&option.ty(), depth)?)),
            Type::Result(result) => {
                Shape::Result(Box::new([self.payload(result.ok(), depth)?, self.payload(result.err(), depth)?]))
            }
            Type::Own(resource) => return Err(self.resource("own", resource)),
            Type::Borrow(resource) => return Err(self.resource("borrow", resource)),
            Type::Map(_) => return Err(NoShape::Untranslatable("map".into())),
            Type::Future(_) => return Err(NoShape::Untranslatable("future".into())),
            Type::Stream(_) => return Err(NoShape::Untranslatable("stream".into())),
            Type::ErrorContext => return Err(NoShape::Untranslatable("error-context".into())),
        })
    }

    fn payload(&mut self, ty: Option<Type>, depth: usize) -> Result<Option<Shape>, NoShape> {
        ty.map(|ty| self.at(&ty, depth)).transpose()
    }

    /// A name of a field, a case or a parameter. Paid for before it is copied.
    pub(crate) fn name(&mut self, name: &str) -> Result<String, NoShape> {
        self.pay(PART_BYTES + name.len())?;
        Ok(name.to_owned())
    }

    fn pay(&mut self, bytes: usize) -> Result<(), NoShape> {
        self.function_bytes_left = self.function_bytes_left.checked_sub(bytes).ok_or(NoShape::FunctionTooLarge)?;
        self.tool_bytes_left = self.tool_bytes_left.checked_sub(bytes).ok_or(NoShape::ToolTooLarge)?;
        Ok(())
    }

    fn resource(&self, handle: &str, resource: &types::ResourceType) -> NoShape {
        let name = self.resources.iter().find(|(known, _)| known == resource).map(|(_, name)| name.as_str());
        NoShape::Untranslatable(format!("{handle}<{}>", name.unwrap_or("resource")))
    }
}

impl Shape {
    /// Whether null stands for a value of it: then its absence needs another sign.
    pub(crate) fn is_nullable(&self) -> bool {
        matches!(self, Shape::Option(_))
    }
}
