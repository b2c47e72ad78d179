//! The rights that `osapi nats permissions` prints, at a server that grants nothing else: all of
//! them are needed, and nothing beyond them can be done.
#![expect(clippy::disallowed_methods, reason = "reads what a server has logged")]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Subscriber};
use futures_util::{FutureExt, StreamExt};
use osapi::broker::permissions::{INSTALLER, Role, User, configuration};
use osapi::broker::{Identity, Settings};
use osapi::clock::Clock;
use osapi::error::Kind;
use osapi::store::nats::{NatsObjects, NatsStore, install};
use osapi::store::{Bounds, Event, Expect, Step, Store};

use super::suite;
use crate::broker::{self, Broker};
use crate::say::say;

const PASSWORD: &str = "right";
const HOST: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "fedcba9876543210fedcba9876543210";

fn user(role: Role, namespace: &str, name: &str) -> User {
    User::new(role, namespace, name, None).unwrap()
}

/// A server that has these users, as printed, and one that may do everything.
fn guarded(users: &[User]) -> Broker {
    let printed = configuration(users);
    let variables = printed.split('$').filter_map(|rest| rest.split_whitespace().next());
    let variables = variables.filter(|word| word.starts_with("NATS_"));
    let variables: Vec<_> = variables.map(|word| format!("{word}: {PASSWORD}\n")).collect();
    let variables = variables.concat();
    let all = format!("users: [\n  {{ user: admin, password: {PASSWORD} }}");
    let printed = printed.replacen("users: [", &all, 1);
    Broker::with(&format!("{variables}authorization {{\n{printed}}}"), "sync_interval: always")
}

fn settings(broker: &Broker, user: &User, namespace: &str, name: &str) -> Settings {
    Settings {
        servers: vec![broker.address()],
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        identity: Identity::Password { user: user.account(), password: PASSWORD.to_owned().into() },
        replicas: 1,
        ..Settings::default()
    }
}

async fn connect(broker: &Broker, account: &str, inbox: &str) -> Client {
    let options = ConnectOptions::with_user_and_password(account.to_owned(), PASSWORD.to_owned());
    options.custom_inbox_prefix(inbox).connect(broker.address()).await.unwrap()
}

