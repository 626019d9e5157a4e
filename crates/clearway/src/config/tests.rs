//! Errors as people see them, and what a correct file means.

use expect_test::{Expect, expect};

use super::*;

/// An environment with a key, as most have.
fn env() -> Env {
    Env::new([("OPENAI_API_KEY", "sk-very-secret")])
}

fn parse(text: &str) -> Config {
    parse_with(text, &env())
}

fn parse_with(text: &str, env: &Env) -> Config {
    match Config::parse(FILE, text, env) {
        Ok(config) => config,
        Err(report) => panic!("{report}"),
    }
}

/// Renders the errors of `text`.
#[track_caller]
fn check(text: &str, expected: Expect) {
    check_with(text, &env(), expected);
}

#[track_caller]
fn check_with(text: &str, env: &Env, expected: Expect) {
    let report = Config::parse(FILE, text, env).expect_err("should be refused");
    let rendered = report.to_string();
    assert!(!rendered.contains("very-secret"), "a secret in an error: {rendered}");
    expected.assert_eq(&rendered);
}

mod doors;
mod errors;
mod meaning;
mod outside;
mod serving;
mod tools;
