//! What a person sees.

use osapi::cli::{Page, document, page};
use osapi::ops::{self, Row};
use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr;

fn row(id: &str) -> &'static Row {
    ops::find(id).unwrap_or_else(|| panic!("no row {id}"))
}

fn shown(id: &str, reply: &Value, width: usize) -> String {
    let text = page(row(id), reply, Page { width: Some(width), ..Page::default() });
    assert!(!text.contains('\x1b'), "{text}");
    text
}

fn processes() -> Value {
    let command = "/usr/lib/postgresql/16/bin/postgres -D /var/lib/postgresql/16/main -c \
                   config_file=/etc/postgresql/16/main/postgresql.conf";
    json!({
        "job_id": "0198f0a0-0000-7000-8000-000000000001",
        "results": [{
            "hostname": "web-01.example.org",
            "status": "ok",
            "changed": false,
            "processes": [
                { "pid": 1, "name": "systemd", "user": "root", "state": "sleeping",
                  "cpu_percent": 0.25, "command": "/sbin/init" },
                { "pid": 4242, "name": "postgres", "user": "postgres", "state": "sleeping",
                  "cpu_percent": 12.0, "command": command },
            ],
        }],
    })
}

#[test]
fn tables_fit_80_columns() {
    let expected = "
  Job ID: 0198f0a0-0000-7000-8000-000000000001

  HOSTNAME       STATUS  PID   NAME      USER      STATE     CPU%  COMMAND
  web-01.examp…  ok      1     systemd   root      sleeping  0.25  /sbin/init
  web-01.examp…  ok      4242  postgres  postgres  sleeping  12    /usr/lib/pos…

  1 host: 1 ok
";
    assert_eq!(shown("node.process.list", &processes(), 80), expected);
}

#[test]
fn tables_use_120_columns() {
    let expected = "
  Job ID: 0198f0a0-0000-7000-8000-000000000001

  HOSTNAME            STATUS  PID   NAME      USER      STATE     CPU%  COMMAND
  web-01.example.org  ok      1     systemd   root      sleeping  0.25  /sbin/init
  web-01.example.org  ok      4242  postgres  postgres  sleeping  12    /usr/lib/postgresql/16/bin/postgres -D /var/lib…

  1 host: 1 ok
";
    assert_eq!(shown("node.process.list", &processes(), 120), expected);
}

