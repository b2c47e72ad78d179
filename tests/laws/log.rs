//! What is told of the journal, through a journalctl that replays what a test wrote.

use osapi::error::Kind;
use serde_json::{Value, json};

use crate::support::host::TestHost;

fn host(entries: &[Value]) -> TestHost {
    let host = TestHost::new();
    let lines: Vec<_> = entries.iter().map(Value::to_string).collect();
    host.write("/run/journal", &(lines.join("\n") + "\n"));
    host
}

fn entry(n: usize, message: &Value) -> Value {
    let time = (1_735_689_600_000_000 + n).to_string();
    json!({ "__REALTIME_TIMESTAMP": time, "MESSAGE": message, "PRIORITY": "6" })
}

fn messages(result: &Value) -> Vec<&str> {
    let entries = result["entries"].as_array().unwrap();
    entries.iter().map(|entry| entry["message"].as_str().unwrap()).collect()
}

#[test]
fn the_newest_entries_are_told_in_their_order() {
    let host = host(&[entry(2, &json!([104, 105])), entry(1, &json!("@ARGS"))]);
    let query = json!({ "lines": 7, "since": "1h", "priority": "err" });
    let result = host.run("job", "node.log.query", &query).unwrap();
    let messages = messages(&result);
    assert_eq!(messages[1], "hi");
    assert_eq!(result["entries"][0]["timestamp"], "2025-01-01T00:00:00.000001Z");
    assert_eq!(result.get("truncated"), None);
    let call = messages[0];
    for option in ["--output=json", "--reverse", "--lines=7", "--since=-3600s", "--priority=err"] {
        assert!(call.contains(option), "{call}");
    }
}

#[test]
fn what_is_too_much_for_an_answer_is_cut_at_its_old_end() {
    let long = json!("x".repeat(20_000));
    let host = host(&(0..100).rev().map(|n| entry(n, &long)).collect::<Vec<_>>());
    let result = host.run("job", "node.log.query", &json!({})).unwrap();
    assert_eq!(result["truncated"], true);
    let entries = result["entries"].as_array().unwrap();
    assert!((30..40).contains(&entries.len()), "{}", entries.len());
    assert_eq!(entries.last().unwrap()["timestamp"], "2025-01-01T00:00:00.000099Z");
}

#[test]
fn a_unit_is_asked_for_by_its_full_name() {
    let host = host(&[entry(1, &json!("@ARGS"))]);
    let result = host.run("job", "node.log.queryUnit", &json!({ "name": "ssh" })).unwrap();
    assert!(messages(&result)[0].contains("--unit=ssh.service"), "{result}");
}

#[test]
fn a_unit_that_nobody_knows_is_not_found() {
    let host = host(&[]);
    let ask = |job| host.run(job, "node.log.queryUnit", &json!({ "name": "ssh" }));
    assert_eq!(ask("a").unwrap()["entries"], json!([]), "nobody can tell whether it is there");
    std::fs::create_dir_all(host.path("/run/systemd/system")).unwrap();
    host.write("/run/unit-load", "not-found");
    assert_eq!(ask("b").unwrap_err().kind(), Kind::NotFound);
    host.write("/run/unit-load", "loaded");
    assert_eq!(ask("c").unwrap()["entries"], json!([]));
}

#[test]
fn sources_are_sorted_and_named_once() {
    let host = TestHost::new();
    host.write("/run/journal", "sshd\ncron\nsshd\n");
    let result = host.run("job", "node.log.sources", &json!({})).unwrap();
    assert_eq!(result["sources"], json!(["cron", "sshd"]));
}

#[test]
fn a_journal_that_cannot_be_read_is_an_error() {
    let host = TestHost::new();
    host.fail("journalctl", true);
    let error = host.run("job", "node.log.query", &json!({})).unwrap_err();
    assert_eq!(error.kind(), Kind::HostFailed);
    assert!(error.to_string().contains("was told to fail"), "{error}");
}
