"""Units of a real systemd: distribution ones, own ones, those that fail and those that are protected."""
# lab: limit=400

import json
from pathlib import Path

from lib import check, cycle, http, job_of, osapi, out, part, ready, result, say, sh, until

part("service")
ready()

UNITS = Path("/etc/systemd/system")
LIB = Path("/usr/local/lib/systemd/system")


def unit(name, text, where=LIB):
    where.mkdir(parents=True, exist_ok=True)
    (where / name).write_text(text)


def show(name, *properties):
    lines = out("systemctl", "show", *[f"--property={p}" for p in properties], "--", name).split("\n")
    said = dict(line.split("=", 1) for line in lines if "=" in line)
    return [said.get(p, "") for p in properties]


def links():
    """Every link that enabling could make, and where it leads."""
    return sorted(f"{p} -> {p.readlink()}" for p in UNITS.rglob("*") if p.is_symlink())


def kind(answer):
    """What kind of error a command says, on the line of JSON before its hints."""
    if isinstance(answer, str) and answer.startswith("{"):
        answer = json.loads(answer.split("\n")[0])
    return answer.get("kind") if isinstance(answer, dict) else answer


def refused(words, expected, text, says=None):
    status, answer = osapi(*words)
    said = str(answer)
    holds = status != 0 and kind(answer) == expected and (says is None or says in said)
    check(holds, f"{text}: {expected}", (status, answer))


def upload(name, text):
    Path("/root/unit").write_text(text)
    status, answer = osapi("file", "upload", "/root/unit", "--name", name, "--force")
    check(status == 0, f"{name} is uploaded", answer)


unit("web.service", "[Unit]\nDescription=A web server\n[Service]\nType=notify\n"
     "ExecStart=/bin/sh -c 'systemd-notify --ready; exec sleep infinity'\nNotifyAccess=all\n"
     "[Install]\nWantedBy=multi-user.target\nAlias=www.service\n")
unit("plain.service", "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n")
unit("fails.service", "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/false\n")
unit("dies.service", "[Service]\nExecStart=/bin/false\n")
unit("once.service", "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo once >> /run/once'\n")
unit("oncefails.service", "[Service]\nType=oneshot\nExecStart=/bin/false\n")
unit("static.service", "[Service]\nExecStart=/bin/sleep infinity\n")
unit("broken.service", "[Service]\n")
unit("many@.service", "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n")
sh("systemctl", "daemon-reload", ok=True)

# --- what there is -----------------------------------------------------------------------------------
status, answer = osapi("service", "list")
listed = {row["name"]: row for row in result(answer).get("services", [])} if status == 0 else {}
check("web.service" in listed and listed["web.service"]["status"] == "inactive", "what is only installed is listed", answer)
for name, row in listed.items():
    load, active, state = show(name, "LoadState", "ActiveState", "UnitFileState")
    if row["status"] != active or row.get("unit_file_state", "") != state or load == "not-found":
        check(False, f"{name} is listed as systemd has it", (row, load, active, state))
theirs = {line.split()[0] for line in out(
    "systemctl", "list-units", "--type=service", "--all", "--plain", "--no-legend").splitlines() if " not-found " not in line}
check(theirs <= set(listed), f"all of systemd's {len(theirs)} loaded services are listed, {len(listed)} in all", theirs - set(listed))
status, answer = osapi("service", "get", "web")
service = result(answer).get("service", {})
check(service.get("name") == "web.service" and service.get("description") == "A web server", "one is shown", answer)
check(result(osapi("service", "get", "--name=-.mount")[1]).get("service", {}).get("status") == "active", "so is the root's mount")
refused(("service", "get", "nothing"), "not_found", "a unit that is not there")
refused(("service", "get", "many@"), "invalid_input", "a template")
for name in ["a/b", "a b", "a\nb", "*"]:
    refused(("service", "start", f"--name={name}"), "invalid_input", f"the name {name!r}")
check(http("GET", "/node/_any/service/nothing")[0] == 404, "over HTTP that is a 404")

