//! Workflows of the configuration: templates and expressions, the plan they compile to, and the
//! code of their steps.
//!
//! A step is a node of the plan with its own channel, which holds its output. A step with
//! `for_each` is two nodes: `NAME:each` sends one call per element to `NAME`, whose channel collects
//! the outputs in order.
//!
//! Not here: reading the tables (`config::workflow`), supersteps and durability (the engine).

pub(crate) mod compile;
pub mod draw;
pub(crate) mod expr;
pub(crate) mod request;
pub(crate) mod shape;
mod steps;
mod structured;
