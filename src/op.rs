//! The vocabulary in which operations are declared.
//!
//! An [`Op`] is one row of one domain's table. Routing, permission checks, validation, the OpenAPI
//! document, the command line, dispatch, audit records and metrics are all read off these rows;
//! none of them names an operation itself. What carries a row out is its `run`: here for what an
//! agent does, in [`controller`](crate::controller) for what the controller answers itself;
//! [`ops`](crate::ops) puts the two together.

use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Kind, Problem, Result};
use crate::host::{Act, Done, Lines, View, Want};
use crate::permission::Permission;

/// A noun of the API and everything that can be done to it.
pub struct Domain<R: 'static = Agent> {
    pub name: &'static str,
    /// One line for help texts and the table of contents.
    pub about: &'static str,
    pub ops: &'static [Op<R>],
}

/// How an agent carries a row out.
pub type Agent = &'static dyn AgentOp;

#[derive(Clone, Copy)]
pub struct Op<R: 'static = Agent> {
    /// The published name, such as `node.sysctl.update`: in jobs, audit, metrics, OpenAPI.
    pub id: &'static str,
    pub about: &'static str,
    pub method: Method,
    /// Below `/api`. `{hostname}` in an agent's row is the target; an agent's row without it is
    /// about the job `{id}` and goes to the hosts of that job.
    pub path: &'static str,
    /// None: anybody who can connect.
    pub permission: Option<Permission>,
    /// What a finished call answers with.
    pub status: u16,
    /// Words of the command below `client`.
    pub command: &'static str,
    /// Flags that are not named like their field: (field, flag).
    pub flags: &'static [(&'static str, &'static str)],
    /// Flags that set a field to false: (field, flag).
    pub opposites: &'static [(&'static str, &'static str)],
    /// Fields that travel in the query although there is a body for others.
    pub in_query: &'static [&'static str],
    /// Fields taken by position in the short form of the command, in order.
    pub args: &'static [&'static str],
    /// What a person's table shows, in order, as (header, pointer into a row); empty: every
    /// field. `*` in a pointer stands for each entry of a list, which then gets a line of its
    /// own; `A:B` shows A as a share of B, in percent.
    pub columns: &'static [(&'static str, &'static str)],
    pub rows: Rows,
    /// It refuses what would take from under a host what it runs on, as
    /// [`View::guard`](crate::host::View::guard) says, unless it is called with `force`.
    pub guarded: bool,
    /// Its job ends in another boot of the host.
    pub ends_boot: bool,
    /// How long one attempt may run on a host.
    pub timeout: Duration,
    pub run: R,
}

/// How the output of one host becomes rows of the answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rows {
    /// One row, which has the fields of the output.
    Host,
    /// One row for each entry of this field, a list, of the output.
    Each(&'static str),
}

impl Op {
    /// What nearly every row has. A permission that was forgotten is one that few hold.
    pub const COMMON: Self = Self::common(&Read(|_: &View, _: &Nothing| Ok(())));
}

impl<R> Op<R> {
    pub const fn common(run: R) -> Self {
        Self {
            id: "",
            about: "",
            method: Method::Get,
            path: "",
            permission: Some(Permission::CommandExecute),
            status: 200,
            command: "",
            flags: &[],
            opposites: &[],
            in_query: &[],
            args: &[],
            columns: &[],
            rows: Rows::Host,
            guarded: false,
            ends_boot: false,
            timeout: Duration::from_secs(30),
            run,
        }
    }

    /// The same row with another `run`.
    pub(crate) fn with<S>(&self, run: S) -> Op<S> {
        let Self { id, about, method, path, permission, status, command, flags, .. } = *self;
        let Self { opposites, in_query, args, columns, rows, guarded, ends_boot, timeout, .. } =
            *self;
        Op {
            id,
            about,
            method,
            path,
            permission,
            status,
            command,
            flags,
            opposites,
            in_query,
            args,
            columns,
            rows,
            guarded,
            ends_boot,
            timeout,
            run,
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Method {
    Delete,
    Get,
    Post,
    Put,
}

impl Method {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delete => "DELETE",
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
        }
    }

    /// Whether parameters that are not in the path travel in a JSON body.
    pub const fn has_body(self) -> bool {
        matches!(self, Self::Post | Self::Put)
    }
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Observes; runs beside anything else and is not recorded before it is answered.
    Read,
    /// Brings a state about, idempotently; one at a time on a host, in the order of submission.
    Write,
    /// Acts now and is not idempotent: kill, run a command. Never repeated.
    Execute,
}

/// The types behind an operation, as data.
pub trait Shape: Send + Sync + 'static {
    fn params(&self, generator: &mut SchemaGenerator) -> Schema;
    fn output(&self, generator: &mut SchemaGenerator) -> Schema;
    /// Parses `params` and drops the result. The controller calls this before anything is
    /// recorded; the agent parses again, so neither process trusts the other's validation.
    fn check(&self, params: &Value) -> Result<()>;
}

