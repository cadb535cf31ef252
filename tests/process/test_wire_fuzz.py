"""A few rounds of tests/fuzz in every run; `make fuzz` has hundreds of thousands."""

from __future__ import annotations

import pytest

from tests.fuzz.wire import ServerRounds, decode_round

pytestmark = pytest.mark.process


def test_malformed_messages_are_refused_or_read_as_google_reads_them() -> None:
    for seed in range(5000):
        decode_round(seed)


def test_a_server_survives_malformed_frames() -> None:
    rounds = ServerRounds()
    for seed in range(150):
        rounds.run(seed)
    rounds.close()
