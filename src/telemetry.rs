//! What the processes say of themselves: to the journal where stderr leads there, else as text.

use std::io::IsTerminal;
use std::os::linux::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

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

/// What others can bring about as often as they like, and is told once in a while only.
#[derive(Default)]
pub(crate) struct Seldom(Mutex<(Option<Instant>, u64)>);

impl Seldom {
    const PAUSE: Duration = Duration::from_mins(1);

    /// How often it was so since it was last told, if it is time to tell.
    pub(crate) fn count(&self) -> Option<u64> {
        self.count_at(Instant::now())
    }

    fn count_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (told, count) = &mut *state;
        *count += 1;
        if told.is_some_and(|told| now.saturating_duration_since(told) < Self::PAUSE) {
            return None;
        }
        *told = Some(now);
        Some(std::mem::take(count))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_does_it_again_and_again_fills_no_log() {
        let (seldom, now) = (Seldom::default(), Instant::now());
        assert_eq!(seldom.count_at(now), Some(1));
        assert!((0..1000).all(|_| seldom.count_at(now).is_none()));
        assert_eq!(seldom.count_at(now + Seldom::PAUSE), Some(1001));
        assert_eq!(seldom.count_at(now + Seldom::PAUSE), None);
    }
}