# --- running -----------------------------------------------------------------------------------------
for name in ["web", "plain.service", "many@1"]:
    full = name if name.endswith(".service") else name + ".service"
    active = lambda: show(full, "ActiveState")
    cycle("service", "start", name, observe=active)
    sh("systemctl", "start", full, ok=True)
    cycle("service", "stop", name, observe=active)
    before = show(full, "InvocationID")
    status, answer = osapi("service", "restart", name)
    check(status == 0 and result(answer).get("changed") and show(full, "InvocationID") != before, f"{name} is restarted", answer)

for verb in ["start", "restart"]:
    refused(("service", verb, "fails"), "host_failed", f"{verb} of one that fails")
    check(show("fails.service", "ActiveState") == ["failed"] or verb == "start", "systemd says so")
    refused(("service", verb, "dies"), "host_failed", f"{verb} of one that dies at once")
    refused(("service", verb, "oncefails"), "host_failed", f"{verb} of one that is run once and fails")
    refused(("service", verb, "broken"), "conflict", f"{verb} of one that systemd cannot load", "bad unit")
status, answer = osapi("service", "start", "once")
check(status == 0 and result(answer).get("changed"), "what ends by itself is run", answer)
check(Path("/run/once").read_text() == "once\n", "it ran once")
refused(("service", "start", "once", "--dry-run"), "no_preview", "what is run once has no preview")

# --- at boot -----------------------------------------------------------------------------------------
for name in ["web", "plain", "many@1"]:
    cycle("service", "enable", name, observe=links)
    sh("systemctl", "enable", name, ok=True)
    cycle("service", "disable", name, observe=links)
    if name == "web":
        status, answer = osapi("service", "stop", "www")
        check(status == 0, "a unit is stopped by its alias", answer)
        refused(("service", "disable", "www"), "conflict", "what would take the alias away that it was given", "web.service")
refused(("service", "enable", "static"), "conflict", "one without [Install]", "[Install]")
refused(("service", "disable", "static"), "conflict", "one without [Install]")
sh("systemctl", "stop", "plain", ok=True)
sh("systemctl", "mask", "plain", ok=True)
refused(("service", "enable", "plain"), "conflict", "a masked one", "masked")
refused(("service", "start", "plain"), "conflict", "a masked one", "masked")
sh("systemctl", "unmask", "plain", ok=True)
sh("systemctl", "disable", "plain", ok=True)
sh("systemctl", "enable", "--runtime", "plain", ok=True)
cycle("service", "enable", "plain", observe=lambda: show("plain.service", "UnitFileState"))
cycle("service", "disable", "plain", observe=lambda: show("plain.service", "UnitFileState"))
sh("systemctl", "enable", "plain", ok=True)
status, answer = osapi("service", "disable", "plain")
check(status == 0 and show("plain.service", "UnitFileState") == ["disabled"], "what is enabled twice is disabled twice", answer)

# Links of others, and units that go along.
unit("own.target", "[Unit]\nDescription=Of its own\n", UNITS)
unit("pair.service", "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\nAlias=both.service\nAlso=pair.timer\n")
unit("pair.timer", "[Timer]\nOnCalendar=yearly\n[Install]\nWantedBy=timers.target\nAlso=pair.service\n")
unit("lone.service", "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\nAlso=web.service\n")
sh("systemctl", "daemon-reload", ok=True)
cycle("service", "enable", "pair", observe=links)
sh("systemctl", "enable", "pair", ok=True)
sh("systemctl", "add-wants", "own.target", "pair.service", ok=True)
sh("systemctl", "add-wants", "multi-user.target", "pair.timer", ok=True)
wanted = lambda: [links(), show("pair.service", "UnitFileState"), show("pair.timer", "UnitFileState"), (UNITS / "own.target.wants").is_dir()]
cycle("service", "disable", "pair", observe=wanted)
there = wanted()
osapi("service", "disable", "pair")
check(wanted()[1:] == [["disabled"], ["disabled"], False], "what goes along is disabled as well", wanted())
status, answer = osapi("service", "enable", "pair")
check(status == 0 and wanted() == there, "what was disabled is enabled as it was", (answer, wanted(), there))
status, answer = osapi("service", "disable", "pair", "--confirm", "2")
check(status == 0 and wanted() != there, "it is disabled until somebody confirms it", answer)
until(lambda: wanted() == there, "nobody did, and every link is back")
sh("systemctl", "enable", "web", ok=True)
status, answer = osapi("service", "enable", "lone", "--dry-run")
check("web.service" in str(result(answer).get("residue")), "what an undo would take along is told before", answer)
sh("systemctl", "disable", "pair", "web", ok=True)

