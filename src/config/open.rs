//! Reads a file that may be anything: absent, forbidden, endless, or no file at all.
//!
//! Never waits and never reads more than a bound, because a reload must end even if the path
//! now leads to a FIFO that nobody writes to.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::mistake::{Code, Mistake, Mistakes};

/// Room for some fifty thousand servers. A wrong path (a disk image, a log) must not fill the memory.
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// The text of a configuration file.
///
/// # Errors
/// One mistake, which says why not.
pub fn read(path: &Path) -> Result<String, Mistakes> {
    text(path).map_err(|mistake| {
        let mut mistakes = Mistakes::none(path.display().to_string(), "");
        mistakes.add(*mistake);
        mistakes
    })
}

fn text(path: &Path) -> Result<String, Box<Mistake>> {
    let (bytes, _) = bounded(path, BYTES_MAX + 1)?;
    if bytes.len() > BYTES_MAX {
        let mistake = Mistake::new(Code::TooLarge, 0..0, "the file is larger than 4 MiB");
        return Err(Box::new(mistake.help("is this the right path?")));
    }
    Ok(String::from_utf8(bytes).map_err(|error| not_utf8(&error))?)
}

/// The first `most` bytes of a regular file.
pub fn bounded(path: &Path, most: usize) -> Result<(Vec<u8>, std::fs::Metadata), Box<Mistake>> {
    let (file, metadata) = open(path).map_err(|error| refused(path, &error))?;
    Ok((regular(file, &metadata, most)?, metadata))
}

/// Opens without waiting for the other end of a FIFO.
fn open(path: &Path) -> io::Result<(File, std::fs::Metadata)> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let metadata = file.metadata()?;
    Ok((file, metadata))
}

fn regular(file: File, metadata: &std::fs::Metadata, most: usize) -> Result<Vec<u8>, Box<Mistake>> {
    let kind = metadata.file_type();
    if !kind.is_file() {
        let what = match () {
            () if kind.is_dir() => "a directory",
            () if kind.is_fifo() => "a FIFO",
            () if kind.is_socket() => "a socket",
            () => "a device",
        };
        let mistake = Mistake::new(Code::NotAFile, 0..0, format!("this is {what}, not a file"));
        return Err(Box::new(mistake.help("name the file itself; it is read again at each reload")));
    }
    // The length may be a lie (/proc) or grow meanwhile: what is read is bounded by itself.
    let mut bytes = Vec::new();
    let mut bounded = file.take(most as u64);
    bounded.read_to_end(&mut bytes).map_err(|error| unreadable(&error))?;
    Ok(bytes)
}

/// Why a file could not be opened.
pub fn refused(path: &Path, error: &io::Error) -> Mistake {
    match error.kind() {
        ErrorKind::NotFound => Mistake::new(Code::NotFound, 0..0, "there is no such file")
            .help("name another one on the command line, or in TIDEGATE_CONFIG"),
        ErrorKind::PermissionDenied => {
            Mistake::new(Code::NotPermitted, 0..0, "this user may not read the file").help(format!(
                "let the user that Tidegate runs as read {} and enter the folders above it",
                path.display()
            ))
        }
        // A socket cannot be opened at all (open(2)).
        _ if error.raw_os_error() == Some(libc::ENXIO) => {
            Mistake::new(Code::NotAFile, 0..0, "this is a socket or a device, not a file")
                .help("name the file itself; it is read again at each reload")
        }
        _ => unreadable(error),
    }
}

fn unreadable(error: &io::Error) -> Mistake {
    Mistake::new(Code::Unreadable, 0..0, format!("the file cannot be read: {error}"))
}

fn not_utf8(error: &std::string::FromUtf8Error) -> Mistake {
    let at = error.utf8_error().valid_up_to();
    let line = error.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
    let message = format!("byte {at}, in line {line}, is not UTF-8");
    Mistake::new(Code::NotUtf8, 0..0, message).help("save the file as UTF-8")
}
