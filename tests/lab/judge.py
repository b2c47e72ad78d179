"""Drains the appliance, undrains, revokes and accepts it again, last and apart, asks for what never
ends by itself or ends everything, and judges what schemathesis was answered."""
import json
import os
import sys
import urllib.parse
import urllib.request

BASE = os.environ["OSAPI_BASE"]
with open(os.environ["OSAPI_LEDGER"], encoding="utf-8") as file:
    ledger = json.load(file)


def call(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(BASE + path, data=data, method=method)
    request.add_header("content-type", "application/json")
    if body is not None:
        request.add_header("prefer", "respond-async")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


host = os.uname().nodename
trouble = []
_, agent = call("GET", f"/api/agent/{host}")
key = urllib.parse.quote(json.loads(agent).get("fingerprint", ""))
for verb, query in (("drain", ""), ("undrain", ""), ("reject", ""), ("accept", f"?fingerprint={key}")):
    row = f"POST /api/agent/{{hostname}}/{verb}"
    status, body = call("POST", f"/api/agent/{host}/{verb}{query}")
    ledger["calls"] += 1
    if status == 200:
        ledger["ok"][row] = 1
    else:
        trouble.append(f"{row}: {status} {body!r}")
    status, body = call("POST", f"/api/agent/{host}/{verb}{query}")
    ledger["calls"] += 1
    # Whoever is accepted waits no more.
    if status != (404 if verb == "accept" else 409):
        trouble.append(f"{row} again: {status} {body!r}")

# Tomorrow, which this appliance will not see.
for verb in ("reboot", "shutdown"):
    row = f"POST /api/node/{{hostname}}/power/{verb}"
    status, body = call("POST", f"/api/node/_any/power/{verb}", {"delay": 86400})
    ledger["calls"] += 1
    if status == 202:
        ledger["ok"][row] = 1
    else:
        trouble.append(f"{row}: {status} {body!r}")
with urllib.request.urlopen(BASE + "/api/node/_any/log/follow?lines=1", timeout=30) as stream:
    ledger["calls"] += 1
    if stream.status == 200 and stream.readline():
        ledger["ok"]["GET /api/node/{hostname}/log/follow"] = 1

document = json.loads(call("GET", "/api/openapi.json")[1])
METHODS = ("get", "put", "post", "delete")
ledger["ok"]["GET /api/openapi.json"] = 1
rows = [f"{m.upper()} {path}" for path, item in document["paths"].items() for m in item if m in METHODS]
missing = [row for row in rows if row not in ledger["ok"]]
well = sum(ledger["ok"].values())
print(f"made-up calls: {ledger['calls']} calls, {well} answered 2xx, {len(rows)} rows, never 2xx: {missing}")
if ledger["calls"] < int(os.environ.get("OSAPI_CALLS", "5000")):
    trouble.append("fewer calls than wanted")
if well < int(os.environ.get("OSAPI_WELL", "1000")):
    trouble.append("fewer answered 2xx than wanted")
if missing:
    trouble.append("rows that were never answered 2xx")
if ledger["internal"]:
    trouble.append(f"internal errors: {ledger['internal'][:5]}")
for path in ("/api/health", "/api/health/ready", "/api/health/status", "/api/node/_any"):
    status, body = call("GET", path)
    if status != 200:
        trouble.append(f"{path} afterwards: {status} {body!r}")
print("\n".join(trouble) or "made-up calls: all as promised")
sys.exit(bool(trouble))