# On the way.
unit("slow.service", "[Service]\nType=notify\nTimeoutStartSec=infinity\nNotifyAccess=all\n"
     "ExecStart=/bin/sh -c 'while [ ! -e /run/go ]; do sleep 0.1; done; systemd-notify --ready; exec sleep infinity'\n")
unit("again.service", "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestart=always\nRestartSec=2\nExecStart=/bin/sleep 1\n")
unit("long.service", "[Service]\nType=oneshot\nExecStart=/bin/sleep 600\n")
sh("systemctl", "daemon-reload", ok=True)
for name in ["slow", "again", "long"]:
    sh("systemctl", "start", "--no-block", name, ok=True)
    until(lambda: show(f"{name}.service", "ActiveState") == ["activating"], f"{name} is on its way")
    status, answer = osapi("service", "stop", name)
    stopped = show(f"{name}.service", "ActiveState")[0] in ("inactive", "failed")  # what is to end by itself has failed
    check(status == 0 and result(answer).get("changed") and stopped, f"{name} is stopped", answer)
    Path("/run/go").touch()
    status, undone = osapi("job", "undo", job_of(answer) or "none")
    check(status == 0 and show(f"{name}.service", "ActiveState")[0] in ("active", "activating"), f"and {name} is started by an undo", undone)
    sh("systemctl", "stop", name, ok=True)
Path("/run/go").unlink()
sh("systemctl", "start", "--no-block", "slow", ok=True)
until(lambda: show("slow.service", "ActiveState") == ["activating"], "slow is on its way")
go = sh("systemd-run", "--on-active=1s", "touch", "/run/go", ok=True)
status, answer = osapi("service", "start", "slow")
check(status == 0 and show("slow.service", "ActiveState") == ["active"], "what is on its way is waited for", answer)

# --- unconfirmed -------------------------------------------------------------------------------------
status, answer = osapi("service", "start", "plain", "--confirm", "2")
check(status == 0 and show("plain.service", "ActiveState") == ["active"], "it runs until somebody confirms it", answer)
until(lambda: show("plain.service", "ActiveState") == ["inactive"], "nobody did, and it is stopped")

# --- own units ---------------------------------------------------------------------------------------
FILE = "[Unit]\nDescription=Mine\n[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
upload("mine", FILE)
upload("mine-2", FILE.replace("Mine", "Mine too"))
upload("bad", "[Service]\nExecStart=relative\n")
upload("worse", "[Service]\nExecStart=/nowhere/to/be/found\n")


def own():
    path = UNITS / "osapi-mine.service"
    text = path.read_text() if path.exists() else None
    return [text, links(), *show("osapi-mine.service", "LoadState", "ActiveState", "UnitFileState", "Description")]


refused(("service", "create", "mine", "bad"), "invalid_input", "what systemd would not take", "systemd does not take")
refused(("service", "create", "mine", "worse"), "invalid_input", "a program that is not there", "nowhere")
refused(("service", "create", "mine", "bad", "--dry-run"), "invalid_input", "a dry run of that")
refused(("service", "create", "agent", "mine"), "invalid_input", "a name of OSAPI's own")
refused(("service", "update", "mine", "mine"), "not_found", "an update of what was not made")
check(own()[0] is None, "nothing was left of that")
cycle("service", "create", "mine", "mine", observe=own)
status, answer = osapi("service", "create", "mine", "mine")
check(status == 0, "it is made", answer)
refused(("service", "create", "mine", "mine-2"), "conflict", "made again of something else")
cycle("service", "update", "mine", "mine-2", observe=own)
status, answer = osapi("service", "update", "mine", "mine-2")
check(own()[-1] == "Mine too", "systemd has read the new file", own())
for verb in ["enable", "start"]:
    cycle("service", verb, "mine", observe=own)
    status, answer = osapi("service", verb, "mine")
    check(status == 0, f"{verb} by the name it was given", answer)
