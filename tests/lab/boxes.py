"""What `installed` and `fleet` share: the lab, and boxes into which osapi is installed."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TREE = HERE.parent.parent
LAB = str(HERE / "lab")


def lab(*argv, check=True, timeout=900, quiet=True):
    r = subprocess.run([LAB, *map(str, argv)], text=True, stdin=subprocess.DEVNULL, timeout=timeout,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT if quiet else None)
    if check and r.returncode:
        raise SystemExit(f"{Path(sys.argv[0]).name}: lab {' '.join(map(str, argv))}: {r.stdout.strip()[-3000:]}")
    return r


def into(node, *pairs):
    for source, target in pairs:
        lab("cp", source, f"{node}:{target}")


def provision(node, args):
    """Installs what is to be tried, and says so where that fails."""
    lab("exec", node, "--", "mkdir", "-p", "/root/parts", "/root/debs")
    if args.deb:
        lab("cp", args.deb, f"{node}:/root/debs/{Path(args.deb).name}")
        # As the README says it.
        lab("exec", node, "--timeout", "600", "--", "sh", "-c",
            "cd /root/debs && DEBIAN_FRONTEND=noninteractive apt-get install --yes ./osapi_*.deb")
        return
    units = sorted((TREE / "systemd").iterdir())
    lab("exec", node, "--", "mkdir", "-p", "/usr/lib/systemd/system")
    into(node, (args.binary, "/usr/bin/osapi"), *((unit, f"/usr/lib/systemd/system/{unit.name}") for unit in units))
    into(node, (TREE / "debian/osapi.sysusers", "/usr/lib/sysusers.d/osapi.conf"),
         (TREE / "debian/osapi.tmpfiles", "/usr/lib/tmpfiles.d/osapi.conf"))
    lab("exec", node, "--", "sh", "-ec", """
        chmod 755 /usr/bin/osapi
        systemd-sysusers osapi.conf
        systemd-tmpfiles --create osapi.conf
        systemctl daemon-reload
        systemctl enable --quiet osapi-settle.service
        systemctl enable --quiet --now osapi.socket osapi-controller.service osapi-agent.service
    """)


def forget(node):
    """Makes a box that is installed ready to be copied: a copy is another host, which must not find
    what this one has remembered."""
    lab("exec", node, "--", "sh", "-ec", """
        systemctl is-active osapi-controller osapi-agent
        until osapi health ready > /dev/null 2>&1; do sleep 0.1; done
        systemctl stop osapi.slice
        rm -rf /var/lib/osapi/controller /var/lib/osapi/agent
    """)
