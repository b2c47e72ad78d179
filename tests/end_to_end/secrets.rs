//! Secrets that went through a running OSAPI are found nowhere afterwards, nor while they wait.

use std::collections::BTreeSet;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;

/// Random, so that nothing else can be taken for it.
fn canary(name: &str) -> String {
    let random = std::fs::read("/proc/sys/kernel/random/uuid").unwrap();
    format!("{name} {}", String::from_utf8(random).unwrap().trim())
}

/// In all the ways in which something is likely to be written down.
fn forms(secret: &str) -> Vec<Vec<u8>> {
    let digits = secret.bytes().flat_map(|byte| [byte >> 4, byte & 15]);
    let hex: String = digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect();
    let mut forms = vec![secret.to_owned(), hex.to_uppercase(), hex];
    // What stands before it decides where the groups of base64 begin.
    for before in 0..3 {
        let text = STANDARD.encode([&b"\0\0"[..before], secret.as_bytes()].concat());
        let whole = text.len() / 4 * 4 - 4;
        forms.push(text[(before + 2).min(4)..whole].to_owned());
    }
    forms.into_iter().map(String::into_bytes).collect()
}

fn files(directory: PathBuf, found: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let about = std::fs::symlink_metadata(&path).unwrap();
        if about.is_dir() {
            files(path, found);
        } else if about.is_file() {
            found.insert(path);
        }
    }
}

#[track_caller]
fn assert_nowhere(site: &Site, secrets: &[&str], beside: &[(&str, &[u8])]) {
    let mut found = BTreeSet::new();
    files(site.dir().to_owned(), &mut found);
    // What is looked through has the store, be it a file or a broker's.
    let is_store = |path: &PathBuf| {
        path.ends_with("controller-1.redb") || path.extension().is_some_and(|end| end == "blk")
    };
    assert!(found.iter().any(is_store));
    let read = |path: &PathBuf| (path.display().to_string(), std::fs::read(path).unwrap());
    let given = beside.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec()));
    for (name, bytes) in found.iter().map(read).chain(given) {
        for form in secrets.iter().flat_map(|secret| forms(secret)) {
            let is_there = bytes.windows(form.len()).any(|window| window == form);
            assert!(!is_there, "{} is in {name}", String::from_utf8_lossy(&form));
        }
    }
}

/// A host with an account, whose commands write down how they are called.
fn host() -> Appliance {
    let host = appliance();
    host.write("etc/passwd", "root:x:0:0::/root:/bin/sh\nada:x:1000:1000::/home/ada:/bin/sh\n");
    host.write("etc/group", "root:x:0:\nada:x:1000:\n");
    host.write("etc/shadow", "root:*:1::::::\nada:!:1::::::\n");
    let dir = host.dir().display();
    let script = format!(
        "#!/bin/sh\nset -e\necho \"$*\" >> {dir}/calls\nenv >> {dir}/calls\n\
         while [ -e {dir}/hold ]; do sleep 0.02; done\n\
         [ ! -e {dir}/fail ] || {{ echo told to fail >&2; exit 1; }}\n\
         IFS=: read -r user hash\n\
         printf 'root:*:1::::::\\n%s:%s:1::::::\\n' \"$user\" \"$hash\" > {dir}/root/etc/shadow\n"
    );
    host.command("chpasswd", &script);
    host
}

const PATH: &str = "/api/node/_any/user/ada/password";

