//! What is where.

use hyper::http::request::Parts;
use matchit::Router;

use super::answer::Failure;
use crate::error::{Error, Kind, Result};
use crate::op::Method;
use crate::ops::{self, Row};

/// Some clients ask here whether the controller is ready.
const READY_ALIAS: &str = "/health/ready";
pub(super) const OPENAPI: &str = "/api/openapi.json";
pub(super) const METRICS: &str = "/metrics";

/// What a path and a method lead to.
#[derive(Clone, Copy)]
pub(super) enum Place {
    Row(&'static Row),
    OpenApi,
    Metrics,
}

pub(super) struct Routes(Router<Vec<(Method, Place)>>);

impl Routes {
    pub(super) fn new() -> Result<Self> {
        let mut paths: Vec<(String, Vec<(Method, Place)>)> = vec![
            (OPENAPI.to_owned(), vec![(Method::Get, Place::OpenApi)]),
            (METRICS.to_owned(), vec![(Method::Get, Place::Metrics)]),
        ];
        if let Some(row) = ops::find("health.ready") {
            paths.push((READY_ALIAS.to_owned(), vec![(Method::Get, Place::Row(row))]));
        }
        for row in ops::all() {
            let (route, place) = (row.route(), (row.method, Place::Row(row)));
            match paths.iter_mut().find(|(path, _)| *path == route) {
                Some((_, methods)) => methods.push(place),
                None => paths.push((route, vec![place])),
            }
        }
        let mut router = Router::new();
        for (path, methods) in paths {
            router.insert(&path, methods).map_err(|error| {
                Error::new(Kind::Internal, format!("{path} is not a usable route")).because(error)
            })?;
        }
        Ok(Self(router))
    }

    /// What the request line leads to, and the values of the route's placeholders, still encoded.
    pub(super) fn find(&self, parts: &Parts) -> Result<(Place, Vec<(String, String)>), Failure> {
        let path = parts.uri.path();
        let found = self.0.at(path).map_err(|_| {
            let shown: String = path.chars().take(200).collect();
            Error::new(Kind::NotFound, format!("nothing is at {shown}"))
        })?;
        let method = match parts.method.as_str() {
            // Hyper leaves the body away.
            "HEAD" => "GET",
            other => other,
        };
        let offered = found.value.iter().find(|(offered, _)| offered.as_str() == method);
        let Some((_, place)) = offered else {
            let mut allow: Vec<_> = found.value.iter().map(|(m, _)| m.as_str()).collect();
            if allow.contains(&"GET") {
                allow.push("HEAD");
            }
            let allow = allow.join(", ");
            let error = Error::new(Kind::MethodNotAllowed, format!("only {allow} is offered here"));
            return Err(Failure { allow: Some(allow), ..Failure::from(error) });
        };
        let captured = found.params.iter();
        let captured = captured.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Ok((*place, captured.collect()))
    }
}
