//! The command line says what the published one says, and what it prints can be read.

use std::ffi::OsString;

use osapi::broker::permissions::Role;
use osapi::cli::{self, Call, Given, Invocation, Nats, Server, ServerCommand, Task, Token};
use osapi::error::Result;
use osapi::ops::{self, Row};
use osapi::schema::{self, Type};
use serde_json::Value;

mod join;
mod output;
mod socket;

fn parse(words: &[&str]) -> Result<Invocation, String> {
    let arguments = std::iter::once("osapi").chain(words.iter().copied()).map(OsString::from);
    let matches = cli::command().try_get_matches_from(arguments);
    matches.and_then(|matches| cli::invocation(&matches)).map_err(|error| error.to_string())
}

fn call(words: &[&str]) -> Call {
    match parse(words) {
        Ok(Invocation::Client(cli::Client { task: Task::Call(call), .. })) => call,
        other => panic!("{words:?}: {other:?}"),
    }
}

fn server(words: &[&str]) -> Server {
    match parse(words) {
        Ok(Invocation::Server(server)) => server,
        other => panic!("{words:?}: {other:?}"),
    }
}

fn published() -> Value {
    serde_json::from_str(include_str!("contract/cli.json")).unwrap()
}

fn rows() -> impl Iterator<Item = &'static Row> {
    ops::all().filter(|row| !row.command.is_empty())
}

#[test]
fn the_tree_of_commands_holds_together() {
    cli::command().debug_assert();
}

#[test]
fn what_a_machine_does_itself_has_its_published_words() {
    let commands = [
        ("start", ServerCommand::Start),
        ("controller start", ServerCommand::Controller),
        ("agent start", ServerCommand::Agent),
        ("settle", ServerCommand::Settle),
        ("settle-at-boot", ServerCommand::SettleAtBoot),
        ("settle-unconfirmed", ServerCommand::SettleUnconfirmed),
        ("config validate", ServerCommand::ConfigValidate),
        ("version", ServerCommand::Version),
    ];
    for (words, command) in commands {
        let words: Vec<_> = words.split(' ').collect();
        assert_eq!(server(&words).command, command);
    }
    for entry in published()["server"].as_array().unwrap() {
        let command = entry["command"].as_str().unwrap();
        if command == "job" {
            continue;
        }
        let mut words: Vec<String> = command.split(' ').map(str::to_owned).collect();
        for flag in entry["flags"].as_array().unwrap() {
            words.push(format!("--{}=1", flag["name"].as_str().unwrap()));
            if let Some(short) = flag["short"].as_str() {
                words.pop();
                words.extend([format!("-{short}"), "1".into()]);
            }
        }
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        assert!(parse(&words).is_ok(), "{words:?}: {:?}", parse(&words));
    }
}

#[test]
fn flags_without_a_use_are_named_and_not_forgotten() {
    let agent = server(&["agent", "start", "--agent-port", "1", "--agent-hostname", "web"]);
    assert_eq!(agent.without_effect, ["agent-port"]);
    assert_eq!(agent.hostname.as_deref(), Some("web"));
    let controller = server(&["controller", "start", "-p", "8080"]);
    assert_eq!(controller.port, Some(8080));
    assert!(controller.without_effect.is_empty());
}

#[test]
fn tokens_are_asked_for_in_the_published_words() {
    let token = |words: &[&str]| match parse(words) {
        Ok(Invocation::Token(_, token)) => token,
        other => panic!("{words:?}: {other:?}"),
    };
    let made = |roles: &[&str], permissions: &[&str]| {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let (roles, permissions) = (names(roles), names(permissions));
        Token::Generate { subject: "me".to_owned(), roles, permissions }
    };
    let short = token(&["token", "generate", "-r", "read,nurse", "-u", "me", "-p", "file:read"]);
    assert_eq!(short, made(&["read", "nurse"], &["file:read"]));
    let long = ["token", "generate", "--roles=a", "--roles", "b", "--subject", "me"];
    assert_eq!(token(&long), made(&["a", "b"], &[]));
    assert!(parse(&["token", "generate", "-u", "me"]).is_err());
    assert!(parse(&["token", "generate", "-r", "read"]).is_err());
    let judged = token(&["token", "validate", "-t", "a.b.c"]);
    assert_eq!(judged, Token::Validate { token: Given("a.b.c".to_owned()) });
    // Who looks over the shoulder of a debugger sees none.
    assert!(!format!("{judged:?}").contains("a.b.c"));
}

