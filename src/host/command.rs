//! Running a program to its end, and its children with it.

use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_setfd};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::journal::Turn;
use crate::error::{Error, Kind, Result};

/// What a program left behind.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Output {
    /// The exit status, or 128 and the number of the signal that ended the program.
    pub exit_code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// What was printed, provided that `program` succeeded.
    pub(super) fn success(self, program: &str) -> Result<String> {
        if self.exit_code == 0 {
            return Ok(self.stdout);
        }
        let message = format!("{program} exited with {}: {}", self.exit_code, self.stderr.trim());
        Err(Error::new(Kind::HostFailed, message))
    }
}

/// Runs `program` as a child in a process group of its own, and lets it hold `turn` until it
/// ends.
pub(super) fn child(
    program: &Path,
    args: &[&str],
    stdin: &[u8],
    limit: Duration,
    turn: &Turn,
) -> Result<Output> {
    run(Command::new(program).args(args).env_clear().envs(ENVIRONMENT), stdin, limit, Some(turn))
}

/// The same for a program that only looks, and may write nothing outside `scratch`.
pub(super) fn query(
    program: &Path,
    args: &[&str],
    scratch: &Path,
    limit: Duration,
) -> Result<Output> {
    let mut command = Command::new(program);
    run(command.args(args).env_clear().envs(ENVIRONMENT).env("TMPDIR", scratch), &[], limit, None)
}

fn run(
    command: &mut Command,
    stdin: &[u8],
    limit: Duration,
    turn: Option<&Turn>,
) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |error: std::io::Error| {
        Error::new(Kind::HostFailed, format!("cannot run {program}: {error}")).because(error)
    };
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = spawn(command, turn).map_err(failed)?;
    let collect = |mut pipe: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = child.stdout.take().map(|pipe| collect(Box::new(pipe)));
    let stderr = child.stderr.take().map(|pipe| collect(Box::new(pipe)));
    // A program may exit without reading what it was given.
    let _ = child.stdin.take().map(|mut pipe| pipe.write_all(stdin));
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if Instant::now() > deadline {
            let group = rustix::process::Pid::from_child(&child);
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            let _ = child.wait();
            let message = format!("{program} ran for more than {limit:?}");
            return Err(Error::new(Kind::HostFailed, message));
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let [stdout, stderr] = [stdout, stderr]
        .map(|thread| thread.and_then(|thread| thread.join().ok()).unwrap_or_default());
    let exit_code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    Ok(Output { exit_code, stdout, stderr })
}

/// Starts a child that inherits `turn` and nobody else's.
///
/// A child gets whatever can be inherited while it is started. So that is one at a time:
/// otherwise a long act, started while a change is at work, would hold the host's lock as well.
fn spawn(command: &mut Command, turn: Option<&Turn>) -> std::io::Result<Child> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mark = |flags| turn.map_or(Ok(()), |turn| fcntl_setfd(turn, flags));
    mark(FdFlags::empty())?;
    let child = command.spawn();
    mark(FdFlags::CLOEXEC)?;
    child
}

/// Runs `program` as the transient unit `name`, or picks up the run of that name which an
/// earlier process started. Whatever the unit started is killed when `limit` is over.
///
/// The unit stays loaded, so that asking again gives the same answer, until [`forget`].
pub(super) fn unit(
    name: &str,
    program: &Path,
    args: &[&str],
    stdin: &[u8],
    limit: Duration,
    turn: &Turn,
) -> Result<Output> {
    let properties = "--property=LoadState,ActiveState,Job,Result,ExecMainStatus";
    let show = || {
        let args = ["show", properties, "--", name];
        child(Path::new(SYSTEMCTL), &args, &[], MANAGER, turn)?.success("systemctl")
    };
    if show()?.contains("LoadState=not-found") {
        pass(name, stdin).map_err(|error| {
            Error::new(Kind::HostFailed, "cannot pass the standard input").because(error)
        })?;
        let mut command = vec![
            format!("--unit={name}"),
            "--quiet".to_owned(),
            "--no-block".to_owned(),
            "--service-type=oneshot".to_owned(),
            "--remain-after-exit".to_owned(),
            format!("--property=TimeoutStartSec={}", limit.as_secs()),
            format!("--property=StandardInput=file:{RUN}/{name}.in"),
            format!("--property=StandardOutput=file:{RUN}/{name}.out"),
            format!("--property=StandardError=file:{RUN}/{name}.err"),
        ];
        command.extend(ENVIRONMENT.map(|(key, value)| format!("--setenv={key}={value}")));
        command.extend(["--".to_owned(), program.to_string_lossy().into_owned()]);
        let command: Vec<&str> = command.iter().map(String::as_str).chain(args.to_vec()).collect();
        child(Path::new("/usr/bin/systemd-run"), &command, &[], MANAGER, turn)?
            .success("systemd-run")?;
    }
    loop {
        let state = show()?;
        let has = |property: &str| state.lines().any(|line| line == property);
        if has("Result=timeout") {
            return Err(Error::new(Kind::HostFailed, format!("{name} ran for {limit:?}")));
        }
        if has("ActiveState=active") || has("ActiveState=failed") {
            let status = state.lines().find_map(|line| line.strip_prefix("ExecMainStatus="));
            let printed = |suffix| {
                let bytes = std::fs::read(format!("{RUN}/{name}.{suffix}")).unwrap_or_default();
                String::from_utf8_lossy(&bytes).into_owned()
            };
            return Ok(Output {
                exit_code: status.and_then(|status| status.parse().ok()).unwrap_or(-1),
                stdout: printed("out"),
                stderr: printed("err"),
            });
        }
        if has("ActiveState=inactive") && has("Job=") {
            return Err(Error::new(Kind::HostFailed, format!("somebody stopped {name}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until no unit whose name matches `pattern` is at work, then forgets them all.
pub(super) fn wait(pattern: &str, turn: &Turn) -> Result<()> {
    let args = ["list-units", "--plain", "--no-legend", "--", pattern];
    let is_busy = |line: &str| !matches!(line.split_whitespace().nth(2), Some("active" | "failed"));
    while child(Path::new(SYSTEMCTL), &args, &[], MANAGER, turn)?
        .success("systemctl")?
        .lines()
        .any(is_busy)
    {
        std::thread::sleep(Duration::from_millis(50));
    }
    forget(pattern, turn);
    Ok(())
}

/// Lets go of finished units, by name or pattern, and of what they printed.
pub(super) fn forget(pattern: &str, turn: &Turn) {
    for verb in ["stop", "reset-failed"] {
        let _ = child(Path::new(SYSTEMCTL), &[verb, "--quiet", "--", pattern], &[], MANAGER, turn);
    }
    let prefix = pattern.trim_end_matches('*');
    for file in std::fs::read_dir(RUN).into_iter().flatten().flatten() {
        if file.file_name().to_string_lossy().starts_with(prefix) {
            let _ = std::fs::remove_file(file.path());
        }
    }
}

/// Leaves `stdin` where the unit finds it: in memory, and for root alone.
fn pass(name: &str, stdin: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(RUN)?;
    let mut options = std::fs::OpenOptions::new();
    let path = format!("{RUN}/{name}.in");
    options.write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(stdin)
}

const RUN: &str = "/run/osapi";
const SYSTEMCTL: &str = "/usr/bin/systemctl";
/// How long the service manager may take to answer.
const MANAGER: Duration = Duration::from_secs(90);
const ENVIRONMENT: [(&str, &str); 3] = [
    ("DEBIAN_FRONTEND", "noninteractive"),
    ("LC_ALL", "C.UTF-8"),
    ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
];
