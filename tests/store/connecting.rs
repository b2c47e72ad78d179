//! Connecting to a NATS server: the wrong ones, others in their place, who we are, encryption.
#![expect(clippy::disallowed_methods, reason = "writes what a server and its clients read")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use osapi::broker::{Identity, Settings, Tls};
use osapi::error::{Error, Kind, Result};
use osapi::store::Store;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::nats::{open, settings};
use super::{put, request};
use crate::broker::{self, Broker};

async fn refused(settings: Settings) -> Error {
    open(settings).await.err().expect("it opened")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_keep_the_store_is_named_at_the_start() {
    if !broker::is_there("start-up errors") {
        return;
    }
    let broker = Broker::with("", "");
    let error = refused(settings(&broker)).await;
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("without JetStream"), "{error}");
    let gone = broker.address();
    drop(broker);
    let nobody = Settings { servers: vec![gone.clone()], ..named() };
    let error = refused(nobody).await;
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains(&gone), "{error}");
    let error = refused(Settings { servers: vec![old_server()], ..named() }).await;
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("nats-server 2.11.9, and OSAPI needs 2.12"), "{error}");
    for wrong in [
        Settings { namespace: "a.b".to_owned(), ..named() },
        Settings { name: "a host".to_owned(), ..named() },
        Settings { replicas: 0, ..named() },
        Settings { servers: Vec::new(), ..named() },
    ] {
        assert_eq!(refused(wrong).await.kind(), Kind::InvalidInput);
    }
}

fn named() -> Settings {
    Settings {
        servers: vec!["127.0.0.1:1".to_owned()],
        namespace: "osapi".to_owned(),
        name: "one".to_owned(),
        replicas: 1,
        ..Settings::default()
    }
}

