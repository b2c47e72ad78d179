//! What a client sent, read strictly: every part that has a bound is held to it, and nothing that
//! two readers could understand differently is let through.

use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderMap};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::json;
use crate::error::{Error, Kind, Problem, Result};
use crate::job::Options;
use crate::op::Access;
use crate::ops::{Row, Run};
use crate::schema::{self, Field, Known, pointer};

/// Of a body that is read as JSON, in bytes.
pub const MOST_BODY: usize = 1024 * 1024;
/// Of path and query together, in bytes.
pub const MOST_PATH: usize = 8 * 1024;
/// How long a body may take to arrive.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same where it was refused already.
const PATIENCE_WITH_REFUSED: Duration = Duration::from_secs(1);
/// A target is a name, an id or a label.
const MOST_TARGET: usize = 255;
const MOST_KEY: usize = 255;
/// How long a client may ask to wait for a job.
const LONGEST_WAIT: Duration = Duration::from_mins(5);

/// What a request asks of its row.
#[derive(Debug)]
pub struct Given {
    pub params: Value,
    pub options: Options,
    /// Of an agent's row: the hosts that the path names, or the job whose hosts it goes to.
    pub target: Option<String>,
}

/// How long the client is ready to wait for a job (RFC 7240).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Prefer {
    pub respond_async: bool,
    pub wait: Option<Duration>,
}

impl Prefer {
    /// What is not understood is no preference, and so never an error.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut prefer = Self::default();
        let lines = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
        for preference in lines.flat_map(|line| line.split(',')) {
            let preference = preference.split(';').next().unwrap_or_default().trim();
            let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
            if name.trim().eq_ignore_ascii_case("respond-async") {
                prefer.respond_async = true;
            } else if name.trim().eq_ignore_ascii_case("wait") {
                let seconds = value.trim().trim_matches('"').parse().map(Duration::from_secs);
                // The first one counts.
                let wait = seconds.ok().map(|wait| wait.min(LONGEST_WAIT));
                prefer.wait = prefer.wait.or(wait);
            }
        }
        prefer
    }

    /// How long to wait before answering that the job goes on; None: as long as the API does.
    pub fn patience(self) -> Option<Duration> {
        match (self.respond_async, self.wait) {
            (_, Some(wait)) => Some(wait),
            (true, None) => Some(Duration::ZERO),
            (false, None) => None,
        }
    }

    /// What `Preference-Applied` says.
    pub fn applied(self) -> Option<String> {
        let wait = self.wait.map(|wait| format!("wait={}", wait.as_secs()));
        match (self.respond_async, wait) {
            (true, Some(wait)) => Some(format!("respond-async, {wait}")),
            (true, None) => Some("respond-async".to_owned()),
            (false, wait) => wait,
        }
    }
}

/// The value of `Idempotency-Key`, where there is one.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let bytes = value.as_bytes();
    let is_key = (1..=MOST_KEY).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic);
    if !is_key || values.next().is_some() {
        let message = "Idempotency-Key: must be one value of 1 to 255 visible ASCII characters";
        return Err(Error::new(Kind::InvalidInput, message));
    }
    Ok(value.to_str().ok().map(str::to_owned))
}

/// SHA-256 of all that a request asks for, in whatever order it was written.
pub fn digest(given: &Given) -> String {
    let mut hash = Sha256::new();
    feed(&mut hash, &given.params);
    let options = serde_json::to_value(&given.options).unwrap_or_default();
    feed(&mut hash, &options);
    let bytes: [u8; 32] = hash.finalize().into();
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to text cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Members in the order of their names, and each value told from its neighbours.
fn feed(hash: &mut Sha256, value: &Value) {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            hash.update(b"{");
            for (name, value) in members {
                hash.update(Value::from(name.as_str()).to_string());
                feed(hash, value);
            }
            hash.update(b"}");
        }
        Value::Array(values) => {
            hash.update(b"[");
            for value in values {
                feed(hash, value);
            }
            hash.update(b"]");
        }
        scalar => {
            hash.update(scalar.to_string());
            hash.update(b",");
        }
    }
}

