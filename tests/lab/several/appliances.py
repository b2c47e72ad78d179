"""A nats-server, two controllers and four hosts with relays, in appliances of their own.

Everything runs with the rights that `osapi nats permissions` prints, every host demands signatures and is
accepted by its fingerprint, and the server syncs before it acknowledges."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from boxes import TREE, forget, lab, provision
from lib import check, until

CONTROLLERS = "left", "right"
LABELS = {"one": "web.prod", "two": "web.dev.east", "three": "db", "four": "website"}
HOSTS = tuple(LABELS)
OPEN = "submitted", "processing"
LOCAL = "osapi.socket osapi-controller.service"
RELAY = "osapi-relay.socket osapi-relay.service"
KEYS = "var/lib/osapi/controller"
CONFIG = "/etc/osapi/osapi.yaml.d/fleet.yaml"
# What counts the effects: a line for each, at the disk of the box, which no victim ever writes.
COUNTER = """#!/bin/sh
# bump WORD [SECONDS]: notes that it was begun, and after so long that it has ended.
echo "$1" >> /var/lib/counted/begun
[ -z "$2" ] || sleep "$2"
echo "$1" >> /var/lib/counted/ended
"""


class Local(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Box:
    def __init__(self, name, status):
        self.name, self.ip = name, status["ip"]
        self.machine_id = json.loads((Path(status["dir"]) / "node.json").read_text())["machine_id"]
        self._root = None

    @property
    def root(self):
        """Its root directory, as this machine sees it."""
        if not (self._root and (self._root / "etc/machine-id").exists()):
            self._root = next(self._roots(), None) or Path("/nonexistent")
        return self._root

    def _roots(self):
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, AttributeError):
                ids = re.search(r"^NSpid:\t(.*)$", (entry / "status").read_text(), re.M)[1].split()
                root = entry / "root"
                if ids[-1] == "1" and len(ids) > 1 and (root / "etc/machine-id").read_text().strip() == self.machine_id:
                    yield root

    def run(self, *argv, ok=True, timeout=120):
        """A command, or a line of shell, in the box: exit status and what it printed."""
        argv = ("sh", "-ec", argv[0]) if len(argv) == 1 else argv
        r = lab("exec", self.name, "--timeout", timeout, "--", *argv, check=ok, timeout=timeout + 60)
        return r.returncode, r.stdout.strip()

    def osapi(self, *words, timeout=120):
        """`osapi WORDS --json` in the box: its exit status, and what it prints as JSON."""
        status, text = self.run("osapi", "--json", *map(str, words), ok=False, timeout=timeout)
        with contextlib.suppress(ValueError):
            return status, json.loads(text)
        return status, text

    def put(self, path, text, mode="644", owner="root:root"):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(text)
            file.flush()
            lab("cp", file.name, f"{self.name}:{path}")
        self.run(f"chown {owner} {path}; chmod {mode} {path}")


class Controller(Box):
    def ask(self, method, path, body=None, headers=(), timeout=90):
        """One request: status and answer. OSError and HTTPException say that there was none."""
        connection = Local(str(self.root / "run/osapi/osapi.sock"), timeout)
        try:
            text = None if body is None else json.dumps(body) if isinstance(body, (dict, list)) else body
            sent = ({} if text is None else {"content-type": "application/json"}) | dict(headers)
            connection.request(method, "/api" + path, text, sent)
            answer = connection.getresponse()
            got = answer.read()
            with contextlib.suppress(ValueError):
                return answer.status, json.loads(got)
            return answer.status, got.decode(errors="replace")
        finally:
            connection.close()

    def try_ask(self, *args, **kw):
        """The same, with status 0 where there was no answer."""
        try:
            return self.ask(*args, **kw)
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error)


class Host(Box):
    def __init__(self, name, status):
        super().__init__(name, status)
        self.netns = status["netns"]

    def parameter(self, key):
        """A kernel parameter of its network, and what its file for it says."""
        argv = "nsenter", f"--net=/run/netns/{self.netns}", "cat", "/proc/sys/" + key.replace(".", "/")
        now = subprocess.run(argv, text=True, stdout=subprocess.PIPE, check=True).stdout.strip()
        kept = self.root / f"etc/sysctl.d/osapi-{key}.conf"
        return now, kept.read_text() if kept.exists() else None

    def counted(self, which="ended"):
        """What was counted there, in order."""
        with contextlib.suppress(FileNotFoundError):
            return (self.root / "var/lib/counted" / which).read_text().split()
        return []


class Broker:
    """nats-server in a network namespace of its own, with what it stores on this machine's disk."""

    def __init__(self, status, program):
        self.ip, self.dir, self.netns = status["ip"], Path(status["dir"]), status["netns"]
        self.program, self.process = program, None
        self.passwords = {}

    def configure(self, printed):
        """`printed` is what `osapi nats permissions` prints for each who may connect."""
        users = "".join(re.search(r"^users: \[\n(.*)^\]$", text, re.M | re.S)[1] for text in printed)
        for account, variable in re.findall(r'user: "([^"]+)", password: \$(\w+)', users):
            self.passwords[account] = (variable, secrets.token_hex(16))
        (self.dir / "nats.conf").write_text(
            "server_name: fleet\nlisten: 0.0.0.0:4222\nmax_payload: 8MB\n"
            f"jetstream {{ store_dir: \"{self.dir}/jetstream\", sync_interval: always }}\n"
            f"authorization {{ users: [\n{users}] }}\n")

    def auth(self, account):
        return f"{{type: user_pass, username: {account}, password: {self.passwords[account][1]}}}"

    def start(self):
        # It ends with this program, however that ends.
        self.process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.netns}", "setpriv", "--pdeathsig", "KILL", "--",
             self.program, "-c", str(self.dir / "nats.conf"), "-l", str(self.dir / "log")],
            env=os.environ | dict(self.passwords.values()), stdin=subprocess.DEVNULL)

    def kill(self):
        if self.process:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


