//! What holds for every operation that changes a host, including those not yet written.
#![expect(clippy::disallowed_methods, reason = "looks at the files of a host made for the test")]

use osapi::error::Kind;
use osapi::host::Plan;
use osapi::job::Options;
use osapi::op::{Access, Intent};
use osapi::ops::{self, Run};
use serde_json::json;

use crate::say::say;
use crate::support::cases::{SECRET, cases, deploy, find, host_for};
use crate::support::host::{TestHost, job, task};

mod accounts;
mod acts;
mod confirm;
mod files;
mod journal;
mod log;
mod packages;
mod power;
mod recovery;
mod undo;
mod units;

#[test]
fn every_write_operation_is_tried_here() {
    for row in ops::all() {
        if let Run::Agent(op) = row.run
            && op.access() == Access::Write
        {
            assert!(cases().iter().any(|(id, _)| *id == row.id), "{} has no case", row.id);
        }
    }
}

#[test]
fn a_dry_run_changes_nothing_and_tells_what_the_run_does() {
    for (op, params) in cases() {
        let host = host_for(op);
        let (before, calls) = (host.snapshot(), host.calls());
        let preview = host.preview(op, &params).unwrap();
        host.assert_is(&before, op);
        assert_eq!(host.calls(), calls, "{op}");

        let result = host.run("job", op, &params).unwrap();
        assert_eq!(preview["changed"], true, "{op}");
        assert_eq!(preview["dry_run"], true, "{op}");
        let mut shown = preview.clone();
        let members = shown.as_object_mut().unwrap();
        members.remove("plan");
        members.remove("dry_run");
        assert_eq!(shown, result, "{op}: a dry run shows the answer of the run");
    }
}

#[test]
fn what_is_done_rather_than_brought_about_has_no_preview() {
    let host = TestHost::new();
    let options = Options { dry_run: true, ..Options::default() };
    let params = json!({ "program": "true" });
    let error = host.run_with("job", "test.run", &params, options).unwrap_err();
    assert_eq!(error.kind(), Kind::NoPreview);
    assert!(host.calls().is_empty());
}

#[test]
fn a_provider_that_writes_while_it_plans_is_refused() {
    let host = TestHost::new();
    if !host.executor.landlock() {
        say("SKIPPED: a_provider_that_writes_while_it_plans_is_refused: no Landlock");
        return;
    }
    let params = json!(host.path("/etc/sneaked"));
    assert_eq!(host.run("job", "test.sneaky", &params).unwrap_err().kind(), Kind::Denied);
    assert_eq!(host.preview("test.sneaky", &params).unwrap_err().kind(), Kind::Denied);
    assert!(!host.path("/etc/sneaked").exists());
}

#[test]
fn a_provider_that_panics_fails_its_job_and_nothing_else() {
    let host = TestHost::new();
    for n in 0..8 {
        let error = host.run(&format!("job {n}"), "test.panic", &json!("")).unwrap_err();
        assert_eq!(error.kind(), Kind::Internal);
    }
    host.run("after", "test.banner", &json!("still here")).unwrap();
}

#[test]
fn the_second_run_has_nothing_to_do() {
    for (op, params) in cases() {
        let host = host_for(op);
        assert_eq!(host.run("first", op, &params).unwrap()["changed"], true, "{op}");
        let (after, calls) = (host.snapshot(), host.calls());
        assert_eq!(host.run("second", op, &params).unwrap()["changed"], false, "{op}");
        host.assert_is(&after, op);
        assert_eq!(host.calls(), calls, "{op}");
    }
}

#[test]
fn a_plan_is_complete_before_it_is_applied() {
    for (op, params) in cases() {
        let host = host_for(op);
        let provider = find(op).run;
        let plan = |view: &_| match provider.intend(view, &params).unwrap() {
            Intent::Want(want) => Plan::of(view, want).unwrap(),
            _ => panic!("{op} writes"),
        };
        let task = task(&job("job"), &find(op), &params, Options::default());
        let view = host.executor.view_for(&task);
        let first = plan(&view);
        assert!(!first.is_empty(), "{op}");
        assert!(plan(&view.after(&first)).is_empty(), "{op}");
    }
}

#[test]
fn undo_restores_every_byte() {
    for (op, params) in cases() {
        let host = host_for(op);
        let before = host.snapshot();
        host.run("job", op, &params).unwrap();
        let after = host.snapshot();
        assert_ne!(before, after, "{op}");
        host.undo("undo", "job").unwrap();
        host.assert_is(&before, op);
        assert_eq!(host.executor.view().drift().unwrap(), [], "{op}");
        host.undo("redo", "undo").unwrap();
        host.assert_is(&after, op);
    }
}

#[test]
fn an_undo_of_everything_leaves_nothing_managed() {
    for (op, params) in cases() {
        let host = host_for(op);
        host.run("job", op, &params).unwrap();
        host.undo("undo", "job").unwrap();
        if host.entry("done", "before").exists() && op != "job.undo" {
            host.undo("undo before", "before").unwrap();
        } else if op == "job.undo" {
            host.undo("undo again", "before").unwrap();
        }
        assert!(host.executor.view().records().is_empty(), "{op}");
    }
}

