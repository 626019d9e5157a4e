//! Plans: what a run executes, as named nodes over channels.
//!
//! A plan is untyped and immutable. Configuration and the typed API both compile to plans, so there
//! is one execution path; a chat turn is a plan with one node.
//!
//! After each superstep the planner says which calls are due next: by static edges, by where the
//! nodes themselves want to go ([`Goto`]), and by joins, which wait for several nodes. What joins
//! still wait for is part of the [`Frontier`], which is stored with every checkpoint.
//!
//! A subgraph is not a plan inside a plan at run time: its nodes are nodes of the outer plan under a
//! prefix (`research/search`), so that its supersteps commit like any other.
//!
//! Not here: the code behind a node (`clearway-engine`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use crate::channel::Reducer;
use crate::id::TaskId;
use crate::{Code, Failure, RunId};

pub use self::builder::{Builder, InvalidPlan};
pub use self::frontier::{Due, Frontier};

mod builder;
mod frontier;

/// A graph of nodes; see [`Builder`] for how to make one.
#[derive(Clone, Debug)]
pub struct Plan {
    channels: BTreeMap<Arc<str>, Reducer>,
    nodes: Vec<PlanNode>,
    entry: Vec<usize>,
    joins: Vec<Join>,
    scopes: Vec<Scope>,
    max_steps: u32,
    max_calls: usize,
    /// A node of nobody's, whose supersteps do not count in [`Frontier::depth`].
    fold: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
struct PlanNode {
    name: Arc<str>,
    /// Successors when the node does not say `goto`; empty means the branch ends here.
    next: Vec<usize>,
    /// Where its code may go, as far as that was declared.
    may_go: Vec<usize>,
    /// Calls of this node that may run at the same time.
    at_once: Option<u32>,
}

/// A node that waits for several others.
#[derive(Clone, Debug)]
struct Join {
    sources: BTreeSet<usize>,
    target: usize,
    kind: JoinKind,
    /// For [`JoinKind::Needs`]: everything that runs because of the target.
    downstream: BTreeSet<usize>,
}

/// When a join fires again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JoinKind {
    /// Once all sources have ended since the last time it fired.
    Barrier,
    /// When one of its sources ends and all of them are done; a node that is sent back makes
    /// everything downstream of it not done.
    Needs,
}

/// The nodes of a subgraph: when none of them is due any more, `exit` is.
#[derive(Clone, Debug)]
struct Scope {
    members: BTreeSet<usize>,
    exit: usize,
}

/// Where a graph begins, in edges, and as the node in whose name a state is changed.
pub const START: &str = "__start__";

/// The end of a branch, as a `goto` target and in edges.
pub const END: &str = "__end__";

/// Supersteps that a run may take unless its plan says otherwise.
pub const DEFAULT_MAX_STEPS: u32 = 250;

/// Calls that one superstep may have unless the plan says otherwise. A wider fan-out is made of
/// child runs, which queue like any other run.
pub const DEFAULT_MAX_CALLS: usize = 4096;

/// The channel that holds a conversation.
pub const MESSAGES: &str = "messages";

/// Where a call wants to go on, instead of its node's edges.
#[derive(Clone, Debug, PartialEq)]
pub enum Goto {
    /// To a node; [`END`] ends the branch.
    Node(Arc<str>),
    /// To a call of a node with its own payload: fan-out. The same node may be sent to many times.
    Send { node: Arc<str>, payload: Value },
    /// On, as if that node had ended now.
    After(Arc<str>),
}

/// A call that ended well, as the planner sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    pub node: Arc<str>,
    /// Where the node itself wants to go on; `None` follows the edges.
    pub goto: Option<Vec<Goto>>,
}

impl Plan {
    /// A plan with a single node over a `messages` channel.
    pub fn chat(node: &str) -> Self {
        Builder::new()
            .channel(MESSAGES, Reducer::MergeById)
            .node(node)
            .entry(node)
            .edge(node, END)
            .build()
            .expect("one node that leads to the end is a valid plan")
    }

    pub const fn channels(&self) -> &BTreeMap<Arc<str>, Reducer> {
        &self.channels
    }

    /// A node that only makes a result of what others wrote, and is not counted.
    pub const fn fold(&self) -> Option<&Arc<str>> {
        self.fold.as_ref()
    }

    pub const fn max_steps(&self) -> u32 {
        self.max_steps
    }