/// The trace that a request belongs to (W3C `traceparent`).
pub fn trace(headers: &HeaderMap) -> Option<String> {
    let value = headers.get("traceparent")?.to_str().ok()?;
    let mut parts = value.split('-');
    let (version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
    let is_hex = |text: &str, length: usize| {
        text.len() == length
            && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
            && text.bytes().any(|byte| byte != b'0')
    };
    let is_known = version == "00" && is_hex(trace, 32) && is_hex(span, 16);
    is_known.then(|| trace.to_owned())
}

/// The id that a client gave its request, as far as it can be repeated safely.
pub fn request_id(headers: &HeaderMap) -> Option<&str> {
    let id = headers.get("x-request-id")?.to_str().ok()?;
    let is_plain = (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
    is_plain.then_some(id)
}

/// Undoes percent encoding. Refuses what is not well formed, and characters no name has.
pub fn decode(text: &str) -> Result<String, &'static str> {
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte == b'%') {
        let is_hex = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_hexdigit);
        if !is_hex(rest.get(at + 1)) || !is_hex(rest.get(at + 2)) {
            return Err("is not well-formed percent encoding");
        }
        rest = &rest[at + 3..];
    }
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| "is not UTF-8")?;
    if decoded.contains(char::is_control) {
        return Err("has control characters");
    }
    Ok(decoded.into_owned())
}

/// The pairs of a query, in order.
pub fn pairs(query: &str) -> Result<Vec<(String, String)>> {
    let mut problems = Vec::new();
    let mut pairs = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match (decode(&name.replace('+', " ")), decode(&value.replace('+', " "))) {
            (Ok(name), Ok(value)) => pairs.push((name, value)),
            (Ok(name), Err(wrong)) => {
                problems.push(Problem { pointer: pointer(&name), message: wrong.to_owned() });
            }
            (Err(wrong), _) => {
                let message = format!("the name of a query parameter {wrong}");
                problems.push(Problem { pointer: String::new(), message });
            }
        }
    }
    schema::refuse(problems).map(|()| pairs)
}

/// Whether `row` refuses to be previewed although `query` asks for that.
pub fn asks_for_preview_in_vain(row: &Row, query: &[(String, String)]) -> bool {
    let asks = || query.iter().any(|(name, value)| name == "dry_run" && value == "true");
    row.changes() && row.access() != Some(Access::Write) && asks()
}

/// Where the fields of a row travel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    Path,
    Query,
    Body,
}

/// Where `field` of `row` travels.
pub fn place(row: &Row, field: &Field) -> Place {
    // There it names the hosts it is for, whatever else of that name it takes.
    let is_target = row.has_target() && field.name == "hostname";
    let is_in_path = || {
        let segments = row.path.split('/');
        segments.filter_map(|s| s.strip_prefix('{')?.strip_suffix('}')).any(|s| s == field.name)
    };
    let is_in_query = row.in_query.contains(&field.name.as_str());
    // Beside a file only text has a place in a form.
    let is_beside_form = || takes_file(row) && field.kind != schema::Type::Text;
    if !is_target && is_in_path() {
        Place::Path
    } else if !row.method.has_body() || is_beside_form() || is_in_query {
        Place::Query
    } else {
        Place::Body
    }
}

/// Whether `row` takes a file, and its parameters as a form around it.
pub fn takes_file(row: &Row) -> bool {
    match row.run {
        Run::Controller(op) => op.takes_file(),
        Run::Agent(_) => false,
    }
}

/// Parameters as they are gathered from their carriers.
pub struct Gathered<'a> {
    row: &'a Row,
    known: &'static Known,
    pub members: Map<String, Value>,
    options: Map<String, Value>,
    target: Option<String>,
    problems: Vec<Problem>,
}

