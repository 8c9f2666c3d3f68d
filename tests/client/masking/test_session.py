"""The masks of a round at one site: sums come out, and a server that asks for more than one sum is refused."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as some_arrays

from client.masking.session import FILE, Masks
from common.errors import ConsiliumError, PolicyRefusal, WireError
from common.masking import agreement, roster, sharing
from common.masking.roster import Announcement
from common.masking.tables import IMAGES
from common.weights import Array, Arrays, TensorSpec
from common.wire.mask_steps import Envelopes
from server.aggregation.masked_mean import MaskedMean
from server.aggregation.masked_tables import MaskedTables
from server.aggregation.mean import weighted_mean
from server.aggregation.update import AdmittedUpdate

NAMES = ("a", "b", "c")
FIVE = (*NAMES, "d", "e")
IDENTITIES = {
    name: Ed25519PrivateKey.from_private_bytes(bytes([number] * 32)) for number, name in enumerate(FIVE, 1)
}
ROSTER = {name: roster.public_key(identity) for name, identity in IDENTITIES.items()}
ASKED = "c0ffee"
DELTA = {"w": np.array([1.0, -2.0], np.float32)}


class Federation:
    """Sites of one round, with secrets that the tests can repeat."""

    def __init__(self, folder: Path, names: tuple[str, ...] = NAMES, threshold: int = 2) -> None:
        self.folder, self.threshold = folder, threshold
        self.masks = {name: self.site(name) for name in names}

    def site(self, name: str) -> Masks:
        """The masks of a site, as a trainer that was just started has them."""
        draws = iter(range(1, 200))

        def random(number: int) -> bytes:
            return bytes([len(name) * 7 + ord(name) + next(draws)] * number)

        return Masks(self.folder / name, name, "f00d", self.threshold, sites=FIVE, random=random)

    def keys(self, number: int = 1) -> dict[str, Announcement]:
        return {name: masks.announce(number, IDENTITIES[name]) for name, masks in self.masks.items()}

    def sealed(self, keys: Mapping[str, Announcement], number: int = 1) -> dict[str, Envelopes]:
        """Envelopes for each site."""
        sealed = {name: masks.seal(number, keys, ROSTER) for name, masks in self.masks.items()}
        return {name: {other: sealed[other][name] for other in sealed if other != name} for name in sealed}


@pytest.fixture
def three(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(PolicyRefusal) as caught:
        call()
    return caught.value.reason


# --- sums ---------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(
        some_arrays(np.float32, (3,), elements=st.floats(-1e6, 1e6, width=32)), min_size=3, max_size=5
    ),
    counts=st.lists(st.integers(1, 10**6), min_size=5, max_size=5),
    lost=st.integers(0, 2),
    tables=st.lists(st.lists(st.integers(0, 2**32), min_size=4, max_size=4), min_size=5, max_size=5),
)
def test_masked_sums_are_the_plain_ones_when_sites_drop_out(
    values: list[np.ndarray],
    counts: list[int],
    lost: int,
    tables: list[list[int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    names = ("a", "b", "c", "d", "e")[: len(values)]
    threshold = len(names) // 2 + 1
    lost = min(lost, len(names) - threshold)
    federation = Federation(tmp_path_factory.mktemp("masks"), names, threshold)
    keys = federation.keys()
    envelopes = federation.sealed(keys)
    survivors = names[lost:]
    total, plain = MaskedMean({"w": TensorSpec(shape=(3,), dtype="float32")}), []
    together = MaskedTables()
    for name, value, count, table in zip(names, values, counts, tables, strict=False):
        numbers = {"scores/test": np.array(table, np.uint64)}
        masked = federation.masks[name].mask(1, ASKED, envelopes[name], {"w": value}, count, numbers)
        assert numbers["scores/test"].tolist() == table, "the site's own numbers are as they were"
        if name in survivors:
            together.add(name, {"scores/test": masked.pop("scores/test")})
            total.add(AdmittedUpdate(name, count, masked))
            plain.append(AdmittedUpdate(name, count, {"w": value}))
    added, subtracted = opened(federation, keys, survivors)
    total.unmask(added, subtracted)
    together.unmask(added, subtracted)
    assert total.num_examples == sum(counts[lost : len(names)])
    assert total.result()["w"].tobytes() == weighted_mean(plain)["w"].tobytes()
    counted = [sum(column) for column in zip(*tables[lost : len(names)], strict=True)]
    assert together.sums["scores/test"].tolist() == counted


def opened(
    federation: Federation, keys: Mapping[str, Announcement], survivors: tuple[str, ...]
) -> tuple[list[bytes], list[bytes]]:
    """What the server takes off: seeds of masks that were added and subtracted."""
    shares = {name: federation.masks[name].reveal(1, survivors) for name in survivors}
    place = sharing.places(keys)
    helpers = survivors[-federation.threshold :]
    added = [
        sharing.combine({place[one]: bytes.fromhex(shares[one][0][name]) for one in helpers})
        for name in survivors
    ]
    subtracted: list[bytes] = []
    about = roster.session(keys, "f00d", 1)
    for gone in keys.keys() - set(survivors):
        key = sharing.combine({place[one]: bytes.fromhex(shares[one][1][gone]) for one in helpers})
        assert agreement.public(key).hex() == keys[gone].mask_key
        for name in survivors:
            seed = agreement.pair_seed(key, bytes.fromhex(keys[name].mask_key), about, ASKED)
            (added if name < gone else subtracted).append(seed)
    return added, subtracted


# --- a server that asks for more ---------------------------------------------------------------------


def test_survivors_are_named_once_so_no_site_gives_both_shares_of_one(three: Federation) -> None:
    envelopes = three.sealed(three.keys())
    three.masks["a"].mask(1, ASKED, envelopes["a"], DELTA, 1)
    seeds, keys = three.masks["a"].reveal(1, ("a", "b"))
    assert (seeds.keys(), keys.keys()) == ({"a", "b"}, {"c"})
    assert three.masks["a"].reveal(1, ("a", "b")) == (seeds, keys)
    assert "was opened before" in refusal(lambda: three.masks["a"].reveal(1, ("a", "c")))
    restarted = three.site("a")
    assert "was opened before" in refusal(lambda: restarted.reveal(1, ("a", "b", "c")))


def test_the_same_numbers_are_not_masked_among_other_sites(three: Federation) -> None:
    envelopes = three.sealed(three.keys())["a"]
    first = three.masks["a"].mask(1, ASKED, envelopes, DELTA, 1)
    assert three.masks["a"].mask(1, ASKED, envelopes, DELTA, 1)["w"].tobytes() == first["w"].tobytes()
    fewer = {"b": envelopes["b"]}
    assert "masked before, with other sites" in refusal(
        lambda: three.masks["a"].mask(1, ASKED, fewer, DELTA, 1)
    )
    assert "masked before" in refusal(lambda: three.site("a").mask(1, ASKED, fewer, DELTA, 1))


def test_an_opened_round_gets_no_other_masks_and_an_unopened_one_gets_fresh_ones(three: Federation) -> None:
    keys = three.keys()
    envelopes = three.sealed(keys)
    assert three.masks["b"].announce(1, IDENTITIES["b"]) != keys["b"]
    three.masks["a"].mask(1, ASKED, envelopes["a"], DELTA, 1)
    three.masks["a"].reveal(1, ("a", "b"))
    assert "masks are not made again" in refusal(lambda: three.masks["a"].announce(1, IDENTITIES["a"]))
    assert "after round 1" in refusal(lambda: three.masks["a"].announce(0, IDENTITIES["a"]))
    assert three.masks["a"].announce(2, IDENTITIES["a"]) != keys["a"]
    assert "this site has those of round 2" in refusal(lambda: three.masks["a"].reveal(1, ("a", "b")))


def test_a_key_in_place_of_a_sites_is_noticed(three: Federation) -> None:
    keys = three.keys()
    servers_own = roster.announce(IDENTITIES["e"], bytes(32), bytes(32), "f00d", 1, "b")
    seal = three.masks["a"].seal
    assert "keys of b are not signed" in refusal(lambda: seal(1, {**keys, "b": servers_own}, ROSTER))
    assert "keys of b are not signed" in refusal(lambda: seal(1, {**keys, "b": keys["c"]}, ROSTER))
    assert "b is not in this site's roster" in refusal(lambda: seal(1, keys, {"a": ROSTER["a"]}))
    of_another_round = three.site("b").announce(2, IDENTITIES["b"])
    assert "keys of b are not signed" in refusal(lambda: seal(1, {**keys, "b": of_another_round}, ROSTER))
    others = {"b": keys["b"], "c": keys["c"]}
    assert "own keys are missing" in refusal(lambda: seal(1, others, ROSTER))


def test_masks_are_made_with_one_list_of_sites(three: Federation) -> None:
    keys = three.keys()
    envelopes = three.masks["a"].seal(1, keys, ROSTER)
    assert three.masks["a"].seal(1, keys, ROSTER) == envelopes
    fewer = {"a": keys["a"], "b": keys["b"]}
    assert "masks with other sites or keys" in refusal(lambda: three.masks["a"].seal(1, fewer, ROSTER))


def test_a_sum_of_too_few_sites_is_not_masked_for_and_not_opened(tmp_path: Path) -> None:
    five = Federation(tmp_path, ("a", "b", "c", "d", "e"), threshold=3)
    keys = five.keys()
    few = {name: keys[name] for name in ("a", "b")}
    assert "a sum of 2 site(s)" in refusal(lambda: five.masks["a"].seal(1, few, ROSTER))
    envelopes = five.sealed(keys)["a"]
    one = {"b": envelopes["b"]}
    assert "a sum of 2 site(s)" in refusal(lambda: five.masks["a"].mask(1, ASKED, one, DELTA, 1))
    five.masks["a"].mask(1, ASKED, envelopes, DELTA, 1)
    assert "a sum of 2 site(s)" in refusal(lambda: five.masks["a"].reveal(1, ("a", "b")))
    assert "other sites than it was masked for" in refusal(lambda: five.masks["a"].reveal(1, ("b", "c", "d")))


def test_two_halves_of_the_sites_cannot_open_a_round_twice(tmp_path: Path) -> None:
    four = Federation(tmp_path, ("a", "b", "c", "d"), threshold=2)
    keys = four.keys()
    assert "too many for 2 to open" in refusal(lambda: four.masks["a"].seal(1, keys, ROSTER))


def test_sites_of_the_roster_that_the_study_does_not_name_are_in_no_sum(tmp_path: Path) -> None:
    """They may be the operator's own, and with the threshold less one of them he would open any site alone."""
    federation = Federation(tmp_path, ("a", "d", "e"))
    keys = federation.keys()
    a = Masks(federation.folder / "a", "a", "f00d", 2, sites=NAMES)
    assert "d is no training site of the study" in refusal(lambda: a.seal(1, keys, ROSTER))


