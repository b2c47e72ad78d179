//! Files kept for hosts to fetch.

use std::io::Cursor;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use super::notes::entry;
use super::{Call, Here, Local, Upload};
use crate::error::{Error, Kind, Result};
use crate::op::{Domain, Method, Nothing, Op, Rows};
use crate::permission::Permission;
use crate::store::{self, Noting, Object, audit};
use crate::types::ObjectName;

/// Names below it are OSAPI's own.
const OURS: &str = "osapi/";

pub static DOMAIN: Domain<Local> = Domain {
    name: "file",
    about: "Files kept for hosts to fetch",
    ops: &[
        Op {
            id: "file.list",
            about: "List the files that are kept",
            path: "/file",
            permission: Some(Permission::FileRead),
            command: "file list",
            columns: &[
                ("NAME", "/name"),
                ("SHA256", "/sha256"),
                ("SIZE", "/size"),
                ("SOURCE", "/source"),
            ],
            rows: Rows::Each("files"),
            run: &Here(|call, _: Nothing| Box::pin(list(call))),
            ..Op::HERE
        },
        Op {
            id: "file.upload",
            about: "Keep a file under a name",
            method: Method::Post,
            path: "/file",
            permission: Some(Permission::FileWrite),
            status: 201,
            command: "file upload",
            flags: &[("content_type", "content-type")],
            run: &Upload(|call, params| Box::pin(upload(call, params))),
            ..Op::HERE
        },
        Op {
            id: "file.get",
            about: "Show what is known of a file",
            path: "/file/{name}",
            permission: Some(Permission::FileRead),
            command: "file get",
            args: &["name"],
            run: &Here(|call, params| Box::pin(get(call, params))),
            ..Op::HERE
        },
        Op {
            id: "file.delete",
            about: "Delete a file; hosts keep what was deployed",
            method: Method::Delete,
            path: "/file/{name}",
            permission: Some(Permission::FileWrite),
            command: "file delete",
            args: &["name"],
            run: &Here(|call, params| Box::pin(delete(call, params))),
            ..Op::HERE
        },
    ],
};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Put {
    /// What to call it, 1 to 255 printable characters.
    pub name: ObjectName,
    /// What it is.
    #[serde(default)]
    pub content_type: ContentType,
    /// Replaces other content of that name.
    #[serde(default)]
    pub force: bool,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ContentType {
    #[default]
    Raw,
    Template,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// What it is called, 1 to 255 printable characters.
    pub name: ObjectName,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct Files {
    pub files: Vec<Listed>,
    pub total: usize,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct Listed {
    #[serde(flatten)]
    pub file: Kept,
    /// Where it came from: `user`, or `osapi` for what OSAPI keeps itself.
    pub source: String,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct Kept {
    pub name: String,
    /// In hexadecimal.
    pub sha256: String,
    /// In bytes.
    pub size: u64,
    pub content_type: String,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct Uploaded {
    #[serde(flatten)]
    pub file: Kept,
    /// Whether anything is kept now that was not before.
    pub changed: bool,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct Deleted {
    pub name: String,
    pub deleted: bool,
}

impl From<Object> for Kept {
    fn from(object: Object) -> Self {
        let Object { name, size, digest, content_type, .. } = object;
        Self { name, sha256: digest, size, content_type }
    }
}

async fn list(call: Call) -> Result<Files> {
    let objects = call.controller.objects.list().await?;
    let files: Vec<_> = objects
        .into_iter()
        .map(|object| {
            let source = if object.name.starts_with(OURS) { "osapi" } else { "user" };
            Listed { source: source.to_owned(), file: object.into() }
        })
        .collect();
    Ok(Files { total: files.len(), files })
}

async fn get(call: Call, Named { name }: Named) -> Result<Kept> {
    let found = call.controller.objects.find(name.as_str()).await?;
    found.map(Kept::from).ok_or_else(|| missing(name.as_str()))
}

async fn upload(mut call: Call, Put { name, content_type, force }: Put) -> Result<Uploaded> {
    let name = name.as_str();
    allow(name)?;
    let absent = || Error::new(Kind::InvalidInput, "there is no part `file` in the upload");
    let mut content = call.content.take().ok_or_else(absent)?;
    // An empty file is told apart before anything is made of it.
    let mut start = vec![0; 4096];
    let read = content.read(&mut start).await.map_err(|error| {
        Error::new(Kind::InvalidInput, "the upload broke off; send it again").because(error)
    })?;
    if read == 0 {
        return Err(Error::new(Kind::InvalidInput, format!("the file {name:?} is empty")));
    }
    start.truncate(read);
    let content_type = match content_type {
        ContentType::Raw => "raw",
        ContentType::Template => "template",
    };
    let upload = store::Upload {
        name: name.to_owned(),
        content_type: content_type.to_owned(),
        content: Box::pin(Cursor::new(start).chain(content)),
        force,
        note: Some(noting(&call, 201, |object, changed| json!(uploaded(object.clone(), changed)))),
    };
    let (object, changed) = call.controller.objects.put(upload).await?;
    Ok(uploaded(object, changed))
}

fn uploaded(object: Object, changed: bool) -> Uploaded {
    Uploaded { file: object.into(), changed }
}

async fn delete(call: Call, Named { name }: Named) -> Result<Deleted> {
    let name = name.as_str();
    allow(name)?;
    let objects = &call.controller.objects;
    let noting = noting(&call, 200, |object, _| json!(deleted(&object.name)));
    if objects.find(name).await?.is_none() || !objects.delete(name, Some(noting)).await? {
        return Err(missing(name));
    }
    Ok(deleted(name))
}

fn deleted(name: &str) -> Deleted {
    Deleted { name: name.to_owned(), deleted: true }
}

/// The audit entry of a call that succeeds, made when that is known, and what `answer` says is
/// answered to whoever asks again.
fn noting(call: &Call, code: u16, answer: fn(&Object, bool) -> Value) -> Noting {
    let (trail, caller, clock) =
        (call.trail.clone(), call.caller.clone(), call.controller.clock.clone());
    let keyed = call.keyed();
    Box::new(move |step, object, changed| {
        let ms = clock.wall().saturating_sub(trail.at);
        let note = audit::Note::Entry(entry(&trail, &caller, Some(code), Some(ms)));
        let step = match keyed {
            Some(keyed) => keyed.keep(&answer(object, changed))?.and(step),
            None => step,
        };
        Ok(step.note(note))
    })
}

fn allow(name: &str) -> Result<()> {
    if name.starts_with(OURS) {
        let message = format!("names below {OURS} are OSAPI's own; choose another");
        return Err(Error::new(Kind::Denied, message));
    }
    if name.split('/').any(|part| part == "..") {
        return Err(Error::new(Kind::InvalidInput, "the name of a file has no .. in it"));
    }
    Ok(())
}

fn missing(name: &str) -> Error {
    Error::new(Kind::NotFound, format!("no file {name:?}; see: osapi client file list"))
}
