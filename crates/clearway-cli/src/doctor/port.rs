//! The address to listen on: whether it is free, and if not, who has it.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use clearway::config::Config;
use clearway::inspect::Holder;

use super::finding::Finding;

pub(crate) fn check(config: &Config, holder: Option<Holder>) -> Finding {
    const WHY: &str = "a server that cannot listen does not start";
    let listen = config.server.listen.clone().unwrap_or_default();
    if !listen.is_loopback() && !config.server.insecure && config.auth.is_empty() {
        return Finding::fail(
            "port",
            format!("{listen} can be reached from other machines"),
            "whoever reaches it may use it, since there are no access keys",
            "configure keys ([auth]), listen on 127.0.0.1, or write --insecure if everybody who reaches it may use it",
        );
    }
    let host = match listen.host.parse::<IpAddr>() {
        Ok(host) => host,
        Err(_) if listen.is_loopback() => Ipv4Addr::LOCALHOST.into(),
        // Looking a name up is a call to somebody else.
        Err(_) => return Finding::ok("port", format!("{listen}: a name, not looked up"), WHY),
    };
    let address = SocketAddr::new(host, listen.port);
    match TcpListener::bind(address) {
        Ok(_) if listen.port == 0 => Finding::ok("port", format!("{listen}: any free one"), WHY),
        Ok(_) => Finding::ok("port", format!("{listen} is free"), WHY),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let owner = owner(listen.port);
            let own = holder.and_then(|holder| holder.process);
            match owner {
                Some(owner) if Some(owner.process) == own => Finding::warn(
                    "port",
                    format!("{listen} is taken by the server of this data directory, {owner}"),
                    WHY,
                    "all is well; to start another server, use --port",
                ),
                owner => {
                    let who = owner.map_or_else(
                        || "a process of another user".to_owned(),
                        |owner| owner.to_string(),
                    );
                    Finding::fail(
                        "port",
                        format!("{listen} is taken by {who}"),
                        WHY,
                        "stop that process, or choose another port with --port",
                    )
                }
            }
        }
        Err(error) => Finding::fail(
            "port",
            format!("cannot listen on {listen}: {error}"),
            WHY,
            "choose another address with --listen",
        ),
    }
}

/// A process that listens.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    process: u32,
    name: String,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({})", self.process, self.name)
    }
}

/// Who listens on `port`, among the processes that may be looked at.
fn owner(port: u16) -> Option<Owner> {
    let mut sockets = Vec::new();
    for list in ["/proc/net/tcp", "/proc/net/tcp6"] {
        sockets.extend(listening(&fs::read_to_string(list).unwrap_or_default(), port));
    }
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .find(|process| holds(*process, &sockets))
        .map(|process| Owner {
            process,
            name: fs::read_to_string(format!("/proc/{process}/comm"))
                .map_or_else(|_| "?".to_owned(), |name| name.trim().to_owned()),
        })
}

/// Sockets that listen on `port`, as links of open files name them.
fn listening(list: &str, port: u16) -> Vec<String> {
    const LISTENS: &str = "0A";
    let suffix = format!(":{port:04X}");
    let lines = list.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines
        .filter(|fields| fields.get(1).is_some_and(|local| local.ends_with(&suffix)))
        .filter(|fields| fields.get(3) == Some(&LISTENS))
        .filter_map(|fields| fields.get(9).map(|inode| format!("socket:[{inode}]")))
        .collect()
}

fn holds(process: u32, sockets: &[String]) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    files
        .flatten()
        .filter_map(|file| fs::read_link(file.path()).ok())
        .any(|link| link.to_str().is_some_and(|link| sockets.iter().any(|socket| socket == link)))
}

#[cfg(test)]
mod tests {
    use clearway::config::{Env, Listen};

    use super::super::finding::Level;
    use super::*;

    fn on(listen: &str) -> Config {
        let mut config = Config::built_in(&Env::default()).unwrap();
        config.server.listen = Some(listen.parse::<Listen>().unwrap());
        config
    }

    #[test]
    fn the_owner_of_a_taken_port_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let me = std::process::id();
        let taken = check(&on(&address.to_string()), None);
        assert_eq!(taken.level, Level::Fail);
        assert!(taken.found.contains(&format!("process {me}")), "{taken:?}");
        let own = check(&on(&address.to_string()), Some(Holder { process: Some(me) }));
        assert_eq!(own.level, Level::Warn, "{own:?}");
        drop(listener);
        assert_eq!(check(&on(&address.to_string()), None).level, Level::Ok);
    }

    #[test]
    fn nobody_listens_to_the_world_by_accident() {
        let mut config = on("0.0.0.0:0");
        assert_eq!(check(&config, None).level, Level::Fail);
        config.server.insecure = true;
        assert_eq!(check(&config, None).level, Level::Ok);
    }
}
