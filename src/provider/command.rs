//! Programs and shell scripts of the caller's choice. This is the only place that starts a
//! shell, and it does so only when asked for one.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::host::{Act, Done, Run, View};
use crate::op::{Domain, Execute, Method, Op};
use crate::types::{FilePath, present};

pub static DOMAIN: Domain = Domain {
    name: "command",
    about: "Programs and shell scripts",
    ops: &[
        Op {
            id: "command.exec.execute",
            about: "Run a program, without a shell",
            path: "/node/{hostname}/command/exec",
            command: "node command exec",
            args: &["command", "args"],
            run: &Execute(exec, |_, done| Ok(Output::from(done))),
            ..RUN
        },
        Op {
            id: "command.shell.execute",
            about: "Run a script with /bin/sh",
            path: "/node/{hostname}/command/shell",
            command: "node command shell",
            args: &["command"],
            run: &Execute(shell, |_, done| Ok(Output::from(done))),
            ..RUN
        },
    ],
};

const RUN: Op = Op {
    method: Method::Post,
    status: 202,
    columns: &[("EXIT", "/exit_code"), ("STDOUT", "/stdout")],
    // The longest a caller may allow, and time to end what has not ended by then.
    timeout: Duration::from_secs(310),
    ..Op::COMMON
};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// The name of a program in a system directory, or an absolute path.
    command: Program,
    /// What is passed to it, each of at most 131,071 bytes.
    #[serde(default)]
    args: Vec<Argument>,
    /// The directory it starts in, an absolute path; `/` if not given.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Directory")]
    cwd: Option<Directory>,
    /// Seconds after which it is killed with all it started, 1 to 300.
    #[serde(default)]
    timeout: Limit,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Shell {
    /// The script, of at most 131,071 bytes.
    command: Script,
    /// The directory it starts in, an absolute path; `/` if not given.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Directory")]
    cwd: Option<Directory>,
    /// Seconds after which it is killed with all it started, 1 to 300.
    #[serde(default)]
    timeout: Limit,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Output {
    /// What it printed, at most 256 KiB.
    stdout: String,
    /// What it printed as errors, at most 256 KiB.
    stderr: String,
    /// Its exit status, or 128 and the number of the signal that ended it.
    exit_code: i32,
    /// How long it ran, in milliseconds.
    duration_ms: i64,
    /// Always true: nobody knows what a program does.
    changed: bool,
    /// True if it printed more than is kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

impl From<Done> for Output {
    fn from(done: Done) -> Self {
        let Done { exit_code, stdout, stderr, truncated, duration_ms, .. } = done;
        let duration_ms = i64::try_from(duration_ms).unwrap_or(i64::MAX);
        Self { stdout, stderr, exit_code, duration_ms, changed: true, truncated }
    }
}

fn exec(host: &View, Exec { command, args, cwd, timeout }: &Exec) -> Result<Act> {
    let args = args.iter().map(|Argument(text)| text.clone()).collect();
    act(host, &command.0, args, cwd.as_ref(), timeout)
}

fn shell(host: &View, Shell { command, cwd, timeout }: &Shell) -> Result<Act> {
    // Without the mark that ends options, a script that begins with one would be taken for it.
    let args = vec!["-c".to_owned(), "--".to_owned(), command.0.clone()];
    act(host, "/bin/sh", args, cwd.as_ref(), timeout)
}

fn act(
    host: &View,
    program: &str,
    args: Vec<String>,
    cwd: Option<&Directory>,
    Limit(seconds): &Limit,
) -> Result<Act> {
    if let Some(Directory(cwd)) = cwd
        && !host.exists(&format!("{cwd}/"))
    {
        return Err(Error::new(Kind::InvalidInput, format!("cannot start in {cwd}: no directory")));
    }
    Ok(Act::Run(Run {
        program: program.to_owned(),
        args,
        cwd: cwd.map(|Directory(cwd)| cwd.clone()),
        limit: Duration::from_secs(*seconds),
    }))
}

/// The name of a program, or where it is.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend(
    "minLength" = 1,
    "maxLength" = 4095,
    "pattern" = r"^([^/\x00-\x1f\x7f-\x9f.-][^/\x00-\x1f\x7f-\x9f]*|(/(?!\.{1,2}(/|$))[^/\x00-\x1f\x7f-\x9f]+)+)$",
    "examples" = ["true"],
))]
struct Program(String);

impl TryFrom<String> for Program {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let is_name = !name.is_empty()
            && name.len() <= 4095
            && !name.starts_with(['-', '.'])
            && !name.contains('/')
            && !name.contains(char::is_control);
        let is_program = is_name || FilePath::try_from(name.clone()).is_ok();
        is_program.then_some(Self(name)).ok_or("command: neither a name nor an absolute path")
    }
}

/// Where a program can start: a path without detours, or the root itself.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend(
    "minLength" = 1,
    "maxLength" = 4095,
    "pattern" = r"^(/|(/(?!\.{1,2}(/|$))[^/\x00-\x1f\x7f-\x9f]+)+)$",
    "examples" = ["/tmp"],
))]
struct Directory(String);

impl TryFrom<String> for Directory {
    type Error = &'static str;

    fn try_from(path: String) -> Result<Self, Self::Error> {
        let is_one = path == "/" || FilePath::try_from(path.clone()).is_ok();
        is_one.then_some(Self(path)).ok_or("cwd: not an absolute path without . and ..")
    }
}

