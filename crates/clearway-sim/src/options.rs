//! How the simulator behaves when nothing in a request says otherwise.

use std::time::Duration;

use thiserror::Error;

use crate::account::KeyRule;
use crate::fault::{Fault, FaultSpec};
use crate::schedule::{Flap, Window};

/// Everything that can be set before start. All fields are public; the default is an instant, faultless provider.
#[derive(Clone, Debug)]
pub struct Options {
    /// Time from the end of the request to the first token.
    pub ttft: Duration,
    /// Replies have exactly this many tokens, `tok0 tok1 …`. Without it they are the script's, one per word.
    pub tokens: Option<u32>,
    /// Time between two tokens.
    pub token_interval: Duration,
    /// How far a token may be off its time, as a fraction of the interval (0 to 1). The rate stays the same.
    pub jitter: f64,
    /// Above this many requests at once the answer is 429 with Retry-After.
    pub max_concurrent: Option<u32>,
    /// Requests per minute and key; beyond them the answer is 429.
    pub rpm: Option<u32>,
    /// Tokens per minute and key; beyond them the answer is 429.
    pub tpm: Option<u32>,
    /// Whether answers say in headers how much of `rpm` and `tpm` is left.
    pub rate_headers: bool,
    /// How keys are treated. Any other key is good.
    pub keys: Vec<KeyRule>,
    /// The fault of requests that do not choose one themselves.
    pub fault: Option<FaultSpec>,
    /// The share of requests that get `fault` (0 to 1).
    pub fault_rate: f64,
    /// When the provider is down.
    pub outages: Vec<Window>,
    /// Or up and down in turns.
    pub flap: Option<Flap>,
    /// What every request meets while it is down, whatever fault it chose.
    pub outage_fault: FaultSpec,
    /// The seed of jitter and of the draw for `fault`.
    pub seed: u64,
    /// Replies by what the user wrote; the first rule that matches wins.
    pub script: Vec<ScriptRule>,
    /// What `GET /v1/models` lists. Any model name is served.
    pub models: Vec<String>,
    /// The wall clock at start, in seconds since 1970: the base of `created` and of dates in headers.
    pub epoch_s: u64,
    /// Bounds that protect the simulator itself.
    pub limits: Limits,
}

/// A scripted reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptRule {
    /// The rule holds when the last user message contains this text, in any case. Empty text always holds.
    pub match_text: String,
    /// A minijinja template over `message`, `messages` (each with `role` and `content`), `model` and `turn`.
    pub reply: String,
    /// Call this tool instead, if the request offers it and has not just had its answer.
    pub tool: Option<ToolRule>,
}

/// A scripted tool call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolRule {
    /// Which tool.
    pub name: String,
    /// Its arguments as JSON: a template, as the reply is.
    pub arguments: String,
}

/// Bounds of the simulator: nothing in it waits or grows without one.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once; one more gets 503 and is closed.
    pub max_connections: usize,
    /// Bytes of a request's head.
    pub max_head_bytes: usize,
    /// Bytes of a request's body.
    pub max_body_bytes: usize,
    /// How long a connection may be idle between requests.
    pub idle_timeout: Duration,
    /// How long a request's head may take once its first byte is there.
    pub head_timeout: Duration,
    /// How long a request's body may take.
    pub body_timeout: Duration,
    /// How long one write may wait for a client that does not read.
    pub write_timeout: Duration,
    /// How long a fault keeps a silent socket open.
    pub hold: Duration,
    /// Bytes after which an endless body does end.
    pub endless_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ttft: Duration::ZERO,
            tokens: None,
            token_interval: Duration::ZERO,
            jitter: 0.0,
            max_concurrent: None,
            rpm: None,
            tpm: None,
            rate_headers: true,
            keys: Vec::new(),
            fault: None,
            fault_rate: 1.0,
            outages: Vec::new(),
            flap: None,
            outage_fault: Fault::Unavailable.into(),
            seed: 0,
            script: Vec::new(),
            models: vec!["sim".to_owned(), "gpt-5-mini".to_owned()],
            epoch_s: 1_767_225_600, // the first second of 2026
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 16_384,
            max_head_bytes: 32 * 1024,
            max_body_bytes: 32 * 1024 * 1024,
            idle_timeout: Duration::from_secs(75),
            head_timeout: Duration::from_secs(15),
            body_timeout: Duration::from_secs(120),
            write_timeout: Duration::from_secs(60),
            hold: Duration::from_secs(600),
            endless_bytes: 1 << 30,
        }
    }
}

