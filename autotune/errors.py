"""Every exception that autotune raises on purpose.

::

    AutotuneError
    ├── RequestError           the request was wrong; the command line exits with 2
    │   ├── ReferenceRefusedError   the reference cannot judge any candidate
    │   ├── StudyFileError     a study file cannot be understood
    │   ├── ModelError         a model cannot be made, captured or run on its inputs
    │   ├── DeviceError        the device asked for is not there
    │   ├── SpaceError         a search space leaves no candidate
    │   ├── DatabaseError      the tuning database cannot be opened or written
    │   ├── StudyHeldError     another process coordinates the study
    │   └── PlanNotFoundError  no stored plan answers the request
    └── WorkError              work had begun and failed; the command line exits with 1
        ├── ArtifactError      an artifact is missing, damaged or does not load
        ├── SignatureError     a bundle is not signed as its user requires
        ├── OutOfMemoryError   the memory of the host or the device was too small
        ├── DriverError        a call of CUDA's driver failed
        ├── WorkerError        a worker process could not be started or broke its protocol
        ├── UndecidedError     the finals of a study could not decide, and no earlier plan stands
        ├── StudyInterruptedError   a study was stopped from outside and can continue
        └── StudyTakenOverError     another process coordinates the study now

A failure that a trial is expected to meet is data, not an exception: :class:`autotune.records.trial.Failure`.
"""


class AutotuneError(Exception):
    """One message of up to four parts: the request, the finding, the expectation and the next command."""

    exit_code = 1

    def __init__(self, asked: str, *, found: str = "", expected: str = "", run: str = "") -> None:
        parts = [asked.rstrip(".")]
        if found:
            parts.append(f"found: {found}")
        if expected:
            parts.append(f"expected: {expected}")
        if run:
            parts.append(f"run next: {run}")
        super().__init__("\n  ".join(parts))
        self.asked, self.found, self.expected, self.run = asked, found, expected, run


class RequestError(AutotuneError):
    """The request was wrong; nothing was begun and nothing was written."""

    exit_code = 2


class StudyFileError(RequestError):
    """A study file has an unknown key, a wrong type or a value out of range."""


class ModelError(RequestError):
    """A model cannot be made, captured or run on the inputs it was given."""


class DeviceError(RequestError):
    """The requested device is not on this machine."""


class SpaceError(RequestError):
    """A search space leaves no candidate."""


class DatabaseError(RequestError):
    """The tuning database cannot be opened, read or written."""


class StudyHeldError(RequestError):
    """Another process coordinates the requested study."""


class PlanNotFoundError(RequestError):
    """No stored plan answers the request."""


class WorkError(AutotuneError):
    """Work had begun and failed; the finished part is kept."""


class ReferenceRefusedError(RequestError):
    """The reference is not finite or does not vary between inputs, so no candidate can be judged."""


class ArtifactError(WorkError):
    """An artifact is missing, damaged or does not load."""


class SignatureError(WorkError):
    """A bundle is not signed, or not by a key that its user requires; nothing else of it was read."""


class OutOfMemoryError(WorkError):
    """The memory of the host or the device was too small, or a step exceeded its limit."""


class DriverError(WorkError):
    """A call of CUDA's driver failed; ``code`` is its CUresult."""

    def __init__(self, asked: str, *, found: str = "", expected: str = "", run: str = "", code: int = 0) -> None:
        super().__init__(asked, found=found, expected=expected, run=run)
        self.code = code


class WorkerError(WorkError):
    """A worker process could not be started, or broke its protocol."""


class UndecidedError(WorkError):
    """The finals of a study could not decide between its finalists, and there is no earlier plan to use."""


class StudyInterruptedError(WorkError):
    """A study was stopped from outside; the same command continues it."""


class StudyTakenOverError(WorkError):
    """A coordinator lost its study to another one, and may write nothing to it any more."""
