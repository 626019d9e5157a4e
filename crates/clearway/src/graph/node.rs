//! Nodes: an async function, and what surrounds its calls.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use clearway_core::channel::{self, Reducer, Write};
use clearway_core::machine::Output;
use clearway_core::plan::{END, Goto};
use clearway_core::{Code, Failure};
use clearway_engine::{Node, NodeError, NodePolicy, OnError, Retry};

use super::state::{Route, Writes};
use super::{Ctx, NodeResult, State, To, Values};

type BodyFuture<S> = Pin<Box<dyn Future<Output = NodeResult<S>> + Send>>;
type Body<S> = dyn Fn(Ctx, Arc<S>) -> BodyFuture<S> + Send + Sync;
pub(super) type Decide<S> = dyn Fn(&S) -> Route + Send + Sync;

/// A node before it has a name: its code and what surrounds it.
pub struct NodeSpec<S> {
    pub(super) body: Arc<Body<S>>,
    pub(super) policy: NodePolicy,
    pub(super) at_once: Option<u32>,
}

impl<S> fmt::Debug for NodeSpec<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeSpec").field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// What can be a node: an `async fn(Ctx, Arc<S>) -> NodeResult<S>`, or one with something around it.
///
/// The limits are of one try: the run's own deadline stands above all of them.
pub trait IntoNode<S>: Sized {
    fn into_node(self) -> NodeSpec<S>;

    /// So many tries in all; half a second before the second one, twice as long before each other.
    fn retry(self, attempts: u32) -> NodeSpec<S> {
        let mut node = self.into_node();
        node.policy.retry.attempts = attempts.max(1);
        node
    }

    /// As [`IntoNode::retry`], with another first pause.
    fn retry_after(self, attempts: u32, backoff: Duration) -> NodeSpec<S> {
        let mut node = self.into_node();
        node.policy.retry = Retry { attempts: attempts.max(1), backoff, ..node.policy.retry };
        node
    }

    /// The longest that one try may take.
    fn timeout(self, limit: Duration) -> NodeSpec<S> {
        let mut node = self.into_node();
        node.policy.timeout = Some(limit);
        node
    }

    /// The longest that a try may show no sign of life: token, event, progress or heartbeat.
    fn idle_timeout(self, limit: Duration) -> NodeSpec<S> {
        let mut node = self.into_node();
        node.policy.idle = Some(limit);
        node
    }

    /// Its output stands for so long, for the same state and payload.
    fn cache(self, lifetime: Duration) -> NodeSpec<S> {
        let mut node = self.into_node();
        node.policy.cache = Some(lifetime);
        node
    }

    /// When it has failed for good, `handler` goes on, and `channel` holds a
    /// [`Fault`](super::Fault).
    fn on_error(self, handler: &str, channel: &str) -> NodeSpec<S> {
        let mut node = self.into_node();
        node.policy.on_error = OnError::Goto { node: handler.into(), channel: channel.into() };
        node
    }

    /// When it has failed for good the graph goes on as if it had ended, and `channel` holds a
    /// [`Fault`](super::Fault).
    fn or_continue(self, channel: &str) -> NodeSpec<S> {
        let mut node = self.into_node();
        node.policy.on_error = OnError::Continue { channel: channel.into() };
        node
    }

    /// Of a fan-out to it at most so many calls run at the same time.
    fn at_once(self, calls: u32) -> NodeSpec<S> {
        let mut node = self.into_node();
        node.at_once = Some(calls.max(1));
        node
    }

    /// Shown for people.
    fn title(self, title: &str) -> NodeSpec<S> {
        let mut node = self.into_node();
        node.policy.title = Some(title.into());
        node
    }
}

impl<S> IntoNode<S> for NodeSpec<S> {
    fn into_node(self) -> Self {
        self
    }
}

impl<S, F, Fut> IntoNode<S> for F
where
    F: Fn(Ctx, Arc<S>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = NodeResult<S>> + Send + 'static,
{
    fn into_node(self) -> NodeSpec<S> {
        NodeSpec {
            body: Arc::new(move |cx, state| Box::pin(self(cx, state))),
            policy: NodePolicy::default(),
            at_once: None,
        }
    }
}

/// The code of a node, wherever in a larger graph it comes to stand.
pub(super) trait Part: Send + Sync {
    /// For a graph whose channels and nodes are below `scope`.
    fn at(&self, scope: &str) -> Arc<dyn Node>;
}

/// A node of a graph over `S`.
pub(super) struct Own<S> {
    pub(super) name: Arc<str>,
    pub(super) body: Arc<Body<S>>,
    pub(super) branches: Arc<[Arc<Decide<S>>]>,
    /// Where its code and its branches may go.
    pub(super) targets: Arc<BTreeSet<String>>,
    /// It has edges or joins besides its branches.
    pub(super) has_edges: bool,
}

impl<S: State> Part for Own<S> {
    fn at(&self, scope: &str) -> Arc<dyn Node> {
        let Self { name, body, branches, targets, has_edges } = self;
        let channels = S::channels().into_iter();
        Arc::new(Typed {
            name: name.clone(),
            scope: scope.into(),
            body: body.clone(),
            branches: branches.clone(),
            targets: targets.clone(),
            has_edges: *has_edges,
            channels: channels
                .map(|(channel, reducer)| (format!("{scope}{channel}").into(), reducer))
                .collect(),
        })
    }
}

struct Typed<S> {
    name: Arc<str>,
    scope: Arc<str>,
    body: Arc<Body<S>>,
    branches: Arc<[Arc<Decide<S>>]>,
    targets: Arc<BTreeSet<String>>,
    has_edges: bool,
    channels: std::collections::BTreeMap<Arc<str>, Reducer>,
}

impl<S> fmt::Debug for Typed<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}{}", self.scope, self.name)
    }
}

