//! Finding Postgres on the machine: PATH, `pg_config --bindir`, then the folders that distributions use.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::PostgresError;

/// Oldest major version that the schema of Belljar is tested with.
pub(crate) const VERSION_MIN: u32 = 15;

/// Where installers put Postgres outside PATH: a folder, how its entries start, and the way to the programs below them.
const USUAL_PLACES: [(&str, &str, &str); 7] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/opt/homebrew/opt", "postgresql", "bin"),
    ("/usr/local/opt", "postgresql", "bin"),
    ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
    ("/usr/local", "pgsql", "bin"),
    ("/opt", "postgresql", "bin"),
];

/// A version of Postgres, such as 15.18. A beta or a development version has minor 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The programs of one installed Postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    folder: PathBuf,
    version: Version,
}

impl Binaries {
    /// The first Postgres that is new enough.
    pub fn find() -> Result<Binaries, PostgresError> {
        Binaries::find_for(None)
    }

    /// As [`Binaries::find`]; data that was written by one major version can be read only by the same.
    pub(crate) fn find_for(data_major: Option<u32>) -> Result<Binaries, PostgresError> {
        let mut newest = None;
        for folder in candidates() {
            let Some(version) = version_of(&folder.join("postgres")) else { continue };
            if version.major >= VERSION_MIN && data_major.is_none_or(|major| major == version.major) {
                return Ok(Binaries { folder, version });
            }
            newest = newest.max(Some(version));
        }
        match (newest, data_major) {
            (None, _) => Err(PostgresError::NotInstalled),
            (Some(found), Some(data)) if data >= VERSION_MIN => Err(PostgresError::OtherMajor { data, found }),
            (Some(found), _) => Err(PostgresError::TooOld { found }),
        }
    }

    /// The folder that holds `postgres`, `initdb` and the client programs.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn version(&self) -> Version {
        self.version
    }
}

/// Folders that hold both `postgres` and `initdb`, the best first. Links are followed to the real folder: a folder of
/// wrapper scripts has no `postgres`, and the server finds its own files beside the real one.
fn candidates() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    folders.extend(pg_config_bindir());
    for (parent, prefix, below) in USUAL_PLACES {
        folders.extend(
            newest_first(entries(parent), prefix)
                .into_iter()
                .map(|name| [parent, name.as_str(), below].iter().collect::<PathBuf>()),
        );
    }
    let mut found: Vec<PathBuf> = Vec::new();
    for folder in folders {
        let Ok(server) = folder.join("postgres").canonicalize() else { continue };
        let Some(real) = server.parent() else { continue };
        if real.join("initdb").is_file() && !found.iter().any(|known| known == real) {
            found.push(real.to_owned());
        }
    }
    found
}

fn pg_config_bindir() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let folder = text.trim();
    (output.status.success() && !folder.is_empty()).then(|| PathBuf::from(folder))
}

fn entries(parent: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(parent) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Names that start with `prefix`, by the number that follows it; a name without a number comes last.
fn newest_first(names: Vec<String>, prefix: &str) -> Vec<String> {
    let number = |name: &str| {
        let digits: String =
            name[prefix.len()..].trim_start_matches(['@', '-']).chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().unwrap_or(0)
    };
    let mut names: Vec<String> = names.into_iter().filter(|name| name.starts_with(prefix)).collect();
    names.sort_by_key(|name| std::cmp::Reverse(number(name)));
    names
}

fn version_of(server: &Path) -> Option<Version> {
    let output = Command::new(server).arg("--version").output().ok()?;
    parse_version(&String::from_utf8(output.stdout).ok()?)
}

/// Reads what `postgres --version` prints.
fn parse_version(text: &str) -> Option<Version> {
    let word = text.trim().strip_prefix("postgres (PostgreSQL) ")?.split_whitespace().next()?;
    let number = |part: &str| {
        let digits = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        part[..digits].parse().ok()
    };
    let (major, minor) = word.split_once('.').unwrap_or((word, "0"));
    Some(Version { major: number(major)?, minor: number(minor)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_what_postgres_prints() {
        for (text, expected) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some((15, 18))),
            ("postgres (PostgreSQL) 16.4 - Percona Distribution\n", Some((16, 4))),
            ("postgres (PostgreSQL) 17.2 (Homebrew)", Some((17, 2))),
            ("postgres (PostgreSQL) 18beta1", Some((18, 0))),
            ("postgres (PostgreSQL) 19devel", Some((19, 0))),
            ("postgres (PostgreSQL) 9.6.24", Some((9, 6))),
            ("psql (PostgreSQL) 15.18", None),
            ("postgres (PostgreSQL) ", None),
            ("postgres (PostgreSQL) next", None),
            ("", None),
        ] {
            assert_eq!(parse_version(text), expected.map(|(major, minor)| Version { major, minor }), "{text:?}");
        }
    }

    #[test]
    fn the_newest_installed_folder_comes_first() {
        let sorted = |names: &[&str], prefix| newest_first(names.iter().map(|&name| name.to_owned()).collect(), prefix);
        assert_eq!(sorted(&["9.6", "15", "17", "16"], ""), ["17", "16", "15", "9.6"]);
        assert_eq!(sorted(&["pgsql-15", "lib", "pgsql-17"], "pgsql-"), ["pgsql-17", "pgsql-15"]);
        assert_eq!(
            sorted(&["postgresql", "postgresql@15", "postgresql@17"], "postgresql"),
            ["postgresql@17", "postgresql@15", "postgresql"]
        );
        assert_eq!(sorted(&["latest", "16"], ""), ["16", "latest"]);
    }
}
