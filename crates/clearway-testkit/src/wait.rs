//! Waiting for a state, with an end.

use std::fmt::Display;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

/// How long a test waits for what should happen at once. Generous, because a debug build on a busy
/// machine is slow and a wait that ends early says nothing about the product.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// Looks until `probe` gives a value, at most `within`.
///
/// # Errors
/// The probe's own error, at once; or that the state did not come, with the name of it.
pub async fn until_some<T>(
    what: impl Display,
    within: Duration,
    mut probe: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + within;
    loop {
        if let Some(value) = probe().await? {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("waited {:.1} s in vain: {what}", within.as_secs_f64());
        }
        sleep(PAUSE).await;
    }
}

/// Looks until `probe` holds, at most `within`.
///
/// # Errors
/// As [`until_some`].
pub async fn until(
    what: impl Display,
    within: Duration,
    mut probe: impl AsyncFnMut() -> Result<bool>,
) -> Result<()> {
    until_some(what, within, async || Ok(probe().await?.then_some(()))).await
}
