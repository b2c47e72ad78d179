//! What prepares a broker, and a host for one, as people type it.
#![expect(clippy::disallowed_methods, reason = "lays out a host and starts the program")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use osapi::broker::{Identity, Settings};
use osapi::clock::Clock;
use osapi::signing::{Holder, PublicKey};
use osapi::store::nats::NatsStore;
use osapi::store::{Bounds, Expect, Step, Store};
use serde_json::Value;
use tempfile::TempDir;

use crate::broker::{self, Broker};

const MACHINE_ID: &str = "0123456789abcdef0123456789abcdef";

fn osapi(words: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_osapi"));
    program.args(words).env_clear().env("HOME", "/nonexistent").output().unwrap()
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn the_streams_are_made_once_by_a_command_of_their_own() {
    if !broker::is_there("osapi nats install") {
        return;
    }
    let mut broker = Broker::start();
    let file = broker.path("osapi.yaml");
    let url = broker.address();
    std::fs::write(&file, format!("controller: {{ nats: {{ url: \"nats://{url}\" }} }}")).unwrap();
    let install = || said(&osapi(&["nats", "install", "--json", "-f", file.to_str().unwrap()]));
    let client = async_nats::connect(&url).await.unwrap();
    // What it is and since when, without what the server counts.
    let stream = async |name: &str| {
        let answer = client.request(format!("$JS.API.STREAM.INFO.{name}"), "".into()).await;
        let about: Value = serde_json::from_slice(&answer.unwrap().payload).unwrap();
        (about["created"].clone(), about["config"].clone())
    };
    let (status, stdout, stderr) = install();
    assert_eq!(status, Some(0), "{stderr}");
    let told: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(told["streams"], serde_json::json!(["osapi", "osapi_files"]));
    let before = (stream("osapi").await, stream("osapi_files").await);
    assert!(before.0.0.is_string() && before.1.0.is_string(), "{before:?}");
    assert_eq!(install(), (Some(0), stdout, stderr));
    assert_eq!((stream("osapi").await, stream("osapi_files").await), before);

    broker.kill();
    let (status, stdout, stderr) = install();
    assert_eq!((status, &*stdout), (Some(19), ""));
    let why = format!("cannot use the broker at nats://{url}");
    assert!(stderr.contains(&why) && stderr.contains("see that it runs there"), "{stderr}");
    std::fs::write(&file, "controller: {}").unwrap();
    let (status, _, stderr) = install();
    assert_eq!(status, Some(10));
    assert!(stderr.contains("controller.nats.url is not set"), "{stderr}");
}

/// A host with the package, whose service manager writes down what it is told.
struct Site(TempDir);

impl Site {
    fn new() -> Self {
        let site = Self(tempfile::tempdir().unwrap());
        for directory in ["etc/osapi", "usr/bin"] {
            std::fs::create_dir_all(site.path(directory)).unwrap();
        }
        std::fs::write(site.path("etc/machine-id"), format!("{MACHINE_ID}\n")).unwrap();
        std::fs::write(site.path("etc/osapi/osapi.yaml"), "").unwrap();
        let systemctl = site.path("usr/bin/systemctl");
        let calls = site.path("calls");
        let script = format!("#!/bin/sh\necho \"$@\" >> {}\n", calls.display());
        std::fs::write(&systemctl, script).unwrap();
        std::fs::set_permissions(&systemctl, PermissionsExt::from_mode(0o755)).unwrap();
        for (holder, name) in [(Holder::Agent, "agent"), (Holder::Controller, "controller")] {
            holder.kept_or_made(&site.path("var/lib/osapi").join(name)).unwrap();
        }
        site
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap_or_default()
    }

    fn run(&self, words: &[&str]) -> (Option<i32>, String, String) {
        let root = self.0.path().to_str().unwrap();
        said(&osapi(&[words, &["--root", root]].concat()))
    }

    fn settings(&self) -> Value {
        let file = self.path("etc/osapi/osapi.yaml");
        let loaded = osapi::config::load(Some(&file), std::iter::empty()).unwrap();
        serde_json::to_value(loaded.config).unwrap()
    }

    fn key(&self, holder: Holder, directory: &str) -> PublicKey {
        holder.kept(&self.path(directory)).unwrap().unwrap().public()
    }

    fn controller_key(&self) -> String {
        self.key(Holder::Controller, "var/lib/osapi/controller").encode()
    }

    fn mode(&self, path: &str) -> u32 {
        std::fs::metadata(self.path(path)).unwrap().permissions().mode() & 0o777
    }
}

#[tokio::test]
async fn a_controller_joins_with_a_key_that_is_made_on_its_host() {
    let site = Site::new();
    let join = ["controller", "join", "broker.example.org:4222", "--namespace", "prod", "--synced"];
    let (status, user, more) = site.run(&join);
    assert_eq!(status, Some(0), "{more}");
    let set = site.settings();
    let nats = &set["controller"]["nats"];
    assert_eq!(nats["url"], "tls://broker.example.org:4222", "encrypted, unless it is said");
    assert_eq!((&nats["namespace"], &nats["auth"]["type"]), (&"prod".into(), &"nkey".into()));
    assert_eq!(
        (&nats["synced"], &set["controller"]["pki"]["enabled"]),
        (&true.into(), &true.into())
    );
    assert_eq!(set["agent"]["pki"]["enabled"], true);
    assert_eq!(set["agent"]["controller_key"], "/etc/osapi/controller.pub");
    let public = site.read("var/lib/osapi/controller/controller.pub");
    assert_eq!(site.read("etc/osapi/controller.pub"), public);
    let drop_in = site.read("etc/systemd/system/osapi-controller.service.d/fleet.conf");
    assert!(drop_in.contains("PrivateNetwork=no"));
    assert_eq!(
        site.read("calls"),
        "daemon-reload\nrestart -- osapi-agent.service\n\
         --no-block restart -- osapi-controller.service\n"
    );
    let seed = site.read("etc/osapi/controller.nk");
    assert_eq!(site.mode("etc/osapi/controller.nk"), 0o640);
    assert!(seed.starts_with("SU") && !(user.clone() + &more).contains(seed.trim()));
    let own = Holder::Agent.kept(&site.path("var/lib/osapi/agent")).unwrap().unwrap().public();
    assert!(more.contains(&format!("--fingerprint {}\n", own.fingerprint())), "{more}");
    let line = format!(
        "sudo osapi agent join tls://broker.example.org:4222 --controller-key {} --namespace prod\n",
        site.controller_key()
    );
    assert!(more.contains(&line), "{more}");
    assert_eq!(site.run(&join), (Some(0), user.clone(), more), "again, it says the same");

    if !broker::is_there("what a controller that joins may do at the broker") {
        return;
    }
    let broker =
        Broker::with(&format!("authorization {{ users: [\n{user}] }}"), "sync_interval: always");
    let settings = Settings {
        servers: vec![broker.address()],
        namespace: "prod".to_owned(),
        name: nats["name"].as_str().unwrap().to_owned(),
        identity: Identity::Nkey(site.path("etc/osapi/controller.nk")),
        replicas: 1,
        ..Settings::default()
    };
    let store = NatsStore::open(settings, Clock::default(), Bounds::default()).await.unwrap();
    store.commit(Step::new().put("floor", b"0".to_vec(), Expect::Anything)).await.unwrap();
}

#[test]
fn a_host_joins_with_the_key_of_its_controllers() {
    let site = Site::new();
    let key = site.controller_key();
    let authority = site.path("ca.pem");
    std::fs::write(&authority, "-----BEGIN CERTIFICATE-----\nMA==\n").unwrap();
    let join = |key: &str, authority: &Path| {
        let authority = authority.to_str().unwrap();
        let words = ["agent", "join", "tls://broker:4222", "--controller-key", key];
        site.run(&[&words[..], &["--cacert", authority]].concat())
    };
    for (key, authority, why) in [
        ("no key", &*authority, "--controller-key is not what"),
        (&*key, &*site.path("etc/machine-id"), "no certificate in it"),
        (&*key, &*site.path("none"), "cannot take authorities"),
    ] {
        let (status, _, stderr) = join(key, authority);
        assert_eq!(status, Some(10), "{stderr}");
        assert!(stderr.contains(why), "{stderr}");
        assert!(!site.path("etc/osapi/relay.nk").exists() && site.read("calls").is_empty());
    }
    std::fs::write(site.path("etc/osapi/osapi.yaml"), "agent: { hostname: shop-7 }\n").unwrap();
    let (status, user, more) = join(&key, &authority);
    assert_eq!(status, Some(0), "{more}");
    assert!(more.contains("sudo osapi agent accept shop-7 --fingerprint SHA256:"), "{more}");
    assert!(user.contains(&format!("osapi.wake.{MACHINE_ID}")), "{user}");
    assert!(!user.contains("$JS"), "{user}");
    assert!(!more.contains("agent join"), "{more}");
    let set = site.settings();
    let nats = &set["agent"]["nats"];
    assert_eq!(nats["url"], "tls://broker:4222");
    assert_eq!(nats["tls"]["cacert"], "/etc/osapi/broker-ca.pem");
    assert_eq!(site.read("etc/osapi/broker-ca.pem"), site.read("ca.pem"));
    assert_eq!(set["controller"]["nats"]["url"], Value::Null);
    assert_eq!(
        site.read("calls"),
        "disable --now -- osapi.socket osapi-tls.socket osapi-controller.service\n\
         enable --now -- osapi-relay.socket osapi-relay.service\n\
         restart -- osapi-relay.service\nrestart -- osapi-agent.service\n"
    );
    let (status, _, why) = site.run(&["controller", "join", "broker:4222"]);
    assert_eq!(status, Some(15));
    assert!(why.contains("agent.nats.url"), "{why}");
}

#[test]
fn each_of_several_addresses_is_encrypted() {
    let site = Site::new();
    let (status, _, more) = site.run(&["controller", "join", "a:4222, b:4222,nats://c:4222"]);
    assert_eq!(status, Some(0), "{more}");
    let url = &site.settings()["controller"]["nats"]["url"];
    assert_eq!(url, "tls://a:4222,tls://b:4222,nats://c:4222");
}

#[test]
fn what_is_somebody_elses_or_could_not_start_stays_as_it_was() {
    let site = Site::new();
    let join = ["controller", "join", "tls://broker:4222"];
    let settings = "etc/osapi/osapi.yaml.d/fleet.yaml";
    std::fs::create_dir_all(site.path("etc/osapi/osapi.yaml.d")).unwrap();
    std::fs::write(site.path(settings), "agent: {}\n").unwrap();
    let (status, _, why) = site.run(&join);
    assert_eq!(status, Some(15));
    assert!(why.contains("give it another name"), "{why}");
    assert_eq!(site.read(settings), "agent: {}\n");
    std::fs::remove_file(site.path(settings)).unwrap();

    // What this host was told before is no good together with that.
    let before = "controller: { nats: { tls: { cert: /c.pem } } }\n";
    std::fs::write(site.path("etc/osapi/osapi.yaml"), before).unwrap();
    let (status, _, why) = site.run(&join);
    assert_eq!(status, Some(10), "{why}");
    assert!(!site.path(settings).exists() && site.read("calls").is_empty());

    // A host on which no controller has ever been has nothing to sign with.
    std::fs::write(site.path("etc/osapi/osapi.yaml"), "").unwrap();
    std::fs::remove_dir_all(site.path("var/lib/osapi/controller")).unwrap();
    let (status, _, why) = site.run(&join);
    assert_eq!(status, Some(13), "{why}");
}

#[test]
fn the_keys_are_those_that_the_processes_have_by_the_configuration() {
    let site = Site::new();
    let join = ["controller", "join", "broker:4222", "--json"];
    // The units say where the state is, whatever the files say.
    let directories = "agent: { state_dir: /srv/a, pki: { key_dir: /srv/keys/a } }\n\
                       controller: { state_dir: /srv/c, pki: { key_dir: /srv/keys/c } }\n";
    std::fs::write(site.path("etc/osapi/osapi.yaml"), directories).unwrap();
    let nothing = |whose: &str, directory: &str| {
        let (status, _, why) = site.run(&join);
        assert_eq!(status, Some(13), "{why}");
        for part in [directory, &format!("{whose}.pki.key_dir"), &format!("{whose}.pki.enabled")] {
            assert!(why.contains(part), "{why}");
        }
        assert!(!site.path("etc/osapi/controller.nk").exists() && site.read("calls").is_empty());
    };
    nothing("controller", "/srv/keys/c");
    Holder::Controller.kept_or_made(&site.path("srv/keys/c")).unwrap();
    nothing("agent", "/srv/keys/a");
    Holder::Agent.kept_or_made(&site.path("srv/keys/a")).unwrap();

    let (status, told, why) = site.run(&join);
    assert_eq!(status, Some(0), "{why}");
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["controller_key"], site.key(Holder::Controller, "srv/keys/c").encode());
    assert_eq!(told["fingerprint"], site.key(Holder::Agent, "srv/keys/a").fingerprint());
    let public = site.read("srv/keys/c/controller.pub");
    assert_eq!(site.read("etc/osapi/controller.pub"), public);

    let without = "agent: { state_dir: /srv/a }\ncontroller: { state_dir: /srv/c }\n";
    let site = Site::new();
    std::fs::write(site.path("etc/osapi/osapi.yaml"), without).unwrap();
    let (status, told, why) = site.run(&join);
    assert_eq!(status, Some(0), "{why}");
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["controller_key"], site.controller_key());
    let own = site.key(Holder::Agent, "var/lib/osapi/agent").fingerprint();
    assert_eq!(told["fingerprint"], own);
}