/// Whether a subject is among those of a pattern.
fn is_among(subject: &str, pattern: &str) -> bool {
    let (mut subject, mut pattern) = (subject.split('.'), pattern.split('.'));
    loop {
        match (subject.next(), pattern.next()) {
            (Some(_), Some(">")) | (None, None) => return true,
            (Some(_), Some("*")) => {}
            (Some(one), Some(other)) if one == other => {}
            _ => return false,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_needs_all_of_its_rights_and_no_more() {
    if !broker::is_there("the rights of a controller at the broker") {
        return;
    }
    let installer = user(Role::Installer, "osapi", INSTALLER);
    let one = user(Role::Controller, "osapi", "one");
    let broker = guarded(&[one.clone(), installer.clone()]);
    let admin = connect(&broker, "admin", "_INBOX_admin").await;
    let mut all = admin.subscribe(">").await.unwrap();
    settled(&admin, &admin).await;
    let used: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    tokio::spawn({
        let used = used.clone();
        async move {
            while let Some(message) = all.next().await {
                used.lock().unwrap().insert(message.subject.to_string());
            }
        }
    });
    let bounds = Bounds::default();
    let own = settings(&broker, &one, "osapi", "one");
    let open = async || NatsStore::open(own.clone(), Clock::default(), bounds.clone()).await;
    let refused = open().await.err().expect("it opened without a stream");
    assert_eq!(refused.kind(), Kind::Denied);
    assert!(refused.to_string().contains("osapi nats install"), "{refused}");
    let violations = || {
        let log = std::fs::read_to_string(broker.path("log")).unwrap();
        log.lines().filter(|line| line.contains("Violation")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = violations();
    assert!(before.iter().all(|line| line.contains("$JS.API.STREAM.CREATE")), "{before:?}");
    assert!(!before.is_empty());
    for _ in 0..2 {
        let by = settings(&broker, &installer, "osapi", INSTALLER);
        assert_eq!(install(by, &bounds).await.unwrap(), ["osapi", "osapi_files"]);
    }

    let store = open().await.unwrap();
    let objects = NatsObjects::open(&store).await.unwrap();
    let large = (0..40).map(|i| {
        let step = Step::new().put(format!("large.{i}"), vec![b'x'; 500_000], Expect::Anything);
        store.commit(step)
    });
    for committed in futures_util::future::join_all(large).await {
        committed.unwrap();
    }
    // Enough for the server to ask whether we keep up.
    let mut events = store.watch("large", 0).await.unwrap();
    let mut count = 0;
    while let Some(Event::Put(_)) = events.next().await {
        count += 1;
    }
    assert_eq!(count, 40);
    for i in 0..40 {
        store.commit(Step::new().delete(format!("large.{i}"), Expect::Anything)).await.unwrap();
    }
    suite::suite(Arc::new(store.clone()), &objects).await;
    store.close().await;
    assert_eq!(violations(), before, "a right is missing");

    let used = used.lock().unwrap().clone();
    let of_the_link = ["osapi.wake.", "osapi.desk.", "osapi.told"];
    for right in one.publish() {
        // What only other versions of the server use is not seen here.
        let is_elsewhere = right.starts_with("$JS.FC.*");
        if !is_elsewhere && !of_the_link.iter().any(|subject| right.starts_with(subject)) {
            assert!(used.iter().any(|subject| is_among(subject, &right)), "{right} is not needed");
        }
    }
    say(format!("the store's suite under {} rights to publish: none missing", one.publish().len()));
}

/// Subjects that are no business of the host's, in either fleet.
fn foreign() -> Vec<String> {
    let mut all: Vec<String> = ["x", "_INBOX.x", "$SYS.REQ.SERVER.PING", "$SRV.PING", "$KV.a.b"]
        .into_iter()
        .chain(["$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "$O.a.C.b"])
        .chain(["$JS.API.META.LEADER.STEPDOWN", "$JS.API.SERVER.REMOVE", "$JS.EVENT.ADVISORY.API"])
        .chain(["$JS.API.ACCOUNT.PURGE.$G", "$JS.API.ACCOUNT.STREAM.MOVE.$G.osapi"])
        .map(str::to_owned)
        .collect();
    for namespace in ["osapi", "other"] {
        for rest in [
            "ask.*",
            "beat.*",
            "wake.*",
            "desk.*",
            "desk.1",
            "desk.65535",
            "told",
            "kv.job.x",
            "kv.host.x",
            "audit.one.x.requests.1",
            "content.head.x",
            "content.chunk.x.0",
            "x",
        ] {
            all.push(format!("{namespace}.{rest}"));
        }
        for host in [HOST, OTHER] {
            all.push(format!("{namespace}.wake.{host}"));
            all.push(format!("{namespace}.kv.host.{host}"));
            if (namespace, host) != ("osapi", HOST) {
                all.push(format!("{namespace}.ask.{host}"));
                all.push(format!("{namespace}.beat.{host}"));
            }
        }
        for whose in ["one", OTHER, INSTALLER] {
            all.push(format!("_INBOX_{namespace}.{whose}.x"));
        }
        for stream in [namespace.to_owned(), format!("{namespace}_files")] {
            for call in [
                "STREAM.INFO",
                "STREAM.CREATE",
                "STREAM.UPDATE",
                "STREAM.DELETE",
                "STREAM.PURGE",
                "STREAM.SNAPSHOT",
                "STREAM.RESTORE",
                "STREAM.MSG.GET",
                "STREAM.MSG.DELETE",
                "STREAM.LEADER.STEPDOWN",
                "STREAM.PEER.REMOVE",
                "DIRECT.GET",
                "CONSUMER.CREATE",
                "CONSUMER.NAMES",
                "CONSUMER.LIST",
            ] {
                all.push(format!("$JS.API.{call}.{stream}"));
            }
            for call in [
                "CREATE",
                "DURABLE.CREATE",
                "INFO",
                "DELETE",
                "PAUSE",
                "RESET",
                "UNPIN",
                "MSG.NEXT",
                "LEADER.STEPDOWN",
            ] {
                all.push(format!("$JS.API.CONSUMER.{call}.{stream}.c"));
            }
            all.push(format!("$JS.API.CONSUMER.CREATE.{stream}.c.{namespace}.kv.job.x"));
            all.push(format!("$JS.API.DIRECT.GET.{stream}.{namespace}.kv.job.x"));
            all.push(format!("$JS.ACK.{stream}.c.1.1.1.1.0"));
            all.push(format!("$JS.FC.{stream}.c.x"));
        }
    }
    all
}

/// Patterns that would show a host what is not for it.
fn patterns() -> Vec<String> {
    let mut all: Vec<String> = foreign()
        .into_iter()
        .filter(|subject| *subject != format!("osapi.wake.{HOST}"))
        .chain(
            [">", "*", "*.>", "*.*", "*.*.*", "_INBOX.>", "$JS.>", "$JS.API.>"].map(String::from),
        )
        .chain(
            ["$JS.API.*.*.*", "$JS.FC.>", "$JS.ACK.>", "$JS.EVENT.>", "$SYS.>"].map(String::from),
        )
        .chain([format!("*.wake.{HOST}"), format!("*.*.{HOST}")])
        .collect();
    for namespace in ["osapi", "other"] {
        for rest in ["", ".*", ".ask", ".beat", ".wake", ".kv", ".audit", ".content"] {
            all.push(format!("{namespace}{rest}.>"));
        }
        all.push(format!("{namespace}.*.*"));
        all.push(format!("{namespace}.*.{HOST}"));
        for whose in ["one", OTHER, INSTALLER] {
            all.push(format!("_INBOX_{namespace}.{whose}.>"));
        }
    }
    // What it may publish is not for it to hear.
    all.extend([format!("osapi.ask.{HOST}"), format!("osapi.beat.{HOST}")]);
    all
}

/// What has to come, since it was sent.
async fn soon<T>(coming: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_mins(1), coming).await.expect("it came")
}

/// What has come already.
fn taken(messages: &mut Subscriber) -> Vec<async_nats::Message> {
    let next = || tokio::task::unconstrained(messages.next()).now_or_never().flatten();
    std::iter::from_fn(next).collect()
}

/// Returns once the server has done all that `client` has asked for.
async fn settled(client: &Client, admin: &Client) {
    let own = admin.new_inbox();
    let mut marks = admin.subscribe(own.clone()).await.unwrap();
    let mut beats = admin.subscribe(format!("osapi.beat.{HOST}")).await.unwrap();
    admin.publish(own, "mark".into()).await.unwrap();
    soon(marks.next()).await.unwrap();
    client.publish(format!("osapi.beat.{HOST}"), "mark".into()).await.unwrap();
    soon(beats.next()).await.unwrap();
}

/// Publishes to every foreign subject; those at which it arrived, and what is answered.
async fn publish(client: &Client, admin: &Client) -> (Vec<String>, Subscriber) {
    let mut all = admin.subscribe(">").await.unwrap();
    let inbox = client.new_inbox();
    let answers = client.subscribe(inbox.clone()).await.unwrap();
    settled(admin, admin).await;
    for subject in foreign() {
        let payload = format!("attempt {subject}").into();
        client.publish_with_reply(subject, inbox.clone(), payload).await.unwrap();
    }
    client.publish(format!("osapi.beat.{HOST}"), "end".into()).await.unwrap();
    let mut arrived = Vec::new();
    while let Some(message) = soon(all.next()).await.filter(|message| message.payload != "end") {
        let text = String::from_utf8_lossy(&message.payload).into_owned();
        arrived.extend(text.strip_prefix("attempt ").map(str::to_owned));
    }
    (arrived, answers)
}

/// Listens to every pattern, alone and in the controllers' group; at which of them something came.
async fn listen(client: &Client, admin: &Client) -> (Vec<String>, Vec<String>) {
    let mut listening = Vec::new();
    for pattern in patterns() {
        let alone = client.subscribe(pattern.clone()).await.unwrap();
        let group = "controllers".to_owned();
        let grouped = client.queue_subscribe(pattern.clone(), group).await.unwrap();
        listening.push((pattern, alone, grouped));
    }
    let mut end = client.subscribe(format!("osapi.wake.{HOST}")).await.unwrap();
    settled(client, admin).await;
    let own = [format!("osapi.ask.{HOST}"), format!("osapi.beat.{HOST}")];
    for subject in foreign().into_iter().chain(own) {
        // Not where it would be the end.
        if subject != format!("osapi.wake.{HOST}") {
            admin.publish(subject, "secret".into()).await.unwrap();
        }
    }
    admin.publish(format!("osapi.wake.{HOST}"), "end".into()).await.unwrap();
    while soon(end.next()).await.is_some_and(|message| message.payload != "end") {}
    let is_secret = |message: &async_nats::Message| message.payload == "secret";
    let (mut heard, mut shared) = (Vec::new(), Vec::new());
    for (pattern, mut alone, mut grouped) in listening {
        if taken(&mut grouped).iter().any(is_secret) {
            shared.push(pattern.clone());
        }
        if taken(&mut alone).iter().any(is_secret) {
            heard.push(pattern);
        }
    }
    (heard, shared)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_hosts_credential_nothing_is_done_for_another() {
    if !broker::is_there("what a host may at the broker") {
        return;
    }
    let users = [
        user(Role::Host, "osapi", HOST),
        user(Role::Host, "osapi", OTHER),
        user(Role::Installer, "osapi", INSTALLER),
        user(Role::Installer, "other", INSTALLER),
    ];
    let broker = guarded(&users);
    for (installer, namespace) in users[2..].iter().zip(["osapi", "other"]) {
        let by = settings(&broker, installer, namespace, INSTALLER);
        install(by, &Bounds::default()).await.unwrap();
    }
    let admin = connect(&broker, "admin", "_INBOX_admin").await;
    let host = connect(&broker, &users[0].account(), &format!("_INBOX_osapi.{HOST}")).await;

    // What it may do it can.
    for what in ["ask", "beat"] {
        let mut heard = admin.subscribe(format!("osapi.{what}.*")).await.unwrap();
        settled(&admin, &admin).await;
        host.publish(format!("osapi.{what}.{HOST}"), "own".into()).await.unwrap();
        while soon(heard.next()).await.is_some_and(|message| message.payload != "own") {}
    }

    let (arrived, mut answers) = publish(&host, &admin).await;
    let heard = listen(&host, &admin).await;
    assert_eq!((arrived, heard), (Vec::new(), (Vec::new(), Vec::new())));
    assert_eq!(taken(&mut answers).len(), 0);
    let (published, listened) = (foreign().len(), 2 * patterns().len());
    say(format!(
        "with one host's credential: {published} subjects published to and {listened} listened to, \
         0 successes"
    ));

    // Whoever may do everything succeeds at just that.
    let all = connect(&broker, "admin", "_INBOX_all").await;
    let (heard, shared) = listen(&all, &admin).await;
    let missed: Vec<_> = patterns().into_iter().filter(|one| !heard.contains(one)).collect();
    assert!(missed.len() * 10 < listened && !shared.is_empty(), "{missed:?}");
    let (arrived, mut answers) = publish(&all, &admin).await;
    let missed: Vec<_> = foreign().into_iter().filter(|one| !arrived.contains(one)).collect();
    assert!(missed.len() * 10 < published, "{missed:?}");
    for _ in 0..20 {
        soon(answers.next()).await.unwrap();
    }
}
