"""Everything that holdfast raises, as one tree.

Grouped by what a handler would do::

    HoldfastError
    |-- InvalidInput (ValueError)          fix the call
    |   |-- InvalidName                    a run, tag or object name breaks the rules
    |   |-- InvalidReference               not in the grammar of references
    |   |-- InvalidPolicy                  a save or keep policy makes no sense
    |   |-- UnsupportedValue               a value that no codec can write
    |   `-- UnsupportedTensor              a tensor that has no bytes of its own
    |-- NotFound (LookupError)             look for something else
    |   |-- UnknownReference               nothing in the store answers to it
    |   |-- AmbiguousReference             more than one thing answers to it
    |   `-- NothingToResume                resume="must", and there is no checkpoint
    |-- RefusedFresh                       evidence of earlier work, but none can be used
    |-- Conflict                           somebody else was first, or is at work
    |   |-- NameTaken                      the tag or run name exists
    |   |-- RecordConflict                 another save published under this very id
    |   |-- Fenced                         a newer launch owns the run
    |   |-- BeingDeleted                   a sweep is about to delete it
    |   |-- StillNeeded                    a tag, a fork, a reader or a save in flight needs it
    |   `-- AlreadyOpen                    a second Checkpointer on the run in this process
    |-- Damaged                            stored bytes are not what was written
    |   |-- Missing                        an object that another one names is not there
    |   |-- Corrupt                        seal or digest does not match, or malformed
    |   |-- Unreadable                     EIO for this one object: nothing is known of its bytes
    |   `-- UnknownFormat                  written by another version of the format
    |-- StateError                         checkpoint and program do not fit together
    |   |-- StateMismatch                  missing, surplus or differently shaped entries
    |   |-- RestoreFailed                  the live state differs from what was stored
    |   `-- Unusable                       an earlier failure left half-restored state
    |-- SaveFailed                         a checkpoint could not be made; training may go on
    |-- CodecUnavailable                   whole, but a package that decodes it is not installed
    |-- StorageError (OSError)             the machine or the network
    |   |-- ObjectExists                   create-if-absent lost (storage layer)
    |   |-- ObjectMissing                  no such object (storage layer)
    |   |-- StorageFull                    ENOSPC, EDQUOT, EFBIG
    |   |-- StorageReadOnly                EROFS, EACCES, EPERM
    |   `-- StorageUnavailable             not a directory, missing mount, EIO, ESTALE
    |-- PeerLost                           end this rank too, and start the job again
    |-- Unhealthy                          the health checks have stopped the training; look into it before a restart
    `-- CrashLoop                          the same job ended again and again; change something before a restart

Every class has a ``kind``, a code that never changes once released, and an
``exit_code`` for the command line. Messages say what happened, to which
object, and what to do next.

Example:
    >>> from holdfast import errors
    >>> error = errors.UnknownReference("no run 'gpt3'; did you mean 'gpt2'?")
    >>> error.kind, error.exit_code, isinstance(error, LookupError)
    ('unknown-reference', 21, True)
"""

from __future__ import annotations

from typing import ClassVar


class HoldfastError(Exception):
    """Base of everything that holdfast raises on purpose."""

    kind: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 9

    def __str__(self) -> str:
        # KeyError and OSError would otherwise quote or reorder the message.
        return str(self.args[0]) if self.args else self.kind


class InvalidInput(HoldfastError, ValueError):
    """A call that cannot be right, whatever is stored."""

    kind = "invalid-input"
    exit_code = 10


class InvalidName(InvalidInput):
    """A run, tag or object name that breaks the naming rules."""

    kind = "invalid-name"
    exit_code = 11


class InvalidReference(InvalidInput):
    """A reference that the grammar does not know."""

    kind = "invalid-reference"
    exit_code = 12


class InvalidPolicy(InvalidInput):
    """A save or keep policy that makes no sense."""

    kind = "invalid-policy"
    exit_code = 13


class UnsupportedValue(InvalidInput):
    """A value in the training state that no codec can write; the message has its path."""

    kind = "unsupported-value"
    exit_code = 14


class UnsupportedTensor(InvalidInput):
    """A tensor without bytes of its own (meta, fake); the message has its path."""

    kind = "unsupported-tensor"
    exit_code = 15


class NotFound(HoldfastError, LookupError):
    """What was asked for is not there."""

    kind = "not-found"
    exit_code = 20


class UnknownReference(NotFound):
    """Nothing in the store answers to the reference; near misses are in the message."""

    kind = "unknown-reference"
    exit_code = 21


class AmbiguousReference(NotFound):
    """More than one thing answers to the reference; the candidates are in the message."""

    kind = "ambiguous-reference"
    exit_code = 22


class NothingToResume(NotFound):
    """``resume="must"``, and no checkpoint of the run can be used."""

    kind = "nothing-to-resume"
    exit_code = 23


class RefusedFresh(HoldfastError):
    """Earlier work exists but none of it can be used; starting from zero was refused."""

    kind = "refused-fresh"
    exit_code = 24


