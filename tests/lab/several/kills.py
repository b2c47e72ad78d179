"""Server, controllers, relays and agents are killed at random moments under load. What was promised is
compared with what happened, which the boxes count at their own disks."""

import http.client
import random
import threading
import time
from collections import Counter

from appliances import HOSTS
from lib import check, figure

# Of each client that changes something, its own: one for a host or for all, one for any host.
KEYS = [("net.ipv4.tcp_keepalive_time", "net.core.somaxconn"), ("net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_max_tw_buckets"),
        ("net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_max_syn_backlog"),
        ("net.ipv4.tcp_probe_interval", "net.ipv4.tcp_challenge_ack_limit")]
FIRST = 1000  # no value is smaller
PACE = 0.1    # seconds between what one client asks for
ACTORS = 4    # clients that change nothing
SETTLED = 240


class Client(threading.Thread):
    """Asks for changes, acts and reads at either controller, and asks again until it is answered."""

    def __init__(self, site, number, seed):
        super().__init__(daemon=True)
        self.site, self.number, self.random = site, number, random.Random(f"{seed}/{number}")
        self.mark = f"k{seed}"
        self.stop = threading.Event()
        self.acts, self.writes = {}, []  # word -> job; (job, target, key, value), in order
        self.reads, self.unanswered, self.wrong = Counter(), Counter(), []
        self.value = FIRST

    def run(self):
        while not self.stop.is_set():
            time.sleep(self.random.uniform(0, 2 * PACE))
            try:
                self.step()
            except Exception as error:  # it is shown when all have ended
                self.wrong.append(repr(error))
                return

    def step(self):
        kind = self.random.random()
        target = self.random.choice(["_any", "_any", "_all", *HOSTS])
        if kind < (0.45 if self.number < len(KEYS) else 0.85):
            word = f"{self.mark}-{self.number}-{len(self.acts)}"
            # Some take so long that somebody dies meanwhile.
            body = {"command": "/usr/local/bin/bump", "args": [word, self.random.choice(["0", "0", "0", "1.5"])]}
            self.acts[word] = None
            self.acts[word] = self.until_taken("POST", f"/node/{target}/command/exec", body, word)
        elif kind < 0.85:
            self.value += 1
            key = KEYS[self.number][target == "_any"]
            job = self.until_taken("PUT", f"/node/{target}/sysctl/{key}", {"value": str(self.value)}, f"{self.mark}-{key}-{self.value}")
            self.writes.append((job, target, key, self.value))
        else:
            controller = self.random.choice(self.site.controllers)
            status, answer = controller.try_ask("GET", f"/node/{target}/load", None, {"prefer": "wait=2"}, timeout=30)
            self.reads[status] += 1
            is_away = status == 500 and answer["kind"] == "expired"  # and known to be
            if status not in (0, 200, 202, 503, 504) and not is_away:
                self.wrong.append((target, status, answer))

    def until_taken(self, method, path, body, key):
        """Asks one controller and then the other, with the same key, until one takes it on."""
        turn, end = self.random.randrange(2), time.monotonic() + SETTLED
        headers = {"prefer": "respond-async", "idempotency-key": key}
        while time.monotonic() < end:
            controller = self.site.controllers[turn % 2]
            try:
                status, answer = controller.ask(method, path, body, headers, timeout=30)
            except (OSError, http.client.HTTPException):
                status, answer = 0, None
            if status == 202:
                return answer["job_id"]
            self.unanswered[status] += 1
            if status not in (0, 503):
                self.wrong.append((method, path, status, answer))
                return None
            turn += 1
            time.sleep(0.05)
        self.wrong.append((method, path, "nobody takes it on"))
        return None


class Victims:
    def __init__(self, site, rng):
        self.site, self.rng, self.killed = site, rng, Counter()

    def kill_one(self):
        what = self.rng.choice(["server", "controller", "controller", "relay", "agent"])
        later = self.rng.uniform(0, 2)
        if what == "server":
            self.site.broker.kill()
            time.sleep(later)
            self.site.broker.start()
        else:
            box = self.rng.choice(self.site.controllers if what == "controller" else list(self.site.hosts.values()))
            unit = f"osapi-{what}.service"
            # The service manager starts it again. It may not have done so yet since the last time.
            box.run(f"for try in $(seq 100); do systemctl is-active -q {unit} && break; sleep 0.1; done; "
                    f"systemctl kill --kill-who=main --signal=KILL {unit}")
            what = f"{what} {box.name}"
        self.killed[what] += 1