pub trait AgentOp: Shape {
    fn access(&self) -> Access;
    /// What `params` ask for on `host`. Asking changes nothing.
    fn intend(&self, host: &View, params: &Value) -> Result<Intent>;
    /// What there is to tell about `host`.
    fn show(&self, host: &View, params: &Value) -> Result<Value>;
    /// What there is to tell of an act.
    fn tell(&self, params: &Value, done: Done) -> Result<Value>;
    /// How it is told where it has no end.
    fn endless(&self) -> Option<&dyn Endless> {
        None
    }
}

/// A part of what has no end.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Piece {
    /// Names its place, from which one can go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub value: Value,
}

/// What has no end is told piece by piece, for as long as somebody listens.
pub trait Endless: Send + Sync {
    /// What prints it, line by line.
    fn open(&self, host: &View, params: &Value) -> Result<Lines>;
    /// What a line says, if anything.
    fn piece(&self, line: &[u8]) -> Result<Option<Piece>>;
}

pub enum Intent {
    Look,
    Want(Want),
    Act(Act),
}

/// Tells how things are.
pub struct Read<P, O>(pub fn(&View, &P) -> Result<O>);

/// Tells what comes, for as long as somebody listens: what prints it, and what a line of that says,
/// with what names its place. The parameters take such a place as `after`, to go on behind it.
pub struct Follow<P, O>(
    pub fn(&View, &P) -> Result<Lines>,
    pub fn(&[u8]) -> Option<(Option<String>, O)>,
);

/// Says how things should be, and tells how they are then.
pub struct Write<P, O>(pub fn(&View, &P) -> Result<Want>, pub fn(&View, &P) -> Result<O>);

/// Says how things should be where that lasts, and what to do, once, where it does not. Tells what
/// there is to tell of either.
pub struct Bring<P, O>(pub fn(&View, &P) -> Result<Intent>, pub fn(&P) -> O);

/// Says what to do, once, and how to tell what came of it: it may be done and still not have come
/// about, which is told from what it left behind.
pub struct Execute<P, O>(pub fn(&View, &P) -> Result<Act>, pub fn(&P, Done) -> Result<O>);

/// What an operation takes: parsed from JSON, described by a schema.
pub trait Params: DeserializeOwned + JsonSchema + 'static {}
impl<T: DeserializeOwned + JsonSchema + 'static> Params for T {}

/// What an operation yields.
pub trait Output: Serialize + JsonSchema + 'static {}
impl<T: Serialize + JsonSchema + 'static> Output for T {}

/// For operations that take nothing.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// What the answer to a change says beside the output of its operation.
#[derive(Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "Changed{T}")]
pub struct Changed<T> {
    /// Whether the host was modified, or would be; false when it already matched.
    pub changed: bool,
    /// What was modified, or would be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<crate::host::Change>,
    /// What would remain after an undo.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub residue: Vec<String>,
    /// Names what a dry run showed; a run with `plan` set to it does just that or nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// True in the answer to a dry run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Until when it has to be confirmed, where that was asked for; it is taken back otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_until: Option<String>,
    #[serde(flatten)]
    pub value: T,
}

impl<P: Params, O: Output> AgentOp for Read<P, O> {
    fn access(&self) -> Access {
        Access::Read
    }

    fn intend(&self, _: &View, _: &Value) -> Result<Intent> {
        Ok(Intent::Look)
    }

    fn show(&self, host: &View, params: &Value) -> Result<Value> {
        encode((self.0)(host, &parse(params)?)?)
    }

    fn tell(&self, _: &Value, _: Done) -> Result<Value> {
        Ok(Value::Null)
    }
}

