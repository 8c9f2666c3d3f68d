"""Login: the token's file, cookies and what every form sends back."""

from pathlib import Path

import pytest

from common.errors import StorageError
from common.web.access import LIFETIME_S, Sessions, load_token

TOKEN = "t" * 43


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_a_token_is_made_once_and_only_its_user_can_read_it(tmp_path: Path) -> None:
    token, is_new = load_token(tmp_path / "console.token")
    assert is_new
    assert len(token) == 43  # 32 random bytes in base64
    assert (tmp_path / "console.token").stat().st_mode & 0o777 == 0o600
    assert load_token(tmp_path / "console.token") == (token, False)


@pytest.mark.parametrize(
    ("text", "mode", "said"), [("short", 0o600, "5 characters"), (TOKEN, 0o640, "other users")]
)
def test_a_token_that_is_too_short_or_open_to_others_is_not_taken(tmp_path, text, mode, said) -> None:
    path = tmp_path / "console.token"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(StorageError, match=said):
        load_token(path)


def test_a_wrong_token_opens_no_session() -> None:
    assert Sessions(TOKEN).login("x" * 43) is None
    assert Sessions(TOKEN).login("") is None


def test_a_session_lives_through_a_restart_and_ends_after_half_a_day() -> None:
    clock = Clock()
    cookie = Sessions(TOKEN, clock).login(TOKEN)
    restarted = Sessions(TOKEN, clock)
    assert restarted.session(cookie) is not None
    clock.now += LIFETIME_S
    assert restarted.session(cookie) is None


def test_a_cookie_that_was_changed_or_is_of_another_token_opens_no_session() -> None:
    sessions = Sessions(TOKEN)
    cookie = sessions.login(TOKEN)
    assert cookie is not None
    name, ends, code = cookie.split(".")
    for other in (f"{name}.{int(ends) + 1}.{code}", f"x{cookie}", f"{name}.{ends}.", "..", "é", "", None):
        assert sessions.session(other) is None
    assert Sessions("u" * 43).session(cookie) is None


def test_a_session_that_was_logged_out_is_over() -> None:
    sessions = Sessions(TOKEN)
    cookie = sessions.login(TOKEN)
    sessions.logout(sessions.session(cookie) or "")
    assert sessions.session(cookie) is None


def test_two_sessions_have_two_form_tokens() -> None:
    sessions = Sessions(TOKEN)
    first, second = (sessions.session(sessions.login(TOKEN)) or "" for _ in range(2))
    assert sessions.form_token(first) == sessions.form_token(first)
    assert sessions.form_token(first) != sessions.form_token(second)
