"""Messages about settings: in the words of the people who write them, and about letters that nobody sees."""

import pytest

from client.config import SiteConfig
from client.gateway.settings import GatewayConfig
from common.config import StudyConfig
from common.errors import ConfigError
from common.settings import parse_settings
from server.config import FederationConfig

SITE = "name: north\ndata: {kind: folders, root: images}\nstate_dir: state\n"
STUDY = "name: demo\nclasses: [a, b]\nsites: {train: [north]}\nmodel: {encoder: x}\nrounds: 1\n"
FEDERATION = "name: skin\nserver: {hosts: [a.example.org]}\nsites: {north: {}}\n"


def mistakes(text: str, kind: type = SiteConfig) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_settings(text, kind, "file", name="bad.yaml")
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize(
    ("kind", "good", "line", "said"),
    [
        (SiteConfig, SITE, "p\u043elicy: {}", "p\u043elicy: no such setting; its character 2 is no letter of a "
         "setting's name: U+043E, CYRILLIC SMALL LETTER O; did you mean policy?"),
        (SiteConfig, SITE, "policy: {\u0430sk: true}", "policy.\u0430sk: no such setting; its character 1 is no letter "
         "of a setting's name: U+0430, CYRILLIC SMALL LETTER A; did you mean policy.ask?"),
        (SiteConfig, SITE, "policy: {a\u00adsk: true}", "policy.a\\xadsk: no such setting; its character 2 is no "
         "letter of a setting's name: U+00AD, SOFT HYPHEN; did you mean policy.ask?"),
        (SiteConfig, SITE, "policy\u00a0: {ask: true}", "policy\\xa0: no such setting; its character 7 is no letter "
         "of a setting's name: U+00A0, NO-BREAK SPACE; did you mean policy?"),
        (StudyConfig, STUDY, "\ufeffseed: 1", "\\ufeffseed: no such setting; its character 1 is no letter of a "
         "setting's name: U+FEFF, ZERO WIDTH NO-BREAK SPACE; did you mean seed?"),
        (FederationConfig, FEDERATION, "synthet\u0131c: true", "synthet\u0131c: no such setting; its character 8 is no "
         "letter of a setting's name: U+0131, LATIN SMALL LETTER DOTLESS I; did you mean synthetic?"),
        (SiteConfig, SITE, "'policy ': {ask: true}",
         "policy : no such setting; it has a blank at its end; did you mean policy?"),
        (SiteConfig, SITE, "policy.ask: true",
         "policy.ask: a dot does not lead into a section; write `policy:`, and indented below it `ask:`"),
    ],
    ids=lambda value: value[:12].encode("unicode_escape").decode() if isinstance(value, str) else "",
)  # fmt: skip
def test_the_character_that_makes_a_setting_only_look_like_one_is_named(kind, good, line, said):
    assert mistakes(good + line + "\n", kind) == [said]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("policy: ~",
         "policy: expected settings below it, one a line as `name: value`, or no such line at all; found None"),
        ("policy: {studies: skin}", "policy.studies: expected a list, such as [a, b]; found 'skin'"),
        ("policy: {studies: []}", "policy.studies: expected at least 1 of them, not 0; found []"),
        ("device: GPU", "device: expected auto, cpu, cuda, or one of several as cuda:1; found 'GPU'"),
    ],
)  # fmt: skip
def test_what_was_expected_is_said_in_words_of_the_file_not_of_the_program(line, said):
    assert mistakes(SITE + line) == [said]


def test_a_name_that_cannot_be_one_says_which_can():
    (line,) = mistakes(SITE.replace("north", "'north '"))
    assert line.startswith("name: expected a name of at most 63 letters (a to z, A to Z), digits")
    assert line.endswith("found 'north '")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("{root: images}", "data.kind: missing; add it, one of csv, folders, "),
        ("{kind: folder, root: images}", "data.kind: found 'folder', expected one of csv, folders, "),
    ],
)
def test_a_kind_that_is_missing_or_mistyped_lists_the_kinds(data, said):
    (line,) = mistakes(SITE.replace("{kind: folders, root: images}", data))
    assert line.startswith(said)
    assert ("did you mean folders?" in line) == ("folder," in data)


@pytest.mark.parametrize(
    ("text", "kind", "what", "other"),
    [
        (SITE, StudyConfig, "study", "site"),
        (STUDY, SiteConfig, "site", "study"),
        ("site: north\nserver: a.example.org:9092\n", SiteConfig, "site", "gateway"),
        (SITE, GatewayConfig, "gateway", "site"),
        ("site: north\nserver: a.example.org:9092\n", StudyConfig, "study", "gateway"),
        (FEDERATION, StudyConfig, "study", "federation"),
        (STUDY, FederationConfig, "federation", "study"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_called_so_and_not_full_of_mistakes(text, kind, what, other):
    with pytest.raises(ConfigError) as caught:
        parse_settings(text, kind, what, name="given.yaml")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"given.yaml is not a valid {what}: it has the settings of a {other} (")
    assert line.endswith(f"Give the file of a {what}.")


@pytest.mark.parametrize(
    ("sites", "said"),
    [
        ("{north: University Hospital}", "sites.north: expected settings below it, one a line as `name: value`"),
        ("{north: {instituton: x}}", "sites.north.instituton: no such setting; did you mean sites.NAME.institution?"),
        ('{north: {institution: "a\\nb"}}', "sites.north.institution: character 2 is \\n, expected one line of plain"),
        ("{North: {}, north: {}}", "sites: North and north differ in capital letters only, which file systems"),
        ("\n  north:\n", "sites.north: nothing stands after it (line 4); write a value or null, {} for an empty"),
    ],
)  # fmt: skip
def test_a_mistake_in_what_has_a_name_of_its_own_is_said_with_that_name(sites, said):
    (line,) = mistakes(FEDERATION.replace("{north: {}}", sites), FederationConfig)
    assert line.startswith(said)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("algorithm: fedprox", "algorithm: fedprox is one of its kinds; write {kind: fedprox}"),
        ("aggregation: median", "aggregation: median is one of its kinds; write {kind: median}"),
        ("local: {optimizer: adam}", "local.optimizer: adam is one of its kinds; write {kind: adam}"),
        ("algorithm: fedsgd", "algorithm: found 'fedsgd', expected one of fedavg, "),
    ],
)
def test_a_kind_without_its_braces_is_shown_with_them(line, said):
    (problem,) = mistakes(STUDY + line, StudyConfig)
    assert problem.startswith(said)


def test_more_rounds_than_a_message_can_number_are_refused_before_a_site_refuses_them():
    (line,) = mistakes(STUDY.replace("rounds: 1", "rounds: 1000000000"), StudyConfig)
    assert line.startswith("rounds: Input should be less than or equal to 999999999")
