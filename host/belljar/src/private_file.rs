//! Small files that only we may read.

use std::{fs, io::Write, path::Path};

use anyhow::Context;
use domain::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

/// Writes a file of mode 0600 in one move: a reader sees the old text or the new one.
pub(crate) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let what = || format!("cannot write `{}`", path.display());
    // A temporary file is made with mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(what)?;
    file.write_all(text.as_bytes()).with_context(what)?;
    file.as_file().sync_all().with_context(what)?;
    file.persist(path).map_err(|error| error.error).with_context(what)?;
    Ok(())
}

/// 32 random bytes in hex, made once and kept.
pub(crate) fn random_once(path: &Path) -> anyhow::Result<SecretString> {
    if path.exists() {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        return Ok(SecretString::from(text.trim()));
    }
    let secret = random()?;
    write(path, &format!("{}\n", secret.expose_secret()))?;
    Ok(secret)
}

/// 32 random bytes in hex.
pub(crate) fn random() -> anyhow::Result<SecretString> {
    Ok(SecretString::from(random_hex()?))
}

pub(crate) fn random_hex() -> anyhow::Result<String> {
    Ok(hex::encode(&random_bytes()?[..]))
}

pub(crate) fn random_bytes() -> anyhow::Result<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut bytes[..]).map_err(|_| anyhow::anyhow!("no randomness from the operating system"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_made_once_and_only_ours() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let first = random_once(&path).unwrap();
        assert_eq!(first.expose_secret().len(), 64);
        assert_eq!(random_once(&path).unwrap().expose_secret(), first.expose_secret());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
