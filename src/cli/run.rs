//! Carries a call out: asks, waits, prints, and says how it ended.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use super::call::Call;
use super::client::{Client, Content, Letter, Problem, Reply};
use super::connect::Places;
use super::text::{self, flat};
use super::wait::Wait;
use super::{
    Globals, Reach, Survey, Task, audit, doctor, export, files, follow, output, overview, say,
    terminal,
};
use crate::clock::{Clock, rfc3339};
use crate::controller::{ALL, ONLY, WHICH};
use crate::error::{Error, ErrorBody, Kind, Result};

/// The longest that an answer may take which nobody waits for on purpose.
const LONGEST: Duration = Duration::from_mins(11);
/// As of any command that was not written as it should be.
const MISUSED: u8 = 2;
/// Some of several hosts failed.
const SOME_FAILED: u8 = 16;

/// Does what a person asked the API for, and returns the exit status.
pub fn run(client: super::Client, reach: &Reach) -> ExitCode {
    let super::Client { globals, url, cacert, task } = client;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => {
            let places = || Places::new(url.as_deref(), cacert.as_deref(), reach);
            runtime.block_on(carry_out(&globals, places, task, reach))
        }
        Err(error) => Err(Error::new(Kind::Internal, "cannot start").because(error).into()),
    };
    ExitCode::from(done.unwrap_or_else(|problem| complain(&problem, &globals)))
}

async fn carry_out(
    globals: &Globals,
    places: impl Fn() -> Result<Places>,
    task: Task,
    reach: &Reach,
) -> Result<u8, Problem> {
    let session = |client| Session { client, globals };
    let client = || places().map(|places| Client::new(places, globals.debug));
    match task {
        Task::Elsewhere(elsewhere) => {
            let place = if elsewhere.is_client { "client " } else { "" };
            let (words, instead) = (elsewhere.words, elsewhere.instead);
            say(&format!("`osapi {place}{words}` has nothing to do here: {instead}"));
            Ok(1)
        }
        Task::Survey(Survey::Status) => overview::show(&session(client()?)).await,
        Task::Survey(Survey::Doctor) => doctor::examine(&session(client()?), reach).await,
        Task::Verify(Some(file)) => audit::verify_export(globals, &file, reach),
        Task::Verify(None) => audit::verify(&session(client()?), reach).await,
        Task::Call(mut call) => {
            for secret in &mut call.secrets {
                secret.ask()?;
            }
            let session = session(client()?);
            let is_misused = !call.names_target && call.target == ONLY;
            let done = match call.row.id {
                "audit.export" => export::export(&session, &call).await,
                "file.upload" => session.upload(&call).await,
                _ if call.row.is_endless() => follow::follow(&session, call).await,
                _ => session.call(&call).await,
            };
            match done {
                Err(problem) if is_misused && asks_which(&problem) => {
                    complain(&problem, globals);
                    Ok(MISUSED)
                }
                done => done,
            }
        }
    }
}

pub(super) struct Session<'a> {
    pub(super) client: Client,
    pub(super) globals: &'a Globals,
}

