//! Making a plan, and refusing what is none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{DEFAULT_MAX_CALLS, DEFAULT_MAX_STEPS, END, Join, JoinKind, Plan, PlanNode, Scope};
use crate::channel::Reducer;

/// A subgraph by names: its own, its members', its exit's.
type Named = (Arc<str>, Vec<Arc<str>>, Arc<str>);

/// Collects channels, nodes and edges, and checks them once.
#[derive(Clone, Debug)]
pub struct Builder {
    channels: BTreeMap<Arc<str>, Reducer>,
    nodes: Vec<(Arc<str>, Option<u32>)>,
    entry: Vec<Arc<str>>,
    edges: Vec<(Arc<str>, Arc<str>)>,
    may_go: Vec<(Arc<str>, Arc<str>)>,
    joins: Vec<(Vec<Arc<str>>, Arc<str>, JoinKind)>,
    /// Name of the subgraph, its members, its exit; inner ones first.
    scopes: Vec<Named>,
    last: Option<Arc<str>>,
    max_steps: u32,
    max_calls: usize,
    fold: Option<Arc<str>>,
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    pub const fn new() -> Self {
        Self {
            channels: BTreeMap::new(),
            nodes: Vec::new(),
            entry: Vec::new(),
            edges: Vec::new(),
            may_go: Vec::new(),
            joins: Vec::new(),
            scopes: Vec::new(),
            last: None,
            max_steps: DEFAULT_MAX_STEPS,
            max_calls: DEFAULT_MAX_CALLS,
            fold: None,
        }
    }

    #[must_use]
    pub fn channel(mut self, name: &str, reducer: Reducer) -> Self {
        self.channels.insert(name.into(), reducer);
        self
    }

    #[must_use]
    pub fn node(mut self, name: &str) -> Self {
        self.nodes.push((name.into(), None));
        self
    }

    /// A node of which at most `at_once` calls run at the same time; the others of its fan-out wait.
    #[must_use]
    pub fn node_at_once(mut self, name: &str, at_once: u32) -> Self {
        self.nodes.push((name.into(), Some(at_once.max(1))));
        self
    }

    #[must_use]
    pub fn entry(mut self, name: &str) -> Self {
        self.entry.push(name.into());
        self
    }

    /// `to` runs in the superstep after `from`; [`END`] ends the branch.
    #[must_use]
    pub fn edge(mut self, from: &str, to: &str) -> Self {
        self.edges.push((from.into(), to.into()));
        self
    }

    /// `to` runs each time all of `sources` have ended since it last ran.
    #[must_use]
    pub fn join(self, sources: &[&str], to: &str) -> Self {
        self.joined(sources, to, JoinKind::Barrier)
    }

    /// `to` runs when all of `sources` are done; when one of them is sent back to, or anything
    /// before it, `to` runs again once they are done again.
    #[must_use]
    pub fn needs(self, to: &str, sources: &[&str]) -> Self {
        self.joined(sources, to, JoinKind::Needs)
    }

    fn joined(mut self, sources: &[&str], to: &str, kind: JoinKind) -> Self {
        let sources = sources.iter().map(|&source| source.into()).collect();
        self.joins.push((sources, to.into(), kind));
        self
    }

    /// The code of `from` may go to `to`: for drawing, and for finding what is never reached.
    #[must_use]
    pub fn may_go(mut self, from: &str, to: &str) -> Self {
        self.may_go.push((from.into(), to.into()));
        self
    }

    /// Another plan as a part of this one.
    ///
    /// Its nodes and channels come in as `name/inner`. The node `name` goes before its entries and
    /// `name/__end__` runs when nothing of it is due any more; their code is the caller's, to move
    /// values in and out. Edges and joins from `name` begin at that end.
    #[must_use]
    pub fn subgraph(mut self, name: &str, inner: &Plan) -> Self {
        let at = |node: &str| format!("{name}/{node}");
        let of = |index: usize| at(&inner.nodes[index].name);
        for (channel, reducer) in &inner.channels {
            self = self.channel(&at(channel), *reducer);
        }
        self = self.node(name);
        let mut members = vec![Arc::from(name)];
        for node in &inner.nodes {
            let inside: Arc<str> = at(&node.name).into();
            members.push(inside.clone());
            self.nodes.push((inside, node.at_once));
        }
        let exit: Arc<str> = at(END).into();
        self.nodes.push((exit.clone(), None));
        for (index, node) in inner.nodes.iter().enumerate() {
            for &to in &node.next {
                self = self.edge(&of(index), &of(to));
            }
            for &to in &node.may_go {
                self = self.may_go(&of(index), &of(to));
            }
        }
        for join in &inner.joins {
            let sources = join.sources.iter().map(|&source| of(source).into()).collect();
            self.joins.push((sources, of(join.target).into(), join.kind));
        }
        for scope in &inner.scopes {
            let nodes = scope.members.iter().map(|&member| of(member).into()).collect();
            // The inner subgraph's own edges were rewired when it was built.
            self.scopes.push(("".into(), nodes, of(scope.exit).into()));
        }
        for &entry in &inner.entry {
            self.edges.push((at("").into(), of(entry).into()));
        }
        self.scopes.push((name.into(), members, exit));
        self
    }