check(result(osapi("service", "get", "mine")[1]).get("service", {}).get("name") == "osapi-mine.service", "it is shown by that name")
cycle("service", "delete", "mine", observe=own)
status, answer = osapi("service", "delete", "mine")
check(status == 0 and own()[0] is None and show("osapi-mine.service", "LoadState") == ["not-found"], "it is deleted", own())
status, answer = osapi("service", "delete", "mine")
check(status == 0 and not result(answer).get("changed"), "what is gone is gone", answer)
status, answer = osapi("node", "drift", "get")
say(f"  drift   {result(answer).get('drift')}")

# --- protected ---------------------------------------------------------------------------------------
for verb, name in [("stop", "osapi-agent"), ("restart", "osapi-controller"), ("disable", "osapi-agent"), ("stop", "osapi.socket"),
                   ("stop", "dbus"), ("stop", "dbus.socket"), ("stop", "systemd-journald"), ("stop", "systemd-logind"),
                   ("stop", "dbus-org.freedesktop.login1"), ("stop", "--name=-.mount"), ("stop", "init.scope"), ("stop", "system.slice"),
                   ("stop", "sysinit.target"), ("start", "reboot.target"), ("start", "poweroff.target"), ("start", "rescue"),
                   ("start", "rescue.target"), ("start", "systemd-reboot")]:
    refused(("service", verb, name), "protected", f"{verb} {name}")
    if verb != "restart":
        refused(("service", verb, name, "--dry-run"), "protected", f"a dry run of {verb} {name}")
for verb, name in [("start", "reboot.target"), ("start", "runlevel6.target"), ("start", "ctrl-alt-del.target"), ("start", "kexec.target"),
                   ("start", "halt.target"), ("start", "exit.target"), ("start", "poweroff.target"), ("start", "rescue.target"),
                   ("start", "emergency.target"), ("start", "systemd-reboot"), ("start", "systemd-poweroff"), ("restart", "reboot.target")]:
    refused(("service", verb, name, "--force"), "protected", f"{verb} {name} with force")
status, answer = http("POST", "/node/_any/power/reboot", {"delay": 604800}, headers=["prefer: respond-async"])
scheduled = f"osapi-power-{answer['job_id']}"
until(lambda: show(f"{scheduled}.timer", "ActiveState") == ["active"], "a reboot is scheduled")
for verb, name in [("stop", f"{scheduled}.timer"), ("restart", f"{scheduled}.timer"), ("start", f"{scheduled}.service"), ("restart", f"{scheduled}.service")]:
    refused(("service", verb, name, "--force"), "protected", f"{verb} of what belongs to a job, with force", "osapi power reboot")
status, _ = osapi("job", "cancel", answer["job_id"])
check(status == 0, "its job is called off")
until(lambda: show(f"{scheduled}.timer", "ActiveState") == ["inactive"], "and so it is gone")
check(http("POST", "/node/_any/service/dbus/stop")[0] == 409, "over HTTP that is a 409")
status, answer = osapi("service", "stop", "systemd-logind", "--force")
check(status == 0 and result(answer).get("changed"), "forced, it is stopped", answer)
status, answer = osapi("job", "undo", job_of(answer) or "none")
check(status == 0 and show("systemd-logind.service", "ActiveState") == ["active"], "and started again by an undo", answer)
check(out("systemctl", "is-active", "osapi-agent", "osapi-controller", "dbus").split() == ["active"] * 3, "all of them are there")

# --- no scripts on the side --------------------------------------------------------------------------
rc = lambda: sorted(str(p) for p in Path("/etc").glob("rc?.d/*cron"))
before = rc()
osapi("service", "disable", "cron")
check(rc() == before and show("cron.service", "UnitFileState") == ["disabled"], "disabling runs no init script", rc())
osapi("service", "enable", "cron")
