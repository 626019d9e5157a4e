//! Every code's HTTP status, title, meaning and what to do about it: the one table.
//!
//! `GET /errors/{code}` shows these texts, and problems link to them.

use std::time::Duration;

use clearway_core::Code;
use http::StatusCode;

/// What there is to say about a code.
#[derive(Clone, Copy, Debug)]
pub(crate) struct About {
    pub status: StatusCode,
    pub title: &'static str,
    /// What happened, for somebody who meets the code for the first time.
    pub meaning: &'static str,
    /// What whoever sees it can do.
    pub hint: &'static str,
    /// When a later try makes sense, unless the failure itself knows better.
    pub retry_after: Option<Duration>,
}

const fn entry(
    status: StatusCode,
    title: &'static str,
    meaning: &'static str,
    hint: &'static str,
) -> About {
    About { status, title, meaning, hint, retry_after: None }
}

const fn later(about: About) -> About {
    About { retry_after: Some(Duration::from_secs(1)), ..about }
}

/// Total: the compiler asks for an entry when a code is added.
pub(crate) const fn about(code: Code) -> About {
    match code {
        Code::InvalidRequest
        | Code::BodyTooLarge
        | Code::BodyTimeout
        | Code::MethodNotAllowed
        | Code::NotFound
        | Code::Unauthorized
        | Code::Forbidden
        | Code::RunNotFound
        | Code::ThreadNotFound
        | Code::AgentNotFound
        | Code::ThreadBusy
        | Code::RunEnded
        | Code::NothingWaits
        | Code::CheckpointNotFound
        | Code::CheckpointConflict
        | Code::ArtifactNotFound
        | Code::IdempotencyConflict
        | Code::Overloaded
        | Code::ShuttingDown => request(code),
        Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Poisoned
        | Code::RecursionLimit
        | Code::InvalidUpdate
        | Code::LimitExceeded
        | Code::BudgetExhausted
        | Code::OutputInvalid
        | Code::StepFailed
        | Code::ToolFailed
        | Code::ToolUnavailable
        | Code::OutputTooLarge
        | Code::StoreUnavailable
        | Code::Fenced
        | Code::InvalidConfig
        | Code::TemplateFailed
        | Code::Internal => run(code),
        Code::UpstreamQueueTimeout
        | Code::UpstreamShedQueueFull
        | Code::UpstreamShedDeadline
        | Code::UpstreamRouteOpen
        | Code::UpstreamRateLimited
        | Code::UpstreamQuotaExhausted
        | Code::UpstreamCredentialsExhausted
        | Code::UpstreamDnsFailed
        | Code::UpstreamConnectFailed
        | Code::UpstreamConnectTimeout
        | Code::UpstreamTlsFailed
        | Code::UpstreamSendTimeout
        | Code::UpstreamHeadersTimeout
        | Code::UpstreamFirstTokenTimeout
        | Code::UpstreamBodyTimeout
        | Code::UpstreamStreamIdle
        | Code::UpstreamStreamStalled
        | Code::UpstreamStreamTooSlow
        | Code::UpstreamStreamTruncated
        | Code::UpstreamStreamMalformed
        | Code::UpstreamStreamTooLarge
        | Code::UpstreamServerError
        | Code::UpstreamOverloaded
        | Code::UpstreamBadResponse
        | Code::UpstreamEmptyResponse
        | Code::UpstreamContextLength
        | Code::UpstreamContentPolicy
        | Code::UpstreamInvalidRequest
        | Code::UpstreamModelUnavailable
        | Code::UpstreamForbidden
        | Code::UpstreamTimeout
        | Code::UpstreamConflict
        | Code::UpstreamBadVectors
        | Code::UpstreamInputTooLong => upstream(code),
    }
}

