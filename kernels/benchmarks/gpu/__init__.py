"""One command for a GPU: all that is to be known of it, by worth, within a budget of minutes.

    python -m kernels.benchmarks.gpu --minutes 12

    plan --> run --> record --> summary
              |  one cell at a time, or many beside each other while nothing is timed
              v
            workers: processes that are killed when a cell passes its limit

What is right comes first (every kernel at real sizes against the definition in fp64, two runs bit for bit), while the
other CPU cores compile what is timed later. Then, one at a time and by worth: blocks of reads on our kernels against
the copy bandwidth, one model, other people's kernels, the other models, and the rest. ``docs/gpu.md`` says how to read
what it prints.
"""
