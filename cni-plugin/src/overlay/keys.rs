//! This node's WireGuard key: read, or made once and kept.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use curve25519_dalek::MontgomeryPoint;
use linux::wireguard::Key;

use super::backend::WireGuard;

/// Only the owner may read it.
const MODE: u32 = 0o600;

/// Fills in the keys of the backend from its file, which is made if it is not there.
///
/// # Errors
/// The file cannot be read, holds no key, or cannot be written.
pub fn load(wg: &mut WireGuard) -> Result<()> {
    let path = &wg.key_file;
    let at = || format!("WireGuard key {}", path.display());
    let private = match fs::read_to_string(path) {
        Ok(text) => text.parse().with_context(at)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let key = Key(rand::random());
            write(path, &key).with_context(at)?;
            key
        }
        Err(e) => return Err(e).with_context(at),
    };
    let private = clamped(private);
    wg.private = Some(private);
    wg.public = Some(public(&private));
    Ok(())
}

/// A private key as the kernel shows it afterwards (RFC 7748, section 5).
fn clamped(mut key: Key) -> Key {
    key.0[0] &= 0xf8;
    key.0[31] = (key.0[31] & 0x7f) | 0x40;
    key
}

/// The public key that belongs to a private one (RFC 7748).
pub fn public(private: &Key) -> Key {
    Key(MontgomeryPoint::mul_base_clamped(private.0).to_bytes())
}

fn write(path: &Path, key: &Key) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    let temporary = path.with_extension("tmp");
    // One that a crash left may have another mode.
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(&temporary)?;
    file.write_all(format!("{key}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut wg = WireGuard {
            key_file: dir.path().join("keys/wireguard.key"),
            ..WireGuard::default()
        };
        load(&mut wg).unwrap();
        let first = wg.clone();
        let mode = fs::metadata(&wg.key_file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        load(&mut wg).unwrap();
        assert_eq!(wg, first);
        assert!(wg.public.is_some() && wg.public != wg.private);
        fs::write(&wg.key_file, "x").unwrap();
        let error = format!("{:#}", load(&mut wg).unwrap_err());
        assert!(
            error.ends_with("wireguard.key: not a key of 32 bytes in base64"),
            "{error}"
        );
    }

    /// RFC 7748, section 6.1.
    #[test]
    fn public_keys_are_those_of_the_standard() {
        let hex = |text: &str| -> Key {
            let byte = |i: usize| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap();
            Key(std::array::from_fn(byte))
        };
        let alice = hex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
        let expect = hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
        assert_eq!(public(&alice), expect);
    }
}