#[test]
fn keys_of_controllers_that_are_believed_already_are_kept_and_none_is_replaced() {
    let site = Site::new();
    let file = "etc/osapi/controller.pub";
    let own = site.read("var/lib/osapi/controller/controller.pub");
    let key = site.controller_key();
    let join = ["agent", "join", "broker:4222", "--controller-key", &key];
    Holder::Controller.kept_or_made(&site.path("other")).unwrap();
    let other = site.read("other/controller.pub");
    for (there, expected, part) in
        [(&*other, 15, "add its controller.pub"), ("none", 10, "is no Ed25519 public key")]
    {
        std::fs::write(site.path(file), there).unwrap();
        let (status, _, why) = site.run(&join);
        assert_eq!(status, Some(expected), "{why}");
        assert!(why.contains(part), "{why}");
        assert_eq!(site.read(file), there);
        assert!(!site.path("etc/osapi/relay.nk").exists() && site.read("calls").is_empty());
    }

    let both = format!("# until the spring\n{other}{own}");
    for there in [&both, &own] {
        std::fs::write(site.path(file), there).unwrap();
        let (status, _, why) = site.run(&join);
        assert_eq!(status, Some(0), "{why}");
        assert_eq!(&site.read(file), there);
    }
}

#[test]
fn who_may_read_a_file_is_set_where_what_it_says_is_right_already() {
    let site = Site::new();
    let key = site.controller_key();
    let join = ["agent", "join", "broker:4222", "--controller-key", &key];
    let (status, user, why) = site.run(&join);
    assert_eq!(status, Some(0), "{why}");
    let files = [
        ("etc/osapi/relay.nk", 0o644, 0o640),
        ("etc/osapi/controller.pub", 0o666, 0o644),
        ("etc/osapi/osapi.yaml.d/fleet.yaml", 0o600, 0o644),
    ];
    let before = files.map(|(file, wrong, _)| {
        std::fs::set_permissions(site.path(file), PermissionsExt::from_mode(wrong)).unwrap();
        site.read(file)
    });
    let (status, again, why) = site.run(&join);
    assert_eq!(status, Some(0), "{why}");
    assert_eq!(again, user);
    assert_eq!(files.map(|(file, _, _)| site.read(file)), before);
    for (file, _, right) in files {
        assert_eq!(site.mode(file), right, "{file}");
    }
}
