"""Strings that Flower reads as TOML: any path comes back as it was."""

import tomllib

import pytest
from flwr.common.config import parse_config_args

from common.errors import LaunchError
from common.processes import toml

PATHS = [
    "/runs/demo",
    "/runs/with blanks  and\ttab",
    '/runs/"quoted"',
    "/runs/it's",
    "/runs/'\"'",
    "/runs/back\\slash\\",
    "/runs/\\u0041\\n",
    "/runs/a=b c=\"d\" server='x'",
    "/runs/Universitätsklinik-東京-🏥",
    "/runs/u\u0308\u00a0\u200b",
    "/runs/line\nend\r\x07\x7f",
    "/runs/#comment ${HOME} %20 {x}",
    "/runs/x.toml",
    "",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_comes_back_from_toml_as_it_was(path: str) -> None:
    assert tomllib.loads(f"server = {toml.quoted(path)}\n") == {"server": path}


@pytest.mark.parametrize("path", PATHS)
def test_a_path_comes_back_from_flowers_command_line_as_it_was(path: str) -> None:
    """Flower splits the line by a regular expression first, which ends at any quote."""
    line = f"site={toml.quoted('north')} trainer={toml.quoted(path)}"
    assert parse_config_args([line]) == {"site": "north", "trainer": path}


def test_a_path_that_is_not_utf_8_is_named() -> None:
    with pytest.raises(LaunchError, match=r"/runs/M.udcfcller is not UTF-8"):
        toml.quoted("/runs/M\udcfcller")
