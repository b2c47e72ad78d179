//! Making sure that looking does not touch.

use std::path::Path;

use landlock::{
    ABI, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
};

use crate::error::{Error, Kind, Result};

/// Runs `work` where the kernel refuses to change any file outside `scratch`, for it and for
/// what it starts.
///
/// A kernel that knows no Landlock does not refuse; then it is left to [`View`](super::View).
pub(super) fn look<T: Send>(scratch: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            restrict(scratch).map_err(|error| {
                Error::new(Kind::Internal, "cannot give up the right to write").because(error)
            })?;
            work()
        });
        thread.join().unwrap_or_else(|_| Err(Error::new(Kind::Internal, "a provider panicked")))
    })
}

fn restrict(scratch: &Path) -> Result<(), RulesetError> {
    let writes = AccessFs::from_write(ABI::V3);
    let mut rules = Ruleset::default().handle_access(writes)?.create()?;
    let exceptions = [(Path::new("/dev/null"), AccessFs::WriteFile.into()), (scratch, writes)];
    for (path, access) in exceptions {
        if let Ok(path) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(path, access))?;
        }
    }
    rules.restrict_self().map(drop)
}
