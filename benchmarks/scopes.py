"""Scopes of a timing: the names and definitions that help, report and JSON use."""

ENGINE, PINNED, HOST, END_TO_END = "engine", "pinned", "host", "end to end"

SCOPES = {
    ENGINE: "kernels alone, by CUDA events; on a CPU the inference call, measured once for host too",
    PINNED: "page-locked memory in and out: copy in, engine, copy out, by CUDA events; not on a CPU",
    HOST: "numpy array in, numpy arrays out: Backend.infer, or Backend.stream for throughput",
    END_TO_END: "decoded frames of any size in, class maps of their size out: Segmenter.segment, which "
    "streams more frames than the optimal batch, or Segmenter.stream for throughput",
}
"""Scope -> definition."""
