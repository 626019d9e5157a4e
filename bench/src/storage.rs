//! What a conversation costs on disk, and that it costs in proportion to its length.
//!
//! One conversation of two messages of about a thousand characters per turn is grown; at each mark the server is
//! stopped, so that its write-ahead log is folded in, and the data directory is measured. Token deltas are part of
//! it: they are dropped an hour after a run's end, and no hour passes here.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::bed::config::Config;
use crate::bed::{Bed, Tools};
use crate::report::{Kind, Report, Section, number, say};
use crate::tap::Tap;
use crate::turns::Talker;

/// Parameters of `storage`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Turns at which it is measured; each twice the one before.
    #[arg(long, value_delimiter = ',', default_value = "50,100,200,400")]
    turns: Vec<u32>,
    /// Draws the result.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Characters of each message.
const CHARACTERS: usize = 1000;
/// `tok0 … tok149` is 1039 characters long.
const TOKENS: u32 = 150;
const STOP: Duration = Duration::from_secs(20);

/// Bytes after so many turns.
#[derive(Clone, Copy, Debug)]
struct Mark {
    turns: u32,
    bytes: u64,
}

pub(crate) async fn run(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    say(&format!("a conversation of {:?} turns", options.turns));
    let bed = Bed::new(tools)?;
    let tap = Tap::start().await?;
    bed.write_config(&Config::roomy(tap.address))?;
    let address = crate::bed::free_address()?;
    let (mut marks, mut done) = (Vec::new(), 0);
    for &turns in &options.turns {
        let mut server = bed.restart(address)?;
        server.ready("/health").await?;
        let mut talker = Talker::new(&tap, &server, CHARACTERS, TOKENS).await?;
        while done < turns {
            talker.turn("the only one").await?;
            done += 1;
        }
        drop(talker);
        server.terminate(STOP).await?;
        marks.push(Mark { turns, bytes: size(&bed.data())? });
    }
    if let Some(file) = &options.svg {
        std::fs::write(file, plot(&marks)).with_context(|| file.display().to_string())?;
    }
    present(&marks, report)
}

/// All files of the directory.
fn size(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { size(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}

fn text_bytes(turns: u32) -> f64 {
    f64::from(turns) * 2.0 * CHARACTERS as f64
}

fn present(marks: &[Mark], report: &mut Report) -> Result<()> {
    let mut section = Section::new(
        "A conversation on disk, two messages of about 1000 characters per turn",
        &["turns", "MB", "bytes per turn", "times the text", "to the mark before"],
    );
    let mut before: Option<Mark> = None;
    for mark in marks {
        let bytes = mark.bytes as f64;
        let ratio = before.map(|before| bytes / before.bytes as f64);
        section.row([
            mark.turns.to_string(),
            number(bytes / 1e6),
            format!("{:.0}", bytes / f64::from(mark.turns)),
            number(bytes / text_bytes(mark.turns)),
            ratio.map(number).unwrap_or_default(),
        ]);
        before = Some(*mark);
    }
    report.section(section);
    let at = |turns: u32| marks.iter().find(|mark| mark.turns == turns);
    if let (Some(half), Some(whole)) = (at(200), at(400)) {
        ensure!(half.bytes > 0, "there is no data");
        report.bar(Kind::Hard, "400 turns on disk, MB", whole.bytes as f64 / 1e6, 3.0);
        let ratio = whole.bytes as f64 / half.bytes as f64;
        report.bar(Kind::Hard, "bytes of 400 turns to 200, times", ratio, 2.1);
    }
    let figures = marks.iter().map(|mark| json!({"turns": mark.turns, "bytes": mark.bytes}));
    report.figure("storage", figures.collect::<Vec<_>>());
    Ok(())
}

/// Bytes over turns, with the text itself as the other line.
fn plot(marks: &[Mark]) -> String {
    const WIDTH: f64 = 640.0;
    const HEIGHT: f64 = 360.0;
    const LEFT: f64 = 64.0;
    const BOTTOM: f64 = 40.0;
    let most_turns = marks.iter().map(|mark| f64::from(mark.turns)).fold(1.0, f64::max);
    let most_bytes = marks.iter().map(|mark| mark.bytes as f64).fold(1.0, f64::max) * 1.1;
    let x = |turns: f64| LEFT + turns / most_turns * (WIDTH - LEFT - 24.0);
    let y = |bytes: f64| HEIGHT - BOTTOM - bytes / most_bytes * (HEIGHT - BOTTOM - 24.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"16\">Bytes on disk of one conversation, and of its text (dashed)</text>\n"
    );
    for n in 0..=4 {
        let bytes = most_bytes * f64::from(n) / 4.0;
        let at = y(bytes);
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{:.2} MB</text>",
            WIDTH - 24.0,
            LEFT - 6.0,
            at + 4.0,
            bytes / 1e6
        );
    }
    let line = |points: Vec<(f64, f64)>| {
        let points = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}"));
        points.collect::<Vec<_>>().join(" ")
    };
    let start = (x(0.0), y(0.0));
    let disk = marks.iter().map(|mark| (x(f64::from(mark.turns)), y(mark.bytes as f64)));
    let disk: Vec<_> = disk.collect();
    let text = std::iter::once(start)
        .chain(marks.iter().map(|mark| (x(f64::from(mark.turns)), y(text_bytes(mark.turns)))));
    let _ = writeln!(
        svg,
        "<polyline fill=\"none\" stroke=\"#888\" stroke-dasharray=\"4\" points=\"{}\"/>",
        line(text.collect())
    );
    let _ = writeln!(
        svg,
        "<polyline fill=\"none\" stroke=\"#0a6\" stroke-width=\"2\" points=\"{}\"/>",
        line(disk.clone())
    );
    for ((x, y), mark) in disk.iter().zip(marks) {
        let _ = writeln!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"#0a6\"/>\
             <text x=\"{x:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - BOTTOM + 18.0,
            mark.turns
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">turns</text>\n</svg>",
        WIDTH / 2.0,
        HEIGHT - 6.0
    );
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_a_point_per_mark() {
        let marks = [Mark { turns: 50, bytes: 100_000 }, Mark { turns: 100, bytes: 200_000 }];
        let svg = plot(&marks);
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }
}
