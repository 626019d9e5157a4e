//! What only a file can do. What every store does is in [`crate::conformance`].

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clearway_core::channel::Op;
use clearway_core::{Status, TaskId};
use rusqlite::Connection;
use serde_json::json;

use super::*;
use crate::conformance::{
    APPLIED, ME, OTHER, Owner, START, append, frontier, new_run, open, run_id, scratch, thread_id,
};
use crate::{ManualClock, StepOutcome};

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(START))
}

async fn try_open(directory: &Path) -> Result<SqliteStore> {
    SqliteStore::open(directory, SqliteOptions::default(), clock()).await
}

async fn started(store: &SqliteStore, number: u128) -> Owner {
    match store.create_run(NewRun { claim: Some(ME), ..new_run(number, number) }).await.unwrap() {
        Admission::Claimed(claim) => Owner::new(*claim),
        other => panic!("not claimed: {other:?}"),
    }
}

/// The file as another program sees it.
fn look(directory: &Path) -> Connection {
    Connection::open(directory.join("clearway.db")).unwrap()
}

fn one<T: rusqlite::types::FromSql>(conn: &Connection, sql: &str) -> T {
    conn.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn an_empty_directory_becomes_a_store() {
    let directory = scratch();
    let path = directory.path().join("deep/down");
    let store = try_open(&path).await.unwrap();
    let conn = look(&path);
    assert_eq!(one::<String>(&conn, "PRAGMA journal_mode"), "wal");
    assert_eq!(one::<i64>(&conn, "PRAGMA page_size"), 4096);
    assert_eq!(one::<i64>(&conn, "PRAGMA auto_vacuum"), 2, "incremental");
    assert_eq!(one::<i64>(&conn, "PRAGMA user_version"), 7);
    drop(conn);
    store.close(ME).await.unwrap();
    let left: Vec<_> =
        std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name != "clearway.db-wal"), "one file is left: {left:?}");
    // And is found again.
    try_open(&path).await.unwrap().close(ME).await.unwrap();
}

#[tokio::test]
async fn a_second_server_is_kept_out() {
    let directory = scratch();
    let store = try_open(directory.path()).await.unwrap();
    let error = try_open(directory.path()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Locked);
    let expected = format!(
        "the data directory {} is in use by another Clearway server (process {}): stop that one, \
         or choose another directory",
        directory.path().display(),
        std::process::id()
    );
    assert_eq!(error.message, expected);
    store.close(ME).await.unwrap();
    try_open(directory.path()).await.unwrap();
}

