//! Who is at the other end of a connection: on the socket by the kernel's word alone, over a
//! network by the bearer token of each request.
//!
//! The kernel's credentials are those of the moment of connecting. An `Authorization` header on
//! the socket is not looked at: existing clients send one always, and whoever can forge a token
//! cannot forge a peer.

#![expect(clippy::disallowed_methods, reason = "names of accounts, for the record")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue, ORIGIN};
use tokio::net::UnixStream;

use crate::error::{Error, Kind, Result};
use crate::permission::{self, Caller, Permission, Role};
use crate::sys;
use crate::token::{Claims, Key, Refusal};

/// How long an account's name is believed.
const NAMES_KEPT: Duration = Duration::from_mins(1);
const MOST_NAMES: usize = 1_024;

/// Who may do what, as configured.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The role of each group's members, by the group's name or number. Several add up.
    pub groups: BTreeMap<String, String>,
    /// Roles beside or instead of the built-in ones of the same name.
    pub roles: BTreeMap<String, BTreeSet<Permission>>,
    /// Whether the account that runs this process is an admin, as it is under `osapi start`.
    pub own_is_admin: bool,
    /// The group whose members may read `/metrics` without `health:read`.
    pub metrics_group: Option<String>,
    /// What tokens are signed with; without one, none is believed.
    pub key: Option<Key>,
    /// Where pages come from that may ask over a network, such as `https://ops.example.org`; `*`
    /// is any.
    pub origins: Vec<String>,
}

/// [`Access`] with all names looked up.
pub struct Gate {
    /// (group, role)
    groups: Vec<(u32, String)>,
    roles: BTreeMap<String, BTreeSet<Permission>>,
    /// Root, and the own account where it is an admin.
    admins: Vec<u32>,
    metrics_group: Option<u32>,
    names: Mutex<HashMap<u32, (Instant, String)>>,
    key: Option<Key>,
    origins: Vec<String>,
}

/// Where a connection comes from, as far as the kernel tells.
#[derive(Clone, Debug)]
pub enum Source {
    /// Another process of this host.
    Account {
        uid: u32,
        groups: Arc<[u32]>,
    },
    Address(IpAddr),
}

/// A caller, and what only this carrier knows of it.
#[derive(Clone)]
pub struct Peer {
    pub caller: Arc<Caller>,
    pub source: Source,
    /// Whether it may read `/metrics`, whatever its permissions.
    pub reads_metrics: bool,
    /// Why nobody knows who it is, where that is so.
    pub refusal: Option<Refusal>,
    /// Where the page comes from that asks, if pages from there may.
    pub page: Option<HeaderValue>,
}

impl Gate {
    /// Fails where a role is named that there is none of. A group that does not exist has no
    /// members and is only warned about.
    pub fn new(access: Access) -> Result<Self> {
        let Access { groups, roles, own_is_admin, metrics_group, key, origins } = access;
        let roles = permission::roles(roles);
        let mut resolved = Vec::new();
        for (group, role) in groups {
            if !roles.contains_key(&role) {
                let message = format!("cannot give group {group} the role {role}: no such role");
                return Err(Error::new(Kind::InvalidInput, message));
            }
            resolved.extend(group_id(&group).map(|gid| (gid, role)));
        }
        let own = own_is_admin.then(|| rustix::process::geteuid().as_raw());
        Ok(Self {
            groups: resolved,
            roles,
            admins: [0].into_iter().chain(own).collect(),
            metrics_group: metrics_group.as_deref().and_then(group_id),
            names: Mutex::default(),
            key,
            origins,
        })
    }

    /// Who connected.
    pub fn peer(&self, stream: &UnixStream) -> Result<Peer> {
        let unknown = |error| {
            Error::new(Kind::Unauthenticated, "cannot tell who is connected").because(error)
        };
        let credentials = stream.peer_cred().map_err(unknown)?;
        let mut groups = sys::peer_groups(stream.as_fd()).map_err(unknown)?;
        groups.push(credentials.gid());
        Ok(self.admit(credentials.uid(), &groups))
    }

    /// Whoever has this number and these groups.
    pub fn admit(&self, uid: u32, groups: &[u32]) -> Peer {
        let mut held: Vec<&str> = if self.admins.contains(&uid) {
            vec![Role::Admin.as_str()]
        } else {
            let member = |(gid, _): &&(u32, String)| groups.contains(gid);
            self.groups.iter().filter(member).map(|(_, role)| role.as_str()).collect()
        };
        held.sort_unstable();
        held.dedup();
        let permissions = if self.admins.contains(&uid) {
            // Whatever a custom role of that name says: root can do it all anyway.
            Role::Admin.permissions()
        } else {
            held.iter().filter_map(|role| self.roles.get(*role)).flatten().copied().collect()
        };
        let caller = Caller {
            name: self.name(uid),
            uid: Some(uid),
            roles: held.into_iter().map(str::to_owned).collect(),
            permissions,
            source: "unix".to_owned(),
        };
        let reads_metrics = caller.may(Some(Permission::HealthRead))
            || self.metrics_group.is_some_and(|gid| groups.contains(&gid));
        Peer {
            caller: Arc::new(caller),
            source: Source::Account { uid, groups: groups.into() },
            reads_metrics,
            refusal: None,
            page: None,
        }
    }

