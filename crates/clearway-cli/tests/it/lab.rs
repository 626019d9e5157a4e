//! `clearway lab`: each trap is one for the naive client and none for Clearway.

use std::time::Duration;

use anyhow::{Context, Result};
use clearway_testkit::{Process, Scratch};
use serde_json::Value;

use crate::binary;

/// A trap is shown in less than a minute.
const MINUTE: Duration = Duration::from_secs(60);

/// Shows a trap; returns what was found.
async fn lab(trap: &str) -> Result<Value> {
    let scratch = Scratch::new()?;
    let mut command = binary().command(scratch.path());
    command.args(["lab", trap, "--json"]);
    let mut process = Process::spawn(trap, command, &scratch.path().join("lab.log"))?;
    let exit = process.exit(MINUTE).await?;
    let said = process.log();
    assert_eq!(exit.code, Some(0), "{said}");
    let report: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    assert_eq!(report["ok"], true, "{report}");
    process.passed();
    Ok(report)
}

#[tokio::test]
async fn a_silent_provider_holds_the_naive_client_for_ever() -> Result<()> {
    let report = lab("hang").await?;
    let (naive, clearway) = (&report["naive"], &report["clearway"]);
    assert_eq!((&naive["ended"], &naive["sockets_open"]), (&false.into(), &1.into()), "{report}");
    assert_eq!((&clearway["ended"], &clearway["sockets_open"]), (&true.into(), &0.into()));
    assert!(clearway["waiting_on"].to_string().contains("first_byte"), "{report}");
    Ok(())
}

#[tokio::test]
async fn comments_keep_the_naive_client_waiting() -> Result<()> {
    let report = lab("drip").await?;
    assert_eq!(report["naive"]["ended"], false, "{report}");
    assert!(report["clearway"]["waiting_on"].to_string().contains("next_token"), "{report}");
    Ok(())
}

#[tokio::test]
async fn half_an_answer_is_no_success() -> Result<()> {
    let report = lab("truncate").await?;
    assert_eq!(report["naive"]["saw"], "40 of 60 tokens, as a success");
    assert!(report["clearway"]["saw"].to_string().contains("stream_truncated"), "{report}");
    Ok(())
}

#[tokio::test]
async fn a_provider_in_trouble_is_not_trampled() -> Result<()> {
    for trap in ["storm", "flap"] {
        let report = lab(trap).await?;
        let per_call = |side: &str| {
            let number = |key: &str| report[side][key].as_f64().unwrap_or(f64::NAN);
            number("requests") / number("calls")
        };
        assert!(per_call("naive") > 3.0, "{report}");
        assert!(per_call("clearway") < 1.3, "{report}");
    }
    Ok(())
}
