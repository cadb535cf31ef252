"""The place of the attach socket: names, modes, long paths, and the order of the end."""

from __future__ import annotations

import os
import select
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from supervisor.frontends.conmon import attach_socket
from supervisor.frontends.conmon.attach_socket import AttachSocket, link_path
from supervisor.linux.errors import ShimError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.stream_site import Site

pytestmark = pytest.mark.process


def _connect(path: Path) -> socket.socket:
    """Connect as an engine does: by a descriptor of the directory, however long its path is."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    directory = os.open(path.parent, os.O_PATH)
    try:
        peer.connect(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)
    return peer


def test_the_socket_is_in_the_bundle_for_its_owner_alone(site: Site, tmp_path: Path) -> None:
    bundle = tmp_path / ("long" * 50)
    bundle.mkdir()
    (bundle / "attach").write_text("of an earlier container")
    attach = AttachSocket.open(str(bundle))
    attributes = (bundle / "attach").stat()
    assert stat.S_ISSOCK(attributes.st_mode)
    assert stat.S_IMODE(attributes.st_mode) == 0o700
    with _connect(bundle / "attach") as peer:  # waits in the backlog: nothing serves it yet
        clients = site.stream_set.serve_packets({})
        attach.serve(clients)
        site.run_until(lambda: bool(clients._clients))
        attach.close()
        assert select.select([peer], [], [], 5)[0]
        assert peer.recv(1) == b""
    attach.close()
    assert list(bundle.iterdir()) == []


def test_a_link_in_the_directory_of_sockets_leads_to_the_bundle(tmp_path: Path) -> None:
    bundle, sockets = tmp_path / "bundle", tmp_path / "run" / "sockets"
    bundle.mkdir()
    attach = AttachSocket.open(str(bundle), socket_dir=str(sockets), cuuid="web")
    attach.close()
    for _restarted in range(2):
        attach = AttachSocket.open(str(bundle), socket_dir=str(sockets), cuuid="web")
        assert (sockets / "web").readlink() == bundle
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
        _connect(sockets / "web" / "attach").close()
        attach.close()
        assert not (bundle / "attach").exists()
        assert (sockets / "web").is_symlink()
    attach.remove_link()
    attach.remove_link()
    assert list(sockets.iterdir()) == []


@pytest.mark.parametrize(("name_bytes", "cut"), [(106, 0), (107, 1), (108, 0)])
def test_a_link_whose_path_is_just_too_long_is_cut_as_conmon_cuts_it(
    name_bytes: int, cut: int
) -> None:
    cuuid = "c" * (name_bytes - len("/run/x/"))
    assert link_path("/run/x", cuuid) == f"/run/x/{cuuid}"[: name_bytes - cut]


def test_the_name_goes_before_a_client_sees_the_end(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach = AttachSocket.open(str(tmp_path))
    clients = site.stream_set.serve_packets({})
    attach.serve(clients)
    with _connect(tmp_path / "attach") as peer:
        site.run_until(lambda: bool(clients._clients))
        seen: list[bool] = []
        close = clients.close

        def look_and_close() -> None:
            seen.append((tmp_path / "attach").exists())
            assert not select.select([peer], [], [], 0)[0]
            close()

        monkeypatch.setattr(clients, "close", look_and_close)
        attach.close()
        assert seen[0] is False
        assert peer.recv(1) == b""


def test_the_next_supervisor_removes_the_names(site: Site, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    first = AttachSocket.open(str(bundle), socket_dir=str(tmp_path / "sockets"), cuuid="web")
    clients = site.stream_set.serve_packets({})
    first.serve(clients)
    first._bundle.close()
    second = AttachSocket.restore(
        clients, str(bundle), socket_dir=str(tmp_path / "sockets"), cuuid="web"
    )
    second.close()
    second.remove_link()
    assert list(bundle.iterdir()) == list((tmp_path / "sockets").iterdir()) == []


@pytest.mark.parametrize("place", ["bundle", "link"])
def test_what_cannot_be_made_is_told_with_its_name(tmp_path: Path, place: str) -> None:
    bundle = tmp_path / "bundle"
    if place == "bundle":
        with pytest.raises(ShimError, match=f"attach socket: open {bundle}: no such file"):
            AttachSocket.open(str(bundle))
        return
    bundle.mkdir()
    (tmp_path / "sockets").write_text("a file")
    with pytest.raises(ShimError, match=r"attach socket: .*/sockets: file exists"):
        AttachSocket.open(str(bundle), socket_dir=str(tmp_path / "sockets"), cuuid="web")
    assert attach_socket.NAME == "attach"
