//! Something to do with every write operation, on a host where it is not done yet.
//!
//! The operations `test.*` are not in the table. They do what no operation does so far, so that
//! the laws hold for that as well when one comes to do it.

use std::time::Duration;

use osapi::host::cell::{self, Cell};
use osapi::host::{Act, Refresh, Run, View, Want};
use osapi::op::{Execute, Op, Write};
use osapi::ops;
use serde_json::{Value, json};

use super::host::{TestHost, job};

/// The content of a file that others may not read.
pub(crate) const SECRET: &str = "correct horse battery staple";

/// What tasks find in the object store.
pub(crate) const OBJECTS: &[(&str, &str)] = &[
    ("motd", "Welcome\n"),
    ("other", "Go away\n"),
    ("unit", "[Service]\nExecStart=/bin/true\n"),
    ("other unit", "[Service]\nExecStart=/bin/false\n"),
];

pub(crate) fn cases() -> Vec<(&'static str, Value)> {
    let swappiness = json!({ "key": "vm.swappiness", "value": "10" });
    vec![
        ("node.hostname.update", json!({ "hostname": "new" })),
        ("node.timezone.update", json!({ "timezone": "Europe/Berlin" })),
        ("node.sysctl.create", swappiness.clone()),
        ("node.sysctl.update", swappiness),
        ("node.sysctl.delete", json!({ "key": "vm.swappiness" })),
        (
            "node.user.create",
            json!({
                "name": "ada", "groups": ["users", "sudo"], "shell": "/bin/zsh", "password": SECRET,
            }),
        ),
        (
            "node.user.update",
            json!({
                "name": "bob", "shell": "/bin/zsh", "home": "/srv/bob", "groups": [], "lock": true,
            }),
        ),
        ("node.user.delete", json!({ "name": "bob" })),
        ("node.user.password", json!({ "name": "bob", "password": SECRET })),
        ("file.deploy.execute", deploy("motd", "/etc/motd", "0640")),
        ("file.undeploy.execute", json!({ "path": "/etc/motd" })),
        ("node.service.create", unit("unit")),
        ("node.service.update", unit("unit")),
        ("node.service.delete", json!({ "name": "web" })),
        ("node.service.start", json!({ "name": "nginx" })),
        ("node.service.stop", json!({ "name": "cron.service" })),
        ("node.service.enable", json!({ "name": "nginx" })),
        ("node.service.disable", json!({ "name": "cron" })),
        ("node.package.install", json!({ "name": "hello" })),
        ("node.package.remove", json!({ "name": "hello" })),
        ("job.undo", json!({ "id": job("before") })),
        ("test.banner", json!("Banner\n")),
        ("test.tree", json!("content")),
        ("test.large", json!("x")),
        ("test.secret", json!(SECRET)),
    ]
}

pub(crate) fn deploy(object: &str, path: &str, mode: &str) -> Value {
    json!({ "object_name": object, "path": path, "mode": mode, "content_type": "raw" })
}

fn unit(object: &str) -> Value {
    json!({ "name": "web", "object": object })
}

/// A host on which `op` has something to change.
pub(crate) fn host_for(op: &str) -> TestHost {
    prepared(TestHost::new(), op)
}

/// The same with somebody who wakes up when a change has not been confirmed.
pub(crate) fn managed_host_for(op: &str) -> TestHost {
    prepared(TestHost::with_service_manager(), op)
}

/// The same with units for what reaches beyond the agent.
pub(crate) fn unit_host_for(op: &str) -> TestHost {
    prepared(TestHost::with_units(), op)
}

/// What a service manager says of a unit.
pub(crate) fn state(active: &str, starts: &str, path: &str) -> String {
    format!("LoadState=loaded\nActiveState={active}\nUnitFileState={starts}\nFragmentPath={path}\n")
}

fn prepared(host: TestHost, op: &str) -> TestHost {
    let motd = || ("file.deploy.execute", deploy("other", "/etc/motd", "0644"));
    let eleven = || json!({ "key": "vm.swappiness", "value": "11" });
    let before = match op {
        "node.sysctl.update" | "node.sysctl.delete" => ("node.sysctl.create", eleven()),
        "file.undeploy.execute" | "job.undo" => {
            host.write("/etc/motd", "From the distribution\n");
            motd()
        }
        "node.service.update" => ("node.service.create", unit("other unit")),
        "node.service.delete" => {
            // Somebody has started and enabled it since.
            let path = "/etc/systemd/system/osapi-web.service";
            host.write("/run/units/osapi-web.service", &state("active", "enabled", path));
            ("node.service.create", unit("unit"))
        }
        "node.package.remove" => ("node.package.install", json!({ "name": "hello" })),
        "test.large" => ("test.large", json!("y")),
        _ => return host,
    };
    host.run("before", before.0, &before.1).unwrap();
    host
}

/// The operation of that name, of the table or of this file.
pub(crate) fn find(id: &str) -> Op {
    *TESTS.iter().copied().find(|op| op.id == id).or_else(|| ops::agent(id)).unwrap_or_else(|| {
        panic!("there is no {id}");
    })
}

