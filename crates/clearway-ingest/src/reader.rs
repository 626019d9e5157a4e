//! The reader itself: a process that parses what it is asked to, and can be killed at any time.
//!
//! It limits itself before it reads the first byte of a document, and it ends when its input does,
//! or with the process that started it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rustix::process::{Resource, Rlimit, Signal};

use crate::formats;
use crate::protocol::{self, Answer, Parsed, Request, Source, Stamp, Trouble, TroubleKind};

/// What a reader may use up.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Memory that it may write to, beside what it has when it begins.
    pub data_bytes: u64,
    /// Addresses, which cost nothing by themselves, beside those that it has when it begins.
    pub address_bytes: u64,
    /// Of processor time, for all its documents: the last resort when nobody kills it.
    pub cpu_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { data_bytes: 768 << 20, address_bytes: 4 << 30, cpu_seconds: 3600 }
    }
}

/// Answers requests until there are no more.
///
/// # Errors
/// The limits cannot be set; the pipes break.
pub fn serve(limits: Limits) -> io::Result<()> {
    confine(limits)?;
    // What a parser says while it dies is of no use to anybody.
    std::panic::set_hook(Box::new(|_| {}));
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    while let Some(request) = protocol::read::<Request>(&mut input)? {
        let inline = match request.source {
            Source::Inline { bytes } => {
                // Read in any case, so that the next request is found behind it.
                let mut content = Vec::new();
                (&mut input).take(bytes).read_to_end(&mut content)?;
                Some(content)
            }
            Source::File { .. } => None,
        };
        let answer = answer(&request, inline);
        match protocol::frame(&answer) {
            Ok(frame) => {
                use io::Write;
                output.write_all(&frame)?;
                output.flush()?;
            }
            Err(_) => {
                let text = "its text is too long to be handed over";
                let trouble = Trouble::new(TroubleKind::TooLarge, text);
                protocol::write(&mut output, &Answer::Failed { trouble })?;
            }
        }
    }
    Ok(())
}

/// Answers one request, without a process around it.
pub fn answer(request: &Request, inline: Option<Vec<u8>>) -> Answer {
    let work = AssertUnwindSafe(|| read(request, inline));
    let outcome = catch_unwind(work).unwrap_or_else(|_| {
        Err(Trouble::new(TroubleKind::Broken, "its parser gave up: the file is probably damaged"))
    });
    match outcome {
        Ok((stamp, Some(parsed))) => Answer::Parsed { stamp, parsed },
        Ok((stamp, None)) => Answer::Unchanged { stamp },
        Err(trouble) => Answer::Failed { trouble },
    }
}

fn read(request: &Request, inline: Option<Vec<u8>>) -> Result<(Stamp, Option<Parsed>), Trouble> {
    let (bytes, modified_ms) = match (&request.source, inline) {
        (Source::File { path, root }, _) => {
            read_file(Path::new(path), Path::new(root), request.max_bytes)?
        }
        (Source::Inline { .. }, Some(bytes)) => (bytes, 0),
        (Source::Inline { .. }, None) => (Vec::new(), 0),
    };
    if bytes.len() as u64 > request.max_bytes {
        return Err(too_large(bytes.len() as u64, request.max_bytes));
    }
    let hash = blake3::hash(&bytes).to_hex().to_string();
    let stamp = Stamp { size: bytes.len() as u64, hash, modified_ms };
    if request.known.as_ref() == Some(&stamp.hash) {
        return Ok((stamp, None));
    }
    let mut parsed = formats::parse(&request.name, &bytes)?;
    formats::tidy(&mut parsed, request.max_text);
    if parsed.text.trim().is_empty() {
        return Err(Trouble::new(TroubleKind::Empty, formats::nothing_in(&parsed.format)));
    }
    Ok((stamp, Some(parsed)))
}

fn too_large(size: u64, most: u64) -> Trouble {
    let text = format!("it has {size} bytes; the most is {most}");
    Trouble::new(TroubleKind::TooLarge, text)
}

/// All bytes of a file that stays the same meanwhile.
fn read_file(path: &Path, root: &Path, most: u64) -> Result<(Vec<u8>, i64), Trouble> {
    let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let failed = |error: io::Error| {
        let kind = if missing(&error) { TroubleKind::Missing } else { TroubleKind::Unreadable };
        Trouble::new(kind, error.to_string())
    };
    let root = root.canonicalize().map_err(failed)?;
    let real = path.canonicalize().map_err(failed)?;
    if !real.starts_with(&root) {
        return Err(outside(&real));
    }
    // Neither a link put in its place meanwhile nor a pipe that nobody writes to.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let mut file = File::options()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(&real)
        .map_err(failed)?;
    let before = file.metadata().map_err(failed)?;
    if !before.is_file() {
        return Err(Trouble::new(TroubleKind::NotAFile, "it is no regular file"));
    }
    if let Ok(opened) = std::fs::read_link(format!("/proc/self/fd/{}", fd(&file)))
        && !opened.starts_with(&root)
    {
        return Err(outside(&opened));
    }
    if before.len() > most {
        return Err(too_large(before.len(), most));
    }
    let mut bytes = Vec::with_capacity(before.len() as usize);
    (&mut file).take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
    let after = file.metadata().map_err(failed)?;
    let changed = |one: &std::fs::Metadata| (one.len(), one.mtime(), one.mtime_nsec());
    if changed(&before) != changed(&after) || bytes.len() as u64 != after.len() {
        let text = "it changed while it was read; it is read again at the next look";
        return Err(Trouble::new(TroubleKind::Changed, text));
    }
    let modified = after.mtime().saturating_mul(1000) + after.mtime_nsec() / 1_000_000;
    Ok((bytes, modified))
}

fn fd(file: &File) -> i32 {
    use std::os::fd::AsRawFd;
    file.as_raw_fd()
}

fn outside(target: &Path) -> Trouble {
    let text = format!("it leads out of its folder, to {}", target.display());
    Trouble::new(TroubleKind::Outside, text)
}

/// How far it steps back behind the server: a tenth of what others get where the processor is scarce.
const NICE: i32 = 10;

/// Gives up what a parser does not need.
fn confine(limits: Limits) -> io::Result<()> {
    let limit = |resource, most: u64| {
        let hard = rustix::process::getrlimit(resource).maximum;
        let most = hard.map_or(most, |hard| hard.min(most));
        rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
    };
    // An allocator may have set a gigabyte aside before this is reached: that is not the documents'.
    let has = Mapped::now()?;
    limit(Resource::Data, has.data.saturating_add(limits.data_bytes))?;
    limit(Resource::As, has.addresses.saturating_add(limits.address_bytes))?;
    limit(Resource::Cpu, limits.cpu_seconds)?;
    limit(Resource::Core, 0)?;
    // It writes nothing but its answers, into a pipe.
    limit(Resource::Fsize, 0)?;
    limit(Resource::Nofile, 16)?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // Whoever asks comes first. A host that refuses leaves it as fast as others.
    let _ = rustix::process::setpriority_process(None, NICE);
    Ok(())
}

/// What the limits of memory count, in bytes.
#[derive(Clone, Copy, Debug)]
struct Mapped {
    data: u64,
    addresses: u64,
}

impl Mapped {
    fn now() -> io::Result<Self> {
        const STATUS: &str = "/proc/self/status";
        let status = std::fs::read_to_string(STATUS)?;
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kilobytes =
                line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
            kilobytes.map(|count: u64| count.saturating_mul(1024)).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{STATUS} has no {name}"))
            })
        };
        Ok(Self { data: of("VmData")?, addresses: of("VmSize")? })
    }
}

#[cfg(test)]
mod tests;
