"""Hydra's door: compose the config, then train the stages in order. `python train.py --help`."""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ.setdefault("HYDRA_FULL_ERROR_ASKED", os.environ.get("HYDRA_FULL_ERROR", "0"))
os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors to us instead of printing them; asked for by the user, we show the traceback

import hydra
from omegaconf import DictConfig, OmegaConf

exit_code = 0


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def compose_and_run(config: DictConfig) -> None:
    global exit_code
    from hydra.core.hydra_config import HydraConfig

    from lightning_modules.front import run_composed

    overrides = list(HydraConfig.get().overrides.task)
    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    exit_code = run_composed(plain, overrides)


if __name__ == "__main__":
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from insight.errors import InputError, TrainingFailure
    from lightning_modules.cli import report

    try:
        compose_and_run()
    except (InputError, TrainingFailure, FileNotFoundError, HydraException, OmegaConfBaseException) as error:
        exit_code = report(error)
    sys.exit(exit_code)