class Conflict(HoldfastError):
    """Somebody else was first, or is at work right now."""

    kind = "conflict"
    exit_code = 30


class NameTaken(Conflict):
    """A tag or run of this name exists already; names do not move."""

    kind = "name-taken"
    exit_code = 31


class RecordConflict(Conflict):
    """Another save has published under this very record id."""

    kind = "record-conflict"
    exit_code = 32


class Fenced(Conflict):
    """A newer launch has taken over the run; this one may publish no more."""

    kind = "fenced"
    exit_code = 33


class BeingDeleted(Conflict):
    """A sweep has announced that it deletes this object; try again or choose another."""

    kind = "being-deleted"
    exit_code = 34


class StillNeeded(Conflict):
    """A tag, a pin, a fork, a reader or a save in flight still needs this object."""

    kind = "still-needed"
    exit_code = 35


class AlreadyOpen(Conflict):
    """This process already has a Checkpointer on the run."""

    kind = "already-open"
    exit_code = 36


class Damaged(HoldfastError):
    """Stored bytes are not what was written."""

    kind = "damaged"
    exit_code = 40

    def __init__(self, message: str = "", *, pack: str | None = None, digest: bytes | None = None) -> None:
        super().__init__(*([message] if message else []))
        self.pack = pack
        """The pack that holds the damaged segment, if it is one."""
        self.digest = digest
        """The segment's digest."""


class Missing(Damaged):
    """An object that another one names is not there."""

    kind = "missing"
    exit_code = 41


class Corrupt(Damaged):
    """A seal or digest does not match, or the bytes are malformed."""

    kind = "corrupt"
    exit_code = 42


class UnknownFormat(Damaged):
    """Written in a version of the format that this version cannot read."""

    kind = "unknown-format"
    exit_code = 43


class Unreadable(Damaged):
    """The storage answers EIO for this one object, a bad sector maybe; nothing is proven or quarantined."""

    kind = "unreadable"
    exit_code = 44


class StateError(HoldfastError):
    """The checkpoint and the program do not fit together."""

    kind = "state-error"
    exit_code = 50


class StateMismatch(StateError):
    """Entries are missing, surplus, or of another shape or dtype; all are listed."""

    kind = "state-mismatch"
    exit_code = 51


class RestoreFailed(StateError):
    """After a restore the live state differs from what was stored."""

    kind = "restore-failed"
    exit_code = 52


class Unusable(StateError):
    """An earlier failure left half-restored state; nothing more is done with it."""

    kind = "unusable"
    exit_code = 53


class SaveFailed(HoldfastError):
    """A checkpoint could not be made; the last committed one stands."""

    kind = "save-failed"
    exit_code = 60


class CodecUnavailable(HoldfastError):
    """Segments are stored with a codec whose package is not installed here. Nothing is damaged: install it."""

    kind = "codec-unavailable"
    exit_code = 61


class StorageError(HoldfastError, OSError):
    """The filesystem, the machine or the network failed."""

    kind = "storage-error"
    exit_code = 70

    def __init__(self, message: str, *, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class ObjectExists(StorageError, FileExistsError):
    """Create-if-absent found an object of this name."""

    kind = "object-exists"
    exit_code = 71


class ObjectMissing(StorageError, FileNotFoundError):
    """No object of this name."""

    kind = "object-missing"
    exit_code = 72


class StorageFull(StorageError):
    """No space, quota or file size left (ENOSPC, EDQUOT, EFBIG)."""

    kind = "storage-full"
    exit_code = 73


class StorageReadOnly(StorageError, PermissionError):
    """The place cannot be written (EROFS, EACCES, EPERM)."""

    kind = "storage-read-only"
    exit_code = 74


class StorageUnavailable(StorageError):
    """Not a directory, a missing mount, or an input/output error."""

    kind = "storage-unavailable"
    exit_code = 76  # not 75, EX_TEMPFAIL: to schedulers that means "start me again", as after a pre-emption


class PeerLost(HoldfastError):
    """Another rank has ended or does not answer: nothing can be agreed on; the last committed checkpoint stands."""

    kind = "peer-lost"
    exit_code = 80

    def __init__(self, message: str = "", *, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(*([message] if message else []))
        self.ranks = ranks
        """The ranks of which nothing was heard; empty where that cannot be told."""


class Unhealthy(HoldfastError):
    """The health checks have stopped the training; the last committed checkpoint stands."""

    kind = "unhealthy"
    exit_code = 81


class CrashLoop(HoldfastError):
    """The same job has ended again and again without getting on; no checkpoint is to blame, and none is touched."""

    kind = "crash-loop"
    exit_code = 82


def error_of(kind: str, text: str) -> HoldfastError:
    """An error of another process, by its ``kind``, as if it had been raised here; `SaveFailed` for unknown kinds.

    Example:
        >>> error_of("peer-lost", "rank 3 has ended")
        PeerLost('rank 3 has ended')
    """
    classes = [one for one in globals().values() if isinstance(one, type) and issubclass(one, HoldfastError)]
    return next((one for one in classes if one.kind == kind), SaveFailed)(text)
