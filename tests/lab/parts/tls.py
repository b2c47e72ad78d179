# lab: limit=240
"""The network's socket: nothing listens until it is enabled; then a token is what it takes, and a
certificate is shown, which can be renewed. It is there after a reboot, and gone when disabled."""

import json
import os
import ssl
from pathlib import Path

from lib import boot_id, check, kept, next_boot, osapi, out, part, phase, pid, ready, sh, show, until, user

SOCKET = "osapi-tls.socket"
URL = "https://localhost:8443"
PLACE = Path("/etc/osapi/tls")
DROPIN = Path("/etc/systemd/system/osapi-controller.service.d/tls.conf")
CONFIG = Path("/etc/osapi/osapi.yaml.d/tls.yaml")


def listeners():
    """Everything that listens on TCP, and every bound port of UDP."""
    lines = out("ss", "--no-header", "--listening", "--tcp", "--udp", "--numeric").splitlines()
    return sorted(" ".join(line.split()[0:1] + line.split()[4:5]) for line in lines)


def is_open():
    return any(line.endswith(":8443") for line in listeners())


def certify(name):
    """An authority, once, and a certificate for this host."""
    PLACE.mkdir(parents=True, exist_ok=True)
    if not (PLACE / "ca.pem").exists():
        sh(f"""cd {PLACE} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 \
               -subj /CN=authority -keyout ca.key -out ca.pem 2>&1""", ok=True)
    sh(f"""cd {PLACE} && printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n' > ext &&
           openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN={name} -keyout key.pem -out csr 2>&1 &&
           openssl x509 -req -in csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 20 -extfile ext -out cert.pem 2>&1""",
       ok=True)


def curl(path, token=None, *more):
    """The status that curl gets, which trusts the authority and nobody else."""
    argv = ["curl", "--silent", "--max-time", "30", "--cacert", PLACE / "ca.pem", "--output", "/root/answer",
            "--write-out", "%{http_code}", *more]
    if token:
        argv += ["--header", f"Authorization: Bearer {token}"]
    return sh(*argv, URL + path).stdout


def shown():
    """The certificate that the listener shows."""
    try:
        return ssl.get_server_certificate(("localhost", 8443)).strip()
    except OSError as error:
        return str(error)


def issued():
    return (PLACE / "cert.pem").read_text().strip()


def token(*roles):
    status, answer = osapi("token", "generate", "-r", ",".join(roles), "-u", "ada")
    check(status == 0 and "token" in answer, f"a token for {roles} can be made", answer)
    return answer["token"]


def without():
    """Other hosts could listen in where there is no certificate: nobody is served but on this one."""
    sh("systemctl", "enable", "--now", SOCKET, ok=True)
    until(is_open, "the port is there without a certificate")
    ready()
    running = pid("osapi-controller")
    status, answer = osapi("os", "get")
    check(status == 0, "and this host is served as ever", answer)
    check(curl("/api/health") == "000", "but nobody over the network")
    said = sh("journalctl", "-b", "-u", "osapi-controller", "-o", "cat").stdout
    check("nobody is served over the network" in said and "controller.tls.cert" in said, "the journal says why", said[-500:])
    check("controller.tls.cert" in show("osapi-controller", "StatusText"), "so does the unit", show("osapi-controller", "StatusText"))
    _, answer = osapi("health", "status")
    check("controller.tls.cert" in answer["components"]["network"].get("error", ""), "and what it says of itself", answer)
    judged = {check["id"]: check for check in osapi("doctor")[1]["checks"]}
    check(judged["tls.certificate"]["status"] == "fail" and "reload" in judged["tls.certificate"]["fix"],
          "and the doctor, with what to do", judged["tls.certificate"])

    certify("first")
    CONFIG.parent.mkdir(parents=True, exist_ok=True)
    CONFIG.write_text(f"controller: {{ tls: {{ cert: {PLACE}/cert.pem, key: {PLACE}/key.pem }} }}\n")
    sh("chgrp", "osapi", PLACE / "key.pem", ok=True)
    sh("chmod", "0640", PLACE / "key.pem", ok=True)
    sh("systemctl", "reload", "osapi-controller", ok=True)
    until(lambda: curl("/api/health") == "200", "with one, a reload is enough")
    check(pid("osapi-controller") == running, "in the same process")
    _, answer = osapi("health", "status")
    check("error" not in answer["components"]["network"], "then it is well", answer)
    judged = {check["id"]: check for check in osapi("doctor")[1]["checks"]}
    wrong = [check for id, check in judged.items() if id.startswith("tls.") and check["status"] == "fail"]
    check(not wrong and judged["tls.names"]["status"] == "ok", "the doctor agrees", wrong)
    check(judged["tls.expiry"]["status"] == "warn", "and wants it renewed within 30 days", judged["tls.expiry"])

    (PLACE / "cert.pem").write_text("nonsense\n")
    sh("systemctl", "restart", "osapi-controller", ok=True)
    ready()
    check(curl("/api/health") == "000", "started with one that cannot be used, nobody is served over the network")
    status, answer = osapi("os", "get")
    check(status == 0, "and this host is", answer)
    CONFIG.unlink()
    sh("systemctl", "disable", "--now", SOCKET, ok=True)
    ready()


