//! Units that the service manager is asked to run for OSAPI, now or later: one way to ask for all
//! of them.
//!
//! Whatever is asked for is in the slice of OSAPI and on record with its job, and goes away when
//! it has ended.

use std::time::Duration;

/// What the service manager is to run, and with what rights.
#[derive(Default)]
pub(super) struct Transient<'a> {
    /// Without its suffix; the service manager makes one up where it is empty.
    pub(super) name: String,
    pub(super) about: String,
    /// The job that it is for; empty where that is nobody's.
    pub(super) job: &'a str,
    pub(super) start: Start,
    /// Properties of the service, as `KEY=VALUE`.
    pub(super) properties: Vec<String>,
    /// Its environment, as `KEY=VALUE`.
    pub(super) environment: Vec<String>,
    /// Whether it stays when it has failed, for whoever looks how it went.
    pub(super) stays_failed: bool,
}

#[derive(Clone, Copy, Default)]
pub(super) enum Start {
    /// Now; whoever asks waits for its end.
    #[default]
    Now,
    /// The same, and its output goes to whoever asks.
    Heard,
    /// By a timer of the same name. Nobody waits for that.
    In(Duration),
}

impl Transient<'_> {
    /// How systemd-run is called to have `command` run.
    pub(super) fn args(&self, command: &[&str]) -> Vec<String> {
        let mut args = vec!["--quiet".to_owned(), "--slice=osapi.slice".to_owned()];
        if !self.stays_failed {
            args.push("--collect".to_owned());
        }
        if !self.name.is_empty() {
            args.push(format!("--unit={}", self.name));
        }
        args.push(format!("--description={}", self.about));
        match self.start {
            Start::Now => args.push("--service-type=oneshot".to_owned()),
            Start::Heard => {
                args.extend(["--service-type=exec", "--wait", "--pipe"].map(str::to_owned));
            }
            Start::In(delay) => {
                args.push(format!("--on-active={}ms", delay.as_millis()));
                args.push("--timer-property=AccuracySec=100ms".to_owned());
            }
        }
        if !self.job.is_empty() {
            args.push(format!("--property=LogExtraFields=OSAPI_JOB_ID={}", self.job));
        }
        args.extend(self.environment.iter().map(|set| format!("--setenv={set}")));
        args.extend(self.properties.iter().map(|property| format!("--property={property}")));
        args.push("--".to_owned());
        args.extend(command.iter().map(|word| (*word).to_owned()));
        args
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_in_the_slice_and_on_record_with_its_job() {
        for start in [Start::Now, Start::Heard, Start::In(Duration::from_secs(2))] {
            let name = "osapi-job-j.1".to_owned();
            let args = Transient { name, job: "j", start, ..Transient::default() }.args(&["true"]);
            for word in [
                "--collect",
                "--property=LogExtraFields=OSAPI_JOB_ID=j",
                "--slice=osapi.slice",
                "--unit=osapi-job-j.1",
            ] {
                assert!(args.iter().any(|arg| arg == word), "{word}: {args:?}");
            }
            assert_eq!(args[args.len() - 2..], ["--", "true"]);
        }
    }
}