#[test]
fn what_a_role_may_at_the_broker_is_asked_for_without_a_controller() {
    let nats = |words: &str| match parse(&words.split(' ').collect::<Vec<_>>()) {
        Ok(Invocation::Nats(_, nats)) => nats,
        other => panic!("{words:?}: {other:?}"),
    };
    let Nats::Permissions { role, namespace, hosts, .. } =
        nats("nats permissions --role host --host a,b --host c --namespace prod")
    else {
        panic!("something else")
    };
    assert_eq!((role, namespace.as_deref()), (Role::Host, Some("prod")));
    assert_eq!(hosts, ["a", "b", "c"]);
    assert_eq!(nats("nats install"), Nats::Install);
    let Nats::Join(join) = nats("agent join broker:4222 --controller-key k --cacert /ca.pem")
    else {
        panic!("something else")
    };
    assert_eq!((join.role, &*join.url, &*join.namespace), (Role::Host, "broker:4222", "osapi"));
    assert!(matches!(nats("controller join b"), Nats::Join(join) if join.role == Role::Controller));
    for words in ["agent join b", "controller join", "controller join b --controller-key k"] {
        assert!(parse(&words.split(' ').collect::<Vec<_>>()).is_err(), "{words}");
    }
    for wrong in ["", " --role host", " --role guest"] {
        let words = format!("nats permissions{wrong}");
        assert!(parse(&words.split(' ').collect::<Vec<_>>()).is_err(), "{words}");
    }
}

#[test]
fn what_concerns_every_command_stands_before_or_after_it() {
    for words in [
        &["-d", "-f", "/x", "--json", "start"][..],
        &["start", "--debug", "--osapi-file=/x", "-j"],
        &["--debug=true", "start", "-j=true", "-f", "/x"],
    ] {
        let globals = server(words).globals;
        assert!(globals.debug && globals.json, "{words:?}");
        assert_eq!(globals.file.as_deref(), Some("/x".as_ref()));
    }
    assert!(!server(&["start", "--json=false"]).globals.json);
}

#[test]
fn published_verbs_without_a_meaning_say_what_takes_their_place() {
    for words in ["nats server start", "client nats status", "client file stale"] {
        let split: Vec<_> = words.split(' ').collect();
        match parse(&split) {
            Ok(Invocation::Client(cli::Client { task: Task::Elsewhere(elsewhere), .. })) => {
                assert!(!elsewhere.instead.is_empty());
            }
            other => panic!("{words}: {other:?}"),
        }
    }
    assert!(parse(&["client", "node", "quantum", "get"]).is_err());
}

#[test]
fn keys_are_compared_and_accepted_in_the_published_words() {
    for (words, command) in [
        ("agent", ServerCommand::AgentFingerprint),
        ("controller", ServerCommand::ControllerFingerprint),
    ] {
        assert_eq!(server(&["client", words, "key", "fingerprint"]).command, command);
        assert_eq!(server(&[words, "key", "fingerprint"]).command, command);
    }
    assert_eq!(call(&["client", "agent", "list", "--pending"]).row.id, "agent.pending");
    assert_eq!(call(&["agent", "list"]).row.id, "agent.list");
    let accept = call(&["client", "agent", "accept", "--hostname", "x", "--fingerprint", "y"]);
    assert_eq!(accept.row.id, "agent.accept");
    let question = accept.question().unwrap();
    assert_eq!(question.uri, "/api/agent/x/accept?fingerprint=y");
    assert_eq!(question.body.unwrap(), b"{}");
}

/// A value that the field takes.
fn sample(row: &Row, field: &schema::Field) -> String {
    match (field.choices.first(), field.kind) {
        (Some(choice), _) => choice.clone(),
        (_, Type::Boolean) => "true".into(),
        (_, Type::Integer) => "7".into(),
        (_, Type::Object) => "a=b".into(),
        _ if field.is_secret() => "-".into(),
        _ if row.id.starts_with("job.") => "0198f0a0-0000-7000-8000-000000000000".into(),
        _ => "x".into(),
    }
}

