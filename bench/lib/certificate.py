"""A certificate for the proxies that end TLS: P-256, self-signed, made for one window and gone with it.

No client asks whom it trusts: handshakes are measured, not authorities.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import prepare

# As the load generator asks for it (SNI).
SERVER_NAME = "bench.test"


@dataclass(frozen=True)
class Certificate:
    chain: Path
    key: Path
    both: Path  # one after the other in one file


def make(folder):
    """Writes a new one into `folder`."""
    made = Certificate(*(Path(folder) / name for name in ("chain.pem", "key.pem", "both.pem")))
    line = [prepare.find("openssl"), "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt",
            "ec_paramgen_curve:P-256", "-days", "1", "-subj", f"/CN={SERVER_NAME}", "-addext",
            f"subjectAltName=DNS:{SERVER_NAME}", "-keyout", made.key, "-out", made.chain]  # fmt: skip
    subprocess.run(line, check=True, capture_output=True)
    made.both.write_text(made.chain.read_text() + made.key.read_text())
    made.both.chmod(0o600)
    return made