#[test]
fn a_job_delivered_twice_takes_effect_once() {
    for (op, params) in cases() {
        let host = host_for(op);
        let first = host.run("job", op, &params).unwrap();
        host.undo("undo", "job").unwrap();
        let (undone, calls) = (host.snapshot(), host.calls());
        let host = host.restart();
        assert_eq!(host.run("job", op, &params).unwrap(), first, "{op}");
        host.assert_is(&undone, op);
        assert_eq!(host.calls(), calls, "{op}");
    }
}

#[test]
fn what_came_too_late_is_never_begun() {
    for (op, params) in cases() {
        let host = host_for(op);
        let before = host.snapshot();
        let mut late = task(&job("late"), &find(op), &params, Options::default());
        late.left_ms = 0;
        assert_eq!(host.deliver(&find(op), &late).unwrap_err().kind(), Kind::Expired, "{op}");
        host.assert_is(&before, op);
        late.left_ms = 60_000;
        assert_eq!(host.deliver(&find(op), &late).unwrap_err().kind(), Kind::Expired, "{op}");
        // It waited until then, however much was left when it came.
        let mut waited = task(&job("waited"), &find(op), &params, Options::default());
        waited.begin_by = Some(1);
        assert_eq!(host.deliver(&find(op), &waited).unwrap_err().kind(), Kind::Expired, "{op}");
        host.assert_is(&before, op);
    }
}

#[test]
fn a_command_that_fails_leaves_no_trace() {
    let mut tried = 0;
    for (op, params) in cases() {
        let host = host_for(op);
        let known = host.calls().len();
        host.run("probe", op, &params).unwrap();
        for call in host.calls().split_off(known) {
            let command = call.split(' ').next().unwrap();
            let host = host_for(op);
            let before = host.snapshot();
            host.fail(command, true);
            let error = host.run("job", op, &params).unwrap_err();
            assert_eq!(error.kind(), Kind::HostFailed, "{op}: {error}");
            host.assert_is(&before, &format!("{op} without {command}: {error}"));
            tried += 1;
        }
    }
    assert!(tried >= 3, "hardly a command was tried");
}

#[test]
fn a_refresh_that_fails_takes_the_change_back() {
    let host = TestHost::new();
    host.run("1", "test.banner", &json!("first")).unwrap();
    let before = host.snapshot();
    assert_eq!(host.read("/run/announced"), "first");
    host.fail("announce", true);
    let error = host.run("2", "test.banner", &json!("second")).unwrap_err();
    assert_eq!(error.kind(), Kind::HostFailed);
    assert!(error.to_string().contains("announce was told to fail"), "{error}");
    // The way back has to announce the former file, and cannot.
    assert_eq!(error.body().not_restored.len(), 1, "{error}");
    host.assert_is(&before, "");
}

#[test]
fn what_does_not_come_about_is_a_failure() {
    let host = TestHost::new();
    host.write("/etc/restless", "y");
    let before = host.snapshot();
    let error = host.run("job", "test.restless", &json!("/etc/restless")).unwrap_err();
    assert_eq!(error.kind(), Kind::NotConverged);
    host.assert_is(&before, "");
    assert!(host.executor.view().records().is_empty());
}

#[test]
fn what_cannot_be_told_is_taken_back() {
    let host = TestHost::new();
    let before = host.snapshot();
    host.run("job", "test.mute", &json!("/etc/mute")).unwrap_err();
    host.assert_is(&before, "");
}

#[test]
fn what_others_made_is_not_overwritten() {
    let host = TestHost::new();
    host.write("/etc/banner", "precious\n");
    let before = host.snapshot();
    let error = host.run("job", "test.banner", &json!("mine")).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    host.assert_is(&before, "");
    let preview = host.preview("test.banner", &json!("mine"));
    assert_eq!(preview.unwrap_err().kind(), Kind::Conflict, "a dry run is refused as well");
}

#[test]
fn a_neighbour_is_left_alone_whatever_it_is_called() {
    let host = TestHost::new();
    host.run("a", "file.deploy.execute", &deploy("motd", "/etc/.osapi-motd", "0644")).unwrap();
    host.write("/etc/.osapi-banner", "precious\n");
    let neighbours = [host.read("/etc/.osapi-motd"), host.read("/etc/.osapi-banner")];
    host.run("b", "file.deploy.execute", &deploy("motd", "/etc/motd", "0644")).unwrap();
    host.run("c", "test.banner", &json!("mine")).unwrap();
    assert_eq!([host.read("/etc/.osapi-motd"), host.read("/etc/.osapi-banner")], neighbours);
}

