//! What dpkg and apt write: the tables that dpkg keeps, and lines that apt prints.
//!
//! Only their form is read here, of any input whatsoever: what is too long is cut, what does not
//! belong is left out, and nothing is kept that is not asked for.

use std::io::{self, BufRead, Read};

use schemars::JsonSchema;
use serde::Serialize;

use crate::job::Progress;

/// How many bytes of a line are read; the rest of it is skipped.
const MAX_LINE: u64 = 16 * 1024;
/// How many bytes of a value are kept.
const MAX_VALUE: usize = 1024;

/// A package in one of dpkg's tables, or in apt's.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Stanza {
    pub package: String,
    pub architecture: String,
    pub version: String,
    /// The first line of its description.
    pub summary: String,
    /// What it takes when it is installed, in KiB.
    pub size: u64,
    /// What is wanted, whether something is wrong, and the state: three words.
    pub status: String,
    /// Whether the system does without it at its peril.
    pub is_essential: bool,
    /// Whether it is there only because others need it.
    pub is_auto: bool,
}

impl Stanza {
    /// How apt calls it where `native` is the host's own architecture: with its own one where that
    /// is another.
    pub fn name(&self, native: Option<&str>) -> String {
        let own = self.architecture.as_str();
        if matches!(own, "" | "all") || native.is_none_or(|native| native == own) {
            return self.package.clone();
        }
        format!("{}:{own}", self.package)
    }

    /// The state, such as `installed`, `config-files` or `half-configured`.
    pub fn state(&self) -> &str {
        self.status.split(' ').nth(2).unwrap_or("not-installed")
    }

    /// Whether there is none of it but perhaps its configuration.
    pub fn is_absent(&self) -> bool {
        matches!(self.state(), "not-installed" | "config-files")
    }

    /// Whether it is there and nothing is left to do about it but what other packages trigger.
    pub fn is_installed(&self) -> bool {
        matches!(self.state(), "installed" | "triggers-pending" | "triggers-awaited")
            && !self.needs_reinstallation()
    }

    /// Whether dpkg can finish it with what it has.
    pub fn is_pending(&self) -> bool {
        !self.is_absent() && self.state() != "installed" && !self.is_broken()
    }

    /// Whether it has to be unpacked again, or removed, before dpkg does anything else about it.
    pub fn is_broken(&self) -> bool {
        self.state() == "half-installed" || self.needs_reinstallation()
    }

    fn needs_reinstallation(&self) -> bool {
        self.status.split(' ').nth(1) == Some("reinstreq")
    }

    fn take(&mut self, name: &[u8], value: &[u8]) {
        let text = || {
            let text = String::from_utf8_lossy(value.trim_ascii()).into_owned();
            let end = text.floor_char_boundary(MAX_VALUE);
            let mut text = text;
            text.truncate(end);
            text
        };
        match name {
            b"Package" => self.package = text(),
            b"Architecture" => self.architecture = text(),
            b"Version" => self.version = text(),
            b"Description" => self.summary = text(),
            b"Installed-Size" => self.size = text().parse().unwrap_or_default(),
            b"Status" => self.status = text(),
            b"Essential" | b"Important" | b"Protected" => self.is_essential |= text() == "yes",
            b"Auto-Installed" => self.is_auto = text() == "1",
            _ => {}
        }
    }
}

/// The packages of a table, one after the other; it is never in memory as a whole.
pub fn stanzas<R: BufRead>(table: R) -> Stanzas<R> {
    Stanzas { table, line: Vec::new(), is_over: false }
}

pub struct Stanzas<R> {
    table: R,
    line: Vec<u8>,
    is_over: bool,
}

impl<R: BufRead> Stanzas<R> {
    /// Reads the next line; false at the end.
    fn advance(&mut self) -> io::Result<bool> {
        self.line.clear();
        let read = self.table.by_ref().take(MAX_LINE).read_until(b'\n', &mut self.line)?;
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        } else if read as u64 == MAX_LINE {
            self.table.skip_until(b'\n')?;
        }
        Ok(read > 0)
    }
}

