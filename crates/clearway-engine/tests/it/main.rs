//! The engine from outside, over the in-memory store and the simulator, on paused time.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod attack;
mod crash;
mod fairness;
mod graphs;
mod knowledge;
mod runs;
mod scheduling;
mod steering;
mod support;
mod sweep;
mod tools;
