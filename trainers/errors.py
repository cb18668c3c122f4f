"""The errors a run may stop with; the command line turns each into one line and exit code 2."""


class RunError(ValueError):
    """A run cannot start or go on; the message says what is wrong, where, and what to do.

    Example:
        >>> raise RunError("notes.jsonl:3: no field 'text'")
        Traceback (most recent call last):
        divax.trainers.errors.RunError: notes.jsonl:3: no field 'text'
    """


class NonFiniteError(RunError):
    """A loss, gradient or parameter became infinite or NaN; the message names the step.

    Example:
        >>> issubclass(NonFiniteError, RunError)
        True
    """


class Interrupted(Exception):
    """A signal ended the run; the message says where its state is and how to go on.

    Example:
        >>> Interrupted("stopped at step 3", signal_number=15).signal_number
        15
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number
