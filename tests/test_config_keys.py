"""docs/configuration.md and `main --help` say what config.py says."""

from pathlib import Path

import pytest

from convnext_jax import config_keys, main
from convnext_jax.config import Config, all_keys

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"


def test_the_page_is_what_the_code_says():
    assert PAGE.read_text(encoding="utf-8") == config_keys.page(), "run `make docs`"


def test_every_key_is_explained():
    keys = [key for _, keys in config_keys.sections().values() for key in keys]
    assert sorted(key.name for key in keys) == sorted(all_keys())
    assert [key.name for key in keys if not key.words] == []
    by_name = {key.name: key for key in keys}
    assert by_name["optim.ema_decay"] == (
        "optim.ema_decay",
        "float",
        repr(Config().optim.ema_decay),
        "0: no moving average",
    )
    # A comment above the line.
    assert by_name["init_from"].words.startswith("Weights to start from")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_key(flag, capsys):
    with pytest.raises(SystemExit) as ended:
        main.parse_flags(["main", flag])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "--workdir DIR" in printed and "Exit status: 0 done;" in printed
    for name in all_keys():
        assert f"  --config.{name}=" in printed
