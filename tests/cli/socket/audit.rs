//! The audit log, exported and verified.

use std::path::Path;
use std::sync::{Arc, Mutex};

use osapi::clock::Clock;
use osapi::store::audit::{Entry, Note};
use osapi::store::redb::RedbStore;
use osapi::store::{Bounds, Order, Step, Store};
use serde_json::{Value, json};

use super::Controller;

fn entry(number: u8) -> Entry {
    Entry {
        id: format!("0198f0a0-0000-7000-8000-0000000000{number:02}"),
        at: 1_767_225_600_000 + u64::from(number) * 1000,
        user: "root".into(),
        roles: vec!["admin".into()],
        method: "GET".into(),
        path: "/api/job".into(),
        op: "job.list".into(),
        source: "unix".into(),
        job: None,
        about: None,
        trace: None,
        code: Some(200),
        ms: Some(3),
        more: None,
    }
}

fn item(entry: &Entry) -> Value {
    let at = entry.at / 1000 % 60;
    json!({
        "id": entry.id, "timestamp": format!("2026-01-01T00:00:{at:02}Z"), "user": entry.user,
        "roles": entry.roles, "method": entry.method, "path": entry.path,
        "operation_id": entry.op, "source_ip": entry.source, "response_code": entry.code,
        "duration_ms": entry.ms,
    })
}

/// A log of five entries in a store of its own: what an export of it answers.
fn log(directory: &Path) -> Value {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(written(directory))
}

async fn written(directory: &Path) -> Value {
    let store = RedbStore::open(directory, Clock::default(), Bounds::default()).unwrap();
    let entries: Vec<_> = (1..=5).map(entry).collect();
    for entry in &entries {
        store.commit(Step::new().note(Note::Entry(entry.clone()))).await.unwrap();
    }
    let links = store.audit(0, 100, Order::Ascending).await.unwrap();
    let links: Vec<_> =
        links.iter().map(|link| String::from_utf8(link.bytes.to_vec()).unwrap()).collect();
    let items: Vec<_> = entries.iter().rev().map(item).collect();
    let ends = store.ends().await.unwrap();
    json!({ "total_items": items.len(), "items": items, "ends": ends, "links": links })
}

#[test]
fn an_export_shows_every_edit_removal_move_and_cut() {
    let store = tempfile::tempdir().unwrap();
    let reply = log(store.path());
    let controller = Controller::new(move |_, _| (200, reply.clone()));
    let (export, edited) = (controller.path("export"), controller.path("edited"));
    assert_eq!(controller.run(&["client", "audit", "export", "--output", &export]), 0);
    assert_eq!(controller.run(&["audit", "verify", &export]), 0);
    let text = std::fs::read_to_string(&export).unwrap();
    let lines: Vec<_> = text.lines().map(str::to_owned).collect();
    let verify = |lines: &[String]| {
        std::fs::write(&edited, lines.join("\n") + "\n").unwrap();
        controller.run(&["audit", "verify", &edited])
    };
    assert_eq!(verify(&lines), 0);
    let entries = lines.iter().position(|line| line.starts_with("{\"link\"")).unwrap();
    let mut turned = lines.clone();
    turned[..entries].reverse();
    assert_eq!(verify(&turned), 1, "the oldest entry first");
    for i in 0..lines.len() {
        let mut removed = lines.clone();
        removed.remove(i);
        assert_eq!(verify(&removed), 1, "line {i} was removed");
        for (from, to) in [
            ("00:00:0", "00:01:0"),
            ("{", "{\"x\":1,"),
            ("root", "r00t"),
            ("200", "403"),
            ("/api/job", "/api/jab"),
        ] {
            if lines[i].contains(from) {
                let mut edit = lines.clone();
                edit[i] = edit[i].replace(from, to);
                assert_eq!(verify(&edit), 1, "{from} in line {i}");
            }
        }
        if i > 0 {
            let mut moved = lines.clone();
            moved.swap(i - 1, i);
            assert_eq!(verify(&moved), 1, "line {i} was moved");
            assert_eq!(verify(&lines[..i]), 1, "cut before line {i}");
        }
    }
}

#[test]
fn an_export_that_breaks_off_is_no_export() {
    let store = tempfile::tempdir().unwrap();
    let reply = log(store.path());
    let answers = Arc::new(Mutex::new(json!(null)));
    let told = Arc::clone(&answers);
    let controller = Controller::new(move |_, _| (200, told.lock().unwrap().clone()));
    let export = controller.path("export");
    let without = |name: &str| {
        let mut reply = reply.clone();
        reply.as_object_mut().unwrap().remove(name);
        reply
    };
    let mut short = reply.clone();
    short["items"].as_array_mut().unwrap().pop();
    for answer in [without("ends"), without("total_items"), short, json!([]), json!({})] {
        *answers.lock().unwrap() = answer;
        assert_ne!(controller.run(&["client", "audit", "export", "--output", &export]), 0);
        assert!(!Path::new(&export).exists(), "nothing is in its place");
    }
    // Cut anywhere, as by a connection that ends: no more was promised than what came.
    let text = reply.to_string();
    for length in (0..text.len()).step_by(97) {
        let cut = text[..length].to_owned();
        let controller = Controller::saying(move |_, _| (200, cut.clone(), false));
        let export = controller.path("export");
        std::fs::write(&export, "before").unwrap();
        assert_ne!(controller.run(&["client", "audit", "export", "--output", &export]), 0);
        assert_eq!(std::fs::read_to_string(&export).unwrap(), "before");
        let left = std::fs::read_dir(Path::new(&export).parent().unwrap()).unwrap();
        assert_eq!(
            left.filter(|file| file.as_ref().unwrap().path() != Path::new(&export)).count(),
            1,
            "the socket"
        );
    }
}

#[test]
fn a_log_that_was_rewritten_as_a_whole_does_not_agree_with_the_heads_kept() {
    let (honest, forged) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (honest, forged) = (log(honest.path()), log(forged.path()));
    let answer = honest.clone();
    let controller = Controller::new(move |asked, _| {
        let mut chain = answer.clone();
        if !asked.line.contains("after=0") {
            chain["links"] = json!([]);
        }
        (200, chain)
    });
    let head = |reply: &Value| {
        let mut head = reply["ends"]["head"].clone();
        head["at"] = 1.into();
        format!("{head}\n")
    };
    assert_eq!(controller.run(&["audit", "verify", "--json"]), 0);
    std::fs::write(controller.path("heads"), head(&honest)).unwrap();
    assert_eq!(controller.run(&["audit", "verify"]), 0);
    // The same writer, the same number, another past.
    let mut other = honest.clone();
    other["ends"]["head"]["hash"] = forged["ends"]["stub"]["hash"].clone();
    std::fs::write(controller.path("heads"), head(&other)).unwrap();
    assert_eq!(controller.run(&["audit", "verify"]), 1);
}
