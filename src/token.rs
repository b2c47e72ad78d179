//! Bearer tokens, by which callers are known that come over a network.
//!
//! A token is a JWT that somebody made who holds the signing key: this controller's own, or the
//! configured one. One algorithm signs it, and it ends. It says who asks and with which roles;
//! what a role may is looked up each time. A token that brings a key or an algorithm of its own,
//! or something that has to be understood first (`crit`), is refused, whatever it says.

use std::fmt;
use std::sync::{Arc, Once};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, get_current_timestamp,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Kind, Result};

mod hs256;
mod kept;

/// Who makes tokens, as they say themselves.
pub const ISSUER: &str = "osapi";
/// Whom they are made for. One of these is enough.
pub const AUDIENCES: [&str; 2] = ["https://localhost", "http://localhost"];
/// How long a token is good for, in seconds: three months.
pub const LIFETIME: u64 = 90 * 86_400;
/// How far the clocks of two hosts may be apart, in seconds.
pub const LEEWAY: u64 = 60;
/// No token is longer, in bytes.
const LONGEST: usize = 8 * 1024;
/// No name in a token is longer, in bytes.
const LONGEST_NAME: usize = 255;
/// What a token's header may say. Keys are named elsewhere, if anywhere.
const HEADER: [&str; 3] = ["alg", "typ", "kid"];

/// What a token says.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Claims {
    /// Names of roles. Those that nobody knows give nothing.
    pub roles: Vec<String>,
    /// Where there are any, the holder has exactly these, whatever its roles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permissions: Option<Vec<String>>,
    pub iss: String,
    /// Who holds it.
    pub sub: String,
    pub aud: Audience,
    /// When it was made, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iat: Option<u64>,
    /// When it ends, in seconds since 1970.
    pub exp: u64,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Audience {
    pub fn names(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Several(names) => names,
        }
    }
}

impl Claims {
    /// `now` is in seconds since 1970.
    pub fn new(subject: &str, roles: Vec<String>, permissions: Vec<String>, now: u64) -> Self {
        Self {
            roles,
            permissions: Some(permissions).filter(|names| !names.is_empty()),
            iss: ISSUER.to_owned(),
            sub: subject.to_owned(),
            aud: Audience::Several(AUDIENCES.map(str::to_owned).into()),
            iat: Some(now),
            exp: now.saturating_add(LIFETIME),
        }
    }
}

/// Whether `name` can be the subject of a token, which goes on record.
pub fn is_name(name: &str) -> bool {
    !name.trim().is_empty() && name.len() <= LONGEST_NAME && !name.contains(char::is_control)
}

/// Why a token is not believed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    Missing,
    Malformed,
    Header,
    Algorithm,
    Signature,
    Expired,
    Early,
    Issuer,
    Audience,
    Claims,
}

impl Refusal {
    pub const ALL: [Self; 10] = [
        Self::Missing,
        Self::Malformed,
        Self::Header,
        Self::Algorithm,
        Self::Signature,
        Self::Expired,
        Self::Early,
        Self::Issuer,
        Self::Audience,
        Self::Claims,
    ];

    /// For figures.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::Header => "header",
            Self::Algorithm => "algorithm",
            Self::Signature => "signature",
            Self::Expired => "expired",
            Self::Early => "early",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Claims => "claims",
        }
    }

    /// For people.
    pub const fn why(self) -> &'static str {
        match self {
            Self::Missing => {
                "a bearer token is needed here; `osapi token generate` on the controller's host \
                 makes one"
            }
            Self::Malformed => "the token is not one: it is not three parts of base64",
            Self::Header => {
                "the token's header brings a key of its own, or something that has to be \
                 understood first; only alg, typ and kid are accepted"
            }
            Self::Algorithm => "the token is not signed with HS256",
            Self::Signature => "the token was not signed with this controller's key",
            Self::Expired => "the token has expired; have a new one made",
            Self::Early => "the token is not valid yet; compare the clocks",
            Self::Issuer => "the token was not issued by osapi",
            Self::Audience => "the token is for another audience",
            Self::Claims => {
                "the token lacks sub, roles or exp, or one of its claims is not what it should be"
            }
        }
    }

    /// What to answer in `WWW-Authenticate`.
    pub const fn challenge(self) -> &'static str {
        match self {
            Self::Missing => r#"Bearer realm="osapi""#,
            _ => r#"Bearer realm="osapi", error="invalid_token""#,
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::new(Kind::Unauthenticated, refusal.why())
    }
}

/// What tokens are signed with, and so what makes anybody an administrator who has it.
#[derive(Clone)]
pub struct Key(Arc<Inner>);

