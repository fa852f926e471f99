"""What callers rely on: builtin bases, exit codes, and messages that name the device."""

from __future__ import annotations

import errno

import pytest

from vfioflow import errors
from vfioflow.states import State

PUBLIC = [getattr(errors, name) for name in errors.__all__]

EXIT_CODES = {
    errors.AccessError: 4,
    errors.VfioflowError: 1,
    errors.ConfigError: 2,
    errors.AdmissionError: 3,
    errors.DeviceError: 4,
    errors.IllegalTransition: 4,
    errors.EndError: 4,
    errors.StreamError: 2,
    errors.PeerError: 5,
    errors.AuthenticationError: 5,
    errors.PeerLost: 5,
    errors.ProtocolError: 5,
    errors.RemoteError: 5,
    errors.IntegrityError: 5,
    errors.StallError: 5,
    errors.TakenBack: 5,
    errors.HookError: 1,
    errors.NoConvergence: 6,
    errors.HandoverInDoubt: 7,
    errors.JournalError: 8,
    errors.ResourceError: 9,
}


def test_every_error_is_public() -> None:
    defined = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert set(PUBLIC) == defined
    assert all(issubclass(error, errors.VfioflowError) for error in PUBLIC)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.ConfigError, ValueError),
        (errors.DeviceError, OSError),
        (errors.EndError, OSError),
        (errors.IllegalTransition, ValueError),
        (errors.StreamError, ValueError),
        (errors.PeerError, ConnectionError),
        (errors.JournalError, OSError),
        (errors.ResourceError, OSError),
    ],
)
def test_builtin_bases(error: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(error, builtin)


def test_exit_codes() -> None:
    assert {error: error.exit_code for error in PUBLIC} == EXIT_CODES


def test_each_kind_of_failure_has_its_own_exit_code() -> None:
    # The two device errors, that of an access to one, and that of a tunnel's end share one on purpose, as
    # do the two about what a user has given; so do a peer error's subclasses.
    kinds = [error for error in PUBLIC if errors.VfioflowError in error.__bases__]
    codes = sorted(error.exit_code for error in kinds)
    assert codes == [1, 2, 2, 3, 4, 4, 4, 4, 5, 6, 7, 8, 9]


def test_device_error_names_the_device_and_keeps_the_errno() -> None:
    error = errors.DeviceError("vf0", "RUNNING -> STOP", errno.EIO, "reset it")
    assert str(error) == "device vf0: RUNNING -> STOP: EIO (Input/output error); reset it"
    assert (error.device, error.action, error.errno) == ("vf0", "RUNNING -> STOP", errno.EIO)


def test_end_error_names_the_end_and_keeps_the_errno() -> None:
    error = errors.EndError("the output (out)", "writing", errno.ENOSPC)
    assert str(error) == "the output (out): writing: ENOSPC (No space left on device)"
    assert (error.end, error.action, error.errno) == ("the output (out)", "writing", errno.ENOSPC)
    assert str(errors.EndError("the output (out)", "it talks", 0)) == "the output (out): it talks"


def test_device_error_without_advice() -> None:
    assert str(errors.DeviceError("vf0", "reset", errno.EBUSY)) == (
        "device vf0: reset: EBUSY (Device or resource busy)"
    )


def test_device_error_with_an_errno_that_has_no_name() -> None:
    assert str(errors.DeviceError("vf0", "reset", 4242)) == (
        "device vf0: reset: 4242 (Unknown error 4242)"
    )


def test_admission_error_names_each_device() -> None:
    reasons = {"vf0": "no match at the destination", "gpu1": "no P2P"}
    error = errors.AdmissionError(reasons)
    assert str(error) == (
        "these devices may not migrate: vf0: no match at the destination; gpu1: no P2P"
    )
    assert error.reasons == reasons
    assert error.reasons is not reasons


def test_illegal_transition_names_both_states() -> None:
    error = errors.IllegalTransition(State.STOP_COPY, State.PRE_COPY, "because")
    assert str(error) == "STOP_COPY -> PRE_COPY is refused: because"
    assert (error.start, error.end, error.reason) == (State.STOP_COPY, State.PRE_COPY, "because")