static TESTS: &[&Op] = &[
    // A file that a program has to take notice of.
    &Op {
        id: "test.banner",
        timeout: Duration::from_secs(10),
        run: &Write(
            |_: &View, text: &String| {
                Ok(Want::new()
                    .own(cell::file("/etc/banner", text.as_str()))
                    .then(Refresh::run("announce", &["etc/banner"])))
            },
            |host, _| host.read("/etc/banner").map(|text| json!({ "text": text })),
        ),
        ..Op::COMMON
    },
    // Directories, modes, a link, and two refreshes.
    &Op {
        id: "test.tree",
        timeout: Duration::from_secs(10),
        run: &Write(
            |host: &View, text: &String| {
                let path = "/opt/tree/deep/file";
                Ok(Want::new()
                    .parents(host, path)
                    .set(cell::directory("/srv/data").mode(0o711))
                    .set(cell::file(path, text.as_str()).mode(0o600))
                    .then(Refresh::run("announce", &["opt/tree/deep/file"]))
                    .create(cell::link("/etc/tree", "../opt/tree"))
                    .set(cell::sysctl("vm.laptop_mode", "5"))
                    .then(Refresh::run("true", &["after"])))
            },
            |_, _| Ok(json!({})),
        ),
        ..Op::COMMON
    },
    // More than fits into a record.
    &Op {
        id: "test.large",
        timeout: Duration::from_secs(10),
        run: &Write(
            |_: &View, text: &String| {
                Ok(Want::new().set(cell::file("/srv/large", text.repeat(40_000))))
            },
            |_, _| Ok(json!({})),
        ),
        ..Op::COMMON
    },
    // What only its owner may read.
    &Op {
        id: "test.secret",
        timeout: Duration::from_secs(10),
        run: &Write(
            |_: &View, text: &String| {
                Ok(Want::new().set(cell::file("/etc/secret", text.as_str()).mode(0o600)))
            },
            |_, _| Ok(json!({})),
        ),
        ..Op::COMMON
    },
    // What cannot be told.
    &Op {
        id: "test.mute",
        timeout: Duration::from_secs(10),
        run: &Write(
            |_: &View, path: &String| Ok(Want::new().set(cell::file(path, "secretive"))),
            |host, path: &String| {
                // A dry run is told what is going to be there.
                host.read_link(path).map(|_| ())
            },
        ),
        ..Op::COMMON
    },
    // What never comes about, because the provider always wants something else.
    &Op {
        id: "test.restless",
        timeout: Duration::from_secs(10),
        run: &Write(
            |host: &View, path: &String| {
                let longer = host.read(path).unwrap_or_default() + "x";
                Ok(Want::new().set(cell::file(path, longer)))
            },
            |_, _| Ok(json!({})),
        ),
        ..Op::COMMON
    },
    // Whoever writes while it plans.
    &Op {
        id: "test.sneaky",
        timeout: Duration::from_secs(10),
        run: &Write(
            |_: &View, path: &String| {
                std::fs::write(path, "sneaked").map_err(|error| {
                    osapi::error::Error::new(osapi::error::Kind::Denied, error.to_string())
                })?;
                Ok(Want::new())
            },
            |_, _| Ok(json!({})),
        ),
        ..Op::COMMON
    },
    &Op {
        id: "test.panic",
        timeout: Duration::from_secs(10),
        run: &Write(
            |_: &View, _: &String| -> osapi::error::Result<Want> { panic!("on purpose") },
            |_, _| Ok(json!({})),
        ),
        ..Op::COMMON
    },
    &Op {
        id: "test.release",
        timeout: Duration::from_secs(10),
        run: &Write(
            |host: &View, path: &String| {
                Ok(Want::new().release(host, Cell::Node(path.clone())).release_parents(host, path))
            },
            |_, _| Ok(json!({})),
        ),
        ..Op::COMMON
    },
    &Op {
        id: "test.run",
        timeout: Duration::from_secs(10),
        run: &Execute(run, |_, done| Ok(done)),
        ..Op::COMMON
    },
    &Op {
        id: "test.signal",
        timeout: Duration::from_secs(10),
        run: &Execute(
            |_: &View, (pid, start): &(i32, u64)| {
                Ok(Act::Signal { pid: *pid, start: *start, signal: 15 })
            },
            |_, done| Ok(done),
        ),
        ..Op::COMMON
    },
];

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Command {
    program: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    cwd: Option<String>,
    /// In milliseconds.
    #[serde(default = "ten_seconds")]
    limit: u64,
}

fn ten_seconds() -> u64 {
    10_000
}

fn run(_: &View, Command { program, args, cwd, limit }: &Command) -> osapi::error::Result<Act> {
    Ok(Act::Run(Run {
        program: program.clone(),
        args: args.clone(),
        cwd: cwd.clone(),
        limit: Duration::from_millis(*limit),
    }))
}
