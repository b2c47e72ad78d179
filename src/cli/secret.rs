//! Secrets that a call needs: asked for at the terminal or read from stdin, never an argument.
//! Arguments are for everybody on the host to read for as long as the program runs.

#![expect(clippy::disallowed_types, reason = "the caller's terminal")]

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};

use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};
use zeroize::Zeroizing;

use crate::error::{Error, Kind, Result};

/// The longest that is read, in bytes; the API takes less.
const LONGEST: u64 = 4096;
/// What Ctrl-C sends.
const INTERRUPT: u8 = 3;

/// Where a secret is to come from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    Terminal,
    Stdin,
}

impl Source {
    /// What the flag of `field` says, if it was given; its text is empty where it had none.
    pub(super) fn of(field: &str, given: Option<&str>, is_required: bool) -> Result<Option<Self>> {
        match given {
            None if is_required => Ok(Some(Self::Terminal)),
            None => Ok(None),
            Some("") => Ok(Some(Self::Terminal)),
            Some("-") => Ok(Some(Self::Stdin)),
            // Nor is it repeated here.
            Some(_) => {
                let message = format!(
                    "a {field} is not taken from the command line, which everybody on this host \
                     can read; give --{field} alone to be asked for it, or --{field} - to have it \
                     read from stdin"
                );
                Err(Error::new(Kind::InvalidInput, message))
            }
        }
    }
}

/// A secret parameter of a call.
#[derive(Clone, Eq, PartialEq)]
pub struct Secret {
    pub field: String,
    pub source: Source,
    text: Zeroizing<String>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {:?}", self.field, self.source)
    }
}

impl Secret {
    pub(super) fn new(field: String, source: Source) -> Self {
        Self { field, source, text: Zeroizing::default() }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Gets it from where it is to come from.
    pub(super) fn ask(&mut self) -> Result<()> {
        self.text = match self.source {
            Source::Stdin => read(io::stdin().lock()).map_err(|error| {
                let message = format!("cannot read the {} from stdin: {error}", self.field);
                Error::new(Kind::InvalidInput, message).because(error)
            })?,
            Source::Terminal => at_terminal(&self.field)?,
        };
        if self.text.is_empty() {
            let message = format!("the {} is empty; nothing was asked for", self.field);
            return Err(Error::new(Kind::InvalidInput, message));
        }
        Ok(())
    }
}

/// All there is to read, without the end of its last line.
fn read(source: impl Read) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    source.take(LONGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST {
        return Err(io::Error::other("it is too long"));
    }
    let length = text.strip_suffix('\n').unwrap_or(&text).len();
    text.truncate(length);
    Ok(text)
}

/// Asks twice, so that nobody sets what was mistyped.
fn at_terminal(field: &str) -> Result<Zeroizing<String>> {
    let failed = |error: io::Error| {
        let message = format!(
            "there is no terminal to ask for the {field} at ({error}); give --{field} - to have it \
             read from stdin"
        );
        Error::new(Kind::InvalidInput, message).because(error)
    };
    let terminal = File::options().read(true).write(true).open("/dev/tty").map_err(failed)?;
    let silence = Silence::new(&terminal).map_err(failed)?;
    let mut asked = Vec::new();
    for again in ["", " again"] {
        (&terminal).write_all(format!("{field}{again}: ").as_bytes()).map_err(failed)?;
        let mut line = Zeroizing::new(Vec::new());
        BufReader::new((&terminal).take(LONGEST)).read_until(b'\n', &mut line).map_err(failed)?;
        if line.contains(&INTERRUPT) {
            let message = format!("nothing was asked for: no {field} was given");
            return Err(Error::new(Kind::InvalidInput, message));
        }
        asked.push(line);
    }
    drop(silence);
    if asked[0] != asked[1] {
        let message = format!("the two are not the same; no {field} was set");
        return Err(Error::new(Kind::InvalidInput, message));
    }
    read(&asked[0][..]).map_err(failed)
}

/// A terminal that shows nothing of what is typed, until this is dropped.
struct Silence<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Silence<'a> {
    fn new(terminal: &'a File) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut silent = before.clone();
        // Ctrl-C ends the line instead of the program, which has to bring the echo back.
        silent.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
        silent.local_modes.insert(LocalModes::ECHONL | LocalModes::ICANON);
        silent.special_codes[SpecialCodeIndex::VEOL] = INTERRUPT;
        tcsetattr(terminal, OptionalActions::Flush, &silent)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_no_argument() {
        let of = |given| Source::of("password", given, true);
        assert_eq!(of(Some("")).unwrap(), Some(Source::Terminal));
        assert_eq!(of(None).unwrap(), Some(Source::Terminal));
        assert_eq!(of(Some("-")).unwrap(), Some(Source::Stdin));
        assert_eq!(Source::of("password", None, false).unwrap(), None);
        let error = of(Some("hunter2")).unwrap_err().to_string();
        assert!(error.contains("--password -") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn what_is_read_loses_the_end_of_its_line_and_nothing_else() {
        assert_eq!(*read(&b"correct horse\n"[..]).unwrap(), "correct horse");
        assert_eq!(*read(&b" x \n\n"[..]).unwrap(), " x \n");
        assert!(read(&vec![b'x'; 5000][..]).is_err());
        assert!(read(&b"\xff"[..]).is_err());
    }
}