    /// This node runs when no other is due any more, and then the plan ends.
    #[must_use]
    pub fn at_the_end(mut self, name: &str) -> Self {
        self.last = Some(name.into());
        self
    }

    #[must_use]
    pub const fn max_steps(mut self, steps: u32) -> Self {
        self.max_steps = steps;
        self
    }

    /// The most calls of one superstep.
    #[must_use]
    pub const fn max_calls(mut self, calls: usize) -> Self {
        self.max_calls = calls;
        self
    }

    /// See [`Plan::fold`].
    #[must_use]
    pub fn fold(mut self, node: &str) -> Self {
        self.fold = Some(node.into());
        self
    }

    /// # Errors
    /// Says which node is unknown or named twice, or that there is no entry.
    pub fn build(self) -> Result<Plan, InvalidPlan> {
        let position = |name: &Arc<str>| {
            self.nodes
                .iter()
                .position(|(node, _)| node == name)
                .ok_or_else(|| InvalidPlan::UnknownNode(name.to_string()))
        };
        let mut distinct = BTreeSet::new();
        if let Some((twice, _)) = self.nodes.iter().find(|(name, _)| !distinct.insert(name)) {
            return Err(InvalidPlan::DuplicateNode(twice.to_string()));
        }
        if self.entry.is_empty() {
            return Err(InvalidPlan::NoEntry);
        }
        // What leaves a subgraph leaves it at its end; what enters, at its beginning.
        let exits: BTreeMap<&Arc<str>, &Arc<str>> =
            self.scopes.iter().map(|(name, _, exit)| (name, exit)).collect();
        let leaving = |from: &Arc<str>| match exits.get(from) {
            Some(exit) => position(exit),
            None => match from.strip_suffix('/') {
                Some(inside) => position(&inside.into()),
                None => position(from),
            },
        };
        // Each once, in plan order, as everywhere: a node has one call per superstep.
        let entry: BTreeSet<usize> = self.entry.iter().map(position).collect::<Result<_, _>>()?;
        let mut nodes: Vec<PlanNode> = self
            .nodes
            .iter()
            .map(|(name, at_once)| PlanNode {
                name: name.clone(),
                next: Vec::new(),
                may_go: Vec::new(),
                at_once: *at_once,
            })
            .collect();
        for (from, to) in &self.edges {
            let from = leaving(from)?;
            if &**to != END {
                nodes[from].next.push(position(to)?);
            }
        }
        for (from, to) in &self.may_go {
            let from = leaving(from)?;
            if &**to != END {
                nodes[from].may_go.push(position(to)?);
            }
        }
        let mut joins = Vec::with_capacity(self.joins.len());
        for (sources, target, kind) in &self.joins {
            let sources = sources.iter().map(leaving).collect::<Result<_, _>>()?;
            let target = position(target)?;
            joins.push(Join { sources, target, kind: *kind, downstream: BTreeSet::new() });
        }
        let mut scopes = Vec::with_capacity(self.scopes.len());
        for (_, members, exit) in &self.scopes {
            let members = members.iter().map(position).collect::<Result<_, _>>()?;
            scopes.push(Scope { members, exit: position(exit)? });
        }
        if let Some(last) = &self.last {
            let exit = position(last)?;
            let members = (0..self.nodes.len()).filter(|&at| at != exit).collect();
            scopes.push(Scope { members, exit });
        }
        let mut plan = Plan {
            entry: entry.into_iter().collect(),
            channels: self.channels,
            nodes,
            joins,
            scopes,
            max_steps: self.max_steps,
            max_calls: self.max_calls,
            fold: self.fold,
        };
        let downstream: Vec<_> =
            plan.joins.iter().map(|join| plan.downstream_of(join.target)).collect();
        for (join, downstream) in plan.joins.iter_mut().zip(downstream) {
            join.downstream = downstream;
        }
        Ok(plan)
    }
}

/// Why nodes and edges do not make a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPlan {
    #[error("no node is called `{0}`")]
    UnknownNode(String),
    #[error("two nodes are called `{0}`")]
    DuplicateNode(String),
    #[error("no entry node")]
    NoEntry,
}
