"""What an exception in a callback ends: its feature, and nothing else."""

from __future__ import annotations

import os

import pytest

from supervisor.linux.event_loop import Loop

pytestmark = pytest.mark.process


def test_a_feature_that_fails_is_off_and_the_loop_goes_on(no_leaks: None) -> None:
    failed: list[str] = []
    served: list[str] = []
    loop = Loop(lambda feature, error: failed.append(f"{feature}: {error}"))
    rfd, wfd = os.pipe()
    other_rfd, other_wfd = os.pipe()

    def fail() -> None:
        raise ValueError("a bug")

    loop.watch(rfd, fail, feature="notify")
    later = loop.timer(fail, feature="notify")
    later.start(0.0)
    loop.watch(other_rfd, lambda: served.append("other"))
    os.write(wfd, b"!")
    os.write(other_wfd, b"!")
    loop.run_until(lambda: len(served) > 2)
    assert failed == ["notify: a bug"], "once, for the feature's deadlines, too"
    loop.guarded("notify", fail)()
    later.start(0.0)
    assert not later.is_running
    assert len(failed) == 1
    loop.watch(rfd, fail, feature="notify")
    loop.forget(rfd)  # its owner need not know
    loop.forget(other_rfd)
    loop.close()
    for fd in (rfd, wfd, other_rfd, other_wfd):
        os.close(fd)


def test_an_error_without_a_feature_ends_the_wait(no_leaks: None) -> None:
    loop = Loop(lambda _feature, _error: None)

    def fail() -> None:
        raise ValueError("a bug")

    loop.timer(fail).start(0.0)
    with pytest.raises(ValueError, match="a bug"):
        loop.run_until(lambda: False)
    loop.close()
