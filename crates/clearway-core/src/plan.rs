//! Plans: what a run executes, as named nodes over channels.
//!
//! A plan is untyped and immutable. Configuration and the typed API both compile to plans, so there
//! is one execution path; a chat turn is a plan with one node.
//!
//! Not here: the code behind a node (`clearway-engine`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::channel::Reducer;
use crate::{Code, Failure};

/// A graph of nodes; see [`Builder`] for how to make one.
#[derive(Clone, Debug)]
pub struct Plan {
    channels: BTreeMap<Arc<str>, Reducer>,
    nodes: Vec<PlanNode>,
    entry: Vec<usize>,
    max_steps: u32,
}

#[derive(Clone, Debug)]
struct PlanNode {
    name: Arc<str>,
    /// Successors when the node does not say `goto`; empty means the branch ends here.
    next: Vec<usize>,
}

/// The end of a branch, as a `goto` target and in edges.
pub const END: &str = "__end__";

/// Supersteps that a run may take unless its plan says otherwise.
pub const DEFAULT_MAX_STEPS: u32 = 250;

/// The channel that holds a conversation.
pub const MESSAGES: &str = "messages";

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

    pub const fn max_steps(&self) -> u32 {
        self.max_steps
    }

    pub fn node_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.nodes.iter().map(|node| &node.name)
    }

    /// The nodes of the first superstep.
    pub fn first(&self) -> Vec<Arc<str>> {
        self.entry.iter().map(|&at| self.nodes[at].name.clone()).collect()
    }

    /// The nodes of the superstep after `finished`, in plan order and each once.
    ///
    /// # Errors
    /// `internal` when a `goto` names a node that the plan does not have.
    pub fn next(&self, finished: &[Finished]) -> Result<Vec<Arc<str>>, Failure> {
        let mut due = BTreeSet::new();
        for call in finished {
            match &call.goto {
                None => due.extend(&self.nodes[self.find(&call.node)?].next),
                Some(targets) => {
                    for target in targets.iter().filter(|target| &***target != END) {
                        due.insert(self.find(target)?);
                    }
                }
            }
        }
        Ok(due.into_iter().map(|at| self.nodes[at].name.clone()).collect())
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
}

/// A call that ended well, as the planner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    pub node: Arc<str>,
    /// Where the node itself wants to go on; `None` follows the edges.
    pub goto: Option<Vec<Arc<str>>>,
}

/// Collects channels, nodes and edges, and checks them once.
#[derive(Clone, Debug)]
pub struct Builder {
    channels: BTreeMap<Arc<str>, Reducer>,
    nodes: Vec<Arc<str>>,
    entry: Vec<Arc<str>>,
    edges: Vec<(Arc<str>, Arc<str>)>,
    max_steps: u32,
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
            max_steps: DEFAULT_MAX_STEPS,
        }
    }

    #[must_use]
    pub fn channel(mut self, name: &str, reducer: Reducer) -> Self {
        self.channels.insert(name.into(), reducer);
        self
    }

    #[must_use]
    pub fn node(mut self, name: &str) -> Self {
        self.nodes.push(name.into());
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

    #[must_use]
    pub const fn max_steps(mut self, steps: u32) -> Self {
        self.max_steps = steps;
        self
    }

    /// # Errors
    /// Says which node is unknown or named twice, or that there is no entry.
    pub fn build(self) -> Result<Plan, InvalidPlan> {
        let position = |name: &Arc<str>| {
            self.nodes
                .iter()
                .position(|node| node == name)
                .ok_or_else(|| InvalidPlan::UnknownNode(name.to_string()))
        };
        let distinct: BTreeSet<_> = self.nodes.iter().collect();
        if distinct.len() < self.nodes.len() {
            return Err(InvalidPlan::DuplicateNode);
        }
        if self.entry.is_empty() {
            return Err(InvalidPlan::NoEntry);
        }
        // Each once, in plan order, as everywhere: a node has one call per superstep.
        let entry: BTreeSet<usize> = self.entry.iter().map(position).collect::<Result<_, _>>()?;
        let mut nodes: Vec<PlanNode> = self
            .nodes
            .iter()
            .map(|name| PlanNode { name: name.clone(), next: Vec::new() })
            .collect();
        for (from, to) in &self.edges {
            let from = position(from)?;
            if &**to != END {
                nodes[from].next.push(position(to)?);
            }
        }
        let entry = entry.into_iter().collect();
        Ok(Plan { channels: self.channels, nodes, entry, max_steps: self.max_steps })
    }
}

/// Why nodes and edges do not make a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPlan {
    #[error("no node is called `{0}`")]
    UnknownNode(String),
    #[error("two nodes have the same name")]
    DuplicateNode,
    #[error("no entry node")]
    NoEntry,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(nodes: &[Arc<str>]) -> Vec<&str> {
        nodes.iter().map(|node| &**node).collect()
    }

    fn finished(node: &str, goto: Option<&[&str]>) -> Finished {
        Finished {
            node: node.into(),
            goto: goto.map(|targets| targets.iter().map(|target| (*target).into()).collect()),
        }
    }

    #[test]
    fn supersteps_follow_edges_and_goto() {
        let plan = Builder::new()
            .node("a")
            .node("b")
            .node("c")
            .node("d")
            .entry("a")
            .edge("a", "b")
            .edge("a", "c")
            .edge("b", "d")
            .edge("c", "d")
            .edge("d", END)
            .build()
            .unwrap();
        assert_eq!(names(&plan.first()), ["a"]);
        assert_eq!(names(&plan.next(&[finished("a", None)]).unwrap()), ["b", "c"]);
        let both = [finished("c", None), finished("b", None)];
        assert_eq!(names(&plan.next(&both).unwrap()), ["d"], "a shared successor runs once");
        assert!(plan.next(&[finished("d", None)]).unwrap().is_empty());
        let jump = [finished("a", Some(&["d", END]))];
        assert_eq!(names(&plan.next(&jump).unwrap()), ["d"]);
        assert!(plan.next(&[finished("a", Some(&["x"]))]).is_err());
    }

    #[test]
    fn wrong_plans_are_refused() {
        let builder = Builder::new().node("a");
        assert_eq!(builder.clone().build().unwrap_err(), InvalidPlan::NoEntry);
        let unknown = builder.clone().entry("a").edge("a", "z").build();
        assert_eq!(unknown.unwrap_err(), InvalidPlan::UnknownNode("z".into()));
        assert_eq!(builder.node("a").entry("a").build().unwrap_err(), InvalidPlan::DuplicateNode);
    }
}