struct Inner {
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Key {
    /// The key that `bytes` are, as they stand.
    pub fn new(bytes: &[u8]) -> Self {
        static INSTALLED: Once = Once::new();
        // Nobody else in this process installs one.
        INSTALLED.call_once(|| {
            let _ = hs256::PROVIDER.install_default();
        });
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        validation.set_audience(&AUDIENCES);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        Self(Arc::new(Inner {
            encoding: EncodingKey::from_secret(bytes),
            decoding: DecodingKey::from_secret(bytes),
            validation,
        }))
    }

    pub fn sign(&self, claims: &Claims) -> Result<String> {
        let header = Header::new(Algorithm::HS256);
        jsonwebtoken::encode(&header, claims, &self.0.encoding)
            .map_err(|error| Error::new(Kind::Internal, "cannot sign the token").because(error))
    }

    /// What `token` says, if it is to be believed.
    pub fn read(&self, token: &str) -> Result<Claims, Refusal> {
        check_header(token)?;
        let data = jsonwebtoken::decode::<Claims>(token, &self.0.decoding, &self.0.validation);
        let claims = data.map_err(|error| refusal(error.kind()))?.claims;
        if claims.iat.is_some_and(|iat| iat > get_current_timestamp().saturating_add(LEEWAY)) {
            return Err(Refusal::Early);
        }
        let names = claims.roles.iter().chain(claims.permissions.iter().flatten());
        let are_names = is_name(&claims.sub) && names.into_iter().all(|name| is_name(name));
        if are_names { Ok(claims) } else { Err(Refusal::Claims) }
    }
}

/// Refuses what could lead whoever reads the token to another key or another algorithm, before
/// anything in it is heeded.
fn check_header(token: &str) -> Result<(), Refusal> {
    let mut parts = token.split('.');
    let (Some(header), Some(_), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Refusal::Malformed);
    };
    if token.len() > LONGEST {
        return Err(Refusal::Malformed);
    }
    let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| Refusal::Malformed)?;
    let header: Map<String, Value> =
        serde_json::from_slice(&header).map_err(|_| Refusal::Malformed)?;
    if header.get("alg").is_none_or(|alg| alg != "HS256") {
        return Err(Refusal::Algorithm);
    }
    let is_plain = header.keys().all(|name| HEADER.contains(&name.as_str()));
    let is_jwt = |typ: &Value| typ.as_str().is_some_and(|typ| typ.eq_ignore_ascii_case("JWT"));
    if is_plain && header.get("typ").is_none_or(is_jwt) { Ok(()) } else { Err(Refusal::Header) }
}

