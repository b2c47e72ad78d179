# lab: limit=240
"""A host changes over to the relay and back: one of both serves the agent, whichever is enabled also
after a boot; the relay is confined, and says that it waits for the broker."""

import re
from pathlib import Path

from lib import check, figure, next_boot, out, part, phase, pid, ready, sh, show, until

CONFIG = Path("/etc/osapi/osapi.yaml.d/relay.yaml")
LOCAL = ("osapi.socket", "osapi-controller.service")
RELAY = ("osapi-relay.socket", "osapi-relay.service")
MOST = 1.4


def are(units, state):
    return all(show(unit, "ActiveState") == state for unit in units)


def said(unit):
    return out("journalctl", "--boot", "-u", unit, "-o", "verbose", "--no-pager")


def changes_over():
    sh("systemctl", "disable", "--now", *LOCAL, ok=True)
    r = sh("systemctl", "enable", "--now", *RELAY)
    check(r.returncode == 0, "the relay is enabled", r.stdout + r.stderr)


def is_served_by_the_relay():
    until(lambda: are(RELAY, "active"), "the relay runs")
    check(are(LOCAL, "inactive"), "and the controller does not")
    check(show("osapi-agent.service", "ActiveState") == "active", "the agent goes on")
    # Each side has looked who the other is: this is what the relay answers.
    refusal = "there is no connection to the broker"
    until(lambda: refusal in said("osapi-agent"), "the agent and the relay accept each other")
    until(lambda: "Waits for the broker" in show("osapi-relay.service", "StatusText"), "it says how it fares")
    user = out("ps", "-o", "user=", "-p", str(pid("osapi-relay"))).strip()
    check(user == "osapi", "it is whom the agent expects", user)


def first():
    ready()
    sh("systemctl", "start", "osapi-relay.service")
    check("agent.nats.url" in said("osapi-relay"), "without a broker it says what it needs", said("osapi-relay"))
    sh("systemctl", "stop", *RELAY)
    sh("systemctl", "start", *LOCAL, ok=True)
    ready()
    check(are(LOCAL, "active"), "the controller is back")

    CONFIG.parent.mkdir(parents=True, exist_ok=True)
    CONFIG.write_text("agent:\n  nats:\n    url: nats://127.0.0.1:4222\n")
    changes_over()
    # An agent tells of one trouble once: a new one of this.
    sh("systemctl", "restart", "osapi-agent.service", ok=True)
    is_served_by_the_relay()
    level = out("systemd-analyze", "security", "--no-pager", "osapi-relay.service")
    level = float(re.search(r"Overall exposure level for \S+: ([0-9.]+)", level)[1])
    figure("exposure of osapi-relay", level)
    check(level <= MOST, f"it is exposed {level} at most {MOST}")
    r = sh("systemctl", "restart", "osapi-agent.service")
    check(r.returncode == 0 and are(RELAY, "active") and are(LOCAL, "inactive"), "a restart of the agent changes nothing")
    next_boot("booted")


def booted():
    is_served_by_the_relay()
    CONFIG.unlink()
    sh("systemctl", "disable", "--now", *RELAY, ok=True)
    sh("systemctl", "enable", "--now", *LOCAL, ok=True)
    ready()
    check(are(LOCAL, "active") and are(RELAY, "inactive"), "and the host changes back")


part("relay")
{"": first, "booted": booted}[phase()]()