impl Session<'_> {
    /// Asks once.
    pub(super) async fn send(&self, letter: Letter) -> Result<Reply, Problem> {
        let sent = tokio::time::timeout(LONGEST, self.client.send(letter)).await;
        let reply = sent.unwrap_or_else(|_| {
            Err(Error::new(Kind::Timeout, "the controller does not answer; look at its log"))
        })?;
        if reply.status.is_success() { Ok(reply) } else { Err(reply.into()) }
    }

    pub(super) async fn get(&self, uri: &str) -> Result<Reply, Problem> {
        let (uri, headers, body) = (uri.to_owned(), Vec::new(), Content::Nothing);
        self.send(Letter { method: Method::GET, uri, headers, body }).await
    }

    async fn call(&self, call: &Call) -> Result<u8, Problem> {
        let reply = match Wait::new(self, call).answer().await {
            Ok(Ok(reply)) => reply,
            Ok(Err(status)) => return Ok(status),
            Err(problem) => return self.tell_illness(call, problem),
        };
        if reply.status == StatusCode::NO_CONTENT || reply.bytes.is_empty() {
            return self.tell_deletion(call);
        }
        if let Some(age) = reply.age {
            let told = format!("The broker is away: this is what was known {age} s ago.");
            drop(writeln!(io::stderr().lock(), "{told}"));
        }
        let value = reply.json()?;
        if !call.names_target
            && call.target == ALL
            && let Some(problem) = only_failure(&value)
        {
            return Err(problem);
        }
        if reply.is_pending {
            // Only who did not want to wait gets here.
            let id = flat(value["job_id"].as_str().unwrap_or_default());
            self.print(&reply, None, &format!("\n  Job ID: {id}\n"))?;
            return Ok(0);
        }
        if call.asked("stdout") || call.asked("stderr") {
            return self.streams(call, &reply, &value);
        }
        let page = output::page(call.row, &value, terminal::page());
        self.print(&reply, output::document(call, &value), &page)?;
        Ok(exit_of(&value))
    }

    /// Shows the answer of a controller that is not well, which says of what: it is no error but
    /// by its status. Every other problem stays one.
    fn tell_illness(&self, call: &Call, problem: Problem) -> Result<u8, Problem> {
        let is_answer = |told: &&Value| told["components"].is_object();
        let Some(told) = problem.document.as_ref().filter(is_answer) else { return Err(problem) };
        let page = output::page(call.row, told, terminal::page());
        put(&if self.globals.json { format!("{told}\n") } else { page })?;
        Ok(problem.error.kind().exit())
    }

    /// The published answer to the deletion of a job, which has none of its own.
    fn tell_deletion(&self, call: &Call) -> Result<u8, Problem> {
        let id = text::plain(call.params.get("id").unwrap_or(&Value::Null));
        let timestamp = rfc3339(Clock::default().wall());
        let told = json!({ "status": "deleted", "job_id": id, "timestamp": timestamp });
        let page = format!("\n  Job ID: {id}\n  Status: deleted\n");
        put(&if self.globals.json { format!("{told}\n") } else { page })?;
        Ok(0)
    }

    /// Prints a reply: as it came or as `document` where it differs, or for people.
    fn print(&self, reply: &Reply, document: Option<Value>, page: &str) -> Result<()> {
        if !self.globals.json {
            return put(page);
        }
        let text = match document {
            Some(document) => document.to_string(),
            None => String::from_utf8_lossy(&reply.bytes).trim_end().to_owned(),
        };
        put(&format!("{text}\n"))
    }

    /// Passes on what a command printed, and ends as it ended.
    fn streams(&self, call: &Call, reply: &Reply, value: &Value) -> Result<u8, Problem> {
        let results = value["results"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut exit = exit_of(value);
        for result in results {
            let host = output::named(result);
            let told = |name| {
                let text = result[name].as_str().unwrap_or_default();
                text::lines(text).fold(String::new(), |mut told, line| {
                    _ = writeln!(told, "[{host}] {line}");
                    told
                })
            };
            if call.asked("stdout") && !self.globals.json {
                put(&told("stdout"))?;
            }
            if call.asked("stderr") {
                drop(io::stderr().lock().write_all(told("stderr").as_bytes()));
            }
            if let Some(error) = result["error"].as_str().filter(|error| !error.is_empty()) {
                say(&format!("{host}: {}", flat(error)));
            }
            // What a signal ended has no status of its own; 255 is what there is.
            let code = result["exit_code"].as_i64().unwrap_or(0);
            exit = exit.max(u8::try_from(code).unwrap_or(u8::MAX));
        }
        if self.globals.json {
            self.print(reply, None, "")?;
        }
        Ok(exit)
    }

    /// Stores a file, unless the very same is stored under that name.
    async fn upload(&self, call: &Call) -> Result<u8, Problem> {
        let param = |name| text::raw(call.params.get(name).unwrap_or(&Value::Null));
        let (name, content_type) = (param("name"), param("content_type"));
        let is_forced = call.params.get("force").is_some_and(|force| force == true);
        let path = Path::new(call.extras.get("file").map_or("", String::as_str));
        let (digest, size) = files::digest(path)?;
        if !is_forced
            && let Ok(stored) = self.get(&format!("/api/file/{}", text::encoded(&name))).await
            && let Ok(stored) = stored.json()
            && stored["sha256"] == *digest
            && stored["content_type"] == *content_type
        {
            let told = json!({
                "name": name,
                "sha256": digest,
                "size": size,
                "changed": false,
                "content_type": content_type,
            });
            let page = output::page(call.row, &told, terminal::page());
            put(&if self.globals.json { format!("{told}\n") } else { page })?;
            return Ok(0);
        }
        let boundary = format!("osapi-{}", Uuid::now_v7().simple());
        let part = |name: &str, value: &str| {
            format!(
                "--{boundary}\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
            )
        };
        let head = format!(
            "{}{}--{boundary}\r\ncontent-disposition: form-data; name=\"file\"; \
             filename=\"file\"\r\ncontent-type: application/octet-stream\r\n\r\n",
            part("name", &name),
            part("content_type", &content_type),
        );
        let tail = format!("\r\n--{boundary}--\r\n");
        let letter = Letter {
            method: Method::POST,
            uri: format!("/api/file{}", if is_forced { "?force=true" } else { "" }),
            headers: Vec::new(),
            body: Content::Form {
                boundary,
                head: head.into(),
                file: path.to_owned(),
                size,
                tail: Bytes::from(tail),
            },
        };
        let reply = self.send(letter).await?;
        let page = output::page(call.row, &reply.json()?, terminal::page());
        self.print(&reply, None, &page)?;
        Ok(0)
    }
}

