//! Making a graph, and refusing what is none.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use clearway_core::channel;
use clearway_core::plan::{self, END, Plan};
use clearway_core::run::{Budget, Multitask};
use clearway_core::{Code, Failure, Priority};
use clearway_engine::{Agent, InputCheck, Keep, NodePolicy, OnError, OnOutage};
use serde_json::{Map, Value};

use super::node::{Decide, Enter, Exit, IntoNode, NodeSpec, Own, Part};
use super::state::{Route, Values};
use super::{Error, State};

/// Where a graph begins, in [`Builder::edge`].
pub const START: &str = "__start__";

/// A checked graph, ready to be run: by [`Local`](super::Local), or by a server
/// ([`Options::graphs`](crate::Options)).
pub struct Graph<S> {
    name: String,
    plan: Arc<Plan>,
    agent: Arc<Agent>,
    parts: Vec<Entry>,
    state: PhantomData<fn() -> S>,
}

/// One node's code with its place in the graph.
#[derive(Clone)]
struct Entry {
    name: String,
    /// Of the channels and nodes that its code knows.
    scope: String,
    part: Arc<dyn Part>,
    policy: NodePolicy,
}

impl<S> Clone for Graph<S> {
    fn clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            plan: self.plan.clone(),
            agent: self.agent.clone(),
            parts: self.parts.clone(),
            state: PhantomData,
        }
    }
}

impl<S> fmt::Debug for Graph<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").field("name", &self.name).field("plan", &self.plan).finish()
    }
}

impl<S> Graph<S> {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The graph as an agent of the engine.
    pub fn agent(&self) -> Arc<Agent> {
        self.agent.clone()
    }

    /// As a Mermaid flowchart; dotted lines are decided by code.
    pub fn mermaid(&self) -> String {
        let mut names: Vec<Arc<str>> = Vec::new();
        let mut id = |name: &Arc<str>| {
            let at = names.iter().position(|known| known == name).unwrap_or_else(|| {
                names.push(name.clone());
                names.len() - 1
            });
            format!("n{at}[\"{name}\"]")
        };
        let mut text = "flowchart TD\n".to_owned();
        for (from, to, decided) in self.plan.edges() {
            let line = if decided { "-.->" } else { "-->" };
            text += &format!("    {} {line} {}\n", id(&from), id(&to));
        }
        text
    }
}

impl<S: State> Graph<S> {
    pub fn builder(name: &str) -> Builder<S> {
        Builder::new(name)
    }
}

/// Collects nodes and edges; [`Builder::build`] checks them.
#[must_use]
pub struct Builder<S> {
    name: String,
    title: Option<String>,
    nodes: Vec<(String, Def<S>)>,
    starts: Vec<String>,
    edges: Vec<(String, String)>,
    joins: Vec<(Vec<String>, String)>,
    branches: Vec<Branch<S>>,
    may_go: Vec<(String, Vec<String>)>,
    last: Option<String>,
    max_steps: u32,
    max_calls: usize,
    settings: Settings,
}

enum Def<S> {
    Node(NodeSpec<S>),
    Sub(Sub),
}

struct Sub {
    plan: Arc<Plan>,
    parts: Vec<Entry>,
    enter: Arc<dyn Part>,
    exit: Arc<dyn Part>,
}

struct Branch<S> {
    from: String,
    targets: Vec<String>,
    decide: Arc<Decide<S>>,
}

/// What an agent has besides its plan.
struct Settings {
    pool: String,
    deadline: Duration,
    working_limit: Duration,
    priority: Priority,
    budget: Budget,
    keep: Keep,
    on_outage: OnOutage,
    when_busy: Multitask,
}

impl<S> fmt::Debug for Builder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: Vec<&str> = self.nodes.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Builder").field("name", &self.name).field("nodes", &nodes).finish()
    }
}

