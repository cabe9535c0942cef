"""Hydra's door: compose the config, then train the stages in order. `python train.py --help`."""

from __future__ import annotations

import os
import sys
from typing import Any

FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR") == "1"
INTERRUPTED = 130
os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands its errors to us, who print one message

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from insight.errors import TrialFailed, report

exit_code = 0


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def compose_and_run(config: DictConfig) -> None:
    global exit_code
    from lightning_modules.front import run_composed  # here, so that --help and --cfg need no PyTorch

    overrides = list(HydraConfig.get().overrides.task)
    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        exit_code = run_composed(plain, overrides, FULL_ERROR)
        return
    code = run_composed(plain, overrides, FULL_ERROR, trial_dir=HydraConfig.get().runtime.output_dir)
    if code == INTERRUPTED:
        raise KeyboardInterrupt  # the trials that would follow too
    if code:
        raise TrialFailed(code)  # not by exit_code: a launcher may have started this in another process


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        from lightning_modules.groups import describe_groups

        sys.stdout.write(describe_groups())
        sys.exit(0)
    try:
        compose_and_run()
    except (HydraException, OmegaConfBaseException) as error:
        from lightning_modules.overrides import CONFIGS, explain

        exit_code = report(error if FULL_ERROR else explain(error, CONFIGS, sys.argv[1:]), FULL_ERROR)
    except TrialFailed as failed:
        exit_code = failed.args[0]
    except KeyboardInterrupt:
        exit_code = INTERRUPTED
    sys.exit(exit_code)