/// Whatever a program can be passed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend("maxLength" = 131_071, "pattern" = r"^[^\x00]*$"))]
struct Argument(String);

impl TryFrom<String> for Argument {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        // The kernel ends arguments with NUL, and takes none of more than 128 KiB.
        let is_argument = text.len() < 128 * 1024 && !text.contains('\0');
        is_argument.then_some(Self(text)).ok_or("args: contains NUL or is too long")
    }
}

/// A shell script.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend("minLength" = 1, "maxLength" = 131_071, "pattern" = r"^[^\x00]*$"))]
struct Script(String);

impl TryFrom<String> for Script {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let is_script = !text.is_empty() && Argument::try_from(text.clone()).is_ok();
        is_script.then_some(Self(text)).ok_or("command: empty, contains NUL or is too long")
    }
}

/// How long a program may run, in seconds.
#[derive(Debug, Deserialize, JsonSchema, Serialize)]
#[serde(try_from = "u64")]
#[schemars(extend("minimum" = 1, "maximum" = 300))]
struct Limit(u64);

impl Default for Limit {
    fn default() -> Self {
        Self(30)
    }
}

impl TryFrom<u64> for Limit {
    type Error = &'static str;

    fn try_from(seconds: u64) -> Result<Self, Self::Error> {
        (1..=300).contains(&seconds).then_some(Self(seconds)).ok_or("timeout: not 1 to 300 seconds")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::op::{Intent, parse};
    use crate::provider::tests::Fake;

    fn run(op: &str, params: &Value) -> Result<Run> {
        let fake = Fake::with(&[("/srv/file", "")]);
        match crate::ops::agent(op).unwrap().run.intend(&fake.view(), params)? {
            Intent::Act(Act::Run(run)) => Ok(run),
            _ => panic!("does not run anything"),
        }
    }

    #[test]
    fn a_program_gets_its_arguments_as_they_are() {
        let params =
            json!({ "command": "echo", "args": ["-n", "$HOME", "a\nb", ""], "cwd": "/srv" });
        let Run { program, args, cwd, limit } = run("command.exec.execute", &params).unwrap();
        assert_eq!((&*program, cwd.as_deref()), ("echo", Some("/srv")));
        assert_eq!(args, ["-n", "$HOME", "a\nb", ""]);
        assert_eq!(limit, Duration::from_secs(30));
    }

    #[test]
    fn a_script_is_never_an_option() {
        let params = json!({ "command": "-x", "timeout": 300 });
        let Run { program, args, limit, .. } = run("command.shell.execute", &params).unwrap();
        assert_eq!((&*program, limit), ("/bin/sh", Duration::from_mins(5)));
        assert_eq!(args, ["-c", "--", "-x"]);
    }

    #[test]
    fn it_starts_in_a_directory_that_is_there() {
        for cwd in ["/no/such", "/srv/file", "srv", "/srv/..", "/srv\n", ""] {
            let params = json!({ "command": "true", "cwd": cwd });
            let error = run("command.exec.execute", &params).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidInput, "{cwd:?}");
        }
        for cwd in ["/", "/srv"] {
            let params = json!({ "command": "true", "cwd": cwd });
            assert_eq!(run("command.exec.execute", &params).unwrap().cwd.as_deref(), Some(cwd));
        }
        let schema = schemars::schema_for!(Directory).to_value();
        for (cwd, is_one) in
            [("/", true), ("/a/b", true), ("", false), ("//", false), ("/..", false)]
        {
            assert_eq!(jsonschema::is_valid(&schema, &json!(cwd)), is_one, "{cwd:?}");
            assert_eq!(Directory::try_from(cwd.to_owned()).is_ok(), is_one, "{cwd:?}");
        }
    }

    #[test]
    fn a_program_has_a_name_and_no_tricks() {
        let schema = schemars::schema_for!(Program).to_value();
        for (name, is_one) in [
            ("true", true),
            ("/bin/true", true),
            ("a b", true),
            ("[", true),
            ("g++.x", true),
            ("", false),
            ("-x", false),
            (".", false),
            ("..", false),
            ("./x", false),
            ("a/b", false),
            ("/bin/../x", false),
            ("/", false),
            ("x\n", false),
            ("x\0", false),
            ("/x\u{1b}", false),
        ] {
            assert_eq!(Program::try_from(name.to_owned()).is_ok(), is_one, "{name:?}");
            assert_eq!(jsonschema::is_valid(&schema, &json!(name)), is_one, "{name:?}");
        }
        assert!(Program::try_from("x".repeat(4096)).is_err());
    }

    #[test]
    fn what_no_program_can_be_passed_is_refused() {
        for params in [
            json!({ "command": "x", "args": ["a\0b"] }),
            json!({ "command": "x", "args": ["a".repeat(131_072)] }),
            json!({ "command": "x", "args": "a" }),
            json!({ "command": "x", "timeout": 0 }),
            json!({ "command": "x", "timeout": 301 }),
            json!({ "command": "x", "timeout": -1 }),
            json!({ "command": "x", "timeout": "1" }),
            json!({ "command": "x", "cwd": null }),
            json!({ "command": "x", "shell": true }),
        ] {
            assert!(parse::<Exec>(&params).is_err(), "{params}");
        }
        for script in ["", "a\0"] {
            assert!(parse::<Shell>(&json!({ "command": script })).is_err(), "{script:?}");
        }
    }
}