    pub fn node_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.nodes.iter().map(|node| &node.name)
    }

    pub fn has_node(&self, name: &str) -> bool {
        self.nodes.iter().any(|node| &*node.name == name)
    }

    /// How many calls of a node may run at the same time; `None` is no limit of its own.
    pub fn at_once(&self, name: &str) -> Option<u32> {
        self.nodes.iter().find(|node| &*node.name == name)?.at_once
    }

    /// What is due in the first superstep of a run, its number being `step`.
    pub fn first(&self, run: RunId, step: i64) -> Frontier {
        let due = self.entry.iter().map(|&at| (at, None)).collect();
        self.frontier(due, BTreeMap::new(), run, step)
    }

    /// How much deeper a superstep with these calls leads.
    pub fn counts(&self, finished: &[Finished]) -> u64 {
        let is_fold = |call: &Finished| self.fold.as_ref() == Some(&call.node);
        u64::from(!finished.iter().all(is_fold))
    }

    /// What is due when somebody else decides where to go, keeping what joins have seen and how deep
    /// that is.
    ///
    /// # Errors
    /// As [`Plan::next`].
    pub fn jump(
        &self,
        before: &Frontier,
        targets: &[Goto],
        run: RunId,
        step: i64,
    ) -> Result<Frontier, Failure> {
        let mut round = Round::new(self, before);
        round.go(targets)?;
        round.close(run, step)
    }

    /// What is due after the calls in `finished`, which were the superstep before `step`. How deep that
    /// is, is left to the caller ([`Plan::counts`]).
    ///
    /// Nodes come in plan order and each once; sent calls come behind them in the order of sending.
    ///
    /// # Errors
    /// `internal` when a `goto` names a node that the plan does not have; `limit_exceeded` when
    /// more calls would be due than the plan allows.
    pub fn next(
        &self,
        before: &Frontier,
        finished: &[Finished],
        run: RunId,
        step: i64,
    ) -> Result<Frontier, Failure> {
        let mut round = Round::new(self, before);
        for call in finished {
            if let Some(targets) = &call.goto {
                round.go(targets)?;
                round.touch(self.find(&call.node)?);
            }
        }
        for call in finished.iter().filter(|call| call.goto.is_none()) {
            round.arrive(self.find(&call.node)?);
        }
        round.close(run, step)
    }

    /// The lines of the graph, for drawing it: from, to, and whether a node's code decides on it.
    /// Entries come from `__start__`; branches that end lead to [`END`].
    pub fn edges(&self) -> Vec<(Arc<str>, Arc<str>, bool)> {
        let name = |at: usize| self.nodes[at].name.clone();
        let mut edges: Vec<_> =
            self.entry.iter().map(|&at| (Arc::from(START), name(at), false)).collect();
        let joined: BTreeSet<usize> =
            self.joins.iter().flat_map(|join| join.sources.iter().copied()).collect();
        for (at, node) in self.nodes.iter().enumerate() {
            edges.extend(node.next.iter().map(|&to| (node.name.clone(), name(to), false)));
            edges.extend(node.may_go.iter().map(|&to| (node.name.clone(), name(to), true)));
            if node.next.is_empty() && node.may_go.is_empty() && !joined.contains(&at) {
                edges.push((node.name.clone(), END.into(), false));
            }
        }
        for join in &self.joins {
            edges.extend(join.sources.iter().map(|&from| (name(from), name(join.target), false)));
        }
        edges
    }

    /// Nodes that no edge, join, declared jump or entry leads to.
    pub fn unreachable(&self) -> Vec<Arc<str>> {
        let mut seen: BTreeSet<usize> = self.entry.iter().copied().collect();
        loop {
            let before = seen.len();
            for at in seen.clone() {
                seen.extend(self.nodes[at].next.iter().chain(&self.nodes[at].may_go));
            }
            for join in &self.joins {
                if join.sources.is_subset(&seen) {
                    seen.insert(join.target);
                }
            }
            for scope in &self.scopes {
                if !scope.members.is_disjoint(&seen) {
                    seen.insert(scope.exit);
                }
            }
            if seen.len() == before {
                break;
            }
        }
        let missed = self.nodes.iter().enumerate().filter(|(at, _)| !seen.contains(at));
        missed.map(|(_, node)| node.name.clone()).collect()
    }

    fn find(&self, name: &str) -> Result<usize, Failure> {
        self.nodes.iter().position(|node| &*node.name == name).ok_or_else(|| {
            let known: Vec<&str> = self.nodes.iter().map(|node| &*node.name).collect();
            Failure::new(
                Code::Internal,
                format!("no node `{name}`; the agent has: {}", known.join(", ")),
            )
        })
    }

    fn frontier(
        &self,
        due: Vec<(usize, Option<Value>)>,
        arrived: BTreeMap<usize, BTreeSet<usize>>,
        run: RunId,
        step: i64,
    ) -> Frontier {
        let name = |at: usize| self.nodes[at].name.clone();
        let mut counts: BTreeMap<usize, u32> = BTreeMap::new();
        let due = due
            .into_iter()
            .map(|(at, payload)| {
                let index = counts.entry(at).or_default();
                let task = TaskId::of(run, step, &self.nodes[at].name, *index);
                *index += 1;
                Due { task, node: name(at), payload: payload.map(Arc::new) }
            })
            .collect();
        let arrived = arrived
            .into_iter()
            .map(|(target, sources)| (name(target), sources.into_iter().map(name).collect()))
            .collect();
        Frontier { due, arrived, depth: 0 }
    }
}

