"""Settings of a simulated federation's sites."""

from pathlib import Path

from client.config import FoldersData, GroupedSplit, load_site
from client.data.simulation.discover import FoundFederation, FoundSite
from client.data.simulation.site_files import write_sites
from client.governance.image_hashes import check, key


def test_all_simulated_sites_share_a_secret_that_is_kept_and_that_nobody_else_may_read(
    tmp_path: Path, make_study
) -> None:
    sites = tuple(
        FoundSite(name, FoldersData(root=tmp_path / name), GroupedSplit(), num_images=3)
        for name in ("north", "south")
    )
    found = FoundFederation(sites=sites, classes=("mel", "nv"), has_groups=False, num_shared_groups=0)
    checks = set()
    for _ in range(2):
        write_sites(found, tmp_path / "out", synthetic=False)
        secrets = [load_site(tmp_path / "out" / f"{site.name}.yaml").overlap_secret for site in sites]
        checks |= {check(key(secret, make_study())) for secret in secrets}
    assert len(checks) == 1
    assert (tmp_path / "out/overlap.secret").stat().st_mode & 0o777 == 0o600