#[test]
fn the_short_form_says_what_the_long_form_says() {
    for row in rows() {
        let fields = schema::fields(row);
        let flag = |field: &schema::Field| {
            let listed = row.flags.iter().find(|(name, _)| *name == field.name);
            listed.map_or_else(|| field.name.replace('_', "-"), |(_, flag)| (*flag).to_owned())
        };
        let extras: &[&str] = match row.id {
            "file.upload" => &["--file=/f"],
            "audit.export" => &["--output=/f"],
            _ => &[],
        };
        let mut long: Vec<String> = vec!["client".into()];
        long.extend(row.command.split(' ').map(str::to_owned));
        let mut short: Vec<String> = match row.command {
            "node status" => vec!["node".into(), "status".into()],
            other => other.trim_start_matches("node ").split(' ').map(str::to_owned).collect(),
        };
        for field in &fields {
            let given = format!("--{}={}", flag(field), sample(row, field));
            long.push(given.clone());
            if !row.args.contains(&field.name.as_str()) {
                short.push(given);
            }
        }
        long.extend(extras.iter().map(|extra| (*extra).to_owned()));
        short.extend(extras.iter().map(|extra| (*extra).to_owned()));
        for name in row.args {
            let field = fields.iter().find(|field| field.name == *name);
            let field = field.unwrap_or_else(|| panic!("{} has no field {name}", row.id));
            short.push(sample(row, field));
        }
        let long: Vec<_> = long.iter().map(String::as_str).collect();
        let short: Vec<_> = short.iter().map(String::as_str).collect();
        let (long, short) = (call(&long), call(&short));
        assert_eq!(long, short);
        assert_eq!(long.row.id, row.id);
        assert_eq!(long.question().unwrap(), short.question().unwrap());
    }
}

/// Commands that only this product has.
const ADDED: &[&str] = &[
    "audit chain",
    "job cancel",
    "job confirm",
    "job revert",
    "job undo",
    "node drift get",
    "node log follow",
];

#[test]
fn every_operation_has_its_published_words_and_flags() {
    let published = published();
    for row in rows() {
        let entries = published["client"].as_array().unwrap();
        let found = entries.iter().find(|entry| entry["command"] == row.command);
        let Some(entry) = found else {
            assert!(ADDED.contains(&row.command), "{} is not published", row.command);
            continue;
        };
        assert_eq!(entry["api"], format!("{} {}", row.method.as_str(), row.route()));
        let mut words = vec!["client".to_owned()];
        words.extend(row.command.split(' ').map(str::to_owned));
        for flag in entry["flags"].as_array().unwrap() {
            let name = flag["name"].as_str().unwrap();
            if (row.id, name) == ("agent.list", "pending") {
                continue;
            }
            let value = match (flag["type"].as_str().unwrap(), flag["choices"][0].as_str()) {
                (_, Some(choice)) => choice.to_owned(),
                ("boolean", _) => "true".into(),
                ("integer", _) => "7".into(),
                ("list", _) => "a=b".into(),
                _ if name == "signal" => "TERM".into(),
                _ if name == "priority" => "err".into(),
                _ if name == "content-type" => "raw".into(),
                _ if name == "password" => "-".into(),
                _ => "x".into(),
            };
            // What contradicts another flag is tried by itself.
            if row.opposites.iter().any(|(_, opposite)| *opposite == name) {
                continue;
            }
            words.push(format!("--{name}={value}"));
        }
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let call = call(&words);
        assert_eq!(call.row.id, row.id);
        for flag in entry["flags"].as_array().unwrap() {
            let name = flag["name"].as_str().unwrap();
            let field =
                flag["field"].as_str().map_or_else(|| name.replace('-', "_"), str::to_owned);
            assert!(
                call.params.contains_key(&field)
                    || call.secrets.iter().any(|secret| secret.field == field)
                    || call.extras.contains_key(name)
                    || name == "pending",
                "{}: --{name} has no effect",
                row.command,
            );
        }
    }
}

#[test]
fn an_opposite_says_no() {
    let update = |flag: &str| parse(&["user", "update", "ada", flag]);
    let lock = |flag: &str| call(&["user", "update", "ada", flag]).params["lock"].clone();
    assert_eq!([lock("--lock"), lock("--lock=false")], [Value::Bool(true), Value::Bool(false)]);
    assert_eq!([lock("--unlock"), lock("--unlock=false")], [Value::Bool(false), Value::Bool(true)]);
    assert!(update("--lock").is_ok());
    assert!(parse(&["user", "update", "ada", "--lock", "--unlock"]).is_err());
}

