//! What the system's journal has, as journalctl tells it.

use std::time::{Duration, Instant};

use super::{Query, View};
use crate::error::{Error, Kind, Result};
use crate::host::command::{Line, Lines};

/// How long it may take to find what is asked for.
const LIMIT: Duration = Duration::from_secs(20);
/// Of every entry, beside what each has anyway: its time, its boot and its cursor.
const FIELDS: &str = "--output-fields=MESSAGE,PRIORITY,SYSLOG_IDENTIFIER,UNIT,_SYSTEMD_UNIT,\
                      _PID,_HOSTNAME,_TRANSPORT";

const LOAD_STATE: Query = Query {
    program: "systemctl",
    args: &["show", "--property=LoadState", "--value", "--"],
    limit: LIMIT,
};

/// Which entries of the journal. What is in here comes behind the sign of an option, so that
/// nothing can be taken for another one.
#[derive(Clone, Debug, Default)]
pub struct Select {
    /// A moment as journalctl takes it.
    pub since: Option<String>,
    /// At least as urgent as this, as syslog names it.
    pub priority: Option<&'static str>,
    /// The full name of a unit.
    pub unit: Option<String>,
}

impl Select {
    fn args(&self) -> Vec<String> {
        let fixed = ["--output=json", "--all", "--quiet", "--no-pager", FIELDS];
        let mut args: Vec<_> = fixed.map(str::to_owned).into();
        let mut option = |name: &str, value: Option<&str>| {
            args.extend(value.map(|value| format!("--{name}={value}")));
        };
        option("since", self.since.as_deref());
        option("priority", self.priority);
        option("unit", self.unit.as_deref());
        args
    }
}

impl View {
    /// Hands entries to `take`, the newest first and at most `lines` of them, until it wants no
    /// more.
    pub fn log(&self, select: &Select, lines: u32, take: impl FnMut(&[u8]) -> bool) -> Result<()> {
        let mut args = select.args();
        args.extend(["--reverse".to_owned(), format!("--lines={lines}")]);
        each(self.journalctl(&args)?, take)
    }

    /// Hands the names under which programs have written to the journal to `take`, in no order.
    pub fn log_sources(&self, take: impl FnMut(&[u8]) -> bool) -> Result<()> {
        let args = ["--quiet", "--no-pager", "--field=SYSLOG_IDENTIFIER"].map(str::to_owned);
        each(self.journalctl(&args)?, take)
    }

    /// Entries as they come, after the last `lines`, or after the one with the cursor `after`. That
    /// is the later one of two beginnings, so `since` is not asked for beside it.
    pub fn follow_log(&self, select: &Select, lines: u32, after: Option<&str>) -> Result<Lines> {
        let since = select.since.clone().filter(|_| after.is_none());
        let mut args = Select { since, ..select.clone() }.args();
        // Alone it shows just what bears the boot id that its reader sees, and in a container that is
        // not what the journal's writer sees.
        args.extend(["--follow".to_owned(), "--merge".to_owned()]);
        match after {
            Some(cursor) => {
                args.extend(["--no-tail".to_owned(), format!("--after-cursor={cursor}")]);
            }
            None => args.push(format!("--lines={lines}")),
        }
        self.journalctl(&args)
    }

    /// Whether the service manager can find a unit of that full name.
    pub fn knows_unit(&self, name: &str) -> Result<bool> {
        let done = self.query(LOAD_STATE, &[name])?;
        Ok(done.success(LOAD_STATE.program)?.trim() != "not-found")
    }

    fn journalctl(&self, args: &[String]) -> Result<Lines> {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        Lines::of(&self.root.command("journalctl")?, &args)
    }
}

fn each(mut lines: Lines, mut take: impl FnMut(&[u8]) -> bool) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match lines.next(deadline.saturating_duration_since(Instant::now())) {
            Ok(Line::Is(line)) if take(&line) => {}
            Ok(Line::Is(_) | Line::Over) => return Ok(()),
            Ok(Line::NotYet) => {
                let seconds = LIMIT.as_secs();
                let message = format!("journalctl found nothing more within {seconds} s");
                return Err(Error::new(Kind::HostFailed, message));
            }
            Err(error) => return Err(unreadable(error)),
        }
    }
}

/// Who may read the journal is decided by its group.
fn unreadable(error: Error) -> Error {
    if !error.to_string().contains("insufficient permissions") {
        return error;
    }
    let message = "cannot read the journal; run the agent as root or in the group systemd-journal";
    Error::new(Kind::AgentUnprivileged, message).because(error)
}
