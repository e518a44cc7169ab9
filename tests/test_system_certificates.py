"""Which certificates count where the user names none: the system's, else those of certifi."""

from __future__ import annotations

import shutil
from pathlib import Path

import certifi
import pytest
import trustme
from servers.http import ObjectServer
from support import can_unshare, noise, npy, run_script

pytestmark = pytest.mark.skipif(
    not can_unshare("-m"), reason="needs root, for a /etc/ssl of its own"
)
needs_debian = pytest.mark.skipif(
    shutil.which("update-ca-certificates") is None, reason="needs Debian's ca-certificates"
)
ARRAY = noise(3, 5)
REFUSED = "unable to get local issuer certificate"  # OpenSSL's words

# In a mount namespace of its own, where no certificates are.
BARE = """
import ctypes, os, subprocess, sys
CLONE_NEWNS = 0x00020000
assert ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
for folder in ("/etc/ssl", "/etc/pki", "/var/lib/ca-certificates"):
    if os.path.isdir(folder):
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
"""
SYSTEM = """
os.mkdir("/etc/ssl/certs")
# Without hooks, which would change more of the machine than /etc/ssl.
options = ["--hooksdir", "", "--certsconf", "/dev/null", "--localcertsdir", sys.argv[2]]
subprocess.run(["update-ca-certificates", *options], check=True, stdout=subprocess.DEVNULL)
"""
CERTIFI = """
sys.path.insert(0, sys.argv[2])
"""
LOAD = """
import torchnpy as tnp
try:
    print(tnp.load(sys.argv[1]).tolist())
except tnp.TransportError as error:
    print(error)
"""


@pytest.fixture
def url(tls_server: ObjectServer) -> str:
    return tls_server.put("/x.npy", npy(ARRAY))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """That of a copy of certifi, which lies below tmp_path."""
    shutil.copytree(Path(certifi.__file__).parent, tmp_path / "certifi")
    return tmp_path / "certifi" / "cacert.pem"


@needs_debian
def test_an_authority_that_the_system_was_given_is_trusted(
    url: str, authority: trustme.CA, tmp_path: Path
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ours.crt"))
    assert run_script(BARE + SYSTEM + LOAD, url, tmp_path) == f"{ARRAY.tolist()}\n"


@pytest.mark.parametrize("folder", ["", 'os.mkdir("/etc/ssl/certs")\n'], ids=["none", "empty"])
def test_certifi_is_trusted_where_the_system_has_no_certificates(
    url: str, authority: trustme.CA, tmp_path: Path, bundle: Path, folder: str
) -> None:
    authority.cert_pem.write_to_path(str(bundle), append=True)
    assert run_script(BARE + folder + CERTIFI + LOAD, url, tmp_path) == f"{ARRAY.tolist()}\n"


def test_an_authority_that_certifi_lacks_is_refused(
    tls_server: ObjectServer, url: str, tmp_path: Path, bundle: Path
) -> None:
    assert REFUSED in run_script(BARE + CERTIFI + LOAD, url, tmp_path)
    assert tls_server.requests == []


@needs_debian
def test_certifi_does_not_count_where_the_system_has_certificates(
    tls_server: ObjectServer, url: str, authority: trustme.CA, tmp_path: Path, bundle: Path
) -> None:
    authority.cert_pem.write_to_path(str(bundle), append=True)
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.crt"))
    assert REFUSED in run_script(BARE + SYSTEM + CERTIFI + LOAD, url, tmp_path)
    assert tls_server.requests == []
