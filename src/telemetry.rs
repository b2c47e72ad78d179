//! What the processes say of themselves: to the journal where stderr leads there, else as text.

use std::io::IsTerminal;
use std::os::linux::fs::MetadataExt;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

/// Changes how much is said while the process runs.
#[derive(Clone)]
pub struct Volume(reload::Handle<Targets, Registry>);

impl Volume {
    pub fn set(&self, debug: bool) {
        // The layer lives as long as the process.
        drop(self.0.reload(targets(debug)));
    }
}

/// Begins to say things, under the name `osapi-controller` or another.
pub fn start(name: &str, debug: bool) -> Volume {
    let (targets, handle) = reload::Layer::new(targets(debug));
    let journal = leads_to_journal().then(tracing_journald::layer).and_then(Result::ok);
    let heard = match journal {
        Some(journal) => {
            journal.with_field_prefix(None).with_syslog_identifier(name.to_owned()).boxed()
        }
        None => text().boxed(),
    };
    // Fails where a test has started it before; then that one hears.
    drop(Registry::default().with(targets).with(heard).try_init());
    Volume(handle)
}

fn text<S>() -> impl Layer<S>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    // A person at a terminal knows what time it is.
    let layer = fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(false);
    if std::io::stderr().is_terminal() { layer.without_time().boxed() } else { layer.boxed() }
}

fn targets(debug: bool) -> Targets {
    let own = if debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    Targets::new().with_target("osapi", own).with_default(LevelFilter::WARN)
}

/// Whether stderr is the stream that systemd says leads to the journal.
fn leads_to_journal() -> bool {
    #[expect(clippy::disallowed_methods, reason = "systemd says so in the environment")]
    let stream = std::env::var("JOURNAL_STREAM");
    let Ok(stream) = stream else { return false };
    let same = || {
        let (device, inode) = stream.split_once(':')?;
        let stderr = std::fs::metadata("/proc/self/fd/2").ok()?;
        let (device, inode): (u64, u64) = (device.parse().ok()?, inode.parse().ok()?);
        Some((stderr.st_dev(), stderr.st_ino()) == (device, inode))
    };
    same().unwrap_or(false)
}
