use super::*;
use crate::config::Secret;

fn read(text: &str) -> Result<Loaded> {
    with_env(text, &[])
}

fn with_env(text: &str, env: &[(&str, &str)]) -> Result<Loaded> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("osapi.yaml");
    std::fs::write(&path, text).unwrap();
    load(Some(&path), env.iter().map(|(name, value)| ((*name).into(), (*value).into())))
}

fn problems(text: &str) -> String {
    read(text).unwrap_err().to_string()
}

#[test]
fn an_empty_file_is_the_default_and_a_missing_one_is_an_error() {
    assert_eq!(read("").unwrap().config, Config::default());
    assert_eq!(read("---\ncontroller:\nagent:\n").unwrap().config, Config::default());
    let missing = load(Some(Path::new("/nonexistent/osapi.yaml")), std::iter::empty());
    assert_eq!(missing.unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn keys_are_read_and_drop_ins_and_the_environment_go_over_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("osapi.yaml");
    let text = "controller:\n  api: { job_timeout: 5s }\n  groups: { wheel: admin }\nagent:\n  labels: { group: web.prod, rack: 12 }\n";
    std::fs::write(&path, text).unwrap();
    std::fs::create_dir(dir.path().join("osapi.yaml.d")).unwrap();
    for (name, text) in [
        ("20.yaml", "agent: { labels: { rack: b } }"),
        ("10.yaml", "agent: { labels: { rack: a, Zone: north }, hostname: one }"),
        ("30.conf", "nonsense"),
    ] {
        std::fs::write(dir.path().join("osapi.yaml.d").join(name), text).unwrap();
    }
    let env = [("OSAPI_AGENT_HOSTNAME", "two"), ("OSAPI_AGENT_POLICY", "read, write")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let loaded = load(Some(&path), env.into_iter()).unwrap();
    let config = loaded.config;
    assert_eq!(config.controller.api.job_timeout.0.as_secs(), 5);
    assert_eq!(config.controller.groups["wheel"], "admin");
    let labels: Vec<_> = config.agent.labels.into_iter().collect();
    let pairs = [("Zone", "north"), ("group", "web.prod"), ("rack", "b")];
    assert_eq!(labels, pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert_eq!(config.agent.hostname, "two");
    assert_eq!(config.agent.policy, ["read", "write"]);
    assert_eq!(loaded.files.len(), 3);
}

#[test]
fn what_nobody_knows_is_named_with_its_line_and_the_nearest_there_is() {
    let text = "debug: true\ncontroler:\n  api: {}\ncontroller:\n  api:\n    job_timeot: 5s\n    prot: 1\nnats:\n  sever: {}\n";
    let problems = problems(text);
    assert!(problems.contains("osapi.yaml:2: controler: "), "{problems}");
    assert!(problems.contains("did you mean controller?"), "{problems}");
    assert!(problems.contains("osapi.yaml:6: controller.api.job_timeot: "), "{problems}");
    assert!(problems.contains("did you mean controller.api.job_timeout?"), "{problems}");
    assert!(problems.contains("did you mean controller.api.port?"), "{problems}");
    assert!(problems.contains("did you mean nats.server?"), "{problems}");
}

#[test]
fn wrong_values_are_named_all_at_once() {
    let text = "debug: maybe\ncontroller:\n  socket: a/b\n  api: { job_timeout: 5 }\n  groups: { wheel: king }\nagent:\n  conditions: { disk_pressure_threshold: 101 }\n  labels: [a]\n";
    let found = problems(text);
    for part in [
        "osapi.yaml:1: debug: \"maybe\" is neither",
        "osapi.yaml:4: controller.api.job_timeout: \"5\" is not a length of time",
        "osapi.yaml:7: agent.conditions.disk_pressure_threshold: 101 is not between 1 and 100",
        "osapi.yaml:8: agent.labels: it holds other keys",
    ] {
        assert!(found.contains(part), "{part} in {found}");
    }
    let found = problems(
        "controller:\n  socket: a/b\n  groups:\n    wheel: king\nagent:\n  policy: [sing]\n  labels: { a: 'b c' }\n",
    );
    for part in ["osapi.yaml:2", "osapi.yaml:4", "osapi.yaml:6", "osapi.yaml:7"] {
        assert!(found.contains(part), "{part} in {found}");
    }
    let found = problems(
        "controller: { api: { security: { roles: { ops: { permissions: [file:wrte] } } } } }",
    );
    assert!(found.contains("did you mean file:write?"), "{found}");
    assert!(problems("a: [").contains("osapi.yaml:"), "broken YAML");
    assert!(problems("debug: true\ndebug: false\n").contains("osapi.yaml:2"), "set twice");
}

#[test]
fn files_in_the_wild_start_unchanged() {
    let loaded = read(WILD).unwrap();
    let keys: Vec<_> = loaded.inert.iter().map(|inert| inert.key.as_str()).collect();
    for key in ["nats.server", "agent.consumer", "telemetry"] {
        assert!(keys.contains(&key), "{key} in {keys:?}");
    }
    let controller = &loaded.config.controller;
    assert_eq!(controller.api.port, Some(8080));
    assert_eq!(controller.api.security.cors.allow_origins, ["http://localhost:3001"]);
    let key = controller.api.security.signing_key.as_ref().map(Secret::reveal);
    assert_eq!(key, Some("0123456789abcdef"));
    assert_eq!(loaded.config.agent.labels["group"], "web.dev.us-east");
    assert_eq!(loaded.config.controller.api.security.roles["ops"].permissions.len(), 2);
    let env = [("OSAPI_CONTROLLER_API_PORT", "80"), ("OSAPI_NATS_SERVER_STORE_DIR", "/x")];
    let loaded = with_env("", &env).unwrap();
    assert_eq!(loaded.inert.len(), 1, "{:?}", loaded.inert);
    assert_eq!(loaded.config.controller.api.port, Some(80));
}

#[test]
fn what_a_listener_needs_is_judged() {
    for (text, told) in [
        ("controller: { api: { port: 0 } }", "0 is not between 1 and 65535"),
        ("controller: { tls: { cert: /a } }", "belong together"),
        ("controller: { tls: { key: /a } }", "controller.tls.key"),
        ("controller: { tls: { cert: a, key: /b } }", "a is relative"),
        ("controller: { api: { security: { cors: { allow_origins: [ops] } } } }", "as in https"),
        (
            "controller: { api: { security: { cors: { allow_origins: ['http://a/b'] } } } }",
            "without a path",
        ),
    ] {
        let told_of = problems(text);
        assert!(told_of.contains(told), "{told} in {told_of}");
    }
    let any = "controller: { api: { security: { cors: { allow_origins: '*' } } } }";
    assert!(read(any).is_ok());
    // What is secret is in no message.
    let long = format!(
        "controller: {{ api: {{ security: {{ signing_key: {} }} }} }}",
        "canary".repeat(2000)
    );
    assert!(!problems(&long).contains("canary"));
}

#[test]
fn every_key_has_one_variable() {
    let schema = schema();
    let names: BTreeSet<_> = leaves(&schema).iter().map(|(key, _)| variable(key)).collect();
    assert_eq!(names.len(), leaves(&schema).len());
    for (key, why) in inert::keys() {
        assert!(!why.is_empty());
        assert!(leaves(&schema).iter().all(|(leaf, _)| inert::why(leaf).is_none()), "{key}");
    }
}

#[test]
fn the_sample_is_read_as_the_default() {
    let sample = crate::config::sample();
    assert_eq!(read(&sample).unwrap().config, Config::default());
    let bare: Vec<_> = sample
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| !line.trim_start().starts_with('#'))
        .skip_while(|line| !line.starts_with("debug"))
        .collect();
    let bare = bare.join("\n");
    assert_eq!(read(&bare).unwrap().config, Config::default(), "{bare}");
}

/// Every key of the published sample and of `clients.md`.
const WILD: &str = r#"
debug: false
controller:
  client:
    url: http://0.0.0.0:8080
    security:
      bearer_token: abc
  ui: { enabled: true }
  api:
    port: 8080
    job_timeout: 30s
    security:
      signing_key: 0123456789abcdef
      cors:
        allow_origins: ["http://localhost:3001"]
      roles:
        ops:
          permissions:
            - node:read
            - file:write
  nats:
    host: localhost
    port: 4222
    client_name: osapi-api
    namespace: osapi
    auth: { type: none }
  metrics: { enabled: true, host: 0.0.0.0, port: 9090 }
  notifications: { enabled: false, notifier: log, renotify_interval: 5m }
  pki: { enabled: false, key_dir: /etc/osapi/pki, auto_accept: false, rotation_grace_period: 24h }
nats:
  server:
    host: localhost
    port: 4222
    store_dir: .nats/jetstream/
    namespace: osapi
    auth: { type: none, users: [{ username: a, password: b }], nkeys: [] }
    metrics: { enabled: true, host: 0.0.0.0, port: 9092 }
  stream: { name: JOBS, subjects: "jobs.>", max_age: 24h, max_msgs: 10000, storage: file, replicas: 1, discard: old }
  kv: { bucket: job-queue, response_bucket: job-responses, ttl: 1h, max_bytes: 104857600, storage: file, replicas: 1 }
  dlq: { max_age: 168h, max_msgs: 1000, storage: file, replicas: 1 }
  audit: { stream: AUDIT, subject: audit, max_age: 720h, max_bytes: 52428800, storage: file, replicas: 1 }
  registry: { bucket: agent-registry, ttl: 30s, storage: file, replicas: 1 }
  facts: { bucket: agent-facts, ttl: 5m, storage: file, replicas: 1 }
  state: { bucket: agent-state, storage: file, replicas: 1 }
  objects: { bucket: file-objects, max_bytes: 10737418240, max_chunk_size: 262144, storage: file, replicas: 1 }
  file_state: { bucket: file-state, storage: file, replicas: 1 }
  enrollment: { bucket: agent-enrollment, storage: file, replicas: 1 }
telemetry:
  tracing: { enabled: true, exporter: stdout, otlp_endpoint: "localhost:4317" }
agent:
  nats: { host: localhost, port: 4222, client_name: osapi-agent, namespace: osapi, auth: { type: none } }
  consumer: { name: jobs-agent, max_deliver: 5, ack_wait: 2m, max_ack_pending: 1000, replay_policy: instant, back_off: [30s, 2m, 5m] }
  queue_group: job-agents
  hostname: ""
  max_jobs: 10
  facts: { interval: 60s }
  conditions: { memory_pressure_threshold: 90, high_load_multiplier: 2.0, disk_pressure_threshold: 90 }
  process_conditions: { memory_pressure_bytes: 0, high_cpu_percent: 0 }
  labels:
    group: web.dev.us-east
  metrics: { enabled: true, host: 0.0.0.0, port: 9091 }
  pki: { enabled: false, key_dir: /etc/osapi/pki }
  privilege_escalation: { enabled: false }
"#;

#[test]
fn a_variable_that_no_key_has_is_listed() {
    let env = [
        ("OSAPI_CONTROLLER_SOKET", "/x"),
        ("OSAPI_CONTROLLER_SOCKET", "/x"),
        ("OSAPI_TELEMETRY_TRACING_ENABLED", "true"),
        ("OSAPI_JOB_ID", "j"),
    ];
    let inert = with_env("", &env).unwrap().inert;
    let keys: Vec<_> = inert.iter().map(|inert| inert.key.as_str()).collect();
    assert_eq!(keys, ["OSAPI_CONTROLLER_SOKET", "telemetry"]);
}

#[test]
fn what_is_wrong_with_names_is_told_once() {
    for name in ["a b/c", "_any", "a:b", &"x".repeat(254)] {
        let told = problems(&format!("agent: {{ hostname: \"{name}\" }}"));
        assert!(told.contains("agent.hostname: must be letters"), "{told}");
    }
    let told = problems("agent: { policy: [reads] }");
    assert_eq!(told.matches("agent.policy").count(), 1, "{told}");
}
