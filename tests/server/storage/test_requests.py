"""What an operator wishes of a running study is found once."""

import pytest

from common.errors import ConfigError
from server.storage.requests import ask_to_readmit, take_readmitted


def test_a_site_to_be_readmitted_is_found_once(tmp_path):
    assert take_readmitted(tmp_path) == ()
    ask_to_readmit(tmp_path, "south")
    ask_to_readmit(tmp_path, "north")
    ask_to_readmit(tmp_path, "south")
    assert take_readmitted(tmp_path) == ("north", "south")
    assert take_readmitted(tmp_path) == ()


def test_a_wish_for_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        ask_to_readmit(tmp_path / "typo", "south")