/// Writes a result. Whoever does not want to read it any further may stop.
pub(super) fn put(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let what = format!("cannot write the result: {error}");
            Err(Error::new(Kind::Internal, what).because(error))
        }
        _ => Ok(()),
    }
}

/// The exit status of an answer with rows: that of the one host, or that some of them failed.
fn exit_of(reply: &Value) -> u8 {
    if !output::has_failed(reply) {
        return 0;
    }
    // A host may have no row.
    let are_several = output::asked(reply).is_some_and(|asked| asked > 1);
    let kind = match reply["results"].as_array().map(Vec::as_slice) {
        Some([only]) if !are_several => serde_json::from_value::<Kind>(only["kind"].clone()).ok(),
        _ => None,
    };
    kind.map_or(SOME_FAILED, Kind::exit)
}

/// Whether the controller has several hosts to choose from.
fn asks_which(problem: &Problem) -> bool {
    let body = problem.error.body();
    let is_target = |wrong: &crate::error::Problem| wrong.pointer == WHICH;
    body.kind == Kind::InvalidInput && body.problems.iter().any(is_target)
}

/// The error of the one host that there is, as who names it is told.
fn only_failure(reply: &Value) -> Option<Problem> {
    let [only] = reply["results"].as_array()?.as_slice() else { return None };
    let kind = serde_json::from_value(only["kind"].clone()).ok()?;
    if !output::has_failed(reply) {
        return None;
    }
    let error = Error::new(kind, only["error"].as_str().unwrap_or_default());
    let job = reply["job_id"].as_str().map(str::to_owned);
    Some(Problem { error, job, document: None })
}

/// Says on stderr what went wrong and what can be done, and returns the exit status.
fn complain(problem: &Problem, globals: &Globals) -> u8 {
    let body = problem.error.body();
    if globals.json {
        let told = problem.document.clone().unwrap_or_else(
            || json!({ "kind": body.kind, "error": body.message, "job_id": problem.job }),
        );
        drop(writeln!(io::stderr().lock(), "{told}"));
        return body.kind.exit();
    }
    say(&flat(&body.message));
    let problems = match body.problems.as_slice() {
        // What the message says already.
        [only] if body.message.contains(&only.message) => &[],
        all => all,
    };
    for wrong in problems {
        say(&format!("  {}: {}", flat(&wrong.pointer), flat(&wrong.message)));
    }
    for cell in &body.not_restored {
        say(&format!("  not as it was before: {}", flat(cell)));
    }
    if let Some(source) = std::error::Error::source(&problem.error).filter(|_| globals.debug) {
        say(&format!("  because: {}", flat(&source.to_string())));
    }
    if let Some(id) = &problem.job {
        say(&format!("see `osapi job get {}`", flat(id)));
    }
    // What a host refused is no matter of roles, nor is what never reached the controller.
    let is_about_caller = problem.job.is_none() && problem.document.is_some();
    let is_known = matches!(body.kind, Kind::Denied | Kind::Unauthenticated);
    if let Some(hint) = hint(&body).filter(|_| is_about_caller || !is_known) {
        say(hint);
    }
    body.kind.exit()
}

/// What to do next, where the message can't know.
fn hint(body: &ErrorBody) -> Option<&'static str> {
    match body.kind {
        Kind::NoPreview => Some("run it without --dry-run; it cannot tell beforehand"),
        Kind::Denied => Some(
            "roles are given to groups with `controller.groups` in osapi.yaml, and to tokens when \
             they are made",
        ),
        Kind::Unauthenticated => Some(
            "the token is read from controller.client.security.bearer_token in osapi.yaml, or \
             OSAPI_CONTROLLER_CLIENT_SECURITY_BEARER_TOKEN",
        ),
        Kind::Protected if body.message.contains("use force") => {
            Some("--force does it all the same")
        }
        Kind::Stale => Some("look again with --dry-run, then decide"),
        Kind::Interrupted => Some("look at the host before you repeat it"),
        Kind::Expired => Some("it was never begun and can be asked for again"),
        Kind::Timeout => Some("it goes on; only the waiting has ended"),
        Kind::Busy => Some("try again in a while"),
        Kind::Internal => Some("this is a bug of osapi; please report it"),
        _ => None,
    }
}
