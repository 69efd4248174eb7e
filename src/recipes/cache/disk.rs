//! The last values that were good, in a file: for a service that starts while the store is down.
//!
//! The file is whole or it is not taken: it is written aside, synced and moved into place, and has
//! a sum over all that it says. It is JSON, values as `text` where they are UTF-8 and as `hex`
//! where not, with no index by which another cluster could be mistaken for this one; `index` is for
//! people.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::board::Map;
use super::fold::Stored;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key};
use crate::runtime::Entropy;

const FORMAT: &str = "tenure cache";
const VERSION: u64 = 1;

/// What a file of any version says first.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u64,
}

#[derive(Serialize, Deserialize)]
struct Page {
    format: String,
    version: u64,
    prefix: String,
    /// The store's index, where it was known.
    index: Option<u64>,
    /// When the store last confirmed it: seconds since 1970.
    confirmed: u64,
    /// [`Page::sum`] of the rest.
    sum: String,
    entries: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    key: String,
    #[serde(flatten)]
    value: Value,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Value {
    Text(String),
    Hex(String),
}

/// What is kept.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) entries: Map<Stored>,
    pub(super) index: Option<Index>,
    /// When the store last confirmed it, since 1970 by the wall clock.
    pub(super) confirmed: Duration,
}

/// Reads the file; `None` if there is none.
pub(super) fn load(path: &Path, prefix: &Key) -> Result<Option<Kept>> {
    match fs::read(path) {
        Ok(bytes) => match parse(&bytes, prefix) {
            Ok(kept) => Ok(Some(kept)),
            Err(error) => Err(place(error, path, prefix)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(place(failed("cannot be read", error), path, prefix)),
    }
}

/// Writes the file; blocks. Whatever happens, the file is the old one or the new one.
pub(super) fn save(path: &Path, prefix: &Key, kept: &Kept, entropy: &Entropy) -> Result<()> {
    let write = || -> io::Result<()> {
        let text = serde_json::to_vec(&Page::new(prefix, kept))?;
        let aside = Aside::new(path, entropy)?;
        let mut file = aside.create()?;
        file.write_all(&text)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&aside.0, path)?;
        // The move itself; where directories cannot be synced the file system decides when.
        if let Some(dir) = aside.0.parent() {
            let _ = File::open(dir).and_then(|dir| dir.sync_all());
        }
        Ok(())
    };
    write().map_err(|error| place(failed("cannot be written", error), path, prefix))
}

/// A file beside another; gone with this value, unless it was moved.
struct Aside(PathBuf);

impl Aside {
    fn new(path: &Path, entropy: &Entropy) -> io::Result<Self> {
        let Some(name) = path.file_name() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no file name"));
        };
        let mut name = name.to_owned();
        name.push(format!(".{:016x}.tmp", entropy.u64()));
        Ok(Self(path.with_file_name(name)))
    }

    /// For its owner only: configurations hold secrets.
    fn create(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(&self.0)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn parse(bytes: &[u8], prefix: &Key) -> Result<Kept> {
    let broken = |cause| failed("is damaged or is no file of a cache", cause);
    let head: Head = serde_json::from_slice(bytes).map_err(|it| broken(it.into()))?;
    if head.format != FORMAT {
        let text = "this is no file of a cache";
        return Err(Error::new(ErrorKind::InvalidValue, text));
    }
    if head.version != VERSION {
        let text = format!(
            "the file has version {}, and this program knows {VERSION}",
            head.version
        );
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    let page: Page = serde_json::from_slice(bytes).map_err(|it| broken(it.into()))?;
    if page.prefix != prefix.as_str() {
        let text = format!("the file is that of the prefix {}", page.prefix);
        return Err(Error::new(ErrorKind::InvalidOptions, text));
    }
    let damaged = |text| Error::new(ErrorKind::InvalidValue, text);
    let mut entries = Map::new_sync();
    for entry in &page.entries {
        let key = Key::new(&entry.key).map_err(|_| damaged("the file has a key that is none"))?;
        let value = entry.value.bytes();
        let value = value.ok_or_else(|| damaged("the file has a value that is not hex"))?;
        let created = None;
        entries.insert_mut(key, Arc::new(Stored { created, value }));
    }
    let kept = Kept {
        entries,
        index: page.index.and_then(Index::new),
        confirmed: Duration::from_secs(page.confirmed),
    };
    if page.sum != sum(prefix, &kept) {
        return Err(damaged("the file is damaged: its sum is another"));
    }
    Ok(kept)
}

impl Page {
    fn new(prefix: &Key, kept: &Kept) -> Self {
        let entries = kept.entries.iter().map(|(key, stored)| Entry {
            key: key.as_str().to_owned(),
            value: Value::of(&stored.value),
        });
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            prefix: prefix.as_str().to_owned(),
            index: kept.index.map(Index::get),
            confirmed: kept.confirmed.as_secs(),
            sum: sum(prefix, kept),
            entries: entries.collect(),
        }
    }
}

impl Value {
    fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Hex(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        }
    }

    fn bytes(&self) -> Option<Bytes> {
        let digits = match self {
            Self::Text(text) => return Some(Bytes::copy_from_slice(text.as_bytes())),
            Self::Hex(digits) => digits.as_bytes(),
        };
        let digit = |digit: &u8| char::from(*digit).to_digit(16);
        let pairs = digits.chunks(2).map(|pair| match pair {
            [high, low] => u8::try_from(digit(high)? * 16 + digit(low)?).ok(),
            _ => None,
        });
        pairs.collect::<Option<Vec<u8>>>().map(Bytes::from)
    }
}

/// FNV-1a over all that the file says, each part with its length before it. Against damage, not
/// against forgers: whoever can write the file can write the configuration.
fn sum(prefix: &Key, kept: &Kept) -> String {
    let mut sum: u64 = 0xcbf2_9ce4_8422_2325;
    let mut add = |part: &[u8]| {
        for byte in (part.len() as u64).to_le_bytes().iter().chain(part) {
            sum = (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    add(prefix.as_str().as_bytes());
    add(&kept.index.map_or(0, Index::get).to_le_bytes());
    add(&kept.confirmed.as_secs().to_le_bytes());
    for (key, stored) in &kept.entries {
        add(key.as_str().as_bytes());
        add(&stored.value);
    }
    format!("{sum:016x}")
}

fn failed(what: &'static str, cause: io::Error) -> Error {
    let text = format!("the file {what}");
    Error::new(ErrorKind::InvalidValue, text).caused_by(cause)
}

fn place(error: Error, path: &Path, prefix: &Key) -> Error {
    error
        .during("keep the cache on disk")
        .at(prefix)
        .on(path.display().to_string())
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
