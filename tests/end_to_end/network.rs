//! The API over a network: a port on the loopback addresses, and sockets that the service manager
//! hands over.

use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use super::{Daemon, Site, appliance, osapi, until};

/// A controller by itself.
fn controller(site: &Site, mut command: Command) -> Daemon {
    let log = File::options().create(true).append(true).open(site.dir().join("log")).unwrap();
    Daemon(command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
}

/// A controller to which `listener` is handed over, as a service manager does it.
fn activated(site: &Site, listener: TcpListener) -> Command {
    let started = osapi(site, &["controller", "start"]);
    let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(started.get_program()).args(started.get_args());
    for (name, value) in started.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(OwnedFd::from(listener));
    command
}

/// Adds to the controller's part of the configuration.
fn configure(site: &Site, text: &str) {
    let path = site.dir().join("osapi.yaml");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(path, config.replacen("controller:\n", &format!("controller:\n{text}"), 1))
        .unwrap();
}

fn log(site: &Site) -> String {
    std::fs::read_to_string(site.dir().join("log")).unwrap_or_default()
}

fn token(site: &Site, role: &str) -> String {
    let words = ["token", "generate", "-r", role, "-u", "ada", "--json"];
    let made = osapi(site, &words).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(made["subject"], "ada");
    made["token"].as_str().unwrap().to_owned()
}

/// What the command line makes of `osapi agent list` at `url`, which no agent is needed for.
fn ask(site: &Site, url: &str, more: &[&str], token: &str) -> Output {
    let words = [&["agent", "list", "--json", "--url", url], more].concat();
    let mut command = osapi(site, &words);
    command.env("OSAPI_CONTROLLER_CLIENT_SECURITY_BEARER_TOKEN", token).output().unwrap()
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A certificate for localhost, which is its own authority, where the configuration says.
fn certify(site: &Site, name: &str) -> PathBuf {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let path = |name: &str| site.dir().join(name);
    std::fs::write(path("tls.cert"), made.cert.pem()).unwrap();
    std::fs::write(path("tls.key"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(path(name), made.cert.pem()).unwrap();
    path(name)
}

#[test]
fn a_port_is_served_to_those_of_this_host_who_bring_a_token() {
    let appliance = appliance();
    configure(
        &appliance,
        "  api: { security: { roles: { nurse: { permissions: [agent:read] } } } }\n",
    );
    let none = osapi(&appliance, &["token", "generate", "-r", "read", "-u", "a"]).output().unwrap();
    assert!(error(&none).contains("starts for the first time"), "{}", error(&none));

    // Below those that the kernel gives to whoever asks for any.
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let first = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap();
    let port = (first..32_000).find(free).unwrap();
    let port_text = port.to_string();
    let started = osapi(&appliance, &["controller", "start", "-p", &port_text]);
    let _controller = controller(&appliance, started);
    until("it listens", || log(&appliance).contains("try `").then_some(()));
    let key = std::fs::metadata(appliance.state().join("controller/token.key")).unwrap();
    assert_eq!((key.mode() & 0o777, key.len()), (0o600, 32));

    let url = format!("http://localhost:{port}");
    let asked = ask(&appliance, &url, &[], &token(&appliance, "nurse"));
    assert!(asked.status.success(), "{}", error(&asked));
    let refused = ask(&appliance, &url, &[], "");
    assert!(!refused.status.success());
    assert!(error(&refused).contains("a bearer token is needed"), "{}", error(&refused));
    let refused = ask(&appliance, &url, &[], "x.y.z");
    assert!(error(&refused).contains("unauthenticated"), "{}", error(&refused));
    // From another host nobody gets there.
    let bound = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let everywhere = format!("00000000:{port:04X}");
    assert!(!bound.contains(&everywhere), "{bound}");

    let second = osapi(&appliance, &["controller", "start", "-p", &port_text]).output().unwrap();
    assert!(!second.status.success());
}

#[test]
fn tokens_are_made_and_judged_by_whoever_may_read_the_key() {
    let appliance = appliance();
    configure(
        &appliance,
        "  api: { security: { signing_key: abc, roles: { nurse: { permissions: [node:read] } } } }\n",
    );
    let judge = |token: &str| {
        let mut command = osapi(&appliance, &["token", "validate", "-t", "-", "--json"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        writeln!(child.stdin.take().unwrap(), "{token}").unwrap();
        child.wait_with_output().unwrap()
    };
    let made = token(&appliance, "nurse,read");
    let judged = judge(&made);
    assert!(judged.status.success(), "{}", error(&judged));
    let told: Value = serde_json::from_slice(&judged.stdout).unwrap();
    assert_eq!(told["roles"], serde_json::json!(["nurse", "read"]));
    assert!(told["effective_permissions"].as_array().unwrap().len() > 1, "{told}");
    assert_eq!(told["audience"][0], "https://localhost");
    let judged = judge(&made.replacen('.', ".e", 1));
    assert!(error(&judged).contains("not signed with this controller's key"), "{}", error(&judged));
    for (words, said) in [
        (
            ["-r", "boss", "-u", "a"],
            "there is no role \"boss\"; there are admin, nurse, read, write",
        ),
        (["-r", "read", "-u", ""], "--subject must be"),
    ] {
        let words = [&["token", "generate"], &words[..]].concat();
        let refused = osapi(&appliance, &words).output().unwrap();
        assert!(error(&refused).contains(said), "{}", error(&refused));
    }
    let words = ["token", "generate", "-r", "read", "-u", "ada", "-p", "file:sing"];
    let refused = osapi(&appliance, &words).output().unwrap();
    assert!(error(&refused).contains("there is no permission"), "{}", error(&refused));
    let shown = osapi(&appliance, &["token", "validate", "-t", &made]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(
        shown.contains("Subject: ada\n") && shown.contains("Effective Permissions: "),
        "{shown}"
    );
}

#[test]
fn what_is_handed_over_is_served_encrypted_and_its_certificate_exchanged() {
    let appliance = appliance();
    let first = certify(&appliance, "first");
    let dir = appliance.dir().display();
    configure(&appliance, &format!("  tls: {{ cert: {dir}/tls.cert, key: {dir}/tls.key }}\n"));
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let controller = controller(&appliance, activated(&appliance, listener));
    until("it listens", || log(&appliance).contains("listening at https://0.0.0.0:").then_some(()));
    until("it is there", || log(&appliance).contains("try `").then_some(()));
    let token = token(&appliance, "read");
    let trusting = |authority: &PathBuf| {
        ask(&appliance, &url, &["--cacert", authority.to_str().unwrap()], &token)
    };
    let asked = trusting(&first);
    assert!(asked.status.success(), "{}", error(&asked));
    let refused = ask(&appliance, &url, &[], &token);
    assert!(error(&refused).contains("does not know"), "{}", error(&refused));

    let second = certify(&appliance, "second");
    controller.signal(Signal::HUP);
    until("it is exchanged", || log(&appliance).contains("that there is now").then_some(()));
    assert!(trusting(&second).status.success());
    let refused = trusting(&first);
    assert!(error(&refused).contains("does not know"), "{}", error(&refused));

    std::fs::write(appliance.dir().join("tls.cert"), "nonsense").unwrap();
    let judged = osapi(&appliance, &["config", "validate"]).output().unwrap();
    assert!(error(&judged).contains("holds no certificate"), "{}", error(&judged));
    controller.signal(Signal::HUP);
    until("it is refused", || log(&appliance).contains("the old certificate stays").then_some(()));
    assert!(trusting(&second).status.success());
}

#[test]
fn without_a_certificate_only_this_host_is_served_until_there_is_one() {
    let appliance = appliance();
    let dir = appliance.dir().display();
    configure(&appliance, "");
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let controller = controller(&appliance, activated(&appliance, listener));
    until("it is there", || log(&appliance).contains("try `").then_some(()));
    assert!(log(&appliance).contains("nobody is served over the network"));
    let health = || {
        let shown = osapi(&appliance, &["--json", "health", "status"]).output().unwrap();
        String::from_utf8(shown.stdout).unwrap()
    };
    assert!(health().contains("controller.tls.cert"), "{}", health());
    let token = token(&appliance, "read");
    let refused = ask(&appliance, &url, &[], &token);
    assert!(error(&refused).contains("closed the connection"), "{}", error(&refused));

    let authority = certify(&appliance, "first");
    configure(&appliance, &format!("  tls: {{ cert: {dir}/tls.cert, key: {dir}/tls.key }}\n"));
    controller.signal(Signal::HUP);
    until("it is served", || log(&appliance).contains("that there is now").then_some(()));
    let asked = ask(&appliance, &url, &["--cacert", authority.to_str().unwrap()], &token);
    assert!(asked.status.success(), "{}", error(&asked));
    assert!(!health().contains("controller.tls.cert"), "{}", health());
}

#[test]
fn a_certificate_that_cannot_be_used_keeps_a_controller_started_by_hand_from_starting() {
    let appliance = appliance();
    configure(&appliance, "  tls: { cert: /nowhere/cert, key: /nowhere/key }\n");
    let refused = osapi(&appliance, &["controller", "start"]).output().unwrap();
    assert!(!refused.status.success());
    assert!(error(&refused).contains("/nowhere/cert"), "{}", error(&refused));
}