def first():
    ready()
    before = listeners()
    check(not is_open(), "nothing listens before it is wanted", before)
    check(show(SOCKET, "UnitFileState") == "disabled", "the network's socket is disabled")
    key = Path("/var/lib/osapi/controller/token.key").stat()
    check(key.st_mode & 0o777 == 0o600 and key.st_size == 32, "there is a signing key, for its owner alone", key)
    user("ada")
    status, answer = osapi("token", "generate", "-r", "admin", "-u", "ada", by="ada")
    check(status != 0 and "only root" in str(answer), "others cannot make tokens", answer)

    without()
    until(lambda: listeners() == before, "then nothing listens again")

    # As the drop-in says: root alone may read the key.
    DROPIN.parent.mkdir(parents=True, exist_ok=True)
    DROPIN.write_text(f"""[Service]
LoadCredential=tls.cert:{PLACE}/cert.pem
LoadCredential=tls.key:{PLACE}/key.pem
SetCredential=tls.cert:missing
SetCredential=tls.key:missing
Environment=OSAPI_CONTROLLER_TLS_CERT=%d/tls.cert
Environment=OSAPI_CONTROLLER_TLS_KEY=%d/tls.key
""")
    sh("systemctl", "daemon-reload", ok=True)
    sh("rm", "-rf", PLACE, ok=True)
    sh("systemctl", "restart", "osapi-controller", ok=True)
    ready()
    status, answer = osapi("os", "get")
    check(status == 0, "where the files are missing, this host is served", answer)
    certify("first")
    sh("chmod", "0600", PLACE / "key.pem", ok=True)
    old = pid("osapi-controller")
    r = sh("systemctl", "enable", "--now", SOCKET)
    check(r.returncode == 0, "enabling the socket is the whole switch", r.stderr)
    check(is_open(), "now the port is there", listeners())
    ready()
    check(pid("osapi-controller") not in (0, old), "the controller was started again, to be handed it")
    check([line for line in listeners() if not line.endswith(":8443")] == before, "and no other", listeners())
    check(show("osapi-controller", "PrivateNetwork") == "yes", "the controller has no network of its own")

    reader = token("read")
    check(curl("/api/node/_any/os", reader) == "200", "curl reads with a token", Path("/root/answer").read_text())
    check(curl("/api/node/_any/os") == "401", "without one it is told so")
    check(curl("/api/node/_any/os", reader[:-4] + "AAAA") == "401", "a forged one is not believed")
    check(curl("/api/health") == "200", "whether the controller lives, anybody may ask")
    body = ("--request", "POST", "--header", "content-type: application/json", "--data",
            json.dumps({"key": "net.ipv4.tcp_fin_timeout", "value": "61"}))
    check(curl("/api/node/_any/sysctl?dry_run=true", reader, *body) == "403", "a reader changes nothing")
    check(curl("/api/node/_any/sysctl?dry_run=true", token("write"), *body) == "200", "a writer may",
          Path("/root/answer").read_text())
    address = out("hostname", "--all-ip-addresses").split()[0]
    r = sh("curl", "--silent", "--insecure", "--output", "/dev/null", "--write-out", "%{http_code}",
           f"https://{address}:8443/api/health")
    check(r.stdout == "200", f"other hosts get there as well, at {address}", r.stdout)
    r = sh("curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", f"http://{address}:8443/api/health")
    check(r.stdout != "200", "but not without TLS", r.stdout)

    env = dict(os.environ, OSAPI_CONTROLLER_CLIENT_SECURITY_BEARER_TOKEN=reader)
    words = ["osapi", "os", "get", "--url", URL]
    r = sh("runuser", "-u", "ada", "--", *words, "--cacert", PLACE / "ca.pem", env=env)
    check(r.returncode == 0, "the command line reads with a token", r.stderr)
    r = sh("runuser", "-u", "ada", "--", *words, env=env)
    check(r.returncode != 0 and "does not know" in r.stderr, "an unknown authority is said to be one", r.stderr)
    def users():
        _, answer = osapi("audit", "list", "--limit", "100")
        return {(entry["user"], entry["response_code"]) for entry in answer["items"]}

    until(lambda: {("ada", 200), ("anonymous", 401)} <= users(), "both are on record")

    renew()
    next_boot("booted", {"boot": boot_id(), "before": before, "token": reader})


def renew():
    """Where the controller may read the files itself, a reload is enough."""
    DROPIN.unlink()
    CONFIG.parent.mkdir(parents=True, exist_ok=True)
    CONFIG.write_text(f"controller: {{ tls: {{ cert: {PLACE}/cert.pem, key: {PLACE}/key.pem }} }}\n")
    sh("chgrp", "osapi", PLACE / "key.pem", ok=True)
    sh("chmod", "0640", PLACE / "key.pem", ok=True)
    sh("systemctl", "daemon-reload", ok=True)
    sh("systemctl", "restart", "osapi-controller", ok=True)
    check(shown() == issued(), "the certificate is read from where the configuration says", shown())
    running = pid("osapi-controller")
    certify("second")
    sh("chgrp", "osapi", PLACE / "key.pem", ok=True)
    sh("chmod", "0640", PLACE / "key.pem", ok=True)
    sh("systemctl", "reload", "osapi-controller", ok=True)
    until(lambda: shown() == issued(), "a renewed certificate is shown after a reload")
    good = issued()
    (PLACE / "cert.pem").write_text("nonsense\n")
    r = sh("systemctl", "reload", "osapi-controller")
    check(r.returncode != 0, "one that cannot be used is refused")
    check(shown() == good, "and the old one stays", shown())
    check(pid("osapi-controller") == running, "in the same process")
    (PLACE / "cert.pem").write_text(good + "\n")


def booted():
    before = kept()
    check(boot_id() != before["boot"], "this is another boot")
    ready()
    check(is_open(), "the port is there after a boot", listeners())
    check(curl("/api/node/_any/os", before["token"]) == "200", "a token outlives the boot")
    sh("systemctl", "disable", "--now", SOCKET, ok=True)
    until(lambda: listeners() == before["before"], "disabled, nothing listens any more")
    ready()
    status, answer = osapi("os", "get")
    check(status == 0, "and the socket of this host is served as ever", answer)


part("tls")
{"": first, "booted": booted}[phase()]()