impl<S: State> Builder<S> {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            title: None,
            nodes: Vec::new(),
            starts: Vec::new(),
            edges: Vec::new(),
            joins: Vec::new(),
            branches: Vec::new(),
            may_go: Vec::new(),
            last: None,
            max_steps: plan::DEFAULT_MAX_STEPS,
            max_calls: plan::DEFAULT_MAX_CALLS,
            settings: Settings {
                pool: DEFAULT_POOL.to_owned(),
                deadline: Duration::from_secs(120),
                working_limit: Duration::from_secs(30 * 60),
                priority: Priority::NORMAL,
                budget: Budget::default(),
                keep: Keep::All,
                on_outage: OnOutage::Park,
                when_busy: Multitask::Enqueue,
            },
        }
    }

    /// A node. Those of one superstep run side by side; their writes are combined in the order in
    /// which the nodes were named here.
    pub fn node(mut self, name: &str, node: impl IntoNode<S>) -> Self {
        self.nodes.push((name.to_owned(), Def::Node(node.into_node())));
        self
    }

    /// Another graph as a node of this one. Its nodes and channels come in as `name/inner`; `enter`
    /// makes its state, each time anew, and `exit` takes from it what this graph wants.
    pub fn subgraph<I: State>(
        mut self,
        name: &str,
        inner: &Graph<I>,
        enter: impl Fn(&S) -> I + Send + Sync + 'static,
        exit: impl Fn(I) -> S::Update + Send + Sync + 'static,
    ) -> Self {
        let own: Arc<str> = name.into();
        let sub = Sub {
            plan: inner.plan.clone(),
            parts: inner.parts.clone(),
            enter: Arc::new(Enter::<S, I, _> {
                name: own.clone(),
                map: Arc::new(enter),
                states: PhantomData,
            }),
            exit: Arc::new(Exit::<S, I, _> { name: own, map: Arc::new(exit), states: PhantomData }),
        };
        self.nodes.push((name.to_owned(), Def::Sub(sub)));
        self
    }

    /// The graph begins with this node; with several, they run side by side.
    pub fn start(mut self, node: &str) -> Self {
        self.starts.push(node.to_owned());
        self
    }

    /// `to` runs in the superstep after `from`. From [`START`] is [`Builder::start`]; to [`END`]
    /// ends this branch, as does a node that nothing follows.
    pub fn edge(mut self, from: &str, to: &str) -> Self {
        if from == START {
            return self.start(to);
        }
        self.edges.push((from.to_owned(), to.to_owned()));
        self
    }

    /// `to` runs each time that all of `sources` have ended since it last ran.
    pub fn join(mut self, sources: &[&str], to: &str) -> Self {
        let sources = sources.iter().map(|&source| source.to_owned()).collect();
        self.joins.push((sources, to.to_owned()));
        self
    }

    /// After `from`, `decide` says where to go on, out of `targets`, seeing the state with what
    /// `from` wrote. Edges of `from` are followed besides.
    pub fn branch<R: Into<Route>>(
        mut self,
        from: &str,
        targets: impl IntoIterator<Item = impl Into<String>>,
        decide: impl Fn(&S) -> R + Send + Sync + 'static,
    ) -> Self {
        self.branches.push(Branch {
            from: from.to_owned(),
            targets: targets.into_iter().map(Into::into).collect(),
            decide: Arc::new(move |state| decide(state).into()),
        });
        self
    }

    /// The code of `from` may go to `targets`, by [`goto`](super::goto) or
    /// [`send`](super::Next::send).
    pub fn may_go(
        mut self,
        from: &str,
        targets: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        let targets = targets.into_iter().map(Into::into).collect();
        self.may_go.push((from.to_owned(), targets));
        self
    }

    /// This node runs when no other is due any more, and then the graph ends.
    pub fn at_the_end(mut self, node: &str) -> Self {
        self.last = Some(node.to_owned());
        self
    }

    /// Shown for people.
    pub fn title(mut self, title: &str) -> Self {
        self.title = Some(title.to_owned());
        self
    }

    /// The supersteps that a run may take (250).
    pub const fn recursion_limit(mut self, supersteps: u32) -> Self {
        self.max_steps = supersteps;
        self
    }

    /// The calls that one superstep may have (4096). A wider fan-out is made of child runs.
    pub const fn superstep_calls(mut self, calls: usize) -> Self {
        self.max_calls = calls;
        self
    }

    /// The pool whose slots its runs take (`workflows`).
    pub fn pool(mut self, pool: &str) -> Self {
        pool.clone_into(&mut self.settings.pool);
        self
    }

    /// Limit of a turn that a client waits for (120 s), and of working time in the background (30
    /// min).
    pub const fn deadlines(mut self, turn: Duration, working: Duration) -> Self {
        self.settings.deadline = turn;
        self.settings.working_limit = working;
        self
    }

    pub const fn priority(mut self, priority: Priority) -> Self {
        self.settings.priority = priority;
        self
    }

    /// What one run may use up; it waits when that is done, and goes on when it is raised.
    pub const fn budget(mut self, budget: Budget) -> Self {
        self.settings.budget = budget;
        self
    }

    /// Which checkpoints stay when a run has ended (all).
    pub const fn keep(mut self, keep: Keep) -> Self {
        self.settings.keep = keep;
        self
    }

    /// Fail when no provider can be reached, instead of waiting for one without a slot.
    pub const fn fail_on_outage(mut self) -> Self {
        self.settings.on_outage = OnOutage::Fail;
        self
    }

    /// What to do with a new run while another one is active on its thread (wait in order).
    pub const fn when_busy(mut self, strategy: Multitask) -> Self {
        self.settings.when_busy = strategy;
        self
    }

    /// # Errors
    /// Everything that is wrong with it.
    pub fn build(self) -> Result<Graph<S>, Invalid> {
        let problems = self.problems();
        if !problems.is_empty() {
            return Err(Invalid { graph: self.name, problems });
        }
        let plan = self.plan();
        let plan = match plan {
            Ok(plan) => plan,
            Err(error) => {
                let problems = vec![Problem::Plan(error.to_string())];
                return Err(Invalid { graph: self.name, problems });
            }
        };
        let unreachable = plan.unreachable();
        if !unreachable.is_empty() {
            let nodes = unreachable.iter().map(ToString::to_string).collect();
            return Err(Invalid { graph: self.name, problems: vec![Problem::Unreachable(nodes)] });
        }
        Ok(self.finish(Arc::new(plan)))
    }

    fn plan(&self) -> Result<Plan, plan::InvalidPlan> {
        let mut builder = plan::Builder::new().max_steps(self.max_steps).max_calls(self.max_calls);
        for (channel, reducer) in S::channels() {
            builder = builder.channel(channel, reducer);
        }
        for (name, def) in &self.nodes {
            builder = match def {
                Def::Node(NodeSpec { at_once: Some(calls), .. }) => {
                    builder.node_at_once(name, *calls)
                }
                Def::Node(_) => builder.node(name),
                Def::Sub(sub) => builder.subgraph(name, &sub.plan),
            };
        }
        for start in &self.starts {
            builder = builder.entry(start);
        }
        for (from, to) in &self.edges {
            builder = builder.edge(from, to);
        }
        for (sources, to) in &self.joins {
            let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
            builder = builder.join(&sources, to);
        }
        for (from, to) in self.jumps() {
            builder = builder.may_go(&from, &to);
        }
        if let Some(last) = &self.last {
            builder = builder.at_the_end(last);
        }
        builder.build()
    }

    /// Everything that code decides: from, to.
    fn jumps(&self) -> BTreeSet<(String, String)> {
        let branches = self.branches.iter().map(|branch| (&branch.from, &branch.targets));
        let declared = self.may_go.iter().map(|(from, targets)| (from, targets));
        let jumps = branches.chain(declared).flat_map(|(from, targets)| {
            targets.iter().map(move |target| (from.clone(), target.clone()))
        });
        let handlers = self.nodes.iter().filter_map(|(name, def)| match def {
            Def::Node(spec) => match &spec.policy.on_error {
                OnError::Goto { node, .. } => Some((name.clone(), node.to_string())),
                OnError::Fail | OnError::Continue { .. } => None,
            },
            Def::Sub(_) => None,
        });
        jumps.chain(handlers).collect()
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let names: Vec<&str> = self.nodes.iter().map(|(name, _)| name.as_str()).collect();
        for (at, name) in names.iter().enumerate() {
            if name.is_empty() || name.contains('/') || name.starts_with("__") {
                problems.push(Problem::Name((*name).to_owned()));
            } else if names[..at].contains(name) {
                problems.push(Problem::Duplicate((*name).to_owned()));
            }
        }
        let mut check = |name: &str, place: String| {
            if name != END && !names.contains(&name) {
                let suggestion = closest(name, &names);
                let unknown = Problem::UnknownNode { name: name.to_owned(), place, suggestion };
                if !problems.contains(&unknown) {
                    problems.push(unknown);
                }
            }
        };
        self.starts.iter().for_each(|name| check(name, format!("start(\"{name}\")")));
        for (from, to) in &self.edges {
            let place = format!("edge(\"{from}\", \"{to}\")");
            check(from, place.clone());
            check(to, place);
        }
        for (sources, to) in &self.joins {
            let place = format!("join({sources:?}, \"{to}\")");
            sources.iter().for_each(|source| check(source, place.clone()));
            check(to, place);
        }
        for branch in &self.branches {
            let place = format!("branch(\"{}\", {:?}, …)", branch.from, branch.targets);
            check(&branch.from, place.clone());
            branch.targets.iter().for_each(|target| check(target, place.clone()));
        }
        for (from, targets) in &self.may_go {
            let place = format!("may_go(\"{from}\", {targets:?})");
            check(from, place.clone());
            targets.iter().for_each(|target| check(target, place.clone()));
        }
        for (from, to) in self.jumps() {
            check(&to, format!("on_error of node \"{from}\""));
        }
        if let Some(last) = &self.last {
            check(last, format!("at_the_end(\"{last}\")"));
        }
        problems.extend(self.handlers());
        for branch in &self.branches {
            if self
                .nodes
                .iter()
                .any(|(name, def)| *name == branch.from && matches!(def, Def::Sub(_)))
            {
                problems.push(Problem::BranchAtSubgraph(branch.from.clone()));
            }
        }
        if self.starts.is_empty() {
            problems.push(Problem::NoStart);
        }
        if problems.is_empty() {
            let endless = self.endless();
            if !endless.is_empty() {
                problems.push(Problem::Endless(endless));
            }
        }
        problems
    }

    /// Channels that error handlers are promised.
    fn handlers(&self) -> Vec<Problem> {
        let channels: Vec<&str> = S::channels().into_iter().map(|(name, _)| name).collect();
        let specs = self.nodes.iter().filter_map(|(name, def)| match def {
            Def::Node(spec) => Some((name, &spec.policy.on_error)),
            Def::Sub(_) => None,
        });
        let named = specs.filter_map(|(node, on_error)| match on_error {
            OnError::Continue { channel } | OnError::Goto { channel, .. } => Some((node, channel)),
            OnError::Fail => None,
        });
        named
            .filter(|(_, channel)| !channels.contains(&&***channel))
            .map(|(node, channel)| Problem::UnknownChannel {
                name: channel.to_string(),
                node: node.clone(),
                suggestion: closest(channel, &channels),
            })
            .collect()
    }

    /// Nodes from which no way leads to an end.
    fn endless(&self) -> Vec<String> {
        let mut next: BTreeMap<&str, BTreeSet<&str>> =
            self.nodes.iter().map(|(name, _)| (name.as_str(), BTreeSet::new())).collect();
        let jumps = self.jumps();
        let mut add = |from: &'_ str, to| {
            if let Some((_, targets)) = next.iter_mut().find(|(name, _)| **name == from) {
                targets.insert(to);
            }
        };
        self.edges.iter().for_each(|(from, to)| add(from, to.as_str()));
        for (sources, to) in &self.joins {
            sources.iter().for_each(|source| add(source, to.as_str()));
        }
        jumps.iter().for_each(|(from, to)| add(from, to.as_str()));
        // What runs at the end is always got to, once everything else has ended.
        let ends = |targets: &BTreeSet<&str>| targets.is_empty() || targets.contains(END);
        let mut good: BTreeSet<&str> =
            next.iter().filter(|(_, targets)| ends(targets)).map(|(name, _)| *name).collect();
        loop {
            let before = good.len();
            for (name, targets) in &next {
                if !targets.is_disjoint(&good) {
                    good.insert(name);
                }
            }
            if good.len() == before {
                break;
            }
        }
        next.keys().filter(|name| !good.contains(*name)).map(|name| (*name).to_owned()).collect()
    }

    fn finish(self, plan: Arc<Plan>) -> Graph<S> {
        let mut targets: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, to) in self.jumps() {
            targets.entry(from).or_default().insert(to);
        }
        let mut branches: BTreeMap<String, Vec<Arc<Decide<S>>>> = BTreeMap::new();
        for branch in self.branches {
            branches.entry(branch.from).or_default().push(branch.decide);
        }
        let mut parts = Vec::new();
        for (name, def) in self.nodes {
            match def {
                Def::Node(spec) => {
                    let has_edges = self.edges.iter().any(|(from, _)| *from == name)
                        || self.joins.iter().any(|(sources, _)| sources.contains(&name));
                    let own = Own {
                        name: name.as_str().into(),
                        body: spec.body,
                        branches: branches.remove(&name).unwrap_or_default().into(),
                        targets: Arc::new(targets.remove(&name).unwrap_or_default()),
                        has_edges,
                    };
                    parts.push(Entry {
                        name,
                        scope: String::new(),
                        part: Arc::new(own),
                        policy: spec.policy,
                    });
                }
                Def::Sub(sub) => parts.extend(sub.placed(&name)),
            }
        }
        let agent = agent::<S>(&self.name, self.title, self.settings, plan.clone(), &parts);
        Graph { name: self.name, plan, agent: Arc::new(agent), parts, state: PhantomData }
    }
}

