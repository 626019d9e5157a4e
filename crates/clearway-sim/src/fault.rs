//! The faults by name: what there is to choose from, and how a choice is written.
//!
//! One table holds name, group, parameter and description of every fault; parsing, printing, the list in the command
//! line and `GET /faults` all read it. What a fault *does* is not here but in `plan`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

mod table;

#[cfg(test)]
mod tests;

use table::TABLE;

/// One way to misbehave. [`Fault::about`] says what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(
    missing_docs,
    reason = "each variant is described in one place, the table that users see too"
)]
pub enum Fault {
    RateLimitOnce,
    RateLimit,
    RetryAfter,
    RetryAfterDate,
    RetryAfterMs,
    RetryAfterText,
    RetryAfterNegative,
    RetryAfterNan,
    RetryAfterHuge,
    NoRetry,
    Status,
    InsufficientQuota,
    CreditBalance,
    Unauthorized,
    Forbidden,
    ModelNotFound,
    RequestTimeout,
    Conflict,
    ContextLength,
    ContentFilter,
    RejectPrefill,
    ServerErrorOnce,
    ServerError,
    Unavailable,
    Overloaded,
    Flap,
    StalledError,
    EndlessError,
    Reset,
    ResetOnce,
    ResetReused,
    IdleClose,
    CloseAfterReply,
    NoAnswer,
    NoRead,
    SlowHeaders,
    SlowHeadersOnce,
    DripHeaders,
    Ttft,
    Stall,
    StallKeepalive,
    Reasoning,
    ReasoningDeltas,
    Drip,
    ErrorAfterRole,
    ErrorEvent,
    OverloadedEvent,
    CutRst,
    CutFin,
    CutChunk,
    CutEnd,
    ToolCallCut,
    NoDone,
    DoneLinger,
    FinishLinger,
    NoUsage,
    BadJson,
    SplitUtf8,
    Crlf,
    Cr,
    Lf,
    MixedEol,
    OneByte,
    MultiLine,
    Bom,
    Error200,
    Html200,
    Empty200,
    EmptyChoices,
    WrongType,
    GiantEvent,
    EndlessLine,
    EmbedShort,
    EmbedReorder,
    EmbedDuplicate,
    EmbedNan,
    EmbedNull,
    EmbedZeros,
    EmbedEmpty,
    EmbedDims,
    EmbedPoison,
}

/// Faults of a kind, for lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the titles say it")]
pub enum Group {
    Refusal,
    Connection,
    Slowness,
    Ending,
    Content,
    Embedding,
}

/// What the number after the colon counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Unit {
    Milliseconds,
    Seconds,
    Tokens,
    Megabytes,
    /// A status of HTTP, rather than a count.
    Status,
}

/// The parameter of a fault: `NAME:VALUE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// What it counts.
    pub unit: Unit,
    /// Its value when none is given.
    pub default: u64,
}

/// A row of the fault table.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// The fault described.
    pub fault: Fault,
    /// Its name on the command line, in the header and behind the model name.
    pub name: &'static str,
    /// Where it is listed.
    pub group: Group,
    /// The number it takes, if any.
    pub parameter: Option<Parameter>,
    /// What it does, in one line.
    pub line: &'static str,
}

impl Fault {
    /// Every fault, in the order of the table.
    pub const ALL: [Self; TABLE.len()] = {
        let mut all = [Self::RateLimitOnce; TABLE.len()];
        let mut index = 0;
        while index < TABLE.len() {
            all[index] = TABLE[index].fault;
            index += 1;
        }
        all
    };

    /// Name, group, parameter and description.
    #[must_use]
    pub fn about(self) -> &'static About {
        // A test checks that the table is in the order of the enum.
        &TABLE[self as usize]
    }

    /// Its name, for example `cut_rst`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.about().name
    }
}

impl Group {
    /// Every group, in the order of the table.
    pub const ALL: [Self; 6] = [
        Self::Refusal,
        Self::Connection,
        Self::Slowness,
        Self::Ending,
        Self::Content,
        Self::Embedding,
    ];