#[test]
fn a_secret_is_asked_for_and_never_an_argument() {
    use osapi::cli::Source;

    let password = |words: &[&str]| {
        let call = call(&[&["user", "password", "ada"], words].concat());
        call.secrets.into_iter().map(|secret| (secret.field, secret.source)).collect::<Vec<_>>()
    };
    let from = |source| vec![("password".to_owned(), source)];
    assert_eq!(password(&[]), from(Source::Terminal));
    assert_eq!(password(&["--password"]), from(Source::Terminal));
    assert_eq!(password(&["--password", "-"]), from(Source::Stdin));
    assert_eq!(password(&["--password=-"]), from(Source::Stdin));
    assert!(call(&["user", "create", "ada"]).secrets.is_empty());
    assert_eq!(call(&["user", "create", "ada", "--password"]).secrets.len(), 1);
    for words in [
        &["user", "password", "ada", "--password", "hunter2"][..],
        &["client", "node", "user", "create", "--name=ada", "--password=hunter2"],
    ] {
        let refused = parse(words).unwrap_err();
        assert!(refused.contains("stdin") && !refused.contains("hunter2"), "{refused}");
    }
}

#[test]
fn lists_are_split_at_commas_and_booleans_need_no_value() {
    let long = call(&[
        "client",
        "node",
        "command",
        "exec",
        "--command=ls",
        "--args",
        r#"-l,"a,b""#,
        "--args=c",
        "--stdout",
        "--stderr=false",
        "-T",
        "_all",
    ]);
    assert_eq!(long.params["args"], serde_json::json!(["-l", "a,b", "c"]));
    assert!(long.asked("stdout") && !long.asked("stderr"));
    assert_eq!(long.target, "_all");
}

#[test]
fn what_is_in_a_path_cannot_leave_it() {
    let call = call(&["client", "node", "sysctl", "update", "--key=../a/b?c", "--value=1"]);
    let uri = call.question().unwrap().uri;
    assert_eq!(uri, "/api/node/_only/sysctl/..%2Fa%2Fb%3Fc");
}

#[test]
fn words_of_a_command_to_run_stay_as_they_are() {
    let short = call(&["command", "exec", "ls", "-l", "--all", "a,b"]);
    assert_eq!(short.params["command"], "ls");
    assert_eq!(short.params["args"], serde_json::json!(["-l", "--all", "a,b"]));
    assert_eq!(short.target, "_only");
}

#[test]
fn a_change_is_previewed_bound_to_a_plan_and_waited_for() {
    let plan = "0".repeat(64);
    let call = call(&[
        "sysctl",
        "update",
        "vm.swappiness",
        "10",
        "--dry-run",
        "--plan",
        &plan,
        "--confirm=60",
        "--wait",
        "5",
        "--idempotency-key",
        "k",
    ]);
    assert_eq!(call.patience, cli::Patience::Seconds(5));
    assert_eq!(call.key.as_deref(), Some("k"));
    let question = call.question().unwrap();
    let uri = "/api/node/_all/sysctl/vm.swappiness?dry_run=true&plan=PLAN&confirm=60";
    assert_eq!(question.uri, uri.replace("PLAN", &plan));
    assert_eq!(question.body.unwrap(), br#"{"value":"10"}"#);
    assert!(parse(&["sysctl", "get", "vm.swappiness", "--dry-run"]).is_err());
    assert!(parse(&["sysctl", "update", "a", "b", "--async", "--wait=1"]).is_err());
}

#[test]
fn what_a_person_sees_has_the_published_columns() {
    let published = published();
    for row in rows() {
        let Some(columns) = published["tables"][row.command].as_array() else { continue };
        let headers = row.columns.iter().map(|(header, _)| *header);
        let expected: Vec<_> = columns.iter().map(|column| column.as_str().unwrap()).collect();
        let shown: Vec<_> = match row.run {
            ops::Run::Agent(_) => ["HOSTNAME", "STATUS"].into_iter().chain(headers).collect(),
            ops::Run::Controller(_) => headers.collect(),
        };
        // Nothing is listed where every field is shown.
        if !row.columns.is_empty() {
            assert_eq!(shown, expected, "{}", row.command);
        }
    }
}