impl Sub {
    /// Its parts as parts of the graph around it.
    fn placed(self, name: &str) -> Vec<Entry> {
        let at = |inner: &str| format!("{name}/{inner}");
        let own = |name: String, part| Entry {
            name,
            scope: String::new(),
            part,
            policy: NodePolicy::default(),
        };
        let mut parts = vec![own(name.to_owned(), self.enter), own(at(END), self.exit)];
        parts.extend(self.parts.into_iter().map(|entry| {
            let mut policy = entry.policy;
            policy.on_error = match policy.on_error {
                OnError::Fail => OnError::Fail,
                OnError::Continue { channel } => OnError::Continue { channel: at(&channel).into() },
                OnError::Goto { node, channel } => {
                    OnError::Goto { node: at(&node).into(), channel: at(&channel).into() }
                }
            };
            Entry { name: at(&entry.name), scope: at(&entry.scope), part: entry.part, policy }
        }));
        parts
    }
}

fn agent<S: State>(
    name: &str,
    title: Option<String>,
    settings: Settings,
    plan: Arc<Plan>,
    parts: &[Entry],
) -> Agent {
    let Settings { pool, deadline, working_limit, priority, budget, keep, on_outage, when_busy } =
        settings;
    Agent {
        name: name.to_owned(),
        title: title.unwrap_or_else(|| name.to_owned()),
        kind: "graph",
        pool,
        plan,
        nodes: parts
            .iter()
            .map(|entry| (entry.name.as_str().into(), entry.part.at(&entry.scope)))
            .collect(),
        deadline,
        working_limit,
        when_busy,
        policies: parts
            .iter()
            .map(|entry| (entry.name.as_str().into(), entry.policy.clone()))
            .collect(),
        on_outage,
        priority,
        budget,
        keep,
        input: Some(InputCheck::new(check_input::<S>)),
        starts_ahead: false,
        input_schema: None,
        shown_channels: None,
    }
}

