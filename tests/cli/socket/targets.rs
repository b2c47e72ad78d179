//! Which hosts a call is for.

use osapi::controller::WHICH;
use serde_json::json;

use super::{Controller, rows};

#[test]
fn where_there_are_several_hosts_a_change_has_to_say_which() {
    let controller = Controller::new(|asked, _| {
        if asked.line.contains("/_only/hostname") {
            let wrong = json!([{ "pointer": "/hostname", "message": "does not match" }]);
            let refused = json!({ "kind": "invalid_input", "detail": "no", "problems": wrong });
            return (400, refused);
        }
        if asked.line.contains("/_only/") {
            let wrong = json!([{ "pointer": WHICH, "message": "say which" }]);
            let detail = "there are 2 hosts; say with --target which is meant";
            let refused = json!({ "kind": "invalid_input", "detail": detail, "problems": wrong });
            return (400, refused);
        }
        let of = |host: &str, status: &str| json!({ "hostname": host, "status": status });
        (200, rows(&json!([of("a", "ok"), of("b", "failed")])))
    });
    let asked = |words: &[&str]| {
        let (before, exit) = (controller.asked().len(), controller.run(words));
        let lines = controller.asked().split_off(before).into_iter().map(|asked| asked.line);
        (exit, lines.collect::<Vec<_>>())
    };
    for words in [
        &["sysctl", "update", "k", "1"][..],
        &["command", "exec", "true"],
        &["log", "follow"],
        &["client", "node", "timezone", "update", "--timezone", "UTC"],
    ] {
        let (exit, lines) = asked(words);
        assert_eq!((exit, lines.len()), (2, 1), "{lines:?}");
    }
    let (exit, _) = asked(&["hostname", "update", "--name", "a..b"]);
    assert_eq!(exit, 10, "it is the new name that is wrong, and no target is missing");
    for (words, of) in [
        (&["timezone", "get"][..], "/api/node/_all/timezone "),
        (&["sysctl", "update", "k", "1", "--dry-run"], "/api/node/_all/sysctl/k?dry_run=true "),
        (&["sysctl", "update", "k", "1", "--target", "_any"], "/api/node/_any/sysctl/k "),
    ] {
        let (exit, lines) = asked(words);
        assert_eq!((exit, lines.len()), (16, 1), "one of two has failed");
        assert!(lines[0].contains(of), "{lines:?}");
    }
}

#[test]
fn the_error_of_the_only_host_is_the_error_of_a_read() {
    let failed = json!([{ "hostname": "a", "status": "failed", "kind": "not_found",
        "error": "there is no such key" }]);
    let controller = Controller::new(move |_, _| (200, rows(&failed)));
    assert_eq!(controller.run(&["sysctl", "get", "k"]), 13);
    assert_eq!(controller.run(&["sysctl", "get", "k", "--json"]), 13);
    assert_eq!(controller.run(&["sysctl", "get", "k", "--target", "_all"]), 13);
}
