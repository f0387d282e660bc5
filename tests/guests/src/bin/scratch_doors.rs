//! Tries to leave the scratch directory, and to take more handles of it than it may. Reports what each try answered.

use belljar_tool::{tool, toolbox};
use std::collections::BTreeMap;
use std::mem::forget;
use wasip2::filesystem::{
    preopens,
    types::{Descriptor, DescriptorFlags, ErrorCode, OpenFlags, PathFlags},
};

type Door = (&'static str, fn(&Descriptor) -> Result<String, String>);

const DOORS: [Door; 17] = [
    ("parent", |root| read(root, "../../../../etc/passwd")),
    ("parent_of_a_directory", |root| {
        root.create_directory_at("inner").map_err(name)?;
        read(root, "inner/../../lock")
    }),
    ("absolute", |root| read(root, "/etc/passwd")),
    ("siblings", |root| {
        let flags = DescriptorFlags::READ;
        let open = root.open_at(PathFlags::SYMLINK_FOLLOW, "..", OpenFlags::DIRECTORY, flags);
        open.map(|_| "open".to_owned()).map_err(name)
    }),
    ("create_outside", |root| done(create(root, "../outside"))),
    ("directory_outside", |root| done(root.create_directory_at("../outside"))),
    ("rename_outside", |root| {
        create(root, "file").map_err(name)?;
        done(root.rename_at("file", root, "../file"))
    }),
    ("stat_outside", |root| done(root.stat_at(PathFlags::SYMLINK_FOLLOW, "../"))),
    ("symlink", |root| done(root.symlink_at("/etc/passwd", "link"))),
    ("symlink_inside", |root| done(root.symlink_at("file", "link"))),
    ("hard_link", |root| {
        create(root, "file").map_err(name)?;
        done(root.link_at(PathFlags::empty(), "file", root, "second"))
    }),
    ("nul_in_a_name", |root| done(create(root, "a\0b"))),
    ("name_too_long", |root| done(create(root, &"n".repeat(256)))),
    ("path_too_long", |root| done(create(root, &"n/".repeat(4_000)))),
    ("empty_name", |root| done(create(root, ""))),
    ("streams", |root| {
        let file = create(root, "streamed").map_err(name)?;
        many(|_| file.append_via_stream().map(forget))
    }),
    ("descriptors", |root| many(|n| create(root, &format!("open-{n}")).map(forget))),
];

/// Tries every door, and reports what each answered: an `ok` is a breach.
#[tool]
fn run() -> Result<BTreeMap<&'static str, String>, String> {
    let (root, seen_as) = preopens::get_directories().pop().ok_or("no directory")?;
    let mut tried: BTreeMap<_, _> = DOORS
        .iter()
        .map(|(door, open)| (*door, open(&root).map_or_else(|refused| refused, |given| format!("ok: {given}"))))
        .collect();
    tried.insert("seen_as", seen_as);
    Ok(tried)
}

/// Handles that never end: as many as there are, or 10,000.
fn many(mut one: impl FnMut(u32) -> Result<(), ErrorCode>) -> Result<String, String> {
    (0..10_000).try_for_each(|n| one(n).map_err(|code| format!("{} after {n}", code.name())))?;
    Ok("10,000".into())
}

fn create(root: &Descriptor, path: &str) -> Result<Descriptor, ErrorCode> {
    root.open_at(PathFlags::empty(), path, OpenFlags::CREATE, DescriptorFlags::READ | DescriptorFlags::WRITE)
}

fn read(root: &Descriptor, path: &str) -> Result<String, String> {
    let open = root.open_at(PathFlags::SYMLINK_FOLLOW, path, OpenFlags::empty(), DescriptorFlags::READ);
    let (bytes, _) = open.and_then(|file| file.read(100, 0)).map_err(name)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn done<T>(result: Result<T, ErrorCode>) -> Result<String, String> {
    result.map(|_| "done".into()).map_err(name)
}

fn name(code: ErrorCode) -> String {
    code.name().to_owned()
}

toolbox!(run);
fn main() {}