    /// A heading for lists.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Refusal => "refuses",
            Self::Connection => "breaks the connection",
            Self::Slowness => "is slow or silent",
            Self::Ending => "ends wrongly",
            Self::Content => "sends odd bytes",
            Self::Embedding => "gets embeddings wrong",
        }
    }
}

impl Unit {
    /// How it is abbreviated in lists.
    #[must_use]
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Seconds => "s",
            Self::Tokens => "tokens",
            Self::Megabytes => "MB",
            Self::Status => "status",
        }
    }

    /// The largest value taken, so that no sum or date built from it can overflow.
    #[must_use]
    pub fn max(self) -> u64 {
        match self {
            Self::Milliseconds => 86_400_000,
            Self::Seconds => 1_000_000_000,
            Self::Tokens => 1_000_000,
            Self::Megabytes => 4_096,
            Self::Status => 599,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A fault together with its number, as written `stall:20`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultSpec {
    /// What to do.
    pub fault: Fault,
    /// Its number; `None` means the default of the table.
    pub value: Option<u64>,
}

impl FaultSpec {
    /// The number that counts: the given one, or the default, or 0 for a fault without a parameter.
    #[must_use]
    pub fn amount(&self) -> u64 {
        self.value
            .or_else(|| self.fault.about().parameter.map(|parameter| parameter.default))
            .unwrap_or(0)
    }

    /// The amount as a duration, for faults that count milliseconds or seconds.
    #[must_use]
    pub fn duration(&self) -> Duration {
        match self.fault.about().parameter.map(|parameter| parameter.unit) {
            Some(Unit::Seconds) => Duration::from_secs(self.amount()),
            Some(Unit::Milliseconds | Unit::Tokens | Unit::Megabytes | Unit::Status) | None => {
                Duration::from_millis(self.amount())
            }
        }
    }
}

impl From<Fault> for FaultSpec {
    fn from(fault: Fault) -> Self {
        Self { fault, value: None }
    }
}

impl fmt::Display for FaultSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value {
            Some(value) => write!(f, "{}:{value}", self.fault),
            None => write!(f, "{}", self.fault),
        }
    }
}

/// Why a text is not a fault.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseError {
    /// No fault has this name.
    #[error("unknown fault: {name}{}", suggestion.map(|near| format!(", did you mean {near}?")).unwrap_or_default())]
    Unknown {
        /// The name as written.
        name: String,
        /// A fault that starts alike.
        suggestion: Option<Fault>,
    },
    /// The fault takes no number.
    #[error("fault {fault} takes no value")]
    NoParameter {
        /// The fault.
        fault: Fault,
    },
    /// The number is none, or too large.
    #[error("fault {fault} takes a whole number of {}, at most {}: {value}", unit.symbol(), unit.max())]
    Value {
        /// The fault.
        fault: Fault,
        /// What its number counts.
        unit: Unit,
        /// The value as written.
        value: String,
    },
}

impl FromStr for Fault {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let name = text.trim().to_ascii_lowercase().replace('-', "_");
        if name == SILENT {
            return Ok(Self::NoAnswer);
        }
        let found = TABLE.iter().find(|about| about.name == name).map(|about| about.fault);
        found.ok_or_else(|| ParseError::Unknown { suggestion: nearest(&name), name })
    }
}

impl FromStr for FaultSpec {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let Some((name, value)) = text.split_once(':') else {
            return Ok(text.parse::<Fault>()?.into());
        };
        let fault: Fault = name.parse()?;
        let Some(Parameter { unit, .. }) = fault.about().parameter else {
            return Err(ParseError::NoParameter { fault });
        };
        match value.trim().parse() {
            Ok(number) if number <= unit.max() => Ok(Self { fault, value: Some(number) }),
            Ok(_) | Err(_) => {
                Err(ParseError::Value { fault, unit, value: value.trim().to_owned() })
            }
        }
    }
}

/// Another name of `no_answer`, for outages.
const SILENT: &str = "silent";

/// The fault whose name shares the longest beginning with `name`, if it is long enough to be no accident.
fn nearest(name: &str) -> Option<Fault> {
    let shared = |other: &str| name.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    let best = TABLE
        .iter()
        .max_by_key(|about| (shared(about.name), std::cmp::Reverse(about.name.len())))?;
    (shared(best.name) >= 3).then_some(best.fault)
}