impl<'a> Gathered<'a> {
    /// What path and query say. `path` has the values of the route's placeholders, still encoded.
    pub fn new<'p>(
        row: &'a Row,
        path: impl Iterator<Item = (&'p str, &'p str)>,
        query: &[(String, String)],
    ) -> Self {
        let known = schema::known(row);
        let (members, options) = (Map::new(), Map::new());
        let mut gathered =
            Self { row, known, members, options, target: None, problems: Vec::new() };
        for (name, encoded) in path {
            match decode(encoded) {
                Ok(text) => gathered.take_path(name, text),
                Err(wrong) => gathered.wrong(name, wrong),
            }
        }
        gathered.take_query(query);
        gathered
    }

    fn take_path(&mut self, name: &str, text: String) {
        let is_on_hosts = matches!(self.row.run, Run::Agent(_));
        let is_target = is_on_hosts && (self.row.has_target() == (name == "hostname"));
        let mut fields = self.known.fields.iter();
        let field = fields
            .find(|field| field.name == name)
            .filter(|field| place(self.row, field) == Place::Path);
        if field.is_none() && !is_target {
            return self.wrong(name, "is not known here");
        }
        if let Some(field) = field {
            let value = field.value([text.as_str()]);
            self.keep(name, value);
        }
        if is_target && (text.is_empty() || text.len() > MOST_TARGET) {
            self.wrong(name, "must be 1 to 255 bytes long");
        } else if is_target {
            self.target = Some(text);
        }
    }

    fn take_query(&mut self, query: &[(String, String)]) {
        let mut seen: Vec<&str> = Vec::new();
        for (name, _) in query {
            if seen.contains(&name.as_str()) {
                continue;
            }
            seen.push(name);
            let texts = query.iter().filter(|(other, _)| other == name).map(|(_, v)| v.as_str());
            let named = |field: &&Field| field.name == *name;
            let fields = self.known.fields.iter();
            let row = self.row;
            let mut in_query = fields.filter(|field| place(row, field) == Place::Query);
            if let Some(field) = in_query.find(named) {
                let value = field.value(texts);
                self.keep(name, value);
            } else if let Some(option) = self.known.options.iter().find(named) {
                match option.value(texts) {
                    Ok(value) => drop(self.options.insert(name.clone(), value)),
                    Err(error) => self.problems.extend(error.body().problems),
                }
            } else {
                self.wrong(name, "is not known here");
            }
        }
    }

    /// Takes what stood in a body.
    pub fn take_body(&mut self, body: Map<String, Value>, problems: Vec<Problem>) {
        self.problems.extend(problems);
        for (name, value) in body {
            let field = self.known.fields.iter().find(|field| field.name == name);
            match field.map(|field| place(self.row, field)) {
                Some(Place::Path) => self.wrong(&name, "travels in the path, not in the body"),
                Some(Place::Query) => self.wrong(&name, "travels in the query, not in the body"),
                // The schema knows what to say of unknown ones.
                Some(Place::Body) | None => drop(self.members.insert(name, value)),
            }
        }
    }

    fn keep(&mut self, name: &str, value: Result<Value>) {
        match value {
            Ok(value) => drop(self.members.insert(name.to_owned(), value)),
            Err(error) => self.problems.extend(error.body().problems),
        }
    }

    fn wrong(&mut self, name: &str, wrong: &str) {
        self.problems.push(Problem { pointer: pointer(name), message: wrong.to_owned() });
    }

    /// Checks all of it, and says all that is wrong with it.
    pub fn finish(mut self) -> Result<Given> {
        let options = Value::Object(self.options);
        if options.as_object().is_some_and(|options| !options.is_empty()) {
            self.problems.extend(schema::check_options(&options)?);
        }
        let params = Value::Object(self.members);
        schema::check_with(self.row, &params, self.problems)?;
        let options = serde_json::from_value(options)
            .map_err(|error| Error::new(Kind::InvalidInput, error.to_string()))?;
        Ok(Given { params, options, target: self.target })
    }
}

/// Reads a body of at most [`MOST_BODY`] bytes as a JSON object; nothing is an empty one.
pub async fn body(
    headers: &HeaderMap,
    body: Incoming,
) -> Result<(Map<String, Value>, Vec<Problem>)> {
    let bytes = collect(body).await?;
    if bytes.is_empty() {
        return Ok((Map::new(), Vec::new()));
    }
    let is_plain = match headers.get(header::CONTENT_ENCODING) {
        Some(encoding) => encoding.as_bytes().eq_ignore_ascii_case(b"identity"),
        None => true,
    };
    if !is_plain {
        return Err(Error::new(Kind::InvalidInput, "cannot read a compressed body; send it plain"));
    }
    if !says_json(headers) {
        let message = "cannot read this body; send JSON with Content-Type: application/json";
        return Err(Error::new(Kind::InvalidInput, message));
    }
    json::object(&bytes)
}

/// Refuses a body where none belongs.
pub async fn no_body(body: Incoming) -> Result<()> {
    if body.is_end_stream() || collect(body).await?.is_empty() {
        return Ok(());
    }
    Err(Error::new(Kind::InvalidInput, "this request takes no body"))
}

