//! What is read off the table for those who install the program: manual pages, completions for
//! shells, and the reference of the API.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use clap_complete::Shell;

use super::command;
use crate::ops::{self, Chapter, Row};
use crate::schema::{self, Field};

/// A path below `/usr/share`, and what is in the file there.
type File = (PathBuf, Vec<u8>);

/// All of them.
pub fn pages() -> io::Result<Vec<File>> {
    let mut pages = manual()?;
    for (shell, name) in [
        (Shell::Bash, "bash-completion/completions/osapi"),
        (Shell::Zsh, "zsh/vendor-completions/_osapi"),
        (Shell::Fish, "fish/vendor_completions.d/osapi.fish"),
    ] {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command(), "osapi", &mut text);
        pages.push((name.into(), text));
    }
    // Of some domains the agent carries out one part and the controller another.
    let mut texts = BTreeMap::<_, String>::new();
    for chapter in ops::chapters() {
        texts.entry(chapter.name).or_default().push_str(&reference(chapter));
    }
    pages.extend(
        texts
            .into_iter()
            .map(|(name, text)| (format!("doc/osapi/api/{name}.md").into(), text.into_bytes())),
    );
    Ok(pages)
}

/// A page for every command in its short form; those in the published one are the same, with flags
/// only.
fn manual() -> io::Result<Vec<File>> {
    let mut all = command()
        .disable_help_subcommand(true)
        .mut_subcommand("client", |client| client.hide(true))
        .mut_subcommand("node", |node| node.hide(true));
    all.build();
    let mut pages = Vec::new();
    let mut left = vec![all];
    while let Some(command) = left.pop() {
        left.extend(command.get_subcommands().filter(|below| !below.is_hide_set()).cloned());
        let page = clap_mangen::Man::new(command)
            .manual("OSAPI")
            .source(concat!("osapi ", env!("CARGO_PKG_VERSION")));
        let mut text = Vec::new();
        page.render(&mut text)?;
        pages.push((PathBuf::from("man/man1").join(page.get_filename()), text));
    }
    Ok(pages)
}

/// What can be asked of the API in one domain.
fn reference(chapter: &Chapter) -> String {
    let mut text = format!("# {}\n", chapter.about);
    for row in &chapter.rows {
        operation(&mut text, row);
    }
    text
}

fn operation(text: &mut String, row: &Row) {
    // Writing to a String cannot fail.
    _ = writeln!(text, "\n## {}\n\n{}.\n", row.id, row.about);
    _ = writeln!(text, "    {} {}", row.method.as_str(), row.route());
    if !row.command.is_empty() {
        _ = writeln!(text, "    osapi client {}", row.command);
    }
    let permission = row.permission.map_or("none", |permission| permission.as_str());
    _ = writeln!(text, "\nPermission: {permission}. Success: {}.", row.status);
    let fields = schema::fields(row);
    if fields.is_empty() {
        return;
    }
    text.push_str("\n| Parameter | Type | |\n|---|---|---|\n");
    for field in fields {
        _ = writeln!(text, "| `{}` | {} | {} |", field.name, kind(&field), field.about);
    }
}

fn kind(field: &Field) -> String {
    let kind = match field.choices.as_slice() {
        [] => format!("{:?}", field.kind).to_lowercase(),
        choices => format!("`{}`", choices.join("`, `")),
    };
    let kind = kind.replace('|', "\\|");
    if field.required { kind } else { format!("{kind}, optional") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_a_page_and_every_command_a_manual() {
        let pages = pages().unwrap();
        let find = |name: &str| {
            let page = pages.iter().find(|(path, _)| path.to_str() == Some(name));
            String::from_utf8(page.expect(name).1.clone()).unwrap()
        };
        for chapter in ops::chapters() {
            let text = find(&format!("doc/osapi/api/{}.md", chapter.name));
            assert!(chapter.rows.iter().all(|row| text.contains(&format!("\n## {}\n", row.id))));
        }
        assert!(find("man/man1/osapi.1").contains(".TH"));
        assert!(find("man/man1/osapi-file-deploy.1").contains("dry\\-run"));
        for shell in ["bash-completion/completions/osapi", "zsh/vendor-completions/_osapi"] {
            assert!(find(shell).contains("deploy"), "{shell}");
        }
    }
}