#[test]
fn two_hosts_of_one_name_are_two_hosts() {
    let on = |machine_id: &str, status: &str| {
        json!({ "hostname": "web", "status": status, "changed": false, "machine_id": machine_id,
                "error": if status == "failed" { "no" } else { "" } })
    };
    let reply = json!({ "results": [on("m1", "ok"), on("m2", "failed")] });
    let text = shown("node.timezone.update", &reply, 80);
    for part in ["  web (m1)  ok", "  web (m2)  err", "2 hosts: 1 ok, 1 failed", "web (m2): no"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_host_that_has_nothing_to_list_counts_too() {
    let gone = json!({ "hostname": "db", "status": "failed", "changed": false, "error": "away" });
    let summary = json!({ "hosts": 3, "ok": 2, "skipped": 0, "failed": 1, "waiting": 0 });
    let text = shown("node.process.list", &json!({ "results": [gone], "summary": summary }), 80);
    assert!(text.contains("3 hosts: 2 ok, 1 failed"), "{text}");
}

#[test]
fn no_line_of_a_table_is_wider_than_the_terminal() {
    for width in [80, 120] {
        for line in shown("node.process.list", &processes(), width).lines() {
            assert!(line.width() <= width, "{line}");
        }
    }
}

#[test]
fn sizes_and_shares_are_read_at_a_glance() {
    let reply = json!({ "job_id": "j", "results": [{
        "hostname": "a", "status": "ok", "changed": false,
        "disks": [
            { "name": "/", "total": 53_687_091_200_u64, "used": 13_421_772_800_u64, "free": 1 },
            { "name": "/boot", "total": 1_073_741_824, "used": 0, "free": 1 },
        ],
    }]});
    let expected = "
  Job ID: j

  HOSTNAME  STATUS  MOUNT  TOTAL    USED     USAGE
  a         ok      /      50.0 GB  12.5 GB  25%
  a         ok      /boot  1.0 GB   0 B      0%

  1 host: 1 ok
";
    assert_eq!(shown("node.disk.get", &reply, 80), expected);
}

#[test]
fn hosts_that_failed_or_were_skipped_say_why() {
    let reply = json!({ "job_id": "j", "results": [
        { "hostname": "a", "status": "ok", "changed": true, "key": "vm.swappiness" },
        { "hostname": "b", "status": "skipped", "changed": false, "error": "no such kernel" },
        { "hostname": "c", "status": "failed", "changed": false, "error": "read-only\nsystem" },
    ]});
    let expected = "
  Job ID: j

  HOSTNAME  STATUS   KEY
  a         changed  vm.swappiness
  b         skip
  c         err

  3 hosts: 1 changed, 1 skipped, 1 failed

  Details:
    b: no such kernel
    c: read-only system
";
    assert_eq!(shown("node.sysctl.update", &reply, 80), expected);
}

#[test]
fn a_dry_run_shows_what_would_change_and_how_to_do_just_that() {
    let plan = "f".repeat(64);
    let reply = json!({ "job_id": "j", "results": [{
        "hostname": "a", "status": "ok", "changed": true, "dry_run": true, "plan": plan,
        "changes": [
            {
                "cell": { "node": "/etc/motd" },
                "from": { "file": { "content": "aa", "mode": "0644", "owner": "root:root" } },
                "to": { "file": { "content": "bb", "mode": "0600", "owner": "root:root" } },
                "diff": "--- before\n+++ after\n@@ -1 +1 @@\n-old\n+new\u{1b}[2J\n",
            },
            {
                "cell": { "sysctl": "vm.swappiness" },
                "from": { "text": "60" }, "to": { "text": "10" }, "diff": null,
            },
        ],
        "residue": ["an empty directory"],
    }]});
    let expected = format!(
        "
  Job ID: j

  HOSTNAME  STATUS
  a         changed

  1 host: 1 changed

  Would change:
    /etc/motd: file 0644 root:root -> file 0600 root:root
      @@ -1 +1 @@
      -old
      +new\\u{{1b}}[2J
    sysctl vm.swappiness: \"60\" -> \"10\"

  Would remain after an undo:
    an empty directory

  Dry run: nothing was changed.

  To do just this or nothing, run it with
    --plan {plan}
"
    );
    assert_eq!(shown("file.deploy.execute", &reply, 80), expected);
}

#[test]
fn a_command_that_failed_shows_what_it_said_of_that() {
    let said: Vec<_> = (0..25).map(|i| format!("line {i}\u{1b}[2J\n")).collect();
    let said = said.concat();
    let reply = json!({ "job_id": "j", "results": [
        { "hostname": "a", "status": "ok", "changed": true, "exit_code": 2, "stdout": "",
          "stderr": said },
        { "hostname": "b", "status": "ok", "changed": true, "exit_code": 0, "stdout": "x",
          "stderr": "harmless" },
    ]});
    let shown = shown("command.exec.execute", &reply, 80);
    assert!(shown.contains("\n  Stderr of a:\n    … 5 lines before these;"), "{shown}");
    assert!(shown.ends_with("    line 24\\u{1b}[2J\n"), "{shown}");
    assert!(!shown.contains("harmless") && !shown.contains("line 4\\"), "{shown}");
}

#[test]
fn a_job_shows_what_the_call_itself_has_shown() {
    let change = json!({
        "cell": { "sysctl": "vm.swappiness" },
        "from": { "text": "60" }, "to": { "text": "10" },
    });
    let data = json!({ "changed": true, "changes": [change], "key": "vm.swappiness" });
    let job = json!({
        "id": "j", "status": "failed", "created": "2026-01-01T00:00:00Z",
        "operation": {
            "type": "node.sysctl.update", "target": "_all",
            "data": { "key": "vm.swappiness", "value": "10" },
        },
        "changed": true, "error": "read-only", "waiting_until": "2026-01-01T00:01:00Z",
        "responses": {
            "a": { "status": "completed", "data": data, "changed": true, "hostname": "a" },
            "b": { "status": "failed", "error": "read-only", "hostname": "b" },
        },
        "timeline": [{ "timestamp": "2026-01-01T00:00:00Z", "event": "submitted", "hostname": "" }],
    });
    let expected = "
  ID:            j
  Operation:     node.sysctl.update
  Target:        _all
  Status:        failed
  Created:       2026-01-01T00:00:00Z
  Waiting Until: 2026-01-01T00:01:00Z
  Changed:       true
  Error:         read-only
  Parameters:    key:vm.swappiness, value:10

  Timeline:
  TIMESTAMP             EVENT
  2026-01-01T00:00:00Z  submitted

  Taken back then unless confirmed:
    osapi job confirm j

  HOSTNAME  STATUS   KEY
  a         changed  vm.swappiness
  b         err

  2 hosts: 1 changed, 1 failed

  Details:
    b: read-only

  Changed on a:
    sysctl vm.swappiness: \"60\" -> \"10\"
";
    assert_eq!(shown("job.get", &job, 80), expected);
}

#[test]
fn what_hosts_say_cannot_move_the_cursor() {
    let reply = json!({ "job_id": "\u{1b}]0;x\u{7}", "results": [{
        "hostname": "a\u{1b}[2J", "status": "failed", "changed": false, "exit_code": 1,
        "stdout": "one\r\ntwo\u{9b}31m\u{202e}\n", "error": "\u{7}",
    }]});
    let text =
        page(row("command.exec.execute"), &reply, Page { has_colour: true, ..Page::default() });
    let left = text.replace("\x1b[31m", "").replace("\x1b[0m", "");
    let is_harmless = |c: char| c == '\n' || !(c.is_control() || c == '\u{202e}');
    assert!(left.chars().all(is_harmless), "{left:?}");
    assert!(left.contains("one two\\u{9b}31m\\u{202e}"), "{left}");
}

#[test]
fn one_thing_is_a_block_with_its_lists_as_tables() {
    let reply = json!({
        "id": "j", "status": "completed", "error": null,
        "operation": { "type": "node.os.get", "data": { "a": [1] } },
        "labels": { "b": "2", "a": "1" },
        "timeline": [{ "timestamp": "2026-01-01T00:00:00Z", "event": "submitted" }],
    });
    let expected = "
  ID:        j
  Status:    completed
  Labels:    a:1, b:2

  Operation:
    {
      \"type\": \"node.os.get\",
      \"data\": {
        \"a\": [
          1
        ]
      }
    }

  Timeline:
  TIMESTAMP             EVENT
  2026-01-01T00:00:00Z  submitted
";
    // Any row without columns of its own shows one thing like this.
    let row = Row { columns: &[], rows: osapi::op::Rows::Host, ..*row("node.os.get") };
    assert_eq!(page(&row, &reply, Page::default()), expected);
}

#[test]
fn the_status_of_one_host_is_told_in_full() {
    let reply = json!({ "job_id": "j", "results": [{
        "hostname": "a", "status": "ok", "changed": false, "uptime": "3 days",
        "memory": { "total": 2_147_483_648_u64, "used": 1024 },
        "disks": [{ "name": "/", "total": 1_073_741_824, "used": 0, "free": 1_073_741_824 }],
    }]});
    let expected = "
  Job ID: j

  Hostname: a
  Status:   ok
  Uptime:   3 days
  Memory:   total:2.0 GB, used:1.0 KB

  Disks:
  NAME  TOTAL   USED  FREE
  /     1.0 GB  0 B   1.0 GB
";
    assert_eq!(shown("node.status.get", &reply, 80), expected);
}

#[test]
fn documents_of_jobs_have_the_published_keys() {
    let (Some(list), Some(get)) = (ops::find("job.list"), ops::find("job.get")) else { return };
    let call = |row: &'static Row| osapi::cli::Call {
        row,
        target: String::new(),
        names_target: true,
        params: [("limit".to_owned(), json!(5))].into_iter().collect(),
        secrets: Vec::new(),
        options: serde_json::Map::new(),
        extras: std::collections::BTreeMap::new(),
        patience: osapi::cli::Patience::Usual,
        key: None,
    };
    let reply = json!({ "total_items": 9, "status_counts": { "failed": 9 }, "items": [{}] });
    let expected = json!({
        "total_jobs": 9, "displayed_jobs": 1, "status_counts": { "failed": 9 },
        "filter_applied": "", "limit_applied": 5, "offset_applied": 0, "jobs": [{}],
    });
    assert_eq!(document(&call(list), &reply), Some(expected));
    assert_eq!(
        document(&call(get), &json!({ "id": "j" })),
        Some(json!({ "id": "j", "changed": null }))
    );
    assert_eq!(document(&call(get), &json!({ "changed": true })), None);
}

#[test]
fn what_waits_to_be_confirmed_says_how() {
    let id = "0198f0a0-0000-7000-8000-000000000001";
    let row = |until: &str| {
        json!({ "hostname": "web", "status": "ok", "changed": true, "path": "/etc/motd",
                "confirm_until": until })
    };
    let results = [row("2026-03-01T12:00:30.000Z"), row("2026-03-01T12:00:10.000Z")];
    let reply = json!({ "job_id": id, "results": results, "changed": true });
    let text = shown("file.deploy.execute", &reply, 80);
    let expected = format!(
        "\n  Taken back at 2026-03-01T12:00:10.000Z unless confirmed:\n    osapi job confirm {id}\n"
    );
    assert!(text.ends_with(&expected), "{text}");
    let plain = json!({ "job_id": id, "results": [{ "hostname": "web", "changed": true }] });
    assert!(!shown("file.deploy.execute", &plain, 80).contains("confirm"));
}