#[test]
fn a_secret_is_found_nowhere() {
    let host = host();
    let daemon = Daemon::start(&host);
    until_ready(&host);
    let secrets =
        ["piped", "posted", "other", "failed", "waiting", "refused", "argument"].map(canary);
    let [piped, posted, other, failed, waiting, refused, argument] = secrets.each_ref();
    let body = |secret: &str| json!({ "password": secret });
    let mut said = Vec::new();

    let command = |words: &[&str], input: &str| -> Output {
        let url = format!("unix://{}", host.socket().display());
        let words = [&["--json", "--debug", "--url", &url], words].concat();
        let mut child = osapi(&host, &words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let shadow = || host.read("etc/shadow");
    let set = ["user", "password", "ada", "--password", "-"];
    for (is_changed, input) in [(true, format!("{piped}\n")), (false, piped.clone())] {
        let output = command(&set, &input);
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(told["results"][0]["changed"], is_changed, "{told}");
        said.extend([output.stdout, output.stderr]);
    }
    let hash = |text: &str| text.lines().last().unwrap().split(':').nth(1).unwrap().to_owned();
    assert!(osapi::sys::opens(piped, &hash(&shadow())).unwrap());

    // The same request is the same although no box is like another.
    let keyed = |secret: &str| {
        let key = [("idempotency-key", "one")];
        host.ask("POST", PATH, &key, Some(&body(secret))).unwrap()
    };
    let (first, again, mixed) = (keyed(posted), keyed(posted), keyed(other));
    assert_eq!((first.status, again.status, mixed.status), (200, 200, 422), "{}", mixed.json());
    assert_eq!(first.json()["job_id"], again.json()["job_id"]);
    assert!(osapi::sys::opens(posted, &hash(&shadow())).unwrap());
    let preview = ask(&host, "POST", &format!("{PATH}?dry_run=true"), Some(&body(other))).json();
    assert_eq!(preview["results"][0]["changed"], true, "{preview}");
    said.push(preview.to_string().into_bytes());

    // Not while it waits, either.
    std::fs::write(host.dir().join("hold"), "").unwrap();
    let job = submit(&host, "POST", PATH, &body(waiting));
    let behind = submit(&host, "POST", PATH, &body(other));
    until("it waits", || {
        let job = ask(&host, "GET", &format!("/api/job/{job}"), None).json();
        assert_eq!(job["operation"]["data"]["password"], "[hidden]");
        (job["status"] == "processing").then_some(())
    });
    assert_nowhere(&host, &[waiting, other], &[]);
    let cancelled = ask(&host, "POST", &format!("/api/job/{behind}/cancel"), None);
    std::fs::remove_file(host.dir().join("hold")).unwrap();
    assert_eq!(finished(&host, &job)["status"], "completed");
    if cancelled.status != 200 {
        finished(&host, &behind);
    }

    // What failed has lost its secret, and cannot be repeated.
    std::fs::write(host.dir().join("fail"), "").unwrap();
    let answer = ask(&host, "POST", PATH, Some(&body(failed)));
    assert_eq!(answer.status, 500, "{}", answer.json());
    let job = answer.json()["job_id"].as_str().unwrap().to_owned();
    for job in [&job, &behind] {
        let retried = ask(&host, "POST", &format!("/api/job/{job}/retry"), Some(&json!({})));
        assert_eq!(retried.status, 409, "{}", retried.json());
        assert!(retried.json()["detail"].as_str().unwrap().contains("no longer kept"));
    }
    said.push(ask(&host, "GET", &format!("/api/job/{job}"), None).json().to_string().into_bytes());

    let answer = ask(&host, "POST", PATH, Some(&body(&format!("{refused}\n"))));
    assert_eq!(answer.status, 400);
    said.push(answer.json().to_string().into_bytes());
    let output = command(&["user", "password", "ada", "--password", argument], "");
    assert_eq!(output.status.code(), Some(2));
    said.extend([output.stdout, output.stderr]);

    for path in ["/api/job?limit=100", "/api/audit?limit=100", "/metrics", "/api/openapi.json"] {
        if let Ok(answer) = host.ask("GET", path, &[], None) {
            said.push(answer.body.clone());
        }
    }
    host.assert_audit_is_intact();
    let said: Vec<_> = said.iter().map(|bytes| ("what was said", bytes.as_slice())).collect();
    let secrets = secrets.each_ref().map(String::as_str);
    assert_nowhere(&host, &secrets, &said);
    drop(daemon);
    assert_nowhere(&host, &secrets, &[]);
    // It looks where it says it does.
    std::fs::write(host.dir().join("found"), STANDARD.encode(format!("x{piped} y"))).unwrap();
    let looks = std::panic::catch_unwind(|| assert_nowhere(&host, &[piped], &[]));
    assert!(looks.is_err());
}

#[test]
fn a_secret_sealed_to_a_key_that_is_gone_is_asked_for_again() {
    let mut host = host();
    host.start();
    host.kill_agent();
    // It waits for an agent, sealed to the key that this one had.
    let job = submit(&host, "POST", PATH, &json!({ "password": "correct horse" }));
    std::fs::remove_file(host.state().join("agent/sealing-key")).unwrap();
    host.start_agent();
    let job = finished(&host, &job);
    assert_eq!(job["status"], "failed");
    assert!(job["error"].as_str().unwrap().contains("earlier key"), "{job}");
    let answer = ask(&host, "POST", PATH, Some(&json!({ "password": "correct horse" })));
    assert_eq!(answer.status, 200, "{}", answer.json());
}