/// The address of what says that it is an older nats-server, once.
fn old_server() -> String {
    use std::io::{BufRead, BufReader, Write};

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        let info = r#"{"server_id":"X","server_name":"old","version":"2.11.9","go":"go1","host":"127.0.0.1","port":4222,"headers":true,"max_payload":1048576,"proto":1,"jetstream":true}"#;
        write!(peer, "INFO {info}\r\n").unwrap();
        for line in BufReader::new(peer.try_clone().unwrap()).lines().map_while(Result::ok) {
            if line == "PING" {
                let _ = peer.write_all(b"PONG\r\n");
            }
        }
    });
    address.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_with_other_settings_is_named_and_left_alone() {
    if !broker::is_there("streams with other settings") {
        return;
    }
    let broker = Broker::start();
    let client = async_nats::connect(broker.address()).await.unwrap();
    let config = r#"{"name":"osapi","subjects":["osapi.>"],"storage":"file","retention":"limits","discard":"old","max_msgs_per_subject":5,"num_replicas":1}"#;
    client.request("$JS.API.STREAM.CREATE.osapi", config.into()).await.unwrap();
    let before = client.request("$JS.API.STREAM.INFO.osapi", "".into()).await.unwrap();
    let error = refused(settings(&broker)).await;
    assert_eq!(error.kind(), Kind::Conflict);
    for difference in
        ["max_msgs_per_subject is 5 and has to be 1", "discard is \"old\"", "allow_atomic"]
    {
        assert!(error.to_string().contains(difference), "{error}");
    }
    let after = client.request("$JS.API.STREAM.INFO.osapi", "".into()).await.unwrap();
    let config = |message: &async_nats::Message| {
        serde_json::from_slice::<Value>(&message.payload).unwrap()["config"].clone()
    };
    assert_eq!(config(&before), config(&after));
    let elsewhere = Settings { namespace: "elsewhere".to_owned(), ..settings(&broker) };
    open(elsewhere).await.unwrap();
    let more = Settings { replicas: 3, namespace: "elsewhere".to_owned(), ..settings(&broker) };
    let error = refused(more).await;
    assert!(error.to_string().contains("num_replicas is 1 and has to be 3"), "{error}");
    let error = refused(Settings { replicas: 3, namespace: "new".to_owned(), ..settings(&broker) });
    let error = error.await;
    assert!(error.to_string().contains("cannot make the stream new"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_we_are_and_what_we_may_is_checked_at_the_start() {
    if !broker::is_there("credentials") {
        return;
    }
    let key = nkeys::KeyPair::new_user();
    let users = format!(
        "authorization {{ users: [
            {{ user: \"osapi\", password: \"right\" }}
            {{ user: \"guest\", password: \"right\", permissions: {{
                publish: [\"$JS.API.STREAM.INFO.>\"], subscribe: [\"_INBOX_osapi.one.>\"] }} }}
            {{ nkey: \"{}\" }}
        ] }}",
        key.public_key()
    );
    let broker = Broker::with(&users, "sync_interval: always");
    let with = |identity| Settings { identity, ..settings(&broker) };
    let password = |user: &str, password: &str| Identity::Password {
        user: user.to_owned(),
        password: password.to_owned().into(),
    };
    for wrong in [Identity::Nobody, password("osapi", "wrong")] {
        let error = refused(with(wrong)).await;
        assert_eq!(error.kind(), Kind::Unauthenticated, "{error}");
        assert!(!error.to_string().contains("wrong"), "{error}");
    }
    let error = refused(with(password("guest", "right"))).await;
    assert_eq!(error.kind(), Kind::Denied);
    assert!(error.to_string().contains("$JS.API.STREAM.CREATE.osapi"), "{error}");
    let seed = broker.path("seed");
    std::fs::write(&seed, format!("{}\n", key.seed().unwrap())).unwrap();
    let store = open(with(Identity::Nkey(seed.clone()))).await.unwrap();
    store.commit(put("a").note(request(1))).await.unwrap();
    open(with(password("osapi", "right"))).await.unwrap();
    std::fs::write(&seed, "no seed").unwrap();
    for file in [seed, broker.path("missing")] {
        for identity in [Identity::Nkey(file.clone()), Identity::Credentials(file.clone())] {
            let error = refused(with(identity)).await;
            assert_eq!(error.kind(), Kind::InvalidInput);
            assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_is_used_where_one_fails_on_the_way() {
    if !broker::is_there("a server among several that fails") {
        return;
    }
    let broker = Broker::start();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let failing = listener.local_addr().unwrap().to_string();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut peer, _)) = listener.accept().await {
            // It says who it is, and ends as soon as it is told the same.
            let info = r#"INFO {"server_id":"x","version":"2.12.0","max_payload":1048576,"proto":1,"headers":true}"#;
            peer.write_all(format!("{info}\r\n").as_bytes()).await.unwrap();
            let _ = peer.read_u8().await;
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    // Which one is first is left to chance.
    while asked.load(Ordering::SeqCst) < 3 {
        let servers = vec![failing.clone(), broker.address()];
        open(Settings { servers, ..settings(&broker) }).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_encrypted_to_whom_we_trust() {
    if !broker::is_there("encrypted connections to the broker") {
        return;
    }
    let dir = tempfile::TempDir::new().unwrap();
    let write = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let make = |name: &str| {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let cert = write(&format!("{name}.pem"), made.cert.pem());
        (cert, write(&format!("{name}.key"), made.signing_key.serialize_pem()))
    };
    let ((cert, key), (own, own_key)) = (make("server"), make("client"));
    let tls =
        format!("tls {{ cert_file: {cert:?}, key_file: {key:?}, ca_file: {own:?}, verify: true }}");
    let broker = Broker::with(&tls, "sync_interval: always");
    let server = broker.address().replace("127.0.0.1", "localhost");
    let with = |ca: Option<&std::path::PathBuf>, own| {
        let tls = Tls { is_required: true, ca: ca.cloned(), own };
        Settings { tls, servers: vec![server.clone()], ..settings(&broker) }
    };
    let store = open(with(Some(&cert), Some((own.clone(), own_key)))).await.unwrap();
    store.commit(put("a")).await.unwrap();
    for wrong in [with(Some(&own), None), with(Some(&cert), None)] {
        let error = refused(wrong).await;
        assert_eq!(error.kind(), Kind::Unavailable, "{error}");
        assert!(error.to_string().contains(&server), "{error}");
    }
}
