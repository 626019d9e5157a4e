use std::fs;

use super::*;

fn ask(root: &Path, name: &str) -> Answer {
    let request = Request {
        name: name.to_owned(),
        source: Source::File {
            path: root.join(name).display().to_string(),
            root: root.display().to_string(),
        },
        max_bytes: 1000,
        max_text: 1000,
        known: None,
    };
    answer(&request, None)
}

fn kind(answer: Answer) -> TroubleKind {
    match answer {
        Answer::Failed { trouble } => trouble.kind,
        other => panic!("it was read: {other:?}"),
    }
}

#[test]
fn files_that_are_none() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = folder.path();
    fs::write(other.path().join("secret.md"), "secret").unwrap();
    fs::write(root.join("real.md"), "real").unwrap();
    std::os::unix::fs::symlink(other.path().join("secret.md"), root.join("link.md")).unwrap();
    std::os::unix::fs::symlink(root.join("real.md"), root.join("inside.md")).unwrap();
    fs::create_dir(root.join("folder.md")).unwrap();
    fs::write(root.join("large.md"), vec![b'x'; 1001]).unwrap();
    fs::write(root.join("empty.md"), " \n").unwrap();
    assert_eq!(kind(ask(root, "link.md")), TroubleKind::Outside);
    assert_eq!(kind(ask(root, "../secret.md")), TroubleKind::Missing);
    assert_eq!(kind(ask(root, "folder.md")), TroubleKind::NotAFile);
    assert_eq!(kind(ask(root, "large.md")), TroubleKind::TooLarge);
    assert_eq!(kind(ask(root, "empty.md")), TroubleKind::Empty);
    assert_eq!(kind(ask(root, "gone.md")), TroubleKind::Missing);
    assert!(matches!(ask(root, "inside.md"), Answer::Parsed { .. }));
    // A pipe without a writer does not hold anybody up.
    let pipe = root.join("pipe.md");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert_eq!(kind(ask(root, "pipe.md")), TroubleKind::NotAFile);
}

#[test]
fn what_is_known_is_not_parsed_again() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.md"), "text").unwrap();
    let Answer::Parsed { stamp, .. } = ask(folder.path(), "a.md") else { panic!("not read") };
    let request = Request {
        name: "a.md".to_owned(),
        source: Source::Inline { bytes: 4 },
        max_bytes: 10,
        max_text: 10,
        known: Some(stamp.hash),
    };
    assert!(matches!(answer(&request, Some(b"text".to_vec())), Answer::Unchanged { .. }));
    assert!(matches!(answer(&request, Some(b"texts".to_vec())), Answer::Parsed { .. }));
}

/// What a process may have before it is confined, as an allocator sets it aside.
const SET_ASIDE: usize = 1 << 30;
const CONFINED: &str = "CLEARWAY_TEST_CONFINED";

#[test]
fn a_reader_has_its_memory_whatever_was_set_aside_before() {
    let room = |bytes: usize| Vec::<u8>::new().try_reserve_exact(bytes).is_ok();
    if std::env::var_os(CONFINED).is_some() {
        // In a process of its own, because the limits stay.
        let aside: Vec<u8> = Vec::with_capacity(SET_ASIDE);
        confine(Limits::default()).unwrap();
        assert!(room(512 << 20), "what a document may need");
        assert!(!room(800 << 20), "more than a document may need");
        drop(aside);
        return;
    }
    let name = "reader::tests::a_reader_has_its_memory_whatever_was_set_aside_before";
    let confined = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(CONFINED, "1")
        .output()
        .unwrap();
    let said = [confined.stdout, confined.stderr].concat();
    assert!(confined.status.success(), "{}", String::from_utf8_lossy(&said));
}
