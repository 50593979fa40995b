"""Several processes: `python -m pipeline.system.launch OPTIONS -m cli COMMAND ...` in place of `accelerate launch`.

It is accelerate's own launcher with its own options, made to work where two things would keep it from that. Its command
imports timm, and with it torchvision, at which a CPU-only torch fails without the guard; and on CPUs it starts one
process, whatever `--num_processes` says, unless there is MPI. `torchrun` has neither trouble. This module can go with
the guard, if accelerate then starts several processes on CPUs.
"""

import os
import sys
from collections.abc import Sequence

import torch

from pipeline.system import torchvision_guard


def main(arguments: Sequence[str]) -> None:
    """Run `accelerate launch` with these arguments in this process; raises where a launched process fails."""
    torchvision_guard.apply()
    from accelerate.commands.launch import launch_command, launch_command_parser

    options = launch_command_parser().parse_args(list(arguments))
    on_cpu = options.cpu or not torch.accelerator.is_available()
    if on_cpu and (options.num_processes or 1) > 1 and options.mpirun_hostfile is None:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # for the processes: a GPU may be there after all
        options.cpu, options.multi_gpu = False, True  # its word for: through torch.distributed.run
    launch_command(options)


if __name__ == "__main__":
    main(sys.argv[1:])
