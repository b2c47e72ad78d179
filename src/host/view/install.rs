//! By what a unit starts by itself: links that others want it by, and units that go along with it.

use super::{Unit, View};
use crate::error::{Kind, Result};

/// Where the links are that outlive a boot.
const LINKS: &str = "/etc/systemd/system";
/// What the name of a directory of links ends in.
const DIRECTORIES: &[&str] = &[".wants", ".requires", ".upholds"];
/// How many units are looked at that go along with one.
const MOST: usize = 16;

impl View {
    /// The units that systemd enables and disables along with `unit`, because its file names them
    /// with `Also=`, or that of another of them; at most 16.
    pub fn installed_along(&self, unit: &Unit) -> Result<Vec<Unit>> {
        let mut along: Vec<Unit> = Vec::new();
        let mut names = self.also(unit)?;
        while let Some(name) = names.pop() {
            let is_known = |unit: &Unit| unit.id == name || unit.names.contains(&name);
            if along.len() == MOST || is_known(unit) || along.iter().any(is_known) {
                continue;
            }
            let other = self.unit(&name)?;
            if other.is_known() && other.id != unit.id {
                names.extend(self.also(&other)?);
                along.push(other);
            }
        }
        Ok(along)
    }

    /// What its own files name.
    fn also(&self, unit: &Unit) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let files = std::iter::once(&unit.fragment).chain(&unit.drop_ins);
        for path in files.filter(|path| !path.is_empty()) {
            match self.read(path) {
                Ok(text) => names.extend(also_in(&text, &unit.id)),
                // It was loaded and has been taken away since.
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(names)
    }

    /// The links of every boot by which others want the unit of this full name, or that give it
    /// another name.
    pub fn links_to(&self, unit: &str) -> Result<Vec<String>> {
        let mut links = Vec::new();
        for name in self.list_dir(LINKS)? {
            let is_directory = DIRECTORIES.iter().any(|end| name.ends_with(end));
            let path = format!("{LINKS}/{name}");
            let path = if is_directory { format!("{path}/{unit}") } else { path };
            // What is no link, or not there, leads nowhere.
            let Ok(target) = self.read_link(&path) else { continue };
            if is_directory || target.rsplit('/').next() == Some(unit) {
                links.push(path);
            }
        }
        Ok(links)
    }

    /// The directories that hold nothing but some of `links`, and go with the last of them.
    pub fn directories_of(&self, links: &[String]) -> Result<Vec<String>> {
        let mut directories = Vec::new();
        for (directory, _) in links.iter().filter_map(|link| link.rsplit_once('/')) {
            if directory == LINKS || directories.iter().any(|known| known == directory) {
                continue;
            }
            let goes = |name: &String| links.contains(&format!("{directory}/{name}"));
            if self.list_dir(directory)?.iter().all(goes) {
                directories.push(directory.to_owned());
            }
        }
        Ok(directories)
    }

    /// Whether a unit of this full name is what the link at `path` led to.
    pub fn is_link_of(path: &str, target: &str, unit: &str) -> bool {
        let Some(rest) = path.strip_prefix(LINKS) else { return false };
        rest.ends_with(&format!("/{unit}")) || target.rsplit('/').next() == Some(unit)
    }
}

/// The names after `Also=` in a unit file, with what they have of the unit's own name filled in.
/// Templates are left out: nothing of them starts.
fn also_in(text: &str, unit: &str) -> Vec<String> {
    let stem = unit.rsplit_once('.').map_or(unit, |(stem, _)| stem);
    let (prefix, instance) = stem.split_once('@').unwrap_or((stem, ""));
    let text = text.replace("\\\n", " ");
    let mut is_install = false;
    let mut names = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            is_install = line == "[Install]";
        }
        let also = line.split_once('=').filter(|(key, _)| is_install && key.trim_end() == "Also");
        let words = also.into_iter().flat_map(|(_, value)| value.split_whitespace());
        let filled = words.map(|word| {
            let word = word.replace("%i", instance).replace("%I", instance);
            word.replace("%p", prefix).replace("%N", stem).replace("%n", unit)
        });
        names.extend(filled.filter(|name| name.contains('.') && !name.contains("@.")));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_along_is_named_in_the_section_about_that() {
        let text = "[Unit]\nAlso=no.service\n[Install]\n# Also=no.socket\nWantedBy=x.target\n\
                    Also=a.socket \\\n b@%i.path\nAlso = %p.timer c@.service\n";
        assert_eq!(also_in(text, "web@1.service"), ["a.socket", "b@1.path", "web.timer"]);
        assert_eq!(also_in("", "web.service"), [""; 0]);
    }
}
