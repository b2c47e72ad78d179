//! What the C library, and the one for passwords beside it, have and no safe crate does. The only
//! `unsafe` there is.

#![expect(unsafe_code, reason = "system calls that no safe crate has")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

mod crypt;

pub use crypt::{hash, opens};

/// `<asm-generic/socket.h>`; since Linux 4.13.
const SO_PEERGROUPS: libc::c_int = libc::SO_PEERGROUPS;
/// `NGROUPS_MAX`: no process has more.
const MOST_GROUPS: usize = 65_536;

/// Has the reactor say when `socket` is ready for just what is of interest. Within a runtime.
pub fn watch(socket: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    // SAFETY: a `UnixStream` owns its descriptor: it is open, and the same, until it is dropped.
    unsafe { AsyncFd::register_with_interest(socket, interest) }.map_err(Into::into)
}

/// The supplementary groups of whoever is at the other end of a Unix socket, as the kernel
/// recorded them when it connected.
pub fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; 64];
    loop {
        let room = groups.len() * size_of::<u32>();
        let mut length = libc::socklen_t::try_from(room).unwrap_or(libc::socklen_t::MAX);
        // SAFETY: the kernel writes at most `length` bytes to `groups`, which has that many, and
        // the new length to `length`; both outlive the call.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let written = length as usize / size_of::<u32>();
        if result == 0 {
            groups.truncate(written);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // The kernel says how much room it needs.
        if error.raw_os_error() != Some(libc::ERANGE)
            || written <= groups.len()
            || written > MOST_GROUPS
        {
            return Err(error);
        }
        groups.resize(written, 0);
    }
}

/// Calls listen(2) again on a socket that was inherited.
///
/// Until then the kernel tells those who connect that the process which made the socket is at
/// the other end, which is PID 1 where systemd did.
pub fn listen_again(socket: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
    // SAFETY: takes and returns plain integers; the descriptor is borrowed and so is open.
    match unsafe { libc::listen(socket.as_raw_fd(), backlog) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The number of the group `name`, as the system's name service has it. May block, so it is for
/// the start only.
pub fn group_id(name: &str) -> io::Result<Option<u32>> {
    id_of(name, libc::getgrnam_r, |group| group.gr_gid)
}

/// The number of the user `name`, likewise.
pub fn user_id(name: &str) -> io::Result<Option<u32>> {
    id_of(name, libc::getpwnam_r, |user| user.pw_uid)
}

/// How the C library looks an entry up by its name: it fills the second argument, which points to
/// text that it puts in the third, of that length, and says in the last one where the entry is.
type LookUp<T> = unsafe extern "C" fn(
    *const libc::c_char,
    *mut T,
    *mut libc::c_char,
    libc::size_t,
    *mut *mut T,
) -> libc::c_int;

fn id_of<T>(name: &str, look_up: LookUp<T>, id: fn(&T) -> u32) -> io::Result<Option<u32>> {
    let name = CString::new(name)?;
    let mut text = vec![0_u8; 64 * 1024];
    let mut entry = std::mem::MaybeUninit::<T>::uninit();
    let mut found = std::ptr::null_mut();
    // SAFETY: `name` ends with NUL; `entry`, `text` (with its true length) and `found` outlive
    // the call, and `entry` is read only where `found` says that it was filled.
    let result = unsafe {
        look_up(
            name.as_ptr(),
            entry.as_mut_ptr(),
            text.as_mut_ptr().cast(),
            text.len(),
            &raw mut found,
        )
    };
    match (result, found.is_null()) {
        (0, true) => Ok(None),
        // SAFETY: `found` points to `entry`, which was filled, and `text` is still there.
        (0, false) => Ok(Some(id(unsafe { &*found }))),
        (error, _) => Err(io::Error::from_raw_os_error(error)),
    }
}

/// The ends of two pipes by which a child that is about to run a program is held back.
pub struct Leash {
    /// Where the child tells its number, as four bytes in the machine's order.
    pub tell: OwnedFd,
    /// Where the child reads the one byte that lets it go on.
    pub go: OwnedFd,
}

/// Makes the child that `command` starts tell its number and wait before it becomes the program.
/// If the other end of `go` is closed instead, it never does.
///
/// `other` is the other end of `go` in this process, of which the child has a copy to close.
pub fn hold(command: &mut Command, leash: Leash, other: &OwnedFd) {
    let other = other.as_raw_fd();
    let wait = move || {
        let (tell, go) = (leash.tell.as_raw_fd(), leash.go.as_raw_fd());
        // SAFETY: getpid, close, write and read may be called between fork and exec. The
        // descriptors are open there: `leash` lives in this closure, and `other` was copied by
        // fork. The buffers have the lengths given and outlive the calls.
        unsafe {
            libc::close(other);
            let pid = libc::getpid().to_ne_bytes();
            if libc::write(tell, pid.as_ptr().cast(), pid.len()) != 4 {
                return Err(io::Error::from_raw_os_error(libc::EPIPE));
            }
            let mut byte = 0_u8;
            loop {
                match libc::read(go, (&raw mut byte).cast(), 1) {
                    1 => return Ok(()),
                    -1 if *libc::__errno_location() == libc::EINTR => {}
                    _ => return Err(io::Error::from_raw_os_error(libc::ECANCELED)),
                }
            }
        }
    };
    // SAFETY: the closure neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(wait);
    }
}

/// The descriptors that the service manager handed over, closed by what this process executes.
/// Only the first call gets them.
pub fn inherited() -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let passed = sd_notify::listen_fds()?;
    // SAFETY: the service manager says, to this process and no other, that these are open and
    // its own; nobody else here knows them, and `TAKEN` lets nobody take them twice.
    Ok(passed.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_kernel_tells_the_groups_of_a_peer() {
        let (one, _other) = UnixStream::pair().unwrap();
        let mut told = peer_groups(one.as_fd()).unwrap();
        let mut own: Vec<u32> =
            rustix::process::getgroups().unwrap().iter().map(|gid| gid.as_raw()).collect();
        told.sort_unstable();
        own.sort_unstable();
        assert_eq!(told, own);
    }

    #[test]
    fn number_zero_is_root() {
        for id in [user_id, group_id] {
            assert_eq!(id("root").unwrap(), Some(0));
            assert_eq!(id("no-such-name-here").unwrap(), None);
        }
    }
}
