"""Steers schemathesis towards calls that can succeed, and keeps count of every answer.

Half of the calls go out as they were made up. In the other half what must exist is put in the
place of what was made up: a target, a job that waits, an object, a process that may be killed.
"""
import atexit
import itertools
import json
import os
import random
import subprocess
import urllib.request

import schemathesis

BASE = os.environ["OSAPI_BASE"]
LEDGER = os.environ["OSAPI_LEDGER"]
ROUND = itertools.count()

waiting = []
ledger = {"calls": 0, "ok": {}, "statuses": {}, "internal": []}
chance = random.Random(int(os.environ.get("OSAPI_SEED", "1")))


def call(method, path, body=None, headers=None):
    """Asks the appliance directly; returns status and parsed answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(BASE + path, data=data, method=method)
    request.add_header("content-type", "application/json")
    for name, value in (headers or {}).items():
        request.add_header(name, value)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


def upload(name, content):
    part = '--x\r\ncontent-disposition: form-data; name="{}"{}\r\n\r\n{}\r\n'.format
    body = part("name", "", name) + part("content_type", "", "raw")
    body += part("file", '; filename="f"', content) + "--x--\r\n"
    request = urllib.request.Request(BASE + "/api/file?force=true", data=body.encode(), method="POST")
    request.add_header("content-type", "multipart/form-data; boundary=x")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.status


def change(query="", wait=True):
    """A change of a file of its own; returns its job."""
    number = next(ROUND)
    headers = {} if wait else {"Prefer": "respond-async"}
    body = {"object_name": "made-up", "path": f"/srv/made-up/{number}", "content_type": "raw"}
    _, answer = call("POST", f"/api/node/_any/file/deploy{query}", body, headers)
    return (answer or {}).get("job_id"), body["path"]


def sleeper():
    return subprocess.Popen(["sleep", "1000"]).pid


def audit_entry():
    _, answer = call("GET", "/api/audit?limit=1")
    return answer["items"][0]["id"]


def managed_key():
    call("POST", "/api/node/_any/sysctl", {"key": "net.ipv4.ip_default_ttl", "value": "64"})
    return "net.ipv4.ip_default_ttl"


def failed_job():
    _, answer = call("POST", "/api/node/_any/command/exec", {"command": "true"})
    return answer.get("job_id")


def waiting_job():
    settle()
    job, _ = change("?confirm=300")
    waiting.append(job)
    return job


def queued_job():
    # Behind a change that waits nothing ends at once; a queue behind a long act does not exist,
    # so the job is called off in the moment before its agent has taken it, if luck has it.
    for _ in range(50):
        job, _ = change(wait=False)
        status, _ = call("POST", f"/api/job/{job}/cancel")
        if status == 200:
            count("POST /api/job/{id}/cancel", 200, {})
            break
    return job


UNIT = "[Service]\nExecStart=/usr/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"


def prepare():
    """What calls can be about: a unit, and no archive of packages that is out of reach."""
    with open("/etc/systemd/system/made-up.service", "w", encoding="utf-8") as file:
        file.write(UNIT)
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    subprocess.run("rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*", shell=True, check=True)


def own_unit():
    upload("made-up-unit", UNIT)
    name = f"made{next(ROUND)}"
    call("POST", "/api/node/_any/service", {"name": name, "object": "made-up-unit"})
    return name


def package():
    """Installs a package with nothing in it."""
    os.makedirs("/tmp/made-up/DEBIAN", exist_ok=True)
    with open("/tmp/made-up/DEBIAN/control", "w", encoding="utf-8") as file:
        file.write("Package: made-up\nVersion: 1\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: none\n")
    quiet = {"check": True, "stdout": subprocess.DEVNULL}
    subprocess.run(["dpkg-deb", "--build", "/tmp/made-up", "/tmp/made-up.deb"], **quiet)
    subprocess.run(["dpkg", "--install", "/tmp/made-up.deb"], **quiet)
    return "made-up"


def user():
    name = f"made{next(ROUND)}"
    call("POST", "/api/node/_any/user", {"name": name})
    return name


def steer_host(case, given):
    """The same for what is about units, packages, accounts and the host itself."""
    path, method = case.operation.path, case.operation.method.upper()
    if path.endswith("/hostname"):
        case.body = {"hostname": f"made-up-{next(ROUND)}"}
    if path.endswith("/timezone"):
        case.body = {"timezone": chance.choice(["Europe/Berlin", "UTC"])}
    if path.endswith("/service") and method == "POST":
        upload("made-up-unit", UNIT)
        case.body = {"name": f"made{next(ROUND)}", "object": "made-up-unit"}
    if "/service/{name}" in path:
        is_own = path.endswith("/{name}") and method in ("PUT", "DELETE")
        given["name"] = own_unit() if is_own else "made-up"
        if method == "PUT":
            case.body = {"object": "made-up-unit"}
    if path.endswith("/package") and method == "POST":
        case.body = {"name": "bash"}
    if path.endswith("/package/{name}"):
        given["name"] = package() if method == "DELETE" else "bash"
    if path.endswith("/log/unit/{name}"):
        given["name"] = "dbus"
    if path.endswith("/user") and method == "POST":
        case.body = {"name": f"made{next(ROUND)}"}
    if "/user/{name}" in path:
        given["name"] = user()
        if method == "PUT":
            case.body = {"shell": "/bin/sh"}
        elif path.endswith("/password"):
            case.body = {"password": f"made up {next(ROUND)}"}


def steer(case):
    """Puts what exists in the place of what was made up."""
    path, method = case.operation.path, case.operation.method.upper()
    row = f"{method} {path}"
    given = case.path_parameters if case.path_parameters is not None else {}
    if "/api/node/{hostname}" in path:
        given["hostname"] = chance.choice(["_any", "_any", "_any", "_all"])
    elif "{hostname}" in path:
        given["hostname"] = os.uname().nodename
    if "{key}" in path:
        given["key"] = managed_key()
        if method == "PUT":
            case.body = {"value": chance.choice(["64", "63"])}
    if "{pid}" in path:
        given["pid"] = sleeper()
        if "signal" in path:
            case.body = {"signal": "TERM"}
    if "/file/deploy" in path:
        upload("made-up", "text\n")
        case.body = {"object_name": "made-up", "path": f"/srv/made-up/x{next(ROUND)}", "content_type": "raw"}
    if "/file/undeploy" in path or "/file/status" in path:
        case.body = {"path": change()[1]}
    if row == "POST /api/node/{hostname}/sysctl":
        case.body = {"key": "net.ipv4.ip_default_ttl", "value": "64"}
    if "/command/" in path:
        case.body = {"command": "true"}
    if "/file/{name}" in path:
        upload("made-up-too", "text\n")
        given["name"] = "made-up-too"
    steer_host(case, given)
    if "/audit/{id}" in path:
        given["id"] = audit_entry()
    if "/job/{id}" in path:
        if path.endswith("/confirm") or path.endswith("/revert"):
            given["id"] = waiting_job()
        elif path.endswith("/cancel"):
            given["id"] = queued_job()
        elif path.endswith("/undo"):
            given["id"] = change()[0]
        else:
            given["id"] = failed_job()
        if path.endswith("/retry"):
            case.body = {}
    if method in ("GET", "DELETE") or "/job/{id}" in path or "/node/" in path:
        case.query = {}
    case.headers = {}
    case.path_parameters = given


def settle():
    """Whatever waits to be confirmed holds up every other change: it is taken back."""
    while waiting:
        call("POST", f"/api/job/{waiting.pop()}/revert")


@schemathesis.hook
def before_call(context, case, kwargs):
    if chance.random() < 0.5 and case.operation.path not in ("/api/file",):
        try:
            steer(case)
        except Exception as error:
            print("cannot steer", case.operation.path, error)


def count(row, status, answer):
    ledger["calls"] += 1
    key = f"{row} {status}"
    ledger["statuses"][key] = ledger["statuses"].get(key, 0) + 1
    if 200 <= status < 300:
        ledger["ok"][row] = ledger["ok"].get(row, 0) + 1
    if isinstance(answer, dict) and answer.get("kind") == "internal":
        ledger["internal"].append([row, answer])


@schemathesis.hook
def after_call(context, case, response):
    try:
        answer = json.loads(response.content or b"null")
    except ValueError:
        answer = None
    row = f"{case.operation.method.upper()} {case.operation.path}"
    count(row, response.status_code, answer)
    if "confirm=" in (response.request.url or "") and response.status_code < 300:
        waiting.append((answer or {}).get("job_id"))
        settle()


@atexit.register
def write():
    with open(LEDGER, "w", encoding="utf-8") as file:
        json.dump(ledger, file, indent=1)


prepare()