    /// Whoever is at `address`, before anything was asked.
    pub fn stranger(&self, address: IpAddr) -> Peer {
        let caller = Caller {
            name: "anonymous".to_owned(),
            source: address.to_string(),
            ..Caller::default()
        };
        Peer {
            caller: Arc::new(caller),
            source: Source::Address(address),
            reads_metrics: false,
            refusal: Some(Refusal::Missing),
            page: None,
        }
    }

    /// Whoever asks from `address`, with these headers.
    pub fn bearer(&self, address: IpAddr, headers: &HeaderMap) -> Peer {
        let mut peer = self.stranger(address);
        peer.page = self.page(headers);
        match self.claims(headers) {
            Ok(claims) => {
                let caller = self.holder(claims, address);
                peer.reads_metrics = caller.may(Some(Permission::HealthRead));
                peer.caller = Arc::new(caller);
                peer.refusal = None;
            }
            Err(refusal) => peer.refusal = Some(refusal),
        }
        peer
    }

    fn claims(&self, headers: &HeaderMap) -> Result<Claims, Refusal> {
        let mut given = headers.get_all(AUTHORIZATION).iter();
        let (Some(header), None) = (given.next(), given.next()) else {
            let several = headers.contains_key(AUTHORIZATION);
            return Err(if several { Refusal::Malformed } else { Refusal::Missing });
        };
        let header = header.to_str().map_err(|_| Refusal::Malformed)?;
        let (scheme, token) = header.split_once(' ').unwrap_or((header, ""));
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Refusal::Missing);
        }
        self.key.as_ref().ok_or(Refusal::Signature)?.read(token.trim())
    }

    /// What the holder of a token may: the permissions that it names, else those of its roles.
    fn holder(&self, claims: Claims, address: IpAddr) -> Caller {
        let permissions = permission::held(
            &self.roles,
            &claims.roles,
            claims.permissions.as_deref().unwrap_or_default(),
        );
        Caller {
            name: claims.sub,
            uid: None,
            roles: claims.roles,
            permissions,
            source: address.to_string(),
        }
    }

    fn page(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let mut given = headers.get_all(ORIGIN).iter();
        let (Some(origin), None) = (given.next(), given.next()) else { return None };
        let text = origin.to_str().ok()?;
        let is_listed = |listed: &String| listed == "*" || listed.eq_ignore_ascii_case(text);
        self.origins.iter().any(is_listed).then(|| origin.clone())
    }

    fn name(&self, uid: u32) -> String {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, name)) = names.get(&uid).filter(|(at, _)| at.elapsed() < NAMES_KEPT) {
            return name.clone();
        }
        let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let name = account(&accounts, uid).unwrap_or_else(|| format!("uid {uid}"));
        if names.len() >= MOST_NAMES {
            names.clear();
        }
        names.insert(uid, (Instant::now(), name.clone()));
        name
    }
}

fn account(accounts: &str, uid: u32) -> Option<String> {
    accounts.lines().find_map(|line| {
        let mut parts = line.split(':');
        let name = parts.next()?;
        let is_it = parts.nth(1)?.parse() == Ok(uid);
        (is_it && !name.is_empty() && !name.contains(char::is_control)).then(|| name.to_owned())
    })
}

