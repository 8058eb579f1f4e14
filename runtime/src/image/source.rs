//! Where an image is loaded from: a layout directory or an archive, as files by name.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::error::{Error, Result};

/// Documents (indexes, manifests, configurations) beyond this size are refused.
const DOCUMENT_BYTES_MAX: u64 = 16 << 20;

/// Links to links in an archive are followed this often.
const LINKS_MAX: usize = 8;

/// Where an archive's file lies.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Bytes { offset: u64, len: u64 },
    Link(String),
}

/// Files by name.
#[derive(Debug)]
pub(super) enum Source {
    Dir(PathBuf),
    Archive {
        path: PathBuf,
        file: File,
        places: BTreeMap<String, Place>,
    },
}

impl Source {
    /// Opens a directory or archive. A compressed archive is unpacked into `tmp` first, since its
    /// files are read in another order than they come.
    pub(super) fn open(path: &Path, tmp: &Path) -> Result<Self> {
        let open = || File::open(path).map_err(Error::path("open", path));
        if path.is_dir() {
            return Ok(Self::Dir(path.to_owned()));
        }
        let mut file = open()?;
        let mut magic = [0; 4];
        let len = file.read(&mut magic).map_err(Error::path("read", path))?;
        let compressed = Compression::of(magic.get(..len).unwrap_or_default());
        file = match compressed {
            Compression::None => file,
            Compression::Gzip | Compression::Zstd => {
                let mut plain =
                    tempfile::tempfile_in(tmp).map_err(Error::path("make a file in", tmp))?;
                let mut reader = decompress(BufReader::new(open()?), compressed)
                    .map_err(Error::path("unpack", path))?;
                io::copy(&mut reader, &mut plain).map_err(Error::path("unpack", path))?;
                plain
            }
        };
        file.seek(SeekFrom::Start(0))
            .map_err(Error::path("read", path))?;
        let places = index(&file).map_err(|e| {
            // The reader of archives puts whatever it met into its message: only the first line.
            let why = e.to_string();
            let why = why.lines().next().unwrap_or_default();
            Error::image(
                path.display().to_string(),
                format!("not a tar archive: {why}"),
            )
        })?;
        Ok(Self::Archive {
            path: path.to_owned(),
            file,
            places,
        })
    }

    /// What it is called in messages.
    pub(super) fn title(&self) -> String {
        match self {
            Self::Dir(path) | Self::Archive { path, .. } => path.display().to_string(),
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::Dir(dir) => dir.join(name).is_file(),
            Self::Archive { places, .. } => places.contains_key(name),
        }
    }

    /// Reads one file as a stream.
    pub(super) fn open_file(&self, name: &str) -> Result<Box<dyn Read + '_>> {
        let missing = || Error::image(self.title(), format!("it has no file {name}"));
        match self {
            Self::Dir(dir) => {
                let path = dir.join(name);
                let file = File::open(&path).map_err(Error::path("open", &path))?;
                Ok(Box::new(file))
            }
            Self::Archive { path, file, places } => {
                let mut name = name.to_owned();
                for _ in 0..LINKS_MAX {
                    match places.get(&name).ok_or_else(missing)? {
                        Place::Link(target) => name.clone_from(target),
                        Place::Bytes { offset, len } => {
                            let mut file = file;
                            file.seek(SeekFrom::Start(*offset))
                                .map_err(Error::path("read", path))?;
                            return Ok(Box::new(file.take(*len)));
                        }
                    }
                }
                Err(missing())
            }
        }
    }

    /// Reads a document.
    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = self
            .open_file(name)?
            .take(DOCUMENT_BYTES_MAX + 1)
            .read_to_end(&mut bytes);
        let len = read.map_err(|e| Error::io(format!("read {name} of {}", self.title()), e))?;
        if u64::try_from(len).unwrap_or(u64::MAX) > DOCUMENT_BYTES_MAX {
            return Err(Error::image(self.title(), format!("{name} is too large")));
        }
        Ok(bytes)
    }
}

fn index(file: &File) -> io::Result<BTreeMap<String, Place>> {
    let mut places = BTreeMap::new();
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let name = clean(&entry.path()?.to_string_lossy());
        let place = match (entry.header().entry_type(), entry.link_name()?) {
            (tar::EntryType::Symlink, Some(target)) => {
                let base = name.rsplit_once('/').map_or("", |(dir, _)| dir);
                Place::Link(clean(&format!("{base}/{}", target.to_string_lossy())))
            }
            (tar::EntryType::Link, Some(target)) => Place::Link(clean(&target.to_string_lossy())),
            _ => Place::Bytes {
                offset: entry.raw_file_position(),
                len: entry.size(),
            },
        };
        places.insert(name, place);
    }
    if places.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty"));
    }
    Ok(places)
}

/// `a/../b/./c` becomes `b/c`; nothing leads above the top.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// By the first bytes: media types are not always true (gzip: RFC 1952 2.3.1, zstd: RFC 8878 3.1.1).
    pub(super) fn of(magic: &[u8]) -> Self {
        if magic.starts_with(&[0x1f, 0x8b]) {
            Self::Gzip
        } else if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Self::Zstd
        } else {
            Self::None
        }
    }
}

/// A reader of the plain content of `reader`.
pub(super) fn decompress<'a>(
    reader: impl io::BufRead + 'a,
    compression: Compression,
) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match compression {
        Compression::None => Box::new(reader),
        Compression::Gzip => Box::new(MultiGzDecoder::new(reader)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(reader)?),
    })
}

/// Removes what killed loads have left in `tmp`, as long as nobody loads.
pub(super) fn clear(tmp: &Path) -> Result<()> {
    let entries = fs::read_dir(tmp).map_err(Error::path("list", tmp))?;
    for entry in entries.flatten() {
        let path = entry.path();
        fs::remove_dir_all(&path)
            .or_else(|_not_a_dir| fs::remove_file(&path))
            .map_err(Error::path("remove", &path))?;
    }
    Ok(())
}