/// One round of planning.
struct Round<'a> {
    plan: &'a Plan,
    nodes: BTreeSet<usize>,
    sends: Vec<(usize, Value)>,
    arrived: BTreeMap<usize, BTreeSet<usize>>,
    /// Nodes that ended, or were left, in this round: their subgraphs may be over.
    touched: BTreeSet<usize>,
    depth: u64,
}

impl<'a> Round<'a> {
    fn new(plan: &'a Plan, before: &Frontier) -> Self {
        // Names that a changed configuration no longer has are forgotten.
        let at = |name: &Arc<str>| plan.nodes.iter().position(|node| node.name == *name);
        let arrived = before
            .arrived
            .iter()
            .filter_map(|(target, sources)| {
                Some((at(target)?, sources.iter().filter_map(at).collect()))
            })
            .collect();
        Self {
            plan,
            nodes: BTreeSet::new(),
            sends: Vec::new(),
            arrived,
            touched: BTreeSet::new(),
            depth: before.depth,
        }
    }

    fn go(&mut self, targets: &[Goto]) -> Result<(), Failure> {
        for target in targets {
            match target {
                Goto::Node(name) if &**name == END => {}
                Goto::Node(name) => {
                    let at = self.plan.find(name)?;
                    self.undo(at);
                    self.nodes.insert(at);
                }
                Goto::Send { node, payload } => {
                    let at = self.plan.find(node)?;
                    if !self.sends.iter().any(|(sent, _)| *sent == at) {
                        self.undo(at);
                    }
                    self.sends.push((at, payload.clone()));
                }
                Goto::After(name) => self.arrive(self.plan.find(name)?),
            }
        }
        Ok(())
    }

    /// `at` runs again: what depends on it is no longer done.
    fn undo(&mut self, at: usize) {
        for join in self.plan.joins.iter().filter(|join| join.kind == JoinKind::Needs) {
            let affected = |source: &usize| *source == at || self.plan.follows(*source, at);
            if let Some(sources) = self.arrived.get_mut(&join.target) {
                sources.retain(|source| !affected(source));
            }
        }
    }

    fn arrive(&mut self, at: usize) {
        self.touch(at);
        self.nodes.extend(&self.plan.nodes[at].next);
        for join in self.plan.joins.iter().filter(|join| join.sources.contains(&at)) {
            let sources = self.arrived.entry(join.target).or_default();
            sources.insert(at);
            if *sources != join.sources {
                continue;
            }
            self.nodes.insert(join.target);
            if join.kind == JoinKind::Barrier {
                self.arrived.remove(&join.target);
            }
        }
    }

    fn touch(&mut self, at: usize) {
        self.touched.insert(at);
    }

    fn close(mut self, run: RunId, step: i64) -> Result<Frontier, Failure> {
        // From the innermost scope outwards: an exit is a member of the scope around it.
        for scope in &self.plan.scopes {
            let due = |at: &usize| scope.members.contains(at);
            let left = scope.members.iter().any(|at| self.touched.contains(at));
            let busy = self.nodes.iter().any(due) || self.sends.iter().any(|(at, _)| due(at));
            if left && !busy {
                self.nodes.insert(scope.exit);
            }
        }
        self.arrived.retain(|_, sources| !sources.is_empty());
        let limit = self.plan.max_calls;
        let count = self.nodes.len() + self.sends.len();
        if count > limit {
            return Err(Failure::new(
                Code::LimitExceeded,
                format!(
                    "{count} calls would be due in superstep {step}; `superstep_calls` is {limit}"
                ),
            )
            .with("limit", "superstep_calls"));
        }
        let nodes = self.nodes.into_iter().map(|at| (at, None));
        let sends = self.sends.into_iter().map(|(at, payload)| (at, Some(payload)));
        let due = nodes.chain(sends).collect();
        let depth = self.depth;
        Ok(Frontier { depth, ..self.plan.frontier(due, self.arrived, run, step) })
    }
}

impl Plan {
    /// Whether `node` runs because of `cause`, through joins and edges.
    fn follows(&self, node: usize, cause: usize) -> bool {
        self.joins
            .iter()
            .filter(|join| join.sources.contains(&cause))
            .any(|join| join.target == node || join.downstream.contains(&node))
            || self.nodes[cause]
                .next
                .iter()
                .any(|&next| next == node || self.downstream_of(next).contains(&node))
    }

    fn downstream_of(&self, start: usize) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        let mut open = vec![start];
        while let Some(at) = open.pop() {
            let joined = self.joins.iter().filter(|join| join.sources.contains(&at));
            let next = joined.map(|join| join.target).chain(self.nodes[at].next.iter().copied());
            for to in next.collect::<Vec<_>>() {
                if found.insert(to) {
                    open.push(to);
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests;
