//! The program: arguments, then one of the mains.

use std::process::ExitCode;

use osapi::cli::{self, Invocation};
use osapi::error::Error;
use osapi::start;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(Invocation::Client(client)) => match start::reach(client.globals.file.as_deref()) {
            Ok(reach) => cli::run(client, &reach),
            Err(error) => fail(&error),
        },
        Ok(Invocation::Token(globals, token)) => match start::token(&globals, &token) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        },
        Ok(Invocation::Nats(globals, nats)) => match start::nats(&globals, &nats) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        },
        Ok(Invocation::Server(server)) => match start::run(&server) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        },
        Err(code) => code,
    }
}

fn fail(error: &Error) -> ExitCode {
    eprintln!("osapi: {error}");
    ExitCode::from(error.kind().exit().max(1))
}
