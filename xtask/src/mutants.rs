//! Deliberate breakages: for each invariant at least one, and a test that catches it.
//!
//! A test that nothing can fail proves nothing. `mutants.toml` lists small edits that break an
//! invariant on purpose, each with the test that must notice. This applies them one at a time to a
//! copy of the repository under `target/mutants`, never to the repository itself, and runs the test.
//!
//! A mutant whose text is not found exactly once is an error: the code moved on, and the list must
//! follow.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use toml::{Table, Value};

const LIST: &str = "xtask/mutants.toml";

/// One breakage.
#[derive(Clone, Debug)]
struct Mutant {
    name: String,
    invariant: String,
    file: String,
    find: String,
    replace: String,
    /// The crate whose test must fail.
    package: String,
    /// Which test, as a nextest expression.
    test: String,
}

/// All of them, and the invariants that must have one.
#[derive(Debug)]
struct List {
    invariants: Vec<String>,
    mutants: Vec<Mutant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Caught,
    Survived,
    /// It says nothing: it does not compile, no test has that name, or the run never ended.
    Void(&'static str),
}

/// # Errors
/// The list cannot be read.
pub(crate) fn list(root: &Path) -> Result<()> {
    for Mutant { name, invariant, file, package, test, .. } in List::read(root)?.mutants {
        println!("{invariant:4} {name:32} {file}  ({package}: {test})");
    }
    Ok(())
}

/// Runs the named mutants, or all.
///
/// # Errors
/// One survived, one is void, an invariant has none, or a test fails without any.
pub(crate) fn run(root: &Path, names: &[&str]) -> Result<()> {
    let List { invariants, mutants } = List::read(root)?;
    for name in names {
        ensure!(mutants.iter().any(|mutant| mutant.name == *name), "no mutant `{name}` in {LIST}");
    }
    let chosen: Vec<Mutant> = mutants
        .iter()
        .filter(|mutant| names.is_empty() || names.contains(&&*mutant.name))
        .cloned()
        .collect();
    // Looked at before anything is built: a list that is out of date should say so at once.
    for mutant in &chosen {
        mutant.apply(
            &fs::read_to_string(root.join(&mutant.file)).with_context(|| mutant.file.clone())?,
        )?;
    }
    let copy = Workshop::prepare(root)?;
    copy.check_unbroken(&chosen)?;
    let mut bad = 0;
    for mutant in &chosen {
        let began = Instant::now();
        let outcome = copy.try_one(mutant)?;
        let word = match outcome {
            Outcome::Caught => "caught".to_owned(),
            Outcome::Survived => "SURVIVED".to_owned(),
            Outcome::Void(why) => format!("VOID ({why})"),
        };
        bad += usize::from(outcome != Outcome::Caught);
        let seconds = began.elapsed().as_secs_f64();
        println!("{:4} {:32} {word} in {seconds:.0} s", mutant.invariant, mutant.name);
    }
    let covered: BTreeSet<&str> = mutants.iter().map(|mutant| &*mutant.invariant).collect();
    let bare: Vec<&str> =
        invariants.iter().map(|name| &**name).filter(|name| !covered.contains(name)).collect();
    ensure!(bad == 0, "{bad} of {} mutants were not caught", chosen.len());
    ensure!(
        bare.is_empty() || !names.is_empty(),
        "invariants without a mutant: {}",
        bare.join(", ")
    );
    println!("mutants: all {} caught", chosen.len());
    Ok(())
}

impl List {
    fn read(root: &Path) -> Result<Self> {
        let text = fs::read_to_string(root.join(LIST)).context(LIST)?;
        Self::parse(&text).context(LIST)
    }

    fn parse(text: &str) -> Result<Self> {
        let table: Table = text.parse()?;
        let array =
            |key: &str| table.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
        let invariants: Vec<String> =
            array("invariants").iter().filter_map(Value::as_str).map(ToOwned::to_owned).collect();
        let mutants: Vec<Mutant> =
            array("mutant").iter().map(Mutant::read).collect::<Result<_>>()?;
        let mut seen = BTreeSet::new();
        for mutant in &mutants {
            ensure!(seen.insert(&mutant.name), "two mutants are called `{}`", mutant.name);
            ensure!(
                invariants.contains(&mutant.invariant),
                "`{}`: no invariant {}",
                mutant.name,
                mutant.invariant
            );
        }
        Ok(Self { invariants, mutants })
    }
}

impl Mutant {
    fn read(value: &Value) -> Result<Self> {
        let text = |key: &str| {
            let found = value.get(key).and_then(Value::as_str).map(ToOwned::to_owned);
            found.with_context(|| format!("a mutant without `{key}`: {value}"))
        };
        Ok(Self {
            name: text("name")?,
            invariant: text("invariant")?,
            file: text("file")?,
            find: text("find")?,
            replace: text("replace")?,
            package: text("package")?,
            test: text("test")?,
        })
    }

