"""Seeds: the same for the same purpose, unrelated for any other."""

from common.seeds import derive


def test_the_same_purpose_gets_the_same_seed_on_every_machine_and_version():
    # sha256("7" 1F "north" 1F "3"), first eight bytes, shifted right by one bit.
    assert derive(7, "north", 3) == 0x3C44F4FA1D1FA393


def test_site_round_purpose_and_study_seed_each_give_another_seed():
    seeds = {
        derive(seed, site, round_, purpose)
        for seed in range(3)
        for site in ("north", "south")
        for round_ in range(5)
        for purpose in ("order", "augment")
    }
    assert len(seeds) == 3 * 2 * 5 * 2


def test_neighbouring_parts_do_not_run_into_each_other():
    assert derive(0, "a", "bc") != derive(0, "ab", "c")
    assert derive(1, 23) != derive(12, 3)
    assert derive(0) != derive(0, "")


def test_seeds_fit_what_torch_and_numpy_take():
    assert all(0 <= derive(seed, "any") < 2**63 for seed in range(1000))