impl<R: BufRead> Iterator for Stanzas<R> {
    type Item = io::Result<Stanza>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut stanza = Stanza::default();
        while !self.is_over {
            match self.advance() {
                Ok(is_line) => self.is_over = !is_line,
                Err(error) => {
                    self.is_over = true;
                    return Some(Err(error));
                }
            }
            let line = &self.line[..];
            if line.trim_ascii().is_empty() {
                if !stanza.package.is_empty() {
                    return Some(Ok(stanza));
                }
                stanza = Stanza::default();
            } else if !line.starts_with(b" ")
                && !line.starts_with(b"\t")
                && let Some(colon) = line.iter().position(|byte| *byte == b':')
            {
                stanza.take(&line[..colon], &line[colon + 1..]);
            }
        }
        None
    }
}

/// Whether `text` can name a package, by the rules of Debian's policy (section 5.6.1). A name
/// that ends in a minus is refused all the same: apt takes that for the wish to remove.
pub fn is_name(text: &str) -> bool {
    let is_letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (2..=128).contains(&text.len())
        && text.bytes().next().is_some_and(is_letter)
        && !text.ends_with(['-', '.'])
        && text.bytes().all(|b| is_letter(b) || b"+.-".contains(&b))
}

/// Whether `text` can be a version (policy, section 5.6.12).
pub fn is_version(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".+-:~".contains(&b))
}

/// Whether `text` can name an architecture.
pub fn is_architecture(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// A package's name, and its architecture where that is said: `NAME` or `NAME:ARCHITECTURE`.
pub fn split_name(text: &str) -> Option<(&str, Option<&str>)> {
    match text.split_once(':') {
        Some((name, arch)) => {
            (is_name(name) && is_architecture(arch)).then_some((name, Some(arch)))
        }
        None => is_name(text).then_some((text, None)),
    }
}

/// What apt would do to one package: give it this version, or remove it.
pub type Doing<'a> = (&'a str, Option<&'a str>);

/// Reads a line of `apt-get --simulate`: `Inst NAME [OLD] (NEW SOURCE..)` or `Remv NAME [OLD]`.
pub fn simulated(line: &str) -> Option<Doing<'_>> {
    let (action, rest) = line.split_once(' ')?;
    let name = rest.split(' ').next().filter(|name| split_name(name).is_some())?;
    match action {
        "Inst" => {
            let version = rest.split_once('(')?.1.split([' ', ')']).next()?;
            is_version(version).then_some((name, Some(version)))
        }
        "Remv" | "Purg" => Some((name, None)),
        _ => None,
    }
}

/// A package for which there is something newer.
#[derive(Clone, Debug, JsonSchema, PartialEq, Serialize)]
pub struct Update {
    pub name: String,
    pub current_version: String,
    pub new_version: String,
}

/// Reads a line of `apt list --upgradable`: `NAME/SUITES NEW ARCH [upgradable from: OLD]`.
pub fn upgradable(line: &str) -> Option<Update> {
    let (name, rest) = line.split_once('/')?;
    let (head, old) = rest.split_once(" [upgradable from: ")?;
    let (old, new) = (old.trim_end().strip_suffix(']')?, head.split(' ').nth(1)?);
    let is_sound = is_name(name) && is_version(old) && is_version(new);
    is_sound.then(|| Update {
        name: name.to_owned(),
        current_version: old.to_owned(),
        new_version: new.to_owned(),
    })
}