fn refusal(kind: &ErrorKind) -> Refusal {
    match kind {
        ErrorKind::InvalidSignature => Refusal::Signature,
        ErrorKind::InvalidAlgorithm
        | ErrorKind::InvalidAlgorithmName
        | ErrorKind::UnsupportedAlgorithm => Refusal::Algorithm,
        ErrorKind::ExpiredSignature => Refusal::Expired,
        ErrorKind::ImmatureSignature => Refusal::Early,
        ErrorKind::InvalidIssuer => Refusal::Issuer,
        ErrorKind::InvalidAudience => Refusal::Audience,
        ErrorKind::MissingRequiredClaim(_)
        | ErrorKind::InvalidClaimFormat(_)
        | ErrorKind::Json(_) => Refusal::Claims,
        _ => Refusal::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key() -> Key {
        Key::new(b"0123456789abcdef")
    }

    /// A token with this header and these claims, signed as it should be.
    fn made(header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(header), part(claims));
        let key = EncodingKey::from_secret(b"0123456789abcdef");
        drop(self::key());
        let signature = jsonwebtoken::crypto::sign(text.as_bytes(), &key, Algorithm::HS256);
        format!("{text}.{}", signature.unwrap())
    }

    fn plain() -> Value {
        json!({ "alg": "HS256", "typ": "JWT" })
    }

    fn good() -> Value {
        let now = get_current_timestamp();
        json!({
            "roles": ["read"], "iss": "osapi", "sub": "ada", "iat": now, "exp": now + 600,
            "aud": ["https://localhost", "http://localhost"],
        })
    }

    fn with(name: &str, value: Value) -> Value {
        let mut claims = good();
        claims[name] = value;
        claims
    }

    fn without(name: &str) -> Value {
        let mut claims = good();
        claims.as_object_mut().unwrap().remove(name);
        claims
    }

    #[test]
    fn what_it_signs_it_believes_and_others_do_not() {
        let claims = Claims::new("ada", vec!["nurse".into()], Vec::new(), get_current_timestamp());
        let token = key().sign(&claims).unwrap();
        assert_eq!(key().read(&token).unwrap(), claims);
        assert_eq!(Key::new(b"another").read(&token), Err(Refusal::Signature));
        let (head, signature) = token.rsplit_once('.').unwrap();
        assert_eq!(key().read(&format!("{head}.")), Err(Refusal::Signature));
        assert_eq!(key().read(&format!("{head}.AAAA{signature}")), Err(Refusal::Signature));
        assert!(!format!("{:?}", key()).contains("0123"));
    }

    #[test]
    fn tokens_of_other_implementations_are_read() {
        for claims in [
            good(),
            with("aud", json!("http://localhost")),
            with("permissions", json!(["file:read"])),
            with("permissions", Value::Null),
            without("iat"),
        ] {
            assert!(key().read(&made(&plain(), &claims)).is_ok(), "{claims}");
        }
        assert!(key().read(&made(&json!({ "alg": "HS256" }), &good())).is_ok());
        // The two clocks may differ.
        let now = get_current_timestamp();
        for claims in [with("exp", json!(now - 30)), with("iat", json!(now + 30))] {
            assert!(key().read(&made(&plain(), &claims)).is_ok(), "{claims}");
        }
    }

    #[test]
    fn claims_that_are_not_what_they_should_be_are_refused() {
        let now = get_current_timestamp();
        let long = "x".repeat(LONGEST_NAME + 1);
        for (claims, why) in [
            (with("exp", json!(now - LEEWAY - 5)), Refusal::Expired),
            (with("exp", json!(0)), Refusal::Expired),
            (without("exp"), Refusal::Claims),
            (with("exp", json!("never")), Refusal::Claims),
            (with("exp", json!(-1)), Refusal::Claims),
            (with("nbf", json!(now + 600)), Refusal::Early),
            (with("iat", json!(now + 600)), Refusal::Early),
            (with("iss", json!("somebody")), Refusal::Issuer),
            (with("iss", json!(["osapi"])), Refusal::Claims),
            (without("iss"), Refusal::Claims),
            (with("aud", json!("https://example.org")), Refusal::Audience),
            (with("aud", json!([])), Refusal::Audience),
            (with("aud", json!({})), Refusal::Claims),
            (without("aud"), Refusal::Claims),
            (without("sub"), Refusal::Claims),
            (with("sub", json!("")), Refusal::Claims),
            (with("sub", json!("a\nb")), Refusal::Claims),
            (with("sub", json!(long)), Refusal::Claims),
            (without("roles"), Refusal::Claims),
            (with("roles", json!("admin")), Refusal::Claims),
            (with("roles", json!([1])), Refusal::Claims),
            (with("permissions", json!("file:read")), Refusal::Claims),
            (json!([]), Refusal::Claims),
        ] {
            assert_eq!(key().read(&made(&plain(), &claims)), Err(why), "{claims}");
        }
    }

    #[test]
    fn headers_that_lead_elsewhere_are_refused() {
        let and = |name: &str, value: Value| {
            let mut header = plain();
            header[name] = value;
            header
        };
        let jwk = json!({ "kty": "oct", "k": "MDEyMzQ1Njc4OWFiY2RlZg" });
        for (header, why) in [
            (and("alg", json!("none")), Refusal::Algorithm),
            (and("alg", json!("None")), Refusal::Algorithm),
            (and("alg", json!("hs256")), Refusal::Algorithm),
            (and("alg", json!("HS384")), Refusal::Algorithm),
            (and("alg", json!("HS512")), Refusal::Algorithm),
            (and("alg", json!("RS256")), Refusal::Algorithm),
            (and("alg", json!(["HS256"])), Refusal::Algorithm),
            (json!({ "typ": "JWT" }), Refusal::Algorithm),
            (and("crit", json!(["exp"])), Refusal::Header),
            (and("crit", json!([])), Refusal::Header),
            (and("jwk", jwk), Refusal::Header),
            (and("jku", json!("https://example.org/keys")), Refusal::Header),
            (and("x5u", json!("https://example.org/chain")), Refusal::Header),
            (and("x5c", json!(["AA=="])), Refusal::Header),
            (and("b64", json!(false)), Refusal::Header),
            (and("zip", json!("DEF")), Refusal::Header),
            (and("typ", json!("JWE")), Refusal::Header),
            (and("typ", json!(1)), Refusal::Header),
            (json!([]), Refusal::Malformed),
        ] {
            assert_eq!(key().read(&made(&header, &good())), Err(why), "{header}");
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let token = made(&plain(), &good());
        let (head, _) = token.rsplit_once('.').unwrap();
        for text in [
            String::new(),
            ".".to_owned(),
            "..".to_owned(),
            "a.b.c".to_owned(),
            head.to_owned(),
            format!("{token}.x"),
            format!("{token}.{token}"),
            token.replacen('.', "=.", 1),
            format!("{token}\u{e4}"),
            format!("{}.{}", token, "x".repeat(LONGEST)),
        ] {
            assert!(key().read(&text).is_err(), "{text}");
        }
        let none = json!({ "alg": "none" });
        let text = format!(
            "{}.{}.",
            URL_SAFE_NO_PAD.encode(none.to_string()),
            URL_SAFE_NO_PAD.encode(good().to_string())
        );
        assert_eq!(key().read(&text), Err(Refusal::Algorithm));
    }
}
