"""A site of NVFLARE's: its Client API, in the loop that its examples have."""

import nvflare.client as flare
from nvflare.app_common.abstract.fl_model import FLModel

from benchmarks.frameworks import note_round


def main() -> None:
    flare.init()
    first = flare.get_site_name() == "site-1"
    while flare.is_running():
        model = flare.receive()
        if model is None:
            break
        if first:
            note_round()
        trained = {name: array + 1e-3 for name, array in model.params.items()}
        flare.send(FLModel(params=trained, meta={"NUM_STEPS_CURRENT_ROUND": 1}))


if __name__ == "__main__":
    main()
