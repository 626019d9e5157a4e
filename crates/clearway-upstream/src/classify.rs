//! What follows from a fault: the table of retries, as a pure function.
//!
//! One row per kind of fault says four things: whether the same route may be asked again, whether
//! another key or route may help, whose breaker counts it, and whether the provider asked for less.
//! The attempt loop ([`crate::attempts`]) obeys; nothing else decides about retries.

use std::time::Duration;

use clearway_core::Code;

use crate::failure::Fault;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) same: Same,
    pub(crate) key: KeyEffect,
    /// Another route may do better.
    pub(crate) onward: bool,
    pub(crate) breaker: Blame,
    /// The provider has too much to do: fewer calls at once.
    pub(crate) pressure: bool,
    /// What a retry takes from the account's budget.
    pub(crate) cost: u32,
}

/// Whether the same route may be asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Same {
    Never,
    /// Once, after this long.
    Once(Duration),
    /// Once, after a backoff.
    OnceBackoff,
    /// As long as attempts are left, after a backoff.
    Backoff,
    /// When the provider says, if that is in time; otherwise another route or an error at once.
    Hint,
    /// A backoff, but only where no other route is left: one that is silent mostly stays silent.
    LastResort,
}

/// What it says about the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyEffect {
    None,
    /// Not before the hint's time, for this model.
    Cool,
    /// Paid up: not for a while.
    Quota,
    /// Refused: not again before somebody changes it.
    Dead,
}

/// Whose breaker counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blame {
    Nobody,
    /// All models at this address.
    Endpoint,
    /// This model at this address.
    Route,
}

const NOTHING: Verdict = Verdict {
    same: Same::Never,
    key: KeyEffect::None,
    onward: false,
    breaker: Blame::Nobody,
    pressure: false,
    cost: 0,
};

const TRANSPORT: Verdict = Verdict {
    same: Same::Once(Duration::from_millis(200)),
    onward: true,
    breaker: Blame::Endpoint,
    cost: 1,
    ..NOTHING
};

const SILENT: Verdict = Verdict {
    same: Same::LastResort,
    onward: true,
    breaker: Blame::Route,
    pressure: true,
    cost: 2,
    ..NOTHING
};

const BROKEN: Verdict =
    Verdict { same: Same::OnceBackoff, onward: true, breaker: Blame::Route, cost: 1, ..NOTHING };

/// The row for a fault.
pub(crate) fn classify(fault: &Fault) -> Verdict {
    let verdict = match fault.code {
        Code::UpstreamDnsFailed
        | Code::UpstreamConnectFailed
        | Code::UpstreamConnectTimeout
        | Code::UpstreamTlsFailed => TRANSPORT,
        Code::UpstreamSendTimeout
        | Code::UpstreamHeadersTimeout
        | Code::UpstreamFirstTokenTimeout
        | Code::UpstreamBodyTimeout
        | Code::UpstreamStreamIdle
        | Code::UpstreamStreamStalled
        | Code::UpstreamStreamTooSlow => SILENT,
        Code::UpstreamTimeout => {
            Verdict { same: Same::Backoff, onward: true, breaker: Blame::Route, cost: 1, ..NOTHING }
        }
        Code::UpstreamConflict => Verdict { same: Same::OnceBackoff, cost: 1, ..NOTHING },
        Code::UpstreamRateLimited => Verdict {
            same: Same::Hint,
            key: KeyEffect::Cool,
            onward: true,
            pressure: true,
            cost: 1,
            ..NOTHING
        },
        Code::UpstreamQuotaExhausted => Verdict { key: KeyEffect::Quota, onward: true, ..NOTHING },
        Code::UpstreamCredentialsExhausted => {
            Verdict { key: KeyEffect::Dead, onward: true, ..NOTHING }
        }
        Code::UpstreamForbidden
        | Code::UpstreamModelUnavailable
        | Code::UpstreamContextLength
        | Code::UpstreamQueueTimeout
        | Code::UpstreamShedQueueFull
        | Code::UpstreamShedDeadline => Verdict { onward: true, ..NOTHING },
        Code::UpstreamOverloaded => Verdict {
            same: Same::Backoff,
            onward: true,
            breaker: Blame::Route,
            pressure: true,
            cost: 1,
            ..NOTHING
        },
        Code::UpstreamServerError
        | Code::UpstreamBadResponse
        | Code::UpstreamEmptyResponse
        | Code::UpstreamStreamTruncated
        | Code::UpstreamStreamMalformed
        | Code::UpstreamStreamTooLarge
        | Code::UpstreamBadVectors => BROKEN,
        // The time was up: the provider is to blame only if its own limit had passed as well,
        // and then the fault has that limit's code.
        _ => NOTHING,
    };
    match fault.should_retry {
        Some(false) => Verdict { same: Same::Never, ..verdict },
        Some(true) if verdict.same == Same::Never && verdict.key == KeyEffect::None => {
            Verdict { same: Same::OnceBackoff, cost: verdict.cost.max(1), ..verdict }
        }
        Some(true) | None => verdict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Phase;

    fn of(code: Code) -> Verdict {
        classify(&Fault::new(code, Phase::Headers, ""))
    }

    #[test]
    fn the_request_itself_is_never_repeated() {
        for code in [
            Code::UpstreamInvalidRequest,
            Code::UpstreamContentPolicy,
            Code::DeadlineExceeded,
            Code::Cancelled,
            Code::Internal,
        ] {
            assert_eq!(of(code), NOTHING, "{code}");
        }
    }

    #[test]
    fn silence_goes_to_another_route_first_and_costs_double() {
        let silent = of(Code::UpstreamFirstTokenTimeout);
        assert_eq!((silent.same, silent.cost, silent.onward), (Same::LastResort, 2, true));
    }

    #[test]
    fn what_is_wrong_with_a_key_is_not_the_endpoints_fault() {
        for code in [Code::UpstreamQuotaExhausted, Code::UpstreamCredentialsExhausted] {
            let verdict = of(code);
            assert_eq!(
                (verdict.breaker, verdict.pressure, verdict.cost),
                (Blame::Nobody, false, 0)
            );
            assert_eq!(verdict.same, Same::Never);
        }
        assert_eq!(of(Code::UpstreamRateLimited).breaker, Blame::Nobody);
        assert!(of(Code::UpstreamRateLimited).pressure);
    }

    #[test]
    fn the_providers_word_about_retrying_counts() {
        let told = |code, should_retry| {
            let mut fault = Fault::new(code, Phase::Headers, "");
            fault.should_retry = Some(should_retry);
            classify(&fault).same
        };
        assert_eq!(told(Code::UpstreamServerError, false), Same::Never);
        assert_eq!(told(Code::UpstreamInvalidRequest, true), Same::OnceBackoff);
        assert_eq!(told(Code::UpstreamCredentialsExhausted, true), Same::Never);
    }
}