class Site:
    def __init__(self, args, program):
        self.args = args
        lab("up", "base", "--suite", args.suite, timeout=1800)
        provision("base", args)
        forget("base")
        lab("stop", "base")
        lab("up", "broker", "--kind", "net")
        lab("up", *CONTROLLERS, *HOSTS, "--suite", args.suite, "--clone", "base")
        nodes = {node["name"]: node for node in json.loads(lab("status", "--json").stdout)}
        self.broker = Broker(nodes["broker"], program)
        self.controllers = [Controller(name, nodes[name]) for name in CONTROLLERS]
        self.left, self.right = self.controllers
        self.hosts = {name: Host(name, nodes[name]) for name in HOSTS}
        self.words = 0

    def each(self, boxes, action):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            return list(pool.map(action, boxes))

    # -- how a fleet is made, as docs/fleet.md says it

    def make(self):
        printed = self._permissions()
        self.broker.configure(printed)
        self.broker.start()
        self._install()
        key = secrets.token_hex(32)
        for controller in self.controllers:
            self._make_controller(controller, key)
        self.each(self.hosts.values(), self._make_host)
        self._enrol()

    def _permissions(self):
        for controller in self.controllers:
            controller.run("systemctl disable --quiet --now osapi-agent.service; systemctl stop osapi.slice; "
                           "rm -rf /var/lib/osapi/controller; mkdir -p /etc/osapi/osapi.yaml.d")
            controller.put(CONFIG, f"controller: {{nats: {{name: {controller.name}}}}}\n")
        ids = [host.machine_id for host in self.hosts.values()]
        asked = [(controller, "controller") for controller in self.controllers]
        asked += [(self.left, "installer"), (self.left, "host", "--host", ",".join(ids))]
        return [box.run("osapi", "nats", "permissions", "--role", *words)[1] for box, *words in asked]

    def _url(self):
        return f"url: nats://{self.broker.ip}:4222"

    def _install(self):
        self.left.put("/root/installer.yaml", "controller: {nats: {%s, auth: %s}}\n"
                      % (self._url(), self.broker.auth("osapi-installer")), "600")
        status, text = 1, ""
        for _ in range(100):  # until the server is there
            status, text = self.left.run("osapi", "-f", "/root/installer.yaml", "nats", "install", ok=False)
            if status == 0:
                break
            time.sleep(0.1)
        check(status == 0, "an installer makes the streams with its own rights", text)

    def _make_controller(self, controller, key):
        drop_in = "/etc/systemd/system/osapi-controller.service.d/fleet.conf"
        controller.put(drop_in, (TREE / "packaging/osapi-controller-fleet.conf").read_text())
        auth = self.broker.auth(f"osapi-controller-{controller.name}")
        controller.put(CONFIG, f"""controller:
  api: {{security: {{signing_key: {key}}}}}
  nats: {{{self._url()}, name: {controller.name}, auth: {auth}, synced: true}}
  pki: {{enabled: true}}
""", "640", "root:osapi")
        # One and the same key; the first makes it.
        controller.run("install -d -o osapi -g osapi -m 700 /var/lib/osapi/controller")
        if controller is not self.left:
            for name in ("controller.key", "controller.pub"):
                text = (self.left.root / KEYS / name).read_text()
                controller.put(f"/{KEYS}/{name}", text, "600", "osapi:osapi")
        # A box has its own id of the boot, and the machine's clock of it. What goes together, goes together.
        controller.run("umount /proc/sys/kernel/random/boot_id")
        status, text = controller.run("systemctl daemon-reload; systemctl restart osapi-controller; systemctl "
                                      "--no-pager status osapi-controller", ok=False)
        check(status == 0, f"the controller {controller.name} starts with its rights at the broker", text)

    def _make_host(self, host):
        host.run("mkdir -p /etc/osapi/osapi.yaml.d /var/lib/counted")
        host.put("/usr/local/bin/bump", COUNTER, "755")
        host.put("/etc/osapi/controller.pub", (self.left.root / f"{KEYS}/controller.pub").read_text())
        auth = self.broker.auth(f"osapi-host-{host.machine_id}")
        host.put(CONFIG, f"""agent:
  nats: {{{self._url()}, name: {host.machine_id}, auth: {auth}}}
  labels: {{group: {LABELS[host.name]}}}
  pki: {{enabled: true}}
  controller_key: /etc/osapi/controller.pub
  conditions: {{high_load_multiplier: 1000}}  # the machine is that of all boxes
""", "640", "root:osapi")
        host.run(f"systemctl disable --quiet --now {LOCAL}; systemctl enable --quiet --now {RELAY}; "
                 "systemctl restart osapi-agent")

    def _enrol(self):
        def waiting():
            status, answer = self.left.ask("GET", "/agent/pending")
            return answer["agents"] if status == 200 and answer["total"] == len(HOSTS) else None
        pending = until(waiting, "four hosts wait to be accepted", 60) or []
        status, answer = self.left.ask("GET", "/node/_all/load")
        check(status == 409, "nothing is asked of a host that nobody has accepted", answer)
        shown = {agent["machine_id"]: agent["fingerprint"] for agent in pending}
        wrong = "SHA256:" + "A" * 43
        for number, host in enumerate(self.hosts.values()):
            controller = self.controllers[number % 2]
            _, own = host.osapi("agent", "key", "fingerprint")
            own = own["fingerprint"] if isinstance(own, dict) else own
            check(shown.get(host.machine_id) == own, f"{host.name} shows the fingerprint that it waits with", (shown, own))
            status, answer = controller.osapi("agent", "accept", host.name, "--fingerprint", wrong)
            check(status != 0, f"{host.name} is not accepted with another fingerprint", answer)
            status, answer = controller.osapi("agent", "accept", host.name, "--fingerprint", own)
            check(status == 0, f"{host.name} is accepted with its own, by {controller.name}", answer)
        self.ready()

    # -- what the parts ask

    def ready(self, hosts=HOSTS, seconds=60):
        """Waits until both controllers have these hosts to work with."""
        for controller in self.controllers:
            def there(controller=controller):
                status, answer = controller.try_ask("GET", "/node/_all/load", timeout=30)
                rows = answer.get("results", []) if status == 200 else []
                return set(hosts) <= {row["hostname"] for row in rows if row["status"] == "ok"}
            until(there, f"{controller.name} reaches {', '.join(hosts)}", seconds)

    def word(self, of):
        self.words += 1
        return f"{of}-{self.words}"

    def bump(self, target, word, seconds=None, by=None, **headers):
        """Has an effect counted. Gives status and answer."""
        args = [word] + ([] if seconds is None else [str(seconds)])
        body = {"command": "/usr/local/bin/bump", "args": args}
        return (by or self.left).ask("POST", f"/node/{target}/command/exec", body,
                                     {"prefer": "respond-async", "idempotency-key": word, **headers})

    def view(self, job, within=120, by=None):
        """The job once each of its hosts has come to an outcome."""
        end, turn, answer = time.monotonic() + within, 0, None
        while time.monotonic() < end:
            controller = by or self.controllers[turn % 2]
            turn += 1
            status, answer = controller.try_ask("GET", f"/job/{job}")
            if status == 200 and len(answer.get("responses", {})) == len(answer["agent_states"]):
                return answer
            time.sleep(0.05)
        return answer

    def counts(self, word, which="ended"):
        """How often each host has counted a word."""
        return {name: host.counted(which).count(word) for name, host in self.hosts.items()}

    def everywhere(self):
        """What was counted, by word: on which hosts."""
        found = {}
        for name, host in self.hosts.items():
            for word in host.counted("begun"):
                found.setdefault(word, []).append(name)
        return found

    def verify_audit(self):
        for controller in self.controllers:
            status, answer = controller.osapi("audit", "verify")
            check(status == 0, f"the audit log of {controller.name} verifies", answer)

    def tell(self):
        """What the boxes have to say where something failed."""
        for box in (*self.controllers, *self.hosts.values()):
            _, text = box.run("journalctl -u 'osapi*' --no-pager -n 25 -o short-precise", ok=False)
            print(f"-- {box.name}\n{text}", flush=True)
        log = self.broker.dir / "log"
        print("-- broker", *log.read_text().splitlines()[-15:], sep="\n", flush=True)
