//! The command line as such; what commands do is tested through the binary.

use clap::{CommandFactory, Parser};
use clearway_sim::Fault;
use expect_test::expect;

use crate::cli::{Cli, Command, RunsCommand};

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

fn refused(args: &[&str]) -> String {
    let error = Cli::try_parse_from(std::iter::once(&"clearway").chain(args)).unwrap_err();
    assert_eq!(error.exit_code(), 2, "usage");
    error.to_string()
}

fn parsed(args: &[&str]) -> Command {
    Cli::try_parse_from(std::iter::once(&"clearway").chain(args)).unwrap().command
}

#[test]
fn flags_may_stand_anywhere() {
    let Command::Runs(args) = parsed(&["runs", "why", "0192", "--server", "http://x:1"]) else {
        panic!()
    };
    assert_eq!(args.client.server, "http://x:1");
    assert!(matches!(args.command, RunsCommand::Why(args) if args.id == "0192"));
    assert!(Cli::try_parse_from(["clearway", "runs", "ls", "--json", "-q"]).unwrap().json);
}

#[test]
fn servers_take_the_same_flags() {
    let flags =
        ["--config", "x.toml", "--listen", "[::1]:9", "--port", "7", "--data", "d", "--insecure"];
    for command in ["dev", "serve"] {
        let args = [&[command], &flags[..]].concat();
        let server = match parsed(&args) {
            Command::Dev(args) => args.server,
            Command::Serve(args) => args.server,
            other => panic!("{other:?}"),
        };
        assert_eq!(server.listen.unwrap().to_string(), "[::1]:9");
        assert_eq!((server.port, server.insecure), (Some(7), true));
    }
}

#[test]
fn what_is_wrong_is_said() {
    expect![[r#"
        error: invalid value '8123' for '--listen <HOST:PORT>': `8123` is not HOST:PORT, such as 127.0.0.1:8123

        For more information, try '--help'.
    "#]].assert_eq(&refused(&["serve", "--listen", "8123"]));
    expect![[r#"
        error: unrecognized subcommand 'rusn'

          tip: some similar subcommands exist: 'run', 'runs'

        Usage: clearway [OPTIONS] <COMMAND>

        For more information, try '--help'.
    "#]]
    .assert_eq(&refused(&["rusn"]));
    expect![[r#"
        error: invalid value 'cut_rts' for '--fault <NAME[:N]>': unknown fault: cut_rts, did you mean cut_rst?

        For more information, try '--help'.
    "#]].assert_eq(&refused(&["sim", "--fault", "cut_rts"]));
    expect![[r#"
        error: invalid value 'done' for '--status <STATUS>'
          [possible values: blocked, ready, running, waiting, success, error, timeout, cancelled]

        For more information, try '--help'.
    "#]]
    .assert_eq(&refused(&["runs", "ls", "--status", "done"]));
}

#[test]
fn help_names_every_fault() {
    let help = Cli::command().find_subcommand_mut("sim").unwrap().render_long_help().to_string();
    for fault in Fault::ALL {
        assert!(help.contains(fault.name()), "{fault}");
    }
}