def test_sites_that_help_the_server_cannot_help_with_two_sums_of_one_round(tmp_path: Path) -> None:
    """Of five sites one colludes: {a, b, colluder} and {d, e, colluder} would be two sums with a threshold of three."""
    for threshold, holds in ((3, False), (4, True)):
        five = Federation(tmp_path / str(threshold), FIVE, threshold)
        keys = five.keys()
        a = Masks(five.folder / "a", "a", "f00d", threshold, sites=FIVE, colluding=1)
        if holds:
            assert len(a.seal(1, keys, ROSTER)) == 4
        else:
            assert (
                "masks of 5 sites are asked for, too many for 3 to open while 1 of them may help"
                in refusal(
                    lambda: a.seal(1, keys, ROSTER)  # noqa: B023
                )
            )


def test_a_sum_has_another_honest_site_beside_those_that_help_the_server(tmp_path: Path) -> None:
    three = Federation(tmp_path)
    keys = three.keys()
    a = Masks(three.folder / "a", "a", "f00d", 3, sites=NAMES, colluding=2)
    assert "a sum of 3 site(s)" in refusal(lambda: a.seal(1, keys, ROSTER))


def test_a_site_may_ask_for_more_sites_in_a_sum_than_the_study(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.masks["a"] = Masks(tmp_path / "a", "a", "f00d", 2, sites=FIVE, least=3)
    keys = federation.keys()
    few = {name: keys[name] for name in ("a", "b")}
    assert "a sum of 2 site(s)" in refusal(lambda: federation.masks["a"].seal(1, few, ROSTER))


def test_scores_and_weights_of_one_round_and_tables_of_one_round_share_no_mask(three: Federation) -> None:
    envelopes = three.sealed(three.keys())
    zeros = np.zeros(4, np.uint64)
    tables = {"scores/validation": zeros, "scores/test": zeros}
    nothing = {"w": np.zeros(2, np.float32)}
    masked = three.masks["a"].mask(
        1, ASKED, envelopes["a"], nothing, 1, tables
    )  # what is left is the mask alone
    assert masked.keys() == {"w", IMAGES, *tables}
    assert len({words.ravel()[:1].tobytes() for words in masked.values()}) == 4


def test_masks_of_one_phase_are_of_no_use_in_another(three: Federation) -> None:
    """A server that passes a round's keys on for the closing evaluation, whose number is the same, is refused."""
    keys = three.keys()
    three.sealed(keys)
    scoring = Masks(three.folder / "a", "a", "f00d", 2, sites=FIVE, phase="scoring")
    assert "masks of round 1 are needed" in refusal(lambda: scoring.reveal(1, ("a", "b")))
    mine = scoring.announce(1, IDENTITIES["a"])
    assert mine.mask_key != keys["a"].mask_key
    replayed = {**keys, "a": mine}
    assert "keys of b are not signed" in refusal(lambda: scoring.seal(1, replayed, ROSTER))
    assert "was opened before" not in refusal(lambda: three.masks["a"].reveal(1, ("a", "b")))


class Steps(Federation):
    """Sites of the steps towards heads."""

    def site(self, name: str) -> Masks:
        return Masks(self.folder / name, name, "f00d", self.threshold, sites=FIVE, phase="heads")

    def masked(self, number: int, value: int = 5) -> None:
        """Have each site mask its part in a step."""
        envelopes = self.sealed(self.keys(number), number)
        for name, masks in self.masks.items():
            masks.mask(
                number, ASKED, envelopes[name], {}, 0, {"statistics/raw/sums": np.array([value], np.uint64)}
            )


def test_all_sums_for_heads_are_of_the_sites_of_the_first_one(tmp_path: Path) -> None:
    three = Steps(tmp_path)
    three.masked(1)
    three.masks["a"].reveal(1, ("a", "b"))
    three.masked(2)
    assert "of other sites than the first one" in refusal(lambda: three.masks["a"].reveal(2, ("a", "b", "c")))
    assert "of other sites than the first one" in refusal(lambda: three.site("a").reveal(2, ("a", "c")))
    # Masks that are made again and steps that were not opened change nothing.
    three.masked(2)
    three.masked(3)
    assert "of other sites than the first one" in refusal(lambda: three.masks["a"].reveal(3, ("a", "b", "c")))
    three.masks["a"].reveal(3, ("a", "b"))
    assert "after step 3" in refusal(lambda: three.masks["a"].announce(2, IDENTITIES["a"]))
    three.masked(4)
    assert "of other sites than the first one" in refusal(lambda: three.masks["a"].reveal(4, ("a", "c")))


def test_a_round_may_be_of_other_sites_than_the_one_before(three: Federation) -> None:
    for number, survivors in ((1, ("a", "b")), (2, ("a", "b", "c"))):
        envelopes = three.sealed(three.keys(number), number)
        three.masks["a"].mask(number, ASKED, envelopes["a"], DELTA, 1)
        three.masks["a"].reveal(number, survivors)


@pytest.mark.parametrize(
    "other", [(DELTA, 2, 5), ({"w": np.array([1.0, -1.0], np.float32)}, 1, 5), (DELTA, 1, 6)],
    ids=["another number of images", "another update", "another score"],
)  # fmt: skip
def test_a_round_that_is_asked_again_is_of_the_same_numbers(
    other: tuple[Arrays, int, int], three: Federation
) -> None:
    """Images that came in between, or fresh noise, would show as the difference of two answers under one mask."""
    envelopes = three.sealed(three.keys())["a"]

    def masked(masks: Masks, delta: Arrays, count: int, score: int) -> dict[str, Array]:
        return masks.mask(1, ASKED, envelopes, delta, count, {"scores/test": np.array([score], np.uint64)})

    first = masked(three.masks["a"], DELTA, 1, 5)
    again = masked(three.site("a"), DELTA, 1, 5)
    assert [words.tobytes() for words in first.values()] == [words.tobytes() for words in again.values()]
    for masks in (three.masks["a"], three.site("a")):
        assert "and is of other numbers now" in refusal(lambda: masked(masks, *other))  # noqa: B023
    three.masks["a"].announce(1, IDENTITIES["a"])  # a round that was not opened gets fresh masks


def test_no_other_numbers_are_masked_in_one_step_towards_heads(tmp_path: Path) -> None:
    """Two answers under one mask would show their difference."""
    three = Steps(tmp_path)
    envelopes = three.sealed(three.keys())["a"]
    five, six = ({"scores/federated.lda": np.array([number], np.uint64)} for number in (5, 6))
    first = three.masks["a"].mask(1, ASKED, envelopes, {}, 0, five)
    again = three.site("a").mask(1, ASKED, envelopes, {}, 0, five)
    assert [words.tobytes() for words in first.values()] == [words.tobytes() for words in again.values()]
    for masks in (three.masks["a"], three.site("a")):
        assert "of other numbers now" in refusal(lambda: masks.mask(1, ASKED, envelopes, {}, 0, six))  # noqa: B023
    renamed = {"scores/federated.ridge": five["scores/federated.lda"]}
    assert "of other numbers now" in refusal(
        lambda: three.masks["a"].mask(1, ASKED, envelopes, {}, 0, renamed)
    )


def test_a_round_is_masked_for_one_question(three: Federation) -> None:
    """Two answers to two questions under one mask would show their difference."""
    envelopes = three.sealed(three.keys())["a"]
    three.masks["a"].mask(1, ASKED, envelopes, DELTA, 1)
    for masks in (three.masks["a"], three.site("a")):
        assert "masked before, for another question" in refusal(
            lambda: masks.mask(1, "decaf", envelopes, DELTA, 1)  # noqa: B023
        )


def test_masks_of_pairs_that_were_asked_different_things_do_not_cancel(tmp_path: Path) -> None:
    """The sum of all three is read with everything that the server has, and is no sum."""
    for odd, is_read in ((ASKED, True), ("decaf", False)):
        three = Federation(tmp_path / odd)
        keys = three.keys()
        envelopes = three.sealed(keys)
        together = MaskedTables()
        for name, question in zip(NAMES, (odd, ASKED, ASKED), strict=True):
            numbers = {"scores/test": np.array([5, 6, 7, 8], np.uint64)}
            together.add(name, three.masks[name].mask(1, question, envelopes[name], {}, 0, numbers))
        together.unmask(*opened(three, keys, NAMES))
        assert (together.sums["scores/test"].tolist() == [15, 18, 21, 24]) is is_read


def test_an_envelope_of_another_site_or_round_is_not_opened(three: Federation) -> None:
    envelopes = three.sealed(three.keys())
    swapped = {"b": envelopes["a"]["c"], "c": envelopes["a"]["b"]}
    with pytest.raises(WireError, match="b did not seal"):
        three.masks["a"].mask(1, ASKED, swapped, DELTA, 1)
    strange = {**envelopes["a"], "d": envelopes["a"]["b"]}
    assert "sites without masks came along: d" in refusal(
        lambda: three.masks["a"].mask(1, ASKED, strange, DELTA, 1)
    )


@pytest.mark.parametrize(
    ("value", "sentence"),
    [(np.nan, "entries of w are not finite"), (np.inf, "not finite"), (1e15, "more than a sum has room for")],
)
def test_numbers_that_would_spoil_the_sum_do_not_leave(
    three: Federation, value: float, sentence: str
) -> None:
    envelopes = three.sealed(three.keys())
    with pytest.raises(ConsiliumError, match=sentence):
        three.masks["a"].mask(1, ASKED, envelopes["a"], {"w": np.array([value], np.float32)}, 10)


def test_secrets_lie_in_a_file_of_the_owner_alone(three: Federation) -> None:
    three.keys()
    assert (three.folder / "a" / FILE).stat().st_mode & 0o077 == 0