/// Whether an input is writes to channels that there are, of values that fit.
fn check_input<S: State>(input: &Map<String, Value>) -> Result<Value, Failure> {
    let channels = S::channels();
    let names: Vec<&str> = channels.iter().map(|(name, _)| *name).collect();
    if let Some(unknown) = input.keys().find(|key| !names.contains(&key.as_str())) {
        let hint = closest(unknown, &names).map_or_else(
            || format!("there are: {}", names.join(", ")),
            |name| format!("did you mean `{name}`?"),
        );
        let text = format!("the graph has no channel `{unknown}`; {hint}");
        return Err(Failure::new(Code::InvalidRequest, text).with("field", unknown.as_str()));
    }
    let reducers = channels.iter().map(|(name, reducer)| ((*name).into(), *reducer)).collect();
    let writes = input.iter().map(|(name, value)| channel::Write::new(name, value.clone()));
    let mut state = channel::State::new();
    for (channel, op) in channel::reduce(&reducers, writes)? {
        state.apply(&channel, op);
    }
    match S::read(&Values::new(&state, "")) {
        Ok(_) => Ok(Value::Object(input.clone())),
        Err(error) => Err(Failure::new(
            Code::InvalidRequest,
            Error::failure(&error)
                .map_or_else(|| error.to_string(), |failure| failure.message.clone()),
        )),
    }
}

