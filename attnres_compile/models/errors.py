"""What can go wrong between the MODEL a user names and a module with example inputs."""

from __future__ import annotations

from attnres_kernels.errors import AttnResError


class ModelSourceError(AttnResError):
    """A MODEL argument could not be turned into a module with example inputs. Base of the errors below."""


class LoadOptionError(ModelSourceError, ValueError):
    """A batch, length, dtype or device that cannot be honoured."""


class UnknownPresetError(ModelSourceError):
    """MODEL is no preset, and looks like neither a configuration nor ``module:factory``."""


class MissingExtraError(ModelSourceError, ImportError):
    """A preset or configuration needs a package that is not installed."""


class ConfigSourceError(ModelSourceError):
    """A transformers configuration is missing, unreadable, or names no model class."""


class TooLargeError(ModelSourceError):
    """The weights of a preset or configuration need more memory than there is."""


class FactoryError(ModelSourceError):
    """A ``module:factory`` could not be imported, raised, or returned something else than a model."""


class InputGuessError(ModelSourceError):
    """The example inputs of a model cannot be guessed, or the guessed ones do not run."""


class SequenceTooLongError(LoadOptionError):
    """More tokens were asked for than the model has positions."""
