//! The words that make and judge tokens, which whoever may read the signing key does by itself.

use clap::{Arg, ArgAction, ArgMatches, Command};

/// What to do about a token.
#[derive(Debug, Eq, PartialEq)]
pub enum Token {
    /// `token generate`
    Generate { subject: String, roles: Vec<String>, permissions: Vec<String> },
    /// `token validate`: of what was given, or of what stdin says where that is `-`.
    Validate { token: Given },
}

/// A token that somebody wrote down, which is not to be written down again.
#[derive(Eq, PartialEq)]
pub struct Given(pub String);

impl std::fmt::Debug for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Given(…)")
    }
}

#[derive(Clone, Copy)]
pub(super) enum Word {
    Generate,
    Validate,
}

pub(super) const WORDS: [(&[&str], Word); 2] =
    [(&["token", "generate"], Word::Generate), (&["token", "validate"], Word::Validate)];

/// The flags of `word`.
pub(super) fn command(command: Command, word: Word) -> Command {
    let text = |name: &'static str, short: char, help: &'static str| {
        Arg::new(name).long(name).short(short).value_name(name.to_uppercase()).help(help)
    };
    let list = |name, short, help| text(name, short, help).action(ArgAction::Append);
    match word {
        Word::Generate => command
            .about("Make a token, good for 90 days")
            .arg(
                list(
                    "roles",
                    'r',
                    "Roles of the holder, commas between them: read, write, admin, or your own",
                )
                .required(true)
                .value_delimiter(','),
            )
            .arg(text("subject", 'u', "Who will hold it, for the record").required(true))
            .arg(
                list("permissions", 'p', "The holder gets just these instead, such as file:read")
                    .value_delimiter(','),
            ),
        Word::Validate => command.about("Say whether a token is good, and for what").arg(
            text("token", 't', "The token; `-` reads it from stdin, where nobody else sees it")
                .required(true)
                .allow_hyphen_values(true),
        ),
    }
}

pub(super) fn task(word: Word, matches: &ArgMatches) -> Token {
    let one = |name: &str| matches.get_one::<String>(name).cloned().unwrap_or_default();
    let all = |name: &str| {
        let given = matches.get_many::<String>(name).into_iter().flatten();
        let given = given.map(|name| name.trim().to_owned());
        given.filter(|name| !name.is_empty()).collect()
    };
    match word {
        Word::Generate => Token::Generate {
            subject: one("subject"),
            roles: all("roles"),
            permissions: all("permissions"),
        },
        Word::Validate => Token::Validate { token: Given(one("token")) },
    }
}
