//! Making sure that looking does not touch.
//!
//! Whoever plans or tells runs on a thread that has given up the right to write any file outside
//! a scratch directory, for itself and for what it starts. Giving it up cannot be taken back, so
//! such threads live on and take one piece of work after the other.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use landlock::{
    ABI, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus,
};

use serde_json::Value as Json;
use zeroize::Zeroize;

use crate::error::{Error, Kind, Result};

/// How many look at once for themselves. A thread of the agent that may only look needs none.
const READERS: usize = 4;
/// How many plan at once. The agent has fewer threads for changes, acts and verdicts on changes,
/// so none of these waits for a plan of another, or for a read.
const PLANNERS: usize = 8;

thread_local! {
    /// Whether this thread may only look, and whether the kernel sees to it.
    static EYES: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Threads that may only look.
#[derive(Debug)]
pub(super) struct Eyes {
    scratch: PathBuf,
    readers: Arc<Pool>,
    planners: Arc<Pool>,
}

/// Who is looked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum For {
    Read,
    Change,
}

/// Parameters for whoever looks, as a copy. There may be secrets in them, so all that they say is
/// overwritten once it was looked at.
pub(super) struct Passing(Json);

impl Passing {
    pub(super) fn of(params: &Json) -> Self {
        Self(params.clone())
    }
}

impl Deref for Passing {
    type Target = Json;

    fn deref(&self) -> &Json {
        &self.0
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        overwrite(&mut self.0);
    }
}

fn overwrite(value: &mut Json) {
    match value {
        Json::String(text) => text.zeroize(),
        Json::Array(items) => items.iter_mut().for_each(overwrite),
        Json::Object(fields) => fields.values_mut().for_each(overwrite),
        _ => {}
    }
}

impl Eyes {
    pub(super) fn new(scratch: PathBuf) -> Self {
        Self { scratch, readers: Pool::new(READERS), planners: Pool::new(PLANNERS) }
    }

    /// Runs `work` where the kernel refuses to change any file outside the scratch directory.
    ///
    /// A kernel that knows no Landlock does not refuse; then it is left to [`View`](super::View).
    pub(super) fn look<T: Send + 'static>(
        &self,
        who: For,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if EYES.get().is_some() {
            return guarded(work);
        }
        let (sender, answer) = sync_channel(1);
        let pool = if who == For::Read { &self.readers } else { &self.planners };
        let served_by = Arc::clone(pool);
        let work = move |allowed: bool| {
            let result = if allowed { guarded(work) } else { Err(unrestricted()) };
            // First, so that whoever asks again once it is answered finds a thread free for it.
            served_by.queue().unanswered -= 1;
            // Whoever asked waits for it.
            let _ = sender.send(result);
        };
        pool.give(&self.scratch, Box::new(work))?;
        answer.recv().unwrap_or_else(|_| Err(unrestricted()))
    }

    /// Makes the calling thread one that may only look, for as long as it lives.
    pub(super) fn only_look(&self) -> Result<()> {
        if EYES.get().is_none() {
            let is_held = restrict(&self.scratch).map_err(|error| unrestricted().because(error))?;
            EYES.set(Some(is_held));
        }
        Ok(())
    }

    /// Whether the kernel holds back whoever looks from writing.
    pub(super) fn are_held(&self) -> bool {
        self.look(For::Read, || Ok(EYES.get() == Some(true))).unwrap_or(false)
    }
}

/// Whether the calling thread may only look.
pub(super) fn is_held() -> bool {
    EYES.get().is_some()
}

impl Drop for Eyes {
    fn drop(&mut self) {
        for pool in [&self.readers, &self.planners] {
            pool.queue().is_closed = true;
            pool.bell.notify_all();
        }
    }
}

fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(Error::new(Kind::Internal, "a provider panicked")))
}

fn unrestricted() -> Error {
    Error::new(Kind::Internal, "cannot give up the right to write")
}

type Work = Box<dyn FnOnce(bool) + Send>;

#[derive(Debug)]
struct Pool {
    most: usize,
    queue: Mutex<Queue>,
    bell: Condvar,
}

#[derive(Default)]
struct Queue {
    work: VecDeque<Work>,
    threads: usize,
    /// How much was asked for and is not done.
    unanswered: usize,
    is_closed: bool,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("threads", &self.threads).finish_non_exhaustive()
    }
}

impl Pool {
    fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, queue: Mutex::default(), bell: Condvar::new() })
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues `work`; as many wait as there are callers, each for its own.
    fn give(self: &Arc<Self>, scratch: &Path, work: Work) -> Result<()> {
        let mut queue = self.queue();
        if queue.unanswered >= queue.threads && queue.threads < self.most {
            let (pool, scratch) = (Arc::clone(self), scratch.to_owned());
            let thread = std::thread::Builder::new().name("look".to_owned());
            let started = thread.spawn(move || pool.serve(&scratch));
            match started {
                Ok(_) => queue.threads += 1,
                Err(error) if queue.threads == 0 => {
                    let message = "cannot start a thread to look with";
                    return Err(Error::new(Kind::Unavailable, message).because(error));
                }
                Err(_) => {}
            }
        }
        queue.unanswered += 1;
        queue.work.push_back(work);
        drop(queue);
        self.bell.notify_one();
        Ok(())
    }

    fn serve(&self, scratch: &Path) {
        let held = restrict(scratch);
        EYES.set(held.as_ref().ok().copied());
        let mut queue = self.queue();
        loop {
            if let Some(work) = queue.work.pop_front() {
                drop(queue);
                work(held.is_ok());
                queue = self.queue();
            } else if queue.is_closed {
                return;
            } else {
                queue = self.bell.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// Says whether the kernel does it.
fn restrict(scratch: &Path) -> std::result::Result<bool, RulesetError> {
    let writes = AccessFs::from_write(ABI::V3);
    let mut rules = Ruleset::default().handle_access(writes)?.create()?;
    let exceptions = [(Path::new("/dev/null"), AccessFs::WriteFile.into()), (scratch, writes)];
    for (path, access) in exceptions {
        if let Ok(path) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(path, access))?;
        }
    }
    Ok(rules.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_parameters_say_is_overwritten() {
        let mut params = serde_json::json!({ "a": "b", "c": [{ "d": "e" }, 1, true, null] });
        overwrite(&mut params);
        assert_eq!(params, serde_json::json!({ "a": "", "c": [{ "d": "" }, 1, true, null] }));
    }

    #[test]
    fn who_asks_one_thing_after_the_other_has_one_thread() {
        let dir = tempfile::tempdir().unwrap();
        let eyes = Eyes::new(dir.path().to_owned());
        for n in 0..5_000 {
            assert_eq!(eyes.look(For::Change, move || Ok(n)).unwrap(), n);
        }
        assert_eq!(eyes.planners.queue().threads, 1);
    }

    #[test]
    fn who_asks_beside_others_does_not_wait_for_them() {
        let dir = tempfile::tempdir().unwrap();
        let eyes = Eyes::new(dir.path().to_owned());
        let all = Arc::new(std::sync::Barrier::new(READERS));
        std::thread::scope(|scope| {
            for _ in 0..READERS {
                let all = Arc::clone(&all);
                scope.spawn(|| eyes.look(For::Read, move || Ok(all.wait().is_leader())).unwrap());
            }
        });
        assert_eq!(eyes.readers.queue().threads, READERS);
    }
}