#[async_trait::async_trait]
impl<S: State> Node for Typed<S> {
    async fn call(&self, cx: clearway_engine::Ctx) -> Result<Output, NodeError> {
        let before = cx.state.clone();
        let state = S::read(&Values::new(&before, &self.scope)).map_err(|error| error.0)?;
        let cx = Ctx::new(cx, self.scope.clone());
        let next = (self.body)(cx.clone(), Arc::new(state)).await.map_err(|error| error.0)?;
        let writes = next.writes.scoped(&self.scope)?;
        let goto = match next.goto {
            Some(to) => Some(self.checked(&to)?),
            None if self.branches.is_empty() => None,
            None => Some(self.decide(before, &writes)?),
        };
        Ok(Output { writes, goto, reply: cx.reply(), ..Output::default() })
    }
}

impl<S: State> Typed<S> {
    /// What the branches say, seeing what the node wrote.
    fn decide(&self, mut state: channel::State, writes: &[Write]) -> Result<Vec<Goto>, NodeError> {
        for (channel, op) in channel::reduce(&self.channels, writes.iter().cloned())? {
            state.apply(&channel, op);
        }
        let state = S::read(&Values::new(&state, &self.scope)).map_err(|error| error.0)?;
        let to: Vec<To> = self.branches.iter().flat_map(|decide| decide(&state).0).collect();
        let mut goto = self.checked(&to)?;
        if self.has_edges {
            goto.push(Goto::After(format!("{}{}", self.scope, self.name).into()));
        }
        Ok(goto)
    }

    fn checked(&self, to: &[To]) -> Result<Vec<Goto>, Failure> {
        let undeclared = to.iter().find(|to| to.node != END && !self.targets.contains(&to.node));
        if let Some(to) = undeclared {
            let known: Vec<&str> = self.targets.iter().map(String::as_str).collect();
            let known = if known.is_empty() { "nowhere".to_owned() } else { known.join(", ") };
            let text = format!(
                "node `{}` goes to `{}`, which it was not declared to: `may_go` and its branches \
                 say {known}",
                self.name, to.node
            );
            return Err(Failure::new(Code::InvalidUpdate, text));
        }
        to.iter().map(|to| to.scoped(&self.scope)).collect()
    }
}

/// The way into a subgraph: its state is made of the outer one.
pub(super) struct Enter<S, I, F> {
    pub(super) name: Arc<str>,
    pub(super) map: Arc<F>,
    pub(super) states: PhantomData<fn() -> (S, I)>,
}

impl<S: State, I: State, F> Part for Enter<S, I, F>
where
    F: Fn(&S) -> I + Send + Sync + 'static,
{
    fn at(&self, scope: &str) -> Arc<dyn Node> {
        let (inner, map) = (format!("{scope}{}/", self.name), self.map.clone());
        Arc::new(Crossing {
            from: scope.into(),
            to: inner.into(),
            map: move |outer: S| map(&outer).write_all(),
            state: PhantomData,
        })
    }
}

/// The way out of it.
pub(super) struct Exit<S, I, F> {
    pub(super) name: Arc<str>,
    pub(super) map: Arc<F>,
    pub(super) states: PhantomData<fn() -> (S, I)>,
}

impl<S: State, I: State, F> Part for Exit<S, I, F>
where
    F: Fn(I) -> S::Update + Send + Sync + 'static,
{
    fn at(&self, scope: &str) -> Arc<dyn Node> {
        let (inner, map) = (format!("{scope}{}/", self.name), self.map.clone());
        Arc::new(Crossing {
            from: inner.into(),
            to: scope.into(),
            map: move |inner: I| map(inner).into(),
            state: PhantomData,
        })
    }
}

/// Reads a state in one scope and writes in another.
struct Crossing<T, F> {
    from: Arc<str>,
    to: Arc<str>,
    map: F,
    state: PhantomData<fn() -> T>,
}

impl<T, F> fmt::Debug for Crossing<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "from `{}` to `{}`", self.from, self.to)
    }
}

#[async_trait::async_trait]
impl<T: State, F> Node for Crossing<T, F>
where
    F: Fn(T) -> Writes + Send + Sync,
{
    async fn call(&self, cx: clearway_engine::Ctx) -> Result<Output, NodeError> {
        let state = T::read(&Values::new(&cx.state, &self.from)).map_err(|error| error.0)?;
        let writes = (self.map)(state).scoped(&self.to)?;
        Ok(Output { writes, ..Output::default() })
    }
}
