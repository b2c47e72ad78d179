//! What is larger than a message of the broker may be.

use serde_json::json;

use super::support::Appliance;
use super::{ask, finished, lines, submit};

#[test]
fn a_report_that_is_larger_than_a_message_is_cut_and_told() {
    let host = Appliance::behind_a_relay("reports that are too large", "max_payload: 128KB");
    let Some(mut host) = host else { return };
    let dir = host.dir().display().to_string();
    let much = "yes '\"' | head -c 300000";
    host.command("much", &format!("#!/bin/sh\necho x >> {dir}/counted\n{much}\n"));
    let accounts: Vec<_> = (0..4_000)
        .map(|n| format!("user{n}:x:{n}:0:somebody who has a name:/home/user{n}:/bin/sh\n"))
        .collect();
    host.write("etc/passwd", &accounts.concat());
    host.start();
    let act = json!({ "command": "much", "args": [] });
    let act = submit(&host, "POST", "/api/node/_any/command/exec", &act);
    let job = finished(&host, &act);
    assert_eq!(job["status"], "completed", "{job}");
    let text = job.to_string();
    assert!(text.contains("\"truncated\":true") && text.len() > 4_000, "{} bytes", text.len());
    assert_eq!(lines(&host.dir().join("counted")), 1);
    // What only looks is told otherwise.
    let read = ask(&host, "GET", "/api/node/_any/user", None);
    assert_eq!(read.status, 200);
    assert_eq!(read.json()["results"][0]["truncated"], true);
    // Nothing is held up by it.
    assert_eq!(ask(&host, "GET", "/api/node/_any/load", None).status, 200);
}