/// Codes about the request itself.
const fn request(code: Code) -> About {
    match code {
        Code::BodyTooLarge => entry(
            StatusCode::PAYLOAD_TOO_LARGE,
            "The body is too large",
            "The request's body is over the server's limit.",
            "Send less, or raise the limit of request bodies in the configuration.",
        ),
        Code::BodyTimeout => later(entry(
            StatusCode::REQUEST_TIMEOUT,
            "The body did not arrive in time",
            "The headers came, but the whole body did not follow within the limit.",
            "Send the body at once; check the connection if that is what you do.",
        )),
        Code::MethodNotAllowed => entry(
            StatusCode::METHOD_NOT_ALLOWED,
            "Wrong method",
            "The address exists, but not with this method.",
            "The Allow header names the methods; GET /openapi.json lists all addresses.",
        ),
        Code::NotFound => entry(
            StatusCode::NOT_FOUND,
            "Nothing lives here",
            "No door or address of this server matches the path.",
            "GET / shows what lives here; GET /openapi.json lists all addresses.",
        ),
        Code::Unauthorized => entry(
            StatusCode::UNAUTHORIZED,
            "Who are you?",
            "The request has no key, or one that the server does not know.",
            "Send a valid key.",
        ),
        Code::Forbidden => entry(
            StatusCode::FORBIDDEN,
            "Not yours",
            "The caller may not do this, or the request comes from a web page of another site.",
            "Use the key of the owner; for a browser, allow the page's host in the configuration.",
        ),
        Code::RunNotFound => entry(
            StatusCode::NOT_FOUND,
            "No such run",
            "No run has this id.",
            "GET /runs lists runs; ids are UUIDs in their 36-character form.",
        ),
        Code::ThreadNotFound => entry(
            StatusCode::NOT_FOUND,
            "No such thread",
            "No thread has this id, or it has no state yet.",
            "A thread begins with its first run.",
        ),
        Code::AgentNotFound => entry(
            StatusCode::NOT_FOUND,
            "No such agent",
            "No agent of the configuration has this name.",
            "Check the name in the door's configuration; clearway check finds such mistakes.",
        ),
        Code::ThreadBusy => later(entry(
            StatusCode::CONFLICT,
            "The thread is busy",
            "Another run of the thread is active, and the agent refuses instead of queueing.",
            "Wait for the active run, cancel it, or let the agent enqueue.",
        )),
        Code::NothingWaits => entry(
            StatusCode::CONFLICT,
            "Nothing waits for this",
            "The thread or run has no open question, signal or decision that this would answer.",
            "Look at what it waits for first; somebody may have answered already.",
        ),
        Code::CheckpointNotFound => entry(
            StatusCode::NOT_FOUND,
            "No such checkpoint",
            "The thread has no checkpoint with this id; it may have been pruned.",
            "List the thread's history.",
        ),
        Code::CheckpointConflict => entry(
            StatusCode::CONFLICT,
            "The thread was changed meanwhile",
            "Somebody else changed the thread's state between your look and your change.",
            "Read the state again and repeat the change.",
        ),
        Code::ArtifactNotFound => entry(
            StatusCode::NOT_FOUND,
            "No such artifact",
            "The run or thread has no artifact with this name and version.",
            "List its artifacts; names are exact.",
        ),
        Code::RunEnded => entry(
            StatusCode::CONFLICT,
            "The run has ended",
            "The run has already reached its end; nothing can change it.",
            "GET /runs/{id} shows how it ended.",
        ),
        Code::IdempotencyConflict => entry(
            StatusCode::CONFLICT,
            "The key was used for something else",
            "The same Idempotency-Key came before with another body.",
            "Use a new key for a new request, and the same body with the same key.",
        ),
        Code::Overloaded => later(entry(
            StatusCode::TOO_MANY_REQUESTS,
            "Too much at once",
            "A queue, a pool or the number of connections is at its limit. Nothing was accepted.",
            "Try again after the time given; an operator can raise the limit.",
        )),
        Code::ShuttingDown => later(entry(
            StatusCode::SERVICE_UNAVAILABLE,
            "The server stops",
            "The server finishes what it has and takes nothing new.",
            "Try again in a moment, or ask another server.",
        )),
        _ => entry(
            StatusCode::BAD_REQUEST,
            "The request is not right",
            "Something in the request is not what the address expects; the detail says what.",
            "Correct the request; repeating it as it is will fail again.",
        ),
    }
}