impl<P: Params, O: Output> AgentOp for Follow<P, O> {
    fn access(&self) -> Access {
        Access::Read
    }

    fn intend(&self, _: &View, _: &Value) -> Result<Intent> {
        Ok(Intent::Look)
    }

    fn show(&self, _: &View, _: &Value) -> Result<Value> {
        Err(Error::new(Kind::Unsupported, "it has no end, and so is told piece by piece only"))
    }

    fn tell(&self, _: &Value, _: Done) -> Result<Value> {
        Ok(Value::Null)
    }

    fn endless(&self) -> Option<&dyn Endless> {
        Some(self)
    }
}

impl<P: Params, O: Output> Endless for Follow<P, O> {
    fn open(&self, host: &View, params: &Value) -> Result<Lines> {
        (self.0)(host, &parse(params)?)
    }

    fn piece(&self, line: &[u8]) -> Result<Option<Piece>> {
        let said = (self.1)(line);
        said.map(|(id, value)| Ok(Piece { id, value: encode(value)? })).transpose()
    }
}

impl<P: Params, O: Output> AgentOp for Write<P, O> {
    fn access(&self) -> Access {
        Access::Write
    }

    fn intend(&self, host: &View, params: &Value) -> Result<Intent> {
        (self.0)(host, &parse(params)?).map(Intent::Want)
    }

    fn show(&self, host: &View, params: &Value) -> Result<Value> {
        encode((self.1)(host, &parse(params)?)?)
    }

    fn tell(&self, _: &Value, _: Done) -> Result<Value> {
        Ok(Value::Null)
    }
}

impl<P: Params, O: Output> AgentOp for Bring<P, O> {
    fn access(&self) -> Access {
        Access::Write
    }

    fn intend(&self, host: &View, params: &Value) -> Result<Intent> {
        (self.0)(host, &parse(params)?)
    }

    fn show(&self, _: &View, params: &Value) -> Result<Value> {
        encode((self.1)(&parse(params)?))
    }

    fn tell(&self, params: &Value, _: Done) -> Result<Value> {
        encode((self.1)(&parse(params)?))
    }
}

impl<P: Params, O: Output> AgentOp for Execute<P, O> {
    fn access(&self) -> Access {
        Access::Execute
    }

    fn intend(&self, host: &View, params: &Value) -> Result<Intent> {
        (self.0)(host, &parse(params)?).map(Intent::Act)
    }

    fn show(&self, _: &View, _: &Value) -> Result<Value> {
        Ok(Value::Null)
    }

    fn tell(&self, params: &Value, done: Done) -> Result<Value> {
        encode((self.1)(&parse(params)?, done)?)
    }
}

/// What a row takes and answers with follows from its types alone.
macro_rules! shaped {
    ($($run:ident => $answer:ty),+ $(,)?) => {$(
        impl<P: $crate::op::Params, O: $crate::op::Output> $crate::op::Shape for $run<P, O> {
            fn params(&self, generator: &mut ::schemars::SchemaGenerator) -> ::schemars::Schema {
                generator.subschema_for::<P>()
            }

            fn output(&self, generator: &mut ::schemars::SchemaGenerator) -> ::schemars::Schema {
                generator.subschema_for::<$answer>()
            }

            fn check(&self, params: &::serde_json::Value) -> $crate::error::Result<()> {
                $crate::op::parse::<P>(params).map(drop)
            }
        }
    )+};
}
pub(crate) use shaped;

shaped! { Read => O, Follow => O, Execute => O, Write => Changed<O>, Bring => Changed<O> }

/// Parses `params` as an operation takes them.
pub fn parse<P: Params>(params: &Value) -> Result<P> {
    P::deserialize(params).map_err(|error| {
        let message = error.to_string();
        // The types of parameters begin with the name that they mostly go by.
        let place = message.split_once(": ").filter(|(name, _)| params.get(name).is_some());
        let problems = place.map(|(name, wrong)| Problem {
            pointer: format!("/{name}"),
            message: wrong.to_owned(),
        });
        let problems = problems.into_iter().collect();
        Error::new(Kind::InvalidInput, message).with_problems(problems)
    })
}

pub(crate) fn encode<O: Output>(output: O) -> Result<Value> {
    serde_json::to_value(output)
        .map_err(|error| Error::new(Kind::Internal, "cannot encode the result").because(error))
}
