"""The base of every exception of the project; it lives in the lowest package so that all three can raise it."""


class AttnResError(Exception):
    """Base of every exception raised by attnres_compile, attnres_passes and attnres_kernels.

    Every message ends with what to do.
    """


class UnsupportedSourcesError(AttnResError):
    """The sources of a depth attention do not agree in shape or dtype, or are not floating point."""
