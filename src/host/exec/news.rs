//! How far running jobs say they are: of each the latest, for whoever listens. It is in files,
//! because who carries out a part of a job need not be the agent; nothing of it is made durable,
//! and whoever works neither waits for a listener nor fails for want of one.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::error::{Error, Kind, Result};
use crate::job::Progress;

pub(in crate::host) struct News {
    dir: PathBuf,
}

impl News {
    pub(super) fn new(state: &Path) -> Self {
        Self { dir: state.join("news") }
    }

    /// What is said is forgotten when the job is [over](Self::over).
    pub(in crate::host) fn tell(&self, job: &str, progress: &Progress) {
        let (Ok(text), Ok(())) = (serde_json::to_vec(progress), self.make()) else { return };
        let (new, place) = (self.dir.join(format!(".{job}")), self.dir.join(job));
        // Who reads never finds the half of it.
        let _ = fs::write(&new, text).and_then(|()| fs::rename(&new, place));
    }

    pub(super) fn over(&self, job: &str) {
        let _ = fs::remove_file(self.dir.join(job));
    }

    /// What was said last, by job.
    fn latest(&self) -> Vec<(String, Progress)> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let latest = entries.filter_map(|entry| {
            let job = entry.file_name().into_string().ok()?;
            let text = (!job.starts_with('.')).then(|| fs::read(entry.path()).ok())??;
            Some((job, serde_json::from_slice(&text).ok()?))
        });
        latest.collect()
    }

    fn make(&self) -> std::io::Result<()> {
        match fs::DirBuilder::new().mode(0o700).create(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    /// Forgets what is left of earlier agents, and listens from now on.
    pub(super) fn listen(&self) -> Result<Listening<'_>> {
        let _ = fs::remove_dir_all(&self.dir);
        self.make().map_err(deaf)?;
        let watch = inotify::init(CreateFlags::CLOEXEC).map_err(deaf)?;
        inotify::add_watch(&watch, &self.dir, WatchFlags::MOVED_TO).map_err(deaf)?;
        Ok(Listening { news: self, watch })
    }
}

/// Somebody who listens to what running jobs say.
pub struct Listening<'a> {
    news: &'a News,
    watch: OwnedFd,
}

impl Listening<'_> {
    /// Waits until somebody says something, and returns what each job has said last.
    pub fn wait(&self) -> Result<Vec<(String, Progress)>> {
        // Which one it was does not matter, nor how often.
        rustix::io::read(&self.watch, &mut [0; 4096]).map_err(deaf)?;
        Ok(self.news.latest())
    }
}

fn deaf(error: impl Into<std::io::Error>) -> Error {
    let error = error.into();
    Error::new(Kind::HostFailed, format!("cannot listen to running jobs: {error}")).because(error)
}