const DEFAULT_POOL: &str = "workflows";

/// The name that was probably meant.
fn closest(name: &str, known: &[&str]) -> Option<String> {
    let near = known.iter().map(|known| (strsim::jaro_winkler(name, known), *known));
    let best = near.max_by(|(one, _), (two, _)| one.total_cmp(two))?;
    (best.0 >= 0.8).then(|| best.1.to_owned())
}

/// Why nodes and edges do not make a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    pub graph: String,
    pub problems: Vec<Problem>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "graph `{}` cannot be built:", self.graph)?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n- {problem}"))
    }
}

impl std::error::Error for Invalid {}

/// One thing that is wrong with a graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    #[error("`{0}` is no name of a node: it is not empty, has no `/` and does not begin with `__`")]
    Name(String),
    #[error("two nodes are called `{0}`")]
    Duplicate(String),
    #[error("{place}: there is no node `{name}`{}", meant(suggestion.as_deref()))]
    UnknownNode { name: String, place: String, suggestion: Option<String> },
    #[error("on_error of node \"{node}\": there is no channel `{name}`{}", meant(suggestion.as_deref()))]
    UnknownChannel { name: String, node: String, suggestion: Option<String> },
    #[error("no start: say with which node it begins, start(\"…\")")]
    NoStart,
    #[error("nothing leads to {}: add an edge, or say may_go if code goes there", quoted(.0))]
    Unreachable(Vec<String>),
    #[error("from {} no way leads to an end: add an edge or a branch to END", quoted(.0))]
    Endless(Vec<String>),
    #[error("a branch cannot begin at subgraph `{0}`: put a node behind it")]
    BranchAtSubgraph(String),
    #[error("{0}")]
    Plan(String),
}

fn meant(suggestion: Option<&str>) -> String {
    suggestion.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