    /// The file with the breakage.
    fn apply(&self, text: &str) -> Result<String> {
        match text.matches(&self.find).count() {
            1 => Ok(text.replacen(&self.find, &self.replace, 1)),
            0 => bail!("`{}` is out of date: its text is not in {}", self.name, self.file),
            many => {
                bail!("`{}` is ambiguous: its text is {many} times in {}", self.name, self.file)
            }
        }
    }
}

/// The copy in which things are broken.
struct Workshop {
    tree: PathBuf,
    target: PathBuf,
}

/// A test that a mutant sends into an endless wait is ended by nextest; this is for the build.
const LIMIT: Duration = Duration::from_secs(900);

impl Workshop {
    /// Brings the copy up to date. It stays between runs, so that little is built twice.
    fn prepare(root: &Path) -> Result<Self> {
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let home = target.join("mutants");
        let copy = Self { tree: home.join("tree"), target: home.join("build") };
        let mut kept = BTreeSet::new();
        copy_tree(root, &copy.tree, &mut kept)?;
        remove_others(&copy.tree, &kept)?;
        if !copy.target.exists() {
            // Libraries that were built for the repository serve here as well.
            fs::create_dir_all(&copy.target)?;
            let debug = target.join("debug");
            if debug.exists() {
                let status = Command::new("cp").arg("-a").arg(&debug).arg(&copy.target).status();
                ensure!(status.is_ok_and(|status| status.success()), "copying {}", debug.display());
            }
        }
        Ok(copy)
    }

    /// A test that fails by itself catches everything.
    fn check_unbroken(&self, mutants: &[Mutant]) -> Result<()> {
        let tests: BTreeSet<(&str, &str)> =
            mutants.iter().map(|mutant| (&*mutant.package, &*mutant.test)).collect();
        for (package, test) in tests {
            let outcome = self.test(package, test)?;
            ensure!(
                outcome == Outcome::Survived,
                "{package}: {test}: does not pass without a mutant: {outcome:?}"
            );
        }
        Ok(())
    }

    fn try_one(&self, mutant: &Mutant) -> Result<Outcome> {
        let path = self.tree.join(&mutant.file);
        let original = fs::read_to_string(&path)?;
        fs::write(&path, mutant.apply(&original)?)?;
        let outcome = self.test(&mutant.package, &mutant.test);
        fs::write(&path, original)?;
        outcome
    }

    fn test(&self, package: &str, test: &str) -> Result<Outcome> {
        let mut command = Command::new("cargo");
        command
            .args([
                "nextest",
                "run",
                "--no-fail-fast",
                "--status-level",
                "none",
                "--final-status-level",
                "none",
            ])
            .args(["--package", package, "-E", test])
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", &self.target)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let log = self.target.join("last.log");
        command.stderr(fs::File::create(&log)?);
        let Some(status) = run_within(command, LIMIT)? else { return Ok(Outcome::Void("no end")) };
        // The codes that nextest documents.
        Ok(match status.code() {
            Some(0) => Outcome::Survived,
            Some(100) => Outcome::Caught,
            Some(4) => Outcome::Void("no such test"),
            Some(101) => {
                eprintln!("{}", fs::read_to_string(&log).unwrap_or_default());
                Outcome::Void("does not compile")
            }
            _ => {
                eprintln!("{}", fs::read_to_string(&log).unwrap_or_default());
                Outcome::Void("the test could not be run")
            }
        })
    }
}

fn run_within(mut command: Command, limit: Duration) -> Result<Option<ExitStatus>> {
    let mut child = command.spawn().context("starting cargo nextest")?;
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        thread::sleep(Duration::from_millis(50));
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

/// Copies what differs, so that what does not is not built again.
fn copy_tree(from: &Path, to: &Path, kept: &mut BTreeSet<PathBuf>) -> Result<()> {
    fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            let skipped = [".git", "target", "node_modules", ".clearway"];
            if !skipped.iter().any(|name| entry.file_name() == *name) {
                copy_tree(&source, &target, kept)?;
            }
        } else if kind.is_file() {
            let bytes = fs::read(&source)?;
            if fs::read(&target).ok().as_ref() != Some(&bytes) {
                fs::write(&target, bytes).with_context(|| target.display().to_string())?;
            }
            kept.insert(target);
        }
    }
    Ok(())
}

/// Removes files that the repository no longer has.
fn remove_others(folder: &Path, kept: &BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(&path, kept)?;
        } else if !kept.contains(&path) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_fits_the_code() {
        let root = crate::root().unwrap();
        let list = List::read(&root).unwrap();
        assert!(!list.mutants.is_empty());
        for mutant in &list.mutants {
            let text = fs::read_to_string(root.join(&mutant.file)).unwrap();
            assert_ne!(mutant.apply(&text).unwrap(), text, "`{}` changes nothing", mutant.name);
        }
    }

    #[test]
    fn a_breakage_hits_one_place() {
        let text = "invariants = [\"I1\"]\n[[mutant]]\nname = \"n\"\ninvariant = \"I1\"\nfile = \"f\"\n\
                    find = \"a\"\nreplace = \"b\"\npackage = \"p\"\ntest = \"t\"\n";
        let list = List::parse(text).unwrap();
        let mutant = &list.mutants[0];
        assert_eq!(mutant.apply("xax").unwrap(), "xbx");
        assert!(mutant.apply("x").unwrap_err().to_string().contains("out of date"));
        assert!(mutant.apply("aa").unwrap_err().to_string().contains("2 times"));
        assert!(List::parse(&text.replace("I1\"]", "I2\"]")).is_err());
    }
}
