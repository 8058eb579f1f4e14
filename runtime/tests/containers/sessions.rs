//! Programs run in containers, and clients attached to their own.

use std::fs::File;
use std::io::Write;

use runtime::{ExecSpec, User};

use crate::common::{bench, exec, exec_spec, read_all};

#[test]
fn programs_run_inside_with_exit_code_and_streams() {
    let Some(bench) = bench("programs_run_inside_with_exit_code_and_streams") else {
        return;
    };
    bench.sandbox("p");
    let mut spec = bench.container("c", "sleep 1000");
    spec.env.push(("WORD".to_owned(), "hello".to_owned()));
    bench.start("p", &spec);
    assert_eq!(
        exec(&bench, "c", "echo $WORD; exit 5"),
        (5, "hello\n".to_owned())
    );

    let mut with_input = exec_spec("cat; echo err >&2; exit 3");
    with_input.stdin = true;
    let mut session = bench.runtime.exec("c", &with_input).unwrap();
    let mut stdin = File::from(session.stdin.take().unwrap());
    stdin.write_all(b"some input").unwrap();
    drop(stdin);
    assert_eq!(read_all(session.stdout.take()), "some input");
    assert_eq!(read_all(session.stderr.take()), "err\n");
    assert_eq!(session.wait().unwrap(), 3);
    assert_eq!(session.wait().unwrap(), 3);

    let missing = ExecSpec {
        argv: vec!["nothing".to_owned()],
        ..ExecSpec::default()
    };
    let error = bench.runtime.exec("c", &missing).unwrap_err().to_string();
    let expect = "exec in container c: exec nothing: executable file not found in $PATH";
    assert_eq!(error, expect);

    let user = User {
        uid: Some(33),
        ..User::default()
    };
    let spec = ExecSpec {
        user: Some(user),
        cwd: "/tmp".to_owned(),
        ..exec_spec("id; pwd")
    };
    let mut session = bench.runtime.exec("c", &spec).unwrap();
    let out = read_all(session.stdout.take());
    assert_eq!(
        out,
        "uid=33(web) gid=34(www) groups=34(www),40(extra)\n/tmp\n"
    );

    bench.runtime.kill_container("c").unwrap();
    let error = bench
        .runtime
        .exec("c", &exec_spec("true"))
        .unwrap_err()
        .to_string();
    assert_eq!(error, "exec in container c: it is ended");
}

#[test]
fn a_terminal_has_a_size() {
    let Some(bench) = bench("a_terminal_has_a_size") else {
        return;
    };
    bench.sandbox("p");
    bench.run("p", "c", "sleep 1000");
    let mut spec = exec_spec("read go; stty size; echo $TERM; exit 4");
    (spec.tty, spec.stdin) = (true, true);
    let mut session = bench.runtime.exec("c", &spec).unwrap();
    session.resize(100, 40).unwrap();
    let mut stdin = File::from(session.stdin.take().unwrap());
    stdin.write_all(b"\n").unwrap();
    assert_eq!(read_all(session.stdout.take()), "\r\n40 100\r\nxterm\r\n");
    assert!(session.stderr.is_none());
    assert_eq!(session.wait().unwrap(), 4);
}

#[test]
fn attached_clients_see_output_and_write_input() {
    let Some(bench) = bench("attached_clients_see_output_and_write_input") else {
        return;
    };
    bench.sandbox("p");
    let mut spec = bench.container("c", "while read line; do echo got $line; done; exit 6");
    (spec.stdin, spec.stdin_once) = (true, true);
    bench.runtime.create_container("p", &spec).unwrap();
    let mut session = bench.runtime.attach("c", true).unwrap();
    bench.runtime.start_container("c").unwrap();
    let mut stdin = File::from(session.stdin.take().unwrap());
    stdin.write_all(b"one\ntwo\n").unwrap();
    drop(stdin);
    assert_eq!(read_all(session.stdout.take()), "got one\ngot two\n");
    assert_eq!(session.wait().unwrap(), 6);
    assert_eq!(bench.log("c"), ["stdout: got one", "stdout: got two"]);

    let mut spec = bench.container("t", "read x; stty size; exit 2");
    (spec.stdin, spec.tty) = (true, true);
    bench.start("p", &spec);
    let mut session = bench.runtime.attach("t", true).unwrap();
    session.resize(90, 30).unwrap();
    let mut stdin = File::from(session.stdin.take().unwrap());
    stdin.write_all(b"\n").unwrap();
    assert!(read_all(session.stdout.take()).ends_with("30 90\r\n"));
    assert_eq!(session.wait().unwrap(), 2);
}
