"""Every exception of this package. It raises nothing itself and imports nothing.

TrainingFreeGRPOError
├── SettingsError (ValueError)         arguments or data refused before the first LM call
├── LibraryError (ValueError)          an experience, operation or library that cannot be
│   └── LibraryFormatError             text that is not a library: a file, a baked block
├── GateError (RuntimeError)           a gate broke its protocol
├── MetricError (ValueError)           the metric raised, or returned no usable score
└── LocalLMUnavailableError (ImportError)   the embedded LM is not installed
"""


class TrainingFreeGRPOError(Exception):
    """What every exception of this package derives from."""


class SettingsError(TrainingFreeGRPOError, ValueError):
    """Arguments or data that were refused before the first LM call; names every fault found."""


class LibraryError(TrainingFreeGRPOError, ValueError):
    """An experience, an operation or a library that breaks its invariants."""


class LibraryFormatError(LibraryError):
    """Text that was to be read as a library and is not one."""


class GateError(TrainingFreeGRPOError, RuntimeError):
    """A gate broke its protocol: it asks without end, or answers something else."""


class MetricError(TrainingFreeGRPOError, ValueError):
    """The metric raised, or returned something that is not a finite score."""


class LocalLMUnavailableError(TrainingFreeGRPOError, ImportError):
    """The package or the file of the embedded LM is missing; says how to install both."""
