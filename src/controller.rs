//! The unprivileged half: accepts requests, remembers jobs, answers agents, waits for hosts.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use schemars::{Schema, SchemaGenerator};
use serde_json::Value;

use crate::error::Result;
use crate::op::{self, Domain, Op, Output, Params, Shape};
use crate::permission::Caller;

pub static DOMAINS: &[&Domain<Local>] = &[];

/// How the controller carries a row out.
pub type Local = &'static dyn ControllerOp;

pub type Shared = Arc<Controller>;

pub struct Controller {}

/// One call of a row that the controller answers itself.
pub struct Call {
    pub controller: Shared,
    pub caller: Arc<Caller>,
}

/// An operation of the controller itself: jobs, agents, audit, health.
pub trait ControllerOp: Shape {
    fn run(&self, call: Call, params: Value) -> BoxFuture<'static, Result<Value>>;
}

/// A function of the controller itself.
pub struct Here<P, O>(pub fn(Call, P) -> BoxFuture<'static, Result<O>>);

impl Op<Local> {
    /// What nearly every row of the controller has.
    pub const HERE: Self =
        Self::common(&Here(|_: Call, _: op::Nothing| Box::pin(async { Ok(()) })));
}

impl<P: Params + Send, O: Output> ControllerOp for Here<P, O> {
    fn run(&self, call: Call, params: Value) -> BoxFuture<'static, Result<Value>> {
        let run = self.0;
        Box::pin(async move { op::encode(run(call, op::parse(&params)?).await?) })
    }
}

impl<P: Params, O: Output> Shape for Here<P, O> {
    fn params(&self, generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<P>()
    }

    fn output(&self, generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<O>()
    }

    fn check(&self, params: &Value) -> Result<()> {
        op::parse::<P>(params).map(drop)
    }
}
