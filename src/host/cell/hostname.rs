//! What the host is called: by its configuration, where that names it, and by its kernel.
//!
//! hostnamed sets both and tells whoever listens. Where nobody answers on the bus, in early boot
//! for instance, the name is its file and what hostname(1) gives the kernel.

use std::fmt;

use super::{Blobs, Cell, CellKind, State, Value, file, node::Node, nothing};
use crate::error::{Error, Kind, Result};
use crate::host::hands::Hands;
use crate::host::reach::Reach;
use crate::host::view::{Capability, View};

/// The name for every boot, as hostnamed and the service manager read it.
const STATIC: &str = "/etc/hostname";
/// The name in the running kernel.
const KERNEL: &str = "/proc/sys/kernel/hostname";
/// Where hostnamed is reached.
const BUS: &str = "/run/dbus/system_bus_socket";

/// That the host is called `name`, now and in every boot.
pub fn hostname(name: &str) -> State {
    let value = Value::Hostname { fixed: Some(name.to_owned()), kernel: name.to_owned() };
    State::plain(Cell::Hostname, value)
}

pub(super) struct Hostname;

impl CellKind for Hostname {
    fn observe(&self, host: &View) -> Result<Value> {
        Ok(Value::Hostname { fixed: fixed(host)?, kernel: kernel(host)? })
    }

    fn check(&self, host: &View, _: &Value, _: &Value) -> Result<()> {
        let is_able = host.exists(BUS) || !host.is_real() || host.may(Capability::SysAdmin);
        if is_able {
            return Ok(());
        }
        let message = "cannot name the host: there is no system bus to ask hostnamed on; \
                       run the agent with CAP_SYS_ADMIN";
        Err(Error::new(Kind::AgentUnprivileged, message))
    }

    fn assign(&self, hands: &Hands, now: &Value, to: &Value, blobs: &Blobs) -> Result<()> {
        let (Value::Hostname { fixed: was, .. }, Value::Hostname { fixed, kernel: name }) =
            (now, to)
        else {
            return Err(self.cannot_hold(to));
        };
        let has_bus = hands.view.exists(BUS);
        if was != fixed {
            let name = fixed.as_deref().unwrap_or_default();
            if has_bus {
                ask(hands, "SetStaticHostname", name)?;
            } else {
                store(hands, name, blobs)?;
            }
        }
        let is_called = |hands: &Hands| kernel(&hands.view).is_ok_and(|kernel| kernel == *name);
        if has_bus && !is_called(hands) {
            ask(hands, "SetHostname", name)?;
        }
        if is_called(hands) {
            return Ok(());
        }
        // hostnamed gives the kernel no other name than the one for every boot.
        hands.run("hostname", &["--", name], &[])
    }

    /// hostnamed sets what the kernel is to have in every boot. For another name it takes whoever
    /// may set that.
    fn reach(&self, to: &Value) -> Reach {
        match to {
            Value::Hostname { fixed: Some(fixed), kernel } if fixed != kernel => Reach::Kernel,
            _ => Reach::Here,
        }
    }

    /// It is set in two places.
    fn is_atomic(&self, _: &Value, _: &Value) -> bool {
        false
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the host's name")
    }
}

/// Has hostnamed carry `method` out, which answers once it is done.
fn ask(hands: &Hands, method: &str, name: &str) -> Result<()> {
    let (service, object) = ("org.freedesktop.hostname1", "/org/freedesktop/hostname1");
    let limit = "--timeout=20";
    // Nobody is there to be asked for a password.
    let args = ["--quiet", limit, "call", "--", service, object, service, method, "sb", name];
    hands.run("busctl", &[&args[..], &["false"]].concat(), &[])
}

fn store(hands: &Hands, name: &str, blobs: &Blobs) -> Result<()> {
    let State { value, bytes, .. } = match name {
        "" => nothing(STATIC),
        name => file(STATIC, format!("{name}\n")),
    };
    let mut blobs = blobs.clone();
    blobs.extend(value.content().cloned().zip(bytes));
    let node = Node(STATIC);
    let now = node.observe(&hands.view)?;
    node.assign(hands, &now, &hands.view.owned(value)?, &blobs)
}

/// The first line that says something, as hostnamed reads it.
fn fixed(host: &View) -> Result<Option<String>> {
    let text = match host.read(STATIC) {
        Err(error) if error.kind() == Kind::NotFound => return Ok(None),
        text => text?,
    };
    let mut lines = text.lines().map(str::trim);
    let name = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(name.map(|name| name.trim_end_matches('.').to_owned()))
}

fn kernel(host: &View) -> Result<String> {
    Ok(host.read(KERNEL)?.trim().to_owned())
}

impl View {
    /// What the host is called: by its configuration, where that names it, and by its kernel.
    pub fn hostname(&self) -> Result<(Option<String>, String)> {
        match self.value(&Cell::Hostname)? {
            Value::Hostname { fixed, kernel } => Ok((fixed, kernel)),
            other => Err(Hostname.cannot_hold(&other)),
        }
    }
}
