//! Which version answers.

use schemars::JsonSchema;
use serde::Serialize;

use super::{Here, Local};
use crate::op::{Domain, Nothing, Op};

pub static DOMAIN: Domain<Local> = Domain {
    name: "version",
    about: "The version of the controller",
    ops: &[Op {
        id: "version.get",
        about: "Show the version of the controller",
        path: "/version",
        permission: None,
        run: &Here(|_, _: Nothing| {
            let version = env!("CARGO_PKG_VERSION").to_owned();
            Box::pin(async { Ok(Version { version }) })
        }),
        ..Op::HERE
    }],
};

#[derive(Debug, JsonSchema, Serialize)]
pub struct Version {
    pub version: String,
}