/// An option that cannot be meant.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum OptionsError {
    /// A fraction outside 0 to 1.
    #[error("{name} is a fraction from 0 to 1: {value}")]
    Fraction {
        /// Which option.
        name: &'static str,
        /// What it was set to.
        value: f64,
    },
    /// More tokens than a reply may have.
    #[error("a reply has at most {MAX_TOKENS} tokens: {tokens}")]
    Tokens {
        /// What was asked for.
        tokens: u32,
    },
    /// No request could ever be served.
    #[error("{name} is at least 1")]
    Nothing {
        /// Which limit.
        name: &'static str,
    },
    /// A scripted reply that is no template.
    #[error("reply of script rule {rule}: {message}")]
    Script {
        /// Which rule, counted from 1.
        rule: usize,
        /// What the template engine says.
        message: String,
    },
}

const DAY: Duration = Duration::from_secs(86_400);

/// The most tokens a reply may be asked to have.
pub const MAX_TOKENS: u32 = 1_000_000;

impl Options {
    /// Checks what the types cannot. [`Sim::new`](crate::Sim::new) does not: it clamps numbers, and a broken template
    /// becomes a 500 when its rule matches.
    ///
    /// # Errors
    /// The first option that cannot be meant.
    pub fn check(&self) -> Result<(), OptionsError> {
        for (name, value) in [("jitter", self.jitter), ("fault_rate", self.fault_rate)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(OptionsError::Fraction { name, value });
            }
        }
        if let Some(tokens) = self.tokens.filter(|tokens| *tokens > MAX_TOKENS) {
            return Err(OptionsError::Tokens { tokens });
        }
        for (name, limit) in
            [("max_concurrent", self.max_concurrent), ("rpm", self.rpm), ("tpm", self.tpm)]
        {
            if limit == Some(0) {
                return Err(OptionsError::Nothing { name });
            }
        }
        crate::reply::Script::new(&self.script).check()
    }

    /// With every number in a range where no sum of instants can overflow.
    pub(crate) fn clamped(mut self) -> Self {
        let fraction = |value: f64| if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) };
        self.jitter = fraction(self.jitter);
        self.fault_rate = fraction(self.fault_rate);
        self.tokens = self.tokens.map(|tokens| tokens.min(MAX_TOKENS));
        for limit in [&mut self.max_concurrent, &mut self.rpm, &mut self.tpm] {
            *limit = limit.map(|limit| limit.max(1));
        }
        let limits = &mut self.limits;
        for duration in [
            &mut self.ttft,
            &mut self.token_interval,
            &mut limits.idle_timeout,
            &mut limits.head_timeout,
            &mut limits.body_timeout,
            &mut limits.write_timeout,
            &mut limits.hold,
        ] {
            *duration = (*duration).min(DAY);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut Options)) -> Result<(), String> {
        let mut options = Options::default();
        change(&mut options);
        options.check().map_err(|error| error.to_string())
    }

    #[test]
    fn clamping_makes_every_number_usable() {
        let options = Options {
            ttft: Duration::MAX,
            tokens: Some(u32::MAX),
            jitter: f64::NAN,
            fault_rate: 7.0,
            max_concurrent: Some(0),
            limits: Limits { hold: Duration::MAX, ..Limits::default() },
            ..Options::default()
        };
        let clamped = options.clamped();
        assert_eq!(
            (clamped.ttft, clamped.limits.hold, clamped.tokens),
            (DAY, DAY, Some(MAX_TOKENS))
        );
        assert_eq!(
            (clamped.jitter, clamped.fault_rate, clamped.max_concurrent),
            (0.0, 1.0, Some(1))
        );
        assert_eq!(clamped.check(), Ok(()));
    }

    #[test]
    fn defaults_pass_and_nonsense_is_named() {
        assert_eq!(check(|_| {}), Ok(()));
        assert_eq!(check(|o| o.jitter = 1.5), Err("jitter is a fraction from 0 to 1: 1.5".into()));
        assert_eq!(
            check(|o| o.fault_rate = f64::NAN),
            Err("fault_rate is a fraction from 0 to 1: NaN".into())
        );
        assert_eq!(
            check(|o| o.tokens = Some(2_000_000)),
            Err("a reply has at most 1000000 tokens: 2000000".into())
        );
        assert_eq!(
            check(|o| o.max_concurrent = Some(0)),
            Err("max_concurrent is at least 1".into())
        );
        assert_eq!(check(|o| o.tpm = Some(0)), Err("tpm is at least 1".into()));
        let rule = |reply: &str| ScriptRule {
            match_text: String::new(),
            reply: reply.to_owned(),
            tool: None,
        };
        assert_eq!(check(|o| o.script = vec![rule("{{ message }}")]), Ok(()));
        let broken = check(|o| o.script = vec![rule("fine"), rule("{{ message ")]).unwrap_err();
        assert!(broken.starts_with("reply of script rule 2: syntax error"), "{broken}");
    }
}