/// Codes about a run on this server.
const fn run(code: Code) -> About {
    match code {
        Code::DeadlineExceeded => entry(
            StatusCode::GATEWAY_TIMEOUT,
            "The deadline passed",
            "The run used up its time. The detail says on what, by kind of waiting.",
            "Look where the time went; raise the deadline or the limit that held it up.",
        ),
        Code::Cancelled => entry(
            StatusCode::CONFLICT,
            "Cancelled",
            "Somebody ended the run before it was done.",
            "Start a new run if it is still wanted.",
        ),
        Code::Poisoned => entry(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Restarted too often",
            "The run was taken up again and again without finishing a superstep, so it was ended.",
            "The log says why the attempts ended; report it if the server itself died each time.",
        ),
        Code::RecursionLimit => entry(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Too many supersteps",
            "The graph visited more supersteps than its max_steps; it probably loops.",
            "The detail names the step that came next. Bound the loop or raise max_steps.",
        ),
        Code::InvalidUpdate => entry(
            StatusCode::INTERNAL_SERVER_ERROR,
            "A write does not fit",
            "A write names no channel of the agent, or two writers met on a last-value channel.",
            "Correct the workflow's channels or the input.",
        ),
        Code::LimitExceeded => entry(
            StatusCode::INTERNAL_SERVER_ERROR,
            "A limit is reached",
            "The run would go beyond a bound of the configuration or of the server; the detail names it.",
            "Make the work smaller, or raise the limit that is named.",
        ),
        Code::BudgetExhausted => entry(
            StatusCode::INTERNAL_SERVER_ERROR,
            "The budget is used up",
            "The run has used as many tokens, calls or as much money as it may.",
            "Raise the run's budget; it goes on then.",
        ),
        Code::OutputInvalid => entry(
            StatusCode::INTERNAL_SERVER_ERROR,
            "The model's answer has the wrong form",
            "The answer does not fit the step's schema, and asking once more did not help.",
            "The detail shows an excerpt and what is wrong. Simplify the schema or take another model.",
        ),
        Code::StepFailed => entry(
            StatusCode::INTERNAL_SERVER_ERROR,
            "A step ended the workflow",
            "A step of the workflow failed on purpose; its message says why.",
            "It is the workflow's own decision: look at its message and input.",
        ),
        Code::ToolFailed => entry(
            StatusCode::BAD_GATEWAY,
            "A tool failed",
            "A tool, or the server that a step asked, answered that it failed.",
            "The message is the tool's own: look at the arguments, and at the tool's log.",
        ),
        Code::ToolUnavailable => later(entry(
            StatusCode::BAD_GATEWAY,
            "A tool cannot be reached",
            "The program or server behind a tool does not start, does not answer, or broke off.",
            "Start it by hand with the same command or address, and look at its own log.",
        )),
        Code::OutputTooLarge => entry(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Too much output",
            "The run's output grew over its limit.",
            "Ask for less, or raise the limit of output.",
        ),
        Code::StoreUnavailable => later(entry(
            StatusCode::SERVICE_UNAVAILABLE,
            "The store takes no writes",
            "The disk is full, or the data directory is locked or read-only.",
            "Free space or restore access; GET /health/ready says what the store reports.",
        )),
        Code::Fenced => later(entry(
            StatusCode::SERVICE_UNAVAILABLE,
            "Another instance has it",
            "The lease on the run was lost; another instance goes on with it.",
            "Ask again: the run itself continues.",
        )),
        Code::InvalidConfig => entry(
            StatusCode::INTERNAL_SERVER_ERROR,
            "The configuration is wrong",
            "The configuration cannot be used as it is.",
            "clearway check shows the place and a suggestion.",
        ),
        Code::TemplateFailed => entry(
            StatusCode::INTERNAL_SERVER_ERROR,
            "A template failed",
            "A prompt or page template could not be rendered, mostly because a name is undefined.",
            "The detail names the template and the line.",
        ),
        _ => entry(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Our mistake",
            "Something happened that the server does not expect. The server goes on.",
            "Report it with the request id; the log has the details.",
        ),
    }
}