def run(site):
    for key in {key for keys in KEYS for key in keys}:
        status, answer = site.left.ask("POST", "/node/_all/sysctl", {"key": key, "value": str(FIRST)})
        check(status == 200, f"{key} is set everywhere", answer)
    seed, points = site.args.seed, site.args.points
    clients = [Client(site, number, seed) for number in range(len(KEYS) + ACTORS)]
    rng, begun = random.Random(seed), time.monotonic()
    victims = Victims(site, rng)
    for client in clients:
        client.start()
    for _ in range(points):
        time.sleep(rng.uniform(0, 1.5))
        victims.kill_one()
    for client in clients:
        client.stop.set()
    for client in clients:
        client.join(SETTLED)
    wrong = [wrong for client in clients for wrong in client.wrong]
    check(not wrong, "every request is taken on in the end, or answered", wrong[:5])
    site.ready()
    figure("kills of a fleet", f"{points} in {time.monotonic() - begun:.0f} s: {dict(sorted(victims.killed.items()))}")
    judge(site, clients)
    site.verify_audit()
    for key in {key for keys in KEYS for key in keys}:
        status, answer = site.left.ask("DELETE", f"/node/_all/sysctl/{key}")
        check(status == 200, f"{key} is given back everywhere", answer)


def judge(site, clients):
    acts = {word: job for client in clients for word, job in client.acts.items() if job}
    writes = [write for client in clients for write in client.writes if write[0]]
    jobs = [*acts.values(), *(write[0] for write in writes)]
    check(len(set(jobs)) == len(jobs), "each request has a job of its own")
    views, open_at_last = {}, []
    end = time.monotonic() + SETTLED
    for job in jobs:
        views[job] = site.view(job, within=max(1, end - time.monotonic()))
        if not views[job] or len(views[job].get("responses", {})) != len(views[job].get("agent_states", {"": ""})):
            open_at_last.append(views[job])
    if not check(not open_at_last, f"each of {len(jobs)} jobs comes to its outcome on each of its hosts", open_at_last[:2]):
        return
    only_once(site, acts)
    add_up(site, acts, writes, views)
    left_behind(site, writes, views)
    reads, again = Counter(), Counter()
    for client in clients:
        reads += client.reads
        again += client.unanswered
    figure("load of the kills", f"{len(acts)} acts, {len(writes)} changes, reads by status {dict(sorted(reads.items()))}, "
           f"asked again after {dict(sorted(again.items()))}")


def only_once(site, acts):
    """Nobody has more than one job of what was asked again."""
    made, offset, mark = Counter(), 0, f"k{site.args.seed}-"
    while True:
        _, page = site.right.ask("GET", f"/job?limit=100&offset={offset}")
        for item in page["items"]:
            made.update(word for word in (item["operation"]["data"].get("args") or []) if word.startswith(mark))
        offset += 100
        if offset >= page["total_items"]:
            break
    check(made == Counter(list(acts)), "there is one job for each act, however often it was asked for",
          [word for word in set(made) | set(acts) if made[word] != 1])


def add_up(site, acts, writes, views):
    """Host by host: what was taken on, what became of it, and how often it was really done."""
    begun, ended = ({name: Counter(host.counted(which)) for name, host in site.hosts.items()} for which in ("begun", "ended"))
    twice, wrong, sums = [], [], {}
    for name in HOSTS:
        twice += [(name, word) for word, times in begun[name].items() if times > 1]
        outcomes, done = Counter(), 0
        for word, job in acts.items():
            response = views[job]["responses"].get(name)
            times = begun[name][word], ended[name][word]
            if response is None:
                wrong += [(name, word, "it is not for this host", times)] if any(times) else []
                continue
            how = response["status"] if response["status"] == "completed" else response.get("kind")
            outcomes[how] += 1
            done += times[0]
            fits = {"completed": times == (1, 1), "interrupted": times[0] <= 1}.get(how, times == (0, 0))
            wrong += [] if fits else [(name, word, response, times)]
        changes = Counter(view["responses"][name]["status"] if view["responses"][name]["status"] == "completed" else
                          view["responses"][name].get("kind") for view in (views[write[0]] for write in writes)
                          if name in view["responses"])
        sums[name] = {"acts": dict(outcomes), "begun": done, "changes": dict(changes)}
        figure(f"kills, on {name}", f"{sum(outcomes.values())} acts taken on: {dict(outcomes)}, {done} really begun; "
               f"{sum(changes.values())} changes: {dict(changes)}")
        unknown = outcomes["interrupted"]
        check(outcomes["completed"] <= done <= outcomes["completed"] + unknown, f"{name}: started, finished and unknown add up",
              sums[name])
        check(set(changes) <= {"completed"}, f"{name}: every change is done in the end", changes)
    check(not twice, "nothing was done twice", twice)
    check(not wrong, "what was done is what the outcomes say", wrong[:5])
    several = [word for word, job in acts.items() if len(views[job]["responses"]) == 1
               and sum(begun[name][word] for name in HOSTS) > 1]
    check(not several, "what was for one host, or any, was done on one", several)


def left_behind(site, writes, views):
    """On each host the last change of each parameter counts, in order of submission."""
    last = {}
    for job, _, key, value in sorted(writes):
        for name in views[job]["responses"]:
            last[name, key] = value
    wrong = []
    for (name, key), value in last.items():
        found = site.hosts[name].parameter(key)
        if found != (str(value), f"{key} = {value}\n"):
            wrong.append((name, key, value, found))
    check(last and not wrong, f"{len(last)} parameters are what the last change made them, live and on disk", wrong)
