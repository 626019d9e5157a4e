//! What is asked of a reader, and what it answers: one frame each, in turns.
//!
//! A frame is the length of its body as four bytes, the lowest first, and the body as JSON. Behind
//! the frame of a request with [`Source::Inline`] follow the document's own bytes.

use std::io::{self, Read, Write};
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// The longest answer that is taken.
pub const MAX_FRAME: usize = 96 << 20;

/// Which document to read, and how much of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// The name by which its format is told.
    pub name: String,
    pub source: Source,
    /// A larger file is refused.
    pub max_bytes: u64,
    /// Text beyond this is cut off, and a note says so.
    pub max_text: usize,
    /// The hash as it was last time: when it is still the same, there is nothing to parse.
    pub known: Option<String>,
}

/// Where the bytes are.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// In a file, which must really be inside the folder `root`.
    File { path: String, root: String },
    /// Behind the request's frame.
    Inline { bytes: u64 },
}

/// What became of a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Parsed {
        stamp: Stamp,
        parsed: Parsed,
    },
    /// The bytes are those that are known.
    Unchanged {
        stamp: Stamp,
    },
    Failed {
        trouble: Trouble,
    },
}

/// Which bytes were read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// BLAKE3, in hex.
    pub hash: String,
    pub size: u64,
    /// Of the last change, in milliseconds since 1970; 0 when the bytes were no file.
    pub modified_ms: i64,
}

/// A document's text and its structure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Parsed {
    /// `markdown`, `pdf`, …
    pub format: String,
    pub title: Option<String>,
    pub text: String,
    /// In the order of the text; they do not overlap.
    pub blocks: Vec<Block>,
    /// What it points at: addresses, and names of other documents.
    pub links: Vec<String>,
    /// Front matter, key by key; the values of a list one by one.
    pub front: Vec<(String, String)>,
    /// What a reader should know: text was cut off, a sheet was skipped.
    pub notes: Vec<String>,
}

/// A part of a text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    pub kind: BlockKind,
    /// In bytes. A heading's is its words alone.
    pub span: Range<usize>,
    /// From 1, for formats that have pages.
    pub page: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockKind {
    /// 1 is the highest.
    Heading(u8),
    /// Prose.
    Paragraph,
    /// Code, tables, records: lines that stand for themselves.
    Verbatim,
}

/// Why a document could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Trouble {
    pub kind: TroubleKind,
    pub message: String,
}

impl Trouble {
    pub fn new(kind: TroubleKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// What kind of trouble; a stable word for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TroubleKind {
    /// It is not there any more.
    Missing,
    /// It is a folder, a device, a pipe.
    NotAFile,
    /// It leads out of its folder.
    Outside,
    TooLarge,
    Unreadable,
    /// It changed while it was read.
    Changed,
    /// Its bytes are not what its name says.
    Binary,
    Encrypted,
    Broken,
    /// It would unpack to more than it may.
    Bomb,
    Unsupported,
    /// There is no text in it.
    Empty,
    /// It took too long.
    Timeout,
    /// Reading it took more memory than it may, or crashed.
    Crashed,
    /// The reader could not be started.
    NoReader,
}

impl TroubleKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::NotAFile => "not_a_file",
            Self::Outside => "outside",
            Self::TooLarge => "too_large",
            Self::Unreadable => "unreadable",
            Self::Changed => "changed",
            Self::Binary => "binary",
            Self::Encrypted => "encrypted",
            Self::Broken => "broken",
            Self::Bomb => "bomb",
            Self::Unsupported => "unsupported",
            Self::Empty => "empty",
            Self::Timeout => "timeout",
            Self::Crashed => "crashed",
            Self::NoReader => "no_reader",
        }
    }

    /// Whether the same bytes may be read later: the trouble is not theirs.
    pub const fn is_passing(self) -> bool {
        matches!(self, Self::Changed | Self::NoReader | Self::Missing)
    }

    /// Whether it may have been the moment instead of the bytes: worth another try, not many.
    pub const fn is_doubtful(self) -> bool {
        matches!(self, Self::Timeout | Self::Crashed)
    }
}

/// The bytes of a frame around a value.
///
/// # Errors
/// The value is not JSON, or too large.
pub fn frame<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, value)?;
    let length = u32::try_from(bytes.len() - 4).ok().filter(|length| *length as usize <= MAX_FRAME);
    let Some(length) = length else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the frame is too large"));
    };
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

/// Writes a frame.
///
/// # Errors
/// As [`frame`]; the pipe is closed.
pub fn write<T: Serialize>(out: &mut impl Write, value: &T) -> io::Result<()> {
    out.write_all(&frame(value)?)?;
    out.flush()
}

/// Reads a frame; `None` at the end of the stream.
///
/// # Errors
/// It breaks off in the middle, is too large, or not of this type.
pub fn read<T: for<'de> Deserialize<'de>>(input: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match input.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the frame is too large"));
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body)?;
    Ok(Some(serde_json::from_slice(&body)?))
}
