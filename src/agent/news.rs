//! How far running jobs are, told while they run and forgotten when nobody listens.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Shared;
use super::link::Asker;
use crate::error::Result;
use crate::job::Progress;
use crate::link::{Ask, Link, Tell};

/// How often the same job is told of.
const PACE: Duration = Duration::from_millis(500);

/// Goes on until the process ends.
pub(super) fn tell<L: Link + 'static>(agent: &Shared<L>) {
    if let Err(error) = listen(agent) {
        tracing::warn!(%error, "nobody will be told how far jobs are");
    }
}

fn listen<L: Link + 'static>(agent: &Shared<L>) -> Result<()> {
    let news = agent.executor().listen()?;
    let mut link = Asker::new((agent.links)());
    let mut told: BTreeMap<String, Progress> = BTreeMap::new();
    loop {
        let latest: BTreeMap<_, _> = news.wait()?.into_iter().collect();
        let is_new = |(job, progress): &(&String, &Progress)| told.get(*job) != Some(progress);
        let tell = latest.iter().filter(is_new).filter_map(|(job, progress)| {
            let data = serde_json::to_value(progress).ok()?;
            Some(Tell { job: job.clone(), data })
        });
        let tell: Vec<_> = tell.collect();
        if !tell.is_empty()
            && let Err(error) = link.ask(agent, &mut Ask::Tell(tell))
        {
            tracing::debug!(%error, "nobody listens to how far jobs are");
        }
        told = latest;
        std::thread::sleep(PACE);
    }
}