/// Reads a line that apt prints where `APT::Status-Fd` says: `KIND:ITEM:PERCENT:TEXT`.
pub fn told(line: &str) -> Option<Progress> {
    let mut parts = line.trim_end().splitn(4, ':');
    let kind = parts.next()?;
    let percent: f64 = parts.nth(1)?.trim().parse().ok()?;
    let message = parts.next()?.trim();
    if !matches!(kind, "dlstatus" | "pmstatus" | "pmerror") || message.is_empty() {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    let percent = percent.is_finite().then(|| percent.clamp(0.0, 100.0) as u8);
    Some(Progress::new(message, percent))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<Stanza> {
        stanzas(text.as_bytes()).map(Result::unwrap).collect()
    }

    #[test]
    fn a_table_is_read_stanza_by_stanza() {
        let text = "Package: hello\nEssential: yes\nStatus: hold ok installed\n\
                    Installed-Size: 280\nArchitecture: amd64\nVersion: 2.10-3\n\
                    Conffiles:\n /etc/hello 0123 obsolete\n\
                    Description: greets\n Package: deceiver\n .\n Version: 9\n\n\n\
                    Package: old\nStatus: deinstall ok config-files\nVersion: 1\n\n\
                    Status: install ok installed\n\n\
                    Package: torn\nStatus: install reinstreq half-inst";
        let [hello, old, torn] = &read(text)[..] else { panic!("{:?}", read(text)) };
        assert_eq!((&*hello.package, &*hello.version, hello.size), ("hello", "2.10-3", 280));
        assert_eq!((&*hello.summary, hello.is_essential), ("greets", true));
        assert!(hello.is_installed() && !hello.is_pending() && !hello.is_broken());
        assert!(old.is_absent() && !old.is_pending());
        assert!(torn.is_broken() && !torn.is_installed());
    }

    #[test]
    fn what_dpkg_left_half_done_is_told_apart() {
        let of = |status: &str| Stanza { status: status.to_owned(), ..Stanza::default() };
        for (status, installed, pending, broken) in [
            ("install ok installed", true, false, false),
            ("install ok triggers-pending", true, true, false),
            ("install ok unpacked", false, true, false),
            ("install ok half-configured", false, true, false),
            ("install ok half-installed", false, false, true),
            ("install reinstreq unpacked", false, false, true),
            ("", false, false, false),
        ] {
            let stanza = of(status);
            let found = (stanza.is_installed(), stanza.is_pending(), stanza.is_broken());
            assert_eq!(found, (installed, pending, broken), "{status}");
        }
    }

    #[test]
    fn lines_without_end_are_cut() {
        let text = format!("Package: a{}\nVersion: 1\n", "b".repeat(100_000));
        let [stanza] = &read(&text)[..] else { panic!("not one") };
        assert_eq!((stanza.package.len(), &*stanza.version), (MAX_VALUE, "1"));
    }

    #[test]
    fn names_cannot_be_taken_for_anything_else() {
        for name in ["hello", "g++", "libc6", "0ad", "python3.11", "gtk+3.0"] {
            assert!(is_name(name), "{name}");
        }
        for name in
            ["", "a", "-y", "hello-", "hello.", "Hello", "a b", "a/b", "a=1", "a\n", "*", "ü1"]
        {
            assert!(!is_name(name), "{name:?}");
        }
        assert_eq!(split_name("hello:i386"), Some(("hello", Some("i386"))));
        for name in ["hello:", ":i386", "hello:i386:x", "hello:-x", "hello:I"] {
            assert_eq!(split_name(name), None, "{name}");
        }
        for version in ["1", "2:1.0-1+b1~bpo12"] {
            assert!(is_version(version), "{version}");
        }
        for version in ["", "-1", "1 2", "1/stable", "1=2", "~1", "1\n"] {
            assert!(!is_version(version), "{version:?}");
        }
    }

    #[test]
    fn a_simulation_names_packages_and_versions() {
        for (line, expected) in [
            ("Inst hello (2.10-3 Debian:12/stable [amd64])", Some(("hello", Some("2.10-3")))),
            ("Inst hello:i386 [1] (2 x [i386]) []", Some(("hello:i386", Some("2")))),
            ("Remv hello [2.10-3] [other:amd64 ]", Some(("hello", None))),
            ("Conf hello (2.10-3 Debian:12/stable [amd64])", None),
            ("Inst -y (1)", None),
            ("Inst hello", None),
            ("Reading package lists...", None),
        ] {
            assert_eq!(simulated(line), expected, "{line}");
        }
    }

    #[test]
    fn updates_name_both_versions() {
        let line = "hello/stable,now 2.0 amd64 [upgradable from: 1.0]";
        let update = upgradable(line).unwrap();
        assert_eq!((&*update.name, &*update.current_version), ("hello", "1.0"));
        assert_eq!(update.new_version, "2.0");
        assert_eq!(upgradable("Listing..."), None);
    }

    #[test]
    fn progress_is_what_apt_says_for_machines() {
        let progress = told("pmstatus:hello:33.3333:Unpacking hello (amd64): now\n").unwrap();
        assert_eq!(progress.message, "Unpacking hello (amd64): now");
        assert_eq!(progress.percent, Some(33));
        assert_eq!(told("dlstatus:1:-7:x").unwrap().percent, Some(0));
        for line in ["Unpacking hello ...", "pmstatus:a:b:c", "pmstatus:a:1:", "x:y:1:z", ""] {
            assert_eq!(told(line), None, "{line}");
        }
    }
}
