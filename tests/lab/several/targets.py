"""`_all`, labels, names and machine ids, for what looks and what changes, at either controller."""

from appliances import HOSTS
from lib import check

KEY = "net.ipv4.tcp_keepalive_probes"


def names(answer):
    return [row.get("hostname") for row in answer.get("results", [])] if isinstance(answer, dict) else answer


def run(site):
    one = site.hosts["one"]
    sets = {"_all": sorted(HOSTS), "group:web": ["one", "two"], "group:web.dev": ["two"], "group:db": ["three"],
            "four": ["four"], one.machine_id: ["one"]}
    status, answer = site.left.ask("POST", "/node/_all/sysctl", {"key": KEY, "value": "5"})
    check(status == 200 and names(answer) == sorted(HOSTS), "a kernel parameter is set on all", answer)
    value = 5
    for target, expected in sets.items():
        for controller in site.controllers:
            who = f"{target} at {controller.name}"
            status, answer = controller.ask("GET", f"/node/{target}/hostname")
            fine = status == 200 and names(answer) == expected and all(row["status"] == "ok" for row in answer["results"])
            check(fine, f"{who}: a read is answered by {', '.join(expected)}", answer)
            value += 1
            status, answer = controller.ask("PUT", f"/node/{target}/sysctl/{KEY}", {"value": str(value)})
            rows = answer.get("results", []) if isinstance(answer, dict) else []
            fine = status == 200 and names(answer) == expected and all(row.get("changed") for row in rows)
            check(fine, f"{who}: a change is done there", answer)
            shown = {name: host.parameter(KEY) for name, host in site.hosts.items()}
            there = str(value), f"{KEY} = {value}\n"
            check({name for name in HOSTS if shown[name] == there} == set(expected), f"{who}: and nowhere else", shown)
            job = answer.get("job_id") if isinstance(answer, dict) else None
            views = [other.ask("GET", f"/job/{job}")[1] for other in site.controllers]
            check(views[0] == views[1], f"{who}: both controllers tell the job alike", views)
            check(sorted(views[0]["responses"]) == expected == sorted(views[0]["agent_states"]),
                  f"{who}: the outcomes add up to the set", views[0])
    lists = [controller.ask("GET", "/agent")[1] for controller in site.controllers]
    known = [[(agent["machine_id"], agent["hostname"], agent["labels"], agent.get("fingerprint")) for agent in one["agents"]]
             for one in lists]
    check(known[0] == known[1] and len(known[0]) == len(HOSTS), "both controllers list the same hosts", known)
    failing(site)
    refused(site)


def failing(site):
    status, answer = site.left.ask("DELETE", f"/node/three/sysctl/{KEY}")
    check(status == 200, "one host goes without the parameter", answer)
    for controller in site.controllers:
        status, answer = controller.osapi("sysctl", "update", "--target", "_all", KEY, "4")
        check(status == 16, f"{controller.name}: the command line ends with 16 where some have failed", (status, answer))
        _, job = controller.ask("GET", f"/job/{answer['job_id']}" if isinstance(answer, dict) else "/job/none")
        states = {name: state["status"] for name, state in job.get("agent_states", {}).items()}
        check(states == {name: "failed" if name == "three" else "completed" for name in HOSTS}, "each has its outcome", states)
        check(job.get("status") == "partial_failure", "and the job says so", job)
        status, answer = controller.osapi("sysctl", "update", "--target", "three", KEY, "4")
        check(status not in (0, 16), "where there is one host only it ends with the error of that", (status, answer))
        status, answer = controller.osapi("sysctl", "update", "--target", "group:web", KEY, "4")
        check(status == 0, "and with 0 where all have done it", (status, answer))
    status, answer = site.left.ask("DELETE", f"/node/_all/sysctl/{KEY}")
    check(status == 200, "the parameter goes again", answer)


def refused(site):
    for target in ("nobody", "0" * 32, "group:", "group:we", ":web", "group:web.", "group:none"):
        for controller in site.controllers:
            status, answer = controller.ask("POST", f"/node/{target}/command/exec", {"command": "true"})
            check(status in (400, 404), f"{controller.name} refuses {target!r}", answer)