#[test]
fn a_directory_that_became_a_link_leads_nowhere() {
    let host = TestHost::new();
    for (path, text) in [("/etc/cron.d/victim", "precious\n"), ("/home/ada/notes", "mine\n")] {
        std::fs::create_dir_all(host.path(path).parent().unwrap()).unwrap();
        host.write(path, text);
    }
    host.run("a", "file.deploy.execute", &deploy("motd", "/home/ada/victim", "0644")).unwrap();
    std::fs::rename(host.path("/home/ada"), host.path("/home/mine")).unwrap();
    std::os::unix::fs::symlink("/etc/cron.d", host.path("/home/ada")).unwrap();
    let before = host.snapshot();
    for (job, op, params) in [
        ("b", "file.undeploy.execute", json!({ "path": "/home/ada/victim" })),
        ("c", "job.undo", json!({ "id": job("a") })),
        ("d", "file.deploy.execute", deploy("motd", "/home/ada/victim", "0600")),
    ] {
        let error = host.run(job, op, &params).unwrap_err();
        assert!(matches!(error.kind(), Kind::Conflict | Kind::InvalidInput), "{op}: {error}");
        host.assert_is(&before, op);
    }
}

#[test]
fn what_others_built_upon_is_not_undone() {
    let host = TestHost::new();
    host.run("a", "file.deploy.execute", &deploy("motd", "/etc/motd", "0644")).unwrap();
    host.run("b", "file.deploy.execute", &deploy("other", "/etc/motd", "0644")).unwrap();
    let after = host.snapshot();
    let error = host.undo("undo", "a").unwrap_err();
    assert_eq!(error.kind(), Kind::Superseded);
    assert!(error.to_string().contains(&job("b")), "{error}");
    host.assert_is(&after, "");

    // In the other order both can be taken back.
    host.undo("undo b", "b").unwrap();
    host.undo("undo a", "a").unwrap();
    assert!(!host.path("/etc/motd").exists());

    host.run("c", "file.deploy.execute", &deploy("motd", "/etc/motd", "0644")).unwrap();
    host.write("/etc/motd", "somebody was here");
    assert_eq!(host.undo("undo c", "c").unwrap_err().kind(), Kind::Conflict);
    assert_eq!(host.read("/etc/motd"), "somebody was here");
}

#[test]
fn only_the_plan_that_was_seen_is_applied() {
    let (op, params) = ("file.deploy.execute", deploy("motd", "/etc/motd", "0600"));
    let host = TestHost::new();
    let seen = || {
        let plan = host.preview(op, &params).unwrap()["plan"].as_str().unwrap().to_owned();
        Options { plan: Some(plan), ..Options::default() }
    };
    let stale = seen();
    assert_eq!(seen().plan, stale.plan, "planning twice gives the same plan");

    let other = deploy("other", "/etc/motd", "0600");
    let error = host.run_with("other", op, &other, stale.clone()).unwrap_err();
    assert_eq!(error.kind(), Kind::Stale);
    host.write("/etc/motd", "meanwhile");
    let error = host.run_with("late", op, &params, stale).unwrap_err();
    assert_eq!(error.kind(), Kind::Stale);
    assert_eq!(host.read("/etc/motd"), "meanwhile");
    host.run_with("job", op, &params, seen()).unwrap();
    assert_eq!(host.read("/etc/motd"), "Welcome\n");
}

#[test]
fn drift_names_the_cell_and_the_job() {
    let host = TestHost::new();
    let params = json!({ "key": "vm.swappiness", "value": "10" });
    host.run("job", "node.sysctl.create", &params).unwrap();
    assert_eq!(host.executor.view().drift().unwrap(), []);
    host.write("/etc/sysctl.d/osapi-vm.swappiness.conf", "vm.swappiness = 99\n");
    let drift = host.executor.view().drift().unwrap();
    assert_eq!(drift.len(), 1);
    assert_eq!(drift[0].job, job("job"));
    // Whoever runs the operation again sees the edit in the diff before it goes.
    let preview = host.preview("node.sysctl.update", &params);
    let diff = preview.unwrap()["changes"][0]["diff"].as_str().unwrap().to_owned();
    assert!(diff.contains("-vm.swappiness = 99\n+vm.swappiness = 10\n"), "{diff}");
}

#[test]
fn a_password_leaves_no_copy() {
    let host = TestHost::new();
    let digest = osapi::host::cell::Digest::of(SECRET).to_string();
    let preview = host.preview("test.secret", &json!(SECRET)).unwrap();
    let result = host.run("job", "test.secret", &json!(SECRET)).unwrap();
    host.write("/etc/secret", "drifted");
    let drift = json!(host.executor.view().drift().unwrap());
    for text in [preview.to_string(), result.to_string(), drift.to_string()] {
        assert!(!text.contains(SECRET) && !text.contains(&digest), "{text}");
    }
    assert_eq!(preview["changes"][0].get("diff").filter(|diff| !diff.is_null()), None);
    let journal = std::fs::read_to_string(host.entry("done", "job")).unwrap();
    assert!(!journal.contains(SECRET));
}

#[test]
fn a_job_cannot_be_called_like_a_path() {
    let host = TestHost::new();
    for name in ["", ".", "..", "../open/x", "/etc/x", "a.b", ".host", "a b"] {
        for (op, params) in
            [("test.banner", json!("x")), ("test.run", json!({ "program": "true" }))]
        {
            let task = task(name, &find(op), &params, Options::default());
            let error = host.deliver(&find(op), &task).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidInput);
        }
    }
    assert!(host.calls().is_empty());
}
