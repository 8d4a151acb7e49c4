"""Benchmarks of the generated kernels: no part of what is installed, run from the repository's root.

    python -m kernels.benchmarks peers      reads and blocks of reads against torch code and other people's kernels
    python -m kernels.benchmarks offline    every generated kernel compiled for GPUs that are not there
    python -m kernels.benchmarks static     launches and bytes of a read, ours and other people's, without a GPU
    python -m kernels.benchmarks goals      how far the project's goals are, from kept records
    python -m kernels.benchmarks show       the table of a kept record
    python -m kernels.benchmarks plot       the picture of a kept record
    python -m kernels.benchmarks.gpu        all that a GPU is to tell, by worth, within a budget (make gpu)

    python -m kernels.benchmarks.builds           steps of a model under this build and under another, in pairs
    python -m kernels.benchmarks.cpu_schedules    the reads of a forward on the CPU, by schedule and by tokens
    python -m kernels.benchmarks.regions          regions=True: the time to a first step, and every step after it
    python -m kernels.benchmarks.training         models trained with and without AttnRes on real text
    python -m kernels.benchmarks.optimizer_check  the check before every optimizer step, inside the step

They use ``attnres_compile`` and nothing there uses them. Whole models are measured by ``attnres bench model``.
"""
