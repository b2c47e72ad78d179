"""A small archive of packages on the host itself, for the parts that change packages."""

import hashlib
from pathlib import Path

from lib import out, sh

ARCHIVE = Path("/srv/archive")


def deb(name, version, depends="", postinst="", conffile="", conflicts=""):
    """Builds a package into the archive."""
    tree = Path("/root/build") / f"{name}_{version}"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr/share" / name).mkdir(parents=True)
    (tree / "usr/share" / name / "version").write_text(version + "\n")
    control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: Lab <lab@localhost>\n" \
              f"Installed-Size: 1\nDescription: {name} of the lab\n"
    control += f"Depends: {depends}\n" if depends else ""
    control += f"Conflicts: {conflicts}\n" if conflicts else ""
    (tree / "DEBIAN/control").write_text(control)
    if conffile:
        (tree / "etc").mkdir()
        (tree / "etc" / f"{name}.conf").write_text(conffile)
        (tree / "DEBIAN/conffiles").write_text(f"/etc/{name}.conf\n")
    if postinst:
        (tree / "DEBIAN/postinst").write_text("#!/bin/sh\nset -e\n" + postinst)
        (tree / "DEBIAN/postinst").chmod(0o755)
    sh("dpkg-deb", "--build", "--root-owner-group", tree, ARCHIVE / f"{name}_{version}_all.deb", ok=True)


def publish(reads=True):
    """Makes an index of what lies in the archive, and has apt read that and nothing else."""
    index = ""
    for file in sorted(ARCHIVE.glob("*.deb")):
        data = file.read_bytes()
        index += out("dpkg-deb", "--field", file) + f"\nFilename: ./{file.name}\nSize: {len(data)}\n" \
            f"SHA256: {hashlib.sha256(data).hexdigest()}\n\n"
    (ARCHIVE / "Packages").write_text(index)
    sh("chmod -R a+rX /srv/archive", ok=True)
    if reads:
        sh("apt-get", "update", ok=True)


def make_archive():
    """Puts an empty one in place of all the sources that apt has."""
    ARCHIVE.mkdir(parents=True)
    sh("mkdir -p /root/sources && mv /etc/apt/sources.list /etc/apt/sources.list.d/* /root/sources/ 2> /dev/null")
    Path("/etc/apt/sources.list.d/lab.list").write_text("deb [trusted=yes] file:/srv/archive ./\n")