/// Codes about a model provider.
const fn upstream(code: Code) -> About {
    const SLOW: StatusCode = StatusCode::GATEWAY_TIMEOUT;
    const BUSY: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
    const BAD: StatusCode = StatusCode::BAD_GATEWAY;
    let (status, title, meaning, hint) = match code {
        Code::UpstreamQueueTimeout => (
            BUSY,
            "No slot at the provider",
            "All concurrent calls that the provider may get stayed taken.",
            "Raise the provider's limits.concurrent, or send less at once.",
        ),
        Code::UpstreamShedQueueFull => (
            BUSY,
            "The provider's queue is full",
            "Too many calls wait for this provider already.",
            "Try later; raise the provider's queue or its concurrency.",
        ),
        Code::UpstreamShedDeadline => (
            BUSY,
            "The provider's queue is too slow for this deadline",
            "By the queue's present pace the call would begin too late to be of use, so nothing was sent.",
            "Try after the time given; allow more time, or raise the provider's limits.",
        ),
        Code::UpstreamRouteOpen => (
            BUSY,
            "Circuit breaker is OPEN",
            "The provider failed repeatedly and is left alone until a probe succeeds.",
            "Try after the time given; GET /providers shows why, POST /providers/NAME/reset closes it.",
        ),
        Code::UpstreamRateLimited => (
            BUSY,
            "The provider limits the rate",
            "The provider answered 429, or our own limiter holds the calls back.",
            "Try after the time given; raise limits.rate when the provider allows more.",
        ),
        Code::UpstreamQuotaExhausted => (
            BAD,
            "The provider's quota is used up",
            "The account has no credit left for this model.",
            "Raise the quota at the provider; retrying does not help.",
        ),
        Code::UpstreamCredentialsExhausted => (
            BAD,
            "No key works",
            "Every configured key of the provider was refused.",
            "Put a valid key into the environment.",
        ),
        Code::UpstreamDnsFailed => (
            BAD,
            "The provider's name does not resolve",
            "The name server gave no address for the provider's host.",
            "Check the provider's url and the machine's DNS: clearway doctor --net NAME.",
        ),
        Code::UpstreamConnectFailed => (
            BAD,
            "No connection to the provider",
            "The connection was refused, or broke before the request was sent.",
            "Check that the provider is up and reachable: clearway doctor --net NAME.",
        ),
        Code::UpstreamConnectTimeout => (
            SLOW,
            "The connection did not open in time",
            "The provider's host did not accept a connection within the limit.",
            "Check firewalls and routes: clearway doctor --net NAME.",
        ),
        Code::UpstreamTlsFailed => (
            BAD,
            "No trusted connection to the provider",
            "The TLS handshake failed, mostly because of the certificate.",
            "Check the provider's url, the clock of this machine, and proxies in between.",
        ),
        Code::UpstreamSendTimeout => (
            SLOW,
            "The request could not be sent in time",
            "The provider stopped reading our request.",
            "Try again; shorten the prompt if it is very long.",
        ),
        Code::UpstreamHeadersTimeout => (
            SLOW,
            "The provider did not answer in time",
            "The request was sent, and no answer began within the limit.",
            "Try again; raise the provider's deadline.headers if it is always this slow.",
        ),
        Code::UpstreamFirstTokenTimeout => (
            SLOW,
            "No first token in time",
            "The answer began, but no output came within the limit.",
            "Try again; raise the provider's deadline.first_token if it is always this slow.",
        ),
        Code::UpstreamBodyTimeout => (
            SLOW,
            "The answer took too long",
            "The answer was under way, and not done within the limit.",
            "Ask for less output, or raise the provider's deadline.",
        ),
        Code::UpstreamStreamIdle => (
            SLOW,
            "The stream went silent",
            "No byte came from the provider for too long.",
            "Try again; raise the provider's deadline.idle if it is always this slow.",
        ),
        Code::UpstreamStreamStalled => (
            SLOW,
            "The stream brought no output",
            "Bytes came from the provider, but no output for too long.",
            "Try again; it is the provider's trouble.",
        ),
        Code::UpstreamStreamTooSlow => (
            SLOW,
            "The stream was too slow",
            "Fewer tokens came in a second than the provider's rate_floor.",
            "Try again; lower or remove deadline.rate_floor if it is always this slow.",
        ),
        Code::UpstreamStreamTruncated => (
            BAD,
            "The stream broke off",
            "The provider's stream ended without its terminal event. A part is never taken for the whole.",
            "Try again.",
        ),
        Code::UpstreamStreamMalformed => (
            BAD,
            "The stream cannot be read",
            "The provider sent something that is not its own format.",
            "Check that the provider's kind matches its url.",
        ),
        Code::UpstreamStreamTooLarge => (
            BAD,
            "The answer is too large",
            "The provider sent more than the limit.",
            "Ask for less output, or raise the limit.",
        ),
        Code::UpstreamServerError => (
            BAD,
            "The provider failed",
            "The provider answered with a 5xx.",
            "Try again; it is the provider's trouble.",
        ),
        Code::UpstreamOverloaded => (
            BUSY,
            "The provider is overloaded",
            "The provider says that it has too much to do.",
            "Try later.",
        ),
        Code::UpstreamBadResponse => (
            BAD,
            "That is no answer",
            "The provider answered with success, but not with what was asked for.",
            "Check that the provider's url points to its API and not to a web page.",
        ),
        Code::UpstreamEmptyResponse => (
            BAD,
            "An empty answer",
            "The provider answered with success and without any output.",
            "Try again; change the prompt if it stays so.",
        ),
        Code::UpstreamContextLength => (
            BAD,
            "The conversation is too long for the model",
            "The prompt does not fit into the model's context.",
            "Set a history budget for the agent, or reset the conversation.",
        ),
        Code::UpstreamContentPolicy => (
            BAD,
            "Refused by the provider's policy",
            "The provider refused the content.",
            "Change what is asked.",
        ),
        Code::UpstreamModelUnavailable => (
            BAD,
            "No such model",
            "The provider does not offer the model.",
            "Check the model's name in the configuration.",
        ),
        Code::UpstreamForbidden => (
            BAD,
            "Refused by the provider",
            "The key may not use the model or the address.",
            "Check the key's rights at the provider.",
        ),
        Code::UpstreamTimeout => {
            (SLOW, "The provider timed out", "The provider answered 408.", "Try again.")
        }
        Code::UpstreamConflict => {
            (BAD, "A conflict at the provider", "The provider answered 409 or 425.", "Try again.")
        }
        Code::UpstreamBadVectors => (
            BAD,
            "The vectors cannot be used",
            "The provider's embeddings are too few, mixed up, or not usable numbers. None is kept.",
            "Try again; if it stays so, check the model and the dimension set for it.",
        ),
        Code::UpstreamInputTooLong => (
            StatusCode::BAD_REQUEST,
            "A text is too long for the model",
            "One of the texts has more tokens than the model takes. Nothing was sent.",
            "Split the text; the detail names which one it is.",
        ),
        _ => (
            BAD,
            "The provider refuses the request",
            "The provider says that the request is wrong.",
            "Check the agent's settings: parameters that the model does not take are the usual cause.",
        ),
    };
    entry(status, title, meaning, hint)
}

/// The page behind a problem's `type`.
pub(crate) fn page(code: Code) -> String {
    let About { status, title, meaning, hint, .. } = about(code);
    format!("{code}\n\n{title} (HTTP {})\n\n{meaning}\n\nWhat to do: {hint}\n", status.as_u16())
}