/// Reads a body that nobody wants, as far as that is little work: a client that is still sending
/// when the connection ends may never look at its answer.
pub async fn leave(body: Incoming) {
    if body.is_end_stream() || body.size_hint().lower() > MOST_BODY as u64 {
        return;
    }
    let read = Limited::new(body, MOST_BODY).collect();
    drop(tokio::time::timeout(PATIENCE_WITH_REFUSED, read).await);
}

fn says_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return true };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
        || (essence.len() > 5 && essence.to_ascii_lowercase().ends_with("+json"))
}

async fn collect(body: Incoming) -> Result<Bytes> {
    let too_large = || {
        let message = format!("the body is larger than {MOST_BODY} bytes");
        Error::new(Kind::TooLarge, message)
    };
    if body.size_hint().lower() > MOST_BODY as u64 {
        return Err(too_large());
    }
    let collected = tokio::time::timeout(PATIENCE, Limited::new(body, MOST_BODY).collect()).await;
    match collected {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => {
            Err(Error::new(Kind::InvalidInput, "the body ended early or is ill-formed")
                .because(error))
        }
        Err(_) => {
            let seconds = PATIENCE.as_secs();
            let message = format!("the body did not arrive within {seconds} seconds");
            Err(Error::new(Kind::InvalidInput, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};
    use serde_json::json;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let value = |value: &str| HeaderValue::from_str(value).unwrap();
        pairs.iter().map(|(name, text)| (HeaderName::from_static(name), value(text))).collect()
    }

    #[test]
    fn preferences_are_read_as_far_as_they_are_understood() {
        let prefer = |text| Prefer::of(&headers(&[("prefer", text)]));
        assert_eq!(prefer("respond-async").patience(), Some(Duration::ZERO));
        assert_eq!(prefer("respond-async, wait=10").patience(), Some(Duration::from_secs(10)));
        assert_eq!(prefer("Wait=7; x=y, wait=9").applied().as_deref(), Some("wait=7"));
        assert_eq!(prefer("wait=99999999999").patience(), Some(LONGEST_WAIT));
        assert_eq!(prefer("wait=soon, return=minimal"), Prefer::default());
    }

    #[test]
    fn paths_are_decoded_strictly() {
        assert_eq!(decode("a%2Fb%20c%C3%A4").unwrap(), "a/b cä");
        for wrong in ["%", "%4", "%zz", "%ff", "%00", "a%0ab", "%c2%80"] {
            assert!(decode(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn pairs_keep_their_order_and_their_doubles() {
        let pairs = pairs("b=1&a=x+y%26&b=2&&c").unwrap();
        let expected = [("b", "1"), ("a", "x y&"), ("b", "2"), ("c", "")];
        assert_eq!(pairs, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert!(super::pairs("a=%00").is_err());
    }

    #[test]
    fn a_digest_does_not_depend_on_order_but_on_all_else() {
        let digest =
            |params: Value| digest(&Given { params, options: Options::default(), target: None });
        let one = digest(json!({ "a": 1, "b": ["x", "y"] }));
        assert_eq!(one, digest(json!({ "b": ["x", "y"], "a": 1 })));
        for other in [json!({ "a": 1, "b": ["xy"] }), json!({ "a": "1", "b": ["x", "y"] })] {
            assert_ne!(one, digest(other));
        }
    }

    #[test]
    fn keys_and_traces_are_well_formed_or_not_taken() {
        assert_eq!(
            idempotency_key(&headers(&[("idempotency-key", "k-1")])).unwrap().unwrap(),
            "k-1"
        );
        for wrong in ["", "a b", &"x".repeat(256)] {
            assert!(idempotency_key(&headers(&[("idempotency-key", wrong)])).is_err());
        }
        let twice = headers(&[("idempotency-key", "a"), ("idempotency-key", "b")]);
        assert!(idempotency_key(&twice).is_err());
        let id = "0af7651916cd43dd8448eb211c80319c";
        let given = format!("00-{id}-b7ad6b7169203331-01");
        assert_eq!(trace(&headers(&[("traceparent", &given)])).as_deref(), Some(id));
        assert_eq!(trace(&headers(&[("traceparent", &"0".repeat(55))])), None);
    }
}
