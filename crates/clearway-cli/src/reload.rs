//! Looking for changes of the configuration and its prompts.
//!
//! A thread of its own compares modification times twice a second. Looking needs no dependency and
//! works on every file system, network mounts and containers included, where notifications do not.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clearway::Report;
use clearway::config::Config;
use tokio::sync::mpsc;

use crate::serve::Settings;

/// Whether changes are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reload {
    Never,
    OnChange,
}

const EVERY: Duration = Duration::from_millis(500);

/// Answers with each changed configuration.
#[derive(Debug)]
pub(crate) struct Watcher {
    changes: Option<mpsc::Receiver<Result<Config, Report>>>,
}

impl Watcher {
    /// Starts to look at the files of `config`, and at the place where one might appear.
    pub(crate) fn start(reload: Reload, settings: &Settings, config: &Config) -> Self {
        if reload == Reload::Never {
            return Self { changes: None };
        }
        let (sender, changes) = mpsc::channel(1);
        let looker = Looker::new(settings.clone(), config);
        let thread = std::thread::Builder::new().name("watch".to_owned()).stack_size(512 << 10);
        match thread.spawn(move || looker.run(&sender)) {
            Ok(_) => Self { changes: Some(changes) },
            Err(error) => {
                tracing::warn!(%error, "changes of the configuration will not be noticed");
                Self { changes: None }
            }
        }
    }

    /// The next change; never ready when nobody looks.
    pub(crate) async fn next(&mut self) -> Result<Config, Report> {
        if let Some(changes) = &mut self.changes {
            if let Some(change) = changes.recv().await {
                return change;
            }
            self.changes = None;
        }
        std::future::pending().await
    }
}

/// What can be told of a file without reading it.
type Looks = Vec<(PathBuf, Option<(SystemTime, u64)>)>;

#[derive(Debug)]
struct Looker {
    settings: Settings,
    files: Vec<PathBuf>,
    seen: Looks,
    /// The last report, while the configuration is broken.
    broken: Option<String>,
}

impl Looker {
    fn new(settings: Settings, config: &Config) -> Self {
        let mut looker = Self { settings, files: Vec::new(), seen: Vec::new(), broken: None };
        looker.follow(&config.files);
        looker.seen = looks(&looker.files);
        looker
    }

    fn follow(&mut self, files: &[PathBuf]) {
        self.files = files.to_vec();
        let main = self.settings.file();
        if !self.files.contains(&main) {
            self.files.push(main);
        }
    }

    fn run(mut self, sender: &mpsc::Sender<Result<Config, Report>>) {
        while !sender.is_closed() {
            std::thread::sleep(EVERY);
            if let Some(change) = self.look()
                && sender.blocking_send(change).is_err()
            {
                return;
            }
        }
    }

    /// A changed configuration, or a new report about a broken one.
    fn look(&mut self) -> Option<Result<Config, Report>> {
        let now = looks(&self.files);
        // What is missing while it is broken may be a file that nobody has heard of yet.
        if now == self.seen && self.broken.is_none() {
            return None;
        }
        self.seen = now;
        match self.settings.load() {
            Ok(config) => {
                self.broken = None;
                self.follow(&config.files);
                self.seen = looks(&self.files);
                Some(Ok(config))
            }
            Err(report) => {
                let text = report.to_string();
                let is_new = self.broken.as_deref() != Some(&text);
                self.broken = Some(text);
                is_new.then_some(Err(report))
            }
        }
    }
}

fn looks(files: &[PathBuf]) -> Looks {
    let look = |file: &Path| {
        let metadata = std::fs::metadata(file).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    files.iter().map(|file| (file.clone(), look(file))).collect()
}
