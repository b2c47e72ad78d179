//! What the agent can tell about a host and bring about on it, one module per domain.
//!
//! A provider reads through a [`View`](crate::host::View) and answers: with what is there
//! ([`Read`](crate::op::Read)), with what should be there ([`Write`](crate::op::Write)) or with
//! the one thing to do ([`Execute`](crate::op::Execute)). It changes nothing itself and sees
//! neither the store nor the network.
//!
//! To add an operation, add its row to `DOMAIN` in the file of its domain, its parameters and its
//! output as types below, and its function below those. A new domain is such a file, its `pub
//! mod` and its place in [`DOMAINS`]. Routes, checks, documents, commands, dispatch, audit and
//! metrics follow. A write also gets a line in `tests/support/cases.rs`, which puts it through
//! every law there is.

use serde::Serialize;

use crate::op::Domain;

pub mod change;
pub mod command;
pub mod file;
pub mod hostname;
pub mod log;
pub mod node;
pub mod package;
pub mod power;
pub mod process;
pub mod service;
pub mod sysctl;
pub mod timezone;
pub mod user;

/// The order is that of the manual and of the command line's help.
pub static DOMAINS: &[&Domain] = &[
    &node::DOMAIN,
    &hostname::DOMAIN,
    &timezone::DOMAIN,
    &sysctl::DOMAIN,
    &service::DOMAIN,
    &package::DOMAIN,
    &log::DOMAIN,
    &power::DOMAIN,
    &user::DOMAIN,
    &process::DOMAIN,
    &command::DOMAIN,
    &file::DOMAIN,
    &change::DOMAIN,
];

/// How much JSON a list in an answer may come to, in bytes. The whole outcome has a bound of
/// 768 KiB, and the rest of it needs room too.
const MAX_LIST: usize = 640 * 1024;

/// As much of `items` as an answer has room for, and whether that is not all.
fn fitting<T: Serialize>(items: Vec<T>) -> (Vec<T>, bool) {
    let count = items.len();
    let mut room = MAX_LIST;
    let fits = |item: &T| {
        // What cannot be encoded takes no room, and is reported when the answer is.
        let size = serde_json::to_vec(item).map_or(0, |json| json.len() + 1);
        let rest = room.checked_sub(size);
        room = rest.unwrap_or(0);
        rest.is_some()
    };
    let kept: Vec<T> = items.into_iter().map_while(keep(fits)).collect();
    let is_cut = kept.len() < count;
    (kept, is_cut)
}

fn keep<T>(mut fits: impl FnMut(&T) -> bool) -> impl FnMut(T) -> Option<T> {
    move |item| fits(&item).then_some(item)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "makes up hosts under a temporary root")]

    use serde_json::{Value, json};

    use super::*;
    use crate::error::Kind;
    use crate::host::{Executor, Root, UndoBounds, View};
    use crate::job::{Options, Outcome, Task};
    use crate::ops;

    /// A host that consists of a few files.
    pub(super) struct Fake {
        pub(super) root: tempfile::TempDir,
        memory: tempfile::TempDir,
        /// Where under the root the agent keeps its memory, if it does there.
        inside: Option<&'static str>,
    }

    impl Fake {
        pub(super) fn with(files: &[(&str, &str)]) -> Self {
            let root = tempfile::tempdir().unwrap();
            std::fs::create_dir(root.path().join("root")).unwrap();
            let fake = Self { root, memory: tempfile::tempdir().unwrap(), inside: None };
            for (path, content) in files {
                fake.put(path, content);
            }
            fake
        }

        pub(super) fn remembering_in(directory: &'static str) -> Self {
            Self { inside: Some(directory), ..Self::with(&[]) }
        }

        pub(super) fn put(&self, path: &str, content: &str) {
            let path = self.at(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }

        /// Its root. What its commands note goes beside that.
        fn place(&self) -> std::path::PathBuf {
            self.root.path().join("root")
        }

        pub(super) fn at(&self, path: &str) -> std::path::PathBuf {
            self.place().join(path.trim_start_matches('/'))
        }

        pub(super) fn remove(&self, path: &str) {
            std::fs::remove_file(self.at(path)).unwrap();
        }

        pub(super) fn text(&self, path: &str) -> Option<String> {
            std::fs::read_to_string(self.at(path)).ok()
        }

        pub(super) fn view(&self) -> View {
            self.executor().view()
        }

        fn executor(&self) -> Executor {
            let root = Root::at(self.place());
            let inside = self.inside.map(|directory| self.at(directory));
            let memory = inside.unwrap_or_else(|| self.memory.path().to_owned());
            Executor::new(root, &memory, UndoBounds::default()).unwrap()
        }

        /// Has `op` carried out as a job of its own, with one object called `object`.
        pub(super) fn run(&self, op: &str, params: Value, object: &str) -> Result<Value, Kind> {
            self.job(&uuid::Uuid::now_v7().to_string(), op, params, object)
        }

        /// What `op` would do.
        pub(super) fn preview(&self, op: &str, params: Value) -> Result<Value, Kind> {
            self.run_with(op, params, Options { dry_run: true, ..Options::default() })
        }

        /// The same as the job of that name.
        pub(super) fn job(
            &self,
            job: &str,
            op: &str,
            params: Value,
            object: &str,
        ) -> Result<Value, Kind> {
            self.task(job, op, params, object, Options::default())
        }

        /// Has `op` carried out as a job of its own, with one object that nobody needs.
        pub(super) fn run_with(
            &self,
            op: &str,
            params: Value,
            options: Options,
        ) -> Result<Value, Kind> {
            self.task(&uuid::Uuid::now_v7().to_string(), op, params, "", options)
        }

        fn task(
            &self,
            job: &str,
            op: &str,
            params: Value,
            object: &str,
            options: Options,
        ) -> Result<Value, Kind> {
            let content = crate::job::Content {
                digest: crate::host::cell::Digest::of(object).to_string(),
                size: object.len() as u64,
                bytes: Some(base64::Engine::encode(
                    &base64::engine::general_purpose::STANDARD,
                    object,
                )),
            };
            let task = Task {
                job: job.to_owned(),
                host: "here".to_owned(),
                op: op.to_owned(),
                params,
                options,
                objects: [("object".to_owned(), content)].into(),
                sealed: None,
                called_off: false,
                left_ms: 60_000,
                begin_by: None,
                until: None,
            };
            match self.executor().run(ops::agent(op).unwrap(), &task).unwrap() {
                Outcome::Done { result } => Ok(result),
                Outcome::Failed { error } => Err(error.kind),
            }
        }
    }

    #[test]
    fn a_list_ends_before_the_answer_is_too_long() {
        assert_eq!(fitting(vec![1, 2, 3]), (vec![1, 2, 3], false));
        let (kept, is_cut) = fitting(vec!["x".repeat(100 * 1024); 10]);
        assert!(is_cut && serde_json::to_vec(&kept).unwrap().len() <= MAX_LIST + 2);
        assert_eq!(kept.len(), 6);
    }

    #[test]
    fn every_field_is_explained_and_nothing_unknown_is_taken() {
        for op in DOMAINS.iter().flat_map(|domain| domain.ops) {
            let unknown = json!({ "no such field": 1 });
            assert_eq!(op.run.check(&unknown).unwrap_err().kind(), Kind::InvalidInput, "{}", op.id);
        }
        for row in ops::chapters().iter().flat_map(|chapter| &chapter.rows) {
            for field in crate::schema::fields(row) {
                assert!(!field.about.is_empty(), "{} says nothing of {}", row.id, field.name);
            }
        }
    }
}