fn group_id(name: &str) -> Option<u32> {
    if let Ok(gid) = name.parse() {
        return Some(gid);
    }
    match sys::group_id(name) {
        Ok(Some(gid)) => Some(gid),
        Ok(None) => {
            tracing::warn!("the configured group {name} does not exist; nobody is let in by it");
            None
        }
        Err(error) => {
            tracing::warn!(%error, "cannot look up the configured group {name}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Gate {
        let groups = [("70001", "read"), ("70002", "nurse"), ("70003", "admin")];
        let roles = [("nurse".to_owned(), [Permission::PowerExecute].into())];
        Gate::new(Access {
            groups: groups.map(|(group, role)| (group.to_owned(), role.to_owned())).into(),
            roles: roles.into(),
            metrics_group: Some("70009".to_owned()),
            key: Some(Key::new(b"key")),
            origins: vec!["https://ops.example".to_owned()],
            ..Access::default()
        })
        .unwrap()
    }

    #[test]
    fn root_is_an_admin_and_others_are_what_their_groups_say() {
        let gate = gate();
        assert_eq!(gate.admit(0, &[]).caller.permissions, Role::Admin.permissions());
        assert_eq!(gate.admit(12_345, &[70_003]).caller.permissions, Role::Admin.permissions());
        let both = gate.admit(12_345, &[5, 70_001, 70_002]).caller;
        assert_eq!(both.permissions.len(), Role::Read.permissions().len() + 1);
        assert_eq!(both.roles, ["nurse", "read"]);
        let nobody = gate.admit(12_345, &[0, 1, 2]);
        assert!(nobody.caller.permissions.is_empty() && nobody.caller.roles.is_empty());
        assert_eq!(nobody.caller.name, "uid 12345");
    }

    #[test]
    fn metrics_are_for_health_readers_and_one_group() {
        let gate = gate();
        assert!(gate.admit(12_345, &[70_009]).reads_metrics);
        assert!(gate.admit(12_345, &[70_001]).reads_metrics);
        assert!(!gate.admit(12_345, &[70_002]).reads_metrics);
    }

    fn asks(token: &str) -> HeaderMap {
        let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
        [(AUTHORIZATION, value)].into_iter().collect()
    }

    fn signed(roles: &[&str], permissions: &[&str]) -> HeaderMap {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let now = jsonwebtoken::get_current_timestamp();
        let claims = Claims::new("ada", names(roles), names(permissions), now);
        asks(&Key::new(b"key").sign(&claims).unwrap())
    }

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn holders_of_tokens_are_what_those_say() {
        let gate = gate();
        let peer = gate.bearer(ADDRESS, &signed(&["nurse", "read", "king"], &[]));
        assert_eq!(peer.refusal, None);
        let caller = &peer.caller;
        assert_eq!((caller.name.as_str(), caller.source.as_str()), ("ada", "192.0.2.1"));
        assert_eq!(caller.permissions.len(), Role::Read.permissions().len() + 1);
        assert_eq!(caller.uid, None);
        // Permissions that are named are all there are.
        let peer = gate.bearer(ADDRESS, &signed(&["admin"], &["file:read"]));
        assert_eq!(peer.caller.permissions, [Permission::FileRead].into());
        let peer = gate.bearer(ADDRESS, &signed(&["admin"], &["file:sing"]));
        assert!(peer.refusal.is_none() && peer.caller.permissions.is_empty());
        let peer = gate.bearer(ADDRESS, &signed(&["king"], &[]));
        assert!(peer.refusal.is_none() && peer.caller.permissions.is_empty());
    }

    #[test]
    fn whoever_has_no_token_that_is_believed_is_nobody() {
        let gate = gate();
        let bearer = |text: &'static str| {
            HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(text))])
        };
        let mut twice = signed(&["admin"], &[]);
        twice.append(AUTHORIZATION, HeaderValue::from_static("Bearer x"));
        let other = Key::new(b"other").sign(&Claims::new("root", vec!["admin".into()], vec![], 1));
        for (headers, why) in [
            (HeaderMap::new(), Refusal::Missing),
            (bearer("Basic cm9vdDpyb290"), Refusal::Missing),
            (bearer("Bearer"), Refusal::Malformed),
            (bearer("Bearer x"), Refusal::Malformed),
            (twice, Refusal::Malformed),
            (asks(&other.unwrap()), Refusal::Signature),
        ] {
            let peer = gate.bearer(ADDRESS, &headers);
            assert_eq!(peer.refusal, Some(why), "{headers:?}");
            assert!(peer.caller.permissions.is_empty() && !peer.reads_metrics);
            assert_eq!(peer.caller.name, "anonymous");
        }
        // Without a key there is nothing to believe it by.
        let none = Gate::new(Access::default()).unwrap();
        let peer = none.bearer(ADDRESS, &signed(&["admin"], &[]));
        assert_eq!(peer.refusal, Some(Refusal::Signature));
    }

    #[test]
    fn pages_may_ask_that_come_from_where_it_says() {
        let gate = gate();
        let page = |origin: &'static str| {
            let headers = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static(origin))]);
            gate.bearer(ADDRESS, &headers).page
        };
        assert!(page("https://ops.example").is_some());
        for other in ["https://ops.example:8443", "http://ops.example", "https://a", "null", "*"] {
            assert_eq!(page(other), None, "{other}");
        }
    }

    #[test]
    fn a_role_that_does_not_exist_is_refused() {
        let groups = [("70001".to_owned(), "boss".to_owned())].into();
        assert!(Gate::new(Access { groups, ..Access::default() }).is_err());
    }

    #[test]
    fn accounts_are_found_by_number() {
        let accounts = "root:x:0:0::/root:/bin/sh\nada:x:1000:1000:A:/home/ada:/bin/sh\n";
        assert_eq!(account(accounts, 1000).as_deref(), Some("ada"));
        assert_eq!(account(accounts, 100), None);
    }
}