#[tokio::test]
async fn a_file_in_the_way() {
    let directory = scratch();
    let path = directory.path().join("data");
    std::fs::write(&path, "not a directory").unwrap();
    let error = try_open(&path).await.unwrap_err();
    assert!(error.message.contains("no directory"), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_database() {
    let directory = scratch();
    std::fs::write(directory.path().join("clearway.db"), "hello ".repeat(1000)).unwrap();
    let error = try_open(directory.path()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    assert!(error.message.contains("clearway.db is not a database or is damaged"), "{error}");
    let kept = std::fs::read_to_string(directory.path().join("clearway.db")).unwrap();
    assert_eq!(kept, "hello ".repeat(1000), "it is not touched");
}

#[tokio::test]
async fn the_database_of_another_program() {
    let directory = scratch();
    look(directory.path()).execute_batch("CREATE TABLE theirs (x)").unwrap();
    let error = try_open(directory.path()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    assert!(error.message.contains("another program"), "{error}");
    assert_eq!(one::<String>(&look(directory.path()), "PRAGMA journal_mode"), "delete");
}

#[tokio::test]
async fn a_newer_file_is_refused() {
    let directory = scratch();
    try_open(directory.path()).await.unwrap().close(ME).await.unwrap();
    look(directory.path()).execute_batch("PRAGMA user_version = 99").unwrap();
    let error = try_open(directory.path()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NewerSchema);
    assert!(error.message.contains("its schema is 99"), "{error}");
    assert_eq!(one::<i64>(&look(directory.path()), "PRAGMA user_version"), 99);
}

#[tokio::test]
async fn a_damaged_file_says_so() {
    let directory = scratch();
    let store = try_open(directory.path()).await.unwrap();
    for number in 1..200 {
        started(&store, number).await;
    }
    store.close(ME).await.unwrap();
    // The header stays, so that only reading finds out.
    let path = directory.path().join("clearway.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = 8192 * 2;
    for byte in &mut bytes[middle..] {
        *byte ^= 0x5a;
    }
    std::fs::write(&path, bytes).unwrap();
    let error = match try_open(directory.path()).await {
        Err(error) => error,
        Ok(store) => store.run(run_id(1)).await.unwrap_err(),
    };
    assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
    assert!(!error.is_transient());
}

/// Runs `test` on an OS thread without root's exemption from permissions.
fn as_nobody(test: impl FnOnce() + Send + 'static) {
    #[expect(clippy::disallowed_methods, reason = "a thread's identity cannot be borrowed")]
    let thread = std::thread::spawn(move || {
        if rustix::process::geteuid().is_root() {
            let nobody = rustix::process::Uid::from_raw(65_534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        }
        test();
    });
    thread.join().unwrap();
}

#[test]
fn a_directory_that_cannot_be_written() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    // Reachable for everybody, writable for nobody.
    let path = directory.path().to_owned();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o555)).unwrap();
    as_nobody({
        let path = path.clone();
        move || {
            assert!(std::fs::write(path.join("probe"), "").is_err(), "permissions must hold here");
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            for directory in [path.clone(), path.join("new")] {
                let error = runtime.block_on(try_open(&directory)).unwrap_err();
                assert_eq!(error.kind, ErrorKind::ReadOnly, "{error}");
                assert!(error.message.contains(path.to_str().unwrap()), "{error}");
            }
        }
    });
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn new_files_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let directory = scratch();
    let path = directory.path().join("deep/down");
    let store = try_open(&path).await.unwrap();
    started(&store, 1).await;
    assert_eq!(mode(&path), 0o700);
    let files = ["clearway.db", "clearway.lock", "clearway.db-wal", "clearway.db-shm"];
    for file in files {
        assert_eq!(mode(&path.join(file)), 0o600, "{file}");
    }
    store.close(ME).await.unwrap();
    // What is there already stays as its owner made it.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    for file in &files[..2] {
        let readable = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(path.join(file), readable).unwrap();
    }
    let store = try_open(&path).await.unwrap();
    assert_eq!(mode(&path), 0o755);
    for file in &files[..2] {
        assert_eq!(mode(&path.join(file)), 0o644, "{file}");
    }
    store.close(ME).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_at_the_start_says_what_to_do() {
    let directory = scratch();
    let store = try_open(directory.path()).await.unwrap();
    for number in 0..400 {
        started(&store, number).await;
    }
    // No page can be added, and the runs of a dead server have to be taken up.
    store.limit_size(Some(0)).await.unwrap();
    let joined = store.join(OTHER).await;
    let error = joined.unwrap_err();
    assert_eq!(error.kind, ErrorKind::DiskFull, "{error}");
    assert!(error.message.contains("free some, then start again"), "{error}");
    assert!(!error.message.contains("by itself"), "{error}");
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_heals_by_itself() {
    let directory = scratch();
    let store = try_open(directory.path()).await.unwrap();
    let mut owner = started(&store, 1).await;
    let size = look(directory.path())
        .query_row("SELECT page_count * 8192 FROM pragma_page_count", [], |row| {
            row.get::<_, i64>(0)
        })
        .unwrap();
    store.limit_size(Some(size as u64 + 8192 * 40)).await.unwrap();

    // Supersteps of incompressible text until nothing fits any more.
    let noise = |number: u64| -> String {
        let words = (0..700).map(|word| TaskId::of(run_id(1), word, "x", number as u32));
        words.map(|word| word.to_string()).collect()
    };
    let mut stored = 0;
    let error = loop {
        let before = owner.clone();
        let step = owner.step(&[("log", append(&noise(stored)))]);
        match store.commit(step).await {
            Ok(ack) => assert_eq!(ack, APPLIED),
            Err(error) => {
                owner = before;
                break error;
            }
        }
        stored += 1;
        assert!(stored < 1000, "the limit holds");
    };
    assert_eq!(error.kind, ErrorKind::DiskFull, "{error}");
    assert!(error.certainly_aborted && error.is_transient());
    assert!(error.message.contains("free some"), "{error}");
    assert_eq!(error.code(), clearway_core::Code::StoreUnavailable);
    let info = store.info().await.unwrap();
    assert_eq!(info.writable, Err(error.message.clone()));

    // Reading goes on, and all that was acknowledged is there.
    assert_eq!(store.run(owner.run).await.unwrap().unwrap().commits, stored);
    let state = store.state(thread_id(1), None).await.unwrap().unwrap().state;
    assert_eq!(state.list("log").len() as u64, stored);
    // One that is too large does not take along those that fit.
    let large = owner.clone().step(&[("log", append(&noise(999)))]);
    let output = owner.clone().tokens(1);
    let (large, small) = tokio::join!(store.commit(large), store.append(vec![output]));
    assert_eq!(large.unwrap_err().kind, ErrorKind::DiskFull);
    assert_eq!(small.unwrap(), [Appended::Stored { end_seq: owner.seq + 1 }]);

    store.limit_size(None).await.unwrap();
    owner.seq += 1;
    assert_eq!(
        store.commit(owner.step(&[("log", append(&noise(stored)))])).await.unwrap(),
        APPLIED
    );
    assert_eq!(store.info().await.unwrap().writable, Ok(()));
    assert_eq!(store.run(owner.run).await.unwrap().unwrap().commits, stored + 1);
    assert_eq!(one::<String>(&look(directory.path()), "PRAGMA integrity_check"), "ok");
}

#[tokio::test]
async fn a_program_that_holds_the_file_is_named_as_the_reason() {
    let directory = scratch();
    let store = try_open(directory.path()).await.unwrap();
    let other = look(directory.path());
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = store.create_run(new_run(1, 1)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Locked);
    assert!(error.certainly_aborted && error.is_transient());
    assert!(error.message.contains("locked by another program"), "{error}");
    other.execute_batch("ROLLBACK").unwrap();
    assert!(store.create_run(new_run(1, 1)).await.is_ok());
    assert_eq!(store.info().await.unwrap().writable, Ok(()));
}

#[tokio::test]
async fn everything_acknowledged_survives_a_kill() {
    let clock = clock();
    let directory = scratch();
    let store = Arc::new(open(directory.path(), &clock).await);
    let mut owners = Vec::new();
    for number in 1..=20 {
        owners.push(started(&store, number).await);
    }
    for round in 0..5 {
        for owner in &mut owners {
            assert_eq!(store.commit(owner.step(&[("log", append("a"))])).await.unwrap(), APPLIED);
            store.append(vec![owner.tokens(round + 1)]).await.unwrap();
        }
        // At any moment the files are what a killed process would leave.
        let copy = scratch();
        for name in ["clearway.db", "clearway.db-wal"] {
            std::fs::copy(directory.path().join(name), copy.path().join(name)).unwrap();
        }
        let restarted = open(copy.path(), &clock).await;
        assert_eq!(restarted.join(OTHER).await.unwrap().resumed, 20);
        for owner in &owners {
            let record = restarted.run(owner.run).await.unwrap().unwrap();
            assert_eq!((record.commits, record.next_seq), (owner.number, owner.seq));
            let page = restarted.read_log(owner.run, 0, usize::MAX).await.unwrap();
            assert_eq!(page.events.len() as u64, owner.seq);
            let state = restarted.state(record.thread, None).await.unwrap().unwrap().state;
            assert_eq!(state, owner.state);
        }
        restarted.close(OTHER).await.unwrap();
    }
}

#[tokio::test]
async fn one_bad_operation_does_not_hurt_its_batch() {
    let directory = scratch();
    let store = Arc::new(try_open(directory.path()).await.unwrap());
    let mut owners = Vec::new();
    for number in 1..=50 {
        owners.push(started(&store, number).await);
    }
    // One that repeats, one that is wrong and one that is stale among those that are right.
    let mut commits: Vec<StepCommit> =
        owners.iter_mut().map(|owner| owner.step(&[("log", append("a"))])).collect();
    commits.push(commits[0].clone());
    let gap = crate::conformance::facts(40, 1, 1);
    commits.push(StepCommit { events: Some(gap), ..owners[1].clone().step(&[]) });
    let mut wrong = owners[2].clone().step(&[("log", append("b"))]);
    wrong.checkpoints[0].1.deltas[0].previous = 7;
    commits.push(wrong);
    commits.push(StepCommit { fence: 9, events: None, ..owners[3].clone().step(&[]) });
    let mut joined = tokio::task::JoinSet::new();
    let mut created = tokio::task::JoinSet::new();
    for (at, commit) in commits.into_iter().enumerate() {
        let (commits, creates) = (store.clone(), store.clone());
        joined.spawn(async move { (at, commits.commit(commit).await) });
        let number = 100 + at as u128;
        created.spawn(async move { creates.create_run(new_run(number, number)).await });
    }
    let created = created.join_all().await;
    assert!(created.iter().all(Result::is_ok));
    let ready: u32 = store.pool_counts().iter().map(|count| count.ready).sum();
    assert_eq!(ready as usize, created.len());
    let full = store.create_run(NewRun { queue_limit: 0, ..new_run(999, 999) }).await.unwrap();
    let counted = matches!(full, Admission::QueueFull { queued } if queued == ready);
    assert!(counted, "done twice, counted once: {full:?}");
    let mut answers = joined.join_all().await;
    answers.sort_by_key(|(at, _)| *at);
    for (at, answer) in answers {
        match at {
            51 | 52 => assert_eq!(answer.unwrap_err().kind, ErrorKind::Conflict),
            53 => assert_eq!(answer.unwrap(), CommitAck::Fenced),
            _ => assert_eq!(answer.unwrap(), APPLIED, "{at}"),
        }
    }
    for owner in &owners {
        let record = store.run(owner.run).await.unwrap().unwrap();
        assert_eq!((record.commits, record.next_seq), (1, 2), "{:?}", owner.run);
    }
    assert_eq!(
        store.info().await.unwrap().writable,
        Ok(()),
        "callers' mistakes are not the disk's"
    );
}

#[tokio::test]
async fn a_full_queue_is_busy() {
    let directory = scratch();
    let options = SqliteOptions { queue: 2, ..SqliteOptions::default() };
    let store = Arc::new(SqliteStore::open(directory.path(), options, clock()).await.unwrap());
    // Nobody serves the queue until this task waits.
    let mut joined = tokio::task::JoinSet::new();
    for number in 1..=10 {
        let store = store.clone();
        joined.spawn(async move { store.create_run(new_run(number, number)).await });
    }
    let answers = joined.join_all().await;
    let busy: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!(!busy.is_empty() && busy.len() < 10);
    for error in busy {
        assert!(error.kind == ErrorKind::Busy && error.is_transient() && error.certainly_aborted);
    }
}

#[tokio::test]
async fn a_caller_that_leaves_costs_nothing() {
    let directory = scratch();
    let store = try_open(directory.path()).await.unwrap();
    for number in 1..=20 {
        let create = store.create_run(new_run(number, number));
        // Queued and dropped: it may or may not happen, and nothing is stuck.
        let gone = tokio::time::timeout(Duration::ZERO, create).await;
        assert!(gone.is_err() || gone.unwrap().is_ok());
    }
    assert!(store.create_run(new_run(99, 99)).await.is_ok());
    let counted: u32 = store.pool_counts().iter().map(|count| count.ready).sum();
    let rows = one::<u32>(&look(directory.path()), "SELECT count(*) FROM runs WHERE status = 1");
    assert_eq!(counted, rows);
}

#[tokio::test(start_paused = true)]
async fn paused_time_does_not_disturb_the_store() {
    let directory = scratch();
    let store = try_open(directory.path()).await.unwrap();
    let patience = Duration::from_secs(1);
    for number in 1..=20 {
        let mut owner = started(&store, number).await;
        let commit = store.commit(owner.end(Status::Success));
        assert_eq!(tokio::time::timeout(patience, commit).await.unwrap().unwrap(), APPLIED);
        tokio::time::timeout(patience, store.run(owner.run)).await.unwrap().unwrap();
    }
    tokio::time::timeout(patience, store.close(ME)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_conversation_grows_linearly() {
    let directory = scratch();
    let store = try_open(directory.path()).await.unwrap();
    let mut owner = started(&store, 1).await;
    let text = |turn: i64, side: &str| -> String {
        let words = (0..28).map(|word| TaskId::of(run_id(1), turn, side, word));
        words.map(|word| word.to_string()).collect::<String>()[..1000].to_owned()
    };
    let mut sizes = Vec::new();
    for turn in 0..400 {
        for side in ["human", "ai"] {
            let message = json!({"id": format!("{turn}{side}"), "content": text(turn, side)});
            let step = owner.step(&[("messages", Op::Merge(vec![message]))]);
            assert_eq!(store.commit(step).await.unwrap(), APPLIED);
        }
        if turn == 199 || turn == 399 {
            look(directory.path()).execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
            let file = std::fs::metadata(directory.path().join("clearway.db")).unwrap();
            sizes.push(file.len());
        }
    }
    assert!(sizes[1] <= 3_000_000, "{sizes:?}");
    assert!(sizes[1] as f64 / sizes[0] as f64 <= 2.1, "{sizes:?}");
    let found = store.state(thread_id(1), None).await.unwrap().unwrap();
    assert_eq!(found.state, owner.state);
    let conn = look(directory.path());
    assert_eq!(one::<i64>(&conn, "SELECT count(*) FROM snapshots"), 1, "only the newest");
    let behind = "SELECT max(deltas.total) - max(snapshots.total) FROM deltas, snapshots";
    let behind = one::<i64>(&conn, behind);
    assert!(behind > 2 * 64 * 1024, "snapshots get rarer as they get larger: {behind}");
}

#[tokio::test]
async fn a_large_value_is_stored_once_per_tenant() {
    let directory = scratch();
    let store = try_open(directory.path()).await.unwrap();
    let large = json!("the same again and again ".repeat(2000));
    for number in 1..=4 {
        let tenant = if number == 4 { "other".to_owned() } else { "acme".to_owned() };
        let new = NewRun { tenant, claim: Some(ME), ..new_run(number, number) };
        let Admission::Claimed(claim) = store.create_run(new).await.unwrap() else {
            panic!("not claimed")
        };
        let mut owner = Owner::new(*claim);
        store.commit(owner.step(&[("file", Op::Assign(large.clone()))])).await.unwrap();
    }
    let conn = look(directory.path());
    assert_eq!(one::<i64>(&conn, "SELECT count(*) FROM blobs"), 2);
    assert!(one::<i64>(&conn, "SELECT max(length(data)) FROM blobs") < 1000, "compressed");
    assert_eq!(one::<i64>(&conn, "SELECT count(*) FROM deltas WHERE data IS NULL"), 4);
}

#[tokio::test]
async fn long_rows_are_compressed() {
    let directory = scratch();
    let store = try_open(directory.path()).await.unwrap();
    let mut owner = started(&store, 1).await;
    let text = json!("some sentence that somebody might have said ".repeat(25));
    for op in [Op::Assign(json!([])), Op::Append(vec![text.clone()]), Op::Append(vec![text])] {
        store.commit(owner.step(&[("log", op)])).await.unwrap();
    }
    let state = store.state(thread_id(1), None).await.unwrap().unwrap();
    assert_eq!(state.state.get("log").unwrap().as_array().map(Vec::len), Some(2));
    let conn = look(directory.path());
    assert!(one::<i64>(&conn, "SELECT max(length(data)) FROM deltas") < 200);
}

#[tokio::test]
async fn writing_a_run_makes_no_temporary_tables() {
    let directory = scratch();
    let _store = try_open(directory.path()).await.unwrap();
    let conn = look(directory.path());
    let update = "UPDATE runs SET status = 4, ended_at = 1, deadline_at = 2, instance = NULL, \
                  park = NULL, wake_at = NULL, cancel = 1 WHERE n = 1";
    let mut steps = conn.prepare(&format!("EXPLAIN {update}")).unwrap();
    let steps = steps.query_map([], |row| row.get::<_, String>(1)).unwrap();
    assert!(steps.map(Result::unwrap).all(|step| step != "OpenEphemeral"));
}

#[tokio::test]
async fn assignments_need_no_snapshots() {
    let directory = scratch();
    let store = try_open(directory.path()).await.unwrap();
    let mut owner = started(&store, 1).await;
    let text = "word ".repeat(4000);
    let snapshots = || one::<i64>(&look(directory.path()), "SELECT count(*) FROM snapshots");
    for number in 0..10 {
        let value = json!([number, text]);
        store.commit(owner.step(&[("log", Op::Assign(value))])).await.unwrap();
    }
    store.commit(owner.step(&[("log", append("a"))])).await.unwrap();
    assert_eq!(snapshots(), 0, "an assignment is one by itself");
    for _ in 0..4 {
        store.commit(owner.step(&[("log", append(&text))])).await.unwrap();
    }
    store.commit(owner.step(&[("other", append("a"))])).await.unwrap();
    assert_eq!(snapshots(), 1);
    store.commit(owner.step(&[("log", Op::Assign(json!([])))])).await.unwrap();
    assert_eq!(snapshots(), 0, "nobody would read it");
}

#[tokio::test]
async fn losing_snapshots_loses_nothing() {
    let directory = scratch();
    let store = try_open(directory.path()).await.unwrap();
    let mut owner = started(&store, 1).await;
    for number in 0..60 {
        let text = format!("{number} {}", "word ".repeat(1000));
        store.commit(owner.step(&[("log", append(&text))])).await.unwrap();
    }
    let conn = look(directory.path());
    assert_eq!(conn.execute("DELETE FROM snapshots", []).unwrap(), 1);
    let found = store.state(thread_id(1), None).await.unwrap().unwrap();
    assert_eq!(found.state, owner.state);
}

#[tokio::test]
async fn what_the_hot_statements_look_at() {
    let directory = scratch();
    let store = try_open(directory.path()).await.unwrap();
    started(&store, 1).await;
    let conn = look(directory.path());
    let plan = |sql: &str| -> Vec<String> {
        let mut statement = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let nothing = vec![rusqlite::types::Null; statement.parameter_count()];
        let rows = statement
            .query_map(rusqlite::params_from_iter(nothing), |row| row.get::<_, String>(3))
            .unwrap();
        rows.map(|row| row.unwrap()).collect()
    };
    for sql in [
        claim::NEXT_TENANT,
        claim::OLDEST,
        commit::HOT,
        upkeep::SEGMENTS,
        rows::select_run!("WHERE r.id = ?1"),
        rows::select_run!(
            "WHERE r.id < ?1 AND r.status IN (1, 2) AND r.status < 4 ORDER BY r.id DESC"
        ),
        rows::select_run!("WHERE r.status IN (5) AND r.status > 4 ORDER BY r.id DESC"),
        rows::select_run!("WHERE r.thread = ?1 ORDER BY r.id DESC"),
        rows::select_run!("WHERE r.parent = (SELECT n FROM runs WHERE id = ?1) ORDER BY r.id DESC"),
        claim::HEAD,
        claim::BASE,
        ends::CHILDREN,
        journal::READ,
        journal::COUNT,
        journal::TASKS,
        upkeep::DUE,
        upkeep::NEXT_WAKE,
        upkeep::BEREFT,
        &[rows::SELECT_THREADS, " WHERE t.id = ?1"].concat(),
    ] {
        let plan = plan(sql);
        assert!(!plan.iter().any(|line| line.contains("TEMP B-TREE")), "{sql}\n{plan:#?}");
        for line in &plan {
            // An index in its own order may be walked where the statement stops it.
            let walks = line.starts_with("SCAN") && !line.contains(" INDEX runs_");
            assert!(!walks || line == "SCAN CONSTANT ROW", "{sql}\n{plan:#?}");
        }
    }
    let claims = [claim::NEXT_TENANT, claim::OLDEST].map(plan);
    for plan in claims {
        assert!(plan[0].starts_with("SEARCH runs USING COVERING INDEX runs_ready"), "{plan:?}");
    }
}

#[tokio::test]
async fn the_database_itself_refuses_a_second_active_run() {
    let directory = scratch();
    let store = try_open(directory.path()).await.unwrap();
    started(&store, 1).await;
    store.create_run(new_run(2, 1)).await.unwrap();
    let conn = look(directory.path());
    let error = conn.execute("UPDATE runs SET status = 1 WHERE status = 0", []).unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::ConstraintViolation));
}

#[tokio::test]
async fn commits_wait_for_the_disk_and_output_does_not() {
    let directory = scratch();
    let path = directory.path().join("clearway.db");
    let lock = lock_directory(directory.path()).unwrap();
    let mut writer = Writer::open(path, lock, Policy::default(), clock(), None).unwrap();
    assert!(writer.waits_for_disk());
    let mut output = writer::tickets([commit::Append(Vec::new())]);
    writer.serve_batch(&mut output);
    assert!(!writer.waits_for_disk(), "volatile output alone does not wait");
    let mut both = writer::tickets([commit::Append(Vec::new())]);
    both.extend(writer::tickets([upkeep::Join(ME)]));
    writer.serve_batch(&mut both);
    assert!(writer.waits_for_disk(), "one durable operation makes its batch wait");
}

#[tokio::test]
async fn a_panic_in_one_operation_does_not_end_writing() {
    struct Bug;
    impl writer::Operation for Bug {
        type Answer = ();
        const DURABLE: bool = true;
        fn apply(&self, tx: &mut writer::Tx<'_>) -> Result<(), fail::Fail> {
            tx.run("DELETE FROM runs", [])?;
            panic!("a bug");
        }
    }
    let directory = scratch();
    let store = try_open(directory.path()).await.unwrap();
    let mut owner = started(&store, 1).await;
    let error = store.queue.write(Bug).await.unwrap_err();
    assert!(!error.certainly_aborted);
    assert_eq!(store.commit(owner.commit(StepOutcome::Continue)).await.unwrap(), APPLIED);
    assert_eq!(store.pool_counts()[0].running, 1);
}

/// A file of the version before graphs, with a run between two supersteps.
#[tokio::test]
async fn a_run_of_an_older_file_goes_on() {
    let directory = scratch();
    let path = directory.path().join("clearway.db");
    let conn = Connection::open(&path).unwrap();
    for migration in &schema::MIGRATIONS[..2] {
        conn.execute_batch(migration).unwrap();
    }
    conn.execute_batch(
        "PRAGMA application_id = 0x434c5759;
         PRAGMA user_version = 2;
         INSERT INTO threads (n, id, tenant, metadata, created_at, updated_at, active, ord,
             generation, head, version)
         VALUES (1, x'00000000000000000000000000007001', 'acme', '{}', 0, 0, 2, 2, 0, 2, 2);
         INSERT INTO checkpoints (n, id, thread, parent, run, step, source, next, versions, at)
         VALUES (1, x'00000000000000000000000000000001', 1, NULL, 1, 0, 'loop', '[]',
                 '{\"log\":1}', 0),
                (2, x'00000000000000000000000000000002', 1, 1, 2, 0, 'loop', '[\"more\"]',
                 '{\"log\":2}', 0);
         INSERT INTO deltas (thread, channel, version, previous, op, total, data)
         VALUES (1, 'log', 1, 0, 1, 5, CAST('[\"a\"]' AS BLOB)),
                (1, 'log', 2, 1, 1, 10, CAST('[\"b\"]' AS BLOB));",
    )
    .unwrap();
    for (n, status) in [(1, 4), (2, 2)] {
        conn.execute(
            "INSERT INTO runs (n, id, thread, thread_ord, generation, status, priority, front, idle,
                 fence, attempt, fruitless, step, commits, next_seq, committed_seq, checkpoint,
                 instance, created_at, ready_at, worked_ms, input_tokens, output_tokens,
                 rebilled_tokens, calls, tenant, agent, pool, door, next, spent)
             VALUES (?1, ?2, 1, ?1, 0, ?3, 3, 0, 0, 1, 1, 0, 0, 1, 1, 1, ?1,
                 x'000000000000000000000000000000b1', 0, 0, 0, 0, 0, 0, 0, 'acme', 'agent', 'chat', 'runs', '[]', '{}')",
            (n as i64, run_id(n).0.as_bytes(), status),
        )
        .unwrap();
        let input = "INSERT INTO run_inputs (run, metadata, input) VALUES (?1, '{}', x'007b7d')";
        conn.execute(input, [n as i64]).unwrap();
    }
    drop(conn);

    let store = open(directory.path(), &clock()).await;
    store.join(ME).await.unwrap();
    let request = ClaimRequest {
        me: ME,
        slots: vec![("chat".to_owned(), 1)],
        ageing: Duration::from_secs(30),
    };
    let claim = store.claim(request).await.unwrap().remove(0);
    assert!(claim.taken_in);
    assert_eq!(claim.frontier, frontier(run_id(2), 1, &["more"]), "as it would be planned now");
    store.cancel_run(run_id(2), "ann", CancelMode::Rollback).await.unwrap();
    let mut owner = Owner::new(claim);
    store.commit(owner.end(Status::Cancelled)).await.unwrap();
    let head = store.state(thread_id(1), None).await.unwrap().unwrap();
    assert_eq!((head.run, head.state.get("log")), (Some(run_id(1)), Some(json!(["a"]))));
}
