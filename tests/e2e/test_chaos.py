"""The short form of `make chaos`; SIGTERM to two processes is in test_processes.py."""

import pytest
from e2e import chaos, commands


@pytest.fixture(scope="module")
def expected(folders, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("expected")
    chaos.reference(workdir, commands.environment(*folders))
    return workdir


@pytest.mark.slow  # test_processes.py has a killed peer, test_resume.py kills at several moments
@pytest.mark.parametrize("kind", ["one", "save"])
def test_two_processes_survive(kind, expected, env, tmp_path):
    kill = next(kill for kill in chaos.draw(seed=1, count=5) if kill.kind == kind)
    row = chaos.survive(kill, tmp_path, expected, env)
    assert row["resumed"] <= row["recorded"]


def test_draws_are_those_of_the_seed():
    kills = chaos.draw(seed=3, count=20)
    assert kills == chaos.draw(seed=3, count=20) != chaos.draw(seed=4, count=20)
    assert [kill.kind for kill in kills[: len(chaos.KINDS)]] == list(chaos.KINDS)
    assert [kill.processes for kill in kills] == 20 * [2] + [1, 4]
