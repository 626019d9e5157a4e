//! What a stranger would notice first: overlong files, paths of somebody's machine, words that must
//! not be there, build output that was committed. The words and limits are in `tidy.toml`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use toml::{Table, Value};

use crate::report;

/// # Errors
/// A file cannot be read, or something is untidy.
pub(crate) fn check(root: &Path) -> Result<()> {
    report("tidy", &problems(root)?)
}

const RULES: &str = "xtask/tidy.toml";

fn problems(root: &Path) -> Result<Vec<String>> {
    let rules = Rules::read(&root.join(RULES))?;
    let mut problems = Vec::new();
    for name in files(root)? {
        if is_build_output(&name) {
            problems.push(format!("{name}: build output does not belong here"));
            continue;
        }
        // Whatever is not text has nothing to be looked for in; a deleted file neither.
        let Ok(text) = fs::read_to_string(root.join(&name)) else { continue };
        problems.extend(rules.problems(&name, &text));
    }
    for name in rules.long.keys().filter(|name| !root.join(name).exists()) {
        problems.push(format!("{RULES}: `{name}` is gone"));
    }
    Ok(problems)
}

/// What belongs to the repository: what git tracks or would track; without git, what lies there.
fn files(root: &Path) -> Result<Vec<String>> {
    let list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let git = Command::new("git")
        .arg("-C")
        .arg(root)
        .args(["-c", "safe.directory=*"])
        .args(list)
        .output();
    if let Ok(output) = git
        && output.status.success()
    {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        return Ok(text
            .split('\0')
            .filter(|name| !name.is_empty())
            .map(ToOwned::to_owned)
            .collect());
    }
    let mut names = Vec::new();
    walk(root, &mut PathBuf::new(), &mut names)?;
    Ok(names)
}

fn walk(root: &Path, at: &mut PathBuf, names: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(root.join(&*at)).with_context(|| at.display().to_string())? {
        let entry = entry?;
        at.push(entry.file_name());
        let is_folder = entry.file_type()?.is_dir();
        match entry.file_name().to_str() {
            Some(".git" | "target" | "node_modules" | ".clearway") if is_folder => {}
            Some(_) if is_folder => walk(root, at, names)?,
            Some(_) => names.push(at.to_string_lossy().into_owned()),
            None => {}
        }
        at.pop();
    }
    Ok(())
}

fn is_build_output(name: &str) -> bool {
    name.split('/').any(|part| matches!(part, "target" | "node_modules"))
}

#[derive(Debug, Default)]
struct Rules {
    max_lines: usize,
    long: Table,
    forbidden: Vec<Forbidden>,
}

#[derive(Debug)]
struct Forbidden {
    text: String,
    files: Vec<String>,
    why: String,
}

impl Rules {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        let table: Table = text.parse()?;
        let max_lines =
            table.get("max_lines").and_then(Value::as_integer).context("max_lines is missing")?;
        let forbidden =
            table.get("forbidden").and_then(Value::as_array).cloned().unwrap_or_default();
        Ok(Self {
            max_lines: usize::try_from(max_lines)?,
            long: table.get("long").and_then(Value::as_table).cloned().unwrap_or_default(),
            forbidden: forbidden.iter().map(Forbidden::read).collect::<Result<_>>()?,
        })
    }

    fn problems(&self, name: &str, text: &str) -> Vec<String> {
        let mut problems = Vec::new();
        let lines = text.lines().count();
        if name.ends_with(".rs") && lines > self.max_lines && !self.long.contains_key(name) {
            problems.push(format!("{name}: {lines} lines; where is the missing seam?"));
        }
        for (number, line) in (1..).zip(text.lines()) {
            if let Some(path) = machine_path(line) {
                problems.push(format!("{name}:{number}: a path of some machine: {path}"));
            }
            for word in &self.forbidden {
                let applies =
                    word.files.is_empty() || word.files.iter().any(|end| name.ends_with(end));
                // The rules, and the tests of the rules, must be able to name them.
                if applies && !name.starts_with("xtask/") && line.contains(&word.text) {
                    problems.push(format!("{name}:{number}: `{}`: {}", word.text, word.why));
                }
            }
        }
        problems
    }
}

impl Forbidden {
    fn read(value: &Value) -> Result<Self> {
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(ToOwned::to_owned);
        let files = value.get("files").and_then(Value::as_array).cloned().unwrap_or_default();
        Ok(Self {
            text: text("text").context("a forbidden entry without `text`")?,
            why: text("why").context("a forbidden entry without `why`")?,
            files: files.iter().filter_map(Value::as_str).map(ToOwned::to_owned).collect(),
        })
    }
}

/// Folders at the root that a path of a working machine starts with; written apart, so that this
/// file does not find itself.
const HOMES: [&str; 5] = ["work", "farm", "root", "tmp", "home"];

/// A path of a working machine in a line, if there is one.
fn machine_path(line: &str) -> Option<&str> {
    let is_inside = |char: char| char.is_ascii_alphanumeric() || "_./-~}$".contains(char);
    line.match_indices('/').find_map(|(at, _)| {
        let starts = !line[..at].ends_with(is_inside);
        let rest = &line[at + 1..];
        let (home, after) = rest.split_once('/')?;
        let found = starts
            && HOMES.contains(&home)
            && after.starts_with(|char: char| char.is_ascii_lowercase());
        let end = rest.find(|char: char| !is_inside(char) && char != '/').unwrap_or(rest.len());
        found.then(|| &line[at..at + 1 + end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_tidy() {
        assert_eq!(problems(&crate::root().unwrap()).unwrap(), [""; 0]);
    }

    #[test]
    fn what_is_untidy_is_found() {
        let text = "max_lines = 2\n[long]\n\"b.rs\" = \"why\"\n[[forbidden]]\ntext = \"bad\"\nfiles = [\".rs\"]\nwhy = \"no\"\n";
        let rules = Rules::parse(text).unwrap();
        assert_eq!(
            rules.problems("a.rs", "1\n2\n3\n"),
            ["a.rs: 3 lines; where is the missing seam?"]
        );
        assert_eq!(rules.problems("b.rs", "1\n2\n3\n"), [""; 0]);
        assert_eq!(rules.problems("a.rs", "x\nbad"), ["a.rs:2: `bad`: no"]);
        assert_eq!(rules.problems("a.md", "bad"), [""; 0]);
        let path = ["see ", "tmp", "x/y"].join("/");
        assert_eq!(machine_path(&path), Some(&path[4..]));
        for fine in ["a/tmp/x", "/usr/lib/x", "https://x.y/home/z", "{}/home/x", "/tmp", "/tmp/"] {
            assert_eq!(machine_path(fine), None, "{fine}");
        }
        assert!(is_build_output("a/target/b") && !is_build_output("targets/b"));
    }
}
