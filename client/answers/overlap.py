"""The answer to a comparison of images: keyed hashes in place of images."""

from client.config import SiteConfig
from client.governance import image_hashes
from client.study_setup import StudySetup
from common import log, wire


class OverlapAnswers:
    """Keeps the hashes of a study's images, since a server asks twice."""

    def __init__(self, site: SiteConfig) -> None:
        self._site = site
        self._shown: tuple[StudySetup, tuple[image_hashes.Shown, ...]] | None = None

    def answer(self, plan: wire.OverlapPlan, setup: StudySetup) -> wire.OverlapAnswer:
        """Keyed hashes of the images. Raises what image_hashes.key raises, and StorageError."""
        study = plan.study
        key = image_hashes.key(self._site.overlap_secret, study)
        images = self._shown[1] if self._shown is not None and self._shown[0] is setup else None
        if images is None:
            trains = plan.site in study.sites.train
            manifest = setup.store.manifest
            rows = manifest.rows if trains else (*manifest.on("validation"), *manifest.on("test"))
            images = image_hashes.shown(rows, self._site.threads)
            self._shown = setup, images
        counts = image_hashes.list_shared(self._site.state_dir, key, images, plan.shared)
        if counts:
            matches = ", ".join(f"{number} {match}" for match, number in counts.items())
            log.warn(
                f"images of this site are also at a training site ({matches}): {image_hashes.FILE} in state_dir lists "
                "them. Take them out of the data, or the study's figures on this site are not of unseen images"
            )
        else:
            log.event(f"{len(images)} images are compared with other sites', as keyed hashes")
        return image_hashes.answer(plan, key, images)
